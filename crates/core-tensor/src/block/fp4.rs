//! MXFP4 and NVFP4: 4-bit floats (E2M1) with 8-bit float scales.
//!
//! As in ggml, the table of E2M1 values is doubled, to be whole numbers, and the scales are halved. That
//! is the only difference from the OCP Microscaling specification v1.0 (MXFP4) and from NVIDIA's NVFP4;
//! the order of nibbles is ggml's.

use super::PackedBlock;
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Twice the value of each E2M1 code: sign, two exponent bits (bias 1), one mantissa bit.
///
/// Code 8, minus zero, decodes to plus zero.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of an E8M0 scale: `2^(e − 128)`, exact for every `e` (0 and 1 give subnormals).
///
/// Code 255, NaN in the OCP specification, is `2^127` here as in ggml.
#[inline]
#[must_use]
pub const fn e8m0_half(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((e as u32 - 1) << 23),
    }
}

/// Half of an unsigned E4M3 scale (exponent bias 7; the top bit is ignored).
///
/// Code 0x7F, NaN in the OCP specification, is 0 here as in ggml; 0xFF is not, and gives 240.
#[inline]
#[must_use]
pub fn ue4m3_half(code: u8) -> f32 {
    let exponent = code >> 3 & 15;
    let mantissa = f32::from(code & 7);
    match (code, exponent) {
        (0x7F, _) => 0.0,
        // Subnormal: mantissa · 2^−9, halved.
        (_, 0) => mantissa * f32::from_bits((127 - 10) << 23),
        // (1 + mantissa / 8) · 2^(exponent − 7), halved.
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((127 - 8 + u32::from(exponent)) << 23),
    }
}

/// MXFP4, 17 bytes, 4.25 bits per weight: 32 weights `w = 2^(e − 127) · E2M1(q)`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// The scale, E8M0: see [`e8m0_half`].
    pub e: u8,
    /// The E2M1 codes, two per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockMxfp4 {
    const FORMAT: BlockFormat = BlockFormat::MXFP4;

    fn decode(&self, out: &mut [f32; 32]) {
        look_up(e8m0_half(self.e), &self.qs, out);
    }
}

/// NVFP4, 36 bytes, 4.5 bits per weight: four sub-blocks of 16 weights `w = UE4M3(d) · E2M1(q)`.
///
/// The per-tensor f32 scale that NVFP4 checkpoints have is a tensor of its own in GGUF, no part of the block.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockNvfp4 {
    /// The scales of the sub-blocks, unsigned E4M3: see [`ue4m3_half`].
    pub d: [u8; 4],
    /// The E2M1 codes, eight bytes per sub-block: its weight `j` low, its weight `j + 8` high.
    pub qs: [u8; 32],
}

impl PackedBlock<64> for BlockNvfp4 {
    const FORMAT: BlockFormat = BlockFormat::NVFP4;

    fn decode(&self, out: &mut [f32; 64]) {
        let (sub_blocks, _) = out.as_chunks_mut::<16>();
        let (bytes, _) = self.qs.as_chunks::<8>();
        for ((weights, qs), &d) in sub_blocks.iter_mut().zip(bytes).zip(&self.d) {
            look_up(ue4m3_half(d), qs, weights);
        }
    }
}

/// Weights of one scale: the low nibbles, then the high ones.
#[inline]
fn look_up<const BYTES: usize, const WEIGHTS: usize>(d: f32, qs: &[u8; BYTES], out: &mut [f32; WEIGHTS]) {
    const { assert!(WEIGHTS == 2 * BYTES) };
    let (low, high) = out.split_at_mut(BYTES);
    for ((y0, y1), &q) in low.iter_mut().zip(high).zip(qs) {
        *y0 = f32::from(E2M1_DOUBLED[usize::from(q & 15)]) * d;
        *y1 = f32::from(E2M1_DOUBLED[usize::from(q >> 4)]) * d;
    }
}
