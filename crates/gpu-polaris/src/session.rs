//! The states of a model on a device, and what programs were recorded for them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use core_tensor::{BackendError, Bindings, Graph, Session, SlotSnapshot, Slots, StateError, StateId, StateRows};

use crate::compile::roles;
use crate::program::Recording;
use crate::state::StatePlace;
use crate::vk::{Command, DeviceBuffer, Gpu, Region, Uploader, record};

/// A state's memory.
#[derive(Debug)]
struct State {
    place: StatePlace,
    rows: DeviceBuffer,
    scales: Option<DeviceBuffer>,
}

/// The states of a model: a number of slots, each a sequence with its own length.
#[derive(Debug)]
pub(crate) struct GpuSession {
    gpu: Arc<Gpu>,
    states: Vec<State>,
    pub(crate) slots: Slots,
    /// Programs bound to this session's memory, by their number.
    pub(crate) recordings: BTreeMap<u64, Recording>,
    arena: Option<Arc<DeviceBuffer>>,
}

fn device(error: BackendError) -> StateError {
    StateError::Unsupported { name: "the session".into(), reason: error.to_string() }
}

impl GpuSession {
    /// Allocates the states of a graph for `slots` sequences.
    ///
    /// # Errors
    /// When a capacity is unbound, kernels do not know a type, or there is no memory.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        graph: &Graph,
        slots: usize,
        bounds: &Bindings,
    ) -> Result<GpuSession, BackendError> {
        let mut states = Vec::new();
        let mut clears = Vec::new();
        for (id, decl) in graph.state_ids().zip(graph.states()) {
            let unsupported = |reason: String| StateError::Unsupported { name: decl.name.clone(), reason };
            let capacity = decl.capacity.eval(bounds).map_err(|e| unsupported(e.to_string()))?;
            let place = StatePlace::new(decl, capacity, roles(graph, id).0).map_err(unsupported)?;
            let bytes = place.slot_bytes().and_then(|bytes| bytes.checked_mul(slots));
            let bytes = bytes.ok_or_else(|| unsupported("its size overflows".into()))? as u64;
            if bytes > gpu.limits().max_range {
                let most = gpu.limits().max_range;
                return Err(unsupported(format!("its {bytes} bytes do not fit a range of {most}")).into());
            }
            let rows = DeviceBuffer::new(gpu, "states", bytes)?;
            let scales = (place.scale_bytes() > 0)
                .then(|| DeviceBuffer::new(gpu, "states", (place.scale_bytes() * slots) as u64))
                .transpose()?;
            for buffer in [Some(&rows), scales.as_ref()].into_iter().flatten() {
                clears.push(Command::Clear(buffer.exact(0, buffer.len())?));
            }
            states.push(State { place, rows, scales });
        }
        if !clears.is_empty() {
            gpu.run(&record(gpu, &clears)?)?;
        }
        let account = Slots::new(slots, states.iter().map(|state| (state.place.capacity, state.place.window)));
        Ok(GpuSession { gpu: gpu.clone(), states, slots: account, recordings: BTreeMap::new(), arena: None })
    }

    /// Whether these are the states that a graph declares, with capacities as a program was compiled for.
    pub(crate) fn fits(&self, graph: &Graph, gpu: &Arc<Gpu>, bounds: &Bindings) -> bool {
        Arc::ptr_eq(gpu, &self.gpu)
            && self.states.len() == graph.states().len()
            && self.states.iter().zip(graph.states()).all(|(state, decl)| {
                let place = &state.place;
                place.dtype == decl.dtype
                    && place.row == decl.row
                    && place.window == decl.window
                    && decl.capacity.eval(bounds).is_ok_and(|capacity| capacity == place.capacity)
            })
    }

    /// Memory for intermediate results, at least so many bytes. What was recorded for smaller memory is forgotten.
    pub(crate) fn arena(&mut self, bytes: u64) -> Result<Arc<DeviceBuffer>, BackendError> {
        if let Some(arena) = self.arena.as_ref().filter(|arena| arena.len() >= bytes) {
            return Ok(arena.clone());
        }
        self.recordings.clear();
        self.arena = None;
        let arena = Arc::new(DeviceBuffer::new(&self.gpu, "intermediate results", bytes)?);
        self.arena = Some(arena.clone());
        Ok(arena)
    }

    pub(crate) fn rows(&self, id: StateId) -> Result<Region, BackendError> {
        let state = &self.states[id.index()];
        state.rows.region(0, state.rows.len())
    }

    pub(crate) fn scales(&self, id: StateId) -> Result<Region, BackendError> {
        let scales = self.states[id.index()].scales.as_ref().ok_or(BackendError::Mismatch("states and program"))?;
        scales.region(0, scales.len())
    }

    pub(crate) fn uploader(&self) -> Result<Uploader, BackendError> {
        Uploader::new(&self.gpu)
    }

    /// The bytes of one slot of a state: rows and scales.
    fn fetch(&self, state: &State, slot: usize) -> Result<(Vec<u8>, Vec<u8>), BackendError> {
        let mut uploader = self.uploader()?;
        let mut rows = vec![0; state.place.slot_bytes().unwrap_or(0)];
        uploader.read(&state.rows, (slot * rows.len()) as u64, &mut rows)?;
        let mut scales = vec![0; state.place.scale_bytes()];
        if let Some(buffer) = &state.scales {
            uploader.read(buffer, (slot * scales.len()) as u64, &mut scales)?;
        }
        Ok((rows, scales))
    }

    fn store(&self, state: &State, slot: usize, rows: &[u8], scales: &[u8]) -> Result<(), BackendError> {
        let mut uploader = self.uploader()?;
        let buffers = [(Some(&state.rows), rows), (state.scales.as_ref(), scales)];
        for (buffer, bytes) in buffers.into_iter().filter_map(|(buffer, bytes)| Some((buffer?, bytes))) {
            for (i, piece) in bytes.chunks(Uploader::CAPACITY).enumerate() {
                let at = slot * bytes.len() + i * Uploader::CAPACITY;
                uploader.write(buffer, at as u64, piece.len(), |out| {
                    out.copy_from_slice(piece);
                    Ok::<(), BackendError>(())
                })?;
            }
        }
        uploader.finish()
    }
}

impl Session for GpuSession {
    fn slots(&self) -> usize {
        self.slots.count()
    }

    fn byte_len(&self) -> u64 {
        self.states.iter().map(|state| state.rows.len() + state.scales.as_ref().map_or(0, DeviceBuffer::len)).sum()
    }

    fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.slots.len(slot)
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.slots.truncate(slot, len)
    }

    fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.slots.check_copy(from, to)?;
        if from == to {
            return Ok(());
        }
        let mut commands = Vec::new();
        for state in &self.states {
            let scales = state.scales.as_ref().map(|buffer| (buffer, state.place.scale_bytes()));
            for (buffer, bytes) in
                [Some((&state.rows, state.place.slot_bytes().unwrap_or(0))), scales].into_iter().flatten()
            {
                let bytes = bytes as u64;
                let slot = |slot: usize| buffer.exact(slot as u64 * bytes, bytes).map_err(device);
                commands.push(Command::Copy { from: slot(from)?, to: slot(to)? });
            }
        }
        if !commands.is_empty() {
            let recorded = record(&self.gpu, &commands).map_err(device)?;
            self.gpu.run(&recorded).map_err(device)?;
        }
        self.slots.copied(from, to);
        Ok(())
    }

    fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        let len = self.slots.len(slot)?;
        let mut states = Vec::with_capacity(self.states.len());
        for (i, state) in self.states.iter().enumerate() {
            let place = &state.place;
            let first = self.slots.first(i, slot);
            let (rows, scales) = self.fetch(state, slot).map_err(device)?;
            let mut bytes = vec![0; (len - first) * place.heads * place.head_bytes()];
            for (n, out) in bytes.chunks_exact_mut(place.head_bytes().max(1)).enumerate() {
                let (position, head) = (first + n / place.heads, n % place.heads);
                place.read(&rows, &scales, head, place.row(position), out);
            }
            states.push(StateRows { dtype: place.dtype, row: place.row.clone(), first, bytes });
        }
        Ok(SlotSnapshot { len, states })
    }

    fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        let row_bytes = |place: &StatePlace| place.heads * place.head_bytes();
        let expected = self.states.iter().map(|s| (s.place.dtype, &*s.place.row, row_bytes(&s.place)));
        self.slots.check_restore(slot, snapshot, expected)?;
        for (i, (state, kept)) in self.states.iter().zip(&snapshot.states).enumerate() {
            let place = &state.place;
            let (mut rows, mut scales) = self.fetch(state, slot).map_err(device)?;
            for position in self.slots.first_restored(i, snapshot, kept)..snapshot.len {
                for head in 0..place.heads {
                    let at = ((position - kept.first) * place.heads + head) * place.head_bytes();
                    let bytes = &kept.bytes[at..at + place.head_bytes()];
                    place.write(&mut rows, &mut scales, head, place.row(position), bytes);
                }
            }
            self.store(state, slot, &rows, &scales).map_err(device)?;
        }
        self.slots.restored(slot, snapshot);
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
