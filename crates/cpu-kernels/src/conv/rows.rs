//! Packing of what windows see of plain images: few channels, `[product][pixel]`.
//!
//! The rows of the image that a chunk of pixels sees are first split by the window's stride into rows of their own, with zeros for the padding. What
//! neighbouring pixels see of one element of the window is then a run of such a row.

use super::image::BLOCK;
use super::tile::tile_pixels;
use super::{Unit, scratch_bytes};
use crate::simd::Simd;

/// The image's rows that a chunk sees, split.
#[derive(Clone, Copy)]
struct Split {
    rows: *mut f32,
    /// The first row of the image, from the top of the padding.
    top: usize,
    /// How many.
    count: usize,
    /// Elements of a part of a row.
    len: usize,
}

impl Unit<'_> {
    /// Packs all tiles of the unit.
    #[inline(always)]
    pub(super) unsafe fn pack_rows<S: Simd>(&self, s: S, products: usize) {
        // SAFETY: says the caller.
        unsafe {
            let split = self.split(products);
            let mut packed = self.scratch;
            let mut pixel = self.pixels.start;
            while pixel < self.pixels.end {
                let n = tile_pixels(S::LANES, self.pixels.end - pixel);
                match &split {
                    Some(split) => self.pack_runs(s, split, pixel, n, packed),
                    None => self.pack_single(pixel, n, packed),
                }
                packed = packed.wrapping_add(n * products);
                pixel += n;
            }
        }
    }

    /// Splits the rows, if the scratch has room for them behind the tiles.
    #[inline(always)]
    unsafe fn split(&self, products: usize) -> Option<Split> {
        let plane = &self.step.weight.geometry.plane;
        let [stride_y, stride] = plane.strides;
        let first = self.pixels.start / self.columns;
        let last = (self.pixels.end - 1) / self.columns;
        let top = first * stride_y;
        let count = last * stride_y + (plane.kernel[0] - 1) * plane.dilations[0] + 1 - top;
        // What the last column's window sees, and a vector more.
        let len = self.columns + (plane.kernel[1] - 1) * plane.dilations[1] / stride + 1 + BLOCK;
        let used = (self.pixels.len() * products).next_multiple_of(BLOCK) + BLOCK;
        let channels = self.x_extent.channels;
        let rows = [count, stride, len].into_iter().fold(channels, usize::saturating_mul);
        if rows.saturating_add(used) > scratch_bytes() / 4 {
            return None;
        }
        let rows = self.scratch.wrapping_add(used);
        let (height, width) = (self.x_extent.height, self.x_extent.width);
        for channel in 0..channels {
            for row in 0..count {
                let out = rows.wrapping_add((channel * count + row) * stride * len);
                let y = (top + row).wrapping_sub(plane.pads[0]);
                // SAFETY: the parts of the row have `stride × len` elements, the image's row `width`.
                unsafe {
                    std::ptr::write_bytes(out, 0, stride * len);
                    if y >= height {
                        continue;
                    }
                    let from = self.x.add((channel * height + y) * width);
                    // Element x of the image is element x + pad of the padded row.
                    if stride == 1 {
                        let n = width.min(len.saturating_sub(plane.pads[1]));
                        std::ptr::copy_nonoverlapping(from, out.wrapping_add(plane.pads[1]), n);
                        continue;
                    }
                    for part in 0..stride {
                        // The first place of this part that is not in the padding.
                        let skipped = plane.pads[1].saturating_sub(part).div_ceil(stride);
                        let x = skipped * stride + part - plane.pads[1];
                        let n = width.saturating_sub(x).div_ceil(stride).min(len.saturating_sub(skipped));
                        let out = out.wrapping_add(part * len + skipped);
                        for i in 0..n {
                            *out.add(i) = *from.add(x + i * stride);
                        }
                    }
                }
            }
        }
        Some(Split { rows, top, count, len })
    }

    /// One tile, from split rows.
    #[inline(always)]
    unsafe fn pack_runs<S: Simd>(&self, s: S, split: &Split, pixel: usize, n: usize, out: *mut f32) {
        let plane = &self.step.weight.geometry.plane;
        let [stride_y, stride] = plane.strides;
        let mut out = out;
        for channel in 0..self.x_extent.channels {
            for ky in 0..plane.kernel[0] {
                for kx in 0..plane.kernel[1] {
                    let reach = kx * plane.dilations[1];
                    let (part, shift) = (reach % stride, reach / stride);
                    let mut done = 0;
                    while done < n {
                        // Pixels of one row of the result.
                        let (row, column) = ((pixel + done) / self.columns, (pixel + done) % self.columns);
                        let run = (self.columns - column).min(n - done);
                        let y = row * stride_y + ky * plane.dilations[0] - split.top;
                        let at = ((channel * split.count + y) * stride + part) * split.len + column + shift;
                        let from = split.rows.wrapping_add(at);
                        let mut i = 0;
                        while i < run {
                            // SAFETY: a split row ends with a vector of zeros, and what is written past the run is written again by what follows;
                            // behind the last tile there is room for a vector.
                            unsafe { s.f_store(out.add(done + i), s.f_load(from.add(i))) };
                            i += S::LANES;
                        }
                        done += run;
                    }
                    out = out.wrapping_add(n);
                }
            }
        }
    }

    /// One tile, element by element.
    #[inline(always)]
    unsafe fn pack_single(&self, pixel: usize, n: usize, out: *mut f32) {
        let step = self.step.weight.geometry.plane.strides;
        let (height, width) = (self.x_extent.height, self.x_extent.width);
        let mut out = out;
        for channel in 0..self.x_extent.channels {
            let x = self.x.wrapping_add(channel * height * width);
            for [dy, dx] in &self.phase.offsets {
                for c in pixel..pixel + n {
                    let y = ((c / self.columns * step[0]).cast_signed() + dy).cast_unsigned();
                    let at = ((c % self.columns * step[1]).cast_signed() + dx).cast_unsigned();
                    // SAFETY: reads are below height and width, writes are the n pixels of a product.
                    unsafe {
                        *out = if y < height && at < width { *x.add(y * width + at) } else { 0.0 };
                    }
                    out = out.wrapping_add(1);
                }
            }
        }
    }
}
