//! Transposed convolution.

use super::{Window, add_bias, divisible, image, known, places};
use crate::op::{Evaluation, Inference, OpError, Operator, expect_shape, filled, show};
use crate::{DType, Dim, ValueType};

/// Transposed convolution (ONNX ConvTranspose).
///
/// Inputs: x f32 `[batch, channels, spatial...]`; w f32 `[channels, out / groups, kernel...]`; optionally bias f32 `[out]`. Output: f32 with
/// `spatial' = stride·(spatial - 1) + output_padding + dilation·(kernel - 1) + 1 - pads`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTranspose {
    /// The window; pads are cut away from the result.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// What is added after each extent of the result.
    pub output_padding: Vec<usize>,
}

impl Operator for ConvTranspose {
    fn name(&self) -> &'static str {
        "ConvTranspose"
    }

    fn attributes(&self) -> String {
        format!(" {{{}, groups={}, output_padding={:?}}}", self.window.text(), self.groups, self.output_padding)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=3, "2 or 3")?;
        let (x, w) = (cx.f32(0)?, cx.float(1)?);
        let (batch, channels, spatial) = image(x)?;
        let window = &self.window;
        window.check(spatial.len())?;
        if self.output_padding.len() != spatial.len() {
            let reason = format!("{} of them for {} spatial extents", self.output_padding.len(), spatial.len());
            return Err(OpError::Attribute { name: "output_padding", reason });
        }
        divisible(channels, self.groups, "groups")?;
        let [w_channels, per_group, kernel @ ..] = w else {
            return Err(OpError::Shape(format!("w must be [channels, out / groups, kernel...], it is {}", show(w))));
        };
        if w_channels.differs(channels) || kernel.len() != spatial.len() {
            return Err(OpError::Shape(format!("x {} and w {} do not fit", show(x), show(w))));
        }
        let out = known(per_group.clone().mul(Dim::Num(self.groups)), &[per_group], "groups")?;
        let mut shape = vec![batch.clone(), out];
        for (i, (extent, kernel)) in spatial.iter().zip(kernel).enumerate() {
            let added = window.span(i, kernel)?.add(Dim::Num(self.output_padding[i]));
            let whole = extent.clone().sub(Dim::Num(1)).mul(Dim::Num(window.strides[i])).add(added);
            let cut = Dim::Num(window.pads_begin[i]).add(Dim::Num(window.pads_end[i]));
            shape.push(known(whole.sub(cut), &[extent, kernel], "output_padding or pads")?);
        }
        if cx.has(2) {
            expect_shape(cx.float(2)?, &shape[1..2], "the bias")?;
        }
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, w) = (cx.f32(0)?, cx.f32(1)?);
        let (x_shape, w_shape) = (cx.tensor(0)?.shape(), cx.tensor(1)?.shape());
        let (spatial, kernel) = (&x_shape[2..], &w_shape[2..]);
        let (plane, volume): (usize, usize) = (spatial.iter().product(), kernel.iter().product());
        let (out_plane, per_group): (usize, usize) = (shape[2..].iter().product(), w_shape[1]);
        let channels = x_shape[1];
        let mut y = filled(&shape, 0.0f32)?;
        for from in 0..if x.is_empty() || y.is_empty() { 0 } else { plane } {
            let from_at = places(from, spatial);
            for tap in 0..volume {
                let tap_at = places(tap, kernel);
                // Where this element of the kernel puts this element of the input.
                let to = (0..spatial.len()).try_fold(0usize, |index, i| {
                    let at = from_at[i] * self.window.strides[i] + tap_at[i] * self.window.dilations[i];
                    let at = at.checked_sub(self.window.pads_begin[i]).filter(|at| *at < shape[2 + i])?;
                    Some(index * shape[2 + i] + at)
                });
                let Some(to) = to else { continue };
                for image in 0..shape[0] {
                    for channel in 0..channels {
                        let value = x[(image * channels + channel) * plane + from];
                        let first = channel / (channels / self.groups) * per_group;
                        for c in 0..per_group {
                            let weight = w[(channel * per_group + c) * volume + tap];
                            y[(image * shape[1] + first + c) * out_plane + to] += value * weight;
                        }
                    }
                }
            }
        }
        if cx.has(2) {
            add_bias(&mut y, &shape, &cx.f32(2)?);
        }
        cx.put_f32(0, &y)
    }
}
