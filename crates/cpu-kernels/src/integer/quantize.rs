//! Floats to bytes and back.

use core_tensor::ValueId;

use crate::program::{RunContext, Step, View};
use crate::simd::{Kernel, Simd};

/// How elements share scales: an element's is `i / inner % count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// One for all.
    All,
    /// One for each index of this extent.
    Axis(usize),
}

impl Share {
    /// Elements in a row with one scale.
    fn run(self, shape: &[usize]) -> usize {
        match self {
            Share::All => shape.iter().product(),
            Share::Axis(axis) => shape[axis + 1..].iter().product(),
        }
    }

    /// Number of scales.
    fn count(self, shape: &[usize]) -> usize {
        match self {
            Share::All => 1,
            Share::Axis(axis) => shape[axis],
        }
    }
}

/// The zero point at `i` as a number; 0 if there is none.
pub(crate) fn zero_at(zero: Option<View<'_>>, i: usize, signed: bool) -> i32 {
    let Some(zero) = zero else { return 0 };
    // SAFETY: the caller's index is one of the zero points, which are bytes and not written meanwhile.
    let byte = unsafe { *zero.ptr.add(i) };
    if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
}

/// Which way a [`Conversion`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `saturate(round(x / scale) + zero)`, f32 to bytes.
    Quantize,
    /// `(x - zero) * scale`, bytes to f32.
    Dequantize,
}

/// Floats to bytes or back.
pub(crate) struct Conversion {
    pub(crate) way: Way,
    pub(crate) x: ValueId,
    pub(crate) scale: ValueId,
    pub(crate) zero: Option<ValueId>,
    pub(crate) y: ValueId,
    /// Whether the bytes are.
    pub(crate) signed: bool,
    pub(crate) share: Share,
}

impl Step for Conversion {
    fn describe(&self) -> String {
        format!("{:?} {} -> {}", self.way, self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y, scale) = (cx.view(self.x), cx.view(self.y), cx.view(self.scale));
        let zero = self.zero.map(|zero| cx.view(zero));
        for (at, range) in runs(self.share, x.shape, cx.worker.share(x.len())) {
            let (start, n, signed) = (range.start, range.len(), self.signed);
            // SAFETY: one of the scales.
            let scale = unsafe { *scale.f32().add(at) };
            let zero = zero_at(zero, at, signed);
            match self.way {
                Way::Quantize => {
                    let (x, y) = (x.f32().wrapping_add(start), y.ptr.wrapping_add(start));
                    cx.level.run(QuantizeRows { x, y, rows: 1, strides: [0, 0], n, scale, zero, signed });
                }
                Way::Dequantize => {
                    let (x, y) = (x.ptr.wrapping_add(start), y.f32().wrapping_add(start));
                    cx.level.run(DequantizeRun { x, y, n, scale, zero, signed });
                }
            }
        }
    }
}

/// The parts of a range of elements that have one scale each: its index, and the elements.
fn runs(
    share: Share,
    shape: &[usize],
    range: std::ops::Range<usize>,
) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let (inner, count) = (share.run(shape).max(1), share.count(shape).max(1));
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = ((start / inner + 1) * inner).min(range.end);
        let run = (start / inner % count, start..end);
        start = end;
        Some(run)
    })
}

/// Quantizes `n` elements of some rows with one scale.
pub(crate) struct QuantizeRows {
    pub(crate) x: *const f32,
    pub(crate) y: *mut u8,
    pub(crate) rows: usize,
    /// Elements from one row to the next, of `x` and of `y`.
    pub(crate) strides: [usize; 2],
    pub(crate) n: usize,
    pub(crate) scale: f32,
    pub(crate) zero: i32,
    pub(crate) signed: bool,
}

impl Kernel for QuantizeRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (least, most) = if self.signed { (-128, 127) } else { (0, 255) };
        let (low, high) = (s.f_splat((least - self.zero) as f32), s.f_splat((most - self.zero) as f32));
        let (scale, zero) = (s.f_splat(self.scale), s.i_splat(self.zero));
        for row in 0..self.rows {
            let (x, y) = (self.x.wrapping_add(row * self.strides[0]), self.y.wrapping_add(row * self.strides[1]));
            let mut i = 0;
            while i < self.n {
                let m = (self.n - i).min(S::LANES);
                // SAFETY: i + m is at most n, which rows of x and y hold.
                unsafe {
                    let x = if m == S::LANES { s.f_load(x.add(i)) } else { s.f_load_first(x.add(i), m) };
                    // Bounds are integers: to clamp before rounding is to clamp after it.
                    let v = s.f_min(s.f_max(zero_if_nan(s, s.f_div(x, scale)), low), high);
                    store_bytes(s, y.add(i), s.i_add(s.i_round(v), zero), m, self.signed);
                }
                i += m;
            }
        }
    }
}

/// What is no number becomes 0, which is quantized to the zero point.
#[inline(always)]
fn zero_if_nan<S: Simd>(s: S, v: S::F) -> S::F {
    let bits = s.f_to_bits(v);
    // Infinity's bits less a greater magnitude's are below 0: the sign becomes the lowest bit, and that a mask.
    let magnitude = s.i_and(bits, s.i_splat(i32::MAX));
    let is_nan = s.i_shr::<31>(s.i_sub(s.i_splat(f32::INFINITY.to_bits().cast_signed()), magnitude));
    s.f_from_bits(s.i_and(bits, s.i_sub(is_nan, s.i_splat(1))))
}

/// Stores the first `m` lanes, which fit a byte.
///
/// # Safety
/// `y` is writable for `m` bytes.
#[inline(always)]
pub(crate) unsafe fn store_bytes<S: Simd>(s: S, y: *mut u8, v: S::I, m: usize, signed: bool) {
    let mut last = [0u8; 16];
    let to = if m == S::LANES { y } else { last.as_mut_ptr() };
    // SAFETY: the caller's, or sixteen bytes.
    unsafe {
        if signed {
            s.i_store_i8(to, v);
        } else {
            s.i_store_u8(to, v);
        }
        if m != S::LANES {
            std::ptr::copy_nonoverlapping(last.as_ptr(), y, m);
        }
    }
}

/// Loads the first `m` of some bytes as integers; the other lanes are 0.
///
/// # Safety
/// `x` is readable for `m` bytes.
#[inline(always)]
pub(crate) unsafe fn load_bytes<S: Simd>(s: S, x: *const u8, m: usize, signed: bool) -> S::I {
    let mut last = [0u8; 16];
    // SAFETY: the caller's, or sixteen bytes.
    unsafe {
        let from = if m == S::LANES {
            x
        } else {
            std::ptr::copy_nonoverlapping(x, last.as_mut_ptr(), m);
            last.as_ptr()
        };
        if signed { s.i_load_i8(from) } else { s.i_load_u8(from) }
    }
}

/// A run of bytes with one scale.
pub(crate) struct DequantizeRun {
    pub(crate) x: *const u8,
    pub(crate) y: *mut f32,
    pub(crate) n: usize,
    pub(crate) scale: f32,
    pub(crate) zero: i32,
    pub(crate) signed: bool,
}

impl Kernel for DequantizeRun {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scale, zero) = (s.f_splat(self.scale), s.i_splat(self.zero));
        let mut i = 0;
        while i < self.n {
            let m = (self.n - i).min(S::LANES);
            // SAFETY: i + m is at most n, which x and y hold.
            unsafe {
                let x = s.i_sub(load_bytes(s, self.x.add(i), m, self.signed), zero);
                s.f_store_first(self.y.add(i), s.f_mul(s.f_from_i(x), scale), m);
            }
            i += m;
        }
    }
}

/// `DynamicQuantizeLinear`: to u8 by the range of the whole tensor, which every thread finds for a share of it.
pub(crate) struct DynamicQuantize {
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
    pub(crate) scale: ValueId,
    pub(crate) zero: ValueId,
    /// Scratch: `[threads][16]` f32, of which two are used.
    pub(crate) ranges: usize,
}

/// Floats of a thread's part of the ranges: a cache line.
const RANGE_FLOATS: usize = 16;

impl DynamicQuantize {
    /// Bytes of the scratch.
    pub(crate) fn ranges_bytes(threads: usize) -> usize {
        4 * RANGE_FLOATS * threads
    }
}

impl Step for DynamicQuantize {
    fn describe(&self) -> String {
        format!("DynamicQuantize {} -> {}, {}, {}", self.x, self.y, self.scale, self.zero)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let ranges: *mut f32 = cx.scratch(self.ranges).cast();
        let share = cx.worker.share(x.len());
        let x = x.f32().wrapping_add(share.start);
        let (least, most) = cx.level.run(Range { x, n: share.len() });
        // SAFETY: this thread's part of the scratch, and after the barrier the parts of all.
        let (least, most) = unsafe {
            let own = ranges.add(RANGE_FLOATS * cx.worker.index);
            own.write(least);
            own.add(1).write(most);
            cx.worker.barrier();
            let all = |i: usize| (0..cx.worker.count).map(move |thread| *ranges.add(RANGE_FLOATS * thread + i));
            (all(0).fold(0.0, f32::min), all(1).fold(0.0, f32::max))
        };
        let scale = if most == least { 1.0 } else { (most - least) / 255.0 };
        let zero = (-least / scale).clamp(0.0, 255.0).round_ties_even();
        if cx.worker.index == 0 {
            // SAFETY: one element each, written by this thread alone.
            unsafe {
                *cx.view(self.scale).f32() = scale;
                *cx.view(self.zero).ptr = zero as u8;
            }
        }
        let y = y.ptr.wrapping_add(share.start);
        let n = share.len();
        cx.level.run(QuantizeRows { x, y, rows: 1, strides: [0, 0], n, scale, zero: zero as i32, signed: false });
    }
}

/// The least and the greatest of some floats and 0; NaN counts as nothing.
struct Range {
    x: *const f32,
    n: usize,
}

impl Kernel for Range {
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let (mut least, mut most) = ([s.f_splat(0.0); 4], [s.f_splat(0.0); 4]);
        let mut i = 0;
        while i < self.n {
            for (least, most) in least.iter_mut().zip(&mut most) {
                let m = self.n.saturating_sub(i).min(S::LANES);
                // SAFETY: i + m is at most n; no lane is read where m is 0.
                let x = unsafe { s.f_load_first(self.x.wrapping_add(i), m) };
                // The second operand is what is given where either is NaN.
                (*least, *most) = (s.f_min(x, *least), s.f_max(x, *most));
                i += S::LANES;
            }
        }
        let least = s.f_min(s.f_min(least[0], least[1]), s.f_min(least[2], least[3]));
        let most = s.f_max(s.f_max(most[0], most[1]), s.f_max(most[2], most[3]));
        (-s.f_reduce_max(s.f_sub(s.f_splat(0.0), least)), s.f_reduce_max(most))
    }
}
