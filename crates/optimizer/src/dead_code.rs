//! Drops nodes that nothing needs.

use core_tensor::{Graph, GraphError, Rewriter};

use crate::Rewritten;

/// Keeps the nodes that outputs or effects (state writes) depend on, and the weights that those use. Inputs and states stay:
/// they are the graph's interface.
pub(crate) fn run(graph: &Graph) -> Result<Rewritten, GraphError> {
    let mut needed = vec![false; graph.values().len()];
    for output in graph.outputs() {
        needed[output.index()] = true;
    }
    let mut kept = vec![false; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        kept[i] = node.op.has_effect() || node.outputs.iter().any(|output| needed[output.index()]);
        if kept[i] {
            node.inputs.iter().flatten().for_each(|input| needed[input.index()] = true);
        }
    }
    let dropped = kept.iter().filter(|kept| !**kept).count();
    if dropped == 0 {
        return Ok(None);
    }
    let mut rewriter = Rewriter::new(graph);
    for (node, _) in graph.nodes().iter().zip(kept).filter(|(_, kept)| *kept) {
        rewriter.copy(node)?;
    }
    Ok(Some((rewriter.finish(), dropped)))
}
