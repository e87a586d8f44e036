//! Images of bytes, pixel by pixel.
//!
//! Between convolutions of bytes an image `[batch, channels, height, width]` lies as `[batch, height, width, channels]`, channels filled up to a multiple of
//! sixteen with anything, all bytes unsigned: signed ones with 128 added. Some bytes more may be read behind the last pixel.

use core_tensor::ValueId;

use super::quantize::{QuantizeRows, load_bytes, zero_at};
use crate::conv::depthwise::inside;
use crate::conv::geometry::Plane;
use crate::conv::image::{BLOCK, Blocked, Extent};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Bytes that may be read behind the last pixel.
pub(crate) const SLACK: usize = BLOCK;

/// Bytes from one pixel to the next.
pub(crate) const fn pixel_bytes(channels: usize) -> usize {
    channels.next_multiple_of(BLOCK)
}

/// Bytes of an image.
pub(crate) fn image_bytes(extent: &Extent) -> usize {
    extent.batch * extent.pixels() * pixel_bytes(extent.channels) + SLACK
}

/// An image whose other form is of bytes, pixel by pixel: the value, whose extents count, and the scratch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) value: ValueId,
    pub(crate) scratch: usize,
    pub(crate) signed: bool,
}

impl Pixels {
    pub(crate) fn extent(&self, cx: &RunContext<'_>) -> Extent {
        Extent::of(cx.view(self.value).shape)
    }

    pub(crate) fn ptr(&self, cx: &RunContext<'_>) -> *mut u8 {
        cx.scratch(self.scratch)
    }

    /// The zero point of the unsigned bytes.
    pub(crate) fn zero(&self, cx: &RunContext<'_>, zero: Option<ValueId>) -> i32 {
        zero_at(zero.map(|zero| cx.view(zero)), 0, self.signed) + if self.signed { 128 } else { 0 }
    }
}

/// Brings an image of bytes from one form into the other.
pub(crate) struct ReorderPixels {
    pub(crate) image: Pixels,
    /// Whether pixels are made; else they are read.
    pub(crate) to_pixels: bool,
}

/// Pixels that are moved together: lines of them stay in the cache's first level.
const TOGETHER: usize = 64;

impl Step for ReorderPixels {
    fn describe(&self) -> String {
        format!("Reorder {} -> {}", self.image.value, if self.to_pixels { "pixels" } else { "plain" })
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.image.extent(cx);
        let (pixels, width) = (extent.pixels(), pixel_bytes(extent.channels));
        let (plain, packed) = (cx.view(self.image.value).ptr, self.image.ptr(cx));
        let flip = if self.image.signed { 0x80 } else { 0 };
        let chunks = pixels.div_ceil(TOGETHER);
        for unit in cx.worker.share(extent.batch * chunks) {
            let (batch, first) = (unit / chunks, unit % chunks * TOGETHER);
            let n = TOGETHER.min(pixels - first);
            let plain = plain.wrapping_add(batch * extent.channels * pixels + first);
            let packed = packed.wrapping_add((batch * pixels + first) * width);
            for channel in 0..extent.channels {
                for pixel in 0..n {
                    // SAFETY: a pixel of a channel of both forms; the target's pixels are this thread's.
                    unsafe {
                        let (a, b) = (plain.add(channel * pixels + pixel), packed.add(pixel * width + channel));
                        if self.to_pixels {
                            *b = *a ^ flip;
                        } else {
                            *a = *b ^ flip;
                        }
                    }
                }
            }
        }
    }
}

/// Between an f32 image in blocks of channels and bytes, with one scale.
pub(crate) struct ConvertImage {
    pub(crate) floats: Blocked,
    pub(crate) pixels: Pixels,
    pub(crate) scale: ValueId,
    pub(crate) zero: Option<ValueId>,
    pub(crate) to_bytes: bool,
}

impl Step for ConvertImage {
    fn describe(&self) -> String {
        match self.to_bytes {
            true => format!("Quantize blocked {} -> {}", self.floats.value, self.pixels.value),
            false => format!("Dequantize blocked {} -> {}", self.pixels.value, self.floats.value),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.pixels.extent(cx);
        let (pixels, width) = (extent.pixels(), pixel_bytes(extent.channels));
        let (scale, zero) = (cx.floats(self.scale)[0], self.pixels.zero(cx, self.zero));
        let mut share = cx.worker.share(extent.batch * pixels);
        while !share.is_empty() {
            // Pixels of one image, few enough to stay in the cache while its blocks pass.
            let (batch, first) = (share.start / pixels, share.start % pixels);
            let n = TOGETHER.min(pixels - first).min(share.len());
            for block in 0..extent.blocks() {
                let at = ((batch * extent.blocks() + block) * pixels + first) * BLOCK;
                let floats = self.floats.ptr(cx).wrapping_add(at);
                let bytes = self.pixels.ptr(cx).wrapping_add(share.start * width + block * BLOCK);
                if self.to_bytes {
                    let (x, y, strides) = (floats.cast_const(), bytes, [BLOCK, width]);
                    cx.level.run(QuantizeRows { x, y, rows: n, strides, n: BLOCK, scale, zero, signed: false });
                } else {
                    cx.level.run(Expand { bytes, width, floats, n, scale, zero });
                }
            }
            share.start += n;
        }
    }
}

/// Bytes of a block of some pixels as floats.
struct Expand {
    bytes: *const u8,
    width: usize,
    floats: *mut f32,
    n: usize,
    scale: f32,
    zero: i32,
}

impl Kernel for Expand {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, zero) = (s.f_splat(self.scale), s.i_splat(self.zero));
        for pixel in 0..self.n {
            for lane in (0..BLOCK).step_by(S::LANES) {
                // SAFETY: blocks of pixels are whole in both forms.
                unsafe {
                    let x = load_bytes(s, self.bytes.add(pixel * self.width + lane), S::LANES, false);
                    let y = s.f_mul(s.f_from_i(s.i_sub(x, zero)), scale);
                    s.f_store(self.floats.add(pixel * BLOCK + lane), y);
                }
            }
        }
    }
}

/// Largest bytes of windows.
pub(crate) struct MaxPoolPixels {
    pub(crate) plane: Plane,
    pub(crate) x: Pixels,
    pub(crate) y: Pixels,
}

impl Step for MaxPoolPixels {
    fn describe(&self) -> String {
        format!("Pool Max {:?} pixels {} -> {}", self.plane.kernel, self.x.value, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (from, to) = (self.x.extent(cx), self.y.extent(cx));
        let width = pixel_bytes(to.channels);
        let plane = &self.plane;
        let place = |axis: usize, at: usize, len: usize| {
            let start = (at * plane.strides[axis]).cast_signed() - plane.pads[axis].cast_signed();
            (start, inside(start, plane.dilations[axis], plane.kernel[axis], len))
        };
        for line in cx.worker.share(to.batch * to.height) {
            let (batch, row) = (line / to.height, line % to.height);
            let (top, rows) = place(0, row, from.height);
            let image = self.x.ptr(cx).wrapping_add(batch * from.pixels() * width);
            for column in 0..to.width {
                let (left, columns) = place(1, column, from.width);
                let y = self.y.ptr(cx).wrapping_add((line * to.width + column) * width);
                // SAFETY: a pixel of the result, which is this thread's.
                let y = unsafe { std::slice::from_raw_parts_mut(y, width) };
                y.fill(0);
                for ky in rows.clone() {
                    for kx in columns.clone() {
                        let at = (top + (ky * plane.dilations[0]).cast_signed()) * from.width.cast_signed()
                            + left
                            + (kx * plane.dilations[1]).cast_signed();
                        let x = image.cast_const().wrapping_add(at.cast_unsigned() * width);
                        // SAFETY: a pixel inside of the image.
                        cx.level.run(Greatest { y, x: unsafe { std::slice::from_raw_parts(x, width) } });
                    }
                }
            }
        }
    }
}

/// The greater of each two bytes.
struct Greatest<'a> {
    y: &'a mut [u8],
    x: &'a [u8],
}

impl Kernel for Greatest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.y.iter_mut().zip(self.x).for_each(|(y, x)| *y = (*y).max(*x));
    }
}
