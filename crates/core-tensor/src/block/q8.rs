//! Q8_0, Q8_1 and Q8_K: signed bytes, and the encoder of Q8_0.
//!
//! Files hold Q8_0. Q8_1 and Q8_K are the forms that ggml quantizes activations to; they carry sums of
//! quants, which the decode does not need.

use super::{BlockError, F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Q8_0, 34 bytes, 8.5 bits per weight: 32 weights `w = d · q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale.
    pub d: F16Le,
    /// The quants. The encoder keeps to −127..=127; a file may hold −128.
    pub qs: [i8; 32],
}

impl BlockQ8_0 {
    /// Quantizes 32 values by the rule of [`encode_q8_0`].
    #[must_use]
    pub fn encode(values: &[f32; 32]) -> Self {
        // `f32::max` passes over a NaN, so that the scale is that of the other values.
        let amax = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let d = amax / 127.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        // `as` saturates and sends NaN to 0: no value is out of range here.
        Self { d: F16Le::from_f32(d), qs: values.map(|v| (v * id).round() as i8) }
    }
}

impl PackedBlock<32> for BlockQ8_0 {
    const FORMAT: BlockFormat = BlockFormat::Q8_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = f32::from(q) * d;
        }
    }
}

/// Quantizes f32 values (row-major, whole blocks of 32) to the bytes of Q8_0 blocks.
///
/// The rule is that of ggml's `quantize_row_q8_0_ref`, to the bit. With `amax` the largest absolute
/// value of the block, all in f32:
///
/// - `d = amax / 127`, `id = 1 / d`, or 0 where `d` is 0;
/// - the quant is `v · id`, rounded to the nearest integer with **halves away from zero** (`roundf`);
/// - the stored scale is `d` rounded to f16 (ties to even), after the quants were made with the exact one.
///
/// The error of a value is at most `d / 2`, plus what the rounding of `d` adds (`amax / 2048`). Where `d`
/// is subnormal in f16 (`amax` below 0.008) the scale loses precision; where it is beyond f16
/// (`amax` above 8.3 million) it is infinite.
///
/// Input that is not finite does not panic: a NaN becomes the quant 0, an infinity makes the scale
/// infinite and the quants 0, which decodes to NaN.
///
/// # Errors
/// When `values` is no whole number of blocks or `bytes` is not 34 bytes per block.
pub fn encode_q8_0(values: &[f32], bytes: &mut [u8]) -> Result<(), BlockError> {
    let mismatch = BlockError::Length { format: BlockFormat::Q8_0, bytes: bytes.len(), elements: values.len() };
    let (rows, rest) = values.as_chunks::<32>();
    let Ok(blocks) = bytemuck::try_cast_slice_mut::<u8, BlockQ8_0>(bytes) else { return Err(mismatch) };
    if !rest.is_empty() || rows.len() != blocks.len() {
        return Err(mismatch);
    }
    for (block, row) in blocks.iter_mut().zip(rows) {
        *block = BlockQ8_0::encode(row);
    }
    Ok(())
}

/// Q8_1, 36 bytes: 32 weights `w = d · q`, and the sum that Q4_1 and Q5_1 dot products need.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_1 {
    /// The scale.
    pub d: F16Le,
    /// `d · Σ q`; not needed to decode.
    pub s: F16Le,
    /// The quants.
    pub qs: [i8; 32],
}

impl PackedBlock<32> for BlockQ8_1 {
    const FORMAT: BlockFormat = BlockFormat::Q8_1;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = f32::from(q) * d;
        }
    }
}

/// Q8_K, 292 bytes: 256 weights `w = d · q` with an f32 scale, and the sums that K-quant dot products need.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8K {
    /// The scale, a little-endian f32.
    pub d: [u8; 4],
    /// The quants.
    pub qs: [i8; 256],
    /// Sums of 16 consecutive quants, little-endian i16; not needed to decode.
    pub bsums: [[u8; 2]; 16],
}

impl PackedBlock<256> for BlockQ8K {
    const FORMAT: BlockFormat = BlockFormat::Q8_K;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = f32::from_le_bytes(self.d);
        for (y, &q) in out.iter_mut().zip(&self.qs) {
            *y = f32::from(q) * d;
        }
    }
}
