//! From graph to program: fusion, in-place aliases, barriers, memory plan.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use core_tensor::op::{Binary, Op, RotaryEmbedding};
use core_tensor::{
    BackendError, Bindings, BufferRequest, DType, Dim, Graph, MemoryPlan, Node, StateId, ValueId, ValueSource,
    eval_shape,
};

use crate::attention::{self, AttentionStep};
use crate::elementwise::{BinaryStep, Gated, UnaryStep};
use crate::gather::GatherRows;
use crate::linear::{Linear, Part, Prologue, Target};
use crate::matmul::{ActivationKind, PackedMatrix};
use crate::norm::RmsNorm;
use crate::program::{CpuProgram, CpuWeightsHandle, Place, Scheduled, Step, bound_bytes};
use crate::reduce::{ReduceRows, RowKind};
use crate::rope::{Rope, RopeTable};
use crate::shape::{Move, Whole};
use crate::simd::Level;
use crate::state::WriteState;
use crate::threads::ThreadPool;
use crate::weights::{CpuWeights, MatrixId};

/// What a compilation needs to know besides the graph.
pub(crate) struct CompileOptions {
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) level: Level,
    pub(crate) activations: ActivationKind,
    pub(crate) profile: bool,
}

/// Memory that steps read and write: values by the buffer they lie in, states, scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Memory {
    Value(ValueId),
    State(StateId),
    Scratch(usize),
}

/// How a step's work is dealt to threads. Steps dealt alike need no barrier between them: each thread reads what it wrote itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deal {
    /// By heads of tokens, in equal shares of `tokens × heads`: the same memory has as many tokens where heads and their length are the same.
    Heads { heads: usize, head_dim: usize },
    /// In a way of its own.
    Own,
}

struct Draft {
    step: Box<dyn Step>,
    reads: Vec<Memory>,
    writes: Vec<Memory>,
    deal: Deal,
}

struct Scratch {
    name: String,
    bytes: usize,
}

struct Compiler<'a> {
    graph: &'a Graph,
    weights: &'a CpuWeights,
    bounds: &'a Bindings,
    threads: usize,
    activations: ActivationKind,
    /// Nodes that read each value, in order; an output counts as a read after all nodes.
    readers: Vec<Vec<usize>>,
    /// The value whose buffer a value lies in.
    root: Vec<ValueId>,
    /// Nodes that a fused step has taken over.
    taken: HashSet<usize>,
    drafts: Vec<Draft>,
    scratch: Vec<Scratch>,
    tables: Vec<(RotaryEmbedding, ValueId, Option<ValueId>, usize)>,
    counters: usize,
}

/// Whether there is a kernel for a node.
pub(crate) fn supports(graph: &Graph, node: &Node) -> Result<(), String> {
    let is_input = |i: usize| {
        node.inputs.get(i).copied().flatten().is_some_and(|id| matches!(graph.value(id).source, ValueSource::Input))
    };
    match &node.op {
        Op::MatMul(_) => match node.inputs.get(1).copied().flatten().and_then(|id| graph.weight_of(id)) {
            Some(_) => Ok(()),
            None => Err("its second operand must be a weight".into()),
        },
        Op::StateWrite(_) if !(is_input(1) && is_input(2)) => {
            Err("positions and slots must be inputs of the graph".into())
        }
        Op::Attention(_) if !(is_input(3) && is_input(4)) => {
            Err("positions and slots must be inputs of the graph".into())
        }
        Op::RotaryEmbedding(_) if !is_input(1) => Err("positions must be an input of the graph".into()),
        Op::Custom(_) => {
            let mut all = node.inputs.iter().flatten().chain(&node.outputs);
            match all.find(|id| graph.tensor_type(**id).is_none()) {
                Some(token) => Err(format!("{token} is a state's token, which a user's operator cannot read or give")),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

pub(crate) fn compile(
    graph: &Arc<Graph>,
    weights: &Arc<dyn core_tensor::Weights>,
    bounds: &Bindings,
    target: &CompileOptions,
) -> Result<CpuProgram, BackendError> {
    graph.verify()?;
    let handle = CpuWeightsHandle(weights.clone());
    let loaded = handle.get().filter(|w| w.is_of(graph)).ok_or(BackendError::Mismatch("weights and graph"))?;
    for node in graph.nodes() {
        supports(graph, node).map_err(|reason| BackendError::Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason,
        })?;
    }
    let mut readers = vec![Vec::new(); graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().flatten().for_each(|id| readers[id.index()].push(i));
    }
    graph.outputs().iter().for_each(|id| readers[id.index()].push(usize::MAX));
    let mut compiler = Compiler {
        graph,
        weights: loaded,
        bounds,
        threads: target.pool.threads(),
        activations: target.activations,
        readers,
        root: graph.value_ids().collect(),
        taken: HashSet::new(),
        drafts: Vec::new(),
        scratch: Vec::new(),
        tables: Vec::new(),
        counters: 0,
    };
    for i in 0..graph.nodes().len() {
        if !compiler.taken.contains(&i) {
            compiler.node(i)?;
        }
    }
    let Compiler { root, drafts, scratch, counters, .. } = compiler;
    let (steps, places, plan) = schedule(graph, bounds, &root, drafts, &scratch)?;
    Ok(CpuProgram {
        graph: graph.clone(),
        weights: Arc::new(handle),
        pool: target.pool.clone(),
        level: target.level,
        bounds: bounds.clone(),
        profile: target.profile,
        steps,
        places,
        plan,
        counters,
        row_inputs: graph.row_inputs(),
        extents: Mutex::new(None),
    })
}

impl Compiler<'_> {
    fn input(&self, node: &Node, i: usize) -> Result<ValueId, BackendError> {
        node.inputs.get(i).copied().flatten().ok_or_else(|| BackendError::Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason: format!("input {i} is left out"),
        })
    }

    fn memory(&self, id: ValueId) -> Memory {
        Memory::Value(self.root[id.index()])
    }

    fn is_arena(&self, id: ValueId) -> bool {
        matches!(self.graph.value(self.root[id.index()]).source, ValueSource::Node)
    }

    /// The only node that reads a value, if there is just one and the value is no output.
    fn sole_reader(&self, id: ValueId) -> Option<usize> {
        match self.readers[id.index()][..] {
            [reader] if reader != usize::MAX => Some(reader),
            _ => None,
        }
    }

    /// Whether node `i` is the last to read the buffer that a value lies in, so that its result may take it over.
    fn dies_at(&self, id: ValueId, i: usize) -> bool {
        let root = self.root[id.index()];
        self.is_arena(id)
            && self.graph.value_ids().filter(|v| self.root[v.index()] == root).all(|v| {
                // What reads an alias reads the buffer.
                self.readers[v.index()].iter().all(|reader| *reader <= i && !self.waits(*reader))
            })
    }

    /// Lets a result lie where an operand of the same size lies, if that dies here.
    fn in_place(&mut self, result: ValueId, operand: ValueId, i: usize) {
        let same = self.graph.tensor_type(result) == self.graph.tensor_type(operand);
        if same && self.dies_at(operand, i) {
            self.root[result.index()] = self.root[operand.index()];
        }
    }

    fn counter(&mut self) -> usize {
        self.counters += 1;
        self.counters - 1
    }

    fn scratch(&mut self, name: &str, bytes: usize) -> usize {
        self.scratch.push(Scratch { name: name.to_owned(), bytes });
        self.scratch.len() - 1
    }

    fn draft(&mut self, step: impl Step + 'static, reads: &[ValueId], writes: &[ValueId], deal: Deal) {
        let reads = reads.iter().map(|id| self.memory(*id)).collect();
        let writes = writes.iter().map(|id| self.memory(*id)).collect();
        self.drafts.push(Draft { step: Box::new(step), reads, writes, deal });
    }

    /// Heads of a value `[tokens, heads, head_dim]`, by which its work is dealt.
    fn deal(&self, id: ValueId) -> Deal {
        match self.graph.tensor_type(id) {
            Some((_, [_, Dim::Num(heads), Dim::Num(head_dim)])) => Deal::Heads { heads: *heads, head_dim: *head_dim },
            _ => Deal::Own,
        }
    }

    fn bound_rows(&self, id: ValueId) -> Result<usize, BackendError> {
        let (_, shape) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
        let shape = eval_shape(shape, self.bounds).map_err(core_tensor::GraphError::from)?;
        Ok(shape.split_last().map_or(1, |(_, rows)| rows.iter().product()))
    }

    fn node(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        match &node.op {
            Op::MatMul(_) => return self.linear(i),
            Op::RmsNormalization(op) => {
                if self.is_prologue(y) {
                    return Ok(());
                }
                let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
                self.in_place(y, x, i);
                // Every thread reads the whole weight, whoever may have computed it.
                let deal = if self.is_arena(w) { Deal::Own } else { self.deal(x) };
                self.draft(RmsNorm { x, w, y, epsilon: op.epsilon }, &[x, w], &[y], deal);
            }
            Op::RotaryEmbedding(op) => self.rope(i, op)?,
            Op::StateWrite(op) => {
                let (rows, positions, slots) = (self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?);
                let deal = self.deal(rows);
                self.draft(
                    WriteState { state: op.state, rows, positions, slots },
                    &[rows, positions, slots],
                    &[],
                    deal,
                );
                self.last_writes(Memory::State(op.state));
            }
            Op::Attention(op) => {
                let state = |id: ValueId| match graph.value(id).ty {
                    core_tensor::ValueType::Token(state) => Ok(state),
                    core_tensor::ValueType::Tensor { .. } => Err(BackendError::Mismatch("attention and its states")),
                };
                let q = self.input(node, 0)?;
                let (k, v) = (state(self.input(node, 1)?)?, state(self.input(node, 2)?)?);
                let (positions, slots) = (self.input(node, 3)?, self.input(node, 4)?);
                let dim = |state: StateId| graph.state(state).row.last().copied().unwrap_or(0);
                let floats = attention::scratch_floats(dim(k), dim(v)).next_multiple_of(16);
                let scratch = self.scratch("attention tiles", floats * 4 * self.threads);
                let counter = self.counter();
                let step = AttentionStep { op: *op, q, k, v, positions, slots, y, scratch, counter };
                self.draft(step, &[q, positions, slots], &[y], Deal::Own);
                self.last_reads(Memory::State(k));
                self.last_reads(Memory::State(v));
                self.last_writes(Memory::Scratch(scratch));
            }
            Op::Gather(_) => {
                let (data, indices) = (self.input(node, 0)?, self.input(node, 1)?);
                let dtype = graph.tensor_type(y).map_or(DType::F32, |(dtype, _)| dtype);
                let from = graph.tensor_type(data).map_or(DType::F32, |(dtype, _)| dtype);
                self.draft(GatherRows { data, from, indices, y, dtype }, &[data, indices], &[y], Deal::Own);
            }
            Op::Unary(op) => {
                let x = self.input(node, 0)?;
                self.in_place(y, x, i);
                self.draft(UnaryStep { op: *op, x, y }, &[x], &[y], Deal::Own);
            }
            Op::Binary(op) => {
                let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
                // Only one operand can be taken over; the other must then be another buffer, or of the same shape.
                let same = |x: ValueId, y: ValueId| graph.tensor_type(x) == graph.tensor_type(y);
                if a != b && self.memory(a) != self.memory(b) {
                    if same(a, y) && self.dies_at(a, i) {
                        self.in_place(y, a, i);
                    } else {
                        self.in_place(y, b, i);
                    }
                }
                self.draft(BinaryStep { op: *op, a, b, y }, &[a, b], &[y], Deal::Own);
            }
            Op::GatedActivation(op) => {
                let (gate, up) = (self.input(node, 0)?, self.input(node, 1)?);
                self.draft(Gated { activation: op.activation, gate, up, y }, &[gate, up], &[y], Deal::Own);
            }
            Op::Softmax(_) => self.reduce(node, RowKind::Softmax)?,
            Op::Reduce(op) => self.reduce(node, RowKind::Reduce(op.kind))?,
            Op::ArgMax(_) => self.reduce(node, RowKind::ArgMax)?,
            Op::Reshape(_) => {
                let x = self.input(node, 0)?;
                // The same bytes under another shape: an alias. A shape of a weight or an input that is an output, too, is copied.
                if self.is_arena(x) {
                    self.root[y.index()] = self.root[x.index()];
                } else {
                    let size = self.element_bytes(x);
                    self.draft(Move::Copy { x, y, size }, &[x], &[y], Deal::Own);
                }
            }
            Op::Transpose(op) => {
                let x = self.input(node, 0)?;
                let step = Move::Transpose { x, y, perm: op.perm.clone(), size: self.element_bytes(x) };
                self.draft(step, &[x], &[y], Deal::Own);
            }
            Op::Slice(op) => {
                let x = self.input(node, 0)?;
                let axis = self.axis(x, op.axis);
                let step = Move::Slice { x, y, axis, start: op.start, size: self.element_bytes(x) };
                self.draft(step, &[x], &[y], Deal::Own);
            }
            Op::Concat(op) => {
                let xs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
                let axis = self.axis(xs[0], op.axis);
                let step = Move::Concat { xs: xs.clone(), y, axis, size: self.element_bytes(xs[0]) };
                self.draft(step, &xs, &[y], Deal::Own);
            }
            Op::Cast(op) => {
                let x = self.input(node, 0)?;
                let from = graph.tensor_type(x).map_or(DType::F32, |(dtype, _)| dtype);
                if from == op.to {
                    let size = self.element_bytes(x);
                    self.draft(Move::Copy { x, y, size }, &[x], &[y], Deal::Own);
                } else {
                    self.draft(Whole::Cast { x, from, y, to: op.to }, &[x], &[y], Deal::Own);
                }
            }
            Op::Custom(op) => {
                let typed = |id: ValueId| (id, graph.tensor_type(id).map_or(DType::F32, |(dtype, _)| dtype));
                let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
                let step = Whole::Custom {
                    op: op.clone(),
                    inputs: inputs.iter().copied().map(typed).collect(),
                    outputs: node.outputs.iter().copied().map(typed).collect(),
                };
                self.draft(step, &inputs, &node.outputs, Deal::Own);
            }
        }
        Ok(())
    }

    fn element_bytes(&self, id: ValueId) -> usize {
        self.graph.tensor_type(id).map_or(4, |(dtype, _)| dtype.packing().1)
    }

    /// An axis that may count from the end; the shape rule has checked it.
    fn axis(&self, id: ValueId, axis: isize) -> usize {
        let rank = self.graph.tensor_type(id).map_or(0, |(_, shape)| shape.len());
        if axis < 0 { rank.saturating_sub(axis.unsigned_abs()) } else { axis.unsigned_abs() }
    }

    fn last_reads(&mut self, memory: Memory) {
        if let Some(draft) = self.drafts.last_mut() {
            draft.reads.push(memory);
        }
    }

    fn last_writes(&mut self, memory: Memory) {
        if let Some(draft) = self.drafts.last_mut() {
            draft.writes.push(memory);
        }
    }

    fn reduce(&mut self, node: &Node, kind: RowKind) -> Result<(), BackendError> {
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        self.draft(ReduceRows { kind, x, y }, &[x], &[y], Deal::Own);
        Ok(())
    }

    fn rope(&mut self, i: usize, op: &RotaryEmbedding) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, positions, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let factors = node.inputs.get(2).copied().flatten();
        let known = self.tables.iter().find(|(o, p, f, _)| o == op && *p == positions && *f == factors);
        let table = match known {
            Some((.., table)) => *table,
            None => {
                let rows = self.bound_rows_of_vector(positions)?;
                let table = self.scratch("rope table", rows * op.rotary_dims * 2 * 4);
                let reads: Vec<ValueId> = [positions].into_iter().chain(factors).collect();
                self.draft(RopeTable { op: *op, positions, factors, table }, &reads, &[], Deal::Own);
                self.last_writes(Memory::Scratch(table));
                self.tables.push((*op, positions, factors, table));
                table
            }
        };
        self.in_place(y, x, i);
        let deal = self.deal(x);
        self.draft(Rope { op: *op, x, y, table }, &[x], &[y], deal);
        self.last_reads(Memory::Scratch(table));
        Ok(())
    }

    fn bound_rows_of_vector(&self, id: ValueId) -> Result<usize, BackendError> {
        let (_, shape) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
        Ok(eval_shape(shape, self.bounds).map_err(core_tensor::GraphError::from)?.iter().product())
    }

    /// Whether a normalized value goes into matrix products only, as their activations: it is then computed while they are packed.
    fn is_prologue(&self, y: ValueId) -> bool {
        let readers = &self.readers[y.index()];
        !readers.is_empty()
            && readers.iter().all(|reader| {
                self.graph
                    .nodes()
                    .get(*reader)
                    .is_some_and(|node| matches!(node.op, Op::MatMul(_)) && node.inputs[0] == Some(y))
            })
    }

    /// One step for all matrix products over the same activations as node `i`'s.
    fn linear(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let x = self.input(&graph.nodes()[i], 0)?;
        let siblings: Vec<usize> = self.readers[x.index()]
            .iter()
            .copied()
            .filter(|j| {
                graph.nodes().get(*j).is_some_and(|node| {
                    matches!(node.op, Op::MatMul(_)) && node.inputs[0] == Some(x) && !self.taken.contains(j)
                })
            })
            .collect();
        let producer = graph.nodes().iter().find(|node| node.outputs.contains(&x));
        let (source, norm) = match producer {
            Some(node) if matches!(node.op, Op::RmsNormalization(_)) && self.is_prologue(x) => {
                let Op::RmsNormalization(op) = node.op else { return Ok(()) };
                (self.input(node, 0)?, Some(Prologue { w: self.input(node, 1)?, epsilon: op.epsilon }))
            }
            _ => (x, None),
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut reads = vec![source];
        let mut writes = Vec::new();
        reads.extend(norm.map(|norm| norm.w));
        let mut done = HashSet::new();
        for j in &siblings {
            if !done.insert(*j) {
                continue;
            }
            self.taken.insert(*j);
            let weight = self.matrix(&graph.nodes()[*j])?;
            let (y, bias) = self.take_bias(graph.nodes()[*j].outputs[0]);
            let target = match self.take_gated(y, *j, &siblings, &mut done)? {
                Some(target) => target,
                None => {
                    let read = [Some(source), norm.map(|norm| norm.w)];
                    self.take_residual(y, i, read).map_or(Target::Store(y), Target::Accumulate)
                }
            };
            reads.extend(bias);
            match target {
                Target::Store(y) => writes.push(y),
                Target::Accumulate(y) => {
                    reads.push(y);
                    writes.push(y);
                }
                Target::Gated { up_bias, y, .. } => {
                    reads.extend(up_bias);
                    writes.push(y);
                }
            }
            parts.push(Part { weight, bias, target });
        }
        let (_, k) = self.matrix_shape(parts[0].weight)?;
        let rows = self.bound_rows(x)?;
        let mut kinds: Vec<(ActivationKind, usize)> = Vec::new();
        let mut part_kinds = Vec::new();
        for part in &parts {
            // Both weights of a gated part are of a kind.
            let kind = self.kind(part.weight);
            let known = kinds.iter().position(|(k, _)| *k == kind);
            part_kinds.push(known.unwrap_or(kinds.len()));
            if known.is_none() {
                let bytes = Linear::packed_bytes(kind, rows, k, self.threads);
                let name = if kind == ActivationKind::Q8 { "8-bit activations" } else { "packed activations" };
                kinds.push((kind, self.scratch(name, bytes)));
            }
        }
        let matrices = parts.iter().map(|part| self.weights.matrices.get(&part.weight));
        let groups: Vec<usize> = matrices.map(|matrix| matrix.map_or(0, PackedMatrix::groups)).collect();
        let units = [true, false].map(|few_rows| Linear::units(&groups, self.threads, few_rows));
        let scratch = self.scratch("linear tiles", Linear::scratch_bytes(k) * self.threads);
        let counter = self.counter();
        let buffers: Vec<usize> = kinds.iter().map(|(_, buffer)| *buffer).chain([scratch]).collect();
        let step = Linear { x: source, k, norm, parts, kinds, part_kinds, scratch, counter, units };
        self.draft(step, &reads, &writes, Deal::Own);
        buffers.into_iter().for_each(|buffer| self.last_writes(Memory::Scratch(buffer)));
        Ok(())
    }

    /// The matrix that a product multiplies with.
    fn matrix(&self, node: &Node) -> Result<MatrixId, BackendError> {
        let transposed = matches!(node.op, Op::MatMul(op) if !op.transpose_b);
        Ok(MatrixId { weight: self.input(node, 1)?, transposed })
    }

    /// What a weight is multiplied with.
    fn kind(&self, weight: MatrixId) -> ActivationKind {
        let fastest = self.weights.matrices.get(&weight).map_or(ActivationKind::F32, PackedMatrix::fastest_kind);
        match (self.activations, fastest) {
            (ActivationKind::F32, _) | (ActivationKind::I16, ActivationKind::Q8) => ActivationKind::F32,
            (_, fastest) => fastest,
        }
    }

    fn matrix_shape(&self, weight: MatrixId) -> Result<(usize, usize), BackendError> {
        let matrix = self.weights.matrices.get(&weight).ok_or(BackendError::Mismatch("weights and graph"))?;
        Ok((matrix.n(), matrix.k()))
    }

    /// Takes over an addition of a bias to a product that nothing else reads.
    fn take_bias(&mut self, y: ValueId) -> (ValueId, Option<ValueId>) {
        let Some((reader, bias)) = self.bias_addition(y) else { return (y, None) };
        self.taken.insert(reader);
        (self.graph.nodes()[reader].outputs[0], Some(bias))
    }

    /// The addition of a bias that alone reads a product, and the bias.
    fn bias_addition(&self, y: ValueId) -> Option<(usize, ValueId)> {
        let (reader, other) = self.sole_addition(y)?;
        let n = self.graph.tensor_type(y).and_then(|(_, shape)| shape.last().cloned());
        let is_bias = self.graph.weight_of(other).is_some()
            && self.graph.tensor_type(other).is_some_and(|(_, shape)| shape.len() == 1 && shape.first() == n.as_ref());
        is_bias.then_some((reader, other))
    }

    /// The addition that alone reads a value, and its other operand.
    fn sole_addition(&self, y: ValueId) -> Option<(usize, ValueId)> {
        let reader = self.sole_reader(y)?;
        let node = &self.graph.nodes()[reader];
        if !matches!(node.op, Op::Binary(Binary::Add)) || self.taken.contains(&reader) {
            return None;
        }
        match node.inputs[..] {
            [Some(a), Some(b)] if a == y && b != y => Some((reader, b)),
            [Some(a), Some(b)] if b == y => Some((reader, a)),
            _ => None,
        }
    }

    /// Takes over a gated activation of this product and a sibling.
    fn take_gated(
        &mut self,
        y: ValueId,
        j: usize,
        siblings: &[usize],
        done: &mut HashSet<usize>,
    ) -> Result<Option<Target>, BackendError> {
        let graph = self.graph;
        let Some(reader) = self.sole_reader(y) else { return Ok(None) };
        let node = &graph.nodes()[reader];
        let Op::GatedActivation(op) = &node.op else { return Ok(None) };
        // Only the gate's side takes it: the products come in the order of the graph, so the up side may come first and waits.
        let [Some(gate), Some(up)] = node.inputs[..] else { return Ok(None) };
        if gate != y || gate == up {
            return Ok(None);
        }
        for sibling in siblings.iter().filter(|sibling| **sibling != j && !done.contains(sibling)) {
            let product = graph.nodes()[*sibling].outputs[0];
            let addition = self.bias_addition(product);
            let value = addition.map_or(product, |(reader, _)| graph.nodes()[reader].outputs[0]);
            if value != up || self.sole_reader(value) != Some(reader) {
                continue;
            }
            let weight = self.matrix(&graph.nodes()[*sibling])?;
            let own = self.matrix(&graph.nodes()[j])?;
            if self.kind(weight) != self.kind(own) || self.matrix_shape(weight)?.0 != self.matrix_shape(own)?.0 {
                continue;
            }
            let (_, up_bias) = self.take_bias(product);
            done.insert(*sibling);
            self.taken.insert(*sibling);
            self.taken.insert(reader);
            let target = Target::Gated { up: weight, up_bias, activation: op.activation, y: node.outputs[0] };
            return Ok(Some(target));
        }
        Ok(None)
    }

    /// Takes over the addition of a residual that dies there: the product accumulates into the residual's buffer. `read` is what the step itself
    /// reads.
    fn take_residual(&mut self, y: ValueId, i: usize, read: [Option<ValueId>; 2]) -> Option<ValueId> {
        let (reader, residual) = self.sole_addition(y)?;
        let sum = self.graph.nodes()[reader].outputs[0];
        let root = self.root[residual.index()];
        let same = self.graph.tensor_type(sum) == self.graph.tensor_type(residual)
            && self.graph.tensor_type(sum) == self.graph.tensor_type(y);
        // All that reads the residual must have run before this step, which stands at node `i`; and the step itself must not read it as its
        // activations.
        let free = self
            .graph
            .value_ids()
            .filter(|v| self.root[v.index()] == root)
            .all(|v| self.readers[v.index()].iter().all(|r| *r == reader || (*r < i && !self.waits(*r))));
        let written = self.graph.nodes()[..i].iter().any(|node| node.outputs.contains(&residual));
        let apart = read.iter().flatten().all(|id| self.root[id.index()] != root);
        if !(same && free && written && apart && self.is_arena(residual)) {
            return None;
        }
        self.taken.insert(reader);
        self.root[sum.index()] = root;
        Some(sum)
    }

    /// Whether a node is a normalization that some later linear step has still to compute.
    fn waits(&self, node: usize) -> bool {
        let Some(node) = self.graph.nodes().get(node) else { return true };
        matches!(node.op, Op::RmsNormalization(_))
            && self.is_prologue(node.outputs[0])
            && self.readers[node.outputs[0].index()].iter().any(|reader| !self.taken.contains(reader))
    }
}

/// What happened to memory since the last barrier.
#[derive(Clone, Copy)]
struct Touch {
    writes: bool,
    deal: Deal,
}

/// Sets the barriers, and plans the arena by the phases between them. (That some steps wait for all threads inside does not count: they do so only
/// where there is more than one row.)
#[allow(clippy::type_complexity)]
fn schedule(
    graph: &Graph,
    bounds: &Bindings,
    root: &[ValueId],
    drafts: Vec<Draft>,
    scratch: &[Scratch],
) -> Result<(Vec<Scheduled>, Vec<Place>, MemoryPlan), BackendError> {
    let mut steps = Vec::new();
    let mut pending: HashMap<Memory, Vec<Touch>> = HashMap::new();
    let mut phase = 0;
    let mut life: HashMap<Memory, (usize, usize)> = HashMap::new();
    for draft in drafts {
        let conflict = |memory: &Memory, writing: bool| {
            // A state's rows are dealt by the tokens of each step, and two steps may name the same row.
            let state = matches!(memory, Memory::State(_));
            let apart = |touch: &Touch| state || touch.deal == Deal::Own || touch.deal != draft.deal;
            let touches = pending.get(memory).map_or(&[][..], Vec::as_slice);
            touches.iter().any(|touch| (touch.writes || writing) && apart(touch))
        };
        let barrier = draft.reads.iter().any(|m| conflict(m, false)) || draft.writes.iter().any(|m| conflict(m, true));
        if barrier {
            pending.clear();
            phase += 1;
        }
        for (memories, writes) in [(&draft.reads, false), (&draft.writes, true)] {
            for memory in memories {
                pending.entry(*memory).or_default().push(Touch { writes, deal: draft.deal });
                let life = life.entry(*memory).or_insert((phase, phase));
                life.1 = phase;
            }
        }
        steps.push(Scheduled { barrier, step: draft.step, waited: AtomicU64::new(0), worked: AtomicU64::new(0) });
    }
    // Outputs are read when everything is done.
    for output in graph.outputs() {
        if let Some(life) = life.get_mut(&Memory::Value(root[output.index()])) {
            life.1 = phase + 1;
        }
    }
    let mut requests = Vec::new();
    let mut buffers: HashMap<Memory, usize> = HashMap::new();
    // Scratch first: steps name it by number.
    for (i, scratch) in scratch.iter().enumerate() {
        let (first_step, last_step) = life.get(&Memory::Scratch(i)).copied().unwrap_or((0, phase));
        requests.push(BufferRequest { name: scratch.name.clone(), bytes: scratch.bytes, first_step, last_step });
    }
    let mut places = vec![Place::None; graph.values().len()];
    for id in graph.value_ids() {
        let root = root[id.index()];
        let Some((dtype, shape)) = graph.tensor_type(root) else { continue };
        places[id.index()] = match graph.value(root).source {
            ValueSource::Input => {
                graph.inputs().iter().position(|input| *input == root).map_or(Place::None, Place::Input)
            }
            ValueSource::Weight(_) => Place::Weight(root),
            ValueSource::Node => {
                let memory = Memory::Value(root);
                let Some((first_step, last_step)) = life.get(&memory).copied() else { continue };
                if let Some(buffer) = buffers.get(&memory) {
                    Place::Arena(*buffer)
                } else {
                    let bytes = bound_bytes(dtype, shape, bounds)?;
                    requests.push(BufferRequest { name: graph.value(root).name.clone(), bytes, first_step, last_step });
                    buffers.insert(memory, requests.len() - 1);
                    Place::Arena(requests.len() - 1)
                }
            }
        };
    }
    Ok((steps, places, MemoryPlan::new(requests, 64)))
}
