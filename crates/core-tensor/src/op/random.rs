//! Pseudo-random numbers.

use super::shape::bind;
use super::{Evaluation, Inference, Numbers, Op, OpError, Operator, filled, show};
use crate::{Bindings, DType, Dim, ValueType};

/// What numbers are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Between two numbers.
    Uniform {
        /// From.
        low: f32,
        /// To.
        high: f32,
    },
    /// Bell curve.
    Normal {
        /// Center.
        mean: f32,
        /// Standard deviation.
        scale: f32,
    },
}

/// Random numbers (ONNX RandomNormal, RandomUniform), the same in every run: the seed is part of the graph. No inputs. Output: dtype and shape given.
/// (Numbers differ from other runtimes': ONNX leaves the generator open.)
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    /// What they are drawn from.
    pub distribution: Distribution,
    /// The seed.
    pub seed: u64,
    /// f32 or f64.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<Dim>,
}

/// The next number in 0..1 of a sequence (splitmix64; Steele, Lea and Flood 2014).
fn next(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

impl Operator for Random {
    fn name(&self) -> &'static str {
        match self.distribution {
            Distribution::Uniform { .. } => "RandomUniform",
            Distribution::Normal { .. } => "RandomNormal",
        }
    }

    fn attributes(&self) -> String {
        let distribution = match self.distribution {
            Distribution::Uniform { low, high } => format!("low={low:?}, high={high:?}"),
            Distribution::Normal { mean, scale } => format!("mean={mean:?}, scale={scale:?}"),
        };
        format!(" {{{distribution}, seed={}, dtype={}, shape={}}}", self.seed, self.dtype, show(&self.shape))
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(0..=0, "no")?;
        if !matches!(self.dtype, DType::F32 | DType::F64) {
            return Err(OpError::Attribute { name: "dtype", reason: format!("no random numbers of {}", self.dtype) });
        }
        Ok(vec![ValueType::tensor(self.dtype, &self.shape)])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Random(Random { shape: bind(&self.shape, bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut y = filled(&cx.output_shape(0)?, 0.0f64)?;
        let mut state = self.seed;
        for v in &mut y {
            let u = next(&mut state);
            *v = match self.distribution {
                Distribution::Uniform { low, high } => f64::from(low) + (f64::from(high) - f64::from(low)) * u,
                Distribution::Normal { mean, scale } => {
                    // Box and Muller 1958; 1 - u is never 0.
                    let bell = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * next(&mut state)).cos();
                    f64::from(mean) + f64::from(scale) * bell
                }
            };
        }
        cx.put_numbers(0, &Numbers::F64(y))
    }
}
