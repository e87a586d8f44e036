//! Models made smaller: GGUF files tensor by tensor, so that a model of any size takes little memory; graphs ([`graph`]) as a whole.

pub mod graph;
mod imatrix_file;
mod manifest;
mod mixed;
mod reconstruct;
pub(crate) mod tensors;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use core_tensor::{DType, FileAccess, Tensor};
use fancy_regex::Regex;
use loader_gguf::{GgmlType, Gguf, GgufError, GgufWriter};
use polaris_quant::block::ENCODED;
use polaris_quant::gptq::{self, Feedback};
use polaris_quant::{AssignOptions, Importances, Mixture, ModelFacts, TensorFacts, assign};

use crate::Error;
use tensors::Job;

pub use imatrix_file::{read_importances, write_importances};
pub use manifest::{FileRecord, GraphSettings, Manifest, Problem, Settings, TensorRecord, Verified};
pub use mixed::{MixedBudget, MixedOptions, MixedProgress, MixedReport, MixedTensor, Probes, assign_mixed};
pub use reconstruct::{
    LayerReport, OnReconstruct, ReconstructOptions, ReconstructProgress, ReconstructReport, Reconstruction, reconstruct,
};

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
    /// Importances of columns, and the name of the file that they are from.
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

/// A demand: tensors of this name get this type.
#[derive(Clone, Debug)]
pub struct TensorType {
    pattern: Regex,
    /// The type.
    pub dtype: DType,
}

impl TensorType {
    /// From `PATTERN=TYPE`: a regular expression that is searched in names, and a type of tensors (`attn_v=q8_0`).
    ///
    /// # Errors
    /// When there is no `=`, the pattern is no regular expression, or the type is none that can be written.
    pub fn parse(text: &str) -> Result<TensorType, String> {
        let (pattern, dtype) = text.rsplit_once('=').ok_or_else(|| format!("{text:?} is not PATTERN=TYPE"))?;
        let pattern = Regex::new(pattern).map_err(|error| format!("{pattern:?}: {error}"))?;
        Ok(TensorType { pattern, dtype: tensor_dtype(dtype)? })
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }
}

/// A type of tensors by its name, in any case ("q4_k", "F16").
///
/// # Errors
/// When there is no such type, or it cannot be written.
pub fn tensor_dtype(name: &str) -> Result<DType, String> {
    let found = ENCODED.into_iter().find(|dtype| dtype.to_string().eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<String> = ENCODED.iter().map(ToString::to_string).collect();
        format!("{name:?} is no type of tensors; there are {}", names.join(", "))
    })
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// The type that it has.
    pub from: DType,
    /// The type that it gets.
    pub to: DType,
}

impl Planned {
    /// Bytes that it will take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let (len, bytes) = self.to.packing();
        (self.shape.iter().product::<usize>() / len * bytes) as u64
    }
}

/// What would become of each tensor of a model.
///
/// # Errors
/// When the file lacks what the rules look at, or has a tensor that is quantized and would be again.
pub fn plan(model: &Gguf, options: &QuantizeOptions) -> Result<Vec<Planned>, Error> {
    let path = || model.path().to_owned();
    let mut facts = Vec::with_capacity(model.tensors().len());
    for info in model.tensors() {
        let Some(dtype) = info.dtype() else {
            let reason = format!("{} cannot be read yet", info.ggml_type());
            return Err(Error::Tensor { path: path(), name: info.name().to_owned(), reason });
        };
        facts.push(TensorFacts { name: info.name(), shape: info.shape(), dtype });
    }
    let forced = |name: &str| {
        let found = |demand: &&TensorType| demand.pattern.is_match(name).unwrap_or(false);
        let demanded = || options.tensor_types.iter().find(found).map(|demand| demand.dtype);
        options.exact.get(name).copied().or_else(demanded)
    };
    let assigned = AssignOptions { importance: options.importances.is_some(), ..options.assign };
    let types = assign(options.mixture, &model_facts(model)?, &facts, &assigned, &forced);
    let mut planned = Vec::with_capacity(types.len());
    for (tensor, to) in facts.iter().zip(types) {
        if tensor.dtype != to && tensor.dtype.is_block() && !options.allow_requantize {
            let reason = format!(
                "it is {} already, and quantizing it again loses more than quantizing the original; it has to be allowed",
                tensor.dtype
            );
            return Err(Error::Tensor { path: path(), name: tensor.name.to_owned(), reason });
        }
        let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
        planned.push(Planned { name, shape, from: tensor.dtype, to });
    }
    Ok(planned)
}

/// What the rules of mixtures look at.
fn model_facts(model: &Gguf) -> Result<ModelFacts, Error> {
    let architecture = model.optional::<&str>("general.architecture")?.unwrap_or_default().to_owned();
    let number = |key: &str| -> Result<usize, GgufError> {
        let key = format!("{architecture}.{key}");
        // Some models have a number for each layer.
        match model.get(&key) {
            Some(loader_gguf::Value::Array(_)) => Ok(model.u32s(&key)?.first().copied().unwrap_or(0) as usize),
            _ => Ok(model.optional::<u32>(&key)?.unwrap_or(0) as usize),
        }
    };
    let heads = number("attention.head_count")?;
    let kv_heads = match number("attention.head_count_kv")? {
        0 => heads,
        kv_heads => kv_heads,
    };
    Ok(ModelFacts { layers: number("block_count")?, heads, kv_heads, experts: number("expert_count")?, architecture })
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
    let sources: Vec<PathBuf> = model.shards().map(|file| file.path().to_owned()).collect();
    if sources.iter().any(|source| same_file(source, output)) {
        let reason = "the result would replace the file that it is made from".to_owned();
        return Err(Error::Unusable { path: output.to_owned(), reason });
    }
    let total = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    let job = Job::new(options.threads, total, progress);
    let records: Mutex<Vec<TensorRecord>> = Mutex::new(Vec::with_capacity(planned.len()));
    let mut writer = GgufWriter::new();
    metadata(&mut writer, &model, options)?;
    let fed_back =
        |tensor: &Planned| gptq::has_feedback(tensor.to) && tensor.from != tensor.to && tensor.shape.len() == 2;
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
            if let Some(calibration) = calibration.filter(|_| fed_back(tensor)) {
                let upcoming: Vec<&str> =
                    planned[at..].iter().filter(|tensor| fed_back(tensor)).map(|tensor| tensor.name.as_str()).collect();
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
        writer.set("quantize.imatrix.file", file.as_str())?;
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

/// The importances of a tensor's columns, for each of its matrices.
fn importance(options: &QuantizeOptions, tensor: &Planned) -> Result<Option<Vec<f32>>, Error> {
    let Some((importances, file)) = &options.importances else { return Ok(None) };
    let Some(entry) = importances.entries.get(&tensor.name).filter(|_| tensor.to.is_block()) else { return Ok(None) };
    let means = entry.means();
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
