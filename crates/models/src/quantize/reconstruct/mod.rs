//! Quantized weights trained so that each layer gives what it gave: block-wise reconstruction (BRECQ: Li et al. 2021) on a text.
//!
//! Layer by layer: what the float layer makes of the float model's activations is the target; the inputs are the activations of the layers before it as
//! they are quantized already, so that errors are made up for instead of adding up. Behind the last layer the whole may be trained once more on the float
//! model's predictions (distillation: Hinton et al. 2015), layer by layer backwards.
//!
//! Activations are f32; everything runs on the processor.

mod chunks;
mod distillation;
pub(super) mod layers;
pub(super) mod random;
mod weights;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{Tensor, decode_f32};
use loader_gguf::Gguf;
use polaris_quant::gptq::Feedback;
use serde::{Deserialize, Serialize};

use super::{Calibration, FeedbackSettings, Planned, QuantizeOptions, plan};
use crate::Error;
use crate::backends::{BackendOptions, Device};
use crate::llama::{CalibrationOptions, LlamaConfig, LlamaOptions, Picked, importances};

use chunks::{Chunks, EMBEDDING};
use distillation::{Distillation, Head, distill};
use layers::Layers;
use random::Random;
use weights::{LayerWeights, Starts};

/// How weights are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct ReconstructOptions {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most.
    pub chunks: usize,
    /// Steps of the optimizer for each layer.
    pub steps: usize,
    /// Chunks of a step.
    pub batch: usize,
    /// How far a weight moves in the first step, in codes of its format; it falls to 0.
    pub rate: f32,
    /// The same for the logarithms of scales.
    pub scale_rate: f32,
    /// The same for vectors (norms, biases), relative to their mean magnitude.
    pub vector_rate: f32,
    /// Steps in which all layers are trained together on the float model's predictions, one chunk each; 0 for none. All layers are in memory then, with what
    /// the optimizer knows of them: some 16 bytes for each weight.
    pub distill_steps: usize,
    /// What all rates are multiplied with in these steps.
    pub distill_rate: f32,
    /// Seed of the order of chunks.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
}

impl Default for ReconstructOptions {
    /// 64 chunks of 512 tokens, 100 steps of one chunk.
    fn default() -> ReconstructOptions {
        ReconstructOptions {
            context: 512,
            chunks: 64,
            steps: 100,
            batch: 1,
            rate: 0.02,
            scale_rate: 0.002,
            vector_rate: 0.002,
            distill_steps: 0,
            distill_rate: 0.05,
            seed: 1,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl ReconstructOptions {
    /// # Errors
    /// When a number makes no sense.
    fn check(&self) -> Result<(), Error> {
        check_counts(&[("context", self.context), ("chunks", self.chunks), ("batch", self.batch)], self.steps)?;
        if self.distill_steps > MOST_STEPS {
            return wrong("distill_steps", format!("it is not between 0 and {MOST_STEPS}"));
        }
        let rates = [
            ("rate", self.rate),
            ("scale_rate", self.scale_rate),
            ("vector_rate", self.vector_rate),
            ("distill_rate", self.distill_rate),
        ];
        check_rates(&rates)
    }
}

/// Steps of the optimizer at most.
const MOST_STEPS: usize = 1_000_000;

fn wrong(name: &'static str, reason: impl Into<String>) -> Result<(), Error> {
    Err(Error::Option { name, reason: reason.into() })
}

/// Fails where there are no steps or too many, or nothing of something else.
pub(super) fn check_counts(counts: &[(&'static str, usize)], steps: usize) -> Result<(), Error> {
    if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
        return wrong(name, "it is 0");
    }
    if (1..=MOST_STEPS).contains(&steps) {
        Ok(())
    } else {
        wrong("steps", format!("it is not between 1 and {MOST_STEPS}"))
    }
}

/// Fails where a rate is none.
pub(super) fn check_rates(rates: &[(&'static str, f32)]) -> Result<(), Error> {
    let found = rates.iter().find(|(_, rate)| !(0.0..=1.0).contains(rate));
    found.map_or(Ok(()), |(name, _)| wrong(name, "it is not between 0 and 1"))
}

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its number.
    pub layer: usize,
    /// The squared error of its output relative to the output's squares, mean over tokens: with weights as their encoder makes them.
    pub before: f64,
    /// With trained weights.
    pub after: f64,
}

/// The settings and what they brought, for manifests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReconstructReport {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks.
    pub chunks: usize,
    /// Steps for each layer.
    pub steps: usize,
    /// Chunks of a step.
    pub batch: usize,
    /// Rate of weights, in codes.
    pub rate: f32,
    /// Rate of scales.
    pub scale_rate: f32,
    /// Rate of vectors.
    pub vector_rate: f32,
    /// Seed of the order of chunks.
    pub seed: u64,
    /// Each layer.
    pub layers: Vec<LayerReport>,
    /// What rates were multiplied with while all layers were trained together.
    #[serde(default)]
    pub distill_rate: f32,
    /// The divergence of predictions (nats, mean over a chunk's tokens) before each step in which they were.
    #[serde(default)]
    pub distillation: Vec<f64>,
}

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReconstructProgress {
    /// The importances of columns are collected: chunks done and in all.
    Importances(usize, usize),
    /// A text runs for the weights' beginnings: asked again and again whether to go on.
    Inputs,
    /// A step of a layer is done.
    Layer {
        /// The layer.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Steps done.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The loss of the step.
        loss: f64,
    },
    /// A layer is done.
    Done(LayerReport),
    /// A step of all layers together is done.
    Distillation {
        /// Steps done.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The divergence of the predictions before it.
        divergence: f64,
    },
}

/// Told of every step; `Break` cancels.
pub type OnReconstruct<'a> = dyn FnMut(ReconstructProgress) -> ControlFlow<()> + 'a;

/// Trained weights: what [`quantize_calibrated`](super::quantize_calibrated) takes for those that its encoders would make.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    tensors: HashMap<String, Tensor>,
    output: Output,
    feedback: Option<FeedbackSettings>,
    dataset: String,
    /// What was done.
    pub report: ReconstructReport,
}

impl Calibration for Reconstruction {
    fn dataset(&self) -> &str {
        &self.dataset
    }

    fn feedback(&self, upcoming: &[&str], _: &dyn Fn() -> bool) -> Result<Option<Arc<Feedback>>, Error> {
        Ok(self.output.feedback.clone().filter(|_| upcoming.first() == Some(&self.output.name)))
    }

    fn feedback_settings(&self) -> Option<FeedbackSettings> {
        self.feedback.clone()
    }

    fn trained(&self, tensor: &str) -> Option<&Tensor> {
        self.tensors.get(tensor)
    }

    fn reconstruction(&self) -> Option<&ReconstructReport> {
        Some(&self.report)
    }
}

/// The matrix of the logits: it is rounded, and not trained.
#[derive(Clone, Debug)]
struct Output {
    name: &'static str,
    feedback: Option<Arc<Feedback>>,
}

/// Trains the matrices of a language model's layers, and their vectors of f32, for the types that `quantize` plans. Without importances in `quantize`, those of the
/// text are collected first, and put there, without the name of a file. With `start`, weights begin as they are rounded by what it knows of their inputs
/// ([`polaris_quant::gptq`]), the output matrix as well.
///
/// In memory are the activations of all chunks, twice, one layer with what the optimizer knows of it, and the quantized layers that are done.
///
/// # Errors
/// When the model is none that can be run, the text has less than a chunk, options make no sense, a backend fails; [`Error::Cancelled`] when `progress`
/// says so.
pub fn reconstruct(
    input: &Path,
    quantize: &mut QuantizeOptions,
    text: &str,
    dataset: &str,
    options: &ReconstructOptions,
    start: Option<&dyn Calibration>,
    progress: &mut OnReconstruct<'_>,
) -> Result<Reconstruction, Error> {
    options.check()?;
    let model = Gguf::open(input, quantize.access)?;
    let config = LlamaConfig::from_gguf(&model)?;
    config.check_context(options.context)?;
    if quantize.importances.is_none() && start.is_none() {
        let found = collect_importances(input, quantize, text, dataset, options, progress)?;
        quantize.importances = Some((found, String::new()));
    }
    let planned: HashMap<String, Planned> =
        plan(&model, quantize)?.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let chunks = Chunks::new(&model, text, options)?;
    let mut layers = Layers::new(&model, &config, options)?;
    let name = if planned.contains_key("output.weight") { "output.weight" } else { EMBEDDING };
    let feedback = start.map(|start| (start, order(&planned, name, config.layers.len())));
    let starts = Starts { model: &model, planned: &planned, quantize, feedback };
    let progress = RefCell::new(progress);
    let tell = |told: ReconstructProgress| (progress.borrow_mut())(told);
    let stopped = || tell(ReconstructProgress::Inputs).is_break();
    let output = Output { name, feedback: starts.feedback(name, &stopped)? };
    let mut float = chunks.embedded(&model, &config, None)?;
    let rounded = |values: &[f32]| -> Result<Vec<f32>, Error> {
        let Some(tensor) = planned.get(EMBEDDING).filter(|tensor| tensor.from != tensor.to) else {
            return Ok(values.to_vec());
        };
        let feedback = output.feedback.as_deref().filter(|_| output.name == EMBEDDING);
        let bytes = starts.encoded(tensor, values, feedback)?;
        decode_f32(tensor.to, &bytes, values.len()).map_err(|error| Error::Tensor {
            path: input.to_owned(),
            name: tensor.name.clone(),
            reason: error.to_string(),
        })
    };
    let mut quantized = chunks.embedded(&model, &config, Some(&rounded))?;
    let embedded = quantized.clone();
    let mut done = Vec::new();
    let mut random = Random::new(options.seed);
    let mut tensors = HashMap::new();
    let mut reports = Vec::with_capacity(config.layers.len());
    for layer in 0..config.layers.len() {
        layers.enter(layer)?;
        let mut originals = layers.originals()?;
        layers.run(&originals.tensors()?, &mut float)?;
        let mut weights = LayerWeights::new(&starts, layers.parameters(), options, &stopped)?;
        let plain = weights.tensors()?;
        let before = layers.error(&plain, &quantized, &float)?;
        finite(input, before, || format!("layer {layer} before training"))?;
        for step in 0..options.steps {
            let left = 1.0 - step as f32 / options.steps as f32;
            let given = weights.tensors()?;
            let picked: Vec<usize> = (0..options.batch).map(|_| random.below(quantized.len())).collect();
            let (loss, gradients) = layers.gradients(&given, &picked, &quantized, &float)?;
            finite(input, loss, || format!("step {} of layer {layer}", step + 1))?;
            weights.step(&gradients, left)?;
            let told = ReconstructProgress::Layer {
                layer,
                layers: config.layers.len(),
                step: step + 1,
                steps: options.steps,
                loss,
            };
            if tell(told).is_break() {
                return Err(Error::Cancelled);
            }
        }
        let given = weights.tensors()?;
        let after = layers.error(&given, &quantized, &float)?;
        finite(input, after, || format!("layer {layer}"))?;
        layers.run(&given, &mut quantized)?;
        let report = LayerReport { layer, before, after };
        reports.push(report);
        if tell(ReconstructProgress::Done(report)).is_break() {
            return Err(Error::Cancelled);
        }
        match options.distill_steps {
            0 => tensors.extend(weights.into_stored()?),
            _ => done.push(weights),
        }
    }
    let mut distillation = Vec::new();
    if options.distill_steps > 0 {
        let mut head = Head::new(&model, &config, &layers, &starts, &output)?;
        let mut whole = Distillation {
            path: input.to_owned(),
            weights: &mut done,
            head: &mut head,
            embedded: &embedded,
            float: &float,
        };
        distillation = distill(&mut layers, &mut whole, options, &mut random, &mut **progress.borrow_mut())?;
        tensors.extend([head.into_stored()?]);
        for mut weights in done {
            weights.tensors()?;
            tensors.extend(weights.into_stored()?);
        }
    }
    let report = ReconstructReport {
        context: options.context,
        chunks: chunks.len(),
        steps: options.steps,
        batch: options.batch,
        rate: options.rate,
        scale_rate: options.scale_rate,
        vector_rate: options.vector_rate,
        seed: options.seed,
        layers: reports,
        distill_rate: options.distill_rate,
        distillation,
    };
    let feedback = start.and_then(Calibration::feedback_settings);
    Ok(Reconstruction { tensors, output, feedback, dataset: dataset.to_owned(), report })
}

/// The tensors whose rounding follows their inputs, as they are asked for: the output matrix, then layer by layer.
fn order(planned: &HashMap<String, Planned>, output: &str, layers: usize) -> Vec<String> {
    let mut names: Vec<(usize, &str)> = Vec::new();
    for tensor in planned.values().filter(|tensor| tensor.takes_feedback()) {
        let layer: Option<usize> =
            tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        match layer {
            Some(layer) if layer < layers => names.push((layer + 1, &tensor.name)),
            _ if tensor.name == output => names.push((0, &tensor.name)),
            _ => {}
        }
    }
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Fails where a loss is no number: training on would make everything one.
fn finite(model: &Path, loss: f64, whose: impl FnOnce() -> String) -> Result<(), Error> {
    if loss.is_finite() {
        return Ok(());
    }
    let reason = format!(
        "the loss of {} is {loss}: weights or activations are no numbers, or beyond f32; smaller rates may help",
        whose()
    );
    Err(Error::Unusable { path: model.to_owned(), reason })
}

fn collect_importances(
    input: &Path,
    quantize: &QuantizeOptions,
    text: &str,
    dataset: &str,
    options: &ReconstructOptions,
    progress: &mut OnReconstruct<'_>,
) -> Result<polaris_quant::Importances, Error> {
    let backend = BackendOptions { device: Device::Cpu, threads: Some(options.threads), ..BackendOptions::default() };
    let run = LlamaOptions { access: quantize.access, backend, ..LlamaOptions::default() };
    let collect = CalibrationOptions {
        context: options.context,
        chunks: Some(options.chunks),
        picked: Picked::Spread,
        dataset: dataset.to_owned(),
    };
    let mut cancelled = false;
    let found = importances(input, &run, text, &collect, &mut |_, _| ControlFlow::Continue(()), &mut |done, all| {
        let flow = progress(ReconstructProgress::Importances(done, all));
        cancelled |= flow.is_break();
        flow
    })?;
    if cancelled { Err(Error::Cancelled) } else { Ok(found) }
}
