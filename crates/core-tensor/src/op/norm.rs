//! Normalizations.

use super::{Evaluation, Inference, OpError, Operator, expect_shape, filled, show, split_last};
use crate::{DType, Dim, ValueType};

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

impl Operator for LayerNormalization {
    fn name(&self) -> &'static str {
        "LayerNormalization"
    }

    fn attributes(&self) -> String {
        format!(" {{epsilon={:e}}}", self.epsilon)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=3, "1 to 3")?;
        let x = cx.f32(0)?;
        let (_, n) = split_last(x)?;
        for input in [1, 2] {
            if cx.has(input) {
                expect_shape(cx.f32(input)?, std::slice::from_ref(n), "weight or bias")?;
            }
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let mut x = cx.f32(0)?;
        let n = cx.last_extent(0)?;
        let w = if cx.has(1) { cx.f32(1)? } else { filled(&[n], 1.0)? };
        let b = if cx.has(2) { cx.f32(2)? } else { filled(&[n], 0.0)? };
        for row in x.chunks_mut(n.max(1)) {
            normalize(row, self.epsilon);
            row.iter_mut().zip(w.iter().zip(&b)).for_each(|(v, (w, b))| *v = *v * w + b);
        }
        cx.put_f32(0, &x)
    }
}

/// Shifts and scales elements to a mean of 0 and a variance of 1.
fn normalize(x: &mut [f32], epsilon: f32) {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
    x.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
}

/// Batch, channels and the rest of an image's shape.
fn channels(x: &[Dim]) -> Result<&Dim, OpError> {
    x.get(1).ok_or_else(|| OpError::Shape(format!("x must be [batch, channels, ...], it is {}", show(x))))
}

impl Operator for GroupNormalization {
    fn name(&self) -> &'static str {
        "GroupNormalization"
    }

    fn attributes(&self) -> String {
        format!(" {{groups={}, epsilon={:e}}}", self.groups, self.epsilon)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=3, "1 to 3")?;
        let x = cx.f32(0)?;
        let channels = channels(x)?;
        if self.groups == 0 || channels.as_num().is_some_and(|n| !n.is_multiple_of(self.groups)) {
            let reason = format!("{} groups of {channels} channels", self.groups);
            return Err(OpError::Attribute { name: "groups", reason });
        }
        for input in [1, 2] {
            if cx.has(input) {
                expect_shape(cx.f32(input)?, std::slice::from_ref(channels), "weight or bias")?;
            }
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let mut x = cx.f32(0)?;
        let channels = shape[1];
        let spatial: usize = shape[2..].iter().product();
        x.chunks_mut((channels / self.groups * spatial).max(1)).for_each(|group| normalize(group, self.epsilon));
        let w = if cx.has(1) { cx.f32(1)? } else { filled(&[channels], 1.0)? };
        let b = if cx.has(2) { cx.f32(2)? } else { filled(&[channels], 0.0)? };
        for (i, plane) in x.chunks_mut(spatial.max(1)).enumerate() {
            plane.iter_mut().for_each(|v| *v = *v * w[i % channels] + b[i % channels]);
        }
        cx.put_f32(0, &x)
    }
}

impl Operator for Lrn {
    fn name(&self) -> &'static str {
        "LRN"
    }

    fn attributes(&self) -> String {
        format!(" {{size={}, alpha={:e}, beta={}, bias={}}}", self.size, self.alpha, self.beta, self.bias)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let x = cx.f32(0)?;
        channels(x)?;
        if self.size == 0 {
            return Err(OpError::Attribute { name: "size", reason: "it is 0".into() });
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let x = cx.f32(0)?;
        let channels = shape[1];
        let spatial: usize = shape[2..].iter().product();
        let mut y = filled(&shape, 0.0f32)?;
        for (i, v) in y.iter_mut().enumerate() {
            let (image, channel, place) = (i / spatial / channels, i / spatial % channels, i % spatial);
            let first = channel.saturating_sub((self.size - 1) / 2);
            let last = channel.saturating_add(self.size / 2).min(channels - 1);
            let squares: f32 = (first..=last).map(|c| x[(image * channels + c) * spatial + place].powi(2)).sum();
            *v = x[i] / (self.bias + self.alpha / self.size as f32 * squares).powf(self.beta);
        }
        cx.put_f32(0, &y)
    }
}
