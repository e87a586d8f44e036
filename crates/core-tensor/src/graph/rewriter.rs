//! How passes rewrite a graph.

use super::{Graph, GraphError, Node, ValueId, ValueSource};

/// Rebuilds a graph node by node: the way in which passes rewrite. Values of the old graph are mapped to values of the new one.
pub struct Rewriter<'a> {
    old: &'a Graph,
    new: Graph,
    map: Vec<Option<ValueId>>,
}

impl<'a> Rewriter<'a> {
    /// Starts a new graph with the old one's states and inputs.
    #[must_use]
    pub fn new(old: &'a Graph) -> Rewriter<'a> {
        let mut rewriter = Rewriter { old, new: Graph::new(&old.name), map: vec![None; old.values.len()] };
        rewriter.new.states = old.states.clone();
        for id in &old.inputs {
            let value = old.value(*id);
            let new = rewriter.new.push(value.name.clone(), value.ty.clone(), ValueSource::Input);
            rewriter.new.inputs.push(new);
            rewriter.map[id.index()] = Some(new);
        }
        rewriter
    }

    /// The new value for an old one; weights come along when they are first asked for.
    ///
    /// # Panics
    /// When the old value is the output of a node that was not copied: a pass that drops a node must map its outputs first.
    pub fn get(&mut self, old: ValueId) -> ValueId {
        if let Some(new) = self.map[old.index()] {
            return new;
        }
        let value = self.old.value(old);
        let ValueSource::Weight(weight) = &value.source else {
            panic!("{old} ({}) is used before the pass mapped it", value.name);
        };
        let new = self.new.weight(&value.name, weight.clone());
        self.map[old.index()] = Some(new);
        new
    }

    /// Says which new value stands for an old one.
    pub fn map(&mut self, old: ValueId, new: ValueId) {
        self.map[old.index()] = Some(new);
    }

    /// Copies a node.
    ///
    /// # Errors
    /// When the operator refuses its (rewritten) inputs.
    pub fn copy(&mut self, node: &Node) -> Result<Vec<ValueId>, GraphError> {
        let inputs = node.inputs.iter().map(|input| input.map(|id| self.get(id))).collect();
        let outputs = self.new.add_node(&node.name, node.op.clone(), inputs)?;
        for (old, new) in node.outputs.iter().zip(&outputs) {
            self.map(*old, *new);
        }
        Ok(outputs)
    }

    /// The new graph, to add to it.
    pub fn graph(&mut self) -> &mut Graph {
        &mut self.new
    }

    /// Ends with the old graph's outputs.
    #[must_use]
    pub fn finish(mut self) -> Graph {
        for output in &self.old.outputs {
            let new = self.get(*output);
            self.new.outputs.push(new);
        }
        self.new
    }
}
