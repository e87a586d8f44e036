//! Deformable convolution.

use super::{Window, add_bias, convolved, divisible};
use crate::op::{Evaluation, Inference, OpError, Operator, expect_shape, filled, show};
use crate::{DType, Dim, ValueType};

/// Deformable convolution, 2-D (ONNX DeformConv).
///
/// Inputs: x f32; w f32; offset f32 `[batch, 2·offset_groups·kh·kw, oh, ow]`; optionally bias; optionally mask `[batch, offset_groups·kh·kw, oh, ow]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeformConv {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// Groups of offsets.
    pub offset_groups: usize,
}

impl Operator for DeformConv {
    fn name(&self) -> &'static str {
        "DeformConv"
    }

    fn attributes(&self) -> String {
        format!(" {{{}, groups={}, offset_groups={}}}", self.window.text(), self.groups, self.offset_groups)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=5, "3 to 5")?;
        let (x, w) = (cx.f32(0)?, cx.f32(1)?);
        if x.len() != 4 {
            return Err(OpError::Shape(format!("x must be [batch, channels, h, w], it is {}", show(x))));
        }
        let shape = convolved(&self.window, self.groups, x, w)?;
        divisible(&x[1], self.offset_groups, "offset_groups")?;
        let taps = w[2].clone().mul(w[3].clone()).mul(Dim::Num(self.offset_groups));
        let at_each = |n: Dim| [shape[0].clone(), n, shape[2].clone(), shape[3].clone()];
        expect_shape(cx.f32(2)?, &at_each(taps.clone().mul(Dim::Num(2))), "offset")?;
        if cx.has(3) {
            expect_shape(cx.f32(3)?, &shape[1..2], "the bias")?;
        }
        if cx.has(4) {
            expect_shape(cx.f32(4)?, &at_each(taps), "the mask")?;
        }
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, w, offset) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?);
        let mask = if cx.has(4) { Some(cx.f32(4)?) } else { None };
        let (x_shape, w_shape) = (cx.tensor(0)?.shape(), cx.tensor(1)?.shape());
        let (channels, height, width) = (x_shape[1], x_shape[2], x_shape[3]);
        let (per_group, kh, kw) = (w_shape[1], w_shape[2], w_shape[3]);
        let (volume, places) = (kh * kw, shape[2] * shape[3]);
        let window = &self.window;
        let mut y = filled(&shape, 0.0f32)?;
        for (i, sum) in y.iter_mut().enumerate() {
            let (place, out, image) = (i % places, i / places % shape[1], i / places / shape[1]);
            let first = out / (shape[1] / self.groups) * per_group;
            for c in 0..per_group {
                let channel = first + c;
                let plane = &x[(image * channels + channel) * height * width..][..height * width];
                let group = image * self.offset_groups + channel / (channels / self.offset_groups);
                for tap in 0..volume {
                    let at = |d: usize, out: usize, k: usize| {
                        let regular =
                            (out * window.strides[d] + k * window.dilations[d]) as f32 - window.pads_begin[d] as f32;
                        regular + offset[((group * volume + tap) * 2 + d) * places + place]
                    };
                    let row = at(0, place / shape[3], tap / kw);
                    let col = at(1, place % shape[3], tap % kw);
                    let scale = mask.as_ref().map_or(1.0, |mask| mask[(group * volume + tap) * places + place]);
                    let sample = bilinear(plane, height, width, row, col);
                    *sum += sample * scale * w[(out * per_group + c) * volume + tap];
                }
            }
        }
        if cx.has(3) {
            add_bias(&mut y, &shape, &cx.f32(3)?);
        }
        cx.put_f32(0, &y)
    }
}

/// A sample between four elements of a plane; what lies outside is 0.
fn bilinear(plane: &[f32], height: usize, width: usize, row: f32, col: f32) -> f32 {
    let (top, left) = (row.floor(), col.floor());
    let mut sum = 0.0;
    for (y, wy) in [(top, 1.0 - (row - top)), (top + 1.0, row - top)] {
        for (x, wx) in [(left, 1.0 - (col - left)), (left + 1.0, col - left)] {
            if y >= 0.0 && x >= 0.0 && y < height as f32 && x < width as f32 {
                sum += plane[y as usize * width + x as usize] * wy * wx;
            }
        }
    }
    sum
}
