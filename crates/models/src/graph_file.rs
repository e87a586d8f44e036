//! Graphs from files of any format that holds one.

use std::path::{Path, PathBuf};

use core_tensor::{Bindings, FileAccess, Graph};
use loader_onnx::{ImportOptions, OnnxModel};

use crate::Error;

/// A graph as a file has it, before any pass.
#[derive(Clone, Debug)]
pub struct GraphFile {
    /// The file.
    pub path: PathBuf,
    /// The format, as its users name it: `ONNX`.
    pub format: &'static str,
    /// What the file says about itself: names and values, in the order in which to show them.
    pub about: Vec<(String, String)>,
    /// The graph.
    pub graph: Graph,
}

/// What decides how a file becomes a graph.
#[derive(Clone, Debug, Default)]
pub struct GraphOptions {
    /// Mapped or read.
    pub access: FileAccess,
    /// Numbers for extents that the file names (`batch` → 1).
    pub extents: Bindings,
}

/// Endings of files that hold a graph.
pub const ENDINGS: [&str; 1] = ["onnx"];

/// Opens a file that holds a graph.
///
/// # Errors
/// When the file cannot be read, holds no graph in a known format, or has operators that are not supported (all are named).
pub fn open(path: &Path, options: &GraphOptions) -> Result<GraphFile, Error> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    if !ENDINGS.contains(&ending.as_str()) {
        let reason = format!("this ending is of no format with a graph (known: .{})", ENDINGS.join(", ."));
        return Err(Error::Unusable { path: path.to_owned(), reason });
    }
    let model = OnnxModel::open(path, options.access)?;
    let (producer, version) = model.producer();
    let mut about = vec![("IR version".to_owned(), model.ir_version().to_string())];
    if !producer.is_empty() {
        about.push(("producer".into(), format!("{producer} {version}").trim().to_owned()));
    }
    for (domain, opset) in model.opsets() {
        about.push((format!("opset {}", if domain.is_empty() { "ai.onnx" } else { domain }), opset.to_string()));
    }
    about.extend(model.metadata().map(|(key, value)| (key.to_owned(), value.to_owned())));
    let import = ImportOptions { extents: options.extents.clone(), ..ImportOptions::default() };
    let graph = match model.graph(&import) {
        // A branch that these extents never take may not fit them; with symbols that is found when it is taken.
        Err(error) if import.extents != Bindings::new() => model.graph(&ImportOptions::default()).map_err(|_| error)?,
        graph => graph?,
    };
    Ok(GraphFile { path: path.to_owned(), format: "ONNX", about, graph })
}
