//! Programs: fused steps over an arena, run as one parallel region with barriers where one step needs another's results.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use core_tensor::op::OpError;
use core_tensor::{
    AlignedBytes, BackendError, Bindings, DType, Dim, Graph, HostStates, MemoryPlan, Program, RowInputs, Session,
    StateError, StateId, StateLayout, StepTime, Tensor, ValueId, eval_shape,
};

use crate::simd::Level;
use crate::threads::{ThreadPool, Worker};
use crate::weights::CpuWeights;

/// A session: the states, and the arena that programs compute in.
pub(crate) struct CpuSession {
    pub(crate) states: HostStates,
    arena: Option<AlignedBytes>,
}

impl CpuSession {
    pub(crate) fn new(states: HostStates) -> CpuSession {
        CpuSession { states, arena: None }
    }
}

impl Session for CpuSession {
    fn slots(&self) -> usize {
        self.states.slots()
    }

    fn byte_len(&self) -> u64 {
        self.states.byte_len() as u64
    }

    fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.states.len(slot)
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.states.truncate(slot, len)
    }

    fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.states.copy_slot(from, to)
    }

    fn save_slot(&self, slot: usize) -> Result<core_tensor::SlotSnapshot, StateError> {
        self.states.save_slot(slot)
    }

    fn restore_slot(&mut self, slot: usize, snapshot: &core_tensor::SlotSnapshot) -> Result<(), StateError> {
        self.states.restore_slot(slot, snapshot)
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Where a value lies during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A buffer of the plan.
    Arena(usize),
    /// An input of the run.
    Input(usize),
    /// A weight that kernels read in place.
    Weight(ValueId),
    /// Not in memory: state tokens, matrices, values that fusion removed.
    None,
}

/// What a step of a program does. One file per op family holds the kernels.
pub(crate) trait Step: Send + Sync {
    /// One line for people.
    fn describe(&self) -> String;

    /// This thread's part.
    fn run(&self, cx: &RunContext<'_>);
}

/// A step, and whether all threads must have finished the ones before.
pub(crate) struct Scheduled {
    pub(crate) barrier: bool,
    pub(crate) step: Box<dyn Step>,
    /// Bytes of the values that it reads and writes at the bounds.
    pub(crate) bytes: u64,
    /// Profiled runs.
    pub(crate) runs: AtomicU64,
    /// Nanoseconds that the first thread waited before the step, and took for it, in all profiled runs.
    pub(crate) waited: AtomicU64,
    pub(crate) worked: AtomicU64,
}

impl Scheduled {
    fn run(&self, cx: &RunContext<'_>) {
        if self.barrier {
            cx.worker.barrier();
        }
        self.step.run(cx);
    }

    /// The same with the clock running on the first thread.
    fn run_timed(&self, cx: &RunContext<'_>) {
        if cx.worker.index != 0 {
            return self.run(cx);
        }
        let start = Instant::now();
        if self.barrier {
            cx.worker.barrier();
        }
        let ready = Instant::now();
        self.step.run(cx);
        let nanos = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.waited.fetch_add(nanos(start, ready), Ordering::Relaxed);
        self.worked.fetch_add(nanos(ready, Instant::now()), Ordering::Relaxed);
    }
}

/// The shape of every value.
pub(crate) type Extents = Vec<Vec<usize>>;

pub(crate) struct CpuProgram {
    pub(crate) graph: Arc<Graph>,
    pub(crate) weights: Arc<CpuWeightsHandle>,
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) level: Level,
    pub(crate) bounds: Bindings,
    /// Whether the work is so little that other threads are not worth waking.
    pub(crate) alone: bool,
    /// Whether runs are timed step by step.
    pub(crate) profile: bool,
    pub(crate) steps: Vec<Scheduled>,
    /// Where each value of the graph lies.
    pub(crate) places: Vec<Place>,
    pub(crate) plan: MemoryPlan,
    /// Number of work counters: one for each step that hands out its work in chunks.
    pub(crate) counters: usize,
    /// Inputs that hold positions and slots of state rows.
    pub(crate) row_inputs: Vec<RowInputs>,
    /// Every value's extents at the bounds.
    pub(crate) largest: Extents,
    /// Extents of the last run: decode steps have the same every time.
    pub(crate) extents: Mutex<Option<(Bindings, Arc<Extents>)>>,
}

/// Keeps weights alive whose concrete type the program looked up once.
pub(crate) struct CpuWeightsHandle(pub(crate) Arc<dyn core_tensor::Weights>);

impl CpuWeightsHandle {
    pub(crate) fn get(&self) -> Option<&CpuWeights> {
        self.0.as_any().downcast_ref()
    }
}

/// A value during a run.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) ptr: *mut u8,
    /// Extents, outermost first.
    pub(crate) shape: &'a [usize],
}

impl View<'_> {
    pub(crate) fn f32(&self) -> *mut f32 {
        self.ptr.cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The last extent.
    pub(crate) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of all extents but the last.
    pub(crate) fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }
}

/// What a step sees during a run.
pub(crate) struct RunContext<'a> {
    pub(crate) worker: Worker<'a>,
    pub(crate) level: Level,
    pub(crate) weights: &'a CpuWeights,
    /// The values of symbols.
    pub(crate) bindings: &'a Bindings,
    program: &'a CpuProgram,
    shapes: &'a [Vec<usize>],
    pointers: &'a [*mut u8],
    arena: *mut u8,
    states: &'a [StateLayout],
    counters: &'a [AtomicUsize],
    failure: &'a Mutex<Option<OpError>>,
}

impl<'a> RunContext<'a> {
    /// A value's memory and extents.
    pub(crate) fn view(&self, id: ValueId) -> View<'a> {
        View { ptr: self.pointers[id.index()], shape: &self.shapes[id.index()] }
    }

    /// The f32 of a value that no step writes meanwhile.
    pub(crate) fn floats(&self, id: ValueId) -> &'a [f32] {
        let view = self.view(id);
        if view.len() == 0 {
            return &[];
        }
        // SAFETY: the value is f32, computed by an earlier step or given, of this length, and (barriers) not written while it is read.
        unsafe { std::slice::from_raw_parts(view.f32(), view.len()) }
    }

    /// The i32 of a value that no step writes meanwhile.
    pub(crate) fn ints(&self, id: ValueId) -> &'a [i32] {
        let view = self.view(id);
        if view.len() == 0 {
            return &[];
        }
        // SAFETY: as in `floats`; inputs that lie unaligned were copied before the run.
        unsafe { std::slice::from_raw_parts(view.ptr.cast(), view.len()) }
    }

    /// A scratch buffer of the plan.
    pub(crate) fn scratch(&self, buffer: usize) -> *mut u8 {
        self.arena.wrapping_add(self.program.plan.offsets[buffer])
    }

    /// A state's layout.
    pub(crate) fn state(&self, id: StateId) -> StateLayout {
        self.states[id.index()]
    }

    /// The next unit of work of a step that hands its work out, or `None` when all are taken.
    pub(crate) fn claim(&self, counter: usize, units: usize) -> Option<usize> {
        let unit = self.counters[counter].fetch_add(1, Ordering::Relaxed);
        (unit < units).then_some(unit)
    }

    /// Records why the run fails; it goes on with zeros, and then gives the first failure.
    pub(crate) fn fail(&self, error: OpError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

impl CpuProgram {
    fn check_bounds(&self, bindings: &Bindings) -> Result<(), BackendError> {
        for (symbol, value) in bindings.iter() {
            let bound = self.bounds.get(symbol);
            if bound.is_none_or(|bound| value > bound) {
                return Err(BackendError::Bound {
                    symbol: symbol.to_owned(),
                    reason: format!("{value} exceeds the {} the program was compiled for", bound.unwrap_or(0)),
                });
            }
        }
        Ok(())
    }

    /// All values' extents under these bindings.
    fn shapes(&self, bindings: &Bindings) -> Result<Arc<Extents>, BackendError> {
        let mut cached = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, shapes)) = &*cached
            && of == bindings
        {
            return Ok(shapes.clone());
        }
        let shapes = Arc::new(self.graph.extents(bindings)?);
        // Within the bounds of its symbols an extent may still exceed what it is at the bounds: `512 - tokens` does.
        for (id, (shape, largest)) in self.graph.value_ids().zip(shapes.iter().zip(&self.largest)) {
            if shape.iter().zip(largest).any(|(extent, largest)| extent > largest) {
                let reason = format!("extents {shape:?} exceed the {largest:?} the program was compiled for");
                return Err(BackendError::Bound { symbol: self.graph.value(id).name.clone(), reason });
            }
        }
        *cached = Some((bindings.clone(), shapes.clone()));
        Ok(shapes)
    }
}

/// The same tensor with its bytes aligned for kernels.
fn aligned(tensor: &Tensor) -> Result<Tensor, BackendError> {
    if tensor.bytes().as_ptr().addr().is_multiple_of(8) {
        return Ok(tensor.clone());
    }
    Ok(Tensor::from_bytes(tensor.dtype(), tensor.shape(), tensor.bytes()).map_err(OpError::from)?)
}

impl Program for CpuProgram {
    fn run(&self, session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let session: &mut CpuSession =
            session.as_any_mut().downcast_mut().ok_or(BackendError::Mismatch("session and program"))?;
        if !session.states.fit(&self.graph) {
            return Err(BackendError::Mismatch("session and program"));
        }
        let weights = self.weights.get().ok_or(BackendError::Mismatch("weights and program"))?;
        let bindings = self.graph.bind_inputs(inputs)?;
        self.check_bounds(&bindings)?;
        let shapes = self.shapes(&bindings)?;
        let inputs: Vec<Tensor> = inputs.iter().map(aligned).collect::<Result<_, _>>()?;
        let mut written = Vec::with_capacity(self.row_inputs.len());
        for rows in &self.row_inputs {
            let ints = |i: usize| inputs[i].to_vec::<i32>().map_err(OpError::from);
            let (positions, slots) = (ints(rows.positions)?, ints(rows.slots)?);
            session.states.check_step(&positions, &slots)?;
            if rows.written {
                written.push((positions, slots));
            }
        }
        if session.arena.as_ref().is_none_or(|arena| arena.len() < self.plan.arena_bytes) {
            let bytes = self.plan.arena_bytes;
            session.arena = None;
            let arena = AlignedBytes::zeroed(bytes);
            session.arena = Some(arena.ok_or(BackendError::NoMemory { what: "intermediate results", bytes })?);
        }
        let Some(arena) = session.arena.as_mut() else {
            return Err(BackendError::NoMemory { what: "intermediate results", bytes: self.plan.arena_bytes });
        };
        let arena = SharedPtr(arena.as_mut_ptr());
        let pointers: Vec<*mut u8> = self
            .places
            .iter()
            .map(|place| match place {
                Place::Arena(buffer) => arena.0.wrapping_add(self.plan.offsets[*buffer]),
                Place::Input(i) => inputs[*i].bytes().as_ptr().cast_mut(),
                Place::Weight(id) => {
                    weights.plain.get(id).map_or(std::ptr::null_mut(), |t| t.bytes().as_ptr().cast_mut())
                }
                Place::None => std::ptr::null_mut(),
            })
            .collect();
        let layouts: Vec<StateLayout> = self.graph.state_ids().map(|id| session.states.layout(id)).collect();
        let (pointers, layouts) = (SharedSlice(&pointers), SharedSlice(&layouts));
        // The run's own: another session may run the same program at the same time.
        let counters: Vec<AtomicUsize> = (0..self.counters).map(|_| AtomicUsize::new(0)).collect();
        let failure = Mutex::new(None);
        let region = |worker: Worker<'_>| {
            let (arena, pointers, layouts) = (arena, pointers, layouts);
            let cx = RunContext {
                worker,
                level: self.level,
                weights,
                bindings: &bindings,
                program: self,
                shapes: &shapes,
                pointers: pointers.get(),
                arena: arena.get(),
                states: layouts.get(),
                counters: &counters,
                failure: &failure,
            };
            for scheduled in &self.steps {
                if self.profile { scheduled.run_timed(&cx) } else { scheduled.run(&cx) }
            }
        };
        if self.alone {
            self.pool.run_alone(&region)
        } else {
            self.pool.run(&region)
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            written.iter().for_each(|(positions, slots)| session.states.overwritten(positions, slots));
            return Err(error.into());
        }
        for (positions, slots) in &written {
            session.states.advance(positions, slots);
        }
        self.graph.outputs().iter().map(|id| self.output(*id, pointers.get(), &shapes)).collect()
    }

    fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    fn step_times(&self) -> Vec<StepTime> {
        if !self.profile {
            return Vec::new();
        }
        let time = |scheduled: &Scheduled| {
            let [runs, waited, worked] =
                [&scheduled.runs, &scheduled.waited, &scheduled.worked].map(|n| n.load(Ordering::Relaxed));
            StepTime { name: scheduled.step.describe(), runs, nanoseconds: waited + worked, bytes: scheduled.bytes }
        };
        self.steps.iter().map(time).collect()
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for Scheduled { barrier, step, waited, worked, .. } in &self.steps {
            text += if *barrier { "| " } else { "  " };
            text += &step.describe();
            if self.profile {
                let micros = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1000.0;
                text += &format!("  // waited {:.1} us, worked {:.1} us", micros(waited), micros(worked));
            }
            text.push('\n');
        }
        text
    }
}

impl CpuProgram {
    fn output(&self, id: ValueId, pointers: &[*mut u8], shapes: &[Vec<usize>]) -> Result<Tensor, BackendError> {
        let (dtype, _) = self.graph.tensor_type(id).ok_or(BackendError::Mismatch("outputs and graph"))?;
        if let Some(weight) = self.graph.weight_of(id) {
            let name = self.graph.value(id).name.clone();
            return weight.to_tensor().map_err(|source| BackendError::Weight { name, source });
        }
        let shape = &shapes[id.index()];
        let bytes = core_tensor::byte_len(dtype, shape).map_err(OpError::from)?;
        let ptr = pointers[id.index()];
        let source = if bytes == 0 || ptr.is_null() {
            &[]
        } else {
            // SAFETY: the output lies in the arena, an input or a weight, and is that long; nothing runs any more.
            unsafe { std::slice::from_raw_parts(ptr.cast_const(), bytes) }
        };
        Ok(Tensor::from_bytes(dtype, shape, source).map_err(OpError::from)?)
    }
}

/// The largest bytes that a value takes.
pub(crate) fn bound_bytes(dtype: DType, shape: &[Dim], bounds: &Bindings) -> Result<usize, BackendError> {
    let shape = eval_shape(shape, bounds).map_err(core_tensor::GraphError::from)?;
    Ok(core_tensor::byte_len(dtype, &shape).map_err(OpError::from)?)
}

/// A pointer that all threads of a region may have.
#[derive(Clone, Copy)]
struct SharedPtr(*mut u8);

// SAFETY: what is behind it is shared by the rules of the schedule: steps write disjoint parts, barriers lie between writers and readers.
unsafe impl Send for SharedPtr {}
// SAFETY: as above.
unsafe impl Sync for SharedPtr {}

impl SharedPtr {
    fn get(self) -> *mut u8 {
        self.0
    }
}

/// A slice of pointers that all threads of a region may read.
struct SharedSlice<'a, T>(&'a [T]);

impl<T> Clone for SharedSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedSlice<'_, T> {}

// SAFETY: the slice itself is only read; for what its pointers lead to, see `SharedPtr`.
unsafe impl<T> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    fn get(self) -> &'a [T] {
        self.0
    }
}
