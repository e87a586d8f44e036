//! Depthwise convolutions: every channel with a window of its own, sixteen channels at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Finish;
use super::image::{BLOCK, Blocked, Extent};
use super::packing::{ConvId, PackedConv};
use super::tile::{Activation, Epilogue};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// A convolution of form `Depthwise`.
pub(crate) struct DepthwiseStep {
    pub(crate) weight: ConvId,
    pub(crate) x: Blocked,
    pub(crate) y: Blocked,
    pub(crate) finish: Finish,
    pub(crate) counter: usize,
}

/// Pixels whose sums one unit of work computes, about.
const UNIT_PIXELS: usize = 1568;

impl Step for DepthwiseStep {
    fn describe(&self) -> String {
        let (x, y, weight) = (self.x.value, self.y.value, self.weight.weight);
        format!("Conv Depthwise {x} * {weight}{} -> {y}", self.finish.describe())
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.convs.get(&self.weight) else { return };
        let (x_extent, y_extent) = (self.x.extent(cx), self.y.extent(cx));
        let blocks = y_extent.blocks();
        let rows = (UNIT_PIXELS / y_extent.width.max(1)).clamp(1, y_extent.height.max(1));
        let chunks = y_extent.height.div_ceil(rows);
        let (bias, epilogue) = (self.finish.bias(cx), self.finish.epilogue(cx));
        while let Some(unit) = cx.claim(self.counter, y_extent.batch * blocks * chunks) {
            let (plane, chunk) = (unit / chunks, unit % chunks);
            let block = plane % blocks;
            let y_at = plane * y_extent.pixels() * BLOCK;
            let residual = epilogue.residual;
            cx.level.run(Planes {
                step: self,
                weights,
                x: self.x.ptr(cx).wrapping_add(plane * x_extent.pixels() * BLOCK),
                x_extent,
                y: self.y.ptr(cx).wrapping_add(y_at),
                y_extent,
                rows: chunk * rows..((chunk + 1) * rows).min(y_extent.height),
                block,
                bias,
                epilogue: Epilogue {
                    residual: if residual.is_null() { residual } else { residual.wrapping_add(y_at) },
                    ..epilogue
                },
            });
        }
    }
}

/// Some rows of one block of channels.
struct Planes<'a> {
    step: &'a DepthwiseStep,
    weights: &'a PackedConv,
    x: *const f32,
    x_extent: Extent,
    y: *mut f32,
    y_extent: Extent,
    rows: Range<usize>,
    block: usize,
    bias: *const f32,
    epilogue: Epilogue,
}

/// The places 0, 1 ... of a window of `taps` elements that lie inside of `len` elements when it stands at `at`.
#[inline(always)]
pub(crate) fn inside(at: isize, dilation: usize, taps: usize, len: usize) -> Range<usize> {
    let dilation = dilation.cast_signed().max(1);
    // The first tap at or after 0, and the first at or after `len`.
    let first = if at >= 0 { 0 } else { (-at + dilation - 1) / dilation };
    let end = if len.cast_signed() <= at { 0 } else { (len.cast_signed() - at + dilation - 1) / dilation };
    let end = end.cast_unsigned().min(taps);
    first.cast_unsigned().min(end)..end
}

/// Pixels of a padded copy, at most: it should stay in the cache's first level.
const COPY_PIXELS: usize = 400;

/// A padded copy of a block's plane.
#[repr(align(64))]
struct Copy([MaybeUninit<f32>; COPY_PIXELS * BLOCK]);

/// Where windows read.
#[derive(Clone, Copy)]
struct From {
    /// The element that the first pixel of the plane sees first, which may lie outside.
    x: *const f32,
    /// Elements of a row.
    width: usize,
}

impl Kernel for Planes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the step's values have these extents.
        unsafe {
            match self.step.weight.geometry.plane.kernel[1] {
                3 => self.rows::<S, 3>(s),
                5 => self.rows::<S, 5>(s),
                _ => self.rows::<S, 0>(s),
            }
        }
    }
}

impl Planes<'_> {
    /// All rows. `K`: the window's columns, 0 for any.
    #[inline(always)]
    unsafe fn rows<S: Simd, const K: usize>(&self, s: S) {
        let plane = &self.step.weight.geometry.plane;
        let (width, height) = (self.y_extent.width, self.y_extent.height);
        if width == 0 || height == 0 {
            return;
        }
        let seen = |axis: usize, places: usize| {
            (places - 1) * plane.strides[axis] + (plane.kernel[axis] - 1) * plane.dilations[axis] + 1
        };
        let (seen_rows, seen_columns) = (seen(0, height), seen(1, width));
        let mut copy = Copy([MaybeUninit::uninit(); COPY_PIXELS * BLOCK]);
        if seen_rows.saturating_mul(seen_columns) <= COPY_PIXELS && self.rows == (0..height) {
            // SAFETY: the copy has room for all that windows see, and they see nothing else.
            unsafe {
                self.pad(s, copy.0.as_mut_ptr().cast(), seen_rows, seen_columns);
                let from = From { x: copy.0.as_ptr().cast(), width: seen_columns * BLOCK };
                for row in 0..height {
                    self.row::<S, K>(s, from, row, 0..plane.kernel[0], 0..width);
                }
            }
            return;
        }
        let column = |ox: usize| (ox * plane.strides[1]).cast_signed() - plane.pads[1].cast_signed();
        let columns = |ox: usize| inside(column(ox), plane.dilations[1], plane.kernel[1], self.x_extent.width);
        let whole = |ox: &usize| columns(*ox) == (0..plane.kernel[1]);
        // Columns whose windows lie inside.
        let first = (0..width).find(whole).unwrap_or(width);
        let end = (first..width).rev().find(whole).map_or(first, |last| last + 1);
        let [top, left] = [plane.pads[0] * self.x_extent.width * BLOCK, plane.pads[1] * BLOCK];
        let from = From { x: self.x.wrapping_sub(top + left), width: self.x_extent.width * BLOCK };
        for row in self.rows.clone() {
            let y = (row * plane.strides[0]).cast_signed() - plane.pads[0].cast_signed();
            let rows = inside(y, plane.dilations[0], plane.kernel[0], self.x_extent.height);
            // SAFETY: the windows' rows and columns are cut to what lies inside of the image.
            unsafe {
                for ox in (0..first).chain(end..width) {
                    self.tile::<S, 1, 0>(s, from, row, ox, rows.clone(), columns(ox));
                }
                self.row::<S, K>(s, from, row, rows, first..end);
            }
        }
    }

    /// Copies the plane with zeros around it.
    #[inline(always)]
    unsafe fn pad<S: Simd>(&self, s: S, out: *mut f32, rows: usize, columns: usize) {
        let plane = &self.step.weight.geometry.plane;
        let mut out = out;
        for row in 0..rows {
            let y = row.wrapping_sub(plane.pads[0]);
            for column in 0..columns {
                let x = column.wrapping_sub(plane.pads[1]);
                let is_inside = y < self.x_extent.height && x < self.x_extent.width;
                let from = self.x.wrapping_add(y.wrapping_mul(self.x_extent.width).wrapping_add(x).wrapping_mul(BLOCK));
                for lane in (0..BLOCK).step_by(S::LANES) {
                    // SAFETY: what is read is inside of the image, and the copy has room.
                    unsafe {
                        let value = if is_inside { s.f_load(from.add(lane)) } else { s.f_splat(0.0) };
                        s.f_store(out.add(lane), value);
                    }
                }
                out = out.wrapping_add(BLOCK);
            }
        }
    }

    /// Pixels of a row, whose windows' columns are all inside.
    #[inline(always)]
    unsafe fn row<S: Simd, const K: usize>(
        &self,
        s: S,
        from: From,
        row: usize,
        rows: Range<usize>,
        pixels: Range<usize>,
    ) {
        let sizes: &[usize] = if S::LANES == 16 { &[14, 7, 4, 1] } else { &[7, 4, 1] };
        let columns = 0..self.step.weight.geometry.plane.kernel[1];
        let mut ox = pixels.start;
        while ox < pixels.end {
            let left = pixels.end - ox;
            let mut n = sizes.iter().copied().find(|n| *n <= left).unwrap_or(1);
            // Some pixels once more: that is quicker than one at a time.
            if n == 1
                && let Some(more) = sizes.iter().rev().copied().find(|n| *n >= left && *n <= pixels.len())
            {
                (n, ox) = (more, pixels.end - more);
            }
            // SAFETY: says the caller.
            unsafe {
                match n {
                    14 if S::LANES == 16 => self.tile::<S, 14, K>(s, from, row, ox, rows.clone(), columns.clone()),
                    7 => self.tile::<S, 7, K>(s, from, row, ox, rows.clone(), columns.clone()),
                    4 => self.tile::<S, 4, K>(s, from, row, ox, rows.clone(), columns.clone()),
                    _ => self.tile::<S, 1, K>(s, from, row, ox, rows.clone(), columns.clone()),
                }
            }
            ox += n;
        }
    }

    /// `NC` pixels of a row, whose windows' rows and columns are inside of the image.
    #[inline(always)]
    unsafe fn tile<S: Simd, const NC: usize, const K: usize>(
        &self,
        s: S,
        from: From,
        row: usize,
        ox: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        let plane = &self.step.weight.geometry.plane;
        let [step_y, step_x] = [plane.dilations[0] * from.width, plane.dilations[1] * BLOCK];
        let first = row * plane.strides[0] * from.width + ox * plane.strides[1] * BLOCK;
        let apart = plane.strides[1] * BLOCK;
        let to = (row * self.y_extent.width + ox) * BLOCK;
        let simple = self.epilogue.pre == Activation::None && self.epilogue.post.is_simple();
        let weights = self.weights.block(self.block);
        for lane in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: the caller's conditions; the bias has as many elements as channels.
            unsafe {
                let bias = if self.bias.is_null() {
                    s.f_splat(0.0)
                } else {
                    let channel = self.block * BLOCK + lane;
                    let n = self.weights.outputs.saturating_sub(channel).min(S::LANES);
                    s.f_load_first(self.bias.wrapping_add(channel), n)
                };
                let mut acc = [bias; NC];
                for ky in rows.clone() {
                    let mut w = weights.wrapping_add((ky * plane.kernel[1] + columns.start) * BLOCK + lane);
                    let mut from = from.x.wrapping_add(first + ky * step_y + columns.start * step_x + lane);
                    for _ in 0..if K > 0 { K } else { columns.len() } {
                        let weight = s.f_load(w);
                        for c in 0..NC {
                            acc[c] = s.f_fma(weight, s.f_load(from.wrapping_add(c * apart)), acc[c]);
                        }
                        w = w.wrapping_add(BLOCK);
                        from = from.wrapping_add(step_x);
                    }
                }
                let out = self.y.add(to + lane);
                let residual = self.epilogue.residual.wrapping_add(to + lane);
                if simple {
                    if !self.epilogue.residual.is_null() {
                        for c in 0..NC {
                            acc[c] = s.f_add(acc[c], s.f_load(residual.add(c * BLOCK)));
                        }
                    }
                    for c in 0..NC {
                        acc[c] = self.epilogue.post.simple(s, acc[c]);
                    }
                }
                for c in 0..NC {
                    s.f_store(out.add(c * BLOCK), acc[c]);
                }
                if !simple {
                    for c in 0..NC {
                        let mut value = self.epilogue.pre.apply(s, s.f_load(out.add(c * BLOCK)));
                        if !self.epilogue.residual.is_null() {
                            value = s.f_add(value, s.f_load(residual.add(c * BLOCK)));
                        }
                        s.f_store(out.add(c * BLOCK), self.epilogue.post.apply(s, value));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::inside;

    #[test]
    fn what_lies_inside_is_what_a_search_finds() {
        for at in -9isize..9 {
            for dilation in 1..4 {
                for taps in 0..5 {
                    for len in 0..6 {
                        let is_inside = |tap: &usize| {
                            let place = at + (tap * dilation).cast_signed();
                            place >= 0 && place < len as isize
                        };
                        let expected: Vec<usize> = (0..taps).filter(is_inside).collect();
                        assert_eq!(inside(at, dilation, taps, len).collect::<Vec<_>>(), expected);
                    }
                }
            }
        }
    }
}
