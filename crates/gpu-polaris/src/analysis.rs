//! What a graph does with its weights: the same answer when they are loaded and when programs are compiled.

use std::collections::{BTreeMap, BTreeSet};

use core_tensor::op::{Gather, MatMul, Op};
use core_tensor::{Graph, Node, ValueId};

use crate::filters::{Filter, FilterKey};
use crate::layout::Format;

/// A matrix on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MatrixKey {
    pub(crate) weight: ValueId,
    /// The other half of a gated pair: its tiles stand between those of `weight`, the gate.
    pub(crate) up: Option<ValueId>,
    /// Whether it is stored `[k, n]`.
    pub(crate) transposed: bool,
}

/// How the weights of a graph are used.
#[derive(Clone, Debug, Default)]
pub(crate) struct Analysis {
    /// Matrices in the tiled layout.
    pub(crate) matrices: BTreeSet<MatrixKey>,
    /// Weights of convolutions.
    pub(crate) filters: BTreeSet<FilterKey>,
    /// Weights that kernels read as they are stored.
    pub(crate) plain: BTreeSet<ValueId>,
    /// For a gated activation whose products are computed as one: the gate's and the up side's product.
    pub(crate) pairs: BTreeMap<ValueId, (ValueId, ValueId)>,
}

/// The readers of each value, by node; outputs of the graph count as `usize::MAX`.
pub(crate) fn readers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut readers = vec![Vec::new(); graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().flatten().for_each(|id| readers[id.index()].push(i));
    }
    graph.outputs().iter().for_each(|id| readers[id.index()].push(usize::MAX));
    readers
}

fn input(node: &Node, i: usize) -> Option<ValueId> {
    node.inputs.get(i).copied().flatten()
}

/// The node that computes a value as its first output.
pub(crate) fn producer(graph: &Graph, id: ValueId) -> Option<&Node> {
    graph.nodes().iter().find(|node| node.outputs.first() == Some(&id))
}

/// Whether rows of a weight are gathered from the tiled layout.
pub(crate) fn is_table(graph: &Graph, op: Gather, id: ValueId) -> bool {
    (op.axis == 0 || op.axis == -2)
        && graph.weight_of(id).is_some()
        && graph.tensor_type(id).is_some_and(|(dtype, shape)| Format::of(dtype).is_some() && shape.len() == 2)
}

/// Whether a weight is one matrix of a format that products read.
pub(crate) fn is_matrix(graph: &Graph, id: ValueId) -> bool {
    graph.weight_of(id).is_some()
        && graph.tensor_type(id).is_some_and(|(dtype, shape)| shape.len() == 2 && Format::of(dtype).is_some())
}

impl Analysis {
    pub(crate) fn new(graph: &Graph) -> Analysis {
        let readers = readers(graph);
        let mut analysis = Analysis { pairs: pairs(graph, &readers), ..Analysis::default() };
        let mut paired = BTreeSet::new();
        for (gate, up) in analysis.pairs.values() {
            let weight = |product: &ValueId| input(producer(graph, *product)?, 1);
            if let (Some(weight), Some(second)) = (weight(gate), weight(up)) {
                analysis.matrices.insert(MatrixKey { weight, up: Some(second), transposed: false });
                paired.extend([*gate, *up]);
            }
        }
        for node in graph.nodes() {
            for (at, id) in node.inputs.iter().enumerate() {
                let Some(id) = id.filter(|id| graph.weight_of(*id).is_some()) else { continue };
                match &node.op {
                    Op::MatMul(MatMul { transpose_b }) if at == 1 && is_matrix(graph, id) => {
                        if !node.outputs.first().is_some_and(|y| paired.contains(y)) {
                            analysis.matrices.insert(MatrixKey { weight: id, up: None, transposed: !transpose_b });
                        }
                    }
                    Op::Gather(op) if at == 0 && is_table(graph, *op, id) => {
                        analysis.matrices.insert(MatrixKey { weight: id, up: None, transposed: false });
                    }
                    Op::Conv(_) | Op::ConvTranspose(_) if at == 1 => {
                        analysis
                            .filters
                            .extend(FilterKey::of(graph, node).filter(|key| Filter::of(graph, *key).is_some()));
                    }
                    // The host computes with frequency factors.
                    Op::RotaryEmbedding(_) if at == 2 => {}
                    _ => {
                        analysis.plain.insert(id);
                    }
                }
            }
        }
        analysis
    }
}

/// Gated activations of two products of the same value with weights alike that nothing else uses.
fn pairs(graph: &Graph, readers: &[Vec<usize>]) -> BTreeMap<ValueId, (ValueId, ValueId)> {
    let mut pairs = BTreeMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let (Op::GatedActivation(_), Some(gate), Some(up)) = (&node.op, input(node, 0), input(node, 1)) else {
            continue;
        };
        let product = |id: ValueId| {
            if readers[id.index()] != [i] {
                return None;
            }
            let node = producer(graph, id)?;
            let weight = input(node, 1)?;
            let (dtype, shape) = graph.tensor_type(weight)?;
            let fits = matches!(node.op, Op::MatMul(MatMul { transpose_b: true }))
                && graph.weight_of(weight).is_some()
                && readers[weight.index()].len() == 1
                && Format::of(dtype).is_some();
            fits.then(|| (id, input(node, 0), weight, dtype, shape.to_vec()))
        };
        let (Some(gate), Some(up)) = (product(gate), product(up)) else { continue };
        let alike = (gate.1, gate.3, &gate.4) == (up.1, up.3, &up.4);
        if gate.0 != up.0 && gate.2 != up.2 && alike {
            pairs.insert(node.outputs[0], (gate.0, up.0));
        }
    }
    pairs
}
