//! IQ3_XXS and IQ3_S: four weights at a time from a grid of magnitudes, with signs beside it.

use super::iq_grids::{IQ3_S_GRID, IQ3_XXS_GRID};
use super::iq2::even_signs;
use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// IQ3_XXS, 98 bytes, 3.0625 bits per weight: `w = ± d · (scale + ½) / 2 · magnitude`.
///
/// One index per four weights into a grid of 256 entries. The magnitudes are 4, 12, 20, … 52 and 62.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3Xxs {
    /// The scale of the scales.
    pub d: F16Le,
    /// The grid indices.
    pub qs: [u8; 64],
    /// Per 32 weights a little-endian u32: four 7-bit sign codes (as in IQ2_XXS) from bit 0 on, each for
    /// eight weights, and a 4-bit scale in bits 28..32.
    pub signs_and_scales: [[u8; 4]; 8],
}

impl PackedBlock<256> for BlockIq3Xxs {
    const FORMAT: BlockFormat = BlockFormat::IQ3_XXS;

    fn decode(&self, out: &mut [f32; 256]) {
        const MAGNITUDES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
        let d = self.d.to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        let (indices, _) = self.qs.as_chunks::<2>();
        for (i, (octet, pair)) in octets.iter_mut().zip(indices).enumerate() {
            let signs_and_scale = u32::from_le_bytes(self.signs_and_scales[i / 4]);
            let scale = d * (0.5 + (signs_and_scale >> 28) as f32) * 0.5;
            let signs = even_signs((signs_and_scale >> (i % 4 * 7)) as u8);
            let entries = pair.map(|index| IQ3_XXS_GRID[usize::from(index)]);
            place(scale, entries, &MAGNITUDES, signs, octet);
        }
    }
}

/// IQ3_S, 110 bytes, 3.4375 bits per weight: `w = ± d · (1 + 2 · scale) · magnitude`.
///
/// One nine-bit index per four weights into a grid of 512 entries. The magnitudes are 1, 3, 5, … 15.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3S {
    /// The scale of the scales.
    pub d: F16Le,
    /// The low eight bits of the grid indices.
    pub qs: [u8; 64],
    /// The ninth bit of index `i`: bit `i%8` of byte `i/8`.
    pub qh: [u8; 8],
    /// A sign bit per weight, in order.
    pub signs: [u8; 32],
    /// The 4-bit scale `i` of 32 weights: byte `i/2`, low nibble for an even `i`.
    pub scales: [u8; 4],
}

impl PackedBlock<256> for BlockIq3S {
    const FORMAT: BlockFormat = BlockFormat::IQ3_S;

    fn decode(&self, out: &mut [f32; 256]) {
        const MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
        let d = self.d.to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        let (indices, _) = self.qs.as_chunks::<2>();
        for (i, ((octet, pair), &signs)) in octets.iter_mut().zip(indices).zip(&self.signs).enumerate() {
            let scale = d * f32::from(1 + 2 * (self.scales[i / 8] >> (i / 4 % 2 * 4) & 15));
            let ninth_bits = self.qh[i / 4] >> (i % 4 * 2);
            let entries = [(pair[0], ninth_bits & 1), (pair[1], ninth_bits >> 1 & 1)]
                .map(|(low, high)| IQ3_S_GRID[usize::from(u16::from_le_bytes([low, high]))]);
            place(scale, entries, &MAGNITUDES, signs, octet);
        }
    }
}

/// Writes the eight signed, scaled magnitudes of two grid entries.
#[inline]
fn place(scale: f32, entries: [u16; 2], magnitudes: &[f32; 8], signs: u8, out: &mut [f32; 8]) {
    let both = u32::from(entries[0]) | u32::from(entries[1]) << 16;
    for (j, y) in out.iter_mut().enumerate() {
        let weight = scale * magnitudes[(both >> (4 * j) & 7) as usize];
        *y = if signs >> j & 1 == 1 { -weight } else { weight };
    }
}
