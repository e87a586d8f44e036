//! Computes what depends on weights alone.

use core_tensor::op::Op;
use core_tensor::{Graph, GraphError, Node, Rewriter, Weight, byte_len, evaluate_constant};

use crate::Rewritten;

/// Evaluates nodes whose inputs are all weights with the reference implementation. A node that cannot be evaluated stays as it is, and
/// fails where it is run.
pub(crate) fn run(graph: &Graph, growth: usize) -> Result<Rewritten, GraphError> {
    if !graph.nodes().iter().any(|node| is_constant(graph, node, growth)) {
        return Ok(None);
    }
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    for node in graph.nodes() {
        let folded = if is_constant(graph, node, growth) { evaluate_constant(graph, node).ok() } else { None };
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

fn is_constant(graph: &Graph, node: &Node, growth: usize) -> bool {
    // Random numbers are new ones at each run; a user's operator without inputs may be, too. Subgraphs are run where they stand.
    let without_inputs = node.inputs.iter().flatten().next().is_none();
    let differs = matches!(node.op, Op::Random(_) | Op::If(_) | Op::Loop(_)) || (without_inputs && !is_pure_source(&node.op));
    if node.op.has_effect() || differs {
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
    to.is_some_and(|to| to <= from.saturating_add(growth))
}


/// Operators that give the same without inputs, as soon as extents are numbers.
fn is_pure_source(op: &Op) -> bool {
    match op {
        Op::ExtentValues(op) => op.dims.iter().all(|dim| dim.as_num().is_some()),
        _ => false,
    }
}
