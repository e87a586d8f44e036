//! Group normalization of images in blocks of channels.

use core_tensor::ValueId;

use super::image::{BLOCK, Blocked, Extent};
use super::tile::Activation;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// `(x - mean) / sqrt(variance + epsilon) * w + b` over groups of channels, then another function.
pub(crate) struct GroupNorm {
    pub(crate) groups: usize,
    pub(crate) epsilon: f32,
    pub(crate) x: Blocked,
    pub(crate) w: Option<ValueId>,
    pub(crate) b: Option<ValueId>,
    pub(crate) post: Activation,
    pub(crate) y: Blocked,
    /// Mean, and sum of squared deviations from it, of each channel: `[batch][block][2][16]`.
    pub(crate) statistics: usize,
}

impl GroupNorm {
    /// Bytes of the statistics.
    pub(crate) fn statistics_bytes(extent: Extent) -> usize {
        extent.batch * extent.blocks() * 2 * BLOCK * 4
    }
}

impl Step for GroupNorm {
    fn describe(&self) -> String {
        format!("GroupNormalization {} blocked {}{} -> {}", self.groups, self.x.value, self.post, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.x.extent(cx);
        let (blocks, plane) = (extent.blocks(), extent.pixels() * BLOCK);
        let statistics: *mut f32 = cx.scratch(self.statistics).cast();
        let share = cx.worker.share(extent.batch * blocks);
        for unit in share.clone() {
            let x = self.x.ptr(cx).wrapping_add(unit * plane);
            cx.level.run(Statistics { x, pixels: extent.pixels(), out: statistics.wrapping_add(unit * 2 * BLOCK) });
        }
        cx.worker.barrier();
        let per_group = extent.channels / self.groups;
        for unit in share {
            let (batch, block) = (unit / blocks, unit % blocks);
            let (mut scale, mut shift) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
            for lane in 0..extent.lanes(block) {
                let channel = block * BLOCK + lane;
                let first = channel / per_group * per_group;
                let (mean, variance) =
                    moments(statistics.wrapping_add(batch * blocks * 2 * BLOCK), first, per_group, extent.pixels());
                let of = |id: Option<ValueId>, default: f32| id.map_or(default, |id| cx.floats(id)[channel]);
                let factor = f64::from(of(self.w, 1.0)) / (variance + f64::from(self.epsilon)).sqrt();
                scale[lane] = factor as f32;
                shift[lane] = (f64::from(of(self.b, 0.0)) - mean * factor) as f32;
            }
            cx.level.run(Apply {
                x: self.x.ptr(cx).wrapping_add(unit * plane),
                y: self.y.ptr(cx).wrapping_add(unit * plane),
                pixels: extent.pixels(),
                scale: &scale,
                shift: &shift,
                post: self.post,
            });
        }
    }
}

/// Mean and variance of `count` channels from `first` on.
fn moments(statistics: *const f32, first: usize, count: usize, pixels: usize) -> (f64, f64) {
    let at = |channel: usize, which: usize| {
        // SAFETY: the statistics have 2 × 16 elements for each block of channels.
        f64::from(unsafe { *statistics.add((channel / BLOCK * 2 + which) * BLOCK + channel % BLOCK) })
    };
    let channels = first..first + count;
    let mean = channels.clone().map(|channel| at(channel, 0)).sum::<f64>() / count as f64;
    let deviations: f64 =
        channels.map(|channel| at(channel, 1) + (at(channel, 0) - mean).powi(2) * pixels as f64).sum();
    (mean, deviations / (count * pixels) as f64)
}

/// A plane's mean, and its sum of squared deviations, in each lane.
struct Statistics {
    x: *const f32,
    pixels: usize,
    out: *mut f32,
}

/// Pixels that are summed before the sum is added to the others: long sums lose precision.
const RUN: usize = 512;

impl Kernel for Statistics {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for lane in (0..BLOCK).step_by(S::LANES) {
            let sum = |mean: Option<S::F>| {
                let mut total = s.f_splat(0.0);
                let mut start = 0;
                while start < self.pixels {
                    let end = (start + RUN).min(self.pixels);
                    let mut acc = [s.f_splat(0.0); 2];
                    for pixel in start..end {
                        // SAFETY: the plane has these pixels.
                        let value = unsafe { s.f_load(self.x.add(pixel * BLOCK + lane)) };
                        let i = pixel % 2;
                        acc[i] = match mean {
                            Some(mean) => {
                                let deviation = s.f_sub(value, mean);
                                s.f_fma(deviation, deviation, acc[i])
                            }
                            None => s.f_add(acc[i], value),
                        };
                    }
                    total = s.f_add(total, s.f_add(acc[0], acc[1]));
                    start = end;
                }
                total
            };
            let mean = s.f_div(sum(None), s.f_splat(self.pixels as f32));
            let deviations = sum(Some(mean));
            // SAFETY: there is room for two vectors of 16.
            unsafe {
                s.f_store(self.out.add(lane), mean);
                s.f_store(self.out.add(BLOCK + lane), deviations);
            }
        }
    }
}

/// `post(x · scale + shift)` for a plane.
struct Apply<'a> {
    x: *const f32,
    y: *mut f32,
    pixels: usize,
    scale: &'a [f32; BLOCK],
    shift: &'a [f32; BLOCK],
    post: Activation,
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for lane in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: both planes have these pixels, scale and shift 16 elements.
            unsafe {
                let (scale, shift) = (s.f_load(self.scale.as_ptr().add(lane)), s.f_load(self.shift.as_ptr().add(lane)));
                for pixel in 0..self.pixels {
                    let at = pixel * BLOCK + lane;
                    let value = s.f_fma(s.f_load(self.x.add(at)), scale, shift);
                    s.f_store(self.y.add(at), self.post.apply(s, value));
                }
            }
        }
    }
}
