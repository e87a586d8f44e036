//! Blocks of 256 weights whose sub-blocks have quantized scales.
//!
//! First every sub-block is searched for its best scale (and minimum) as floats. The largest says what the scale of the
//! scales is; each sub-block then takes the whole number with the least error among the nearest and its neighbours, and for
//! the codes that come of it the scales of the scales are least squares' again.

use super::grid::Grid;
use super::lanes::{Group, LANES, Lanes, each, through_f16};
use super::search::{Affine, Sums};

/// Sub-blocks with scales alone: `x ≈ d · s · v`.
pub(crate) struct Scaled<const N: usize, const G: usize> {
    pub(crate) d: f32,
    /// Whole numbers `−S ..= S − 1`.
    pub(crate) scales: [Lanes; G],
    /// Codes.
    pub(crate) q: [[Lanes; N]; G],
}

/// From the best scales `found` of the sub-blocks.
#[inline(always)]
pub(crate) fn scaled<const N: usize, const G: usize, const W: bool, V: Grid, const S: i32>(
    groups: &[Group<N, W>; G],
    found: [Lanes; G],
    rounds: usize,
) -> Scaled<N, G> {
    let (low, high) = (-(S as f32), (S - 1) as f32);
    let mut d = through_f16(scale_of_scales::<N, G, W>(groups, &found, low, high));
    let mut scales = each(&found, |found| found.over(Lanes::splat(d)).clamp(low, high).round());
    for _ in 0..rounds {
        let (mut above, mut below) = (0.0, 0.0);
        for (group, scale) in groups.iter().zip(&mut scales) {
            let middle = *scale;
            let mut least = Lanes::splat(f32::INFINITY);
            for step in [0.0, -1.0, 1.0] {
                let s = (middle + Lanes::splat(step)).clamp(low, high);
                let e = error::<N, W, V>(group, s * Lanes::splat(d));
                *scale = least.greater(e, s, *scale);
                least = least.min(e);
            }
            let (xv, vv) = products::<N, W, V>(group, *scale * Lanes::splat(d));
            for l in 0..LANES {
                above += scale.0[l] * xv.0[l];
                below += scale.0[l] * scale.0[l] * vv.0[l];
            }
        }
        if below > 1e-30 {
            let better = through_f16(above / below);
            d = if better == 0.0 { d } else { better };
        }
    }
    let mut q = [[Lanes::ZERO; N]; G];
    for ((q, group), scale) in q.iter_mut().zip(groups).zip(&scales) {
        let inverse = Lanes::splat(1.0).over(*scale * Lanes::splat(d));
        for (q, x) in q.iter_mut().zip(&group.x) {
            *q = V::code(*x * inverse);
        }
    }
    Scaled { d, scales, q }
}

/// The scale whose multiples come nearest to the scales `found`: the largest of them near either end of the range.
///
/// A scale counts by what it explains: if it is off by a thousandth, so are the weights of its sub-block.
#[inline(always)]
fn scale_of_scales<const N: usize, const G: usize, const W: bool>(
    groups: &[Group<N, W>; G],
    found: &[Lanes; G],
    low: f32,
    high: f32,
) -> f32 {
    let mut peak = 0.0f32;
    let mut counts = [Lanes::ZERO; G];
    for ((count, group), found) in counts.iter_mut().zip(groups).zip(found) {
        for scale in found.0 {
            peak = if scale.abs() > peak.abs() { scale } else { peak };
        }
        let power = (0..N).fold(Lanes::ZERO, |sum, j| sum + group.weigh(j, group.x[j]) * group.x[j]);
        *count = power.over(*found * *found);
    }
    if peak == 0.0 {
        return 0.0;
    }
    let (mut best, mut most) = (peak / low, 0.0);
    for part in [1.0, 0.985, 0.97, 0.95, 0.93] {
        for end in [low, high] {
            let inverse = Lanes::splat(part * end / peak);
            let (mut xs, mut ss) = (Lanes::ZERO, Lanes::ZERO);
            for (count, found) in counts.iter().zip(found) {
                let s = (*found * inverse).clamp(low, high).round();
                let weighted = *count * s;
                xs = xs + weighted * *found;
                ss = ss + weighted * s;
            }
            let (xs, ss) = (xs.0.iter().sum::<f32>(), ss.0.iter().sum::<f32>());
            if ss > 1e-30 && xs * xs / ss > most {
                most = xs * xs / ss;
                best = xs / ss;
            }
        }
    }
    best
}

/// `Σ w (x − d v)²`.
#[inline(always)]
fn error<const N: usize, const W: bool, V: Grid>(group: &Group<N, W>, d: Lanes) -> Lanes {
    let inverse = Lanes::splat(1.0).over(d);
    let mut sum = Lanes::ZERO;
    for j in 0..N {
        let r = group.x[j] - V::nearest(group.x[j] * inverse) * d;
        sum = sum + group.weigh(j, r) * r;
    }
    sum
}

/// `Σ w x v` and `Σ w v²`.
#[inline(always)]
fn products<const N: usize, const W: bool, V: Grid>(group: &Group<N, W>, d: Lanes) -> (Lanes, Lanes) {
    let inverse = Lanes::splat(1.0).over(d);
    let (mut xv, mut vv) = (Lanes::ZERO, Lanes::ZERO);
    for j in 0..N {
        let v = V::nearest(group.x[j] * inverse);
        let wv = group.weigh(j, v);
        xv = xv + wv * group.x[j];
        vv = vv + wv * v;
    }
    (xv, vv)
}

/// Sub-blocks with scales and minima: `x ≈ d · s · q − dmin · m`.
pub(crate) struct Offset<const N: usize, const G: usize> {
    pub(crate) d: f32,
    pub(crate) dmin: f32,
    /// Whole numbers `0 ..= S`.
    pub(crate) scales: [Lanes; G],
    /// Whole numbers `0 ..= S`.
    pub(crate) mins: [Lanes; G],
    /// Codes `0 ..= MAX`.
    pub(crate) q: [[Lanes; N]; G],
}

/// From the best scales and minima `found` of the sub-blocks.
#[inline(always)]
pub(crate) fn offset<const N: usize, const G: usize, const W: bool, const MAX: i32, const S: i32>(
    groups: &[Group<N, W>; G],
    found: [Affine; G],
    rounds: usize,
) -> Offset<N, G> {
    let (mut largest, mut lowest) = (0.0f32, 0.0f32);
    for found in &found {
        for l in 0..LANES {
            largest = largest.max(found.scale.0[l]);
            lowest = lowest.min(found.min.0[l]);
        }
    }
    let top = S as f32;
    let (mut d, mut dmin) = (through_f16(largest / top), through_f16(-lowest / top));
    let mut scales = found.map(|found| found.scale.over(Lanes::splat(d)).clamp(0.0, top).round());
    let mut mins = found.map(|found| (Lanes::ZERO - found.min).over(Lanes::splat(dmin)).clamp(0.0, top).round());
    for _ in 0..rounds {
        // The normal equations of d and dmin.
        let (mut qq, mut qm, mut mm, mut xq, mut xm) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for ((group, scale), min) in groups.iter().zip(&mut scales).zip(&mut mins) {
            let sums = Sums::of(group);
            let (middle, start) = (*scale, *min * Lanes::splat(-dmin));
            let mut least = Lanes::splat(f32::INFINITY);
            for step in [0.0, -1.0, 1.0] {
                let s = (middle + Lanes::splat(step)).clamp(0.0, top);
                let ds = s * Lanes::splat(d);
                let with = sums.with_codes::<N, W, MAX>(group, Lanes::splat(1.0).over(ds), start);
                // The best minimum for these codes.
                let m = (ds * with.q - sums.x).over(sums.w * Lanes::splat(dmin)).clamp(0.0, top).round();
                let e = offset_error::<N, W, MAX>(group, ds, m * Lanes::splat(-dmin));
                *scale = least.greater(e, s, *scale);
                *min = least.greater(e, m, *min);
                least = least.min(e);
            }
            let inverse = Lanes::splat(1.0).over(*scale * Lanes::splat(d));
            let with = sums.with_codes::<N, W, MAX>(group, inverse, *min * Lanes::splat(-dmin));
            for l in 0..LANES {
                let (s, m) = (scale.0[l], min.0[l]);
                qq += s * s * with.qq.0[l];
                qm += s * m * with.q.0[l];
                mm += m * m * with.w.0[l];
                xq += s * with.xq.0[l];
                xm += m * with.x.0[l];
            }
        }
        let determinant = qq * mm - qm * qm;
        let better = if determinant > 1e-6 * qq * mm {
            ((xq * mm - xm * qm) / determinant, (qm * xq - qq * xm) / determinant)
        } else if qq > 1e-30 {
            (xq / qq, dmin)
        } else {
            (d, dmin)
        };
        let better = (through_f16(better.0), through_f16(better.1));
        if better.0 > 0.0 && better.1 >= 0.0 {
            (d, dmin) = better;
        }
    }
    let mut q = [[Lanes::ZERO; N]; G];
    for (((q, group), scale), min) in q.iter_mut().zip(groups).zip(&scales).zip(&mins) {
        let inverse = Lanes::splat(1.0).over(*scale * Lanes::splat(d));
        let offset = *min * Lanes::splat(dmin);
        for (q, x) in q.iter_mut().zip(&group.x) {
            *q = ((*x + offset) * inverse).clamp(0.0, MAX as f32).round();
        }
    }
    Offset { d, dmin, scales, mins, q }
}

/// `Σ w (x − d q − min)²`.
#[inline(always)]
fn offset_error<const N: usize, const W: bool, const MAX: i32>(group: &Group<N, W>, d: Lanes, min: Lanes) -> Lanes {
    let inverse = Lanes::splat(1.0).over(d);
    let mut sum = Lanes::ZERO;
    for j in 0..N {
        let x = group.x[j] - min;
        let r = x - (x * inverse).clamp(0.0, MAX as f32).round() * d;
        sum = sum + group.weigh(j, r) * r;
    }
    sum
}
