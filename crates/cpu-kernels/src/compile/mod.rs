//! From graph to program: fusion, in-place aliases, barriers, memory plan.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use core_tensor::op::{Op, RotaryEmbedding};
use core_tensor::{BackendError, Bindings, DType, Dim, Graph, Node, StateId, ValueId, ValueSource, eval_shape};

use crate::attention::{self, AttentionStep, TensorAttentionStep};
use crate::elementwise::{BinaryStep, Gated, TypedStep, UnaryStep, converts, has_loop};
use crate::gather::{GatherElementsStep, GatherRows};
use crate::matmul::ActivationKind;
use crate::norm::NormRows;
use crate::pad::PadStep;
use crate::product::TensorProduct;
use crate::program::{CpuProgram, CpuWeightsHandle, Extents, Step};
use crate::reduce::{ReduceRows, RowKind, TopKRows};
use crate::rope::{Rope, RopeTable};
use crate::shape::{Move, Whole};
use crate::simd::Level;
use crate::state::WriteState;
use crate::strided::{Layout, Strided};
use crate::threads::ThreadPool;
use crate::weights::CpuWeights;

mod chain;
mod conv;
mod fusion;
mod integer;
mod quantized;
mod recurrent;
mod schedule;
mod support;

pub(crate) use conv::conv_id;
pub(crate) use integer::integer_id;
pub(crate) use recurrent::recurrent_id;

pub(crate) use quantized::{Loaded, QuantizedWeight, dequantizing_nodes, quantized_matrix, quantized_table};
use schedule::schedule;
pub(crate) use support::{has_kernel, is_linear, supports};

/// What a compilation needs to know besides the graph.
pub(crate) struct CompileOptions {
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) level: Level,
    pub(crate) activations: ActivationKind,
    pub(crate) dequantized: ActivationKind,
    pub(crate) small_alone: bool,
    pub(crate) profile: bool,
}

/// Bytes of values and weights below which a program runs on one thread: it is done before others have woken and met at a few barriers.
const WORTH_WAKING: u64 = 2 << 20;

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
    dequantized: ActivationKind,
    /// Nodes that read each value, in order; an output counts as a read after all nodes.
    readers: Vec<Vec<usize>>,
    /// The value whose buffer a value lies in.
    root: Vec<ValueId>,
    /// Nodes that a fused step has taken over.
    taken: HashSet<usize>,
    /// Element-wise nodes that the last of their chain computes.
    deferred: HashSet<usize>,
    /// What turns the sums of each product of bytes into floats.
    chains: HashMap<usize, integer::Chain>,
    drafts: Vec<Draft>,
    /// Scratch buffers that hold images in blocks of channels.
    blocked: HashMap<ValueId, usize>,
    /// Values that have a blocked form only.
    unplain: HashSet<ValueId>,
    scratch: Vec<Scratch>,
    tables: Vec<(RotaryEmbedding, ValueId, Option<ValueId>, usize)>,
    counters: usize,
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
    let largest = largest_extents(graph, bounds)?;
    let mut readers = vec![Vec::new(); graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().flatten().for_each(|id| readers[id.index()].push(i));
    }
    graph.outputs().iter().for_each(|id| readers[id.index()].push(usize::MAX));
    let (chains, spare) = integer::chains(graph, &readers);
    let mut compiler = Compiler {
        graph,
        weights: loaded,
        bounds,
        threads: target.pool.threads(),
        activations: target.activations,
        dequantized: target.dequantized,
        readers,
        root: graph.value_ids().collect(),
        taken: dequantizing_nodes(graph).into_iter().chain(spare).collect(),
        deferred: HashSet::new(),
        chains,
        drafts: Vec::new(),
        blocked: HashMap::new(),
        unplain: HashSet::new(),
        scratch: Vec::new(),
        tables: Vec::new(),
        counters: 0,
    };
    for i in 0..graph.nodes().len() {
        if !compiler.taken.contains(&i) {
            compiler.node(i)?;
        }
    }
    // Each was left to a node that computed it, or had it computed.
    debug_assert!(compiler.deferred.is_empty(), "nodes {:?} are computed by nobody", compiler.deferred);
    graph.outputs().iter().for_each(|id| compiler.plain(*id));
    let Compiler { root, drafts, scratch, counters, .. } = compiler;
    let (steps, places, plan) = schedule(graph, bounds, &root, drafts, &scratch)?;
    let touched: u64 = steps.iter().map(|step| step.bytes).sum();
    let alone = target.small_alone && touched.saturating_add(core_tensor::Weights::byte_len(loaded)) < WORTH_WAKING;
    Ok(CpuProgram {
        graph: graph.clone(),
        weights: Arc::new(handle),
        pool: target.pool.clone(),
        level: target.level,
        bounds: bounds.clone(),
        alone,
        profile: target.profile,
        steps,
        places,
        plan,
        counters,
        row_inputs: graph.row_inputs(),
        largest,
        extents: Mutex::new(None),
    })
}

/// Every value's extents at the bounds: what memory is planned for.
fn largest_extents(graph: &Graph, bounds: &Bindings) -> Result<Extents, BackendError> {
    let extents = |id: ValueId| {
        let Some((_, shape)) = graph.tensor_type(id) else { return Ok(Vec::new()) };
        let shape = eval_shape(shape, bounds).map_err(core_tensor::GraphError::from)?;
        // With this no product of extents and small numbers overflows, also where another extent is 0.
        let elements = shape.iter().try_fold(1usize, |product, extent| product.checked_mul((*extent).max(1)));
        if elements.is_none_or(|elements| elements > isize::MAX as usize >> 12) {
            let reason = format!("extents {shape:?} are too large");
            return Err(BackendError::Bound { symbol: graph.value(id).name.clone(), reason });
        }
        Ok(shape)
    };
    graph.value_ids().map(extents).collect()
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
        reads.iter().for_each(|id| self.plain(*id));
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

    /// The extents at the bounds.
    fn bound_extents(&self, id: ValueId) -> Result<Vec<usize>, BackendError> {
        let (_, shape) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
        Ok(eval_shape(shape, self.bounds).map_err(core_tensor::GraphError::from)?)
    }

    /// The last extent at the bounds.
    fn bound_cols(&self, id: ValueId) -> Result<usize, BackendError> {
        Ok(self.bound_extents(id)?.last().copied().unwrap_or(1))
    }

    fn node(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        // What images in blocks of channels have kernels for stays there.
        let blocked = |id: &ValueId| self.unplain.contains(id) && !self.is_byte_image(*id);
        if !node.inputs.iter().flatten().any(blocked) && self.chain_node(i)? {
            return Ok(());
        }
        self.node_alone(i)
    }

    /// A node that is no part of a chain.
    fn node_alone(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        for id in node.inputs.iter().flatten() {
            self.materialize(*id)?;
        }
        if self.image_node(i)? {
            return Ok(());
        }
        node.inputs.iter().flatten().for_each(|id| self.plain(*id));
        if !has_kernel(graph, node) {
            return self.reference(node);
        }
        match &node.op {
            Op::MatMul(_) if is_linear(graph, node) => return self.linear(i),
            Op::MatMul(op) => {
                let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
                let last = |id: ValueId, from_end: usize| {
                    let extents = self.bound_extents(id)?;
                    Ok::<usize, BackendError>(extents.len().checked_sub(from_end).map_or(1, |at| extents[at]))
                };
                let largest = [last(y, 2)?, last(y, 1)?, last(a, 1)?];
                let scratch = self.scratch("packed matrices", TensorProduct::scratch_bytes(largest) * self.threads);
                let counter = self.counter();
                let step = TensorProduct { a, b, y, transpose_b: op.transpose_b, scratch, counter, largest };
                self.draft(step, &[a, b], &[y], Deal::Own);
                self.last_writes(Memory::Scratch(scratch));
            }
            Op::MatMulInteger(_) => match integer_id(graph, node) {
                Some(weight) => return self.integer_linear(i, weight),
                None => return self.integer_product(i),
            },
            Op::QuantizeLinear(_) | Op::DequantizeLinear(_) | Op::DynamicQuantizeLinear(_) => {
                return self.convert_bytes(node);
            }
            Op::RmsNormalization(_) | Op::LayerNormalization(_) => {
                if self.is_prologue(y) {
                    return Ok(());
                }
                let Some(norm) = self.norm(node) else { return self.reference(node) };
                let x = self.input(node, 0)?;
                self.in_place(y, x, i);
                // Every thread reads the whole weight, whoever may have computed it.
                let computed = norm.reads().any(|id| self.is_arena(id));
                let deal = if computed { Deal::Own } else { self.deal(x) };
                let reads: Vec<ValueId> = [x].into_iter().chain(norm.reads()).collect();
                self.draft(NormRows { norm, x, y }, &reads, &[y], deal);
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
            Op::TensorAttention(op) => {
                let (q, k, v) = (self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?);
                let mask = node.inputs.get(3).copied().flatten();
                let mask = mask.and_then(|id| graph.tensor_type(id).map(|(dtype, _)| (id, dtype)));
                let floats = attention::tensor_scratch_floats(self.bound_cols(q)?, self.bound_cols(v)?);
                let scratch = self.scratch("attention tiles", floats.next_multiple_of(16) * 4 * self.threads);
                let counter = self.counter();
                let reads: Vec<ValueId> = [q, k, v].into_iter().chain(mask.map(|(id, _)| id)).collect();
                let step = TensorAttentionStep { op: *op, q, k, v, mask, y, scratch, counter };
                self.draft(step, &reads, &[y], Deal::Own);
                self.last_writes(Memory::Scratch(scratch));
            }
            Op::Gather(op) => {
                let (data, indices) = (self.input(node, 0)?, self.input(node, 1)?);
                let dtype = graph.tensor_type(y).map_or(DType::F32, |(dtype, _)| dtype);
                let from = graph.tensor_type(data).map_or(DType::F32, |(dtype, _)| dtype);
                let (wide, axis) = (self.element_bytes(indices) == 8, self.axis(data, op.axis));
                let quantized = quantized_table(graph, node);
                let step =
                    GatherRows { data, from, indices, wide, axis, y, dtype, quantized, read: AtomicUsize::new(0) };
                let reads = [quantized.map_or(data, |table| table.scale), indices];
                self.draft(step, &reads, &[y], Deal::Own);
            }
            Op::GatherElements(op) => {
                let (data, indices) = (self.input(node, 0)?, self.input(node, 1)?);
                let (wide, size) = (self.element_bytes(indices) == 8, self.element_bytes(data));
                let step = GatherElementsStep { data, indices, wide, axis: self.axis(data, op.axis), y, size };
                self.draft(step, &[data, indices], &[y], Deal::Own);
            }
            Op::Unary(op) => {
                let x = self.input(node, 0)?;
                self.in_place(y, x, i);
                self.draft(UnaryStep { op: *op, x, y }, &[x], &[y], Deal::Own);
            }
            Op::Binary(op) => {
                let (a, b) = (self.input(node, 0)?, self.input(node, 1)?);
                let dtype = graph.tensor_type(a).map_or(DType::F32, |(dtype, _)| dtype);
                if has_loop(*op, dtype) {
                    self.draft(TypedStep::Binary { op: *op, dtype, a, b, y }, &[a, b], &[y], Deal::Own);
                    return Ok(());
                }
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
            Op::TopK(op) => {
                let (x, indices) = (self.input(node, 0)?, node.outputs[1]);
                self.draft(TopKRows { k: op.k, x, values: y, indices }, &[x], &[y, indices], Deal::Own);
            }
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
            Op::Transpose(op) => self.strided(node, Layout::Transpose(op.perm.clone()))?,
            Op::Slice(op) => {
                let axis = self.axis(self.input(node, 0)?, op.axis);
                self.strided(node, Layout::Slice { axis, start: op.start.clone(), step: op.step })?;
            }
            Op::Pad(op) => {
                let x = self.input(node, 0)?;
                let constant = node.inputs.get(1).copied().flatten();
                let before = op.pads.iter().map(|(before, _)| before.clone()).collect();
                let step = PadStep { x, constant, y, before, mode: op.mode, size: self.element_bytes(x) };
                let reads: Vec<ValueId> = [x].into_iter().chain(constant).collect();
                self.draft(step, &reads, &[y], Deal::Own);
            }
            Op::Expand(_) => self.strided(node, Layout::Expand)?,
            Op::Where(_) => {
                let (condition, a, b) = (self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?);
                let step = TypedStep::Where { condition, a, b, y, size: self.element_bytes(y) };
                self.draft(step, &[condition, a, b], &[y], Deal::Own);
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
                } else if converts(from, op.to) {
                    self.draft(TypedStep::Convert { x, from, y, to: op.to }, &[x], &[y], Deal::Own);
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
            _ => return self.reference(node),
        }
        Ok(())
    }

    /// A node without a kernel: its reference implementation, on one thread.
    fn reference(&mut self, node: &Node) -> Result<(), BackendError> {
        let typed = |id: ValueId| match self.graph.tensor_type(id) {
            Some((dtype, _)) => Ok((id, dtype)),
            None => Err(BackendError::Unsupported {
                node: node.name.clone(),
                op: node.op.name(),
                reason: format!("{id} is a state's token"),
            }),
        };
        let inputs = node.inputs.iter().map(|id| id.map(typed).transpose()).collect::<Result<_, _>>()?;
        let outputs = node.outputs.iter().copied().map(typed).collect::<Result<_, _>>()?;
        let step = Whole::Reference { op: node.op.clone(), inputs, outputs };
        let reads: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
        self.draft(step, &reads, &node.outputs, Deal::Own);
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

    fn strided(&mut self, node: &Node, layout: Layout) -> Result<(), BackendError> {
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let size = self.element_bytes(x);
        self.draft(Strided { layout, x, y, size }, &[x], &[y], Deal::Own);
        Ok(())
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
}
