//! Encoders from ONNX files.

use std::path::Path;

use core_tensor::{FileAccess, Graph};
use loader_onnx::{ImportOptions, OnnxModel};

use crate::Error;

/// The graph of an ONNX file.
pub(crate) fn graph(path: &Path, access: FileAccess) -> Result<Graph, Error> {
    Ok(OnnxModel::open(path, access)?.graph(&ImportOptions::default())?)
}
