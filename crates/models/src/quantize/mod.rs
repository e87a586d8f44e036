//! Models made smaller: GGUF files tensor by tensor, so that a model of any size takes little memory; graphs ([`graph`]) as a whole.

pub mod graph;
mod imatrix_file;
mod manifest;
mod mixed;
mod plan;
mod reconstruct;
pub(crate) mod tensors;
mod verify;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use core_tensor::{DType, FileAccess, PartialFile, Tensor};
use loader_gguf::{GgmlType, Gguf, GgufWriter};
use polaris_quant::gptq::Feedback;
use polaris_quant::{AssignOptions, Importances, Mixture};

use crate::Error;
use tensors::Job;

pub(crate) use plan::{model_facts, plan_of};

pub use imatrix_file::{read_importances, write_importances};
pub use manifest::{FeedbackSettings, FileRecord, GraphSettings, Manifest, Settings, TensorRecord};
pub use mixed::{MixedBudget, MixedData, MixedOptions, MixedProgress, MixedReport, MixedTensor, Probes, assign_mixed};
pub use plan::{Planned, TensorType, plan, tensor_dtype};
pub use reconstruct::{
    LayerReport, OnReconstruct, ReconstructOptions, ReconstructProgress, ReconstructReport, Reconstruction, reconstruct,
};

pub use verify::{Problem, Verified};

/// `general.quantization_version` (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// Keys that say how a model is split over files; the result is one file.
pub(crate) const SPLIT: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];

/// How a model is quantized.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// What becomes of which tensor.
    pub mixture: Mixture,
    /// What of the mixture's rules is overruled.
    pub assign: AssignOptions,
    /// Types for tensors whose name a pattern is found in; the first that is found counts.
    pub tensor_types: Vec<TensorType>,
    /// The types of tensors by their whole names, before anything else; see [`assign_mixed`].
    pub exact: BTreeMap<String, DType>,
    /// Importances of columns, and the name of the file that they are from; an empty one where they are from none.
    pub importances: Option<(Importances, String)>,
    /// Threads that encode; at least one.
    pub threads: usize,
    /// Whether tensors that are quantized already may be quantized again.
    pub allow_requantize: bool,
    /// Whether the source's sha256 is taken for the manifest; that reads the file once more.
    pub hash: bool,
    /// Mapped or read.
    pub access: FileAccess,
}

impl QuantizeOptions {
    /// On all threads, without importances, quantized tensors refused.
    #[must_use]
    pub fn new(mixture: Mixture) -> QuantizeOptions {
        QuantizeOptions {
            mixture,
            assign: AssignOptions::default(),
            tensor_types: Vec::new(),
            exact: BTreeMap::new(),
            importances: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            allow_requantize: false,
            hash: true,
            access: FileAccess::default(),
        }
    }
}

/// What says how the inputs of a model's matrices go together.
pub trait Calibration: Sync {
    /// What it was made from (a path).
    fn dataset(&self) -> &str;

    /// For the first of some tensors, the others being those that will be asked for next, in their order; none where nothing is known of its
    /// inputs. This may take long: it asks whether it is to stop.
    ///
    /// # Errors
    /// When it fails, and [`Error::Cancelled`] when it was stopped.
    fn feedback(&self, upcoming: &[&str], stopped: &dyn Fn() -> bool) -> Result<Option<Arc<Feedback>>, Error>;

    /// A tensor's weights as they were trained, in the type that is planned for it; none where nothing was.
    fn trained(&self, _tensor: &str) -> Option<&Tensor> {
        None
    }

    /// How rounding follows what it knows; none where it does not.
    fn feedback_settings(&self) -> Option<FeedbackSettings> {
        None
    }

    /// How weights were trained.
    fn reconstruction(&self) -> Option<&ReconstructReport> {
        None
    }
}

/// Told while a model is quantized: bytes of the source done and in all, and the tensor that is worked on. `Break` cancels.
pub type QuantizeProgress<'a> = dyn FnMut(u64, u64, &str) -> ControlFlow<()> + Send + 'a;

/// Quantizes a GGUF file into another, which appears when it is complete and not before. Metadata is kept.
///
/// At no time more than a few MiB of tensors are in memory. What lies in the result depends on the source and the options
/// alone, the number of threads excepted.
///
/// # Errors
/// As [`plan`]; when a file cannot be read or written, a weight or an importance is no finite number, or `progress` cancels
/// (then nothing is left behind).
pub fn quantize(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Manifest, Error> {
    quantize_calibrated(input, output, options, None, progress)
}

/// As [`quantize`], but matrices of which the calibration knows the inputs are rounded so that errors make up for each other
/// ([`polaris_quant::gptq`]). What the calibration holds comes to the memory.
///
/// # Errors
/// As [`quantize`], and when the calibration fails.
pub fn quantize_calibrated(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    calibration: Option<&dyn Calibration>,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Manifest, Error> {
    let start = Instant::now();
    let model = Gguf::open(input, options.access)?;
    let planned = plan(&model, options)?;
    let sources = sources(&model);
    check_output(output, &sources)?;
    let total = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    let job = Job::new(options.threads, total, progress);
    let records: Mutex<Vec<TensorRecord>> = Mutex::new(Vec::with_capacity(planned.len()));
    let mut writer = GgufWriter::new();
    metadata(&mut writer, &model, options)?;
    for (at, tensor) in planned.iter().enumerate() {
        let ggml_type = GgmlType::from_dtype(tensor.to).ok_or_else(|| Error::Tensor {
            path: output.to_owned(),
            name: tensor.name.clone(),
            reason: format!("{} has no number in GGUF files", tensor.to),
        })?;
        let importance = importance(options, tensor)?;
        let (job, model, records, planned) = (&job, &model, &records, &planned);
        writer.stream(&tensor.name, ggml_type, &tensor.shape, move |out| {
            let note = |record| {
                if let Ok(mut records) = records.lock() {
                    records.push(record);
                }
                Ok(())
            };
            if let Some(trained) = calibration.and_then(|calibration| calibration.trained(&tensor.name)) {
                return note(job.trained(model, tensor, trained, out)?);
            }
            let mut feedback = None;
            if let Some(calibration) = calibration.filter(|_| tensor.takes_feedback()) {
                let upcoming: Vec<&str> =
                    planned[at..].iter().filter(|t| t.takes_feedback()).map(|t| t.name.as_str()).collect();
                let found = calibration.feedback(&upcoming, &|| job.stopped());
                feedback = found.map_err(|error| job.fail(error))?;
            }
            note(job.tensor(model, tensor, importance.as_deref(), feedback.as_deref(), out)?)
        })?;
    }
    let (written, hashes) = std::thread::scope(|scope| {
        let hashes = scope.spawn(|| {
            sources
                .iter()
                .map(|path| FileRecord::of(path, options.hash, &|| job.stopped()))
                .collect::<Result<Vec<_>, _>>()
        });
        let written = writer.write(output);
        if written.is_err() {
            job.stop();
        }
        (written, hashes.join())
    });
    let hashes = hashes.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    if let Err(error) = written {
        // What a tensor failed with comes through the writer as an error of writing.
        return Err(job.failure().unwrap_or_else(|| error.into()));
    }
    Ok(Manifest {
        polaris: env!("CARGO_PKG_VERSION").to_owned(),
        source: hashes?,
        result: FileRecord::of(output, options.hash, &|| false)?,
        beside: Vec::new(),
        settings: Settings::of(options, calibration),
        tensors: records.into_inner().unwrap_or_default(),
        mixed: None,
        pruned: None,
        reconstruction: calibration.and_then(|calibration| calibration.reconstruction().cloned()),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Whether a result can be written, before hours of work are spent on it: it names a file, is none of those that it is made from, and its folder takes files.
///
/// # Errors
/// When it is not so.
pub fn check_output(output: &Path, sources: &[PathBuf]) -> Result<(), Error> {
    let unusable = |reason: String| Err(Error::Unusable { path: output.to_owned(), reason });
    if sources.iter().any(|source| same_file(source, output)) {
        return unusable("the result would replace the file that it is made from".into());
    }
    if output.is_dir() {
        return unusable("this is a folder, and the result is a file".into());
    }
    match PartialFile::create(output) {
        Ok(_) => Ok(()),
        Err(error) => unusable(format!("the result cannot be written there: {error}")),
    }
}

/// The files of a model: one, or all that it is split over.
#[must_use]
pub fn sources(model: &Gguf) -> Vec<PathBuf> {
    model.shards().map(|file| file.path().to_owned()).collect()
}

/// Whether two paths name one file.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// The source's metadata with what quantization changes.
fn metadata(writer: &mut GgufWriter<'_>, model: &Gguf, options: &QuantizeOptions) -> Result<(), Error> {
    const CHANGED: [&str; 2] = ["general.file_type", "general.quantization_version"];
    for (key, value) in model.metadata() {
        let replaced = CHANGED.contains(&key) || SPLIT.contains(&key) || key.starts_with("quantize.imatrix.");
        if !replaced {
            writer.set(key, value)?;
        }
    }
    writer.set("general.quantization_version", QUANTIZATION_VERSION)?;
    writer.set("general.file_type", options.mixture.file_type())?;
    if let Some((importances, file)) = &options.importances {
        if !file.is_empty() {
            writer.set("quantize.imatrix.file", file.as_str())?;
        }
        if let Some(dataset) = importances.datasets.first() {
            writer.set("quantize.imatrix.dataset", dataset.as_str())?;
        }
        writer.set("quantize.imatrix.entries_count", importances.entries.len() as u32)?;
        if importances.chunks > 0 {
            writer.set("quantize.imatrix.chunks_count", importances.chunks)?;
        }
    }
    Ok(())
}

/// How much the columns of a tensor count.
fn means(importances: &Importances, name: &str) -> Option<Vec<f32>> {
    let mut means = importances.entries.get(name)?.means();
    if name == "token_embd.weight" {
        // Known is what meets it as the output matrix. Its rows are looked up as well, and there columns count alike.
        let mean = means.iter().sum::<f32>() / means.len().max(1) as f32;
        means.iter_mut().for_each(|value| *value += mean);
    }
    Some(means)
}

/// The importances of a tensor's columns, for each of its matrices.
fn importance(options: &QuantizeOptions, tensor: &Planned) -> Result<Option<Vec<f32>>, Error> {
    let Some((importances, file)) = &options.importances else { return Ok(None) };
    let Some(means) = means(importances, &tensor.name).filter(|_| tensor.to.is_block()) else { return Ok(None) };
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let matrices = tensor.shape.iter().rev().skip(2).product::<usize>();
    if means.len() == columns * matrices {
        return Ok(Some(means));
    }
    // Embeddings are looked up; a count of columns that is another model's must not go unnoticed elsewhere.
    if tensor.name == "token_embd.weight" {
        return Ok(None);
    }
    let reason = format!("{} importances for {matrices} × {columns} columns of tensor '{}'", means.len(), tensor.name);
    Err(Error::Unusable { path: file.into(), reason })
}
