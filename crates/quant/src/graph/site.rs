//! Where a graph has weights that can be quantized.

use core_tensor::op::{Gather, Op};
use core_tensor::{DType, Graph, Node, ValueId, ValueSource, Weight, WeightError};

use super::integers::{Matrix, transpose_into};
use super::{GraphOptions, GraphQuantError, GraphType};

/// What a node does with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Multiplies with it.
    Product {
        /// Whether it is stored `[outputs, inputs]`.
        transposed: bool,
    },
    /// Convolves with it.
    Convolution,
    /// Takes rows of it.
    Table,
}

/// A node with a constant weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// The node's number.
    pub(super) node: usize,
    pub(super) kind: Kind,
    /// What the weight is applied to (the indices of a table).
    pub(super) input: ValueId,
    pub(super) weight: ValueId,
}

/// All nodes whose weights the options ask for, in order.
pub(super) fn sites(graph: &Graph, options: &GraphOptions) -> Result<Vec<Site>, GraphQuantError> {
    for node in graph.nodes() {
        if matches!(node.op, Op::QuantizeLinear(_) | Op::MatMulInteger(_) | Op::ConvInteger(_)) {
            return Err(GraphQuantError::Quantized { op: node.op.name() });
        }
    }
    if let GraphType::Int4 { group } = options.ty
        && (group == 0 || !group.is_multiple_of(32))
    {
        return Err(GraphQuantError::Group { group });
    }
    let found: Vec<Site> = graph
        .nodes()
        .iter()
        .enumerate()
        .filter(|(_, node)| !options.skip.contains(&node.name))
        .filter_map(|(at, node)| site(graph, at, node, options))
        .collect();
    if found.is_empty() {
        return Err(GraphQuantError::Nothing { minimum: options.minimum });
    }
    Ok(found)
}

fn site(graph: &Graph, at: usize, node: &Node, options: &GraphOptions) -> Option<Site> {
    let (kind, place) = match node.op {
        Op::MatMul(op) => (Kind::Product { transposed: op.transpose_b }, 1),
        Op::Conv(_) if options.convolutions => (Kind::Convolution, 1),
        Op::Gather(Gather { axis: 0 }) if options.tables => (Kind::Table, 0),
        _ => return None,
    };
    let (input, weight, stored) = weighted(graph, node, place)?;
    let count: usize = stored.shape().iter().product();
    let fits = match (kind, options.ty) {
        (Kind::Convolution, GraphType::Int4 { .. }) => false,
        (Kind::Convolution, _) => stored.shape().len() >= 3,
        // Blocks of 4 bits lie along the inputs.
        (Kind::Product { transposed }, GraphType::Int4 { .. }) => {
            let inputs = stored.shape().get(usize::from(transposed)).copied().unwrap_or(1);
            stored.shape().len() == 2 && inputs.is_multiple_of(32)
        }
        (Kind::Table, GraphType::Int4 { .. }) => stored.shape().len() == 2 && stored.row_len().is_multiple_of(32),
        _ => stored.shape().len() == 2,
    };
    (fits && count >= options.minimum.max(1)).then_some(Site { node: at, kind, input, weight })
}

/// The computed one of a node's first two inputs, and the other, which is a constant of floats.
pub(crate) fn weighted<'a>(graph: &'a Graph, node: &Node, place: usize) -> Option<(ValueId, ValueId, &'a Weight)> {
    let id = |at: usize| node.inputs.get(at).copied().flatten();
    let (input, weight) = (id(1 - place.min(1))?, id(place)?);
    let stored = graph.weight_of(weight)?;
    let float = matches!(stored.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let computed = !matches!(graph.value(input).source, ValueSource::Weight(_));
    (float && computed).then_some((input, weight, stored))
}

/// A weight as a matrix, whose rows are those of its first extent, or of its last where it is `turned`.
pub(crate) fn read_matrix(weight: &Weight, turned: bool) -> Result<Matrix, WeightError> {
    let (count, length) = (weight.row_count(), weight.row_len());
    let step = (AT_ONCE / length.max(1)).max(1);
    let mut values = if turned { vec![0.0; count * length] } else { Vec::with_capacity(count * length) };
    for first in (0..count).step_by(step) {
        let rows = first..(first + step).min(count);
        let part = weight.rows_f32(rows.clone())?;
        weight.release_rows(rows.clone());
        if turned {
            transpose_into(&part, rows.len(), length, &mut values[first..], count);
        } else {
            values.extend(part);
        }
    }
    if turned {
        return Ok(Matrix { rows: length, columns: count, values });
    }
    let rows = weight.shape().first().copied().unwrap_or(1);
    Ok(Matrix { rows, columns: values.len() / rows.max(1), values })
}

impl Site {
    /// The channels of what the weight is applied to, as the weight has them: inputs of a product, channels of an image.
    pub(super) fn channels(&self, graph: &Graph) -> Option<usize> {
        let shape = graph.weight_of(self.weight)?.shape();
        match self.kind {
            Kind::Product { transposed } => shape.get(usize::from(transposed)).copied(),
            Kind::Convolution => shape.get(1)?.checked_mul(self.groups(graph)),
            Kind::Table => None,
        }
    }

    /// The extent of what the weight is applied to that has them.
    pub(super) fn axis(&self, graph: &Graph) -> Option<usize> {
        match self.kind {
            Kind::Product { .. } => graph.tensor_type(self.input)?.1.len().checked_sub(1),
            Kind::Convolution => Some(1),
            Kind::Table => None,
        }
    }

    /// Groups of channels.
    pub(super) fn groups(&self, graph: &Graph) -> usize {
        match graph.nodes().get(self.node).map(|node| &node.op) {
            Some(Op::Conv(conv)) => conv.groups,
            _ => 1,
        }
    }

    /// The weight, one row for each output (or row of a table).
    pub(super) fn matrix(&self, graph: &Graph) -> Result<Matrix, GraphQuantError> {
        let name = || graph.value(self.weight).name.clone();
        let missing = || GraphQuantError::NotObserved { name: name() };
        let weight = graph.weight_of(self.weight).ok_or_else(missing)?;
        let matrix = read_matrix(weight, self.kind == (Kind::Product { transposed: false }));
        let matrix = matrix.map_err(|source| GraphQuantError::Weight { name: name(), source })?;
        match matrix.values.iter().all(|value| value.is_finite()) {
            true => Ok(matrix),
            false => Err(GraphQuantError::NotFinite { name: name() }),
        }
    }
}

/// Elements of a weight that are read at once.
const AT_ONCE: usize = 1 << 20;
