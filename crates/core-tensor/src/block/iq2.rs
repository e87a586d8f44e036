//! IQ2_XXS, IQ2_XS and IQ2_S: eight weights at a time from a grid of magnitudes, with signs beside it.
//!
//! A grid entry has eight magnitudes out of 8, 25 and 43. A weight is
//! `d · (scale + ½) / 4 · magnitude`, negated where its sign bit is set, with 4-bit scales.

use super::iq_grids::{IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID};
use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// IQ2_XXS, 66 bytes, 2.0625 bits per weight.
///
/// Eight sub-blocks of 32 weights, of eight bytes each: four indices into a grid of 256 entries, then a
/// little-endian u32 with four 7-bit sign codes from bit 0 on and the scale in bits 28..32. The eighth sign
/// of a code makes the number of minus signs even.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xxs {
    /// The scale of the scales.
    pub d: F16Le,
    /// The sub-blocks: four grid indices, then signs and scale.
    pub qs: [[u8; 8]; 8],
}

impl PackedBlock<256> for BlockIq2Xxs {
    const FORMAT: BlockFormat = BlockFormat::IQ2_XXS;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (sub_blocks, _) = out.as_chunks_mut::<32>();
        for (weights, &[i0, i1, i2, i3, s0, s1, s2, s3]) in sub_blocks.iter_mut().zip(&self.qs) {
            let signs_and_scale = u32::from_le_bytes([s0, s1, s2, s3]);
            let scale = d * (0.5 + (signs_and_scale >> 28) as f32) * 0.25;
            let (octets, _) = weights.as_chunks_mut::<8>();
            for (l, (octet, index)) in octets.iter_mut().zip([i0, i1, i2, i3]).enumerate() {
                let signs = even_signs((signs_and_scale >> (7 * l)) as u8);
                place(scale, IQ2_XXS_GRID[usize::from(index)], signs, octet);
            }
        }
    }
}

/// IQ2_XS, 74 bytes, 2.3125 bits per weight.
///
/// A little-endian u16 per eight weights: the low nine bits index a grid of 512 entries, the high seven
/// are a sign code as in IQ2_XXS. Sixteen weights share a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xs {
    /// The scale of the scales.
    pub d: F16Le,
    /// Grid index and signs, little-endian u16, per eight weights.
    pub qs: [[u8; 2]; 32],
    /// Scale `i` of 16 weights: byte `i/2`, low nibble for an even `i`.
    pub scales: [u8; 8],
}

impl PackedBlock<256> for BlockIq2Xs {
    const FORMAT: BlockFormat = BlockFormat::IQ2_XS;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        for (i, (octet, &code)) in octets.iter_mut().zip(&self.qs).enumerate() {
            let code = u16::from_le_bytes(code);
            let signs = even_signs((code >> 9) as u8);
            place(nibble_scale(d, &self.scales, i), IQ2_XS_GRID[usize::from(code & 511)], signs, octet);
        }
    }
}

/// IQ2_S, 82 bytes, 2.5625 bits per weight.
///
/// Per eight weights a ten-bit index into a grid of 1024 entries and a whole byte of signs, bit `j` for
/// weight `j`. Sixteen weights share a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2S {
    /// The scale of the scales.
    pub d: F16Le,
    /// The low eight bits of the grid indices.
    pub qs: [u8; 32],
    /// The signs.
    pub signs: [u8; 32],
    /// The high two bits of index `i`: bits `2·(i%4) ..` of byte `i/4`.
    pub qh: [u8; 8],
    /// Scale `i` of 16 weights: byte `i/2`, low nibble for an even `i`.
    pub scales: [u8; 8],
}

impl PackedBlock<256> for BlockIq2S {
    const FORMAT: BlockFormat = BlockFormat::IQ2_S;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        for (i, (octet, (&low, &signs))) in octets.iter_mut().zip(self.qs.iter().zip(&self.signs)).enumerate() {
            let high = self.qh[i / 4] >> (i % 4 * 2) & 3;
            let index = usize::from(u16::from_le_bytes([low, high]));
            place(nibble_scale(d, &self.scales, i), IQ2_S_GRID[index], signs, octet);
        }
    }
}

/// The scale of the `i`-th eight weights, where sixteen share a nibble.
#[inline]
fn nibble_scale(d: f32, scales: &[u8; 8], i: usize) -> f32 {
    let scale = scales[i / 4] >> (i / 2 % 2 * 4) & 15;
    d * (0.5 + f32::from(scale)) * 0.25
}

/// Eight sign bits from the low seven bits of a code: the eighth makes their number even (`ksigns_iq2xs`).
#[inline]
pub(super) fn even_signs(code: u8) -> u8 {
    let code = code & 127;
    code | ((code.count_ones() & 1) << 7) as u8
}

/// Writes the eight signed, scaled magnitudes of a grid entry.
#[inline]
fn place(scale: f32, entry: u16, signs: u8, out: &mut [f32; 8]) {
    // The grid has no entry with the code 3.
    const MAGNITUDES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
    for (j, y) in out.iter_mut().enumerate() {
        let weight = scale * MAGNITUDES[usize::from(entry >> (2 * j) & 3)];
        *y = if signs >> j & 1 == 1 { -weight } else { weight };
    }
}
