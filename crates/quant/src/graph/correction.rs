//! What rounding takes from the mean of outputs, given back (Nagel, van Baalen, Blankevoort, Welling: Data-free quantization through weight equalization and
//! bias correction, 2019; with means that were observed).

use core_tensor::op::{Binary, Op};
use core_tensor::{Graph, ValueId, ValueSource};

use super::integers::Matrix;

/// `(W - W')·mean(x)` for each output. Of a convolution the columns are its channels, each as many as its kernel has elements, and `groups` of outputs read as
/// many groups of channels. None where the means are not those of as many channels.
pub(super) fn of_outputs(matrix: &Matrix, decoded: &[f32], means: &[f32], groups: usize) -> Option<Vec<f32>> {
    let k = matrix.columns;
    let per_group = means.len().checked_div(groups)?;
    let kernel = k.checked_div(per_group)?;
    let rows_per_group = matrix.rows / groups;
    let fits = (per_group * groups, kernel * per_group, rows_per_group * groups) == (means.len(), k, matrix.rows);
    if !fits || kernel == 0 || decoded.len() != matrix.values.len() {
        return None;
    }
    let rows = matrix.values.chunks_exact(k).zip(decoded.chunks_exact(k));
    let outputs = rows.enumerate().map(|(row, (old, new))| {
        let means = &means[row / rows_per_group * per_group..][..per_group];
        let parts = old.iter().zip(new).enumerate();
        parts.map(|(i, (x, y))| f64::from(x - y) * f64::from(means[i / kernel])).sum::<f64>() as f32
    });
    Some(outputs.collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_of_other_channels_are_refused() {
        let matrix = Matrix { rows: 2, columns: 4, values: vec![1.0; 8] };
        let decoded = [0.5; 8];
        assert_eq!(of_outputs(&matrix, &decoded, &[1.0, 2.0, 3.0, 4.0], 1), Some(vec![5.0, 5.0]));
        // Two groups of two channels with kernels of two.
        assert_eq!(of_outputs(&matrix, &decoded, &[1.0, 2.0, 3.0, 4.0], 2), Some(vec![3.0, 7.0]));
        for (means, groups) in [(3, 1), (5, 1), (8, 1), (0, 1), (4, 3), (4, 0)] {
            assert_eq!(of_outputs(&matrix, &decoded, &vec![1.0; means], groups), None, "{means} {groups}");
        }
    }
}
