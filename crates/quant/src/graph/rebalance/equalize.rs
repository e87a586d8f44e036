//! Channels between two convolutions made equally large (Nagel, van Baalen, Blankevoort, Welling: Data-free quantization through weight equalization and bias
//! correction, 2019).

use core_tensor::op::{Op, Pool, PoolKind, Unary};
use core_tensor::{Graph, ValueId};

use super::super::GraphQuantError;
use super::fold::{extent, makers, readers};
use super::{Edits, Rebalanced};

/// Passes over all pairs at most; each changes less.
const PASSES: usize = 40;
/// Passes end when no factor is farther from 1.
const ENOUGH: f32 = 1e-3;
/// Factors of a channel stay between this and its inverse.
const FARTHEST: f32 = 1e4;

/// A convolution with constant weights.
struct Convolution {
    weight: ValueId,
    bias: Option<ValueId>,
    /// Whether each output reads one input alone, the one with the same index.
    depthwise: bool,
    outputs: usize,
    inputs: usize,
    /// The largest magnitude that the weights of an output have for an input, `[outputs, inputs]`; depthwise `[outputs]`.
    largest: Vec<f32>,
    value: ValueId,
}

/// Multiplies each channel between two convolutions by what makes its weights before and after equally large, where nothing but ReLU, LeakyReLU and pooling
/// lies between and nobody else reads it. A ReLU6 ends such a chain: it cuts all channels at the same number.
///
/// # Errors
/// When a weight cannot be read.
pub fn equalize(graph: &Graph) -> Result<(Graph, Vec<Rebalanced>), GraphQuantError> {
    let counts = readers(graph);
    let makers = makers(graph);
    let mut convolutions: Vec<Option<Convolution>> = Vec::with_capacity(graph.nodes().len());
    for at in 0..graph.nodes().len() {
        convolutions.push(convolution(graph, at, &counts)?);
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for (at, node) in graph.nodes().iter().enumerate().filter(|(at, _)| convolutions[*at].is_some()) {
        let Some(mut x) = node.inputs.first().copied().flatten() else { continue };
        let before = loop {
            let Some(maker) = makers[x.index()].filter(|_| counts[x.index()] == 1) else { break None };
            if convolutions[maker].is_some() {
                break Some(maker);
            }
            let node = &graph.nodes()[maker];
            match (&node.op, node.inputs.first().copied().flatten()) {
                (op, Some(input)) if homogeneous(op) => x = input,
                _ => break None,
            }
        };
        pairs.extend(before.map(|before| (before, at)));
    }
    // What each convolution's outputs and inputs are multiplied by.
    let mut outputs: Vec<Vec<f32>> = Vec::new();
    let mut inputs: Vec<Vec<f32>> = Vec::new();
    for convolution in &convolutions {
        outputs.push(vec![1.0; convolution.as_ref().map_or(0, |conv| conv.outputs)]);
        inputs.push(vec![1.0; convolution.as_ref().map_or(0, |conv| conv.inputs)]);
    }
    for _ in 0..PASSES {
        let mut farthest = 0.0f32;
        for (before, after) in &pairs {
            let (Some(first), Some(second)) = (&convolutions[*before], &convolutions[*after]) else { continue };
            let made = first.by_output(&outputs[*before], &inputs[*before]);
            let read = second.by_input(&outputs[*after], &inputs[*after]);
            for (channel, (made, read)) in made.iter().zip(&read).enumerate() {
                if *made <= 0.0 || *read <= 0.0 {
                    continue;
                }
                // Both become the geometric mean.
                let factor = (read / made).sqrt();
                let all = outputs[*before][channel] * factor;
                if !all.is_finite() || !(1.0 / FARTHEST..=FARTHEST).contains(&all) {
                    continue;
                }
                farthest = farthest.max((factor - 1.0).abs());
                outputs[*before][channel] = all;
                inputs[*after][channel] /= factor;
            }
        }
        if farthest < ENOUGH {
            break;
        }
    }
    let mut edits = Edits::default();
    for (before, after) in &pairs {
        let (Some(first), Some(second)) = (&convolutions[*before], &convolutions[*after]) else { continue };
        edits.scale(graph, first.weight, 0, &outputs[*before])?;
        if let Some(bias) = first.bias {
            edits.scale(graph, bias, 0, &outputs[*before])?;
        }
        edits.scale(graph, second.weight, usize::from(!second.depthwise), &inputs[*after])?;
        let bounds = |(low, high): (f32, f32), x: &f32| (low.min(*x), high.max(*x));
        let factors = outputs[*before].iter().fold((f32::INFINITY, 0.0), bounds);
        let value = graph.value(first.value).name.clone();
        edits.done.push(Rebalanced { value, folded: true, factors });
    }
    edits.apply(graph)
}

/// Whether the operator treats channels alone, and f(c x) = c f(x) for c > 0.
fn homogeneous(op: &Op) -> bool {
    matches!(
        op,
        Op::Unary(Unary::Relu | Unary::LeakyRelu { .. })
            | Op::Pool(Pool { kind: PoolKind::Max | PoolKind::Average { .. }, indices: false, .. })
    )
}

fn convolution(graph: &Graph, at: usize, counts: &[usize]) -> Result<Option<Convolution>, GraphQuantError> {
    let node = &graph.nodes()[at];
    let Op::Conv(conv) = &node.op else { return Ok(None) };
    let input = |place: usize| node.inputs.get(place).copied().flatten();
    let (Some(x), Some(id)) = (input(0), input(1)) else { return Ok(None) };
    let (Some(weight), Some(channels)) = (graph.weight_of(id), extent(graph, x, 1)) else { return Ok(None) };
    let bias = input(2);
    let [out, per_group, ..] = *weight.shape() else { return Ok(None) };
    let alone = |id: ValueId| counts[id.index()] == 1;
    let depthwise = conv.groups == channels && out == channels && per_group == 1;
    let whole = conv.groups == 1 && per_group == channels;
    let constant = bias.is_none_or(|id| graph.weight_of(id).is_some_and(|bias| bias.shape() == [out]) && alone(id));
    if !(depthwise || whole) || !constant || !alone(id) {
        return Ok(None);
    }
    let failed = |source| GraphQuantError::Weight { name: graph.value(id).name.clone(), source };
    let values = weight.rows_f32(0..weight.row_count()).map_err(failed)?;
    let kernel = (values.len() / (out * per_group).max(1)).max(1);
    let largest =
        values.chunks_exact(kernel).map(|part| part.iter().fold(0.0f32, |most, x| most.max(x.abs()))).collect();
    let value = node.outputs.first().copied().unwrap_or(x);
    Ok(Some(Convolution { weight: id, bias, depthwise, outputs: out, inputs: channels, largest, value }))
}

impl Convolution {
    /// The largest magnitude of each output's weights with these factors.
    fn by_output(&self, outputs: &[f32], inputs: &[f32]) -> Vec<f32> {
        if self.depthwise {
            return (0..self.outputs).map(|i| self.largest[i] * outputs[i] * inputs[i]).collect();
        }
        let rows = self.largest.chunks_exact(self.inputs.max(1)).zip(outputs);
        rows.map(|(row, factor)| factor * row.iter().zip(inputs).fold(0.0f32, |most, (x, f)| most.max(x * f))).collect()
    }

    /// The largest magnitude of the weights that read each input.
    fn by_input(&self, outputs: &[f32], inputs: &[f32]) -> Vec<f32> {
        if self.depthwise {
            return self.by_output(outputs, inputs);
        }
        let mut most = vec![0.0f32; self.inputs];
        for (row, factor) in self.largest.chunks_exact(self.inputs.max(1)).zip(outputs) {
            most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x * factor));
        }
        most.iter().zip(inputs).map(|(most, factor)| most * factor).collect()
    }
}
