//! IQ1_S and IQ1_M: eight weights at a time from a grid of −1, 0 and 1, shifted by an eighth.
//!
//! Both index the same grid of 2048 entries with eleven bits. A weight is
//! `d · (2 · scale + 1) · (g ± ⅛)` with 3-bit scales.

use super::iq_grids::IQ1_GRID;
use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// What the grid values are shifted by.
const DELTA: f32 = 0.125;

/// IQ1_S, 50 bytes, 1.5625 bits per weight.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1S {
    /// The scale of the scales.
    pub d: F16Le,
    /// The low eight bits of the grid index, per eight weights.
    pub qs: [u8; 32],
    /// Per 32 weights a little-endian u16: the high three bits of the four indices from bit 0 on, the
    /// scale in bits 12..15, and in bit 15 whether the shift is −⅛.
    pub qh: [[u8; 2]; 8],
}

impl PackedBlock<256> for BlockIq1S {
    const FORMAT: BlockFormat = BlockFormat::IQ1_S;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        for (i, (octet, &low)) in octets.iter_mut().zip(&self.qs).enumerate() {
            let high_bits = u16::from_le_bytes(self.qh[i / 4]);
            let scale = d * f32::from(2 * (high_bits >> 12 & 7) + 1);
            let delta = if high_bits >> 15 == 1 { -DELTA } else { DELTA };
            place(scale, low, (high_bits >> (i % 4 * 3)) as u8, delta, octet);
        }
    }
}

/// IQ1_M, 56 bytes, 1.75 bits per weight.
///
/// The f16 scale of the scales has no field of its own: its four nibbles, low first, are the top nibbles of
/// the four u16 of `scales`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1M {
    /// The low eight bits of the grid index, per eight weights.
    pub qs: [u8; 32],
    /// Per eight weights a nibble, low first: the high three bits of the index, and in bit 3 whether the
    /// shift is −⅛.
    pub qh: [u8; 16],
    /// Four little-endian u16: each has the scales of four times 16 weights from bit 0 on, and a nibble of
    /// the f16 scale in bits 12..16.
    pub scales: [[u8; 2]; 4],
}

impl BlockIq1M {
    /// The scale of the scales.
    #[must_use]
    pub fn d(&self) -> F16Le {
        let mut bits = 0;
        for (i, &scales) in self.scales.iter().enumerate() {
            bits |= u16::from_le_bytes(scales) >> 12 << (4 * i);
        }
        F16Le(bits.to_le_bytes())
    }
}

impl PackedBlock<256> for BlockIq1M {
    const FORMAT: BlockFormat = BlockFormat::IQ1_M;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d().to_f32();
        let (octets, _) = out.as_chunks_mut::<8>();
        for (i, (octet, &low)) in octets.iter_mut().zip(&self.qs).enumerate() {
            let scales = u16::from_le_bytes(self.scales[i / 8]);
            let scale = d * f32::from(2 * (scales >> (i / 2 % 4 * 3) & 7) + 1);
            let high = self.qh[i / 2] >> (i % 2 * 4);
            let delta = if high & 8 == 8 { -DELTA } else { DELTA };
            place(scale, low, high, delta, octet);
        }
    }
}

/// Writes the eight shifted, scaled values of the grid entry whose index has the low byte `low` and the
/// high bits `high & 7`.
#[inline]
fn place(scale: f32, low: u8, high: u8, delta: f32, out: &mut [f32; 8]) {
    let entry = IQ1_GRID[usize::from(u16::from_le_bytes([low, high & 7]))];
    for (j, y) in out.iter_mut().enumerate() {
        let grid = (entry >> (2 * j) & 3) as i8 - 1;
        *y = scale * (f32::from(grid) + delta);
    }
}
