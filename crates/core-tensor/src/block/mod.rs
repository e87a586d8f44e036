//! Block formats: packed layouts and their scalar decode.
//!
//! A row of quantized weights is a sequence of blocks. Each block is one packed struct of this module
//! ([`BlockQ4_0`], [`BlockQ4K`], …) whose field order, bit order and size are ggml's (`ggml-common.h`).
//! All fields are bytes or arrays of bytes, so a block needs no alignment and a `&[u8]` from a mapped
//! file can be viewed as blocks without a copy (`bytemuck::try_cast_slice`). Multi-byte fields are
//! little-endian on every machine.
//!
//! [`decode`] is the meaning of a format: plain loops, in the order of operations of ggml's scalar
//! `dequantize_row_*` (`ggml-quants.c`), without fused multiply-add, so that the results are the same
//! bits. Encoding weights is not done here; the one encoder, [`encode_q8_0`], is what inference itself
//! needs, for the KV cache and for activations.

mod fp4;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod iq_grids;
mod k_quants;
mod q4;
mod q5;
mod q8;
mod ternary;

pub use fp4::{BlockMxfp4, BlockNvfp4, E2M1_DOUBLED, e8m0_half, ue4m3_half};
pub use iq1::{BlockIq1M, BlockIq1S};
pub use iq2::{BlockIq2S, BlockIq2Xs, BlockIq2Xxs};
pub use iq3::{BlockIq3S, BlockIq3Xxs};
pub use iq4::{BlockIq4Nl, BlockIq4Xs, IQ4_VALUES};
pub use k_quants::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, unpack_scales_and_mins};
pub use q4::{BlockQ4_0, BlockQ4_1};
pub use q5::{BlockQ5_0, BlockQ5_1};
pub use q8::{BlockQ8_0, BlockQ8_1, BlockQ8K, encode_q8_0};
pub use ternary::{BlockTq1_0, BlockTq2_0};

use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Why a run of blocks could not be decoded or encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The format has no decoder yet.
    #[error("no decoder for block format {0} yet")]
    Unsupported(BlockFormat),
    /// The byte count and the element count do not describe the same number of whole blocks.
    #[error("{bytes} bytes are not {elements} weights of {format}")]
    Length {
        /// The format.
        format: BlockFormat,
        /// Bytes given.
        bytes: usize,
        /// Elements asked for.
        elements: usize,
    },
}

/// A packed block of `LEN` weights.
pub trait PackedBlock<const LEN: usize>: Pod {
    /// The format that this struct is the layout of.
    const FORMAT: BlockFormat;

    /// The block's weights, in row order. Total: every bit pattern decodes to something, which is not
    /// finite where the scales are not.
    fn decode(&self, out: &mut [f32; LEN]);
}

/// An f16 as it lies in a block: two bytes, little-endian, of any alignment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F16Le(pub [u8; 2]);

impl F16Le {
    /// The value, exactly.
    #[inline]
    #[must_use]
    pub fn to_f32(self) -> f32 {
        half::f16::from_le_bytes(self.0).to_f32()
    }

    /// The nearest f16, ties to even; beyond the range of f16 an infinity.
    #[inline]
    #[must_use]
    pub fn from_f32(value: f32) -> Self {
        Self(half::f16::from_f32(value).to_le_bytes())
    }
}

/// Whether [`decode`] knows the format.
#[must_use]
pub const fn can_decode(format: BlockFormat) -> bool {
    use BlockFormat::*;
    // Without a wildcard, so that a new format has to be answered for here.
    match format {
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q8_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | Q8_K | IQ2_XXS | IQ2_XS
        | IQ3_XXS | IQ1_S | IQ4_NL | IQ3_S | IQ2_S | IQ4_XS | IQ1_M | TQ1_0 | TQ2_0 | MXFP4 | NVFP4 => true,
    }
}

/// Decodes whole blocks into f32 (row-major, as stored).
///
/// # Errors
/// When the lengths do not match or the format has no decoder.
pub fn decode(format: BlockFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    use BlockFormat::*;
    match format {
        Q4_0 => decode_as::<BlockQ4_0, _>(bytes, out),
        Q4_1 => decode_as::<BlockQ4_1, _>(bytes, out),
        Q5_0 => decode_as::<BlockQ5_0, _>(bytes, out),
        Q5_1 => decode_as::<BlockQ5_1, _>(bytes, out),
        Q8_0 => decode_as::<BlockQ8_0, _>(bytes, out),
        Q8_1 => decode_as::<BlockQ8_1, _>(bytes, out),
        Q2_K => decode_as::<BlockQ2K, _>(bytes, out),
        Q3_K => decode_as::<BlockQ3K, _>(bytes, out),
        Q4_K => decode_as::<BlockQ4K, _>(bytes, out),
        Q5_K => decode_as::<BlockQ5K, _>(bytes, out),
        Q6_K => decode_as::<BlockQ6K, _>(bytes, out),
        Q8_K => decode_as::<BlockQ8K, _>(bytes, out),
        IQ2_XXS => decode_as::<BlockIq2Xxs, _>(bytes, out),
        IQ2_XS => decode_as::<BlockIq2Xs, _>(bytes, out),
        IQ3_XXS => decode_as::<BlockIq3Xxs, _>(bytes, out),
        IQ1_S => decode_as::<BlockIq1S, _>(bytes, out),
        IQ4_NL => decode_as::<BlockIq4Nl, _>(bytes, out),
        IQ3_S => decode_as::<BlockIq3S, _>(bytes, out),
        IQ2_S => decode_as::<BlockIq2S, _>(bytes, out),
        IQ4_XS => decode_as::<BlockIq4Xs, _>(bytes, out),
        IQ1_M => decode_as::<BlockIq1M, _>(bytes, out),
        TQ1_0 => decode_as::<BlockTq1_0, _>(bytes, out),
        TQ2_0 => decode_as::<BlockTq2_0, _>(bytes, out),
        MXFP4 => decode_as::<BlockMxfp4, _>(bytes, out),
        NVFP4 => decode_as::<BlockNvfp4, _>(bytes, out),
    }
}

/// Views bytes and elements as the same number of whole blocks.
fn decode_as<B: PackedBlock<LEN>, const LEN: usize>(bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    const {
        assert!(size_of::<B>() == B::FORMAT.block_bytes(), "the struct has the bytes that the format table says");
        assert!(align_of::<B>() == 1, "a block can lie anywhere in a mapped file");
        assert!(LEN == B::FORMAT.block_len(), "the struct has the weights that the format table says");
    }
    let mismatch = BlockError::Length { format: B::FORMAT, bytes: bytes.len(), elements: out.len() };
    let Ok(blocks) = bytemuck::try_cast_slice::<u8, B>(bytes) else { return Err(mismatch) };
    let (rows, rest) = out.as_chunks_mut::<LEN>();
    if !rest.is_empty() || rows.len() != blocks.len() {
        return Err(mismatch);
    }
    for (block, row) in blocks.iter().zip(rows) {
        block.decode(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the struct says of itself, beside what the format table says.
    fn assert_agrees<B: PackedBlock<LEN>, const LEN: usize>(format: BlockFormat) {
        assert_eq!(B::FORMAT, format);
        assert_eq!((LEN, size_of::<B>()), (format.block_len(), format.block_bytes()), "{format}");
        assert_eq!(align_of::<B>(), 1, "{format}");
    }

    #[test]
    fn packed_structs_have_the_sizes_of_the_format_table() {
        use BlockFormat::*;
        assert_agrees::<BlockQ4_0, _>(Q4_0);
        assert_agrees::<BlockQ4_1, _>(Q4_1);
        assert_agrees::<BlockQ5_0, _>(Q5_0);
        assert_agrees::<BlockQ5_1, _>(Q5_1);
        assert_agrees::<BlockQ8_0, _>(Q8_0);
        assert_agrees::<BlockQ8_1, _>(Q8_1);
        assert_agrees::<BlockQ2K, _>(Q2_K);
        assert_agrees::<BlockQ3K, _>(Q3_K);
        assert_agrees::<BlockQ4K, _>(Q4_K);
        assert_agrees::<BlockQ5K, _>(Q5_K);
        assert_agrees::<BlockQ6K, _>(Q6_K);
        assert_agrees::<BlockQ8K, _>(Q8_K);
        assert_agrees::<BlockIq2Xxs, _>(IQ2_XXS);
        assert_agrees::<BlockIq2Xs, _>(IQ2_XS);
        assert_agrees::<BlockIq3Xxs, _>(IQ3_XXS);
        assert_agrees::<BlockIq1S, _>(IQ1_S);
        assert_agrees::<BlockIq4Nl, _>(IQ4_NL);
        assert_agrees::<BlockIq3S, _>(IQ3_S);
        assert_agrees::<BlockIq2S, _>(IQ2_S);
        assert_agrees::<BlockIq4Xs, _>(IQ4_XS);
        assert_agrees::<BlockIq1M, _>(IQ1_M);
        assert_agrees::<BlockTq1_0, _>(TQ1_0);
        assert_agrees::<BlockTq2_0, _>(TQ2_0);
        assert_agrees::<BlockMxfp4, _>(MXFP4);
        assert_agrees::<BlockNvfp4, _>(NVFP4);
    }

    #[test]
    fn grids_have_an_entry_for_every_index_that_a_block_can_hold() {
        assert_eq!(iq_grids::IQ2_XXS_GRID.len(), 1 << 8);
        assert_eq!(iq_grids::IQ2_XS_GRID.len(), 1 << 9);
        assert_eq!(iq_grids::IQ2_S_GRID.len(), 1 << 10);
        assert_eq!(iq_grids::IQ3_XXS_GRID.len(), 1 << 8);
        assert_eq!(iq_grids::IQ3_S_GRID.len(), 1 << 9);
        assert_eq!(iq_grids::IQ1_GRID.len(), 1 << 11);
    }
}
