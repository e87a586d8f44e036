//! What meets the matrices of a model while a text runs through it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use core_tensor::Tensor;
use loader_gguf::Gguf;
use polaris_quant::gptq::{Feedback, FeedbackError};
use polaris_quant::prune::Products;
use polaris_quant::{Importance, Importances};

use super::chunks::Picked;
use super::pipeline::{LoadProgress, positions};
use super::taps::{Sums, Tap, build_tapped};
use super::{Llama, LlamaConfig, LlamaOptions, Row};
use crate::quantize::{Calibration, FeedbackSettings};
use crate::tokenizer::EncodeOptions;
use crate::{Error, backends};

/// Of which text how much runs through a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most; `None` takes all of the text.
    pub chunks: Option<usize>,
    /// Which they are.
    pub picked: Picked,
    /// What the result calls the text (a path).
    pub dataset: String,
}

/// Told after each chunk how many are done and how many there are; `Break` stops there.
pub type OnChunk<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// A model whose activations are summed up, and the text that is to run through it: chunks of `context` tokens, each begun with the
/// token that begins a text if the model wants one; what remains behind the last whole chunk is left out.
struct Tapped {
    model: Llama,
    taps: Vec<Tap>,
    tokens: Vec<u32>,
    context: usize,
    /// The numbers of those that run.
    chunks: Vec<usize>,
}

impl Tapped {
    fn open(
        path: &Path,
        options: &LlamaOptions,
        text: &str,
        collect: &CalibrationOptions,
        sums: Sums,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Tapped, Error> {
        let context = collect.context;
        let options = LlamaOptions { context: Some(context), slots: 1, ..*options };
        let gguf = Gguf::open(path, options.access)?;
        let config = LlamaConfig::from_gguf(&gguf)?;
        let (graph, taps) = build_tapped(&config, &gguf, options.kv_dtype, positions(&config, &options)?, sums)?;
        let opened = backends::open(&options.backend)?;
        let model = Llama::with_graph(&gguf, config, graph, &opened.backends, &options, progress)?;
        let tokens = model.tokenize(text, EncodeOptions { add_special: true, parse_special: false });
        let chunks = collect.picked.numbers(tokens.len() / context, collect.chunks);
        if chunks.is_empty() {
            return Err(Error::TextTooShort { tokens: tokens.len(), needed: context, context });
        }
        Ok(Tapped { model, taps, tokens, context, chunks })
    }

    /// Runs the text and hands the sums of some taps to `each` after every step. Gives the number of chunks that were run.
    fn run(
        &self,
        taps: &[Tap],
        on_chunk: &mut OnChunk<'_>,
        each: &mut dyn FnMut(&[Tensor]) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let tokenizer = self.model.tokenizer();
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        let outputs: Vec<usize> = taps.iter().map(|tap| tap.output).collect();
        let mut sequences = self.model.sequences(1)?;
        for (done, number) in self.chunks.iter().enumerate() {
            let chunk = &self.tokens[number * self.context..][..self.context];
            sequences.truncate(0, 0)?;
            let row = |(position, token): (usize, &u32)| Row {
                slot: 0,
                token: if position == 0 { bos.unwrap_or(*token) } else { *token },
                // Else the last layer would see some rows only.
                logits: true,
            };
            let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
            sequences.outputs(&rows, &outputs, each)?;
            if on_chunk(done + 1, self.chunks.len()).is_break() {
                return Ok(done + 1);
            }
        }
        Ok(self.chunks.len())
    }
}

/// Runs a text through a model and sums the squares of what meets the matrices of its layers, as llama.cpp's llama-imatrix does. The
/// output matrix is not among them.
///
/// `progress` is told of the loading, `on_chunk` of the chunks; when it stops, what was collected until then comes back.
///
/// # Errors
/// As [`Llama::open`]; when the text has less than a chunk of tokens or the backend fails.
pub fn importances(
    path: &Path,
    options: &LlamaOptions,
    text: &str,
    collect: &CalibrationOptions,
    progress: &mut LoadProgress<'_>,
    on_chunk: &mut OnChunk<'_>,
) -> Result<Importances, Error> {
    let tapped = Tapped::open(path, options, text, collect, Sums::Squares, progress)?;
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); tapped.taps.len()];
    let done = tapped.run(&tapped.taps, on_chunk, &mut |step| {
        for (sums, more) in sums.iter_mut().zip(step) {
            let more = more.elements::<f32>()?;
            sums.resize(more.len(), 0.0);
            sums.iter_mut().zip(more.iter()).for_each(|(sum, more)| *sum += f64::from(*more));
        }
        Ok(())
    })?;
    let mut entries = BTreeMap::new();
    for (tap, sums) in tapped.taps.into_iter().zip(sums) {
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        for name in tap.names {
            let counts = vec![(done * tapped.context) as f32];
            entries.insert(name, Importance { sums: sums.clone(), counts });
        }
    }
    Ok(Importances {
        entries,
        datasets: vec![collect.dataset.clone()],
        chunks: done as u32,
        chunk_size: tapped.context as u32,
    })
}

/// What [`TextCalibration`] needs beside the text.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedbackOptions {
    /// Added to the products' diagonal, relative to its mean: see [`Feedback::new`].
    pub damping: f64,
    /// Bytes of products that are held at once. The text runs through the model as often as all of them need.
    pub memory: u64,
    /// Threads that factorize.
    pub threads: usize,
    /// What is held of the products.
    pub hold: Hold,
}

impl Default for FeedbackOptions {
    /// Damping 0.1, 1 GiB, all threads, feedback.
    fn default() -> FeedbackOptions {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        FeedbackOptions { damping: 0.1, memory: 1 << 30, threads, hold: Hold::Feedback }
    }
}

/// What is held of how the inputs of a matrix go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// The factor of the inverse of the products.
    #[default]
    Feedback,
    /// The products.
    Products,
    /// Both.
    Both,
}

impl Hold {
    fn feedback(self) -> bool {
        self != Hold::Products
    }

    fn products(self) -> bool {
        self != Hold::Feedback
    }
}

/// How the inputs of a matrix go together, as far as it is held.
#[derive(Debug)]
pub struct MatrixInputs {
    /// The factor of the inverse of the products; where [`Hold`] asks for it.
    pub feedback: Option<Arc<Feedback>>,
    /// The products, in which a row of the inputs counts by what depends on it; where [`Hold`] asks for them.
    pub products: Option<Products>,
}

/// A text that says how the inputs of each matrix go together: what GPTQ and pruning need.
pub struct TextCalibration {
    tapped: Tapped,
    options: FeedbackOptions,
    dataset: String,
    held: Mutex<BTreeMap<String, Arc<MatrixInputs>>>,
    on_chunk: Box<dyn Fn(usize, usize) + Send + Sync>,
}

impl std::fmt::Debug for TextCalibration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextCalibration").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

impl TextCalibration {
    /// Opens the model. The text runs when matrices are asked for; `on_chunk` is told then.
    ///
    /// # Errors
    /// As [`importances`].
    pub fn open(
        path: &Path,
        options: &LlamaOptions,
        text: &str,
        collect: &CalibrationOptions,
        feedback: FeedbackOptions,
        progress: &mut LoadProgress<'_>,
        on_chunk: impl Fn(usize, usize) + Send + Sync + 'static,
    ) -> Result<TextCalibration, Error> {
        let tapped = Tapped::open(path, options, text, collect, Sums::Products, progress)?;
        let (dataset, on_chunk) = (collect.dataset.clone(), Box::new(on_chunk));
        Ok(TextCalibration { tapped, options: feedback, dataset, held: Mutex::default(), on_chunk })
    }

    fn tap_of(&self, tensor: &str) -> Option<usize> {
        self.tapped.taps.iter().position(|tap| tap.names.iter().any(|name| name == tensor))
    }

    /// For the first of some tensors, the others being those that will be asked for next, in their order; none where nothing is known of its inputs. This may
    /// take long: it asks whether it is to stop.
    ///
    /// # Errors
    /// When the model fails or the inputs say nothing, and [`Error::Cancelled`] when it was stopped.
    pub fn inputs(&self, upcoming: &[&str], stopped: &dyn Fn() -> bool) -> Result<Option<Arc<MatrixInputs>>, Error> {
        let Some(tensor) = upcoming.first().filter(|tensor| self.tap_of(tensor).is_some()) else { return Ok(None) };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.contains_key(*tensor) {
            // Before the next ones take their place.
            held.clear();
            *held = self.collect(upcoming, stopped)?;
        }
        Ok(held.get(*tensor).cloned())
    }

    /// What is to be held of a matrix's inputs.
    fn made(&self, products: Vec<f32>, columns: usize) -> Result<MatrixInputs, FeedbackError> {
        let hold = self.options.hold;
        let feedback = match hold.feedback() {
            true => Some(Arc::new(Feedback::new(&products, columns, self.options.damping)?)),
            false => None,
        };
        let products = if hold.products() { Some(Products::new(products, columns)?) } else { None };
        Ok(MatrixInputs { feedback, products })
    }

    /// Runs the text for the first of some tensors, and as many of the others as there is memory for.
    fn collect(
        &self,
        upcoming: &[&str],
        stopped: &dyn Fn() -> bool,
    ) -> Result<BTreeMap<String, Arc<MatrixInputs>>, Error> {
        let each = if self.options.hold == Hold::Both { 8 } else { 4 };
        let mut room = self.options.memory;
        let mut taps: Vec<Tap> = Vec::new();
        let mut known = BTreeSet::new();
        for at in upcoming.iter().filter_map(|tensor| self.tap_of(tensor)).filter(|at| known.insert(*at)) {
            let tap = &self.tapped.taps[at];
            let bytes = (tap.columns as u64).pow(2) * each;
            if bytes > room && !taps.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            taps.push(tap.clone());
        }
        let mut sums: Vec<Vec<f32>> = taps.iter().map(|tap| vec![0.0; tap.columns * tap.columns]).collect();
        let mut cancelled = false;
        self.tapped.run(
            &taps,
            &mut |done, total| {
                (self.on_chunk)(done, total);
                cancelled = stopped();
                if cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
            &mut |step| {
                for (sums, more) in sums.iter_mut().zip(step) {
                    sums.iter_mut().zip(more.elements::<f32>()?.iter()).for_each(|(sum, more)| *sum += more);
                }
                Ok(())
            },
        )?;
        if cancelled {
            return Err(Error::Cancelled);
        }
        let next = AtomicUsize::new(0);
        let sums: Vec<Mutex<Vec<f32>>> = sums.into_iter().map(Mutex::new).collect();
        let made: Vec<OnceLock<Result<MatrixInputs, FeedbackError>>> = taps.iter().map(|_| OnceLock::new()).collect();
        std::thread::scope(|scope| {
            for _ in 0..self.options.threads.clamp(1, taps.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(tap), Some(sums), Some(made)) = (taps.get(at), sums.get(at), made.get(at)) else {
                            break;
                        };
                        let products = std::mem::take(&mut *sums.lock().unwrap_or_else(PoisonError::into_inner));
                        let _ = made.set(self.made(products, tap.columns));
                    }
                });
            }
        });
        let mut all = BTreeMap::new();
        for (tap, made) in taps.into_iter().zip(made) {
            let Some(inputs) = made.into_inner() else { continue };
            let failed = |error: FeedbackError| {
                let reason = format!("the inputs of {}: {error}", tap.names.join(", "));
                Error::Unusable { path: self.dataset.clone().into(), reason }
            };
            let inputs = Arc::new(inputs.map_err(failed)?);
            all.extend(tap.names.iter().map(|name| (name.clone(), inputs.clone())));
        }
        Ok(all)
    }
}

impl Calibration for TextCalibration {
    fn dataset(&self) -> &str {
        &self.dataset
    }

    fn feedback(&self, upcoming: &[&str], stopped: &dyn Fn() -> bool) -> Result<Option<Arc<Feedback>>, Error> {
        Ok(self.inputs(upcoming, stopped)?.and_then(|inputs| inputs.feedback.clone()))
    }

    fn feedback_settings(&self) -> Option<FeedbackSettings> {
        let (context, chunks) = (self.tapped.context, self.tapped.chunks.len());
        self.options.hold.feedback().then_some(FeedbackSettings { damping: self.options.damping, context, chunks })
    }
}
