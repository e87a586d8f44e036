//! Reads and writes GGUF, the model format of ggml and llama.cpp.

#![forbid(unsafe_code)]

mod array_buf;
mod cursor;
mod error;
mod ggml_type;
mod gguf;
mod shard;
mod split;
mod summary;
mod value;
mod writer;

pub use array_buf::ArrayBuf;
pub use error::{Fault, GgufError, Malformed, SplitFault, Subject};
pub use ggml_type::GgmlType;
pub use gguf::{ByteStrings, Gguf, Strings, Version};
pub use shard::TensorInfo;
pub use split::shard_path;
pub use summary::Summary;
pub use value::{Array, Elements, FromValue, Value, ValueType};
pub use writer::GgufWriter;

/// Extents of a tensor at most (ggml's `GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;
/// Bytes of a key or tensor name at most. (ggml itself stops at 63 for tensors; other writers do not.)
pub const MAX_NAME_LEN: usize = 65_535;
/// Arrays within arrays at most, the outermost counted.
pub const MAX_NESTING: usize = 4;
/// Alignment of tensor data where a file says nothing.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is believed: 16 MiB.
pub const MAX_ALIGNMENT: u64 = 1 << 24;
/// The key of the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
