//! Q2_K to Q6_K: 256 weights whose sub-blocks have quantized scales of their own.
//!
//! Q2_K, Q3_K and Q6_K have 16 sub-blocks of 16 weights, Q4_K and Q5_K have 8 of 32. The quants of a
//! sub-block do not lie together: weights that are 32 apart (64 in Q6_K's low bits) share a byte, so that
//! a vector of bytes, shifted and masked, is a run of consecutive weights.

use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Q2_K, 84 bytes, 2.625 bits per weight: `w = d · scale · q − dmin · min` with 4-bit scales and mins.
///
/// Sub-block `i` (16 weights) has its quants in bytes `32·(i/8) + 16·(i%2) ..` of `qs`, at bits
/// `2·((i/2)%4) ..`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Per sub-block: the scale in the low nibble, the min in the high one.
    pub scales: [u8; 16],
    /// The quants `q` in 0..=3, four per byte.
    pub qs: [u8; 64],
    /// The scale of the scales.
    pub d: F16Le,
    /// The scale of the mins.
    pub dmin: F16Le,
}

/// 256 numbers of two bits in their order: each 32 bytes hold four runs of 32.
#[inline]
pub(super) fn pairs_of_bits(bytes: &[u8; 64]) -> [u8; 256] {
    std::array::from_fn(|i| bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3)
}

impl BlockQ2K {
    /// The quants `q` of all weights, in 0..=3.
    #[inline]
    #[must_use]
    pub fn quants(&self) -> [u8; 256] {
        pairs_of_bits(&self.qs)
    }
}

impl PackedBlock<256> for BlockQ2K {
    const FORMAT: BlockFormat = BlockFormat::Q2_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (sub_blocks, _) = out.as_chunks_mut::<16>();
        let quants = self.quants();
        for ((weights, quants), &scale) in sub_blocks.iter_mut().zip(quants.as_chunks::<16>().0).zip(&self.scales) {
            let dl = d * f32::from(scale & 15);
            let ml = dmin * f32::from(scale >> 4);
            for (y, &q) in weights.iter_mut().zip(quants) {
                *y = dl * f32::from(q) - ml;
            }
        }
    }
}

/// Q3_K, 110 bytes, 3.4375 bits per weight: `w = d · (scale − 32) · (q − 4)` with 6-bit scales.
///
/// The low two bits of sub-block `i` lie as in Q2_K; the high bit of weight `l` of every run of 32
/// weights `r` is bit `r` of `hmask[l]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// The high bits of the quants.
    pub hmask: [u8; 32],
    /// The low two bits of the quants, four weights per byte.
    pub qs: [u8; 64],
    /// The 6-bit scales: see [`BlockQ3K::scales`].
    pub scales: [u8; 12],
    /// The scale of the scales.
    pub d: F16Le,
}

impl BlockQ3K {
    /// The 16 scales, in −32..=31.
    ///
    /// Packed, the low four bits of scale `i` are the low nibble of byte `i` (`i` < 8) or the high nibble
    /// of byte `i − 8`; its high two bits are bits `2·(i/4) ..` of byte `8 + i%4`.
    #[must_use]
    pub fn scales(&self) -> [i8; 16] {
        let (nibbles, tops) = self.scales.split_at(8);
        let mut scales = [0; 16];
        for (i, scale) in scales.iter_mut().enumerate() {
            let low = nibbles[i % 8] >> (i / 8 * 4) & 15;
            let high = tops[i % 4] >> (i / 4 * 2) & 3;
            *scale = (low | high << 4) as i8 - 32;
        }
        scales
    }

    /// The quants `q` of all weights, in 0..=7.
    #[inline]
    #[must_use]
    pub fn quants(&self) -> [u8; 256] {
        let mut quants = pairs_of_bits(&self.qs);
        for (i, q) in quants.iter_mut().enumerate() {
            *q |= (self.hmask[i % 32] >> (i / 32) & 1) << 2;
        }
        quants
    }
}

impl PackedBlock<256> for BlockQ3K {
    const FORMAT: BlockFormat = BlockFormat::Q3_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (sub_blocks, _) = out.as_chunks_mut::<16>();
        let quants = self.quants();
        for ((weights, quants), scale) in sub_blocks.iter_mut().zip(quants.as_chunks::<16>().0).zip(self.scales()) {
            let dl = d * f32::from(scale);
            for (y, &q) in weights.iter_mut().zip(quants) {
                *y = dl * f32::from(q as i8 - 4);
            }
        }
    }
}

/// The eight 6-bit scales and the eight 6-bit mins of Q4_K and Q5_K.
///
/// Packed, the low six bits of bytes 0..4 are scales 0..4 and those of bytes 4..8 are mins 0..4. Byte
/// `8 + j` has the low four bits of scale `4 + j` (low nibble) and of min `4 + j` (high nibble); their
/// high two bits are the top two bits of byte `j` and of byte `4 + j`.
#[must_use]
pub fn unpack_scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (a, b, c) = (packed[j], packed[j + 4], packed[j + 8]);
        scales[j] = a & 63;
        mins[j] = b & 63;
        scales[j + 4] = c & 15 | a >> 6 << 4;
        mins[j + 4] = c >> 4 | b >> 6 << 4;
    }
    (scales, mins)
}

/// Q4_K, 144 bytes, 4.5 bits per weight: `w = d · scale · q − dmin · min` with 6-bit scales and mins.
///
/// Sub-block `i` (32 weights) has its quants in bytes `32·(i/2) ..` of `qs`: in the low nibbles for an even
/// `i`, in the high nibbles for an odd one.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// The scale of the scales.
    pub d: F16Le,
    /// The scale of the mins.
    pub dmin: F16Le,
    /// The scales and mins: see [`unpack_scales_and_mins`].
    pub scales: [u8; 12],
    /// The quants `q` in 0..=15, two per byte.
    pub qs: [u8; 128],
}

impl PackedBlock<256> for BlockQ4K {
    const FORMAT: BlockFormat = BlockFormat::Q4_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = unpack_scales_and_mins(&self.scales);
        let (sub_blocks, _) = out.as_chunks_mut::<32>();
        let (bytes, _) = self.qs.as_chunks::<32>();
        for (i, (weights, (scale, min))) in sub_blocks.iter_mut().zip(scales.iter().zip(&mins)).enumerate() {
            let dl = d * f32::from(*scale);
            let ml = dmin * f32::from(*min);
            let shift = i % 2 * 4;
            for (y, &q) in weights.iter_mut().zip(&bytes[i / 2]) {
                *y = dl * f32::from(q >> shift & 15) - ml;
            }
        }
    }
}

/// Q5_K, 176 bytes, 5.5 bits per weight: `w = d · scale · q − dmin · min` with 6-bit scales and mins.
///
/// The low four bits lie as in Q4_K; the fifth bit of weight `l` of sub-block `i` is bit `i` of `qh[l]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// The scale of the scales.
    pub d: F16Le,
    /// The scale of the mins.
    pub dmin: F16Le,
    /// The scales and mins: see [`unpack_scales_and_mins`].
    pub scales: [u8; 12],
    /// The fifth bits of the quants.
    pub qh: [u8; 32],
    /// The low four bits of the quants, two weights per byte.
    pub qs: [u8; 128],
}

impl PackedBlock<256> for BlockQ5K {
    const FORMAT: BlockFormat = BlockFormat::Q5_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let (scales, mins) = unpack_scales_and_mins(&self.scales);
        let (sub_blocks, _) = out.as_chunks_mut::<32>();
        let (low, _) = self.qs.as_chunks::<32>();
        for (i, (weights, (scale, min))) in sub_blocks.iter_mut().zip(scales.iter().zip(&mins)).enumerate() {
            let dl = d * f32::from(*scale);
            let ml = dmin * f32::from(*min);
            let shift = i % 2 * 4;
            for (y, (&l, &h)) in weights.iter_mut().zip(low[i / 2].iter().zip(&self.qh)) {
                let q = l >> shift & 15 | (h >> i & 1) << 4;
                *y = dl * f32::from(q) - ml;
            }
        }
    }
}

/// Q6_K, 210 bytes, 6.5625 bits per weight: `w = d · scale · (q − 32)` with 8-bit signed scales.
///
/// The block is two halves of 128 weights, each with 64 bytes of `ql` and 32 of `qh`. Weight `32·k + l` of
/// half `h` (`k` < 4, `l` < 32) has its low four bits in `ql[64·h + 32·(k%2) + l]`, low nibble for
/// `k` < 2, and its high two in `qh[32·h + l]`, bits `2·k ..`. Sixteen consecutive weights share a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// The low four bits of the quants, two weights per byte.
    pub ql: [u8; 128],
    /// The high two bits of the quants, four weights per byte.
    pub qh: [u8; 64],
    /// The scales of the 16 sub-blocks.
    pub scales: [i8; 16],
    /// The scale of the scales.
    pub d: F16Le,
}

impl PackedBlock<256> for BlockQ6K {
    const FORMAT: BlockFormat = BlockFormat::Q6_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (sub_blocks, _) = out.as_chunks_mut::<16>();
        let (low, _) = self.ql.as_chunks::<16>();
        let (high, _) = self.qh.as_chunks::<16>();
        for (i, (weights, &scale)) in sub_blocks.iter_mut().zip(&self.scales).enumerate() {
            // Sub-block i is the first or second 16 weights of run k of half h.
            let (h, k, part) = (i / 8, i / 2 % 4, i % 2);
            let dl = d * f32::from(scale);
            let quants = low[h * 4 + k % 2 * 2 + part].iter().zip(&high[h * 2 + part]);
            for (y, (&l, &h)) in weights.iter_mut().zip(quants) {
                let q = l >> (k / 2 * 4) & 15 | (h >> (k * 2) & 3) << 4;
                *y = dl * f32::from(q as i8 - 32);
            }
        }
    }
}
