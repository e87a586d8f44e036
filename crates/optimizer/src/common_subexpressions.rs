//! Computes equal things once.

use std::collections::HashMap;
use std::sync::Arc;

use core_tensor::op::Op;
use core_tensor::{Graph, GraphError, Rewriter, ValueId};

use crate::Rewritten;

/// What makes two nodes equal: operator, attributes as they print, inputs.
type Key = (bool, &'static str, String, Vec<Option<ValueId>>);

/// Merges nodes of one operator with equal attributes and inputs, and values that are one and the same weight. State writes are left
/// alone; what reads a state names the write that it follows, so that reads before and after a write differ.
pub(crate) fn run(graph: &Graph) -> Result<Rewritten, GraphError> {
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    let mut weights = HashMap::new();
    for (id, weight) in graph.weights() {
        let first = *weights.entry(Arc::as_ptr(weight)).or_insert(id);
        if first != id {
            let shared = rewriter.get(first);
            rewriter.map(id, shared);
            changed += 1;
        }
    }
    let mut seen: HashMap<Key, Vec<ValueId>> = HashMap::new();
    for node in graph.nodes() {
        if node.op.has_effect() {
            rewriter.copy(node)?;
            continue;
        }
        let inputs = node.inputs.iter().map(|input| input.map(|id| rewriter.get(id))).collect();
        let custom = matches!(node.op, Op::Custom(_));
        let key = (custom, node.op.name(), node.op.attributes(), inputs);
        if let Some(outputs) = seen.get(&key) {
            for (old, new) in node.outputs.iter().zip(outputs) {
                rewriter.map(*old, *new);
            }
            changed += 1;
        } else {
            let outputs = rewriter.copy(node)?;
            seen.insert(key, outputs);
        }
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}
