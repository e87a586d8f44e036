//! The model's layers as programs: forwards, and backwards from an error.

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use core_tensor::op::{Binary, Op, Reduce, ReduceKind, Reshape};
use core_tensor::{Backend, DType, Dim, Graph, Tensor, ValueId};
use loader_gguf::Gguf;
use polaris_gradient::{GradientError, backward};
use polaris_runtime::{Executable, ExecutableOptions};

use super::ReconstructOptions;
use super::weights::LayerWeights;
use crate::Error;
use crate::backends::{self, BackendOptions};
use crate::llama::trained::{self, Parameter, Part};
use crate::llama::{Layer, LlamaConfig};

/// Chunks on which errors are measured.
const MEASURED: usize = 16;

/// The programs of the layers; those of one shape share them.
pub(super) struct Layers<'a> {
    model: &'a Gguf,
    config: &'a LlamaConfig,
    backends: Vec<Arc<dyn Backend>>,
    context: usize,
    programs: Vec<Programs>,
    /// The layer at hand: its programs, and its parameters.
    current: Option<(usize, Vec<Parameter>)>,
}

/// The programs of all layers of one shape.
struct Programs {
    layer: Layer,
    /// Names without the layer's number.
    suffixes: Vec<String>,
    part: Part,
    forward: Executable,
    /// From an error of the output; made when it is first needed.
    from_error: OnceLock<Executable>,
    /// From the gradient by the output.
    from_gradient: OnceLock<Executable>,
}

impl<'a> Layers<'a> {
    pub(super) fn new(
        model: &'a Gguf,
        config: &'a LlamaConfig,
        options: &ReconstructOptions,
    ) -> Result<Layers<'a>, Error> {
        let backends = backends::open(&BackendOptions::exact(options.threads))?.backends;
        Ok(Layers { model, config, backends, context: options.context, programs: Vec::new(), current: None })
    }

    /// Makes the programs of a layer, unless those at hand serve it, too.
    pub(super) fn enter(&mut self, number: usize) -> Result<(), Error> {
        let part = trained::layer(self.config, self.model, number)?;
        let layer = self.config.layers[number];
        let suffix = |p: &Parameter| p.name.replacen(&format!(".{number}."), ".", 1);
        let suffixes: Vec<String> = part.parameters.iter().map(suffix).collect();
        let known = self.programs.iter().position(|known| known.layer == layer && known.suffixes == suffixes);
        let parameters = part.parameters.clone();
        let at = match known {
            Some(at) => at,
            None => {
                let forward = self.load(part.graph.clone())?;
                let (from_error, from_gradient) = (OnceLock::new(), OnceLock::new());
                self.programs.push(Programs { layer, suffixes, part, forward, from_error, from_gradient });
                self.programs.len() - 1
            }
        };
        self.current = Some((at, parameters));
        Ok(())
    }

    /// A graph as a program.
    pub(super) fn load(&self, graph: Graph) -> Result<Executable, Error> {
        let go_on = &mut |_, _| ControlFlow::Continue(());
        Ok(Executable::load(&self.backends, graph, ExecutableOptions::default(), go_on)?)
    }

    fn programs(&self) -> Result<&Programs, Error> {
        let at = self.current.as_ref().and_then(|(at, _)| self.programs.get(*at));
        at.ok_or_else(|| self.missing("no layer is at hand"))
    }

    fn missing(&self, reason: &str) -> Error {
        Error::Unusable { path: self.model.path().to_owned(), reason: reason.to_owned() }
    }

    /// What a cell holds, made by `graph` if it is empty.
    fn made<'b>(
        &self,
        cell: &'b OnceLock<Executable>,
        graph: impl FnOnce() -> Result<Graph, Error>,
    ) -> Result<&'b Executable, Error> {
        if cell.get().is_none() {
            let _ = cell.set(self.load(graph()?)?);
        }
        cell.get().ok_or_else(|| self.missing("a program was not made"))
    }

    pub(super) fn parameters(&self) -> &[Parameter] {
        self.current.as_ref().map_or(&[], |(_, parameters)| parameters)
    }

    /// The layer's weights as they are in the file.
    pub(super) fn originals(&self) -> Result<LayerWeights, Error> {
        LayerWeights::originals(self.model, self.parameters())
    }

    /// `0..context`, i32.
    pub(super) fn positions(&self) -> Result<Tensor, Error> {
        let positions: Vec<i32> = (0..self.context as i32).collect();
        Ok(Tensor::from_slice(&[self.context], &positions)?)
    }

    /// Takes a chunk through the layer.
    pub(super) fn forward(&self, weights: &[Tensor], x: &Tensor) -> Result<Tensor, Error> {
        let mut inputs = vec![x.clone(), self.positions()?];
        inputs.extend_from_slice(weights);
        let outputs = self.programs()?.forward.run(&inputs)?;
        outputs.into_iter().next().ok_or_else(|| self.missing("a layer without output"))
    }

    /// From the gradient by the output of a chunk to those by the chunk and by the parameters.
    pub(super) fn pull(&self, weights: &[Tensor], x: &Tensor, dy: &Tensor) -> Result<(Tensor, Vec<Vec<f32>>), Error> {
        let programs = self.programs()?;
        let program = self.made(&programs.from_gradient, || with_gradient(&programs.part))?;
        let mut inputs = vec![x.clone(), self.positions()?];
        inputs.extend_from_slice(weights);
        inputs.push(dy.clone());
        // The layer's output comes first.
        let mut outputs = program.run(&inputs)?.into_iter().skip(1);
        let dx = outputs.next().ok_or_else(|| self.missing("a layer without gradient"))?;
        Ok((dx, outputs.map(|gradient| gradient.to_vec()).collect::<Result<_, _>>()?))
    }

    /// Takes chunks through the layer.
    pub(super) fn run(&self, weights: &[Tensor], chunks: &mut [Tensor]) -> Result<(), Error> {
        for chunk in chunks {
            *chunk = self.forward(weights, chunk)?;
        }
        Ok(())
    }

    /// The mean over tokens of the squared error relative to the target's squares, on some chunks.
    pub(super) fn error(&self, weights: &[Tensor], chunks: &[Tensor], targets: &[Tensor]) -> Result<f64, Error> {
        let (mut sum, mut count) = (0.0, 0);
        let width = self.config.embedding;
        for (chunk, target) in chunks.iter().zip(targets).take(MEASURED) {
            let y = self.forward(weights, chunk)?;
            let (y, target) = (y.elements::<f32>()?, target.elements::<f32>()?);
            for (y, target) in y.chunks_exact(width).zip(target.chunks_exact(width)) {
                let error: f64 = y.iter().zip(target).map(|(y, t)| f64::from(y - t).powi(2)).sum();
                sum += error / power(target);
                count += 1;
            }
        }
        Ok(sum / f64::from(count.max(1)))
    }

    /// The loss on some chunks, and its gradients by the parameters.
    pub(super) fn gradients(
        &self,
        weights: &[Tensor],
        picked: &[usize],
        chunks: &[Tensor],
        targets: &[Tensor],
    ) -> Result<(f64, Vec<Vec<f32>>), Error> {
        let width = self.config.embedding;
        let programs = self.programs()?;
        let program = self.made(&programs.from_error, || with_loss(&programs.part))?;
        let mut loss = 0.0;
        let mut sums: Vec<Vec<f32>> = Vec::new();
        for number in picked {
            let target = &targets[*number];
            // Each token counts alike, however large its activations are: the layers behind scale all to the same size.
            let share = (self.context * picked.len()) as f64;
            let scale = |target: &[f32]| (1.0 / (power(target) * share)).sqrt() as f32;
            let scales: Vec<f32> = target.elements::<f32>()?.chunks_exact(width).map(scale).collect();
            let mut inputs = vec![chunks[*number].clone(), self.positions()?];
            inputs.extend_from_slice(weights);
            inputs.push(target.clone());
            inputs.push(Tensor::from_slice(&[self.context, 1], &scales)?);
            // The layer's output, the loss, the gradients.
            let outputs = program.run(&inputs)?;
            let mut outputs = outputs.into_iter().skip(1);
            if let Some(found) = outputs.next() {
                loss += found.elements::<f32>()?.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            }
            add(&mut sums, outputs)?;
        }
        Ok((loss, sums))
    }
}

/// Adds gradients to those of other chunks; none are nothing yet.
pub(in crate::quantize) fn add(sums: &mut Vec<Vec<f32>>, gradients: impl Iterator<Item = Tensor>) -> Result<(), Error> {
    if sums.is_empty() {
        *sums = gradients.map(|gradient| gradient.to_vec()).collect::<Result<_, _>>()?;
        return Ok(());
    }
    for (sum, gradient) in sums.iter_mut().zip(gradients) {
        sum.iter_mut().zip(gradient.elements::<f32>()?.iter()).for_each(|(sum, more)| *sum += more);
    }
    Ok(())
}

/// The sum of squares; of zeros, something.
pub(in crate::quantize) fn power(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().max(1e-20)
}

/// A layer with the sum of the squares of `(y - target) · scale` as its second output, and the gradients by its parameters as the others. Further inputs:
/// `target` as `y`, and `scale` f32 `[tokens, 1]`.
fn with_loss(part: &Part) -> Result<Graph, Error> {
    let mut graph = part.graph.clone();
    let shape = graph.tensor_type(part.y).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let rows = shape.first().cloned().unwrap_or(Dim::Num(1));
    let target = graph.input("target", DType::F32, &shape);
    let scale = graph.input("scale", DType::F32, &[rows.clone(), Dim::Num(1)]);
    let error = graph.add("error", Op::Binary(Binary::Sub), &[part.y, target])?;
    let scaled = graph.add("error.scaled", Op::Binary(Binary::Mul), &[error, scale])?;
    let squares = Op::Reduce(Reduce { kind: ReduceKind::SumSquare });
    let squares = graph.add("error.squares", squares, &[scaled])?;
    let row = graph.add("error.row", Op::Reshape(Reshape { shape: vec![Dim::Num(1), rows] }), &[squares])?;
    let loss = graph.add("loss", Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[row])?;
    graph.output(loss);
    let by: Vec<_> = part.parameters.iter().map(|parameter| parameter.value).collect();
    differentiate(&graph, loss, None, &by)
}

/// A layer with the gradients by its activations and its parameters, given that by its output as a further input.
fn with_gradient(part: &Part) -> Result<Graph, Error> {
    let mut graph = part.graph.clone();
    let shape = graph.tensor_type(part.y).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let dy = graph.input("dy", DType::F32, &shape);
    let mut by = vec![part.x];
    by.extend(part.parameters.iter().map(|parameter| parameter.value));
    differentiate(&graph, part.y, Some(dy), &by)
}

pub(in crate::quantize) fn differentiate(
    graph: &Graph,
    of: ValueId,
    cotangent: Option<ValueId>,
    by: &[ValueId],
) -> Result<Graph, Error> {
    let unusable = |error: GradientError| Error::Unusable { path: graph.name().into(), reason: error.to_string() };
    backward(graph, of, cotangent, by).map_err(unusable)
}
