//! What can be wrong with a file, and where.

use std::path::PathBuf;

use core_tensor::{DType, FileError, TensorError};

use crate::{MAX_DIMS, MAX_HEADER, MAX_SHARDS, TorchType};

/// Everything that reading or writing can end in. Every variant names the file or the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file's bytes could not be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes are no safetensors file or no index; says where, and what is wrong.
    #[error(transparent)]
    Malformed(#[from] Box<Malformed>),
    /// The folder has no model.
    #[error("{path}: a folder without model.safetensors or model.safetensors.index.json")]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
    /// The file has no tensor of that name.
    #[error("{path}: no tensor '{name}'")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The tensor's type is known by name and size only.
    #[error("{path}: tensor '{name}' is of type {torch_type}, which cannot be computed with yet")]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        torch_type: TorchType,
    },
    /// The tensor could not be made.
    #[error("{path}: tensor '{name}': {source}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: TensorError,
    },
    /// A tensor is in two files of a sharded model.
    #[error("{path}: tensor '{}' is in '{}', too", name.escape_debug(), other.display())]
    DuplicateTensor {
        /// The second file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The first file.
        other: PathBuf,
    },
    /// What was to be written breaks a rule of the format.
    #[error("cannot write tensor '{}': {fault}", name.escape_debug())]
    Invalid {
        /// The tensor.
        name: String,
        /// The rule.
        fault: Fault,
    },
    /// The operating system refused to write.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A fault of a file with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: at byte {offset}: {}{fault}", tensor.as_ref().map(|name| format!("tensor '{}': ", name.escape_debug())).unwrap_or_default())]
pub struct Malformed {
    /// The file.
    pub path: PathBuf,
    /// Where in the file the faulty field begins.
    pub offset: u64,
    /// The tensor, if the fault is that of one.
    pub tensor: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file is shorter than the length field.
    #[error("the file has {length} bytes, the length of a header alone takes 8 (is the file truncated?)")]
    TooShort {
        /// Bytes of the file.
        length: u64,
    },
    /// The header does not begin as JSON objects do: probably no safetensors file at all.
    #[error("not a safetensors file: the header begins with \"{}\"", found.escape_ascii())]
    Magic {
        /// The first bytes of what should be the header.
        found: Vec<u8>,
    },
    /// The header reaches past the end of the file.
    #[error("a header of {length} bytes, {remaining} are left (is the file truncated, or no safetensors file?)")]
    HeaderLength {
        /// The length that the file claims.
        length: u64,
        /// Bytes left.
        remaining: u64,
    },
    /// The header is longer than is believed.
    #[error("a header of {length} bytes (at most {MAX_HEADER} are allowed)")]
    HeaderTooLarge {
        /// The length that the file claims.
        length: u64,
    },
    /// The JSON is malformed, or not of the form that is asked for.
    #[error("{reason}")]
    Json {
        /// What the JSON parser says.
        reason: String,
    },
    /// The tensor name occurs a second time.
    #[error("the tensor name occurs twice")]
    DuplicateTensor,
    /// The type is none of the format's.
    #[error("unknown type {found:?}")]
    UnknownType {
        /// The name in the file.
        found: String,
    },
    /// Too many extents.
    #[error("{dims} dimensions (at most {MAX_DIMS} are allowed)")]
    TooManyDims {
        /// How many.
        dims: usize,
    },
    /// The extents multiply past what can be addressed, or make no whole bytes.
    #[error("a {torch_type} tensor of shape {shape:?} has no size in bytes that can be addressed")]
    Size {
        /// The extents.
        shape: Vec<usize>,
        /// The type.
        torch_type: TorchType,
    },
    /// Offsets and shape disagree.
    #[error("{torch_type} of shape {shape:?} takes {expected} bytes, data_offsets [{begin}, {end}] say otherwise")]
    Length {
        /// The extents.
        shape: Vec<usize>,
        /// The type.
        torch_type: TorchType,
        /// Bytes that they take.
        expected: usize,
        /// First offset.
        begin: usize,
        /// Second offset.
        end: usize,
    },
    /// The tensor's data is not inside the file.
    #[error("its data ends at {end}, the file has {data} bytes of data (is the file truncated?)")]
    OutOfFile {
        /// Where the data ends.
        end: usize,
        /// Bytes of the data section.
        data: usize,
    },
    /// Two tensors share bytes.
    #[error("its data overlaps that of tensor '{}'", other.escape_debug())]
    Overlap {
        /// The tensor that begins before.
        other: String,
    },
    /// Bytes between tensors that belong to none.
    #[error("its data begins at {begin}, that of the tensor before ends at {end}")]
    Gap {
        /// Where it begins.
        begin: usize,
        /// Where it should begin.
        end: usize,
    },
    /// Bytes behind the last tensor.
    #[error("{extra} bytes behind the last tensor")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The index names a file that does not lie beside it.
    #[error("the file {found:?} is not a name beside the index")]
    ShardName {
        /// The name in the index.
        found: String,
    },
    /// The index names too many files.
    #[error("more than {MAX_SHARDS} files")]
    TooManyShards,
    /// The index names a tensor that its file does not have.
    #[error("the index says that it is in '{}', which has no such tensor", file.escape_debug())]
    NotInShard {
        /// The file.
        file: String,
    },
    /// The format has no such type; only when writing.
    #[error("safetensors has no type for {dtype}")]
    NoType {
        /// The dtype.
        dtype: DType,
    },
    /// The name is kept for the metadata; only when writing.
    #[error("the name is kept for the metadata")]
    ReservedName,
}

impl TorchError {
    /// The place and fault, if the file's bytes are at fault.
    #[must_use]
    pub fn malformed(&self) -> Option<&Malformed> {
        match self {
            TorchError::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }
}
