//! From a graph to dispatches: which kernels, fused how, over which memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use core_tensor::op::RotaryEmbedding;
use core_tensor::{BackendError, Bindings, BufferRequest, DType, Dim, Graph, MemoryPlan, Node, ValueId, ValueSource};

use crate::analysis::readers;
use crate::plan::{Access, Dispatch, Memory};
use crate::program::{GpuProgram, OutputPlace, Parts, RopeTable};
use crate::step::{Grid, StepValues, least, product};
use crate::vk::{DeviceKind, Gpu, Limits};
use crate::weights::{GpuWeights, Matrix, WeightPlan};

mod attention;
mod elementwise;
mod images;
mod indexing;
mod integer;
mod moves;
mod nodes;
mod products;
mod resample;
mod supports;
mod tensor_attention;

pub(crate) use supports::{roles, supports, units};

/// Threads of a workgroup of kernels that go over elements one by one.
pub(crate) const ELEMENT_THREADS: u32 = 256;

/// Compiles a graph for up to `bounds` of its symbols.
///
/// # Errors
/// When a node is not supported, a symbol has no bound, or a value does not fit the device's limits.
pub(crate) fn compile(
    gpu: &Arc<Gpu>,
    graph: &Arc<Graph>,
    weights: &Arc<dyn core_tensor::Weights>,
    bounds: &Bindings,
    guards: bool,
) -> Result<GpuProgram, BackendError> {
    let loaded: &GpuWeights = weights.as_any().downcast_ref().ok_or(BackendError::Mismatch("weights and graph"))?;
    if !Arc::ptr_eq(&loaded.gpu, gpu) || !fits(graph, loaded) {
        return Err(BackendError::Mismatch("weights and graph"));
    }
    let target = Target { limits: *gpu.limits(), kind: gpu.kind() };
    let compiled = plan(target, graph, &loaded.plan, bounds, guards)?;
    GpuProgram::new(Parts {
        gpu: gpu.clone(),
        graph: graph.clone(),
        weights: weights.clone(),
        bounds: bounds.clone(),
        compiled,
    })
}

/// What a plan is made for: no device is needed to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) limits: Limits,
    pub(crate) kind: DeviceKind,
}

impl Target {
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// A program as far as it can be known without a device.
pub(crate) struct Compiled {
    pub(crate) dispatches: Vec<Dispatch>,
    /// Buffers of the plan: of values (false) and of scratch (true), by index.
    pub(crate) places: BTreeMap<(bool, usize), usize>,
    pub(crate) plan: MemoryPlan,
    /// Bytes around each buffer that must stay as they are; 0: none.
    pub(crate) guard: usize,
    pub(crate) values: StepValues,
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) outputs: Vec<OutputPlace>,
    pub(crate) largest: Vec<Vec<usize>>,
}

/// Plans a graph for up to `bounds` of its symbols, on a device that is known by its limits only.
///
/// # Errors
/// When a node is not supported, a symbol has no bound, or a value does not fit the limits.
pub(crate) fn plan(
    target: Target,
    graph: &Graph,
    weights: &WeightPlan,
    bounds: &Bindings,
    guards: bool,
) -> Result<Compiled, BackendError> {
    for node in graph.nodes() {
        supports(graph, node).map_err(|reason| BackendError::Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason,
        })?;
    }
    let largest = largest_extents(graph, bounds)?;
    let mut compiler = Compiler {
        gpu: target,
        graph,
        weights,
        bounds,
        readers: readers(graph),
        root: graph.value_ids().collect(),
        taken: BTreeSet::new(),
        waiting: BTreeMap::new(),
        packed: BTreeMap::new(),
        dispatches: Vec::new(),
        scratch: Vec::new(),
        ropes: Vec::new(),
        values: StepValues::default(),
        target_waves: match target.kind {
            DeviceKind::Software => 4,
            _ => 512,
        },
    };
    for i in 0..graph.nodes().len() {
        if !compiler.taken.contains(&i) {
            compiler.node(i)?;
        }
    }
    let outputs =
        graph.outputs().iter().enumerate().map(|(i, id)| compiler.output(i, *id)).collect::<Result<_, _>>()?;
    compiler.finish(largest, outputs, guards)
}

/// Whether weights were loaded for this graph.
fn fits(graph: &Arc<Graph>, weights: &GpuWeights) -> bool {
    graph.shares_values(&weights.graph)
}

/// Every value's extents at the bounds: what memory is planned for.
fn largest_extents(graph: &Graph, bounds: &Bindings) -> Result<Vec<Vec<usize>>, BackendError> {
    let extents = graph.extents(bounds)?;
    for (id, shape) in graph.value_ids().zip(&extents) {
        let words = graph.tensor_type(id).map_or(1, |(dtype, _)| dtype.packing().1.div_ceil(4));
        let elements = shape.iter().try_fold(words, |product, extent| product.checked_mul((*extent).max(1)));
        // Kernels count words in 32 bits, of which one tells names from numbers.
        if elements.is_none_or(|elements| elements > 1 << 30) {
            let reason = format!("extents {shape:?} are too large");
            return Err(BackendError::Bound { symbol: graph.value(id).name.clone(), reason });
        }
    }
    Ok(extents)
}

/// A value that no kernel has computed: whoever reads it computes it on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    /// The normalization of a node.
    Norm(usize),
    /// The gated activation of two values.
    Gated(usize),
    /// The function of a value.
    Unary(usize),
    /// A gated pair of products, both sides in one buffer.
    Pair(usize, Memory),
    /// The rotation of a node, which goes into an attention or a state.
    Turned(usize),
    /// The write of a node into a state, which an attention reads.
    Written(usize),
}

pub(crate) struct Compiler<'a> {
    pub(crate) gpu: Target,
    pub(crate) graph: &'a Graph,
    pub(crate) weights: &'a WeightPlan,
    pub(crate) bounds: &'a Bindings,
    pub(crate) readers: Vec<Vec<usize>>,
    /// Whose buffer a value lies in.
    pub(crate) root: Vec<ValueId>,
    /// Nodes that another one's kernel has taken over.
    pub(crate) taken: BTreeSet<usize>,
    pub(crate) waiting: BTreeMap<ValueId, Waiting>,
    /// Values in tiles of so many rows.
    pub(crate) packed: BTreeMap<(ValueId, usize), Memory>,
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) scratch: Vec<(String, usize)>,
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) values: StepValues,
    /// Waves that keep the device busy.
    pub(crate) target_waves: usize,
}

impl Compiler<'_> {
    pub(crate) fn emit(&mut self, dispatch: Dispatch) {
        self.dispatches.push(dispatch);
    }

    pub(crate) fn scratch(&mut self, name: &str, bytes: usize) -> Memory {
        self.scratch.push((name.to_owned(), bytes));
        Memory::Scratch(self.scratch.len() - 1)
    }

    pub(crate) fn input(&self, node: &Node, i: usize) -> Result<ValueId, BackendError> {
        node.inputs.get(i).copied().flatten().ok_or_else(|| BackendError::Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason: format!("input {i} is left out"),
        })
    }

    pub(crate) fn tensor(&self, id: ValueId) -> Result<(DType, Vec<Dim>), BackendError> {
        let (dtype, shape) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
        Ok((dtype, shape.to_vec()))
    }

    /// Elements of a value.
    pub(crate) fn count(&self, id: ValueId) -> Result<Dim, BackendError> {
        Ok(product(&self.tensor(id)?.1))
    }

    /// Rows and the last extent of a value.
    pub(crate) fn rows(&self, id: ValueId) -> Result<(Dim, Dim), BackendError> {
        let (_, shape) = self.tensor(id)?;
        let (last, rest) = shape.split_last().ok_or(BackendError::Mismatch("value and graph"))?;
        Ok((product(rest), last.clone()))
    }

    /// The largest value of an extent.
    pub(crate) fn bound(&self, dim: &Dim) -> Result<usize, BackendError> {
        Ok(dim.eval(self.bounds).map_err(core_tensor::GraphError::from)?)
    }

    /// Where a value lies; what waits is computed first.
    pub(crate) fn memory(&self, id: ValueId) -> Memory {
        let root = self.root[id.index()];
        match &self.graph.value(root).source {
            ValueSource::Input => {
                Memory::Input(self.graph.inputs().iter().position(|input| *input == root).unwrap_or(usize::MAX))
            }
            ValueSource::Weight(_) => {
                self.weights.plain.get(&root).map_or(Memory::Unused, |extent| Memory::Weights(*extent))
            }
            ValueSource::Node => Memory::Value(root),
        }
    }

    /// A grid for a kernel that goes over `count` elements in strides of all its threads.
    pub(crate) fn linear_grid(&mut self, count: &Dim) -> Grid {
        // Four elements a thread, so that indices are computed less often.
        let groups = count.clone().div_ceil((ELEMENT_THREADS as usize * 4).into());
        let most = self.gpu.limits().max_groups as usize;
        self.values.grid([least(groups, most), 1.into(), 1.into()])
    }

    /// Threads of a workgroup for rows of so many elements, of which each thread takes some.
    pub(crate) fn row_threads(&self, width: &Dim) -> u32 {
        if self.bound(width).is_ok_and(|width| width <= 256) { 64 } else { ELEMENT_THREADS }
    }

    /// A grid for a kernel that takes a row in a workgroup.
    pub(crate) fn row_grid(&mut self, rows: &Dim) -> Grid {
        let most = self.gpu.limits().max_groups as usize;
        self.values.grid([least(rows.clone(), most), 1.into(), 1.into()])
    }

    /// The only node that reads a value, if there is just one and the value is no output.
    pub(crate) fn sole_reader(&self, id: ValueId) -> Option<usize> {
        match self.readers[id.index()][..] {
            [reader] if reader != usize::MAX => Some(reader),
            _ => None,
        }
    }

    /// Whether node `i` is the last to read the buffer that a value lies in, so that its result may take it over.
    pub(crate) fn dies_at(&self, id: ValueId, i: usize) -> bool {
        let root = self.root[id.index()];
        let computed = matches!(self.graph.value(root).source, ValueSource::Node);
        let waits = |reader: usize| self.graph.nodes().get(reader).is_some_and(|node| self.waits(node));
        computed
            && self
                .graph
                .value_ids()
                .filter(|v| self.root[v.index()] == root)
                .all(|v| self.readers[v.index()].iter().all(|reader| *reader <= i && !waits(*reader)))
    }

    fn waits(&self, node: &Node) -> bool {
        node.outputs.first().is_some_and(|y| self.waiting.contains_key(y))
    }

    /// Lets a result lie where an operand of the same type lies, if that dies here.
    pub(crate) fn in_place(&mut self, result: ValueId, operand: ValueId, i: usize) {
        let same = self.graph.tensor_type(result) == self.graph.tensor_type(operand);
        if same && self.dies_at(operand, i) {
            self.root[result.index()] = self.root[operand.index()];
        }
    }

    /// The table of cosines and sines for an embedding over positions.
    pub(crate) fn rope_table(
        &mut self,
        op: RotaryEmbedding,
        positions: ValueId,
        factors: Option<ValueId>,
    ) -> Result<Memory, BackendError> {
        let input = self.graph.inputs().iter().position(|input| *input == positions);
        let positions = input.ok_or(BackendError::Mismatch("positions and inputs"))?;
        let known = self.ropes.iter().position(|t| t.op == op && t.positions == positions && t.factors_of == factors);
        if let Some(known) = known {
            return Ok(Memory::Rope(known));
        }
        let values = match factors {
            Some(id) => {
                let name = self.graph.value(id).name.clone();
                let weight = self.graph.weight_of(id).ok_or(BackendError::Mismatch("frequency factors and weights"))?;
                let tensor = weight.to_tensor().map_err(|source| BackendError::Weight { name, source })?;
                Some(tensor.to_f32().map_err(core_tensor::op::OpError::from)?)
            }
            None => None,
        };
        let rows = self.bound(&self.count(self.graph.inputs()[positions])?)?;
        let bytes = rows * op.rotary_dims * 4;
        self.ropes.push(RopeTable { op, positions, factors_of: factors, factors: values, bytes });
        Ok(Memory::Rope(self.ropes.len() - 1))
    }

    /// Where an output is fetched from; values are copied to memory that the host reads.
    fn output(&mut self, number: usize, id: ValueId) -> Result<OutputPlace, BackendError> {
        if self.graph.weight_of(id).is_some() {
            return Ok(OutputPlace::Weight(id));
        }
        if let Some(input) = self.graph.inputs().iter().position(|input| *input == id) {
            return Ok(OutputPlace::Input(input));
        }
        self.settle(id)?;
        let (dtype, shape) = self.tensor(id)?;
        let size = dtype.packing().1;
        let count = product(&shape);
        let bytes = self.bound(&count)? * size;
        // Bytes in pairs or fours; what is smaller than a word is padded in its buffer.
        let words = moves::in_words(count, size);
        let word = if size == 2 { "uint16_t" } else { "uint" };
        let n = self.values.word(&words);
        let dispatch = Dispatch::new("to the host", format!("move.{word}"), ELEMENT_THREADS)
            .read(1, self.memory(id))
            .write(2, Memory::Output(number))
            .push([n, n, 0, 0, 0, 0])
            .grid(self.linear_grid(&words));
        self.emit(dispatch);
        Ok(OutputPlace::Read { bytes })
    }

    fn finish(
        self,
        largest: Vec<Vec<usize>>,
        outputs: Vec<OutputPlace>,
        guards: bool,
    ) -> Result<Compiled, BackendError> {
        let Compiler { gpu, graph, dispatches, scratch, ropes, values, .. } = self;
        // Each buffer lives from the first dispatch that touches it to the last.
        let mut lives: BTreeMap<(bool, usize), (usize, usize)> = BTreeMap::new();
        for (step, dispatch) in dispatches.iter().enumerate() {
            for operand in &dispatch.operands {
                let key = match operand.memory {
                    Memory::Value(id) => (false, id.index()),
                    Memory::Scratch(i) => (true, i),
                    _ => continue,
                };
                lives.entry(key).or_insert((step, step)).1 = step;
            }
        }
        let alignment = gpu.limits().offset_alignment as usize;
        let guard = if guards { alignment } else { 0 };
        let mut places = BTreeMap::new();
        let mut requests = Vec::new();
        for (key, (first_step, last_step)) in lives {
            let (name, bytes) = if key.0 {
                scratch[key.1].clone()
            } else {
                let id = graph.value_ids().nth(key.1).ok_or(BackendError::Mismatch("value and graph"))?;
                let (dtype, _) = graph.tensor_type(id).ok_or(BackendError::Mismatch("value and graph"))?;
                let bytes = core_tensor::byte_len(dtype, &largest[key.1]).map_err(core_tensor::op::OpError::from)?;
                (graph.value(id).name.clone(), bytes)
            };
            // A binding takes at least 16 bytes, and loads of 32 may reach past the last element.
            let bytes = bytes.max(32).next_multiple_of(32);
            if bytes as u64 > gpu.limits().max_range {
                let reason = format!("{bytes} bytes do not fit a range of {}", gpu.limits().max_range);
                return Err(BackendError::Bound { symbol: name, reason });
            }
            let (first_step, last_step) = if guards { (0, dispatches.len()) } else { (first_step, last_step) };
            places.insert(key, requests.len());
            requests.push(BufferRequest { name, bytes: bytes + 2 * guard, first_step, last_step });
        }
        let plan = MemoryPlan::new(requests, alignment);
        Ok(Compiled { dispatches, places, plan, guard, values, ropes, outputs, largest })
    }

    /// The matrix of a product's weight.
    pub(crate) fn matrix(&self, weight: ValueId, up: Option<ValueId>, transposed: bool) -> Option<Matrix> {
        self.weights.matrices.get(&crate::analysis::MatrixKey { weight, up, transposed }).cloned()
    }

    /// A binding of a value that is read.
    pub(crate) fn reads(&mut self, dispatch: Dispatch, binding: u32, id: ValueId) -> Result<Dispatch, BackendError> {
        self.settle(id)?;
        Ok(dispatch.bind(binding, self.memory(id), Access::Read))
    }
}
