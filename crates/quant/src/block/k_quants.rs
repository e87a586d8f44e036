//! Q2_K to Q6_K and IQ4_XS.

use core_tensor::block::{BlockIq4Xs, BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, F16Le};

use super::Encoder;
use super::grid::{Integers, Iq4};
use super::lanes::{Group, LANES, Lanes, codes};
use super::legacy::{IQ4_STARTS, IQ4_STARTS_BY_SQUARES, nibbles};
use super::search::{affine, scale};
use super::super_block::{Offset, offset, scaled};

/// Two groups of eight sub-blocks of 16 weights.
#[inline(always)]
fn halves<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32]) -> [Group<16, W>; 2] {
    let (first, second) = values.split_at(128);
    [Group::load(first, &importance), Group::load(second, |at| importance(128 + at))]
}

/// All codes in the order of the weights.
#[inline(always)]
fn in_order<const N: usize, const G: usize>(q: &[[Lanes; N]; G]) -> [u8; 256] {
    const { assert!(N * G * LANES == 256) };
    let mut out = [0; 256];
    for (g, q) in q.iter().enumerate() {
        for (l, row) in codes(q).iter().enumerate() {
            out[(g * LANES + l) * N..][..N].copy_from_slice(row);
        }
    }
    out
}

/// Two bits of each code from bit 0 on: four runs of 32 weights share 32 bytes.
#[inline(always)]
pub(crate) fn two_bits(q: &[u8; 256]) -> [u8; 64] {
    let mut qs = [0; 64];
    for (i, run) in q.chunks_exact(32).enumerate() {
        for (byte, q) in qs[i / 4 * 32..].iter_mut().zip(run) {
            *byte |= (q & 3) << (i % 4 * 2);
        }
    }
    qs
}

/// The low four bits of each code: two runs of 32 weights share 32 bytes.
#[inline(always)]
pub(crate) fn four_bits(q: &[u8; 256]) -> [u8; 128] {
    let mut qs = [0; 128];
    for (bytes, pair) in qs.chunks_exact_mut(32).zip(q.chunks_exact(64)) {
        let (low, high) = pair.split_at(32);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = low & 15 | (high & 15) << 4;
        }
    }
    qs
}

/// Bit `bit` of each code: eight runs of 32 weights share 32 bytes.
#[inline(always)]
pub(crate) fn one_bit(q: &[u8; 256], bit: usize) -> [u8; 32] {
    let mut out = [0; 32];
    for (i, run) in q.chunks_exact(32).enumerate() {
        for (byte, q) in out.iter_mut().zip(run) {
            *byte |= (q >> bit & 1) << i;
        }
    }
    out
}

impl Encoder for BlockQ2K {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let groups = halves::<W>(values, importance);
        let starts = [2.4, 2.8, 3.2, 3.7, 4.3];
        let found =
            [affine::<16, W, 3, true>(&groups[0], &starts, 2), affine::<16, W, 3, true>(&groups[1], &starts, 2)];
        let Offset { d, dmin, scales, mins, q } = offset::<16, 2, W, 3, 15>(&groups, found, 3);
        let mut packed = [0; 16];
        for (i, byte) in packed.iter_mut().enumerate() {
            let (g, l) = (i / LANES, i % LANES);
            *byte = scales[g].0[l] as u8 | (mins[g].0[l] as u8) << 4;
        }
        let (d, dmin) = (F16Le::from_f32(d), F16Le::from_f32(dmin));
        out[0] = BlockQ2K { scales: packed, qs: two_bits(&in_order(&q)), d, dmin };
    }
}

impl Encoder for BlockQ3K {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let groups = halves::<W>(values, importance);
        let starts: &[f32] =
            if W { &[-5.3, -4.8, -4.4, -4.0, -3.6, -3.2, -2.8, 3.0, 3.6] } else { &[-4.6, -4.0, -3.4, 3.0, 3.6] };
        let found =
            [scale::<16, W, Integers<4>>(&groups[0], starts, 2), scale::<16, W, Integers<4>>(&groups[1], starts, 2)];
        let block = scaled::<16, 2, W, Integers<4>, 32>(&groups, found, 2);
        let mut scales = [0; 12];
        for i in 0..16 {
            let s = (block.scales[i / LANES].0[i % LANES] + 32.0) as u8;
            scales[i % 8] |= (s & 15) << (i / 8 * 4);
            scales[8 + i % 4] |= (s >> 4) << (i / 4 * 2);
        }
        let q = in_order(&block.q);
        out[0] = BlockQ3K { hmask: one_bit(&q, 2), qs: two_bits(&q), scales, d: F16Le::from_f32(block.d) };
    }
}

/// Eight scales and eight minima of six bits: the inverse of `unpack_scales_and_mins`.
#[inline(always)]
fn pack_scales_and_mins(scales: Lanes, mins: Lanes) -> [u8; 12] {
    let (s, m) = (scales.0.map(|s| s as u8), mins.0.map(|m| m as u8));
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = s[j] | s[j + 4] >> 4 << 6;
        packed[j + 4] = m[j] | m[j + 4] >> 4 << 6;
        packed[j + 8] = s[j + 4] & 15 | (m[j + 4] & 15) << 4;
    }
    packed
}

impl Encoder for BlockQ4K {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let starts = [14.2, 14.8, 15.4, 16.0, 16.8];
        let found = affine::<32, W, 15, true>(&group, &starts, 2);
        let Offset { d, dmin, scales, mins, q } = offset::<32, 1, W, 15, 63>(&[group], [found], 2);
        out[0] = BlockQ4K {
            d: F16Le::from_f32(d),
            dmin: F16Le::from_f32(dmin),
            scales: pack_scales_and_mins(scales[0], mins[0]),
            qs: four_bits(&in_order(&q)),
        };
    }
}

impl Encoder for BlockQ5K {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load(values, importance);
        let starts = [30.2, 30.8, 31.4, 32.0, 32.8];
        let found = affine::<32, W, 31, true>(&group, &starts, 2);
        let Offset { d, dmin, scales, mins, q } = offset::<32, 1, W, 31, 63>(&[group], [found], 2);
        let q = in_order(&q);
        out[0] = BlockQ5K {
            d: F16Le::from_f32(d),
            dmin: F16Le::from_f32(dmin),
            scales: pack_scales_and_mins(scales[0], mins[0]),
            qh: one_bit(&q, 4),
            qs: four_bits(&q),
        };
    }
}

/// The low four and the high two bits of six-bit codes: four runs of 32 weights share 64 and 32 bytes.
#[inline(always)]
pub(crate) fn q6_bits(q: &[u8; 256]) -> ([u8; 128], [u8; 64]) {
    let (mut ql, mut qh) = ([0; 128], [0; 64]);
    for (h, half) in q.chunks_exact(128).enumerate() {
        for (k, run) in half.chunks_exact(32).enumerate() {
            for (byte, q) in ql[64 * h + 32 * (k % 2)..].iter_mut().zip(run) {
                *byte |= (q & 15) << (k / 2 * 4);
            }
            for (byte, q) in qh[32 * h..].iter_mut().zip(run) {
                *byte |= (q >> 4) << (k * 2);
            }
        }
    }
    (ql, qh)
}

impl Encoder for BlockQ6K {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let groups = halves::<W>(values, importance);
        let starts = [-32.6, -32.0, -31.4, 31.0, 31.6];
        let found = [
            scale::<16, W, Integers<32>>(&groups[0], &starts, 1),
            scale::<16, W, Integers<32>>(&groups[1], &starts, 1),
        ];
        let block = scaled::<16, 2, W, Integers<32>, 128>(&groups, found, 1);
        let q = in_order(&block.q);
        let (ql, qh) = q6_bits(&q);
        let mut packed = BlockQ6K { ql, qh, scales: [0; 16], d: F16Le::from_f32(block.d) };
        for (i, scale) in packed.scales.iter_mut().enumerate() {
            *scale = block.scales[i / LANES].0[i % LANES] as i8;
        }
        out[0] = packed;
    }
}

impl Encoder for BlockIq4Xs {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let group = Group::<32, W>::load_by_squares(values, importance);
        let starts: &[f32] = if W { &IQ4_STARTS } else { &IQ4_STARTS_BY_SQUARES };
        let found = scale::<32, true, Iq4>(&group, starts, 1);
        let block = scaled::<32, 1, true, Iq4, 32>(&[group], [found], 1);
        let (mut high, mut scales_l) = (0u16, [0; 4]);
        for i in 0..LANES {
            let s = (block.scales[0].0[i] + 32.0) as u8;
            scales_l[i / 2] |= (s & 15) << (i % 2 * 4);
            high |= u16::from(s >> 4) << (i * 2);
        }
        let mut qs = [0; 128];
        for (bytes, q) in qs.chunks_exact_mut(16).zip(&codes(&block.q[0])) {
            bytes.copy_from_slice(&nibbles(q));
        }
        out[0] = BlockIq4Xs { d: F16Le::from_f32(block.d), scales_h: high.to_le_bytes(), scales_l, qs };
    }
}
