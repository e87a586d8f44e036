//! A graph, read from its values to the nodes that make and use them.

use std::cell::RefCell;
use std::collections::HashMap;

use core_tensor::{DType, Dim, Graph, Node, Tensor, ValueId, Weight};

/// A graph with its producers and consumers.
pub(crate) struct View<'a> {
    pub(crate) graph: &'a Graph,
    producer: Vec<Option<usize>>,
    consumers: Vec<Vec<usize>>,
    is_output: Vec<bool>,
    /// What constants are that hold one number.
    uniform: RefCell<HashMap<ValueId, Option<f32>>>,
}

/// A constant of more bytes is not read to find out whether all of its elements are one number.
const LARGEST_UNIFORM: usize = 1 << 16;

impl<'a> View<'a> {
    pub(crate) fn new(graph: &'a Graph) -> View<'a> {
        let count = graph.values().len();
        let mut view = View {
            graph,
            producer: vec![None; count],
            consumers: vec![Vec::new(); count],
            is_output: vec![false; count],
            uniform: RefCell::default(),
        };
        for (index, node) in graph.nodes().iter().enumerate() {
            node.outputs.iter().for_each(|id| view.producer[id.index()] = Some(index));
            node.inputs.iter().flatten().for_each(|id| view.consumers[id.index()].push(index));
        }
        graph.outputs().iter().for_each(|id| view.is_output[id.index()] = true);
        view
    }

    /// The node that makes a value, and its place.
    pub(crate) fn producer(&self, id: ValueId) -> Option<(usize, &'a Node)> {
        let index = self.producer[id.index()]?;
        Some((index, &self.graph.nodes()[index]))
    }

    pub(crate) fn consumers(&self, id: ValueId) -> &[usize] {
        &self.consumers[id.index()]
    }

    pub(crate) fn is_output(&self, id: ValueId) -> bool {
        self.is_output[id.index()]
    }

    /// How often a value is used; being an output counts.
    pub(crate) fn uses(&self, id: ValueId) -> usize {
        self.consumers(id).len() + usize::from(self.is_output(id))
    }

    pub(crate) fn ty(&self, id: ValueId) -> Option<(DType, &'a [Dim])> {
        self.graph.tensor_type(id)
    }

    /// The number that all elements of a small constant are.
    pub(crate) fn uniform(&self, id: ValueId) -> Option<f32> {
        let weight = self.graph.weight_of(id)?;
        *self.uniform.borrow_mut().entry(id).or_insert_with(|| uniform(weight))
    }
}

/// All elements of a small constant as f32, if they are one number.
pub(crate) fn uniform(weight: &Weight) -> Option<f32> {
    if weight.byte_len() > LARGEST_UNIFORM || weight.dtype().is_block() {
        return None;
    }
    let tensor = weight.to_tensor().ok()?;
    let values = if weight.dtype().is_float() { tensor.to_f32().ok()? } else { integers(&tensor)? };
    let first = *values.first()?;
    values.iter().all(|value| *value == first).then_some(first)
}

/// The elements of an integer tensor, if an f32 holds them.
fn integers(tensor: &Tensor) -> Option<Vec<f32>> {
    let cast = core_tensor::op::Op::Cast(core_tensor::op::Cast { to: DType::F32 });
    let floats = core_tensor::evaluate(&cast, &[Some(tensor.clone())], &core_tensor::Bindings::new()).ok()?;
    let floats = floats.first()?.to_f32().ok()?;
    floats.iter().all(|x| x.abs() < 16_777_216.0).then_some(floats)
}
