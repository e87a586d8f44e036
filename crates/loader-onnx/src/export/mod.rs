//! Writes graphs as ONNX models.
//!
//! Standard operators of [`OPSET`] are written: what ONNX lacks (attention over tensors, gated activations, root-mean-square normalization, products with a
//! transposed operand) is spelled out in those, so that any runtime takes the file. Weights are written as the graph has them, expressions evaluated.
//! Products with and rows of weights in blocks (`Q4_0`, `Q8_0`) become onnxruntime's `MatMulNBits` and `GatherBlockQuantized`, bit for bit the same numbers, with
//! their scales in f16 as they are. No more than a part of a weight is in memory at a time where weights have a file of their own.

mod content;
mod dims;
mod elementwise;
mod file;
mod microsoft;
mod nodes;
mod operators;

use std::path::{Path, PathBuf};

use core_tensor::{DType, Graph, WeightError};

pub use file::EXTERNAL_ABOVE;

/// The version of ONNX's operators that is written.
pub const OPSET: i64 = 21;

/// The version of the file format that is written.
const IR_VERSION: i64 = 10;

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A node has no counterpart in ONNX.
    #[error("node {node:?} ({op}) cannot be written: {reason}")]
    Node {
        /// The node.
        node: String,
        /// Its operator.
        op: &'static str,
        /// Why.
        reason: String,
    },
    /// A value's dtype is none of ONNX's.
    #[error("{value:?} is {dtype}, which ONNX has not")]
    DType {
        /// The value.
        value: String,
        /// Its dtype.
        dtype: DType,
    },
    /// A weight cannot be read.
    #[error("weight {name:?}: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        source: WeightError,
    },
    /// The file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes a graph as an ONNX model. Above [`EXTERNAL_ABOVE`] bytes of weights, these go to a file beside it, `<name>.data`. Files are written under other names
/// first and then renamed: what was there stays whole until the new one is.
///
/// # Errors
/// When an operator has no counterpart in ONNX (states, custom operators), a weight is of a block format other than `Q4_0` and `Q8_0`, or cannot be read, or the files cannot be written.
pub fn write(graph: &Graph, path: &Path) -> Result<(), ExportError> {
    write_with(graph, path, EXTERNAL_ABOVE)
}

/// The same with another limit of weights within the model's file.
///
/// # Errors
/// As [`write()`].
pub fn write_with(graph: &Graph, path: &Path, external_above: u64) -> Result<(), ExportError> {
    file::write(graph, path, external_above)
}
