//! What a model needs, told before anything is allocated.

use core_tensor::{Bindings, BufferRequest, DimError, Graph, MemoryEstimate, MemoryPlan, ValueSource, eval_shape};

/// Alignment that the estimate's arena assumes, in bytes.
const ALIGNMENT: usize = 64;

/// Bytes of weights, states and arena of a graph: weights as they are stored, states for `slots` sequences at the capacities in
/// `bounds`, the arena planned at the extents in `bounds`. A backend that fuses or repacks may need a little less or more.
///
/// # Errors
/// When an extent has no value in `bounds`.
pub fn estimate(graph: &Graph, slots: usize, bounds: &Bindings) -> Result<MemoryEstimate, DimError> {
    let weights = graph.weights().map(|(_, weight)| weight.byte_len() as u64).sum();
    let mut states = 0u64;
    for state in graph.states() {
        let capacity = state.capacity.eval(bounds)?;
        let (inner, outer) = state.row.split_last().map_or((1, &[][..]), |(inner, outer)| (*inner, outer));
        let head = state.dtype.row_bytes(inner).unwrap_or(0) as u64;
        let heads: u64 = outer.iter().map(|extent| *extent as u64).product();
        let bytes = head.saturating_mul(heads).saturating_mul(capacity as u64).saturating_mul(slots as u64);
        states = bytes.saturating_add(states);
    }
    let arena = MemoryPlan::new(buffers(graph, bounds)?, ALIGNMENT).arena_bytes as u64;
    Ok(MemoryEstimate { weights, states, arena })
}

/// The buffer of each value that a node computes: from the node that writes it to the last that reads it.
fn buffers(graph: &Graph, bounds: &Bindings) -> Result<Vec<BufferRequest>, DimError> {
    let mut last_read = vec![0usize; graph.values().len()];
    for (step, node) in graph.nodes().iter().enumerate() {
        for input in node.inputs.iter().flatten() {
            last_read[input.index()] = step;
        }
    }
    for output in graph.outputs() {
        last_read[output.index()] = graph.nodes().len();
    }
    let mut requests = Vec::new();
    for (step, node) in graph.nodes().iter().enumerate() {
        for output in &node.outputs {
            let value = graph.value(*output);
            let (ValueSource::Node, Some((dtype, shape))) = (&value.source, value.ty.as_tensor()) else { continue };
            let extents = eval_shape(shape, bounds)?;
            requests.push(BufferRequest {
                name: value.name.clone(),
                bytes: core_tensor::byte_len(dtype, &extents).unwrap_or(usize::MAX),
                first_step: step,
                last_step: last_read[output.index()].max(step),
            });
        }
    }
    Ok(requests)
}
