//! Computes what depends on weights alone.

use std::collections::BTreeSet;

use core_tensor::op::Op;
use core_tensor::{DType, Graph, GraphError, Node, Rewriter, ValueId, Weight, byte_len, evaluate_constant};

use crate::Rewritten;

/// Evaluates nodes whose inputs are all weights with the reference implementation. A node that cannot be evaluated stays as it is, and
/// fails where it is run. `budget` is what all folded weights together may have more than those that they are made of.
pub(crate) fn run(graph: &Graph, growth: usize, budget: &mut usize) -> Result<Rewritten, GraphError> {
    let quantized = quantized_weights(graph);
    let multiplied = multiplied_with(graph);
    let folds = |node: &Node| {
        let growth =
            if node.outputs.iter().any(|id| multiplied[id.index()]) { LARGEST_WEIGHT.max(growth) } else { growth };
        folded_growth(graph, node).is_some_and(|more| more <= growth)
            && !node.outputs.iter().any(|id| quantized[id.index()])
    };
    if !graph.nodes().iter().any(folds) {
        return Ok(None);
    }
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    for node in graph.nodes() {
        let growth = folded_growth(graph, node).filter(|growth| *growth <= *budget && folds(node));
        let folded = growth.and_then(|_| evaluate_constant(graph, node).ok());
        let Some(tensors) = folded.filter(|tensors| tensors.len() == node.outputs.len()) else {
            rewriter.copy(node)?;
            continue;
        };
        for (output, tensor) in node.outputs.iter().zip(tensors) {
            let new = rewriter.graph().weight(&graph.value(*output).name, Weight::stored(tensor));
            rewriter.map(*output, new);
        }
        *budget -= growth.unwrap_or(0);
        changed += 1;
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}

/// Bytes that a node's results have more than its inputs, each counted once; `None` where it cannot be folded.
fn folded_growth(graph: &Graph, node: &Node) -> Option<usize> {
    // Random numbers are new ones at each run; a user's operator without inputs may be, too. Subgraphs are run where they stand.
    let without_inputs = node.inputs.iter().flatten().next().is_none();
    let differs =
        matches!(node.op, Op::Random(_) | Op::If(_) | Op::Loop(_)) || (without_inputs && !is_pure_source(&node.op));
    if node.op.has_effect() || differs {
        return None;
    }
    let mut from = 0usize;
    let inputs: BTreeSet<ValueId> = node.inputs.iter().flatten().copied().collect();
    for input in inputs {
        from = from.saturating_add(graph.weight_of(input)?.byte_len());
    }
    let to = node.outputs.iter().try_fold(0usize, |sum, output| {
        let (dtype, shape) = graph.tensor_type(*output)?;
        let extents: Vec<usize> = shape.iter().map(core_tensor::Dim::as_num).collect::<Option<_>>()?;
        sum.checked_add(byte_len(dtype, &extents).ok()?)
    });
    Some(to?.saturating_sub(from))
}

/// Bytes that a folded weight of a product or convolution may have more than what it is made of, and all folded weights together: as an intermediate result it would take the same memory, and no kernel could pack it.
pub(crate) const LARGEST_WEIGHT: usize = 512 << 20;

/// Values that products and convolutions take as their weights.
fn multiplied_with(graph: &Graph) -> Vec<bool> {
    let mut multiplied = vec![false; graph.values().len()];
    for node in graph.nodes() {
        if matches!(node.op, Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_))
            && let Some(Some(id)) = node.inputs.get(1)
        {
            multiplied[id.index()] = true;
        }
    }
    multiplied
}

/// Operators that give the same without inputs, as soon as extents are numbers.
fn is_pure_source(op: &Op) -> bool {
    match op {
        Op::ExtentValues(op) => op.dims.iter().all(|dim| dim.as_num().is_some()),
        _ => false,
    }
}

/// Integers of more elements that become floats are taken for a quantized weight.
const LARGEST_CAST: usize = 1024;

/// Values that are dequantized weights: kernels read the integers, and rules make integer products of them.
fn quantized_weights(graph: &Graph) -> Vec<bool> {
    let mut quantized = vec![false; graph.values().len()];
    for node in graph.nodes() {
        let takes_weights = matches!(
            node.op,
            Op::MatMul(_) | Op::Conv(_) | Op::ConvTranspose(_) | Op::Gather(_) | Op::Transpose(_) | Op::Reshape(_)
        );
        if takes_weights {
            node.inputs.iter().flatten().for_each(|id| quantized[id.index()] = true);
        }
    }
    for node in graph.nodes() {
        let bytes = |id: ValueId| graph.weight_of(id).filter(|w| matches!(w.dtype(), DType::I8 | DType::U8));
        let source = node.inputs.first().copied().flatten().and_then(bytes);
        let is = match (&node.op, source) {
            (Op::DequantizeLinear(_), Some(_)) => node.outputs.iter().any(|id| quantized[id.index()]),
            (Op::Cast(cast), Some(weight)) => cast.to == DType::F32 && weight.byte_len() > LARGEST_CAST,
            _ => false,
        };
        node.outputs.iter().for_each(|id| quantized[id.index()] = is);
    }
    quantized
}
