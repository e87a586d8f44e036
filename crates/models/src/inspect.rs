//! What is in a model file, for people and programs.

use std::path::PathBuf;

use loader_gguf::Gguf;
use serde::Serialize;

use crate::llama::KvDType;

/// A summary of a GGUF file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file (of a split model: the first).
    pub path: PathBuf,
    /// Files of a split model; 1 otherwise.
    pub files: usize,
    /// Version of the format.
    pub gguf_version: u32,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// Whether a pipeline here runs it; else why not.
    pub unsupported: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Metadata in the file's order.
    pub metadata: Vec<MetadataEntry>,
    /// Tensors in the file's order.
    pub tensors: Vec<TensorEntry>,
    /// Tensors, elements and bytes per type.
    pub types: Vec<TypeEntry>,
    /// Estimated memory for some context lengths; empty if the architecture is not supported.
    pub memory: Vec<ContextMemory>,
}

/// A metadata entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetadataEntry {
    /// The key.
    pub key: String,
    /// Type, with the element type and count of an array (`string[49152]`).
    pub value_type: String,
    /// The value, shortened for long strings and arrays.
    pub value: String,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorEntry {
    /// The name.
    pub name: String,
    /// The type, as ggml names it.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// What there is of one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeEntry {
    /// The type, as ggml names it.
    #[serde(rename = "type")]
    pub ggml_type: String,
    /// Tensors.
    pub tensors: usize,
    /// Elements.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Estimated memory at a context length: one sequence, steps of up to 512 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ContextMemory {
    /// Positions.
    pub context: usize,
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of the KV cache.
    pub states: u64,
    /// Bytes of intermediate values.
    pub arena: u64,
    /// The sum.
    pub total: u64,
}

/// Summarizes an opened file; `kv_dtype` is what the memory estimate counts with. Never fails: what is wrong with the file as a model
/// is in [`Inspection::unsupported`].
#[must_use]
pub fn inspect(gguf: &Gguf, kv_dtype: KvDType) -> Inspection {
    let _ = (gguf, kv_dtype);
    todo!()
}
