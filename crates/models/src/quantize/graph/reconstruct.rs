//! Integers of graphs trained so that outputs stay what they were, on calibration data: fake quantization with gradients that pass straight through.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use core_tensor::op::{Binary, Op, Reduce, ReduceKind, Reshape, Transpose};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId};
use polaris_gradient::backward;
use polaris_quant::graph::{GraphOptions, GraphQuantError, GraphType, Opened, Trained, open};
use polaris_quant::reconstruct::Rates;
use polaris_runtime::{Executable, ExecutableOptions};

use super::calibration::{CalibrationData, Steps};
use super::{GraphModel, GraphQuantizeOptions};
use crate::Error;
use crate::backends::{self, BackendOptions};
use crate::quantize::reconstruct::layers::{add, power};
use crate::quantize::reconstruct::random::Random;
use crate::quantize::reconstruct::{check_counts, check_rates};
use crate::quantize::{LayerReport, ReconstructReport};

/// Runs on which errors are measured.
const MEASURED: usize = 16;

/// How the weights of a graph are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphReconstructOptions {
    /// Steps of the optimizer.
    pub steps: usize,
    /// Runs of a step.
    pub batch: usize,
    /// How far a weight moves in the first step, in codes; it falls to 0.
    pub rate: f32,
    /// The same for the logarithms of scales.
    pub scale_rate: f32,
    /// The same for biases and the vectors of normalizations, relative to their mean magnitude.
    pub vector_rate: f32,
    /// Seed of the order of runs.
    pub seed: u64,
}

impl GraphReconstructOptions {
    /// 200 steps of 8 runs. A code of 8 bits is a far smaller part of its scale than one of 4.
    #[must_use]
    pub fn new(ty: GraphType) -> GraphReconstructOptions {
        let [rate, scale_rate, vector_rate] =
            if matches!(ty, GraphType::Int4 { .. }) { [0.01, 3e-4, 5e-4] } else { [0.004, 3e-5, 1e-4] };
        GraphReconstructOptions { steps: 200, batch: 8, rate, scale_rate, vector_rate, seed: 1 }
    }

    /// # Errors
    /// When a number makes no sense.
    fn check(&self) -> Result<(), Error> {
        check_counts(&[("batch", self.batch)], self.steps)?;
        check_rates(&[("rate", self.rate), ("scale_rate", self.scale_rate), ("vector_rate", self.vector_rate)])
    }
}

/// What training gives.
pub(super) struct Reconstructed {
    /// The graph with trained vectors.
    pub(super) graph: Graph,
    /// Integers by its weights.
    pub(super) trained: BTreeMap<ValueId, Trained>,
    pub(super) report: ReconstructReport,
}

/// Trains the weights that the options would round.
pub(super) fn reconstruct(
    model: &GraphModel,
    graph: &Graph,
    options: &GraphQuantizeOptions,
    how: &GraphReconstructOptions,
    data: &CalibrationData,
    steps: &mut Steps<'_>,
) -> Result<Reconstructed, Error> {
    how.check()?;
    let measured = data.runs.len().min(MEASURED) as u64;
    steps.total = steps.done + data.runs.len() as u64 + 2 * measured + how.steps as u64 + 2;
    let mut trainer = Trainer::new(model, graph, &options.graph, data, steps)?;
    let before = trainer.error(data, steps)?;
    let mut random = Random::new(how.seed);
    for step in 0..how.steps {
        steps.next("reconstruction")?;
        let left = 1.0 - step as f32 / how.steps as f32;
        let picked: Vec<usize> = (0..how.batch).map(|_| random.below(data.runs.len())).collect();
        let gradients = trainer.gradients(&picked, data)?;
        let rates = Rates { codes: how.rate * left, scales: how.scale_rate * left };
        trainer.opened.step(&gradients, rates, how.vector_rate * left, options.graph.threads);
    }
    let after = trainer.error(data, steps)?;
    if !(before.is_finite() && after.is_finite()) {
        let why = "weights or outputs are no numbers, or beyond f32; smaller rates may help";
        return Err(model.unusable(format!("the outputs' error was {before}, and is {after} after training: {why}")));
    }
    let (graph, trained) = trainer.opened.finish(graph).map_err(|error| model.unusable(error))?;
    let report = ReconstructReport {
        context: 0,
        chunks: data.runs.len(),
        steps: how.steps,
        batch: how.batch,
        rate: how.rate,
        scale_rate: how.scale_rate,
        vector_rate: how.vector_rate,
        seed: how.seed,
        layers: vec![LayerReport { layer: 0, before, after }],
        distill_rate: 0.0,
        distillation: Vec::new(),
    };
    Ok(Reconstructed { graph, trained, report })
}

/// The graph's weights in training, and the programs.
struct Trainer {
    /// The model's file.
    path: PathBuf,
    opened: Opened,
    /// From inputs and parameters to outputs.
    forward: Executable,
    /// From inputs, parameters, targets and scales to the gradients by the parameters, behind the outputs.
    gradient: Executable,
    /// Which outputs are compared: those of f32.
    compared: Vec<usize>,
    outputs: usize,
    /// What the graph gave for each run: the outputs that are compared, each with what squares of its errors and of those of its means count.
    targets: Vec<Vec<Target>>,
}

struct Target {
    tensor: Tensor,
    scales: [f32; 2],
}

impl Trainer {
    fn new(
        model: &GraphModel,
        graph: &Graph,
        options: &GraphOptions,
        data: &CalibrationData,
        steps: &mut Steps<'_>,
    ) -> Result<Trainer, Error> {
        let opened = backends::open(&BackendOptions::exact(options.threads))?;
        let load = |graph: Graph| {
            let go_on = &mut |_, _| ControlFlow::Continue(());
            Executable::load(&opened.backends, graph, ExecutableOptions::default(), go_on)
        };
        let is_float = |id: &ValueId| graph.tensor_type(*id).is_some_and(|(dtype, _)| dtype == DType::F32);
        let outputs = graph.outputs();
        let compared: Vec<usize> = (0..outputs.len()).filter(|at| is_float(&outputs[*at])).collect();
        if compared.is_empty() {
            return Err(model.unusable("it has no output of f32 that could stay what it was"));
        }
        let float = load(graph.clone())?;
        let mut targets = Vec::with_capacity(data.runs.len());
        for inputs in &data.runs {
            steps.next("the original")?;
            let given = float.run(inputs)?;
            let picked = compared.iter().map(|at| Target::of(&given[*at]));
            targets.push(picked.collect::<Result<Vec<_>, Error>>()?);
        }
        drop(float);
        let trained = open(graph, options).map_err(|error| model.unusable(error))?;
        let (forward, gradient) = (load(trained.graph.clone())?, load(with_gradient(model, &trained, &compared)?)?);
        Ok(Trainer {
            path: model.path.clone(),
            opened: trained,
            forward,
            gradient,
            compared,
            outputs: outputs.len(),
            targets,
        })
    }

    /// The mean over runs of the squared error relative to the target's squares.
    fn error(&self, data: &CalibrationData, steps: &mut Steps<'_>) -> Result<f64, Error> {
        let parameters = self.parameters()?;
        let (mut sum, mut count) = (0.0, 0);
        for (inputs, targets) in data.runs.iter().zip(&self.targets).take(MEASURED) {
            steps.next("reconstruction")?;
            let given = self.forward.run(&[inputs.clone(), parameters.clone()].concat())?;
            for (at, target) in self.compared.iter().zip(targets) {
                let (y, wanted) = (given[*at].elements::<f32>()?, target.tensor.elements::<f32>()?);
                let error: f64 = y.iter().zip(wanted.iter()).map(|(y, t)| f64::from(y - t).powi(2)).sum();
                sum += error / power(&wanted);
                count += 1;
            }
        }
        Ok(sum / f64::from(count.max(1)))
    }

    fn parameters(&self) -> Result<Vec<Tensor>, Error> {
        let failed = |error: GraphQuantError| Error::Unusable { path: self.path.clone(), reason: error.to_string() };
        self.opened.tensors().map_err(failed)
    }

    /// The gradients of the mean relative error over some runs by the parameters.
    fn gradients(&self, picked: &[usize], data: &CalibrationData) -> Result<Vec<Vec<f32>>, Error> {
        let parameters = self.parameters()?;
        let share = (picked.len() as f32).sqrt().recip();
        let mut sums: Vec<Vec<f32>> = Vec::new();
        for number in picked {
            let mut inputs = [data.runs[*number].clone(), parameters.clone()].concat();
            for target in &self.targets[*number] {
                inputs.push(target.tensor.clone());
                for scale in target.scales {
                    inputs.push(Tensor::from_slice(&[1], &[scale * share])?);
                }
            }
            // The outputs, the loss, the gradients.
            let found = self.gradient.run(&inputs)?.into_iter().skip(self.outputs + 1);
            add(&mut sums, found)?;
        }
        Ok(sums)
    }
}

impl Target {
    fn of(tensor: &Tensor) -> Result<Target, Error> {
        let values = tensor.elements::<f32>()?;
        let mut scales = [power(&values).sqrt().recip() as f32, 0.0];
        if let [.., rows, width] = *tensor.shape()
            && tensor.shape().len() >= 3
        {
            let mut squares = 0.0;
            for matrix in values.chunks_exact((rows * width).max(1)) {
                let mean = |column: usize| -> f64 {
                    matrix.iter().skip(column).step_by(width).map(|x| f64::from(*x)).sum::<f64>() / rows as f64
                };
                squares += (0..width).map(|column| mean(column).powi(2)).sum::<f64>();
            }
            scales[1] = squares.max(1e-20).sqrt().recip() as f32;
        }
        Ok(Target { tensor: tensor.clone(), scales })
    }
}

/// The opened graph with the loss and its gradients by the parameters as outputs behind its own. Further inputs for each output that is compared: the target, and
/// f32 `[1]` what errors and errors of means over positions (the extent before the last of three or more: what embeddings are made of) are multiplied with.
fn with_gradient(model: &GraphModel, opened: &Opened, compared: &[usize]) -> Result<Graph, Error> {
    let mut graph = opened.graph.clone();
    let mut losses = Vec::new();
    for at in compared {
        let y = graph.outputs()[*at];
        let shape = graph.tensor_type(y).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
        let rank = shape.len();
        let target = graph.input(&format!("target.{at}"), DType::F32, &shape);
        let scales = [0, 1].map(|i| graph.input(&format!("scale.{at}.{i}"), DType::F32, &[1.into()]));
        let error = graph.add("error", Op::Binary(Binary::Sub), &[y, target])?;
        losses.push(squares(&mut graph, error, scales[0])?);
        if rank >= 3 {
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 2, rank - 1);
            let turned = graph.add("error.turned", Op::Transpose(Transpose { perm }), &[error])?;
            let mean = graph.add("error.mean", Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[turned])?;
            losses.push(squares(&mut graph, mean, scales[1])?);
        }
    }
    let (first, others) = losses.split_first().ok_or_else(|| model.unusable("no output is compared"))?;
    let mut loss = *first;
    for more in others {
        loss = graph.add("loss", Op::Binary(Binary::Add), &[loss, *more])?;
    }
    graph.output(loss);
    backward(&graph, loss, None, &opened.parameters).map_err(|error| model.unusable(error))
}

/// The sum of the squares of `x · scale`, `[1, 1]`.
fn squares(graph: &mut Graph, x: ValueId, scale: ValueId) -> Result<ValueId, Error> {
    let shape = graph.tensor_type(x).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let mut sum = graph.add("error.scaled", Op::Binary(Binary::Mul), &[x, scale])?;
    let mut kind = ReduceKind::SumSquare;
    let last = shape.len().max(1);
    // The extents from the last to the first, each as the last one in its turn.
    for left in (1..=last).rev() {
        if left < last {
            let ones = vec![Dim::Num(1); last - left];
            let shape = [&shape[..left - 1], &ones, &shape[left - 1..left]].concat();
            sum = graph.add("error.row", Op::Reshape(Reshape { shape }), &[sum])?;
        }
        sum = graph.add("error.sum", Op::Reduce(Reduce { kind }), &[sum])?;
        kind = ReduceKind::Sum;
    }
    Ok(graph.add("error.all", Op::Reshape(Reshape { shape: vec![Dim::Num(1); 2] }), &[sum])?)
}
