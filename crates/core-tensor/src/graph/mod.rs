//! The graph: values, nodes in order of execution, declared states.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::dim::{Bindings, Dim, Shape};
use crate::op::{Inference, Op, OpError};
use crate::{DType, Tensor, Weight};

mod error;
mod rewriter;

pub use error::GraphError;
pub use rewriter::Rewriter;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The position in the graph's list.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}
id!(
    /// A value of a graph.
    ValueId, "%");
id!(
    /// A state of a graph.
    StateId, "$");

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A tensor.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Extents, outermost first.
        shape: Shape,
    },
    /// The effect of writing a state: whoever reads the state afterwards consumes it.
    Token(StateId),
}

impl ValueType {
    /// A tensor type.
    #[must_use]
    pub fn tensor(dtype: DType, shape: &[Dim]) -> ValueType {
        ValueType::Tensor { dtype, shape: shape.to_vec() }
    }

    /// Dtype and shape, if this is a tensor.
    #[must_use]
    pub fn as_tensor(&self) -> Option<(DType, &[Dim])> {
        match self {
            ValueType::Tensor { dtype, shape } => Some((*dtype, shape)),
            ValueType::Token(_) => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor { dtype, shape } => {
                write!(f, "{dtype}[")?;
                for (i, dim) in shape.iter().enumerate() {
                    write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            ValueType::Token(state) => write!(f, "token({state})"),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum ValueSource {
    /// Given at each run.
    Input,
    /// A weight or constant of the graph.
    Weight(Arc<Weight>),
    /// Computed by a node.
    Node,
}

/// A value: an input, a weight, or the output of a node.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name for people and messages; unique for inputs, weights and outputs.
    pub name: String,
    /// What it is.
    pub ty: ValueType,
    /// Where it comes from.
    pub source: ValueSource,
}

/// A node: one application of an operator.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name for people and messages.
    pub name: String,
    /// The operator and its attributes.
    pub op: Op,
    /// Inputs in the operator's order; `None` where an optional input is left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs in the operator's order.
    pub outputs: Vec<ValueId>,
}

/// A state: rows that outlive a step, such as a KV cache. For each slot it holds `capacity` rows, addressed by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDecl {
    /// Name for people and messages.
    pub name: String,
    /// Element type of the stored rows: f32, f16 or q8_0.
    pub dtype: DType,
    /// Extents of one row, the last one contiguous: `[n_kv, head_dim]`.
    pub row: Vec<usize>,
    /// Rows per slot; bound when a session is made.
    pub capacity: Dim,
    /// If given, the state is a ring: position `p` lies at row `p % capacity`, and readers look back over at most this many
    /// positions (a sliding window). A step may write at most `capacity - window + 1` rows of a slot.
    pub window: Option<usize>,
}

/// Two inputs of a graph that name rows of states, as indices into the graph's inputs (see [`Graph::row_inputs`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowInputs {
    /// The input with the rows' positions.
    pub positions: usize,
    /// The input with the rows' slots.
    pub slots: usize,
    /// Whether these rows are written, and not only read.
    pub written: bool,
}

/// One representation of computation: values, nodes in order of execution, declared states.
///
/// Symbols in the inputs' shapes get their values from the tensors that a run is given.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    name: String,
    values: Vec<Value>,
    nodes: Vec<Node>,
    states: Vec<StateDecl>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// The graph that this one was made of by [`Graph::with_outputs`].
    whole: Option<Arc<Graph>>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new(name: &str) -> Graph {
        Graph { name: name.to_owned(), ..Graph::default() }
    }

    /// The same values with only some of the outputs, and only the nodes that these or states need. What was loaded for `self`
    /// serves it, too ([`Graph::shares_values`]).
    #[must_use]
    pub fn with_outputs(self: &Arc<Graph>, outputs: &[usize]) -> Arc<Graph> {
        let mut graph = Graph::clone(self);
        graph.outputs = outputs.iter().filter_map(|output| self.outputs.get(*output).copied()).collect();
        let mut needed: HashSet<ValueId> = graph.outputs.iter().copied().collect();
        let mut kept: Vec<bool> = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.iter().rev() {
            let keep = node.op.has_effect() || node.outputs.iter().any(|output| needed.contains(output));
            if keep {
                needed.extend(node.inputs.iter().flatten());
            }
            kept.push(keep);
        }
        let mut kept = kept.into_iter().rev();
        graph.nodes.retain(|_| kept.next().unwrap_or(true));
        graph.whole = Some(self.whole.clone().unwrap_or_else(|| self.clone()));
        Arc::new(graph)
    }

    /// The graph that this one was made of by [`Graph::with_outputs`], or itself: what a state is for is told by all of its readers.
    #[must_use]
    pub fn whole(&self) -> &Graph {
        self.whole.as_deref().unwrap_or(self)
    }

    /// Whether two graphs have the same values: they are the same, or made of the same one by [`Graph::with_outputs`].
    #[must_use]
    pub fn shares_values(self: &Arc<Graph>, other: &Arc<Graph>) -> bool {
        Arc::ptr_eq(self.whole.as_ref().unwrap_or(self), other.whole.as_ref().unwrap_or(other))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All values; a [`ValueId`] is an index into them.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The ids of all values.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// One value.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Dtype and shape of a value that is a tensor.
    #[must_use]
    pub fn tensor_type(&self, id: ValueId) -> Option<(DType, &[Dim])> {
        self.value(id).ty.as_tensor()
    }

    /// The weight behind a value, if it is one.
    #[must_use]
    pub fn weight_of(&self, id: ValueId) -> Option<&Arc<Weight>> {
        match &self.value(id).source {
            ValueSource::Weight(weight) => Some(weight),
            ValueSource::Input | ValueSource::Node => None,
        }
    }

    /// Nodes in order of execution.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// States.
    #[must_use]
    pub fn states(&self) -> &[StateDecl] {
        &self.states
    }

    /// The ids of all states.
    pub fn state_ids(&self) -> impl Iterator<Item = StateId> + use<> {
        (0..self.states.len() as u32).map(StateId)
    }

    /// One state.
    #[must_use]
    pub fn state(&self, id: StateId) -> &StateDecl {
        &self.states[id.index()]
    }

    /// Inputs in the order in which a run takes them.
    #[must_use]
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Outputs in the order in which a run gives them.
    #[must_use]
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// All weights.
    pub fn weights(&self) -> impl Iterator<Item = (ValueId, &Arc<Weight>)> {
        (0..self.values.len() as u32).map(ValueId).filter_map(|id| Some((id, self.weight_of(id)?)))
    }

    fn push(&mut self, name: String, ty: ValueType, source: ValueSource) -> ValueId {
        self.whole = None;
        self.values.push(Value { name, ty, source });
        ValueId(self.values.len() as u32 - 1)
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> ValueId {
        let id = self.push(name.to_owned(), ValueType::tensor(dtype, shape), ValueSource::Input);
        self.inputs.push(id);
        id
    }

    /// Adds a weight.
    pub fn weight(&mut self, name: &str, weight: Arc<Weight>) -> ValueId {
        let shape: Shape = weight.shape().iter().map(|extent| Dim::Num(*extent)).collect();
        let ty = ValueType::Tensor { dtype: weight.dtype(), shape };
        self.push(name.to_owned(), ty, ValueSource::Weight(weight))
    }

    /// Declares a state.
    pub fn add_state(&mut self, state: StateDecl) -> StateId {
        self.states.push(state);
        StateId(self.states.len() as u32 - 1)
    }

    /// Adds a node with one output and gives that output.
    ///
    /// # Errors
    /// When an input is not there, or the operator refuses its inputs.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        Ok(self.add_node(name, op, inputs)?[0])
    }

    /// Adds a node and gives its outputs (at least one).
    ///
    /// # Errors
    /// When an input is not there, or the operator refuses its inputs.
    pub fn add_node(&mut self, name: &str, op: Op, inputs: Vec<Option<ValueId>>) -> Result<Vec<ValueId>, GraphError> {
        let types = self.infer(name, &op, &inputs)?;
        if types.is_empty() {
            let source = OpError::Shape("its shape rule gives no output".into());
            return Err(GraphError::Op { node: name.to_owned(), op: op.name(), source });
        }
        let outputs: Vec<ValueId> = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| {
                let name = if i == 0 { name.to_owned() } else { format!("{name}.{i}") };
                self.push(name, ty, ValueSource::Node)
            })
            .collect();
        self.nodes.push(Node { name: name.to_owned(), op, inputs, outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Gives a value another name.
    pub fn rename(&mut self, id: ValueId, name: &str) {
        if let Some(value) = self.values.get_mut(id.index()) {
            name.clone_into(&mut value.name);
        }
    }

    /// Makes a value an output.
    pub fn output(&mut self, value: ValueId) {
        self.outputs.push(value);
    }

    fn infer(&self, name: &str, op: &Op, inputs: &[Option<ValueId>]) -> Result<Vec<ValueType>, GraphError> {
        let mut types = Vec::with_capacity(inputs.len());
        for input in inputs {
            types.push(match input {
                None => None,
                Some(id) => Some(
                    &self
                        .values
                        .get(id.index())
                        .ok_or_else(|| GraphError::Order { node: name.to_owned(), value: *id })?
                        .ty,
                ),
            });
        }
        op.infer(&Inference { inputs: &types, states: &self.states }).map_err(|source| GraphError::Op {
            node: name.to_owned(),
            op: op.name(),
            source,
        })
    }

    /// Checks everything that holds for a graph: order of nodes, single assignment, types as the shape rules give them, outputs computed.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn verify(&self) -> Result<(), GraphError> {
        let mut known: HashSet<ValueId> = (0..self.values.len() as u32)
            .map(ValueId)
            .filter(|id| !matches!(self.value(*id).source, ValueSource::Node))
            .collect();
        for node in &self.nodes {
            for input in node.inputs.iter().flatten() {
                if !known.contains(input) {
                    return Err(GraphError::Order { node: node.name.clone(), value: *input });
                }
            }
            let inferred = self.infer(&node.name, &node.op, &node.inputs)?;
            if inferred.len() != node.outputs.len() {
                let (recorded, inferred) = (node.outputs.len(), inferred.len());
                return Err(GraphError::OutputCount { node: node.name.clone(), recorded, inferred });
            }
            for (i, output) in node.outputs.iter().enumerate() {
                let Some(value) = self.values.get(output.index()) else {
                    return Err(GraphError::Output { value: *output });
                };
                if !known.insert(*output) {
                    return Err(GraphError::Twice { node: node.name.clone(), value: *output });
                }
                if inferred[i] != value.ty {
                    return Err(GraphError::Type {
                        node: node.name.clone(),
                        value: *output,
                        recorded: value.ty.to_string(),
                        inferred: inferred[i].to_string(),
                    });
                }
            }
        }
        for output in &self.outputs {
            if !known.contains(output) {
                return Err(GraphError::Output { value: *output });
            }
            if self.tensor_type(*output).is_none() {
                return Err(GraphError::Token { value: *output });
            }
        }
        Ok(())
    }

    /// The inputs that name the rows of states which a step writes or reads.
    #[must_use]
    pub fn row_inputs(&self) -> Vec<RowInputs> {
        let input = |id: Option<&Option<ValueId>>| {
            let id = id.copied().flatten()?;
            self.inputs.iter().position(|input| *input == id)
        };
        let mut all: Vec<RowInputs> = Vec::new();
        for node in &self.nodes {
            let (at, written) = match node.op {
                Op::StateWrite(_) => (1, true),
                Op::Attention(_) => (3, false),
                _ => continue,
            };
            let (Some(positions), Some(slots)) = (input(node.inputs.get(at)), input(node.inputs.get(at + 1))) else {
                continue;
            };
            match all.iter_mut().find(|rows| rows.positions == positions && rows.slots == slots) {
                Some(known) => known.written |= written,
                None => all.push(RowInputs { positions, slots, written }),
            }
        }
        all
    }

    /// Checks the tensors of a run against the inputs, and gives the symbols their values.
    ///
    /// # Errors
    /// When count, dtype, rank or an extent is not what the graph says.
    pub fn bind_inputs(&self, tensors: &[Tensor]) -> Result<Bindings, GraphError> {
        self.bind_inputs_within(&Bindings::new(), tensors)
    }

    /// The same for a subgraph, where the symbols of the graph around it have values.
    ///
    /// # Errors
    /// As [`Graph::bind_inputs`].
    pub fn bind_inputs_within(&self, outer: &Bindings, tensors: &[Tensor]) -> Result<Bindings, GraphError> {
        if tensors.len() != self.inputs.len() {
            return Err(GraphError::InputCount { expected: self.inputs.len(), found: tensors.len() });
        }
        let mut bindings = outer.clone();
        // Plain symbols of all inputs first: an expression in one input may need those of a later one.
        for expressions in [false, true] {
            for (id, tensor) in self.inputs.iter().zip(tensors) {
                let Some((_, shape)) = self.tensor_type(*id) else { continue };
                for (dim, extent) in shape.iter().zip(tensor.shape()) {
                    if matches!(dim, Dim::Expr(_)) == expressions {
                        bindings.bind_shape(std::slice::from_ref(dim), std::slice::from_ref(extent));
                    }
                }
            }
        }
        for (id, tensor) in self.inputs.iter().zip(tensors) {
            let value = self.value(*id);
            let fits = value.ty.as_tensor().is_some_and(|(dtype, shape)| {
                dtype == tensor.dtype()
                    && shape.len() == tensor.shape().len()
                    && shape.iter().zip(tensor.shape()).all(|(dim, extent)| match dim {
                        Dim::Sym(symbol) => match bindings.get(symbol) {
                            Some(bound) => bound == *extent,
                            None => {
                                bindings.set(symbol, *extent);
                                true
                            }
                        },
                        Dim::Num(_) | Dim::Expr(_) => {
                            bindings.bind_shape(std::slice::from_ref(dim), std::slice::from_ref(extent));
                            dim.eval(&bindings).is_ok_and(|n| n == *extent)
                        }
                    })
            });
            if !fits {
                return Err(GraphError::Input {
                    name: value.name.clone(),
                    expected: value.ty.to_string(),
                    found: format!("{}{:?}", tensor.dtype(), tensor.shape()),
                });
            }
        }
        Ok(bindings)
    }

    /// Every value's extents under these bindings (empty for state tokens), with each operator's shape rule applied to numbers: what symbols could
    /// hide is found here. Kernels rely on it.
    ///
    /// # Errors
    /// When a symbol has no value, or the extents do not fit an operator.
    pub fn extents(&self, bindings: &Bindings) -> Result<Vec<Vec<usize>>, GraphError> {
        let mut types: Vec<ValueType> = Vec::with_capacity(self.values.len());
        let mut extents = Vec::with_capacity(self.values.len());
        for value in &self.values {
            match &value.ty {
                ValueType::Tensor { dtype, shape } => {
                    let shape = crate::dim::eval_shape(shape, bindings)?;
                    types
                        .push(ValueType::Tensor { dtype: *dtype, shape: shape.iter().map(|n| Dim::Num(*n)).collect() });
                    extents.push(shape);
                }
                token @ ValueType::Token(_) => {
                    types.push(token.clone());
                    extents.push(Vec::new());
                }
            }
        }
        for node in &self.nodes {
            let inputs: Vec<Option<&ValueType>> =
                node.inputs.iter().map(|id| id.map(|id| &types[id.index()])).collect();
            let op = node.op.bind(bindings);
            let failed = |source| GraphError::Op { node: node.name.clone(), op: node.op.name(), source };
            let outputs = op.infer(&Inference { inputs: &inputs, states: &self.states }).map_err(failed)?;
            for (id, ty) in node.outputs.iter().zip(outputs) {
                let known = match &ty {
                    ValueType::Tensor { dtype, shape } => {
                        ValueType::Tensor { dtype: *dtype, shape: shape.iter().map(|dim| dim.bind(bindings)).collect() }
                    }
                    token @ ValueType::Token(_) => token.clone(),
                };
                if known != types[id.index()] {
                    return Err(GraphError::Type {
                        node: node.name.clone(),
                        value: *id,
                        recorded: types[id.index()].to_string(),
                        inferred: known.to_string(),
                    });
                }
            }
        }
        Ok(extents)
    }

    /// The stable text of the graph: what snapshots hold.
    #[must_use]
    pub fn to_text(&self) -> String {
        use fmt::Write;
        let mut text = format!("graph {}\n", self.name);
        for (i, state) in self.states.iter().enumerate() {
            let row: String = state.row.iter().fold(String::new(), |text, extent| text + &format!(", {extent}"));
            let ring = state.window.map_or(String::new(), |window| format!(" ring of window {window}"));
            let _ = writeln!(text, "state ${i}: {}[{}{row}]{ring}  // {}", state.dtype, state.capacity, state.name);
        }
        for id in &self.inputs {
            let value = self.value(*id);
            let _ = writeln!(text, "input {id}: {}  // {}", value.ty, value.name);
        }
        for (id, _) in self.weights() {
            let value = self.value(id);
            let _ = writeln!(text, "weight {id}: {}  // {}", value.ty, value.name);
        }
        for node in &self.nodes {
            let list = |ids: &mut dyn Iterator<Item = String>| ids.collect::<Vec<_>>().join(", ");
            let outputs = list(&mut node.outputs.iter().map(|output| format!("{output}: {}", self.value(*output).ty)));
            let inputs = list(&mut node.inputs.iter().map(|i| i.map_or("_".to_owned(), |id| id.to_string())));
            let _ =
                writeln!(text, "{outputs} = {}({inputs}){}  // {}", node.op.name(), node.op.attributes(), node.name);
        }
        for id in &self.outputs {
            let _ = writeln!(text, "output {id}");
        }
        text
    }
}
