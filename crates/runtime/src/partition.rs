//! Which backend runs a graph.

use std::sync::Arc;

use core_tensor::{Backend, Graph};

use crate::RuntimeError;

/// Refused nodes that an error names for each backend.
const NAMED: usize = 3;

/// The first backend that supports every node.
///
/// # Errors
/// [`RuntimeError::Unsupported`] with the nodes that stand in the way.
pub(crate) fn choose(graph: &Graph, backends: &[Arc<dyn Backend>]) -> Result<Arc<dyn Backend>, RuntimeError> {
    if backends.is_empty() {
        return Err(RuntimeError::NoBackend);
    }
    let mut refusals = Vec::new();
    for backend in backends {
        let refused: Vec<String> = graph
            .nodes()
            .iter()
            .filter_map(|node| Some((node, backend.supports(graph, node).err()?)))
            .map(|(node, reason)| {
                format!("{} refuses node {:?} ({}): {reason}", backend.name(), node.name, node.op.name())
            })
            .collect();
        if refused.is_empty() {
            return Ok(backend.clone());
        }
        let more = refused.len().saturating_sub(NAMED);
        refusals.extend(refused.into_iter().take(NAMED));
        if more > 0 {
            refusals.push(format!("{} refuses {more} more", backend.name()));
        }
    }
    Err(RuntimeError::Unsupported { graph: graph.name().to_owned(), refusals })
}
