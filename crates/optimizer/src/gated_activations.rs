//! Joins an activation with the product that follows it.

use core_tensor::op::{Binary, GatedActivation, Op, Unary};
use core_tensor::{Graph, GraphError, Node, Rewriter, ValueId};

use crate::Rewritten;

/// `activation(gate) * up` with equal shapes becomes a [`GatedActivation`], if nothing else uses the activation: what SwiGLU and GeGLU networks
/// are full of, and what kernels compute in one go.
pub(crate) fn run(graph: &Graph) -> Result<Rewritten, GraphError> {
    let mut uses = vec![0usize; graph.values().len()];
    let mut producer: Vec<Option<&Node>> = vec![None; graph.values().len()];
    for node in graph.nodes() {
        node.inputs.iter().flatten().for_each(|input| uses[input.index()] += 1);
        node.outputs.iter().for_each(|output| producer[output.index()] = Some(node));
    }
    graph.outputs().iter().for_each(|output| uses[output.index()] += 1);
    // The gate and the function, if the value is such an activation.
    let activation = |value: ValueId| -> Option<(ValueId, Unary)> {
        let node = producer[value.index()].filter(|_| uses[value.index()] == 1)?;
        match (&node.op, &node.inputs[..]) {
            (Op::Unary(unary), [Some(gate)]) if gates(*unary) => Some((*gate, *unary)),
            _ => None,
        }
    };
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    for node in graph.nodes() {
        let joined = match (&node.op, &node.inputs[..]) {
            (Op::Binary(Binary::Mul), [Some(a), Some(b)]) => activation(*a)
                .map(|(gate, unary)| (gate, *b, unary))
                .or_else(|| activation(*b).map(|(gate, unary)| (gate, *a, unary)))
                .filter(|(gate, up, _)| graph.value(*gate).ty == graph.value(*up).ty),
            _ => None,
        };
        let Some((gate, up, unary)) = joined else {
            rewriter.copy(node)?;
            continue;
        };
        let inputs = [rewriter.get(gate), rewriter.get(up)];
        let op = Op::GatedActivation(GatedActivation { activation: unary });
        let new = rewriter.graph().add(&node.name, op, &inputs)?;
        for output in &node.outputs {
            rewriter.map(*output, new);
        }
        changed += 1;
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}

/// The functions that gated networks use (Shazeer 2020).
fn gates(unary: Unary) -> bool {
    matches!(unary, Unary::Silu | Unary::Gelu | Unary::GeluTanh | Unary::GeluQuick | Unary::Relu | Unary::Sigmoid)
}
