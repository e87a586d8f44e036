//! Graphs made smaller: ONNX files and encoders from safetensors to ONNX files with integers.

mod calibration;

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use core_tensor::{Bindings, DType, FileAccess, Graph};
use loader_onnx::{OnnxModel, TensorData};
use polaris_optimizer::{OptimizeOptions, Pass, optimize_with_options};
use polaris_quant::graph::{self, Change, GraphOptions, RangeMethod};

use super::{FileRecord, GraphSettings, Manifest, QuantizeProgress, Settings, TensorRecord};
use crate::Error;
use crate::bert;
use crate::graph_file::{self, GraphOptions as FileOptions};

pub use calibration::{CalibrationData, MOST_TEXTS, MOST_TOKENS, text_runs};

/// Passes before quantization: what makes weights constant and folds what belongs to them, and nothing that other runtimes would have to undo.
const PASSES: [Pass; 8] = [
    Pass::Identities,
    Pass::Weights,
    Pass::ConstantFolding,
    Pass::CommonSubexpressions,
    Pass::Algebra,
    Pass::Movement,
    Pass::Composites,
    Pass::DeadCode,
];

/// A graph that is to be quantized.
#[derive(Clone, Debug)]
pub struct GraphModel {
    /// Where it is from.
    pub path: PathBuf,
    /// The graph, simplified.
    pub graph: Graph,
}

/// How a graph is quantized into a file.
#[derive(Clone, Debug)]
pub struct GraphQuantizeOptions {
    /// What becomes of the graph.
    pub graph: GraphOptions,
    /// Weights of more bytes go to a file beside the model's.
    pub external_above: u64,
    /// Whether the sha256 of source and result are taken for the manifest.
    pub hash: bool,
}

impl GraphModel {
    /// Opens an ONNX file, or an encoder's safetensors (the file, or the folder with its `config.json`).
    ///
    /// # Errors
    /// When the file cannot be read, holds no graph in a known format, or has operators that are not supported.
    pub fn open(path: &Path, access: FileAccess, extents: &Bindings) -> Result<GraphModel, Error> {
        let onnx = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx"));
        let (path, graph) = match onnx {
            true => {
                let file = graph_file::open(path, &FileOptions { access, extents: extents.clone() })?;
                (file.path, file.graph)
            }
            false => bert::built(path, access)?,
        };
        let options = OptimizeOptions { passes: PASSES.to_vec(), ..OptimizeOptions::default() };
        let failed = |reason: String| Error::Unusable { path: path.clone(), reason };
        let (graph, _) = optimize_with_options(graph, &options).map_err(|error| failed(error.to_string()))?;
        Ok(GraphModel { path, graph })
    }

    fn unusable(&self, reason: impl ToString) -> Error {
        Error::Unusable { path: self.path.clone(), reason: reason.to_string() }
    }
}

/// Quantizes a graph into an ONNX file, which appears when it is complete and not before.
///
/// `progress` is told steps done and steps in all, and what is done: runs of the calibration, and then the weights.
///
/// # Errors
/// When the type needs data for calibration that are not there or do not fit, there is nothing to quantize, a weight is not finite, the graph cannot be
/// written, or `progress` cancels.
pub fn quantize_graph(
    model: &GraphModel,
    output: &Path,
    options: &GraphQuantizeOptions,
    data: Option<&CalibrationData>,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Manifest, Error> {
    let start = Instant::now();
    if super::same_file(&model.path, output) {
        let reason = "the result would replace the file that it is made from".to_owned();
        return Err(Error::Unusable { path: output.to_owned(), reason });
    }
    let calibration = calibration::observe(model, &options.graph, data, progress)?;
    let runs = data.map_or(0, |data| data.runs.len());
    if progress(runs as u64, runs as u64 + 1, "weights") == ControlFlow::Break(()) {
        return Err(Error::Cancelled);
    }
    let quantized = graph::quantize(&model.graph, &options.graph, &calibration);
    let (new, changes) = quantized.map_err(|error| model.unusable(error))?;
    let written = loader_onnx::export::write_with(&new, output, options.external_above);
    written.map_err(|error| Error::Unusable { path: output.to_owned(), reason: error.to_string() })?;
    // What is done is done: it is too late to cancel.
    let _ = progress(runs as u64 + 1, runs as u64 + 1, "weights");
    let mut name = OsString::from(output);
    name.push(".data");
    let data_file = PathBuf::from(name);
    let tensors = initializers(output)?;
    let external = tensors.iter().any(|tensor| tensor.external) && data_file.is_file();
    let record = |path: &Path| FileRecord::of(path, options.hash, &|| false);
    Ok(Manifest {
        polaris: env!("CARGO_PKG_VERSION").to_owned(),
        source: vec![record(&model.path)?],
        result: record(output)?,
        beside: if external { vec![record(&data_file)?] } else { Vec::new() },
        settings: settings(&options.graph, data),
        tensors: tensors.iter().map(|tensor| tensor.record(&changes)).collect(),
        mixed: None,
        pruned: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn settings(options: &GraphOptions, data: Option<&CalibrationData>) -> Settings {
    let method = match options.method {
        RangeMethod::MinMax => "minmax".to_owned(),
        RangeMethod::Percentile(share) => format!("percentile {}", share * 100.0),
        RangeMethod::Entropy => "entropy".to_owned(),
        RangeMethod::Mse => "mse".to_owned(),
    };
    let mut skipped: Vec<String> = options.skip.iter().cloned().collect();
    skipped.sort_unstable();
    Settings {
        mixture: options.ty.to_string(),
        pure: false,
        output_type: None,
        embedding_type: None,
        tensor_types: Vec::new(),
        imatrix: None,
        calibration: None,
        graph: Some(GraphSettings {
            per_tensor: options.per_tensor,
            symmetric: options.symmetric,
            tables: options.tables,
            gptq: options.gptq,
            data: data.map(|data| data.name.clone()),
            runs: data.map_or(0, |data| data.runs.len()),
            method: data.map(|_| method),
            skipped,
        }),
    }
}

/// A tensor that an ONNX file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Initializer {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) bytes: u64,
    /// Whether it lies in another file.
    pub(crate) external: bool,
}

impl Initializer {
    pub(crate) fn record(&self, changes: &[Change]) -> TensorRecord {
        let dtype = self.dtype.to_string();
        match changes.iter().find(|change| change.name == self.name) {
            Some(change) => {
                let types = [change.from.to_string(), change.to.clone()];
                TensorRecord::of_sums(&self.name, &self.shape, types, self.bytes, change.noise, change.power)
            }
            None => TensorRecord::of_sums(&self.name, &self.shape, [dtype.clone(), dtype], self.bytes, 0.0, 0.0),
        }
    }
}

/// The tensors of an ONNX file, in its order.
pub(crate) fn initializers(path: &Path) -> Result<Vec<Initializer>, Error> {
    let model = OnnxModel::open(path, FileAccess::Map)?;
    let mut all = Vec::new();
    for (name, data) in model.initializers() {
        let TensorData::Tensor(tensor) = data? else { continue };
        all.push(Initializer {
            name: name.to_owned(),
            shape: tensor.shape().to_vec(),
            dtype: tensor.dtype(),
            bytes: tensor.bytes().len() as u64,
            external: tensor.file().is_some_and(|(file, _)| file.path() != path),
        });
    }
    Ok(all)
}
