//! What rounding takes from the mean of outputs, given back (Nagel, van Baalen, Blankevoort, Welling: Data-free quantization through weight equalization and
//! bias correction, 2019; with means that were observed).

use core_tensor::op::{Binary, Op};
use core_tensor::{Graph, ValueId, ValueSource};

use super::integers::Matrix;

/// `(W - W')·mean(x)` for each output. Of a convolution the columns are its channels, each as many as its kernel has elements, and `groups` of outputs read as
/// many groups of channels.
pub(super) fn of_outputs(matrix: &Matrix, decoded: &[f32], means: &[f32], groups: usize) -> Vec<f32> {
    let k = matrix.columns.max(1);
    let per_group = (means.len() / groups.max(1)).max(1);
    let kernel = (k / per_group).max(1);
    let rows_per_group = (matrix.rows / groups.max(1)).max(1);
    let rows = matrix.values.chunks_exact(k).zip(decoded.chunks_exact(k));
    rows.enumerate()
        .map(|(row, (old, new))| {
            let first = row / rows_per_group * per_group;
            let parts = old.iter().zip(new).enumerate();
            parts.map(|(i, (x, y))| f64::from(x - y) * f64::from(means[first + i / kernel])).sum::<f64>() as f32
        })
        .collect()
}

/// The constant vector that is added to a value which nobody else reads: the number of the node, which input the constant is, and the constant.
pub(super) fn bias_after(graph: &Graph, value: ValueId) -> Option<(usize, usize, ValueId)> {
    if graph.outputs().contains(&value) {
        return None;
    }
    let mut readers = graph.nodes().iter().enumerate().filter(|(_, node)| node.inputs.contains(&Some(value)));
    let (at, node) = readers.next()?;
    if readers.next().is_some() || !matches!(node.op, Op::Binary(Binary::Add)) {
        return None;
    }
    let place = node.inputs.iter().position(|id| *id != Some(value))?;
    let id = node.inputs.get(place).copied().flatten()?;
    let constant = matches!(graph.value(id).source, ValueSource::Weight(_));
    let (dtype, shape) = graph.tensor_type(id)?;
    let vector = shape.split_last().is_some_and(|(_, before)| before.iter().all(|n| n.as_num() == Some(1)));
    (constant && vector && dtype == core_tensor::DType::F32).then_some((at, place, id))
}
