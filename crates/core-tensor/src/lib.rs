//! Under construction.

pub mod block;
mod dtype;
mod file;
mod source;
mod storage;
mod tensor;

pub use dtype::{BlockFormat, DType};
pub use file::{FileAccess, FileBytes, FileError};
pub use source::WeightSource;
pub use storage::AlignedBytes;
pub use tensor::{Element, Tensor, TensorError, byte_len, decode_f32};
