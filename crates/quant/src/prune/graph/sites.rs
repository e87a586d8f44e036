//! Where a graph has matrices.

use core_tensor::op::{Op, Window};
use core_tensor::{Graph, Node, ValueId};

use super::GraphPruneError;
use crate::graph::{Matrix, read_matrix, weighted};

/// What a node does with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Multiplies with it; whether it is stored `[outputs, inputs]`.
    Product { transposed: bool },
    /// Convolves with it, all channels with each other.
    Convolution { window: Window, kernel: Vec<usize> },
}

/// A product or a convolution with a constant weight: a matrix with a row for each output, and a column for each input (for each channel and
/// place of the window, places side by side).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The node's number.
    pub node: usize,
    /// What meets the weight.
    pub input: ValueId,
    /// The weight.
    pub weight: ValueId,
    /// Outputs.
    pub rows: usize,
    /// Inputs, times the places of the window.
    pub columns: usize,
    pub(super) kind: Kind,
}

/// All of them, in the graph's order. Convolutions in groups are none: their channels meet parts of the others only.
#[must_use]
pub fn sites(graph: &Graph) -> Vec<Site> {
    graph.nodes().iter().enumerate().filter_map(|(at, node)| site(graph, at, node)).collect()
}

fn site(graph: &Graph, at: usize, node: &Node) -> Option<Site> {
    let (input, weight, stored) = weighted(graph, node, 1)?;
    let (kind, rows, columns) = match (&node.op, stored.shape()) {
        (Op::MatMul(op), [a, b]) => {
            let (rows, columns) = if op.transpose_b { (*a, *b) } else { (*b, *a) };
            (Kind::Product { transposed: op.transpose_b }, rows, columns)
        }
        (Op::Conv(op), [rows, channels, kernel @ ..]) if op.groups == 1 && !kernel.is_empty() => {
            let columns = channels * kernel.iter().product::<usize>();
            (Kind::Convolution { window: op.window.clone(), kernel: kernel.to_vec() }, *rows, columns)
        }
        _ => return None,
    };
    (rows > 0 && columns > 0).then_some(Site { node: at, input, weight, rows, columns, kind })
}

impl Site {
    /// Columns of an input: the places of the window.
    #[must_use]
    pub fn unit(&self) -> usize {
        match &self.kind {
            Kind::Product { .. } => 1,
            Kind::Convolution { kernel, .. } => kernel.iter().product(),
        }
    }

    /// The weight, `[outputs, inputs]`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn matrix(&self, graph: &Graph) -> Result<Matrix, GraphPruneError> {
        let Some(weight) = graph.weight_of(self.weight) else {
            return Ok(Matrix { rows: 0, columns: self.columns, values: Vec::new() });
        };
        let matrix = read_matrix(weight, self.kind == (Kind::Product { transposed: false }));
        matrix.map_err(|source| GraphPruneError::Weight { name: graph.value(self.weight).name.clone(), source })
    }

    /// Extents and elements as the node wants them of a matrix of so many outputs.
    pub(super) fn stored(&self, matrix: Matrix) -> (Vec<usize>, Vec<f32>) {
        match &self.kind {
            Kind::Product { transposed: true } => (vec![matrix.rows, matrix.columns], matrix.values),
            Kind::Product { transposed: false } => (vec![matrix.columns, matrix.rows], matrix.transposed().values),
            Kind::Convolution { kernel, .. } => {
                let mut shape = vec![matrix.rows, matrix.columns / self.unit().max(1)];
                shape.extend(kernel);
                (shape, matrix.values)
            }
        }
    }
}

/// The numbers of a weight.
pub(super) fn floats(graph: &Graph, id: ValueId) -> Result<Vec<f32>, GraphPruneError> {
    let Some(weight) = graph.weight_of(id) else { return Ok(Vec::new()) };
    let values = weight.rows_f32(0..weight.row_count());
    weight.stored_tensors(&mut |tensor| tensor.release());
    values.map_err(|source| GraphPruneError::Weight { name: graph.value(id).name.clone(), source })
}
