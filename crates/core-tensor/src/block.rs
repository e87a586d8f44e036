//! Block formats: packed layouts and their scalar decode.

use crate::BlockFormat;

/// Why a run of blocks could not be decoded.
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

/// Decodes whole blocks into f32 (row-major, as stored).
///
/// # Errors
/// When the lengths do not match or the format has no decoder.
pub fn decode(format: BlockFormat, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    let _ = (bytes, out);
    Err(BlockError::Unsupported(format))
}
