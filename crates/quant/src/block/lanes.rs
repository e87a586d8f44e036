//! Eight sub-blocks side by side.
//!
//! A search for the scale of a sub-block is a chain of sums over its weights, which a compiler must not reorder. So eight
//! sub-blocks are searched at once: lane `l` of every value belongs to sub-block `l`, sums never cross lanes, and what the
//! compiler makes of these loops are plain vector instructions, whatever their width. The results are the same bits on
//! every machine: no multiply-add is fused.

use std::ops::{Add, Div, Mul, Sub};

/// Sub-blocks that are searched together.
pub(crate) const LANES: usize = 8;

/// One number of each of eight sub-blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(32))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

/// Adding and subtracting it rounds to the nearest integer, ties to even, numbers below 2^22.
const ROUNDING: f32 = 12_582_912.0;

impl Lanes {
    pub(crate) const ZERO: Lanes = Lanes([0.0; LANES]);

    #[inline(always)]
    pub(crate) fn splat(value: f32) -> Lanes {
        Lanes([value; LANES])
    }

    #[inline(always)]
    pub(crate) fn map(self, f: impl Fn(f32) -> f32) -> Lanes {
        let mut out = self;
        for value in &mut out.0 {
            *value = f(*value);
        }
        out
    }

    #[inline(always)]
    pub(crate) fn zip(self, other: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
        let mut out = self;
        for (value, other) in out.0.iter_mut().zip(other.0) {
            *value = f(*value, other);
        }
        out
    }

    /// The nearest integers, ties to even; of numbers below 2^22.
    #[inline(always)]
    pub(crate) fn round(self) -> Lanes {
        self.map(|v| (v + ROUNDING) - ROUNDING)
    }

    /// Between two bounds; what is no number becomes `low`.
    #[inline(always)]
    pub(crate) fn clamp(self, low: f32, high: f32) -> Lanes {
        self.map(|v| {
            let v = if v > low { v } else { low };
            if v < high { v } else { high }
        })
    }

    #[inline(always)]
    pub(crate) fn min(self, other: Lanes) -> Lanes {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    pub(crate) fn max(self, other: Lanes) -> Lanes {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Lanes {
        self.map(f32::abs)
    }

    /// The quotient, 0 where it would divide by nothing (or by less than `1e-30`, of which the reciprocal is no use).
    #[inline(always)]
    pub(crate) fn over(self, other: Lanes) -> Lanes {
        self.zip(other, |a, b| if b.abs() > 1e-30 { a / b } else { 0.0 })
    }

    /// `yes` in the lanes where `self > other`, `no` in the others.
    #[inline(always)]
    pub(crate) fn greater(self, other: Lanes, yes: Lanes, no: Lanes) -> Lanes {
        let mut out = no;
        for l in 0..LANES {
            out.0[l] = if self.0[l] > other.0[l] { yes.0[l] } else { no.0[l] };
        }
        out
    }

    /// Through f16: what is left of a scale in the file. Beyond the range of f16 the largest that is finite.
    #[inline(always)]
    pub(crate) fn through_f16(self) -> Lanes {
        self.map(through_f16)
    }
}

/// The nearest integer, ties to even, of a number in −2^22 .. 2^22: the last bits of a sum, where a conversion would look for what is no number.
#[inline(always)]
pub(crate) fn whole(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

/// The nearest f16; beyond its range the largest that is finite.
#[inline(always)]
pub(crate) fn through_f16(value: f32) -> f32 {
    half::f16::from_f32(value.clamp(-65504.0, 65504.0)).to_f32()
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl $trait for Lanes {
            type Output = Lanes;

            #[inline(always)]
            fn $method(self, other: Lanes) -> Lanes {
                self.zip(other, |a, b| a $op b)
            }
        }
    };
}

operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

/// `f` of each. (What `array::map` calls is not always inlined, and has no wide vectors then.)
#[inline(always)]
pub(crate) fn each<const N: usize>(x: &[Lanes; N], f: impl Fn(Lanes) -> Lanes) -> [Lanes; N] {
    let mut out = *x;
    for x in &mut out {
        *x = f(*x);
    }
    out
}

/// Eight sub-blocks of `N` weights: `x[j]` has weight `j` of each, `w[j]` its importance.
///
/// Without importances (`W` is false) `w` is all ones and is not read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<const N: usize, const W: bool> {
    pub(crate) x: [Lanes; N],
    pub(crate) w: [Lanes; N],
}

impl<const N: usize, const W: bool> Group<N, W> {
    /// From up to eight sub-blocks that lie one after the other; those that are missing are zeros.
    /// `importance` gives the importances of the sub-block that begins at a place in `values`.
    #[inline(always)]
    pub(crate) fn load<'a>(values: &[f32], importance: impl Fn(usize) -> &'a [f32]) -> Group<N, W> {
        let mut group = Group { x: [Lanes::ZERO; N], w: [Lanes::splat(1.0); N] };
        for (l, row) in values.chunks_exact(N).take(LANES).enumerate() {
            for (x, value) in group.x.iter_mut().zip(row) {
                x.0[l] = *value;
            }
            if W {
                for (w, weight) in group.w.iter_mut().zip(importance(l * N)) {
                    w.0[l] = *weight;
                }
            }
        }
        group
    }

    /// As [`Group::load`]; without importances weights count by their own squares, relative to the largest of their sub-block.
    #[inline(always)]
    pub(crate) fn load_by_squares<'a>(values: &[f32], importance: impl Fn(usize) -> &'a [f32]) -> Group<N, true> {
        let Group { x, w } = Group::<N, W>::load(values, importance);
        let mut group = Group { x, w };
        if !W {
            let inverse = Lanes::splat(1.0).over(group.peak().abs());
            group.w = each(&group.x, |x| (x * inverse) * (x * inverse));
        }
        group
    }

    /// The value of largest magnitude, with its sign; of several the first.
    #[inline(always)]
    pub(crate) fn peak(&self) -> Lanes {
        let mut peak = self.x[0];
        for x in &self.x {
            peak = x.abs().greater(peak.abs(), *x, peak);
        }
        peak
    }

    /// `w · v`.
    #[inline(always)]
    pub(crate) fn weigh(&self, j: usize, v: Lanes) -> Lanes {
        if W { self.w[j] * v } else { v }
    }

    /// The sum of the importances.
    #[inline(always)]
    pub(crate) fn total(&self) -> Lanes {
        if W { self.w.iter().fold(Lanes::ZERO, |sum, w| sum + *w) } else { Lanes::splat(N as f32) }
    }

    /// The smallest and the largest value.
    #[inline(always)]
    pub(crate) fn range(&self) -> (Lanes, Lanes) {
        let (mut low, mut high) = (self.x[0], self.x[0]);
        for x in &self.x {
            low = low.min(*x);
            high = high.max(*x);
        }
        (low, high)
    }
}

/// The codes of eight sub-blocks of `N` weights, each sub-block's together.
#[inline(always)]
pub(crate) fn codes<const N: usize>(q: &[Lanes; N]) -> [[u8; N]; LANES] {
    let mut out = [[0; N]; LANES];
    for (j, q) in q.iter().enumerate() {
        for (l, row) in out.iter_mut().enumerate() {
            row[j] = whole(q.0[l]) as u8;
        }
    }
    out
}
