//! The whole model trained on the float model's predictions (Hinton et al. 2015), layer by layer backwards: only one layer's intermediate values are in memory.

use std::collections::HashMap;
use std::path::PathBuf;

use core_tensor::op::{Binary, Op, Reduce, ReduceKind, Reshape, Softmax, Unary};
use core_tensor::{DType, Dim, Graph, Tensor};
use loader_gguf::Gguf;
use polaris_quant::reconstruct::Adam;
use polaris_runtime::Executable;

use super::layers::{Layers, differentiate};
use super::random::Random;
use super::weights::{LayerWeights, Starts, original};
use super::{OnReconstruct, Output, ReconstructOptions, ReconstructProgress, finite};
use crate::Error;
use crate::llama::LlamaConfig;
use crate::llama::trained::{self, Part};
use crate::quantize::mixed::overlay::Overlay;

/// Behind the last layer: what the predictions of both models are compared with.
pub(super) struct Head {
    /// Of the float model: activations, positions, norm to probabilities.
    teacher: Executable,
    /// Activations, positions, norm, probabilities, 1 / tokens to divergence, gradients by activations and norm.
    student: Executable,
    name: String,
    original: Tensor,
    norm: Vec<f32>,
    adam: Adam,
    /// The mean magnitude of the norm's weights.
    size: f32,
}

impl Head {
    /// The student's output matrix is as the plan will have it.
    pub(super) fn new(
        model: &Gguf,
        config: &LlamaConfig,
        layers: &Layers<'_>,
        starts: &Starts<'_>,
        output: &Output,
    ) -> Result<Head, Error> {
        let part = trained::head(config, model)?;
        let teacher = layers.load(probabilities(&part)?)?;
        let mut overlay = Overlay { model, replaced: HashMap::new() };
        if let Some(tensor) = starts.planned.get(output.name).filter(|tensor| tensor.from != tensor.to) {
            let bytes = starts.encoded(tensor, &original(model, output.name)?, output.feedback.as_deref())?;
            overlay.replaced.insert(output.name.to_owned(), Tensor::from_bytes(tensor.to, &tensor.shape, &bytes)?);
        }
        let student = layers.load(divergence(&trained::head(config, &overlay)?)?)?;
        let name = part.parameters.first().map(|norm| norm.name.clone()).unwrap_or_default();
        let norm = original(model, &name)?;
        let size = norm.iter().map(|v| v.abs()).sum::<f32>() / norm.len().max(1) as f32;
        let original = Tensor::from_slice(&[norm.len()], &norm)?;
        Ok(Head { teacher, student, name, original, adam: Adam::new(norm.len()), norm, size })
    }

    /// The divergence of the predictions from the float model's (nats, mean over tokens), and its gradients by the activations and the norm.
    fn compare(&self, x: &Tensor, float: &Tensor, positions: &Tensor) -> Result<(f64, Tensor, Vec<f32>), Error> {
        let failed = || Error::Unusable { path: "".into(), reason: "a program without output".into() };
        let given = [float.clone(), positions.clone(), self.original.clone()];
        let wanted = self.teacher.run(&given)?.into_iter().next().ok_or_else(failed)?;
        let norm = Tensor::from_slice(&[self.norm.len()], &self.norm)?;
        let share = Tensor::from_slice(&[1, 1], &[1.0 / positions.len() as f32])?;
        let outputs = self.student.run(&[x.clone(), positions.clone(), norm, wanted, share])?;
        let [kl, dx, dnorm] = &outputs[..] else { return Err(failed()) };
        let kl = kl.elements::<f32>()?.iter().map(|kl| f64::from(*kl)).sum();
        Ok((kl, dx.clone(), dnorm.to_vec()?))
    }

    /// The norm, as the file holds it.
    pub(super) fn into_stored(self) -> Result<(String, Tensor), Error> {
        let norm = Tensor::from_slice(&[self.norm.len()], &self.norm)?;
        Ok((self.name, norm))
    }
}

/// The head with probabilities for its output.
fn probabilities(part: &Part) -> Result<Graph, Error> {
    let mut graph = part.graph.clone();
    let p = graph.add("probabilities", Op::Softmax(Softmax), &[part.y])?;
    graph.output(p);
    Ok(only(graph, &[1]))
}

/// The head with the divergence of its probabilities from an input's, and the gradients by its activations and its norm.
fn divergence(part: &Part) -> Result<Graph, Error> {
    let mut graph = part.graph.clone();
    let shape = graph.tensor_type(part.y).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let rows = shape.first().cloned().unwrap_or(Dim::Num(1));
    let wanted = graph.input("wanted", DType::F32, &shape);
    let share = graph.input("share", DType::F32, &[1.into(), 1.into()]);
    // Logarithms of what is nothing are not to be infinite.
    let least = core_tensor::Weight::stored(Tensor::from_slice(&[1, 1], &[1e-20f32])?);
    let least = graph.weight("least", least);
    let p = graph.add("probabilities", Op::Softmax(Softmax), &[part.y])?;
    let mut logarithm = |name: &str, p| {
        let p = graph.add(name, Op::Binary(Binary::Max), &[p, least])?;
        graph.add(name, Op::Unary(Unary::Log), &[p])
    };
    let (log_wanted, log_p) = (logarithm("wanted.log", wanted)?, logarithm("probabilities.log", p)?);
    let above = graph.add("divergence.above", Op::Binary(Binary::Sub), &[log_wanted, log_p])?;
    let terms = graph.add("divergence.terms", Op::Binary(Binary::Mul), &[above, wanted])?;
    let sum = Op::Reduce(Reduce { kind: ReduceKind::Sum });
    let kl = graph.add("divergence.rows", sum.clone(), &[terms])?;
    let kl = graph.add("divergence.row", Op::Reshape(Reshape { shape: vec![1.into(), rows] }), &[kl])?;
    let kl = graph.add("divergence.sum", sum, &[kl])?;
    let kl = graph.add("divergence", Op::Binary(Binary::Mul), &[kl, share])?;
    graph.output(kl);
    // Of the divergence by the logits: what the probabilities differ by.
    let off = graph.add("off", Op::Binary(Binary::Sub), &[p, wanted])?;
    let off = graph.add("off.share", Op::Binary(Binary::Mul), &[off, share])?;
    let mut by = vec![part.x];
    by.extend(part.parameters.iter().map(|parameter| parameter.value));
    Ok(only(differentiate(&graph, part.y, Some(off), &by)?, &[1, 2, 3]))
}

/// A graph with some of its outputs.
fn only(graph: Graph, outputs: &[usize]) -> Graph {
    let graph = std::sync::Arc::new(graph).with_outputs(outputs);
    Graph::clone(&graph)
}

/// What [`distill`] trains, and on what.
pub(super) struct Distillation<'a> {
    /// The model's file.
    pub(super) path: PathBuf,
    /// All layers.
    pub(super) weights: &'a mut [LayerWeights],
    pub(super) head: &'a mut Head,
    /// What enters the first layer, by chunks.
    pub(super) embedded: &'a [Tensor],
    /// What leaves the float model's last layer.
    pub(super) float: &'a [Tensor],
}

/// Trains all layers together.
pub(super) fn distill(
    layers: &mut Layers<'_>,
    model: &mut Distillation<'_>,
    options: &ReconstructOptions,
    random: &mut Random,
    progress: &mut OnReconstruct<'_>,
) -> Result<Vec<f64>, Error> {
    let positions = layers.positions()?;
    let mut divergences = Vec::with_capacity(options.distill_steps);
    model.weights.iter_mut().for_each(LayerWeights::restart);
    for step in 0..options.distill_steps {
        let left = options.distill_rate * (1.0 - step as f32 / options.distill_steps as f32);
        let picked = random.below(model.embedded.len());
        let mut entered = vec![model.embedded[picked].clone()];
        for (layer, weights) in model.weights.iter_mut().enumerate() {
            layers.enter(layer)?;
            let x = layers.forward(&weights.tensors()?, &entered[layer])?;
            entered.push(x);
        }
        let x = entered.pop().unwrap_or_else(|| model.embedded[picked].clone());
        let (divergence, mut dy, norm) = model.head.compare(&x, &model.float[picked], &positions)?;
        finite(&model.path, divergence, || format!("step {} on the predictions", step + 1))?;
        let rate = options.vector_rate * left * model.head.size;
        let Head { norm: weights, adam, .. } = &mut *model.head;
        adam.step(weights, &norm, rate);
        for (layer, weights) in model.weights.iter_mut().enumerate().rev() {
            layers.enter(layer)?;
            let (dx, gradients) = layers.pull(&weights.tensors()?, &entered[layer], &dy)?;
            weights.step(&gradients, left)?;
            dy = dx;
        }
        divergences.push(divergence);
        let told = ReconstructProgress::Distillation { step: step + 1, steps: options.distill_steps, divergence };
        if progress(told).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(divergences)
}
