//! `past_key_values`: inputs that grow by concatenation become states of the graph.
//!
//! Decoders are exported with the keys and values of all earlier tokens as inputs, and with the same and the new ones joined as outputs: each step copies the whole
//! past. Here the new rows are written into states instead, and attention reads these. That is another interface (the past's inputs and outputs go, positions and slots
//! come) and assumes what a graph does not say, so that nobody gets it who has not asked for it.

use core_tensor::op::{Attention, Concat, Op, Reshape, StateWrite, TensorAttention, Transpose};
use core_tensor::{DType, Dim, Graph, GraphError, Node, StateDecl, ValueId, ValueSource};

use crate::dead_code;
use crate::rule::View;

/// How the past becomes states.
///
/// By asking for it the caller says: masks of the attention nodes that read the past are causal and hide nothing else (no padding within a batch), and the
/// position of a row in its sequence is given with each step. Each member of a batch is a slot of the states.
#[derive(Clone, Debug)]
pub struct PastToStates {
    /// Rows per slot.
    pub capacity: Dim,
    /// Element type of the states: f32, f16 or q8_0.
    pub dtype: DType,
}

/// Why the past did not become states.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PastError {
    /// No attention node reads an input joined with new rows.
    #[error("no attention reads keys and values that are an input joined with new rows{}", near(.0))]
    NotFound(Option<String>),
    /// A node needs the past, or its length, besides attention.
    #[error("node {node:?} needs {what}, which is no longer given")]
    Needed {
        /// The node.
        node: String,
        /// The input or extent.
        what: String,
    },
    /// The rewritten graph is wrong.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

fn near(reason: &Option<String>) -> String {
    reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default()
}

/// Keys or values: the input that holds the past, the new rows, and where both are joined.
#[derive(Clone, Copy)]
struct Past {
    input: ValueId,
    new: ValueId,
    joined: ValueId,
    /// Whether they are `[batch, heads, rows, dim]`, and not `[batch, rows, heads, dim]`.
    heads_first: bool,
}

/// Replaces keys and values that are given from outside and grow by states (run it on an optimized graph, which has attention nodes).
///
/// Gives the graph and the number of attention nodes that were changed. Added inputs: `positions` and `slots`, both i32 `[batch * tokens]`, of the rows of all sequences of
/// a step, sequence by sequence. Inputs that nothing needs any more go.
///
/// # Errors
/// When there is no such attention, or what goes is needed elsewhere.
pub fn past_to_states(graph: &Graph, options: &PastToStates) -> Result<(Graph, usize), PastError> {
    let view = View::new(graph);
    let mut found: Vec<(usize, Past, Past)> = Vec::new();
    let mut reason = None;
    for (index, node) in graph.nodes().iter().enumerate() {
        if let (Op::TensorAttention(_), [_, Some(k), Some(v), ..]) = (&node.op, &node.inputs[..]) {
            match (past(&view, *k), past(&view, *v)) {
                (Ok(k), Ok(v)) => found.push((index, k, v)),
                (Err(why), _) | (_, Err(why)) => reason = reason.or(Some(format!("node {:?}: {why}", node.name))),
            }
        }
    }
    if found.is_empty() {
        return Err(PastError::NotFound(reason));
    }
    let gone: Vec<ValueId> = found.iter().flat_map(|(_, k, v)| [k.input, k.joined, v.input, v.joined]).collect();
    let mut rebuilt = Rebuilt { old: graph, new: Graph::new(graph.name()), map: vec![None; graph.values().len()] };
    for id in graph.state_ids() {
        rebuilt.new.add_state(graph.state(id).clone());
    }
    for id in graph.inputs().iter().filter(|id| !gone.contains(id)) {
        let Some((dtype, shape)) = graph.tensor_type(*id) else { continue };
        rebuilt.map[id.index()] = Some(rebuilt.new.input(&graph.value(*id).name, dtype, shape));
    }
    let mut rows = None;
    for (index, node) in graph.nodes().iter().enumerate() {
        match found.iter().find(|(at, _, _)| *at == index) {
            Some((_, k, v)) => rebuilt.attention(node, *k, *v, options, &mut rows)?,
            None => rebuilt.copy(node)?,
        }
    }
    for output in graph.outputs().iter().filter(|id| !gone.contains(id)) {
        let new = rebuilt
            .get(*output)
            .ok_or_else(|| PastError::Needed { node: graph.value(*output).name.clone(), what: "the past".into() })?;
        rebuilt.new.output(new);
    }
    let mut new = rebuilt.new;
    if let Some((swept, _)) = dead_code::run(&new)? {
        new = swept;
    }
    let new = without_unused_inputs(graph, &new)?;
    extents_are_given(&new)?;
    new.verify()?;
    Ok((new, found.len()))
}

/// Looks for `concat(input, new)` behind keys or values.
fn past(view: &View<'_>, id: ValueId) -> Result<Past, String> {
    let mut joined = id;
    let mut heads_first = false;
    let mut node = view.producer(joined).map(|(_, node)| node).ok_or("keys or values are not computed")?;
    if let (Op::Transpose(Transpose { perm }), [Some(x)]) = (&node.op, &node.inputs[..]) {
        if perm[..] != [0, 2, 1, 3] {
            return Err(format!("keys or values are permuted by {perm:?}"));
        }
        (joined, heads_first) = (*x, true);
        node = view.producer(joined).map(|(_, node)| node).ok_or("keys or values are not computed")?;
    }
    let (Op::Concat(Concat { axis }), [Some(input), Some(new)]) = (&node.op, &node.inputs[..]) else {
        return Err(format!("keys or values come from {} {:?}", node.op.name(), node.name));
    };
    let rows = if heads_first { [2, -2] } else { [1, -3] };
    if !rows.contains(axis) {
        return Err(format!("{:?} does not join along the rows", node.name));
    }
    if !matches!(view.graph.value(*input).source, ValueSource::Input) {
        return Err(format!("{:?} joins what is no input", node.name));
    }
    Ok(Past { input: *input, new: *new, joined, heads_first })
}

/// The graph that is built, and what stands for the values of the old one; `None` for the past and what depends on it.
struct Rebuilt<'a> {
    old: &'a Graph,
    new: Graph,
    map: Vec<Option<ValueId>>,
}

impl Rebuilt<'_> {
    fn get(&mut self, id: ValueId) -> Option<ValueId> {
        if self.map[id.index()].is_none() {
            let value = self.old.value(id);
            if let ValueSource::Weight(weight) = &value.source {
                self.map[id.index()] = Some(self.new.weight(&value.name, weight.clone()));
            }
        }
        self.map[id.index()]
    }

    fn copy(&mut self, node: &Node) -> Result<(), GraphError> {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            inputs.push(match input {
                None => None,
                Some(id) => match self.get(*id) {
                    Some(new) => Some(new),
                    // It depends on the past: so do its outputs.
                    None => return Ok(()),
                },
            });
        }
        let outputs = self.new.add_node(&node.name, node.op.clone(), inputs)?;
        for (old, new) in node.outputs.iter().zip(outputs) {
            self.map[old.index()] = Some(new);
        }
        Ok(())
    }

    fn attention(
        &mut self,
        node: &Node,
        k: Past,
        v: Past,
        options: &PastToStates,
        rows: &mut Option<(Dim, ValueId, ValueId)>,
    ) -> Result<(), PastError> {
        let needed = |what: &str| PastError::Needed { node: node.name.clone(), what: what.into() };
        let Op::TensorAttention(TensorAttention { scale, softcap, .. }) = node.op else { return Ok(()) };
        let q = node.inputs[0].and_then(|id| self.get(id)).ok_or_else(|| needed("queries that depend on the past"))?;
        let shape = |graph: &Graph, id| graph.tensor_type(id).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
        let [batch, tokens, heads, head_dim] = &shape(&self.new, q)[..] else { return Ok(()) };
        let flat = batch.clone().mul(tokens.clone());
        let (_, positions, slots) = rows.get_or_insert_with(|| {
            let positions = self.new.input("positions", DType::I32, std::slice::from_ref(&flat));
            let slots = self.new.input("slots", DType::I32, std::slice::from_ref(&flat));
            (flat.clone(), positions, slots)
        });
        let (positions, slots) = (*positions, *slots);
        let reshape = |shape: Vec<Dim>| Op::Reshape(Reshape { shape });
        let mut tokens_of = Vec::new();
        for part in [k, v] {
            let name = self.old.value(part.input).name.clone();
            let mut new = self.get(part.new).ok_or_else(|| needed("new rows that depend on the past"))?;
            if part.heads_first {
                new = self.new.add(&node.name, Op::Transpose(Transpose { perm: vec![0, 2, 1, 3] }), &[new])?;
            }
            let [_, _, n_kv, dim] = &shape(&self.new, new)[..] else { return Ok(()) };
            let (Some(n_kv), Some(dim)) = (n_kv.as_num(), dim.as_num()) else {
                return Err(needed("numbers of heads and their length, which are not known"));
            };
            let new = self.new.add(&node.name, reshape(vec![flat.clone(), n_kv.into(), dim.into()]), &[new])?;
            let state = self.new.add_state(StateDecl {
                name: name.clone(),
                dtype: options.dtype,
                row: vec![n_kv, dim],
                capacity: options.capacity.clone(),
                window: None,
            });
            tokens_of.push(self.new.add(&name, Op::StateWrite(StateWrite { state }), &[new, positions, slots])?);
        }
        let q = self.new.add(&node.name, reshape(vec![flat, heads.clone(), head_dim.clone()]), &[q])?;
        let op = Op::Attention(Attention { scale, softcap, window: None });
        let y = self.new.add(&node.name, op, &[q, tokens_of[0], tokens_of[1], positions, slots])?;
        let back = shape(self.old, node.outputs[0]);
        let y = self.new.add(&node.name, reshape(back), &[y])?;
        self.map[node.outputs[0].index()] = Some(y);
        Ok(())
    }
}

/// Leaves out inputs that were used and no longer are (masks).
fn without_unused_inputs(old: &Graph, graph: &Graph) -> Result<Graph, GraphError> {
    let used = |graph: &Graph, id: ValueId| {
        graph.outputs().contains(&id) || graph.nodes().iter().any(|node| node.inputs.contains(&Some(id)))
    };
    let was_unused = |name: &str| old.inputs().iter().any(|id| old.value(*id).name == name && !used(old, *id));
    let mut rebuilt = Rebuilt { old: graph, new: Graph::new(graph.name()), map: vec![None; graph.values().len()] };
    for id in graph.state_ids() {
        rebuilt.new.add_state(graph.state(id).clone());
    }
    for id in graph.inputs() {
        let name = &graph.value(*id).name;
        if let Some((dtype, shape)) = graph.tensor_type(*id).filter(|_| used(graph, *id) || was_unused(name)) {
            rebuilt.map[id.index()] = Some(rebuilt.new.input(name, dtype, shape));
        }
    }
    for node in graph.nodes() {
        rebuilt.copy(node)?;
    }
    for output in graph.outputs() {
        if let Some(new) = rebuilt.get(*output) {
            rebuilt.new.output(new);
        }
    }
    Ok(rebuilt.new)
}

/// Fails if a node needs an extent that no input has any more: the length of the past.
fn extents_are_given(graph: &Graph) -> Result<(), PastError> {
    let mut known = std::collections::HashSet::new();
    let mut learn = |id: &ValueId| {
        if let Some((_, shape)) = graph.tensor_type(*id) {
            let mut insert = |symbol: &std::sync::Arc<str>| {
                known.insert(symbol.to_string());
            };
            shape.iter().for_each(|dim| dim.symbols(&mut insert));
        }
    };
    graph.inputs().iter().for_each(&mut learn);
    // Extents that depend on data are known once their node has run.
    for node in graph.nodes() {
        if matches!(node.op, Op::NonZero(_) | Op::NonMaxSuppression(_) | Op::Unique(_) | Op::If(_) | Op::Loop(_)) {
            node.outputs.iter().for_each(&mut learn);
        }
    }
    for node in graph.nodes() {
        let shapes = node.outputs.iter().filter_map(|id| graph.tensor_type(*id)).flat_map(|(_, shape)| shape);
        let mut missing = None;
        for dim in shapes.chain(attribute_extents(&node.op)) {
            dim.symbols(&mut |symbol| {
                if !known.contains(&**symbol) {
                    missing = Some(symbol.to_string());
                }
            });
        }
        if let Some(symbol) = missing {
            return Err(PastError::Needed { node: node.name.clone(), what: format!("the extent {symbol}") });
        }
    }
    Ok(())
}

/// Extents in an operator's attributes that its output's shape does not show.
fn attribute_extents(op: &Op) -> Vec<&Dim> {
    match op {
        Op::ExtentValues(op) => op.dims.iter().collect(),
        Op::Slice(op) => vec![&op.start, &op.len],
        Op::Pad(op) => op.pads.iter().flat_map(|(before, after)| [before, after]).collect(),
        _ => Vec::new(),
    }
}
