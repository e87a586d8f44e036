//! What is done pixel by pixel to images in blocks: functions of one and two operands, joining and cutting channels.

use core_tensor::ValueId;
use core_tensor::op::{Binary, ReduceKind, Unary};

use super::image::{BLOCK, Blocked, Extent};
use crate::elementwise::binary;
use crate::math;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// `y = op(x)`.
pub(crate) struct MapImage {
    pub(crate) op: Unary,
    pub(crate) x: Blocked,
    pub(crate) y: Blocked,
}

impl Step for MapImage {
    fn describe(&self) -> String {
        format!("{:?} blocked {} -> {}", self.op, self.x.value, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let share = cx.worker.share(self.y.extent(cx).blocked_len() / BLOCK);
        let at = share.start * BLOCK;
        let (x, y) = (self.x.ptr(cx).wrapping_add(at), self.y.ptr(cx).wrapping_add(at));
        cx.level.run(Map { op: self.op, x, y, n: share.len() * BLOCK });
    }
}

struct Map {
    op: Unary,
    x: *const f32,
    y: *mut f32,
    /// A multiple of 16.
    n: usize,
}

impl Kernel for Map {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.n).step_by(S::LANES) {
            // SAFETY: x and y have n elements.
            unsafe { s.f_store(self.y.add(i), math::unary(s, self.op, s.f_load(self.x.add(i)))) };
        }
    }
}

/// The second operand of [`CombineImages`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    /// An image of the same extents.
    Image(Blocked),
    /// A plain value of one element for each channel, of each image or of all of them.
    Channels { value: ValueId, per_image: bool },
    /// A plain value of one element.
    Scalar(ValueId),
}

/// `y = op(x, operand)`, or `op(operand, x)` when `swapped`, then another function.
pub(crate) struct CombineImages {
    pub(crate) op: Binary,
    pub(crate) x: Blocked,
    pub(crate) operand: Operand,
    pub(crate) swapped: bool,
    pub(crate) post: super::Activation,
    pub(crate) y: Blocked,
}

impl Step for CombineImages {
    fn describe(&self) -> String {
        let operand = match self.operand {
            Operand::Image(image) => image.value,
            Operand::Channels { value, .. } | Operand::Scalar(value) => value,
        };
        format!("{:?} blocked {} {operand}{} -> {}", self.op, self.x.value, self.post, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.y.extent(cx);
        let pixels = extent.pixels();
        let share = cx.worker.share(extent.batch * extent.blocks() * pixels);
        let (x, y) = (self.x.ptr(cx), self.y.ptr(cx));
        let mut at = share.start;
        while at < share.end {
            let plane = at / pixels;
            let end = ((plane + 1) * pixels).min(share.end);
            let (batch, block) = (plane / extent.blocks(), plane % extent.blocks());
            let mut channels = [0.0f32; BLOCK];
            let operand = match self.operand {
                Operand::Image(image) => image.ptr(cx).wrapping_add(at * BLOCK).cast_const(),
                Operand::Channels { value, per_image } => {
                    let first = if per_image { batch * extent.channels } else { 0 } + block * BLOCK;
                    let lanes = extent.lanes(block);
                    channels[..lanes].copy_from_slice(&cx.floats(value)[first..first + lanes]);
                    channels.as_ptr()
                }
                Operand::Scalar(value) => {
                    channels = [cx.floats(value).first().copied().unwrap_or(0.0); BLOCK];
                    channels.as_ptr()
                }
            };
            cx.level.run(Combine {
                op: self.op,
                x: x.wrapping_add(at * BLOCK),
                operand,
                step: if matches!(self.operand, Operand::Image(_)) { BLOCK } else { 0 },
                swapped: self.swapped,
                post: self.post,
                y: y.wrapping_add(at * BLOCK),
                pixels: end - at,
            });
            at = end;
        }
    }
}

struct Combine {
    op: Binary,
    x: *const f32,
    operand: *const f32,
    /// Elements of the operand from one pixel to the next.
    step: usize,
    swapped: bool,
    post: super::Activation,
    y: *mut f32,
    pixels: usize,
}

impl Kernel for Combine {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for pixel in 0..self.pixels {
            for lane in (0..BLOCK).step_by(S::LANES) {
                // SAFETY: x and y have `pixels` vectors of 16, the operand as many or one.
                unsafe {
                    let x = s.f_load(self.x.add(pixel * BLOCK + lane));
                    let operand = s.f_load(self.operand.add(pixel * self.step + lane));
                    let (a, b) = if self.swapped { (operand, x) } else { (x, operand) };
                    s.f_store(self.y.add(pixel * BLOCK + lane), self.post.apply(s, binary(s, self.op, a, b)));
                }
            }
        }
    }
}

/// Copies channels: `xs`, each from its channel `start` on, come to lie one after the other.
pub(crate) struct JoinChannels {
    pub(crate) xs: Vec<Blocked>,
    /// The first channel of (the only) x; its multiple of 16 when not 0.
    pub(crate) start: usize,
    pub(crate) y: Blocked,
}

impl Step for JoinChannels {
    fn describe(&self) -> String {
        let xs: Vec<String> = self.xs.iter().map(|x| x.value.to_string()).collect();
        format!("Channels blocked {} from {} -> {}", xs.join(" "), self.start, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.y.extent(cx);
        let pixels = extent.pixels();
        let y = self.y.ptr(cx);
        for plane in cx.worker.share(extent.batch * extent.blocks()) {
            let (batch, block) = (plane / extent.blocks(), plane % extent.blocks());
            let to = y.wrapping_add(plane * pixels * BLOCK);
            let mut lane = 0;
            while lane < extent.lanes(block) {
                let channel = block * BLOCK + lane + self.start;
                let Some((x, x_extent, from)) = source(cx, &self.xs, channel) else { return };
                let (x_block, x_lane) = (from / BLOCK, from % BLOCK);
                let n = (BLOCK - x_lane).min(extent.lanes(block) - lane).min(x_extent.channels - from);
                let from = x.ptr(cx).wrapping_add((batch * x_extent.blocks() + x_block) * pixels * BLOCK);
                // SAFETY: both planes have these pixels, and the lanes lie inside of a vector.
                unsafe {
                    if n == BLOCK {
                        std::ptr::copy_nonoverlapping(from, to, pixels * BLOCK);
                    } else {
                        for pixel in 0..pixels {
                            let (from, to) = (from.add(pixel * BLOCK + x_lane), to.add(pixel * BLOCK + lane));
                            for i in 0..n {
                                *to.add(i) = *from.add(i);
                            }
                        }
                    }
                }
                lane += n;
            }
        }
    }
}

/// The image that holds a channel of all of them side by side, and the channel's number there.
fn source<'a>(cx: &RunContext<'_>, xs: &'a [Blocked], channel: usize) -> Option<(&'a Blocked, Extent, usize)> {
    let mut left = channel;
    for x in xs {
        let extent = x.extent(cx);
        if left < extent.channels {
            return Some((x, extent, left));
        }
        left -= extent.channels;
    }
    None
}

/// Reduces all pixels of each channel to one: `y` is plain, `[batch, channels, 1]`.
pub(crate) struct ReducePixels {
    pub(crate) kind: ReduceKind,
    pub(crate) x: Blocked,
    pub(crate) y: ValueId,
}

impl ReducePixels {
    pub(crate) fn supports(kind: ReduceKind) -> bool {
        matches!(kind, ReduceKind::Mean | ReduceKind::Sum | ReduceKind::Max | ReduceKind::Min)
    }
}

impl Step for ReducePixels {
    fn describe(&self) -> String {
        format!("Reduce{:?} pixels blocked {} -> {}", self.kind, self.x.value, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let extent = self.x.extent(cx);
        let y = cx.view(self.y).f32();
        for plane in cx.worker.share(extent.batch * extent.blocks()) {
            let (batch, block) = (plane / extent.blocks(), plane % extent.blocks());
            let x = self.x.ptr(cx).wrapping_add(plane * extent.pixels() * BLOCK);
            let mut out = [0.0; BLOCK];
            cx.level.run(ReducePlane { kind: self.kind, x, pixels: extent.pixels(), out: &mut out });
            let to = y.wrapping_add(batch * extent.channels + block * BLOCK);
            // SAFETY: the channels that count are inside of y.
            unsafe { std::ptr::copy_nonoverlapping(out.as_ptr(), to, extent.lanes(block)) };
        }
    }
}

struct ReducePlane<'a> {
    kind: ReduceKind,
    x: *const f32,
    pixels: usize,
    out: &'a mut [f32; BLOCK],
}

impl Kernel for ReducePlane<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Partial results, for the latency and the precision of long sums.
        const PARTS: usize = 4;
        let neutral = match self.kind {
            ReduceKind::Max => f32::NEG_INFINITY,
            ReduceKind::Min => f32::INFINITY,
            _ => 0.0,
        };
        let join = |a: S::F, b: S::F| match self.kind {
            ReduceKind::Max => s.f_max(a, b),
            ReduceKind::Min => s.f_min(a, b),
            _ => s.f_add(a, b),
        };
        for lane in (0..BLOCK).step_by(S::LANES) {
            let mut acc = [s.f_splat(neutral); PARTS];
            let mut pixel = 0;
            // SAFETY: the plane has these pixels, the result 16 lanes.
            unsafe {
                while pixel < self.pixels {
                    let m = PARTS.min(self.pixels - pixel);
                    for (i, acc) in acc.iter_mut().enumerate().take(m) {
                        *acc = join(*acc, s.f_load(self.x.add((pixel + i) * BLOCK + lane)));
                    }
                    pixel += m;
                }
                let mut total = join(join(acc[0], acc[1]), join(acc[2], acc[3]));
                if self.kind == ReduceKind::Mean {
                    total = s.f_div(total, s.f_splat(self.pixels as f32));
                }
                s.f_store(self.out.as_mut_ptr().add(lane), total);
            }
        }
    }
}
