//! Normalizations.

use super::{Evaluation, Inference, OpError, Operator, show, split_last};
use crate::{DType, ValueType};

/// `y = x / sqrt(mean(x²) + epsilon) * w` over the last extent (ONNX RMSNormalization, Zhang and Sennrich 2019).
///
/// Inputs: `x` f32 `[..., n]`; `w` f32 `[n]`. Output: f32, as `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormalization {
    /// Added to the mean of squares.
    pub epsilon: f32,
}

impl Operator for RmsNormalization {
    fn name(&self) -> &'static str {
        "RMSNormalization"
    }

    fn attributes(&self) -> String {
        format!(" {{epsilon={:e}}}", self.epsilon)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let x = cx.f32(0)?;
        let w = cx.f32(1)?;
        let (_, n) = split_last(x)?;
        if w != [n.clone()] {
            return Err(OpError::Shape(format!("the weight {} does not fit {}", show(w), show(x))));
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut x = cx.f32(0)?;
        let w = cx.f32(1)?;
        for row in x.chunks_mut(w.len().max(1)) {
            let squares: f32 = row.iter().map(|v| v * v).sum();
            let scale = 1.0 / (squares / w.len() as f32 + self.epsilon).sqrt();
            row.iter_mut().zip(&w).for_each(|(v, w)| *v = *v * scale * w);
        }
        cx.put_f32(0, &x)
    }
}

/// `y = (x - mean) / sqrt(variance + epsilon) * w + b` over the last extent (ONNX LayerNormalization with axis -1; Ba et al. 2016). The variance is
/// that of the population.
///
/// Inputs: `x` f32 `[..., n]`; optionally `w` f32 `[n]`; optionally `b` f32 `[n]`. Output: f32, as `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormalization {
    /// Added to the variance.
    pub epsilon: f32,
}

/// Normalization over groups of channels and all spatial extents (ONNX GroupNormalization; with as many groups as channels InstanceNormalization).
///
/// Inputs: `x` f32 `[batch, channels, spatial...]`; optionally `w` f32 `[channels]`; optionally `b` f32 `[channels]`. Output: f32, as `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormalization {
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

/// `y = x / (bias + alpha / size * Σ x²)^beta` over a window of `size` channels (ONNX LRN). Input: f32 `[batch, channels, ...]`. Output: as input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// Channels of the window.
    pub size: usize,
    /// Factor.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Offset.
    pub bias: f32,
}

super::pending!(LayerNormalization, "LayerNormalization");
super::pending!(GroupNormalization, "GroupNormalization");
super::pending!(Lrn, "LRN");
