//! Pooling over windows of images in blocks of channels.

use std::ops::Range;

use core_tensor::op::PoolKind;

use crate::conv::depthwise::inside;
use crate::conv::geometry::Plane;
use crate::conv::image::{BLOCK, Blocked, Extent};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Largest or mean of windows.
pub(crate) struct PoolStep {
    pub(crate) kind: PoolKind,
    pub(crate) plane: Plane,
    /// What is added after the extents: it counts for means that count padding.
    pub(crate) pads_end: [usize; 2],
    pub(crate) x: Blocked,
    pub(crate) y: Blocked,
}

impl PoolStep {
    pub(crate) fn supports(kind: PoolKind) -> bool {
        !matches!(kind, PoolKind::Lp { .. })
    }
}

impl Step for PoolStep {
    fn describe(&self) -> String {
        format!("Pool {:?} {:?} blocked {} -> {}", self.kind, self.plane.kernel, self.x.value, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x_extent, y_extent) = (self.x.extent(cx), self.y.extent(cx));
        let share = cx.worker.share(y_extent.batch * y_extent.blocks() * y_extent.height);
        if y_extent.height == 0 {
            return;
        }
        for row in share {
            let (plane, row) = (row / y_extent.height, row % y_extent.height);
            cx.level.run(Row {
                step: self,
                x: self.x.ptr(cx).wrapping_add(plane * x_extent.pixels() * BLOCK),
                x_extent,
                y: self.y.ptr(cx).wrapping_add((plane * y_extent.height + row) * y_extent.width * BLOCK),
                row,
                columns: y_extent.width,
            });
        }
    }
}

/// The greater of each lane; a NaN where either is one.
#[inline(always)]
fn greater<S: Simd>(s: S, a: S::F, b: S::F) -> S::F {
    // One of the two gives a, the other b where either is a NaN; elsewhere they are equal.
    let (first, second) = (s.f_max(a, b), s.f_max(b, a));
    s.f_from_bits(s.i_or(s.f_to_bits(first), s.f_to_bits(second)))
}

/// A row of results.
struct Row<'a> {
    step: &'a PoolStep,
    x: *const f32,
    x_extent: Extent,
    y: *mut f32,
    row: usize,
    columns: usize,
}

impl Row<'_> {
    /// Elements of the window at a place along an axis that lie inside, and how many count where padding does.
    #[inline(always)]
    fn seen(&self, axis: usize, place: usize, len: usize) -> (isize, Range<usize>, usize) {
        let plane = &self.step.plane;
        let at = (place * plane.strides[axis]).cast_signed() - plane.pads[axis].cast_signed();
        let padded = (len + self.step.pads_end[axis]).cast_signed() - at;
        let counted = padded.max(0).cast_unsigned().div_ceil(plane.dilations[axis].max(1)).min(plane.kernel[axis]);
        (at, inside(at, plane.dilations[axis], plane.kernel[axis], len), counted)
    }
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plane = &self.step.plane;
        let (top, rows, counted_rows) = self.seen(0, self.row, self.x_extent.height);
        for column in 0..self.columns {
            let (left, columns, counted_columns) = self.seen(1, column, self.x_extent.width);
            let scale = match self.step.kind {
                PoolKind::Average { count_include_pad: true } => (counted_rows * counted_columns) as f32,
                _ => (rows.len() * columns.len()) as f32,
            };
            for lane in (0..BLOCK).step_by(S::LANES) {
                let is_max = self.step.kind == PoolKind::Max;
                let mut acc = s.f_splat(if is_max { f32::NEG_INFINITY } else { 0.0 });
                for ky in rows.clone() {
                    let y = top + (ky * plane.dilations[0]).cast_signed();
                    for kx in columns.clone() {
                        let x = left + (kx * plane.dilations[1]).cast_signed();
                        let at = (y * self.x_extent.width.cast_signed() + x).cast_unsigned() * BLOCK + lane;
                        // SAFETY: the element lies inside of the image.
                        let value = unsafe { s.f_load(self.x.add(at)) };
                        acc = if is_max { greater(s, acc, value) } else { s.f_add(acc, value) };
                    }
                }
                if !is_max && scale > 0.0 {
                    acc = s.f_div(acc, s.f_splat(scale));
                }
                // SAFETY: the column is one of the row's.
                unsafe { s.f_store(self.y.add(column * BLOCK + lane), acc) };
            }
        }
    }
}
