//! Reads and writes safetensors.
//!
#![doc = include_str!("../README.md")]
//!
//! # The format
//!
//! | field | type |
//! | --- | --- |
//! | length of the header | u64, little-endian |
//! | header | JSON object, UTF-8; may end in spaces |
//! | data | the bytes of all tensors |
//!
//! Each entry of the header is `"name": {"dtype": "F32", "shape": [out, in], "data_offsets": [begin, end]}`, with offsets from the start of the data;
//! `__metadata__` maps strings to strings. Source: the format's description in the repository of safetensors.
//!
//! What the description asks for is checked: names are unique, the header begins with `{` and has at most [`MAX_HEADER`] bytes, shapes and offsets agree,
//! and the tensors cover the data without gaps, overlaps or anything behind. An extent of zero is allowed, as there.
//!
//! A sharded model has an index, `{"weight_map": {"name": "model-00001-of-00002.safetensors", …}}`. The files must lie beside the index: a
//! name with a folder in it is refused.

#![forbid(unsafe_code)]

mod dtype;
mod error;
mod header;
mod index;
mod safetensors;
mod writer;

pub use core_tensor::FileAccess;
pub use dtype::TorchType;
pub use error::{Fault, Malformed, TorchError};
pub use header::TensorInfo;
pub use safetensors::SafeTensors;
pub use writer::SafeTensorsWriter;

/// Bytes of a header at most: 100 MB, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;
/// Extents of a tensor at most.
pub const MAX_DIMS: usize = 64;
/// Files of a sharded model at most.
pub const MAX_SHARDS: usize = 4096;
