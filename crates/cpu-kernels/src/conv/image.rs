//! Images in blocks of channels.
//!
//! Between convolutions, pooling and what is element by element an image `[batch, channels, height, width]` lies as
//! `[batch, ⌈channels / 16⌉, height, width, 16]`: the sixteen channels of a pixel are one vector. Lanes past the last channel hold anything.

use core_tensor::ValueId;

use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Channels of a block.
pub(crate) const BLOCK: usize = 16;

/// Extents of an image; one of a single spatial extent has height 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Extent {
    /// From `[batch, channels, width]` or `[batch, channels, height, width]`.
    pub(crate) fn of(shape: &[usize]) -> Extent {
        match *shape {
            [batch, channels, height, width] => Extent { batch, channels, height, width },
            [batch, channels, width] => Extent { batch, channels, height: 1, width },
            _ => Extent { batch: 0, channels: 0, height: 0, width: 0 },
        }
    }

    /// Blocks of channels.
    pub(crate) fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    pub(crate) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Channels of a block that count.
    pub(crate) fn lanes(&self, block: usize) -> usize {
        self.channels.saturating_sub(block * BLOCK).min(BLOCK)
    }

    /// Elements of the blocked form.
    pub(crate) fn blocked_len(&self) -> usize {
        self.batch * self.blocks() * self.pixels() * BLOCK
    }
}

/// An image's blocked form: the value, whose extents count, and the scratch buffer it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) value: ValueId,
    pub(crate) scratch: usize,
}

impl Blocked {
    pub(crate) fn extent(&self, cx: &RunContext<'_>) -> Extent {
        Extent::of(cx.view(self.value).shape)
    }

    pub(crate) fn ptr(&self, cx: &RunContext<'_>) -> *mut f32 {
        cx.scratch(self.scratch).cast()
    }
}

/// Brings an image from one form into the other.
pub(crate) struct Reorder {
    pub(crate) image: Blocked,
    /// Whether the blocked form is made; else it is read.
    pub(crate) to_blocked: bool,
}

/// Pixels that one unit of work moves.
const PIXELS: usize = 1024;

impl Step for Reorder {
    fn describe(&self) -> String {
        let (value, to) = (self.image.value, if self.to_blocked { "blocked" } else { "plain" });
        format!("Reorder {value} -> {to}")
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.image.extent(cx);
        let (pixels, blocks) = (extent.pixels(), extent.blocks());
        let chunks = pixels.div_ceil(PIXELS);
        let (plain, blocked) = (cx.view(self.image.value).f32(), self.image.ptr(cx));
        for unit in cx.worker.share(extent.batch * blocks * chunks) {
            let (plane, chunk) = (unit / chunks, unit % chunks);
            let (batch, block) = (plane / blocks, plane % blocks);
            let first = chunk * PIXELS;
            let plain = plain.wrapping_add((batch * extent.channels + block * BLOCK) * pixels + first);
            let blocked = blocked.wrapping_add((plane * pixels + first) * BLOCK);
            let (lanes, n) = (extent.lanes(block), PIXELS.min(pixels - first));
            cx.level.run(Transposition { plain, apart: pixels, blocked, lanes, n, to_blocked: self.to_blocked });
        }
    }
}

/// `n` pixels of one block of channels, whose planes lie `apart` elements from each other in the plain form.
struct Transposition {
    plain: *mut f32,
    apart: usize,
    blocked: *mut f32,
    lanes: usize,
    n: usize,
    to_blocked: bool,
}

impl Kernel for Transposition {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut at = 0;
        while at < self.n {
            // A square of pixels and channels at a time: both sides stay in the cache's first level.
            let m = (self.n - at).min(BLOCK);
            let mut tile = [0.0f32; BLOCK * BLOCK];
            // SAFETY: pixels at..at+m and channels below `lanes` are inside of both forms; the blocked form has all 16 lanes.
            unsafe {
                if self.to_blocked {
                    for c in 0..self.lanes {
                        let row = self.plain.add(c * self.apart + at);
                        for p in 0..m {
                            tile[p * BLOCK + c] = *row.add(p);
                        }
                    }
                    let out = self.blocked.add(at * BLOCK);
                    for i in (0..m * BLOCK).step_by(S::LANES) {
                        s.f_store(out.add(i), s.f_load(tile.as_ptr().add(i)));
                    }
                } else {
                    let source = self.blocked.add(at * BLOCK);
                    for c in 0..self.lanes {
                        for p in 0..m {
                            tile[c * BLOCK + p] = *source.add(p * BLOCK + c);
                        }
                    }
                    for c in 0..self.lanes {
                        let row = self.plain.add(c * self.apart + at);
                        std::ptr::copy_nonoverlapping(tile.as_ptr().add(c * BLOCK), row, m);
                    }
                }
            }
            at += m;
        }
    }
}
