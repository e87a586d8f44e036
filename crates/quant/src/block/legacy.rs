//! Blocks of 32 weights with a scale of their own, and perhaps a minimum.

use core_tensor::block::{
    BlockIq4Nl, BlockMxfp4, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, F16Le, e8m0_half,
};

use half::f16;

use super::Encoder;
use super::grid::{E2m1, Grid, Integers, Iq4};
use super::lanes::{Group, LANES, Lanes, codes, each, through_f16, whole};
use super::search::{Affine, Sums, affine, scale};

/// Two codes per byte: weight `j` low, weight `j + 16` high.
#[inline(always)]
pub(crate) fn nibbles(q: &[u8; 32]) -> [u8; 16] {
    let mut out = [0; 16];
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = q[j] & 15 | (q[j + 16] & 15) << 4;
    }
    out
}

/// The fifth bits, a little-endian u32.
#[inline(always)]
pub(crate) fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    let mut bits = 0;
    for (j, q) in q.iter().enumerate() {
        bits |= u32::from(q >> 4 & 1) << j;
    }
    bits.to_le_bytes()
}

/// The codes for scales as they are in the file.
#[inline(always)]
fn encode<const N: usize, const W: bool, G: Grid>(group: &Group<N, W>, d: Lanes) -> [[u8; N]; LANES] {
    let inverse = Lanes::splat(1.0).over(d);
    codes(&each(&group.x, |x| G::code(x * inverse)))
}

/// Scale and minimum as they are in the file, and the codes for these.
///
/// What the rounding of the scale to f16 does the minimum makes up for as far as it can; so of the scale's neighbours another
/// may be better.
#[inline(always)]
fn encode_affine<const W: bool, const MAX: i32>(
    group: &Group<32, W>,
    found: Affine,
) -> (Lanes, Lanes, [[u8; 32]; LANES]) {
    let inverse = Lanes::splat(1.0).over(found.scale);
    let sums = Sums::of(group).with_codes::<32, W, MAX>(group, inverse, found.min);
    let nearest = found.scale.through_f16();
    let (mut d, mut m, mut least) = (nearest, found.min.through_f16(), Lanes::splat(f32::INFINITY));
    for step in [0.0, -1.0, 1.0] {
        // One step of an f16 is between 2^-11 and 2^-10 of its value.
        let scale = (nearest * Lanes::splat(1.0 + step * 0.00075)).through_f16();
        let min = (sums.x - scale * sums.q).over(sums.w).through_f16();
        let mut error = Lanes::ZERO;
        for j in 0..32 {
            let q = ((group.x[j] - found.min) * inverse).clamp(0.0, MAX as f32).round();
            let r = group.x[j] - min - q * scale;
            error = error + group.weigh(j, r) * r;
        }
        d = least.greater(error, scale, d);
        m = least.greater(error, min, m);
        least = least.min(error);
    }
    let inverse = Lanes::splat(1.0).over(d);
    let q = each(&group.x, |x| ((x - m) * inverse).clamp(0.0, MAX as f32).round());
    (d, m, codes(&q))
}

impl Encoder for BlockQ4_0 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load_by_squares(values, importance);
        let starts: &[f32] = if W {
            &[-8.6, -8.0, -7.2, -6.0, -10.0, 7.4, 9.0]
        } else {
            &[-8.0, -8.2, -8.4, -8.6, -7.8, -7.6, -7.4, 7.5]
        };
        let d = scale::<32, true, Integers<8>>(&group, starts, 2).through_f16();
        let q = encode::<32, true, Integers<8>>(&group, d);
        for (l, block) in out.iter_mut().enumerate() {
            *block = BlockQ4_0 { d: F16Le::from_f32(d.0[l]), qs: nibbles(&q[l]) };
        }
    }
}

impl Encoder for BlockQ5_0 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let (d, q) = if W {
            let starts = [-17.0, -16.0, -15.0, -13.0, -20.0, 15.5, 18.0];
            let d = scale::<32, W, Integers<16>>(&group, &starts, 2).through_f16();
            (d, encode::<32, W, Integers<16>>(&group, d))
        } else {
            // Without importances a scale of less error clips the largest weights, and language models lose by it.
            let d = group.peak() * Lanes::splat(-1.0 / 16.0);
            let inverse = Lanes::splat(1.0).over(d);
            let q = each(&group.x, |x| (x * inverse + Lanes::splat(16.5)).map(|v| v.min(31.0).trunc()));
            (d.through_f16(), codes(&q))
        };
        for (l, block) in out.iter_mut().enumerate() {
            *block = BlockQ5_0 { d: F16Le::from_f32(d.0[l]), qh: fifth_bits(&q[l]), qs: nibbles(&q[l]) };
        }
    }
}

impl Encoder for BlockQ4_1 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let starts: &[f32] = if W { &[14.2, 14.6, 15.0, 15.4, 15.8, 16.3, 17.0, 18.0, 20.0] } else { &[15.0, 15.7] };
        let found = affine::<32, W, 15, false>(&group, starts, 3);
        let (d, m, q) = encode_affine::<W, 15>(&group, found);
        for (l, block) in out.iter_mut().enumerate() {
            *block = BlockQ4_1 { d: F16Le::from_f32(d.0[l]), m: F16Le::from_f32(m.0[l]), qs: nibbles(&q[l]) };
        }
    }
}

impl Encoder for BlockQ5_1 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let starts: &[f32] = if W { &[30.2, 30.6, 31.0, 31.4, 31.8, 32.4, 33.2, 34.5, 37.0] } else { &[31.0, 31.7] };
        let found = affine::<32, W, 31, false>(&group, starts, 3);
        let (d, m, q) = encode_affine::<W, 31>(&group, found);
        for (l, block) in out.iter_mut().enumerate() {
            let (d, m) = (F16Le::from_f32(d.0[l]), F16Le::from_f32(m.0[l]));
            *block = BlockQ5_1 { d, m, qh: fifth_bits(&q[l]), qs: nibbles(&q[l]) };
        }
    }
}

/// A scale of Q8_0 as it is in the file, for weights of which this is the largest. Of one that is subnormal in f16 little may be left: then the next
/// one.
#[inline(always)]
fn q8_0_scale(d: f32, largest: f32) -> f32 {
    let d = through_f16(d);
    if largest > d * 127.5 { through_f16(f16::from_bits(f16::from_f32(d).to_bits() + 1).to_f32()) } else { d }
}

/// The largest magnitude gets the code ±127.
#[inline(always)]
fn q8_0(x: &[f32; 32]) -> BlockQ8_0 {
    let mut largest = [0.0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for i in 0..8 {
            largest[i] = if x[i].abs() > largest[i] { x[i].abs() } else { largest[i] };
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    let d = q8_0_scale(largest * (1.0 / 127.0), largest);
    let inverse = if d > 1e-30 { 1.0 / d } else { 0.0 };
    let mut qs = [0; 32];
    for (q, x) in qs.iter_mut().zip(x) {
        let v = x * inverse;
        *q = whole(if v < 127.0 { v } else { 127.0 }) as i8;
    }
    BlockQ8_0 { d: F16Le::from_f32(d), qs }
}

impl Encoder for BlockQ8_0 {
    /// The weights get the nearest codes for the scale as it is in the file.
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        if !W {
            // There is nothing to search, and no sums that a block side by side with others would make faster.
            for (x, block) in values.as_chunks::<32>().0.iter().zip(out) {
                *block = q8_0(x);
            }
            return;
        }
        let group = Group::<32, W>::load(values, importance);
        let largest = group.peak().abs();
        let found = scale::<32, W, Integers<128>>(&group, &[127.0, 126.5, 127.5], 1);
        let d = found.abs().max(largest * Lanes::splat(1.0 / 127.4)).zip(largest, q8_0_scale);
        let q = encode::<32, W, Integers<128>>(&group, d);
        for (l, block) in out.iter_mut().enumerate() {
            // Codes count from −128.
            *block = BlockQ8_0 { d: F16Le::from_f32(d.0[l]), qs: q[l].map(|q| (q ^ 128) as i8) };
        }
    }
}

/// Inverse scales that a search among the values of IQ4_NL and IQ4_XS starts from: which value the largest weight gets.
pub(crate) const IQ4_STARTS: [f32; 8] = [-127.0, -118.0, -108.0, -137.0, -96.0, 113.0, 104.0, 122.0];

/// The same where weights count by their squares: all of them keep the largest weight near the end of the range. Farther off
/// a search fits the scale to a few large weights, and language models lose by it.
pub(crate) const IQ4_STARTS_BY_SQUARES: [f32; 16] = [
    -127.0, -126.0, -125.0, -124.0, -123.0, -122.0, -121.0, -120.0, -128.0, -129.0, -130.0, -131.0, -132.0, -133.0,
    -134.0, 127.0,
];

impl Encoder for BlockIq4Nl {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load_by_squares(values, importance);
        let starts: &[f32] = if W { &IQ4_STARTS } else { &IQ4_STARTS_BY_SQUARES };
        let d = scale::<32, true, Iq4>(&group, starts, 2).through_f16();
        let q = encode::<32, true, Iq4>(&group, d);
        for (l, block) in out.iter_mut().enumerate() {
            *block = BlockIq4Nl { d: F16Le::from_f32(d.0[l]), qs: nibbles(&q[l]) };
        }
    }
}

impl Encoder for BlockMxfp4 {
    /// Of the three powers of two around the largest weight the one with the least error.
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let largest = group.peak().abs();
        let (mut best, mut least) = ([0; LANES], Lanes::splat(f32::INFINITY));
        for shift in [-3, -2, -1] {
            // The exponent of an f32 is `floor(log2)`; below the smallest scale weights lose what they must.
            let e = largest.0.map(|v| ((v.to_bits() >> 23 & 255) as i32 + shift).clamp(2, 252) as u8);
            let d = Lanes(e.map(e8m0_half));
            let inverse = Lanes::splat(1.0) / d;
            let mut error = Lanes::ZERO;
            for j in 0..32 {
                let r = E2m1::nearest(group.x[j] * inverse) - group.x[j] * inverse;
                error = error + group.weigh(j, r * r);
            }
            // In units of the weights; the scales are powers of two, of which the squares may be too small.
            let error = (error.map(f32::sqrt) * d).map(f32::abs);
            for l in 0..LANES {
                best[l] = if error.0[l] < least.0[l] { e[l] } else { best[l] };
            }
            least = error.min(least);
        }
        for (e, largest) in best.iter_mut().zip(largest.0) {
            *e = if largest == 0.0 { 0 } else { *e };
        }
        let d = Lanes(best.map(e8m0_half));
        let q = codes(&each(&group.x, |x| E2m1::code(x / d)));
        for (l, block) in out.iter_mut().enumerate() {
            *block = BlockMxfp4 { e: best[l], qs: nibbles(&q[l]) };
        }
    }
}
