//! Any graph: split over backends and the host, with control flow.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use core_tensor::op::{Loop, Op, OpError};
use core_tensor::{
    Backend, BackendError, Bindings, DType, Graph, GraphError, Program, Progress, Session, StepTime, Tensor, ValueId,
    Weight, Weights, evaluate, op,
};
use polaris_optimizer::Report;

use crate::RuntimeError;
use crate::split::{Place, Split, split};

/// Programs that a piece keeps; with more sizes the oldest is dropped.
const MOST_PROGRAMS: usize = 16;

/// How an [`Executable`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutableOptions {
    /// Whether the optimizer's passes run first.
    pub optimize: bool,
}

impl Default for ExecutableOptions {
    /// Optimized.
    fn default() -> ExecutableOptions {
        ExecutableOptions { optimize: true }
    }
}

/// A graph without states, ready to run on whatever backends support its nodes: straight-line pieces are programs, control flow and nodes whose extents
/// depend on data are interpreted by the host between them.
pub struct Executable {
    graph: Arc<Graph>,
    pieces: Vec<Piece>,
    /// For each piece, the values that nothing needs after it.
    dead: Vec<Vec<ValueId>>,
    passes: Report,
    passed_over: Vec<String>,
}

enum Piece {
    /// Nodes that one backend runs.
    Program(Box<Straight>),
    /// A node that the host evaluates.
    Host(usize),
    /// An If: the branches, made when first taken.
    Branch { node: usize, then_branch: Box<Lazy>, else_branch: Box<Lazy> },
    /// A Loop.
    Repeat { node: usize, body: Box<Lazy> },
}

/// A subgraph that is made ready when it first runs.
struct Lazy {
    graph: Arc<Graph>,
    /// For each input of the subgraph, whether it is still given; others have become weights.
    kept: Vec<bool>,
    backends: Vec<Arc<dyn Backend>>,
    options: ExecutableOptions,
    /// Symbols that have values outside.
    known: BTreeSet<Arc<str>>,
    made: OnceLock<Executable>,
}

/// A straight-line piece on a backend.
struct Straight {
    graph: Arc<Graph>,
    backend: Arc<dyn Backend>,
    weights: Arc<dyn Weights>,
    /// Values of the whole graph that it takes and gives.
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// Symbols that none of its inputs gives: each comes as an empty tensor of that extent.
    carried: Vec<Arc<str>>,
    programs: Mutex<Vec<(Bindings, Arc<dyn Program>)>>,
    /// Sessions that no run uses.
    sessions: Mutex<Vec<Box<dyn Session>>>,
}

/// One line of [`Executable::profile`].
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// The backend, or `host`.
    pub backend: String,
    /// The step.
    pub step: StepTime,
}

impl Executable {
    /// Optimizes a graph, splits it over the backends (each node runs on the first that supports it), and loads the weights. `progress` is told bytes
    /// done and bytes in all, and may cancel.
    ///
    /// # Errors
    /// When the graph is wrong, has states, no backend runs some node, or a weight cannot be loaded.
    pub fn load(
        backends: &[Arc<dyn Backend>],
        graph: Graph,
        options: ExecutableOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Executable, RuntimeError> {
        Executable::load_within(backends, graph, options, &BTreeSet::new(), progress)
    }

    fn load_within(
        backends: &[Arc<dyn Backend>],
        graph: Graph,
        options: ExecutableOptions,
        known: &BTreeSet<Arc<str>>,
        progress: &mut Progress<'_>,
    ) -> Result<Executable, RuntimeError> {
        if !graph.states().is_empty() {
            return Err(RuntimeError::States { graph: graph.name().to_owned() });
        }
        let (graph, passes) =
            if options.optimize { polaris_optimizer::optimize(graph)? } else { (graph, Report::default()) };
        graph.verify()?;
        let weights: u64 = graph.weights().map(|(_, weight)| weight.byte_len() as u64).sum();
        let mut passed_over = Vec::new();
        let mut roomy: Vec<Arc<dyn Backend>> = Vec::new();
        for backend in backends {
            let memory = backend.memory();
            if weights <= memory.bytes {
                roomy.push(backend.clone());
            } else {
                passed_over.push(format!("{}: weights of {weights} bytes, {} available", memory.name, memory.bytes));
            }
        }
        if roomy.is_empty() {
            return Err(RuntimeError::NoBackend);
        }
        let Split { pieces, refused } = split(&graph, &roomy, known)?;
        passed_over.extend(refused);
        let graph = Arc::new(graph);
        let total = weights.max(1);
        let mut done = 0;
        let mut made = Vec::with_capacity(pieces.len());
        for piece in pieces {
            // Inputs of subgraphs that are weights outside are weights inside, too: kernels pack weights.
            let lazy = |sub: &Arc<Graph>, first: usize, at: usize| -> Result<Box<Lazy>, GraphError> {
                let given = piece.nodes.first().map_or(&[][..], |node| &graph.nodes()[*node].inputs[..]);
                let weights: Vec<Option<Arc<Weight>>> = (0..sub.inputs().len())
                    .map(|i| {
                        let outer = i.checked_sub(first).and_then(|i| given.get(i + at).copied().flatten())?;
                        graph.weight_of(outer).cloned()
                    })
                    .collect();
                Ok(Box::new(Lazy {
                    graph: Arc::new(with_weights(sub, &weights)?),
                    kept: weights.iter().map(Option::is_none).collect(),
                    backends: roomy.clone(),
                    options,
                    known: piece.known.clone(),
                    made: OnceLock::new(),
                }))
            };
            made.push(match (&piece.place, piece.nodes.first()) {
                (Place::Host, Some(&node)) => match &graph.nodes()[node].op {
                    Op::If(op) => {
                        let (then_branch, else_branch) = (lazy(&op.then_branch, 0, 1)?, lazy(&op.else_branch, 0, 1)?);
                        Piece::Branch { node, then_branch, else_branch }
                    }
                    Op::Loop(op) => {
                        let first = 2 + op.carried;
                        Piece::Repeat { node, body: lazy(&op.body, first, first)? }
                    }
                    _ => Piece::Host(node),
                },
                (Place::Backend(backend), _) => {
                    let backend = roomy[*backend].clone();
                    let part = piece.subgraph(&graph)?;
                    let mut told = 0;
                    let part_graph = Arc::new(part.graph);
                    let weights = backend
                        .load_weights(&part_graph, &mut |bytes, _| {
                            told = bytes;
                            progress((done + bytes).min(total), total)
                        })
                        .map_err(|e| failed(&*backend, e))?;
                    done += told;
                    Piece::Program(Box::new(Straight {
                        graph: part_graph,
                        backend,
                        weights,
                        inputs: part.inputs,
                        outputs: part.outputs,
                        carried: part.carried,
                        programs: Mutex::default(),
                        sessions: Mutex::default(),
                    }))
                }
                (Place::Host, None) => continue,
            });
        }
        let dead = dead_after(&graph, &made);
        Ok(Executable { graph, pieces: made, dead, passes, passed_over })
    }

    /// The graph after the passes.
    #[must_use]
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// What the passes did.
    #[must_use]
    pub fn passes(&self) -> &Report {
        &self.passes
    }

    /// Why backends do not run some nodes, the first few of each.
    #[must_use]
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// The pieces in order: what runs each, and how many nodes it has.
    #[must_use]
    pub fn pieces(&self) -> Vec<(String, usize)> {
        let describe = |piece: &Piece| match piece {
            Piece::Program(part) => (part.backend.name().to_owned(), part.graph.nodes().len()),
            Piece::Host(_) | Piece::Branch { .. } | Piece::Repeat { .. } => ("host".to_owned(), 1),
        };
        self.pieces.iter().map(describe).collect()
    }

    /// Bytes of the weights as the backends hold them, without subgraphs'.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |piece: &Piece| match piece {
            Piece::Program(part) => part.weights.byte_len(),
            Piece::Host(_) | Piece::Branch { .. } | Piece::Repeat { .. } => 0,
        };
        self.pieces.iter().map(bytes).sum()
    }

    /// Bytes of intermediate results of the programs compiled so far, the largest of each piece.
    #[must_use]
    pub fn arena_bytes(&self) -> u64 {
        let bytes = |piece: &Piece| match piece {
            Piece::Program(part) => {
                let programs = part.programs.lock().unwrap_or_else(PoisonError::into_inner);
                programs.iter().map(|(_, program)| program.plan().arena_bytes as u64).max().unwrap_or(0)
            }
            Piece::Host(_) | Piece::Branch { .. } | Piece::Repeat { .. } => 0,
        };
        self.pieces.iter().map(bytes).sum()
    }

    /// Times of the steps in all runs so far, in order, where backends were made to take them; subgraphs' after the node that runs them.
    #[must_use]
    pub fn profile(&self) -> Vec<OpTime> {
        let mut times = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Program(part) => {
                    for (_, program) in &*part.programs.lock().unwrap_or_else(PoisonError::into_inner) {
                        let backend = part.backend.name();
                        let steps = program.step_times().into_iter();
                        times.extend(steps.map(|step| OpTime { backend: backend.to_owned(), step }));
                    }
                }
                Piece::Host(_) => {}
                Piece::Branch { then_branch, else_branch, .. } => {
                    for made in [then_branch, else_branch].iter().filter_map(|lazy| lazy.made.get()) {
                        times.extend(made.profile());
                    }
                }
                Piece::Repeat { body, .. } => {
                    times.extend(body.made.get().map(Executable::profile).unwrap_or_default());
                }
            }
        }
        times
    }

    /// The programs compiled so far, for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Program(part) => {
                    for (bounds, program) in &*part.programs.lock().unwrap_or_else(PoisonError::into_inner) {
                        let bounds: Vec<String> = bounds.iter().map(|(s, n)| format!("{s}={n}")).collect();
                        text += &format!("{} ({})\n{}", part.backend.name(), bounds.join(", "), program.to_text());
                    }
                }
                Piece::Host(node) | Piece::Branch { node, .. } | Piece::Repeat { node, .. } => {
                    let node = &self.graph.nodes()[*node];
                    text += &format!("host {} {:?}\n", node.op.name(), node.name);
                }
            }
        }
        text
    }

    /// Runs once: inputs and outputs in the graph's order. Programs are compiled when extents are first met.
    ///
    /// # Errors
    /// When inputs do not fit the graph, or a backend or a node fails.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_within(&Bindings::new(), inputs)
    }

    fn run_within(&self, outer: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let graph = &*self.graph;
        let mut bindings = graph.bind_inputs_within(outer, inputs)?;
        let mut values: HashMap<ValueId, Tensor> = graph.inputs().iter().copied().zip(inputs.iter().cloned()).collect();
        for (piece, dead) in self.pieces.iter().zip(&self.dead) {
            match piece {
                Piece::Program(part) => {
                    let outputs = part.run(&values, &bindings)?;
                    for (id, tensor) in part.outputs.iter().zip(outputs) {
                        values.insert(*id, tensor);
                    }
                }
                Piece::Host(node) => self.host(*node, &mut values, &mut bindings, |op, inputs, bindings| {
                    Ok(evaluate(op, inputs, bindings)?)
                })?,
                Piece::Branch { node, then_branch, else_branch } => {
                    self.host(*node, &mut values, &mut bindings, |_, inputs, bindings| {
                        let condition = inputs.first().and_then(Option::as_ref).ok_or(op::missing_input(0))?;
                        let branch = if op::truth(condition)? { then_branch } else { else_branch };
                        let captures: Vec<Tensor> = inputs[1..].iter().flatten().cloned().collect();
                        branch.get()?.run_within(bindings, &branch.given(&captures))
                    })?;
                }
                Piece::Repeat { node, body } => {
                    self.host(*node, &mut values, &mut bindings, |op, inputs, bindings| {
                        let Op::Loop(op) = op else { return Err(OpError::Custom("no loop".into()).into()) };
                        let made = body.get()?;
                        Loop::drive(op, inputs, |given| made.run_within(bindings, &body.given(given)))
                    })?;
                }
            }
            for id in dead {
                values.remove(id);
            }
        }
        let output = |id: &ValueId| -> Result<Tensor, RuntimeError> {
            match (values.get(id), graph.weight_of(*id)) {
                (Some(tensor), _) => Ok(tensor.clone()),
                (None, Some(weight)) => Ok(weight
                    .to_tensor()
                    .map_err(|source| BackendError::Weight { name: graph.value(*id).name.clone(), source })?),
                (None, None) => Err(GraphError::Output { value: *id }.into()),
            }
        };
        graph.outputs().iter().map(output).collect()
    }

    /// Runs a node on tensors and gives the symbols of its results their values.
    fn host(
        &self,
        node: usize,
        values: &mut HashMap<ValueId, Tensor>,
        bindings: &mut Bindings,
        run: impl FnOnce(&Op, &[Option<Tensor>], &Bindings) -> Result<Vec<Tensor>, RuntimeError>,
    ) -> Result<(), RuntimeError> {
        let node = &self.graph.nodes()[node];
        let input = |id: &Option<ValueId>| -> Result<Option<Tensor>, RuntimeError> {
            let Some(id) = id else { return Ok(None) };
            if let Some(tensor) = values.get(id) {
                return Ok(Some(tensor.clone()));
            }
            let missing = || GraphError::Order { node: node.name.clone(), value: *id };
            let weight = self.graph.weight_of(*id).ok_or_else(missing)?;
            let name = || self.graph.value(*id).name.clone();
            Ok(Some(weight.to_tensor().map_err(|source| BackendError::Weight { name: name(), source })?))
        };
        let inputs: Vec<Option<Tensor>> = node.inputs.iter().map(input).collect::<Result<_, _>>()?;
        let op = node.op.bind(bindings);
        let named = |error: RuntimeError| match error {
            RuntimeError::Op(source) => {
                RuntimeError::Graph(GraphError::Op { node: node.name.clone(), op: node.op.name(), source })
            }
            other => other,
        };
        let outputs = run(&op, &inputs, bindings).map_err(named)?;
        for (id, tensor) in node.outputs.iter().zip(outputs) {
            if let Some((dtype, shape)) = self.graph.tensor_type(*id) {
                bindings.bind_shape(shape, tensor.shape());
                let expected = core_tensor::eval_shape(shape, bindings)?;
                if tensor.dtype() != dtype || tensor.shape() != expected {
                    let reason = OpError::Shape(format!("computed {tensor:?}, {dtype} {expected:?} expected"));
                    return Err(named(reason.into()));
                }
            }
            values.insert(*id, tensor);
        }
        Ok(())
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable").field("graph", &self.graph.name()).field("pieces", &self.pieces()).finish()
    }
}

/// The same graph with some of its inputs as weights.
fn with_weights(graph: &Graph, weights: &[Option<Arc<Weight>>]) -> Result<Graph, GraphError> {
    let mut new = Graph::new(graph.name());
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for (id, weight) in graph.inputs().iter().zip(weights) {
        let value = graph.value(*id);
        let given = match (weight, graph.tensor_type(*id)) {
            (Some(weight), _) => new.weight(&value.name, weight.clone()),
            (None, Some((dtype, shape))) => new.input(&value.name, dtype, shape),
            (None, None) => return Err(GraphError::Token { value: *id }),
        };
        map.insert(*id, given);
    }
    for (id, weight) in graph.weights() {
        let given = new.weight(&graph.value(id).name, weight.clone());
        map.insert(id, given);
    }
    for node in graph.nodes() {
        let inputs = node.inputs.iter().map(|id| id.and_then(|id| map.get(&id).copied())).collect();
        let outputs = new.add_node(&node.name, node.op.clone(), inputs)?;
        map.extend(node.outputs.iter().copied().zip(outputs));
    }
    for id in graph.outputs() {
        new.output(map.get(id).copied().ok_or(GraphError::Output { value: *id })?);
    }
    Ok(new)
}

impl Lazy {
    /// Of the inputs that the operator has for the subgraph, those that it still takes.
    fn given(&self, inputs: &[Tensor]) -> Vec<Tensor> {
        inputs.iter().zip(&self.kept).filter(|(_, kept)| **kept).map(|(tensor, _)| tensor.clone()).collect()
    }

    fn get(&self) -> Result<&Executable, RuntimeError> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let graph = Graph::clone(&self.graph);
        let made = Executable::load_within(&self.backends, graph, self.options, &self.known, &mut |_, _| {
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(self.made.get_or_init(|| made))
    }
}

impl Straight {
    fn run(&self, values: &HashMap<ValueId, Tensor>, outer: &Bindings) -> Result<Vec<Tensor>, RuntimeError> {
        let mut inputs = Vec::with_capacity(self.inputs.len() + self.carried.len());
        for id in &self.inputs {
            inputs.push(values.get(id).cloned().ok_or(GraphError::Output { value: *id })?);
        }
        for symbol in &self.carried {
            let extent = outer.get(symbol).ok_or_else(|| core_tensor::DimError::Unbound { symbol: symbol.clone() })?;
            inputs.push(Tensor::zeroed(DType::U8, &[extent, 0]).map_err(OpError::from)?);
        }
        let program = self.program(&self.graph.bind_inputs(&inputs)?)?;
        let session = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = match session {
            Some(session) => session,
            None => {
                let none = Bindings::new();
                self.backend.new_session(&self.graph, 0, &none).map_err(|e| failed(&*self.backend, e))?
            }
        };
        let outputs = program.run(&mut *session, &inputs).map_err(|e| failed(&*self.backend, e));
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        outputs
    }

    /// The first program is compiled for just its extents: most models meet no others. Later ones have some room, so that similar extents share one.
    fn program(&self, extents: &Bindings) -> Result<Arc<dyn Program>, RuntimeError> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |bounds: &Bindings| {
            let ample = |n: usize| n.saturating_add(n / 4).saturating_add(16);
            extents.iter().all(|(symbol, n)| bounds.get(symbol).is_some_and(|bound| n <= bound && bound <= ample(n)))
        };
        if let Some((_, program)) = programs.iter().find(|(bounds, _)| fits(bounds)) {
            return Ok(program.clone());
        }
        let mut bounds = extents.clone();
        if !programs.is_empty() {
            extents.iter().for_each(|(symbol, n)| bounds.set(symbol, with_room(n)));
        }
        let compile = |bounds: &Bindings| self.backend.compile(&self.graph, &self.weights, bounds);
        let (bounds, program) = match compile(&bounds) {
            Ok(program) => (bounds, program),
            // Some extents are expressions that have no value with room, such as differences.
            Err(_) if bounds != *extents => (extents.clone(), compile(extents).map_err(|e| failed(&*self.backend, e))?),
            Err(error) => return Err(failed(&*self.backend, error)),
        };
        tracing::debug!(graph = self.graph.name(), ?bounds, arena = program.plan().arena_bytes, "compiled");
        if programs.len() == MOST_PROGRAMS {
            programs.remove(0);
        }
        programs.push((bounds, program.clone()));
        Ok(program)
    }
}

/// The next extent with three significant bits, so that no more than an eighth is wasted.
fn with_room(n: usize) -> usize {
    let unit = (n.checked_ilog2().unwrap_or(0)).saturating_sub(3);
    n.next_multiple_of(1 << unit)
}

/// For each piece, the values that neither a later one nor an output needs.
fn dead_after(graph: &Graph, pieces: &[Piece]) -> Vec<Vec<ValueId>> {
    let reads = |piece: &Piece| -> Vec<ValueId> {
        match piece {
            Piece::Program(part) => part.inputs.clone(),
            Piece::Host(node) | Piece::Branch { node, .. } | Piece::Repeat { node, .. } => {
                graph.nodes()[*node].inputs.iter().copied().flatten().collect()
            }
        }
    };
    let writes = |piece: &Piece| -> Vec<ValueId> {
        match piece {
            Piece::Program(part) => part.outputs.clone(),
            Piece::Host(node) | Piece::Branch { node, .. } | Piece::Repeat { node, .. } => {
                graph.nodes()[*node].outputs.clone()
            }
        }
    };
    let mut needed: BTreeSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut dead = vec![Vec::new(); pieces.len()];
    for (i, piece) in pieces.iter().enumerate().rev() {
        dead[i].extend(writes(piece).into_iter().filter(|id| !needed.contains(id)));
        for id in reads(piece) {
            if needed.insert(id) {
                dead[i].push(id);
            }
        }
    }
    dead
}

fn failed(backend: &dyn Backend, source: BackendError) -> RuntimeError {
    RuntimeError::Backend { backend: backend.name().to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::with_room;

    #[test]
    fn room_is_at_most_an_eighth() {
        for n in 0..5000 {
            let bound = with_room(n);
            assert!(bound >= n && bound - n <= n / 8, "{n} -> {bound}");
        }
    }
}
