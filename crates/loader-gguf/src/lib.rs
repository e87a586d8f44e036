//! Reads and writes GGUF, the model format of ggml and llama.cpp.
//!
#![doc = include_str!("../README.md")]
//!
//! # Guide
//!
//! [`Gguf::open`] maps a file, checks all of it but the weights themselves, and gives
//!
//! - **metadata**: [`Gguf::get`] for whatever is there, [`Gguf::value`] and [`Gguf::optional`] for a Rust type (integers of
//!   every width are converted where they fit), [`Gguf::str`], [`Gguf::u32`] and the like in short, [`Gguf::strings`] and
//!   [`Gguf::array`] for arrays, [`Gguf::per_layer`] for what may be one number or one per layer. Errors name file, key, expected and
//!   found type;
//! - **tensors**: [`Gguf::tensors`] lists them ([`TensorInfo`]), [`Gguf::tensor`] gives one as a [`core_tensor::Tensor`] whose bytes
//!   stay in the file. `Gguf` is a [`core_tensor::WeightSource`].
//!
//! ```no_run
//! # use loader_gguf::{FileAccess, Gguf};
//! let model = Gguf::open("model.gguf", FileAccess::Map)?;
//! let architecture = model.str("general.architecture")?;
//! let layers = model.u32(&format!("{architecture}.block_count"))?;
//! let theta = model.optional::<f32>(&format!("{architecture}.rope.freq_base"))?.unwrap_or(10_000.0);
//! for token in model.strings("tokenizer.ggml.tokens")? {
//!     println!("{}", token?);
//! }
//! # Ok::<(), loader_gguf::GgufError>(())
//! ```
//!
//! # The format
//!
//! All numbers are little-endian; nothing is aligned except tensor data. A *string* is a u64 length and as many bytes.
//!
//! | field | type |
//! | --- | --- |
//! | magic | `GGUF` |
//! | version | u32: 2 or 3 (the same for little-endian files) |
//! | number of tensors | u64 |
//! | number of metadata entries | u64 |
//! | each entry | key: string; type: u32 ([`ValueType`]); value |
//! | each tensor | name: string; number of extents: u32; extents: u64 each, **innermost first**; type: u32 ([`GgmlType`]); offset: u64 |
//! | padding | to a multiple of the alignment |
//! | data | each tensor at its offset from here, a multiple of the alignment |
//!
//! An array value is its element type (u32), its length (u64) and the elements; elements may be arrays. The alignment is the value
//! of `general.alignment`, 32 where there is none. Sources: `docs/gguf.md`, `ggml.h` and `gguf.cpp` of ggml.
//!
//! Where the description leaves room, this crate decides:
//!
//! - Shapes are outermost extent first everywhere, as in the rest of the project: a linear layer is `[out, in]`. No extents
//!   at all make one element; an extent of zero is refused, as are more than [`MAX_DIMS`].
//! - Tensors may lie in any order and with gaps, but not overlap, and rows must be whole blocks.
//! - Names are UTF-8 of 1 to [`MAX_NAME_LEN`] bytes, and unique. String values may be any bytes; text is checked when asked for.
//! - A bool is 0 or 1. Arrays nest up to [`MAX_NESTING`] deep.
//! - The alignment is a power of two up to [`MAX_ALIGNMENT`].
//! - Split models (`name-00001-of-00003.gguf`, keys `split.no`, `split.count`, `split.tensors.count`) open as one, from any of
//!   their files; metadata is that of the first.

#![forbid(unsafe_code)]

mod array_buf;
mod behind;
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
pub use core_tensor::FileAccess;
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
