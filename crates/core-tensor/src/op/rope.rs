//! Rotary position embedding.

use super::{Evaluation, Inference, OpError, Operator, show};
use crate::{DType, Dim, ValueType};

/// How angles are stretched to positions beyond those that a model was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Angles as trained.
    None,
    /// All angles times `factor` (linear position interpolation; `factor` is 1/8 for an eight-fold context).
    Linear {
        /// What angles are multiplied with.
        factor: f32,
    },
    /// YaRN (Peng et al. 2023): high frequencies are kept, low ones interpolated, a ramp between; magnitudes are scaled.
    Yarn {
        /// What the angles of low frequencies are multiplied with.
        factor: f32,
        /// Weight of the extrapolated part; 1 for YaRN as published.
        ext_factor: f32,
        /// What magnitudes are multiplied with, before the factor that YaRN derives from `factor`.
        attn_factor: f32,
        /// Rotations at the trained context above which a frequency is kept.
        beta_fast: f32,
        /// Rotations at the trained context below which a frequency is interpolated.
        beta_slow: f32,
        /// The context that the model was trained on.
        original_context: u32,
    },
}

/// Rotates pairs of elements of each head by an angle that grows with the position (Su et al. 2021; ONNX RotaryEmbedding).
///
/// Inputs: `x` f32 `[tokens, heads, head_dim]`; positions i32 `[tokens]`; optional frequency factors f32 `[rotary_dims / 2]`, by which
/// the angle of each pair is divided (`rope_freqs` of Llama 3). Output: f32, as `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryEmbedding {
    /// Whether a pair is elements `2i, 2i+1` (Llama from GGUF), and not `i, i + rotary_dims/2` (NeoX).
    pub interleaved: bool,
    /// How many of the first elements of a head are rotated; even.
    pub rotary_dims: usize,
    /// `rope_theta`: pair `i` turns by `theta^(-2i/rotary_dims)` per position.
    pub theta: f32,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// For one position: cosine and sine of each pair (with the magnitude that YaRN asks for).
///
/// The definition that every backend follows; `factors` are the optional frequency factors.
#[must_use]
pub fn rope_table(op: &RotaryEmbedding, position: i32, factors: Option<&[f32]>) -> Vec<(f32, f32)> {
    let dims = op.rotary_dims as f32;
    (0..op.rotary_dims / 2)
        .map(|i| {
            let factor = factors.and_then(|factors| factors.get(i)).copied().unwrap_or(1.0);
            let angle = position as f32 * op.theta.powf(-2.0 * i as f32 / dims) / factor;
            let (angle, magnitude) = stretch(op, i, angle);
            (angle.cos() * magnitude, angle.sin() * magnitude)
        })
        .collect()
}

fn stretch(op: &RotaryEmbedding, pair: usize, angle: f32) -> (f32, f32) {
    match op.scaling {
        RopeScaling::None => (angle, 1.0),
        RopeScaling::Linear { factor } => (angle * factor, 1.0),
        RopeScaling::Yarn { factor, ext_factor, attn_factor, beta_fast, beta_slow, original_context } => {
            let interpolated = angle * factor;
            if ext_factor == 0.0 {
                return (interpolated, attn_factor);
            }
            // The pair whose frequency makes `rotations` turns over the trained context.
            let pair_of = |rotations: f32| {
                let context = original_context as f32;
                op.rotary_dims as f32 * (context / (rotations * 2.0 * std::f32::consts::PI)).ln()
                    / (2.0 * op.theta.ln())
            };
            let low = pair_of(beta_fast).floor().max(0.0);
            let high = pair_of(beta_slow).ceil().min(op.rotary_dims as f32 - 1.0);
            let ramp = 1.0 - ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let keep = ramp * ext_factor;
            let magnitude = attn_factor * (1.0 + 0.1 * (1.0 / factor).ln());
            (interpolated * (1.0 - keep) + angle * keep, magnitude)
        }
    }
}

impl Operator for RotaryEmbedding {
    fn name(&self) -> &'static str {
        "RotaryEmbedding"
    }

    fn attributes(&self) -> String {
        let layout = if self.interleaved { "interleaved" } else { "halves" };
        let scaling = match self.scaling {
            RopeScaling::None => String::new(),
            RopeScaling::Linear { factor } => format!(", linear={factor}"),
            RopeScaling::Yarn { factor, ext_factor, attn_factor, beta_fast, beta_slow, original_context } => {
                format!(", yarn={factor}/{ext_factor}/{attn_factor}/{beta_fast}/{beta_slow}/{original_context}")
            }
        };
        format!(" {{{layout}, rotary_dims={}, theta={}{scaling}}}", self.rotary_dims, self.theta)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=3, "2 or 3")?;
        let x = cx.f32(0)?;
        let positions = cx.i32_vector(1)?;
        let [tokens, _, Dim::Num(head_dim)] = x else {
            return Err(OpError::Shape(format!("x must be [tokens, heads, head_dim], it is {}", show(x))));
        };
        if tokens != positions {
            return Err(OpError::Shape(format!("{positions} positions for x {}", show(x))));
        }
        if !self.rotary_dims.is_multiple_of(2) || self.rotary_dims > *head_dim || self.rotary_dims == 0 {
            return Err(OpError::Attribute {
                name: "rotary_dims",
                reason: format!("{} is odd, zero or more than head_dim {head_dim}", self.rotary_dims),
            });
        }
        if cx.has(2) {
            let factors = cx.f32(2)?;
            if factors != [Dim::Num(self.rotary_dims / 2)] {
                return Err(OpError::Shape(format!("frequency factors are {}", show(factors))));
            }
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut x = cx.f32(0)?;
        let positions = cx.i32(1)?;
        let factors = if cx.has(2) { Some(cx.f32(2)?) } else { None };
        let shape = cx.tensor(0)?.shape().to_vec();
        let (heads, head_dim) = (shape[1], shape[2]);
        let half = self.rotary_dims / 2;
        for (token, position) in positions.iter().enumerate() {
            let table = rope_table(self, *position, factors.as_deref());
            for head in 0..heads {
                let start = (token * heads + head) * head_dim;
                let row = &mut x[start..start + head_dim];
                for (i, (cos, sin)) in table.iter().enumerate() {
                    let (p, q) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (a, b) = (row[p], row[q]);
                    row[p] = a * cos - b * sin;
                    row[q] = a * sin + b * cos;
                }
            }
        }
        cx.put_f32(0, &x)
    }
}
