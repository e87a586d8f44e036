//! Which backend runs a graph.

use core_tensor::{Backend, Graph};

/// Refused nodes that an error names for each backend.
const NAMED: usize = 3;

/// Why a backend does not run all of a graph, node by node; empty if it does.
pub(crate) fn refusals(graph: &Graph, backend: &dyn Backend) -> Vec<String> {
    let refused = graph.nodes().iter().filter_map(|node| Some((node, backend.supports(graph, node).err()?)));
    let mut refused: Vec<String> = refused
        .map(|(node, reason)| format!("{} refuses node {:?} ({}): {reason}", backend.name(), node.name, node.op.name()))
        .collect();
    let more = refused.len().saturating_sub(NAMED);
    if more > 0 {
        refused.truncate(NAMED);
        refused.push(format!("{} refuses {more} more", backend.name()));
    }
    refused
}
