//! Graphs made smaller: ONNX files and encoders from safetensors to ONNX files with integers.

mod calibration;
mod reconstruct;
mod spill;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use core_tensor::{Bindings, DType, FileAccess, Graph};
use loader_onnx::{OnnxModel, TensorData};
use polaris_optimizer::{OptimizeOptions, Pass, optimize_with_options};
use polaris_quant::graph::{
    self, Calibration, Change, GraphOptions, GraphQuantError, GraphType, RangeMethod, Rebalanced,
};

use super::{FileRecord, GraphSettings, Manifest, QuantizeProgress, Settings, TensorRecord};
use crate::Error;
use crate::bert;
use crate::graph_file::{self, GraphOptions as FileOptions};

use calibration::{GraphHost, Steps};
use spill::Spill;

pub use calibration::{CalibrationData, MOST_TEXTS, MOST_TOKENS, MOST_TRAINED_TEXTS, text_runs};
pub use reconstruct::GraphReconstructOptions;

/// Passes before quantization: what makes weights constant and folds what belongs to them, and nothing that other runtimes would have to undo.
fn passes() -> Vec<Pass> {
    let undone = |pass: &Pass| matches!(pass, Pass::Attention | Pass::Quantization | Pass::GatedActivations);
    Pass::ALL.into_iter().filter(|pass| !undone(pass)).collect()
}

/// A graph that is to be quantized.
#[derive(Clone, Debug)]
pub struct GraphModel {
    /// Where it is from.
    pub path: PathBuf,
    /// All files that its weights are from, the one of `path` first.
    pub sources: Vec<PathBuf>,
    /// The graph, simplified.
    pub graph: Graph,
}

/// How a graph is quantized into a file.
#[derive(Clone, Debug)]
pub struct GraphQuantizeOptions {
    /// What becomes of the graph.
    pub graph: GraphOptions,
    /// What is done to its weights before.
    pub balance: Balance,
    /// Whether weights are trained so that outputs stay what they were, and how. Needs data; not with GPTQ and the correction of biases, which it makes up for.
    pub reconstruct: Option<GraphReconstructOptions>,
    /// Bytes that sums of products for GPTQ may take at once, and new weights before they are written: the data run through the model as often as all sums need,
    /// and weights for which there is no room wait in a file beside the result.
    pub memory: u64,
    /// Weights of more bytes go to a file beside the model's.
    pub external_above: u64,
    /// Whether the sha256 of source and result are taken for the manifest.
    pub hash: bool,
}

/// Factors that are moved before a graph is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// Channels between convolutions are made equally large: [`graph::equalize`].
    pub equalize: bool,
    /// How much of activations' outliers goes to the weights: [`graph::smooth`]. Needs data.
    pub smooth: Option<f32>,
    /// Weights that meet large activations are protected: [`graph::protect`]. Needs data.
    pub protect: bool,
}

/// Bytes that are held at once where nothing else is asked for.
pub const MEMORY: u64 = 1 << 30;

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
        let mut sources = vec![path.clone()];
        for (_, weight) in graph.weights() {
            weight.stored_tensors(&mut |tensor| {
                if let Some((file, _)) = tensor.file()
                    && !sources.iter().any(|source| source == file.path())
                {
                    sources.push(file.path().to_owned());
                }
            });
        }
        let options = OptimizeOptions { passes: passes(), ..OptimizeOptions::default() };
        let failed = |reason: String| Error::Unusable { path: path.clone(), reason };
        let (graph, _) = optimize_with_options(graph, &options).map_err(|error| failed(error.to_string()))?;
        Ok(GraphModel { path, sources, graph })
    }

    /// Data that are needed.
    fn data<'a>(
        &self,
        data: Option<&'a CalibrationData>,
        options: &GraphQuantizeOptions,
    ) -> Result<&'a CalibrationData, Error> {
        let what = if options.graph.ty == GraphType::Int8 { "int8" } else { "what is asked for" };
        let missing = || self.unusable(format!("{what} needs data for calibration (int8-dynamic alone needs none)"));
        data.filter(|data| !data.runs.is_empty()).ok_or_else(missing)
    }

    /// Whether a result can be written, and where weights beside it go.
    ///
    /// # Errors
    /// As [`check_output`](super::check_output).
    pub(crate) fn check_output(&self, output: &Path) -> Result<PathBuf, Error> {
        let mut data = OsString::from(output);
        data.push(".data");
        let data = PathBuf::from(data);
        super::check_output(output, &self.sources)?;
        if let Some(source) = self.sources.iter().find(|source| super::same_file(source, &data)) {
            let reason = format!("its weights may go to {}, where the source has its own", source.display());
            return Err(Error::Unusable { path: output.to_owned(), reason });
        }
        Ok(data)
    }

    /// What the files are that it is from.
    pub(crate) fn source_records(&self, hash: bool) -> Result<Vec<FileRecord>, Error> {
        self.sources.iter().map(|path| FileRecord::of(path, hash, &|| false)).collect()
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
    let data_file = model.check_output(output)?;
    let runs = data.map_or(0, |data| data.runs.len()) as u64;
    let mut steps = Steps { done: 0, total: 0, progress };
    let (balanced, moved) = balanced(model, options, data, &mut steps)?;
    let graph_before = balanced.as_ref().unwrap_or(&model.graph);
    let (mut reconstructed, mut trained, mut report) = (None, BTreeMap::new(), None);
    if let Some(how) = &options.reconstruct {
        let data = model.data(data, options)?;
        let found = reconstruct::reconstruct(model, graph_before, options, how, data, &mut steps)?;
        (reconstructed, trained, report) = (Some(found.graph), found.trained, Some(found.report));
    }
    let graph_before = reconstructed.as_ref().unwrap_or(graph_before);
    // Scales of 4 bits that were trained are not searched for, and nothing is to be looked at for that. (In 8 bits, tables are clipped; they are not trained.)
    let searched = report.is_none() || !matches!(options.graph.ty, GraphType::Int4 { .. });
    let graph_options = GraphOptions { clip: options.graph.clip && searched, ..options.graph.clone() };
    let demands = graph::demands(graph_before, &graph_options).map_err(|error| model.unusable(error))?;
    let balancing = options.balance.smooth.is_some() || options.balance.protect;
    let used = data.filter(|_| !demands.is_empty() || balancing || options.reconstruct.is_some());
    let mut passes = VecDeque::from(calibration::passes(&demands, options.memory));
    steps.total = steps.done + runs * passes.len() as u64 + 2;
    let threads = options.graph.threads;
    let mut calibration = Calibration::default();
    if let Some(first) = passes.pop_front() {
        let data = model.data(data, options)?;
        calibration = calibration::observe(graph_before, &first, data, threads, &mut steps)?;
    }
    let held = calibration.split_hessians();
    let spill = Spill::new(output, options.memory / 4);
    let mut host = GraphHost { graph: graph_before, data, threads, passes, held, spill, trained, steps: &mut steps };
    host.steps.next("weights")?;
    let quantized = graph::quantize_with(graph_before, &graph_options, &calibration, &mut host);
    let (new, changes) = quantized.map_err(|error| match error {
        // What the host was stopped by.
        GraphQuantError::Host { source, .. } if source.is::<Error>() => {
            source.downcast::<Error>().map_or(Error::Cancelled, |error| *error)
        }
        error => model.unusable(error),
    })?;
    let written = loader_onnx::export::write_with(&new, output, options.external_above);
    written.map_err(|error| Error::Unusable { path: output.to_owned(), reason: error.to_string() })?;
    drop((new, host));
    // What is done is done: it is too late to cancel.
    let _ = steps.next("weights");
    let tensors = initializers(output)?;
    let external = tensors.iter().any(|tensor| tensor.external) && data_file.is_file();
    let record = |path: &Path| FileRecord::of(path, options.hash, &|| false);
    Ok(Manifest {
        polaris: env!("CARGO_PKG_VERSION").to_owned(),
        source: model.source_records(options.hash)?,
        result: record(output)?,
        beside: if external { vec![record(&data_file)?] } else { Vec::new() },
        settings: settings(&graph_options, &options.balance, used, moved),
        tensors: tensors.iter().map(|tensor| tensor.record(&changes)).collect(),
        mixed: None,
        pruned: None,
        reconstruction: report,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The graph with factors moved, where any are to be; how many values they were moved from.
fn balanced(
    model: &GraphModel,
    options: &GraphQuantizeOptions,
    data: Option<&CalibrationData>,
    steps: &mut Steps<'_>,
) -> Result<(Option<Graph>, usize), Error> {
    let mut now: Option<Graph> = None;
    let mut moved = 0;
    let mut take = |(new, changes): (Graph, Vec<Rebalanced>), now: &mut Option<Graph>| {
        moved += changes.len();
        *now = Some(new);
    };
    let failed = |error: GraphQuantError| model.unusable(error);
    if options.balance.equalize {
        take(graph::equalize(&model.graph).map_err(failed)?, &mut now);
    }
    let alphas = options.balance.smooth.map(Some).into_iter();
    for alpha in alphas.chain(options.balance.protect.then_some(None)) {
        let graph = now.as_ref().unwrap_or(&model.graph);
        let demands = graph::balance_demands(graph, &options.graph).map_err(failed)?;
        let data = model.data(data, options)?;
        steps.total = steps.done + 2 * data.runs.len() as u64 + 2;
        let seen = calibration::observe(graph, &demands, data, options.graph.threads, steps)?;
        let found = match alpha {
            Some(alpha) => graph::smooth(graph, &options.graph, alpha, &seen),
            None => graph::protect(graph, &options.graph, &seen),
        };
        take(found.map_err(failed)?, &mut now);
    }
    Ok((now, moved))
}

fn settings(options: &GraphOptions, balance: &Balance, data: Option<&CalibrationData>, moved: usize) -> Settings {
    let method = match options.method {
        RangeMethod::MinMax => "minmax".to_owned(),
        RangeMethod::Percentile(share) => format!("percentile {}", share * 100.0),
        RangeMethod::Entropy => "entropy".to_owned(),
        RangeMethod::Mse => "mse".to_owned(),
    };
    let mut skipped: Vec<String> = options.skip.iter().cloned().collect();
    skipped.sort_unstable();
    Settings {
        graph: Some(GraphSettings {
            per_tensor: options.per_tensor,
            symmetric: options.symmetric,
            tables: options.tables,
            gptq: options.gptq,
            asymmetric: options.asymmetric,
            clip: options.clip,
            bias_correction: options.bias_correction,
            equalize: balance.equalize,
            smooth: balance.smooth.map(|alpha| alpha.to_string()),
            awq: balance.protect,
            balanced: moved,
            data: data.map(|data| data.name.clone()),
            runs: data.map_or(0, |data| data.runs.len()),
            // Of the other types no ranges are measured.
            method: data.filter(|_| options.ty == GraphType::Int8).map(|_| method),
            skipped,
            convolutions: options.convolutions,
            damping: options.gptq.then_some(options.damping),
        }),
        ..Settings::named(&options.ty.to_string())
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
