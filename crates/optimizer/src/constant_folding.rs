//! Computes what depends on weights alone.

use core_tensor::{Graph, GraphError, Node, Rewriter, Tensor, Weight, byte_len, evaluate_constant};

use crate::Rewritten;

/// Bytes by which a folded result may exceed the weights that it is computed from: folding must not turn a small file into a large
/// program (a broadcast, a dequantized matrix).
const GROWTH: usize = 64 << 10;

/// Evaluates nodes whose inputs are all weights with the reference implementation. A node that cannot be evaluated stays as it is, and
/// fails where it is run.
pub(crate) fn run(graph: &Graph) -> Result<Rewritten, GraphError> {
    if !graph.nodes().iter().any(|node| is_constant(graph, node)) {
        return Ok(None);
    }
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    for node in graph.nodes() {
        let folded = if is_constant(graph, node) { evaluate_constant(graph, node).ok() } else { None };
        let Some(tensors) = folded.filter(|tensors| tensors.len() == node.outputs.len()) else {
            rewriter.copy(node)?;
            continue;
        };
        for (output, tensor) in node.outputs.iter().zip(tensors) {
            let new = rewriter.graph().weight(&graph.value(*output).name, Weight::stored(tensor));
            rewriter.map(*output, new);
        }
        changed += 1;
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}

fn is_constant(graph: &Graph, node: &Node) -> bool {
    if node.op.has_effect() || node.inputs.iter().flatten().next().is_none() {
        return false;
    }
    let mut from = 0usize;
    for input in node.inputs.iter().flatten() {
        let Some(weight) = graph.weight_of(*input) else { return false };
        from = from.saturating_add(weight.byte_len());
    }
    let to = node.outputs.iter().try_fold(0usize, |sum, output| {
        let (dtype, shape) = graph.tensor_type(*output)?;
        let extents: Vec<usize> = shape.iter().map(core_tensor::Dim::as_num).collect::<Option<_>>()?;
        sum.checked_add(byte_len(dtype, &extents).ok()?)
    });
    to.is_some_and(|to| to <= from.saturating_add(GROWTH))
}

/// All elements of a small constant as f32, if they are one number.
pub(crate) fn uniform(weight: &Weight) -> Option<f32> {
    const LARGEST: usize = 1 << 16;
    if weight.byte_len() > LARGEST {
        return None;
    }
    let values = weight.to_tensor().ok().as_ref().map(Tensor::to_f32)?.ok()?;
    let first = *values.first()?;
    values.iter().all(|value| *value == first).then_some(first)
}
