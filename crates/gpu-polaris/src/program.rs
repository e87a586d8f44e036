//! Compiled programs: a list of dispatches, bound to a session's memory and recorded once, then replayed.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use core_tensor::op::{OpError, RotaryEmbedding, rope_table};
use core_tensor::{
    BackendError, Bindings, DType, Graph, MemoryPlan, Program, RowInputs, Session, Tensor, ValueId, Weights, eval_shape,
};

use crate::barrier::{Touched, barriers};
use crate::compile::Compiled;
use crate::plan::{Memory, place, touched};
use crate::session::GpuSession;
use crate::step::{DIVIDED_BY_ZERO, Grid, STATUS_WORDS};
use crate::vk::{Command, DeviceBuffer, Gpu, Groups, HostBuffer, Recorded, Region, record};
use crate::weights::GpuWeights;

/// A table of cosines and sines that the host makes for each step.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    pub(crate) op: RotaryEmbedding,
    /// The input with the positions.
    pub(crate) positions: usize,
    pub(crate) factors_of: Option<ValueId>,
    pub(crate) factors: Option<Vec<f32>>,
    /// Bytes at the bounds.
    pub(crate) bytes: usize,
}

/// Where an output comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OutputPlace {
    /// It is a weight.
    Weight(ValueId),
    /// It is an input, by number.
    Input(usize),
    /// The device writes it for the host: at most so many bytes.
    Read { bytes: usize },
}

/// What the compiler hands over.
pub(crate) struct Parts {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) graph: Arc<Graph>,
    pub(crate) weights: Arc<dyn Weights>,
    pub(crate) bounds: Bindings,
    pub(crate) compiled: Compiled,
}

/// Bytes from the beginning of the block that the host writes for each step.
struct StepBlock {
    values: u64,
    inputs: Vec<(u64, u64)>,
    ropes: Vec<(u64, u64)>,
    len: u64,
}

/// A compiled graph.
pub(crate) struct GpuProgram {
    parts: Parts,
    id: u64,
    block: StepBlock,
    /// Offsets and lengths of outputs in the memory that the host reads; the first bytes are the status.
    readback: Vec<(u64, u64)>,
    readback_len: u64,
    row_inputs: Vec<RowInputs>,
    /// For each dispatch whether a barrier stands before it.
    barriers: Vec<bool>,
}

/// A program bound to a session: recorded commands with the memory that is theirs alone.
#[derive(Debug)]
pub(crate) struct Recording {
    recorded: Recorded,
    host: HostBuffer,
    _device: DeviceBuffer,
    readback: HostBuffer,
    /// What the last run's extents led to: nothing of it changes when they are the same.
    extents: Option<Extents>,
    /// Multiply-adds at the bounds, in all and of the largest submission; `None` once a run was measured.
    work: Option<(f64, f64)>,
}

/// What follows from the extents of a run's inputs.
#[derive(Debug)]
struct Extents {
    inputs: Vec<(DType, Vec<usize>)>,
    /// Type, extents and bytes of each output that the device writes.
    outputs: Vec<Option<(DType, Vec<usize>, usize)>>,
}

impl Extents {
    fn are_of(&self, inputs: &[Tensor]) -> bool {
        self.inputs.len() == inputs.len()
            && self.inputs.iter().zip(inputs).all(|((dtype, shape), t)| *dtype == t.dtype() && **shape == *t.shape())
    }
}

/// What guard bytes hold.
const GUARD: u8 = 0xa5;

impl GpuProgram {
    pub(crate) fn new(parts: Parts) -> Result<GpuProgram, BackendError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let align = parts.gpu.limits().offset_alignment;
        let mut len = (STATUS_WORDS * 4) as u64;
        let mut take = |bytes: u64| {
            let at = len.next_multiple_of(align);
            len = at + bytes.max(32);
            (at, bytes)
        };
        let (values, _) = take((parts.compiled.values.len() * 4) as u64);
        let input = |id: &ValueId| {
            let (dtype, _) = parts.graph.tensor_type(*id).ok_or(BackendError::Mismatch("inputs and graph"))?;
            let bytes = core_tensor::byte_len(dtype, &parts.compiled.largest[id.index()]).map_err(OpError::from)?;
            Ok(take(bytes as u64))
        };
        let inputs = parts.graph.inputs().iter().map(input).collect::<Result<Vec<_>, BackendError>>()?;
        let ropes = parts.compiled.ropes.iter().map(|table| take(table.bytes as u64)).collect();
        let mut readback_len = (STATUS_WORDS * 4) as u64;
        let mut readback = Vec::new();
        for output in &parts.compiled.outputs {
            let bytes = if let OutputPlace::Read { bytes } = output { *bytes as u64 } else { 0 };
            let at = readback_len.next_multiple_of(align);
            readback.push((at, bytes));
            readback_len = at + bytes.max(16).next_multiple_of(4);
        }
        let row_inputs = parts.graph.row_inputs();
        let block = StepBlock { values, inputs, ropes, len: len.next_multiple_of(align) };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut program = GpuProgram { parts, id, block, readback, readback_len, row_inputs, barriers: Vec::new() };
        let touched: Vec<Touched> =
            program.parts.compiled.dispatches.iter().map(|dispatch| touched(dispatch, |m| program.place(m))).collect();
        program.barriers = barriers(touched.iter());
        Ok(program)
    }

    fn weights(&self) -> Result<&GpuWeights, BackendError> {
        self.parts.weights.as_any().downcast_ref().ok_or(BackendError::Mismatch("weights and program"))
    }

    /// Offset and length in the arena, without the guards.
    fn place(&self, memory: Memory) -> Option<(u64, u64)> {
        place(&self.parts.compiled.places, &self.parts.compiled.plan, self.parts.compiled.guard, memory)
    }

    /// Binds the program to a session's memory and records it.
    fn record(&self, session: &mut GpuSession) -> Result<Recording, BackendError> {
        let gpu = &self.parts.gpu;
        let arena = session.arena(self.parts.compiled.plan.arena_bytes as u64)?;
        let host = HostBuffer::new(gpu, "the values of a step", self.block.len, false)?;
        let device = DeviceBuffer::new(gpu, "the values of a step", self.block.len)?;
        let readback = HostBuffer::new(gpu, "outputs", self.readback_len, true)?;
        let weights = self.weights()?;
        let values = device.region(self.block.values, (self.parts.compiled.values.len() * 4).max(32) as u64)?;
        let region = |memory: Memory| -> Result<Region, BackendError> {
            match memory {
                Memory::Value(_) | Memory::Scratch(_) => {
                    let (offset, len) = self.place(memory).ok_or(BackendError::Mismatch("value and plan"))?;
                    arena.region(offset, len)
                }
                Memory::Weights(extent) => weights.arenas[extent.arena].region(extent.offset, extent.len),
                Memory::State(id) => session.rows(id),
                Memory::StateScales(id) => session.scales(id),
                Memory::Input(i) => {
                    let (offset, len) = *self.block.inputs.get(i).ok_or(BackendError::Mismatch("inputs and graph"))?;
                    device.region(offset, len)
                }
                Memory::Rope(i) => device.region(self.block.ropes[i].0, self.block.ropes[i].1),
                Memory::Status => device.region(0, (STATUS_WORDS * 4) as u64),
                Memory::Output(i) => readback.region(self.readback[i].0, self.readback[i].1),
                Memory::Unused => Ok(values.clone()),
            }
        };
        let mut commands = vec![
            Command::Copy { from: host.exact(0, self.block.len)?, to: device.exact(0, self.block.len)? },
            Command::Barrier,
        ];
        let budget = gpu.submission_work();
        let (mut work, mut largest, mut total) = (0.0f64, 0.0f64, 0.0);
        for (dispatch, barrier) in self.parts.compiled.dispatches.iter().zip(&self.barriers) {
            if work > 0.0 && work + dispatch.work > budget {
                work = 0.0;
                commands.push(Command::Split);
            } else if *barrier {
                commands.push(Command::Barrier);
            }
            work += dispatch.work;
            largest = largest.max(work);
            total += dispatch.work;
            let bindings = dispatch.operands.iter().map(|operand| operand.binding).max().unwrap_or(0);
            let mut regions = vec![values.clone(); bindings as usize + 1];
            for operand in &dispatch.operands {
                regions[operand.binding as usize] = region(operand.memory)?;
            }
            let groups = match dispatch.grid {
                Grid::Fixed(groups) => Groups::Fixed(groups),
                Grid::Step(word) => Groups::Indirect(device.exact(self.block.values + 4 * word as u64, 12)?),
            };
            commands.push(Command::Dispatch {
                pipeline: gpu.pipeline(&dispatch.shader, &dispatch.constants)?,
                regions,
                push: dispatch.push.clone(),
                groups,
            });
        }
        let status = (STATUS_WORDS * 4) as u64;
        commands.push(Command::Barrier);
        commands.push(Command::Copy { from: device.exact(0, status)?, to: readback.exact(0, status)? });
        let recorded = record(gpu, &commands)?;
        gpu.save_pipelines();
        Ok(Recording { recorded, host, _device: device, readback, extents: None, work: Some((total, largest)) })
    }

    fn check_bounds(&self, bindings: &Bindings) -> Result<(), BackendError> {
        for (symbol, value) in bindings.iter() {
            let bound = self.parts.bounds.get(symbol);
            if bound.is_none_or(|bound| value > bound) {
                return Err(BackendError::Bound {
                    symbol: symbol.to_owned(),
                    reason: format!("{value} exceeds the {} the program was compiled for", bound.unwrap_or(0)),
                });
            }
        }
        // Within the bounds of its symbols an extent may still exceed what it is at the bounds: `512 - tokens` does. And what symbols leave open of
        // the rules of shapes, on which kernels rely, is known now.
        let mut all = self.parts.bounds.clone();
        bindings.iter().for_each(|(symbol, value)| all.set(symbol, value));
        let extents = self.parts.graph.extents(&all)?;
        for (id, (shape, largest)) in self.parts.graph.value_ids().zip(extents.iter().zip(&self.parts.compiled.largest))
        {
            if shape.iter().zip(largest).any(|(extent, largest)| extent > largest) {
                let reason = format!("extents {shape:?} exceed the {largest:?} the program was compiled for");
                return Err(BackendError::Bound { symbol: self.parts.graph.value(id).name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Checks the extents of a run and writes what follows from them, unless they are those of the last one.
    fn set_extents(&self, recording: &mut Recording, inputs: &[Tensor]) -> Result<(), BackendError> {
        if recording.extents.as_ref().is_some_and(|extents| extents.are_of(inputs)) {
            return Ok(());
        }
        recording.extents = None;
        let graph = &self.parts.graph;
        let bindings = graph.bind_inputs(inputs)?;
        self.check_bounds(&bindings)?;
        let output = |(i, id): (usize, &ValueId)| {
            let OutputPlace::Read { .. } = self.parts.compiled.outputs[i] else { return Ok(None) };
            let (dtype, shape) = graph.tensor_type(*id).ok_or(BackendError::Mismatch("outputs and graph"))?;
            let shape = eval_shape(shape, &bindings).map_err(core_tensor::GraphError::from)?;
            let len = core_tensor::byte_len(dtype, &shape).map_err(OpError::from)?;
            Ok(Some((dtype, shape, len)))
        };
        let outputs = graph.outputs().iter().enumerate().map(output).collect::<Result<_, BackendError>>()?;
        // States' capacities and other extents that inputs do not give are as compiled.
        let mut all = self.parts.bounds.clone();
        bindings.iter().for_each(|(symbol, value)| all.set(symbol, value));
        let at = self.block.values as usize;
        let bytes = recording.host.bytes_mut();
        let words = &mut bytes[at..at + self.parts.compiled.values.len() * 4];
        self.parts.compiled.values.eval(&all, words).map_err(core_tensor::GraphError::from)?;
        bytes[..STATUS_WORDS * 4].fill(0);
        let inputs = inputs.iter().map(|tensor| (tensor.dtype(), tensor.shape().to_vec())).collect();
        recording.extents = Some(Extents { inputs, outputs });
        Ok(())
    }

    /// Writes what the step needs.
    fn write_step(&self, recording: &mut Recording, inputs: &[Tensor]) -> Result<(), BackendError> {
        let bytes = recording.host.bytes_mut();
        for (tensor, (at, _)) in inputs.iter().zip(&self.block.inputs) {
            let at = *at as usize;
            bytes[at..at + tensor.bytes().len()].copy_from_slice(tensor.bytes());
        }
        for (table, (at, _)) in self.parts.compiled.ropes.iter().zip(&self.block.ropes) {
            let positions = inputs[table.positions].elements::<i32>().map_err(OpError::from)?;
            let mut out = bytes[*at as usize..].as_chunks_mut::<4>().0.iter_mut();
            for position in positions.iter() {
                for (cos, sin) in rope_table(&table.op, *position, table.factors.as_deref()) {
                    for value in [cos, sin] {
                        if let Some(out) = out.next() {
                            *out = value.to_le_bytes();
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn outputs(&self, recording: &mut Recording, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let graph = &self.parts.graph;
        let Recording { readback, extents, .. } = recording;
        let extents = extents.as_ref().ok_or(BackendError::Mismatch("outputs and extents"))?;
        let bytes = readback.bytes();
        let output = |(i, place): (usize, &OutputPlace)| match *place {
            OutputPlace::Weight(id) => {
                let name = graph.value(id).name.clone();
                let weight = graph.weight_of(id).ok_or(BackendError::Mismatch("outputs and graph"))?;
                weight.to_tensor().map_err(|source| BackendError::Weight { name, source })
            }
            OutputPlace::Input(input) => Ok(inputs[input].clone()),
            OutputPlace::Read { .. } => {
                let known = extents.outputs.get(i).and_then(Option::as_ref);
                let (dtype, shape, len) = known.ok_or(BackendError::Mismatch("outputs and extents"))?;
                let at = self.readback[i].0 as usize;
                Ok(Tensor::from_bytes(*dtype, shape, &bytes[at..at + len]).map_err(OpError::from)?)
            }
        };
        self.parts.compiled.outputs.iter().enumerate().map(output).collect()
    }

    /// What a kernel has to tell, as an error.
    fn status(recording: &mut Recording) -> Result<(), BackendError> {
        let bytes = recording.readback.bytes();
        let word =
            |i: usize| bytes[4 * i..4 * i + 4].iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        if word(0) == 0 {
            return Ok(());
        }
        if word(0) == DIVIDED_BY_ZERO {
            return Err(OpError::Shape("an integer is divided by zero".into()).into());
        }
        let index = (u64::from(word(2)) << 32 | u64::from(word(1))).cast_signed();
        Err(OpError::Index { what: "rows to gather", index, len: word(3) as usize }.into())
    }

    /// Fills the arena's guards, or looks whether they are as they were.
    fn guards(&self, session: &mut GpuSession, check: bool) -> Result<(), BackendError> {
        let len = self.parts.compiled.plan.arena_bytes;
        if self.parts.compiled.guard == 0 || len == 0 {
            return Ok(());
        }
        let arena = session.arena(len as u64)?;
        let mut uploader = session.uploader()?;
        if !check {
            for (i, piece) in vec![GUARD; len].chunks(crate::vk::Uploader::CAPACITY).enumerate() {
                let at = (i * crate::vk::Uploader::CAPACITY) as u64;
                uploader.write(&arena, at, piece.len(), |out| {
                    out.copy_from_slice(piece);
                    Ok::<(), BackendError>(())
                })?;
            }
            return uploader.finish();
        }
        let mut bytes = vec![0; len];
        uploader.read(&arena, 0, &mut bytes)?;
        for (buffer, offset) in self.parts.compiled.plan.buffers.iter().zip(&self.parts.compiled.plan.offsets) {
            let end = offset + buffer.bytes;
            let guards = bytes[*offset..offset + self.parts.compiled.guard]
                .iter()
                .chain(&bytes[end - self.parts.compiled.guard..end]);
            if guards.clone().any(|byte| *byte != GUARD) {
                let name = &buffer.name;
                return Err(BackendError::Device(format!("a kernel wrote outside of the buffer of {name:?}")));
            }
        }
        Ok(())
    }
}

impl Program for GpuProgram {
    fn run(&self, session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let session: &mut GpuSession =
            session.as_any_mut().downcast_mut().ok_or(BackendError::Mismatch("session and program"))?;
        // What is recorded was recorded for states that fit: those of a session never change.
        let recorded = session.recordings.contains_key(&self.id);
        if !recorded && !session.fits(&self.parts.graph, &self.parts.gpu, &self.parts.bounds) {
            return Err(BackendError::Mismatch("session and program"));
        }
        // Where waiting for a step failed, the device may still use what this would write to.
        self.parts.gpu.check()?;
        if !recorded {
            // What is wrong with the inputs is known before memory is taken for them.
            self.check_bounds(&self.parts.graph.bind_inputs(inputs)?)?;
            session.arena(self.parts.compiled.plan.arena_bytes as u64)?;
            let recording = self.record(session)?;
            session.recordings.insert(self.id, recording);
        }
        if self.parts.compiled.guard > 0 {
            self.guards(session, false)?;
        }
        let GpuSession { recordings, slots, .. } = session;
        let recording = recordings.get_mut(&self.id).ok_or(BackendError::Mismatch("session and program"))?;
        self.set_extents(recording, inputs)?;
        for rows in &self.row_inputs {
            let ints = |i: usize| inputs[i].elements::<i32>().map_err(OpError::from);
            slots.check_step(&ints(rows.positions)?, &ints(rows.slots)?)?;
        }
        self.write_step(recording, inputs)?;
        let start = Instant::now();
        let ran = self.parts.gpu.run(&recording.recorded);
        let elapsed = start.elapsed();
        let ran = ran.and_then(|()| Self::status(recording));
        for rows in self.row_inputs.iter().filter(|rows| rows.written) {
            let ints = |i: usize| inputs[i].elements::<i32>().map_err(OpError::from);
            let (positions, of) = (ints(rows.positions)?, ints(rows.slots)?);
            if ran.is_ok() {
                slots.advance(&positions, &of);
            } else {
                slots.overwritten(&positions, &of);
            }
        }
        ran?;
        let outputs = self.outputs(recording, inputs);
        // Once a run was as large as can be, it is known how long submissions take. Those that take too long are recorded again, in smaller pieces.
        let full = self
            .parts
            .graph
            .inputs()
            .iter()
            .zip(inputs)
            .all(|(id, t)| *t.shape() == *self.parts.compiled.largest[id.index()]);
        let measured = recording.work.filter(|_| full);
        if let Some((total, largest)) = measured {
            recording.work = None;
            if self.parts.gpu.learn_pace(total, largest, elapsed) {
                recordings.remove(&self.id);
            }
        }
        if self.parts.compiled.guard > 0 {
            self.guards(session, true)?;
        }
        outputs
    }

    fn plan(&self) -> &MemoryPlan {
        &self.parts.compiled.plan
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (dispatch, barrier) in self.parts.compiled.dispatches.iter().zip(&self.barriers) {
            let mark = if *barrier { "| " } else { "  " };
            let grid = match dispatch.grid {
                Grid::Fixed([x, y, z]) => format!("{x}x{y}x{z}"),
                Grid::Step(word) => format!("@{word}"),
            };
            let _ = writeln!(text, "{mark}{} {grid} {:?}  // {}", dispatch.shader, dispatch.constants, dispatch.label);
        }
        text
    }
}
