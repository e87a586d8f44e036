//! Models pruned: weights that become zeros, or neurons and attention heads that go, so that the file is smaller and there is less to compute.
//!
//! ```text
//! source ─ step 1: the text runs through it ─▶ inputs ─ prune, make up ─▶ a file of the same shape ─ step 2: the text runs through that ─▶ … ─▶ result
//! ```
//!
//! Each step prunes the source's own weights, further than the one before, with inputs as the model that is pruned so far makes them: so
//! errors do not add up, and what a step took another may bring back. Only the last step cuts tensors; those before put zeros in their place.

mod graph;
mod layers;
mod options;
mod plan;
mod report;
mod step;

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Instant;

use loader_gguf::Gguf;

use crate::Error;
use crate::backends::BackendOptions;
use crate::llama::{CalibrationOptions, FeedbackOptions, LlamaOptions, Picked, TextCalibration};
use crate::quantize::{
    FileRecord, Manifest, QuantizeProgress, Settings, TensorRecord, check_output, quantize, sources,
};
use step::Setup;

pub use graph::{GraphPruneOptions, GraphWhat, prune_graph};
pub use options::{CalibrationText, Method, NamePattern, PruneOptions, StructurePruning, WeightPruning, What};
pub use plan::{Extents, PrunePlan, PrunedShape, plan};
pub use report::{PruneReport, PruneSettings, PruneStep, PrunedTensor};

/// Told after each chunk of a text that runs through a model how many are done and how many there are.
pub type Chunks = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// Prunes a language model in a GGUF file into another file, which appears when it is complete and not before. Metadata is kept, but for what says how many heads
/// and neurons there are.
///
/// A few matrices at most are in memory, and what the calibration holds of their inputs, beside the model that the text runs through. The bar that
/// `progress` draws is over all steps.
///
/// # Errors
/// When the file is no language model that is supported, the options do not fit it or each other, a file cannot be read or written, a weight is no finite number, the text
/// is too short, or `progress` cancels (then nothing is left behind).
pub fn prune(
    input: &Path,
    output: &Path,
    options: &PruneOptions,
    chunks: &Chunks,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Manifest, Error> {
    let start = Instant::now();
    let model = Gguf::open(input, options.access)?;
    let plan = plan(&model, options)?;
    let sources = sources(&model);
    check_output(output, &sources)?;
    let stop = AtomicBool::new(false);
    let (made, hashes) = std::thread::scope(|scope| {
        let hash = |path: &PathBuf| FileRecord::of(path, options.hash, &|| stop.load(Relaxed));
        let hashes = scope.spawn(move || sources.iter().map(hash).collect::<Result<Vec<_>, _>>());
        let made = run(&model, &plan, input, output, options, chunks, progress);
        if made.is_err() {
            stop.store(true, Relaxed);
        }
        (made, hashes.join())
    });
    let Made { steps, tensors, settings } = made?;
    let source = hashes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(Manifest {
        polaris: env!("CARGO_PKG_VERSION").to_owned(),
        source,
        result: FileRecord::of(output, options.hash, &|| false)?,
        beside: Vec::new(),
        settings,
        tensors,
        mixed: None,
        pruned: Some(PruneReport::new(options, &plan, steps)),
        reconstruction: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// What became of a model.
struct Made {
    steps: Vec<PruneStep>,
    tensors: Vec<TensorRecord>,
    settings: Settings,
}

/// All steps.
fn run(
    model: &Gguf,
    plan: &PrunePlan,
    input: &Path,
    output: &Path,
    options: &PruneOptions,
    chunks: &Chunks,
    progress: &mut QuantizeProgress<'_>,
) -> Result<Made, Error> {
    let bytes: u64 = model.tensors().iter().map(|info| info.byte_len() as u64).sum();
    let total = bytes * (options.steps as u64 + u64::from(options.quantize.is_some()));
    let mut steps = Vec::new();
    let mut tensors = Vec::new();
    let mut so_far: Option<Temporary> = None;
    for number in 1..=options.steps {
        let done = bytes * (number as u64 - 1);
        let path = so_far.as_ref().map_or(input, |file| file.0.as_path());
        let calibration = calibration(path, options, chunks, &mut |name| progress(done, total, name))?;
        let target = match number == options.steps && options.quantize.is_none() {
            true => None,
            false => Some(Temporary::beside(output)?),
        };
        let path = target.as_ref().map_or(output, |file| file.0.as_path());
        let setup = Setup { model, plan, options, number, calibration: calibration.as_ref() };
        let made = step::run(&setup, path, &mut |now, _, name| progress(done + now, total, name))?;
        steps.push(made.step);
        tensors = made.tensors;
        so_far = target;
    }
    let (Some(quantizing), Some(file)) = (&options.quantize, &so_far) else {
        return Ok(Made { steps, tensors, settings: options.settings() });
    };
    let share = |now: u64, all: u64| total - bytes + (bytes as f64 * now as f64 / all.max(1) as f64) as u64;
    let mut progress = |now: u64, all: u64, name: &str| progress(share(now, all), total, name);
    let manifest = quantize(&file.0, output, quantizing, &mut progress)?;
    Ok(Made { steps, tensors: manifest.tensors, settings: manifest.settings })
}

/// The model as it is so far, with the text that is to run through it; none without a text.
fn calibration(
    path: &Path,
    options: &PruneOptions,
    chunks: &Chunks,
    progress: &mut (dyn FnMut(&str) -> ControlFlow<()> + Send),
) -> Result<Option<TextCalibration>, Error> {
    let Some(text) = &options.calibration else { return Ok(None) };
    let backend = BackendOptions { threads: Some(options.threads), ..text.backend };
    let llama = LlamaOptions { access: options.access, backend, ..LlamaOptions::default() };
    let collect = CalibrationOptions {
        context: text.context,
        chunks: text.chunks,
        picked: Picked::Spread,
        dataset: text.dataset.clone(),
    };
    let feedback = FeedbackOptions {
        damping: options.damping,
        memory: text.memory,
        threads: options.threads,
        hold: options.hold(),
    };
    let chunks = chunks.clone();
    let mut load = |_, _| progress("loading");
    let on_chunk = move |done, total| chunks(done, total);
    TextCalibration::open(path, &llama, &text.text, &collect, feedback, &mut load, on_chunk).map(Some)
}

/// A file beside the result that goes when it is no longer needed, whatever happens.
struct Temporary(PathBuf);

impl Temporary {
    /// A name that no file has.
    fn beside(output: &Path) -> Result<Temporary, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(name) = output.file_name() else {
            return Err(Error::Unusable { path: output.to_owned(), reason: "the path names no file".to_owned() });
        };
        loop {
            let mut own = OsString::from(".");
            own.push(name);
            own.push(format!(".{}-{}.step", std::process::id(), COUNT.fetch_add(1, Relaxed)));
            let path = output.with_file_name(own);
            if !path.exists() {
                return Ok(Temporary(path));
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Columns in their places, zeros between them.
fn scattered(left: &[f32], columns: usize, kept: &[usize]) -> Vec<f32> {
    let mut all = vec![0.0; left.len() / kept.len().max(1) * columns];
    for (row, left) in all.chunks_exact_mut(columns.max(1)).zip(left.chunks_exact(kept.len().max(1))) {
        kept.iter().zip(left).for_each(|(column, w)| row[*column] = *w);
    }
    all
}
