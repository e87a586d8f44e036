//! Recurrent layers.

use core_tensor::op::{Cell, Direction, Op};
use core_tensor::{BackendError, DType, Graph, Node, ValueId};

use super::{Compiler, Deal, Memory};
use crate::recurrent::{RecurrentId, RecurrentStep, pack_bytes, state_bytes, sum_bytes};

/// The weights of a recurrent layer as its kernel wants them; `None` where there is no kernel for it.
pub(crate) fn recurrent_id(graph: &Graph, node: &Node) -> Option<RecurrentId> {
    let Op::Recurrent(op) = &node.op else { return None };
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let is_weight = |id: &ValueId| graph.weight_of(*id).is_some_and(|weight| weight.dtype().is_float());
    let (DType::F32, x) = graph.tensor_type(input(0)?)? else { return None };
    x.get(2)?.as_num()?;
    let [w, r] = [input(1).filter(is_weight)?, input(2).filter(is_weight)?];
    let [b, p] = [input(3), input(7)];
    let whole = b.iter().chain(&p).all(is_weight)
        && node.outputs.len() >= if matches!(op.cell, Cell::Lstm { .. }) { 3 } else { 2 };
    whole.then_some(RecurrentId { w, r, b, p, cell: op.cell })
}

impl Compiler<'_> {
    pub(super) fn recurrent(&mut self, i: usize) -> Result<bool, BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (Op::Recurrent(op), Some(weights)) = (&node.op, recurrent_id(graph, node)) else { return Ok(false) };
        let x = self.input(node, 0)?;
        let shape = graph.tensor_type(x).map_or(&[][..], |(_, shape)| shape);
        let shape = core_tensor::eval_shape(shape, self.bounds).map_err(core_tensor::GraphError::from)?;
        let [steps, batch, input] = shape[..] else { return Ok(false) };
        let directions = if op.direction == Direction::Bidirectional { 2 } else { 1 };
        let optional = |i: usize| node.inputs.get(i).copied().flatten();
        let (lens, initial) = (optional(4), [optional(5), optional(6)]);
        let sums = self.scratch("gates", sum_bytes(op.cell, directions, op.hidden, steps * batch));
        let packed = self.scratch("packed rows", pack_bytes(input) * self.threads);
        let states = self.scratch("recurrent states", state_bytes(op.hidden) * directions * batch);
        let counter = self.counter();
        let last = [node.outputs.get(1).copied(), node.outputs.get(2).copied()];
        let y = node.outputs[0];
        let reads: Vec<ValueId> = [x].into_iter().chain(lens).chain(initial.into_iter().flatten()).collect();
        let step = RecurrentStep { op: op.clone(), weights, x, lens, initial, y, last, sums, packed, states, counter };
        self.draft(step, &reads, &node.outputs, Deal::Own);
        [sums, packed, states].into_iter().for_each(|scratch| self.last_writes(Memory::Scratch(scratch)));
        Ok(true)
    }
}
