//! Convolutions.

use core_tensor::op::{Concat, Conv, ConvTranspose, Op, Pad, PadMode, Slice};
use core_tensor::{Dim, Node, Shape, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

impl Backward {
    /// By the image: the transposed convolution. By the weight: for each place of the kernel a product of the cotangent with the elements that the
    /// place has met. By the bias: the sum.
    pub(crate) fn conv(&mut self, op: &Conv, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
        let (x_shape, w_shape, y_shape) = (self.build.shape(x), self.build.shape(w), self.build.shape(dy));
        let extents = || unsupported(node, ": its extents must be known");
        let numbers = |shape: &[Dim]| shape.iter().map(Dim::as_num).collect::<Option<Vec<usize>>>().ok_or_else(extents);
        let (image, kernel, places) = (numbers(&x_shape[2..])?, numbers(&w_shape)?, numbers(&y_shape[2..])?);
        let window = &op.window;
        if self.wants(node, 0) {
            // What is left over behind the last place was not met, and has no gradient.
            let whole =
                |i: usize| window.strides[i] * (places[i].max(1) - 1) + window.dilations[i] * (kernel[i + 2] - 1) + 1;
            let rest = |i: usize| image[i] + window.pads_begin[i] + window.pads_end[i] - whole(i);
            let output_padding: Vec<usize> = (0..image.len()).map(rest).collect();
            let back = ConvTranspose { window: window.clone(), groups: op.groups, output_padding };
            let w = self.build.floats(w)?;
            let dx = self.build.op(Op::ConvTranspose(back), &[dy, w])?;
            self.give(node, 0, dx)?;
        }
        if self.wants(node, 1) {
            let dw = self.conv_weight(op, x, dy, &kernel, &places)?;
            self.give(node, 1, dw)?;
        }
        if self.wants(node, 2) {
            // [batch, out, spatial...]: batch and spatial extents are summed up.
            let mut ones = vec![Dim::Num(1); y_shape.len()];
            ones[1] = y_shape[1].clone();
            let sum = self.build.sum_to(dy, &ones, |reason| unsupported(node, &format!(": {reason}")))?;
            let db = self.build.reshape(sum, &y_shape[1..2])?;
            self.give(node, 2, db)?;
        }
        Ok(())
    }

    /// `[out, channels / groups, kernel...]`
    fn conv_weight(
        &mut self,
        op: &Conv,
        x: ValueId,
        dy: ValueId,
        kernel: &[usize],
        places: &[usize],
    ) -> Result<ValueId, GradientError> {
        let (window, groups) = (&op.window, op.groups);
        let b = &mut self.build;
        let batch = b.shape(x)[0].clone();
        let (out, per_group) = (kernel[0], kernel[1]);
        let count: usize = places.iter().product();
        let mut pads = vec![(Dim::Num(0), Dim::Num(0)); 2];
        pads.extend(window.pads_begin.iter().zip(&window.pads_end).map(|(a, b)| (Dim::Num(*a), Dim::Num(*b))));
        let padded = match pads.iter().all(|pad| *pad == (Dim::Num(0), Dim::Num(0))) {
            true => x,
            false => b.op(Op::Pad(Pad { pads, mode: PadMode::Constant }), &[x])?,
        };
        let dy = b.reshape(dy, &[batch.clone(), groups.into(), (out / groups).into(), count.into()])?;
        let taps: usize = kernel[2..].iter().product();
        let mut parts = Vec::with_capacity(taps);
        for tap in 0..taps {
            // The elements that this place of the kernel has met, in the order of the result's places.
            let (mut met, mut rest) = (padded, tap);
            for i in (0..places.len()).rev() {
                let start = rest % kernel[i + 2] * window.dilations[i];
                rest /= kernel[i + 2];
                let step = window.strides[i] as isize;
                let slice = Slice { axis: i as isize + 2, start: start.into(), len: places[i].into(), step };
                met = b.op(Op::Slice(slice), &[met])?;
            }
            let met = b.reshape(met, &[batch.clone(), groups.into(), per_group.into(), count.into()])?;
            let product = b.matmul(dy, met, true)?;
            let one: Shape = vec![Dim::Num(1), groups.into(), (out / groups).into(), per_group.into()];
            let sum = b.sum_to(product, &one, |_| GradientError::Unknown(product))?;
            parts.push(b.reshape(sum, &[1.into(), out.into(), per_group.into()])?);
        }
        let all = match parts[..] {
            [one] => one,
            _ => b.op(Op::Concat(Concat { axis: 0 }), &parts)?,
        };
        let all = b.transpose(all, vec![1, 2, 0])?;
        let shape: Shape = kernel.iter().map(|n| Dim::Num(*n)).collect();
        b.reshape(all, &shape)
    }
}
