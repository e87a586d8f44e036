//! What a rule's build function sees and may do.

use std::sync::Arc;

use core_tensor::op::{Op, Reshape, Transpose};
use core_tensor::{Bindings, DType, Dim, Graph, Node, Rewriter, Tensor, ValueId, Weight};

use super::{Found, Reject, View};

/// A place where a rule's pattern matched: what was found, and the new graph to add to.
///
/// Two graphs are at hand. Values *found* belong to the old graph and are looked at; values to build with belong to the new one:
/// [`Rewrite::input`] and [`Rewrite::new_value`] lead from the old to the new.
pub struct Rewrite<'a, 'g> {
    view: &'a View<'a>,
    rewriter: &'a mut Rewriter<'g>,
    found: &'a Found,
    root: usize,
    growth: usize,
}

impl<'a, 'g> Rewrite<'a, 'g> {
    pub(super) fn new(
        view: &'a View<'a>,
        rewriter: &'a mut Rewriter<'g>,
        found: &'a Found,
        root: usize,
        growth: usize,
    ) -> Rewrite<'a, 'g> {
        Rewrite { view, rewriter, found, root, growth }
    }

    /// The graph that is rewritten.
    #[must_use]
    pub fn graph(&self) -> &'a Graph {
        self.view.graph
    }

    /// The node whose output is replaced.
    #[must_use]
    pub fn root(&self) -> &'a Node {
        &self.view.graph.nodes()[self.root]
    }

    /// The value that the pattern found under a name, in the old graph.
    ///
    /// # Errors
    /// When no such name was matched (it may stand in another alternative of the pattern).
    pub fn found(&self, name: &str) -> Result<ValueId, Reject> {
        self.found.get(name).ok_or_else(|| Reject::because(format!("the pattern has found no {name:?}")))
    }

    /// The same value in the new graph.
    ///
    /// # Errors
    /// As [`Rewrite::found`].
    pub fn input(&mut self, name: &str) -> Result<ValueId, Reject> {
        let id = self.found(name)?;
        Ok(self.new_value(id))
    }

    /// The new graph's value for one of the old graph's that comes before the root.
    pub fn new_value(&mut self, old: ValueId) -> ValueId {
        self.rewriter.get(old)
    }

    /// The node of the old graph that makes a value.
    #[must_use]
    pub fn producer(&self, id: ValueId) -> Option<&'a Node> {
        self.view.producer(id).map(|(_, node)| node)
    }

    /// The nodes of the old graph that read a value.
    pub fn users(&self, id: ValueId) -> impl Iterator<Item = &'a Node> {
        let nodes = self.view.graph.nodes();
        self.view.consumers(id).iter().map(move |index| &nodes[*index])
    }

    /// How often a value of the old graph is used; being an output counts.
    #[must_use]
    pub fn uses(&self, id: ValueId) -> usize {
        self.view.uses(id)
    }

    /// Dtype and shape of a value of the old graph.
    ///
    /// # Errors
    /// When it is no tensor.
    pub fn ty(&self, id: ValueId) -> Result<(DType, &'a [Dim]), Reject> {
        self.view.ty(id).ok_or_else(|| Reject::because("a state's token is no tensor"))
    }

    /// The shape of a value of the old graph.
    ///
    /// # Errors
    /// As [`Rewrite::ty`].
    pub fn shape(&self, id: ValueId) -> Result<&'a [Dim], Reject> {
        Ok(self.ty(id)?.1)
    }

    /// The number that all elements of a constant of the old graph are.
    ///
    /// # Errors
    /// When it is no such constant.
    pub fn number(&self, id: ValueId) -> Result<f32, Reject> {
        let name = || self.view.graph.value(id).name.clone();
        self.view.uniform(id).ok_or_else(|| Reject::because(format!("{:?} is not one constant number", name())))
    }

    /// A constant of the old graph, computed.
    ///
    /// # Errors
    /// When it is no constant or cannot be read.
    pub fn tensor(&self, id: ValueId) -> Result<Tensor, Reject> {
        let value = self.view.graph.value(id);
        let weight = self.weight(id)?;
        weight.to_tensor().map_err(|error| Reject::because(format!("{:?}: {error}", value.name)))
    }

    /// The weight behind a value of the old graph.
    ///
    /// # Errors
    /// When it is computed at run time.
    pub fn weight(&self, id: ValueId) -> Result<&'a Arc<Weight>, Reject> {
        let reason = || Reject::because(format!("{:?} is no constant", self.view.graph.value(id).name));
        self.view.graph.weight_of(id).ok_or_else(reason)
    }

    /// Bytes that a rule may add to the weights.
    #[must_use]
    pub fn growth(&self) -> usize {
        self.growth
    }

    /// Adds a node of one output to the new graph, named after the root.
    ///
    /// # Errors
    /// When the operator refuses the inputs.
    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Reject> {
        Ok(self.rewriter.graph().add(&self.view.graph.nodes()[self.root].name, op, inputs)?)
    }

    /// Adds a node with inputs left out.
    ///
    /// # Errors
    /// When the operator refuses the inputs.
    pub fn add_with(&mut self, op: Op, inputs: Vec<Option<ValueId>>) -> Result<ValueId, Reject> {
        let outputs = self.rewriter.graph().add_node(&self.view.graph.nodes()[self.root].name, op, inputs)?;
        outputs.first().copied().ok_or_else(|| Reject::because("an operator without output"))
    }

    /// Adds a weight to the new graph. `name` is that of the weight it is made from.
    pub fn add_weight(&mut self, name: &str, weight: Arc<Weight>) -> ValueId {
        self.rewriter.graph().weight(name, weight)
    }

    /// Adds a constant of f32 to the new graph.
    ///
    /// # Errors
    /// When the shape does not fit the elements.
    pub fn add_constant(&mut self, name: &str, shape: &[usize], elements: &[f32]) -> Result<ValueId, Reject> {
        let tensor = Tensor::from_slice(shape, elements).map_err(|error| Reject::because(error.to_string()))?;
        Ok(self.add_weight(name, Weight::stored(tensor)))
    }

    /// Computes an operator on constants of the old graph and adds the result to the new one.
    ///
    /// # Errors
    /// When an input is no constant, the operator fails, or the result is larger than its inputs by more than the budget.
    pub fn fold(&mut self, op: &Op, inputs: &[ValueId]) -> Result<ValueId, Reject> {
        let tensors = inputs.iter().map(|id| self.tensor(*id).map(Some)).collect::<Result<Vec<_>, _>>()?;
        let from: usize = tensors.iter().flatten().map(|tensor| tensor.bytes().len()).sum();
        let results = core_tensor::evaluate(op, &tensors, &Bindings::new())
            .map_err(|error| Reject::because(format!("folding {}: {error}", op.name())))?;
        let result = results.into_iter().next().ok_or_else(|| Reject::because("an operator without output"))?;
        if result.bytes().len() > from.saturating_add(self.growth) {
            let reason = format!("{} bytes would be folded to {}", from, result.bytes().len());
            return Err(Reject::because(reason));
        }
        let name = inputs.first().map_or("", |id| &self.view.graph.value(*id).name);
        Ok(self.add_weight(name, Weight::stored(result)))
    }

    /// A constant of the new graph, computed.
    ///
    /// # Errors
    /// When it is no constant or cannot be read.
    pub fn new_tensor(&mut self, id: ValueId) -> Result<Tensor, Reject> {
        let weight = self.rewriter.graph().weight_of(id).cloned();
        let weight = weight.ok_or_else(|| Reject::because("it is no constant"))?;
        weight.to_tensor().map_err(|error| Reject::because(error.to_string()))
    }

    /// The shape of a value of the new graph.
    ///
    /// # Errors
    /// When it is no tensor.
    pub fn new_shape(&mut self, id: ValueId) -> Result<Vec<Dim>, Reject> {
        let shape = self.rewriter.graph().tensor_type(id).map(|(_, shape)| shape.to_vec());
        shape.ok_or_else(|| Reject::because("a state's token is no tensor"))
    }

    /// Adds a Reshape, unless the value has that shape.
    ///
    /// # Errors
    /// When the elements do not fit the shape.
    pub fn reshape(&mut self, id: ValueId, shape: &[Dim]) -> Result<ValueId, Reject> {
        if self.new_shape(id)? == shape {
            return Ok(id);
        }
        self.add(Op::Reshape(Reshape { shape: shape.to_vec() }), &[id])
    }

    /// Adds a Transpose.
    ///
    /// # Errors
    /// When it is no permutation of the value's extents.
    pub fn transpose(&mut self, id: ValueId, perm: &[usize]) -> Result<ValueId, Reject> {
        self.add(Op::Transpose(Transpose { perm: perm.to_vec() }), &[id])
    }
}
