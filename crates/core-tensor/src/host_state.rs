//! States in host memory: what the reference interpreter and the CPU backend keep KV caches in.

use crate::dim::Bindings;
use crate::graph::{Graph, StateId};
use crate::op::OpError;
use crate::slots::Slots;
use crate::storage::AlignedBytes;
use crate::{BlockFormat, DType, TensorError, block};

/// Why a slot could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// There is no such slot.
    #[error("slot {slot} is not one of the session's {slots}")]
    Slot {
        /// The slot asked for.
        slot: usize,
        /// Slots there are.
        slots: usize,
    },
    /// The slot holds fewer rows than asked for.
    #[error("slot {slot} holds {len} positions, {asked} were asked for")]
    Length {
        /// The slot.
        slot: usize,
        /// Positions it holds.
        len: usize,
        /// Positions asked for.
        asked: usize,
    },
    /// A sliding-window state no longer holds the rows before that position.
    #[error(
        "slot {slot} cannot be cut to {asked} positions: its sliding windows have moved on, evaluate the text again"
    )]
    WindowMoved {
        /// The slot.
        slot: usize,
        /// Positions asked for.
        asked: usize,
    },
    /// A snapshot is of another model, dtype or a larger capacity.
    #[error("the snapshot does not fit this session: {0}")]
    Snapshot(String),
    /// There is no memory for the states.
    #[error("no memory for {bytes} bytes of states")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The state's dtype or rows cannot be kept on the host.
    #[error("state {name:?}: {reason}")]
    Unsupported {
        /// The state.
        name: String,
        /// Why.
        reason: String,
    },
}

/// One slot's rows of every state, independent of the backend: rows by position, each as `row` extents of the state's dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSnapshot {
    /// Positions held.
    pub len: usize,
    /// For each state: dtype, first position kept, and the rows from there to `len`.
    pub states: Vec<StateRows>,
}

/// Rows of one state in a [`SlotSnapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRows {
    /// Element type.
    pub dtype: DType,
    /// Extents of a row.
    pub row: Vec<usize>,
    /// Position of the first row (not 0 for a sliding window that has moved on).
    pub first: usize,
    /// The rows, one after the other.
    pub bytes: Vec<u8>,
}

struct State {
    dtype: DType,
    row: Vec<usize>,
    capacity: usize,
    window: Option<usize>,
    /// Product of all row extents but the last.
    heads: usize,
    /// Bytes of the last extent.
    head_bytes: usize,
    bytes: AlignedBytes,
}

impl State {
    fn offset(&self, slot: usize, head: usize, position: usize) -> usize {
        let row = if self.window.is_some() { position % self.capacity } else { position };
        ((slot * self.heads + head) * self.capacity + row) * self.head_bytes
    }
}

/// Where a state's rows lie: element `i` of head `h` at `base + ((slot * heads + h) * capacity + row) * head_bytes`,
/// with `row = position`, or `position % capacity` for a ring.
#[derive(Clone, Copy, Debug)]
pub struct StateLayout {
    /// First byte.
    pub base: *mut u8,
    /// Element type.
    pub dtype: DType,
    /// Heads per row.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Bytes per head.
    pub head_bytes: usize,
    /// Rows per slot.
    pub capacity: usize,
    /// The window of a ring.
    pub window: Option<usize>,
}

/// The states of a session in host memory, `[slot][head][position][element]`.
pub struct HostStates {
    states: Vec<State>,
    slots: Slots,
}

impl HostStates {
    /// Allocates the states of a graph for `slots` sequences; `bindings` give the capacities.
    ///
    /// # Errors
    /// When a capacity is unbound, a dtype is not f32, f16 or q8_0, or there is no memory.
    pub fn new(graph: &Graph, slots: usize, bindings: &Bindings) -> Result<HostStates, StateError> {
        let mut states = Vec::new();
        for decl in graph.states() {
            let unsupported = |reason: String| StateError::Unsupported { name: decl.name.clone(), reason };
            let capacity = decl.capacity.eval(bindings).map_err(|e| unsupported(e.to_string()))?;
            let Some((inner, outer)) = decl.row.split_last() else {
                return Err(unsupported("its rows are scalars".into()));
            };
            let dtype = decl.dtype;
            if !matches!(dtype, DType::F32 | DType::F16 | DType::Block(BlockFormat::Q8_0)) {
                return Err(unsupported(format!("{dtype} cannot be written on the host (f32, f16 and q8_0 can)")));
            }
            if decl.window.is_some_and(|window| window > capacity || window == 0) || capacity == 0 {
                return Err(unsupported(format!("a capacity of {capacity} for a window of {:?}", decl.window)));
            }
            let head_bytes = dtype
                .row_bytes(*inner)
                .ok_or_else(|| unsupported(format!("rows of {inner} elements are no whole blocks of {dtype}")))?;
            let heads: usize = outer.iter().product();
            let bytes = [slots, heads, capacity]
                .iter()
                .try_fold(head_bytes, |bytes, n| bytes.checked_mul(*n))
                .ok_or_else(|| unsupported("its size overflows".into()))?;
            states.push(State {
                dtype,
                row: decl.row.clone(),
                capacity,
                window: decl.window,
                heads,
                head_bytes,
                bytes: AlignedBytes::zeroed(bytes).ok_or(StateError::NoMemory { bytes })?,
            });
        }
        let account = Slots::new(slots, states.iter().map(|state| (state.capacity, state.window)));
        Ok(HostStates { states, slots: account })
    }

    /// Whether these are the states that a graph declares.
    #[must_use]
    pub fn fit(&self, graph: &Graph) -> bool {
        self.states.len() == graph.states().len()
            && self
                .states
                .iter()
                .zip(graph.states())
                .all(|(state, decl)| state.dtype == decl.dtype && state.row == decl.row && state.window == decl.window)
    }

    /// Slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.count()
    }

    /// Bytes of all states.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.states.iter().map(|state| state.bytes.len()).sum()
    }

    /// Positions that a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.slots.len(slot)
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// When the slot holds fewer, or a sliding window has moved past what would be needed.
    pub fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.slots.truncate(slot, len)
    }

    /// Makes slot `to` hold what slot `from` holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.slots.check_copy(from, to)?;
        if from == to {
            return Ok(());
        }
        let len = self.slots.len(from)?;
        for state in &mut self.states {
            // A slot's rows are contiguous, head after head; of each head only the rows that are held are copied.
            let rows = if state.window.is_some() { state.capacity } else { len };
            let stride = state.capacity * state.head_bytes;
            for head in 0..state.heads {
                let source = (from * state.heads + head) * stride;
                let target = (to * state.heads + head) * stride;
                state.bytes.copy_within(source..source + rows * state.head_bytes, target);
            }
        }
        self.slots.copied(from, to);
        Ok(())
    }

    /// A copy of what a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        let len = self.len(slot)?;
        let rows = |(i, state): (usize, &State)| {
            let first = self.slots.first(i, slot);
            let mut bytes = Vec::with_capacity((len - first) * state.heads * state.head_bytes);
            for position in first..len {
                for head in 0..state.heads {
                    let at = state.offset(slot, head, position);
                    bytes.extend_from_slice(&state.bytes[at..at + state.head_bytes]);
                }
            }
            StateRows { dtype: state.dtype, row: state.row.clone(), first, bytes }
        };
        Ok(SlotSnapshot { len, states: self.states.iter().enumerate().map(rows).collect() })
    }

    /// Makes a slot hold what a snapshot holds. On an error the slot is unchanged.
    ///
    /// # Errors
    /// When there is no such slot, or the snapshot is of other states or of more positions than fit.
    pub fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        let expected = self.states.iter().map(|s| (s.dtype, &*s.row, s.heads * s.head_bytes));
        self.slots.check_restore(slot, snapshot, expected)?;
        for (i, (state, rows)) in self.states.iter_mut().zip(&snapshot.states).enumerate() {
            for position in self.slots.first_restored(i, snapshot, rows)..snapshot.len {
                for head in 0..state.heads {
                    let from = ((position - rows.first) * state.heads + head) * state.head_bytes;
                    let at = state.offset(slot, head, position);
                    state.bytes[at..at + state.head_bytes].copy_from_slice(&rows.bytes[from..from + state.head_bytes]);
                }
            }
        }
        self.slots.restored(slot, snapshot);
        Ok(())
    }

    /// Checks a step's slots and positions before it runs ([`Slots::check_step`]).
    ///
    /// # Errors
    /// The first row that is wrong.
    pub fn check_step(&self, positions: &[i32], slots: &[i32]) -> Result<(), OpError> {
        self.slots.check_step(positions, slots)
    }

    /// Records that a step wrote these rows and succeeded: the slots hold them now.
    pub fn advance(&mut self, positions: &[i32], slots: &[i32]) {
        self.slots.advance(positions, slots);
    }

    /// Records that a step that failed may have written these rows: the slots do not hold them, but rings have lost what lay there.
    pub fn overwritten(&mut self, positions: &[i32], slots: &[i32]) {
        self.slots.overwritten(positions, slots);
    }

    /// Where a state lies, for kernels. The pointer is valid while `self` is neither dropped nor moved out of; who writes through it holds `self` mutably.
    pub fn layout(&mut self, state: StateId) -> StateLayout {
        let state = &mut self.states[state.index()];
        StateLayout {
            base: state.bytes.as_mut_ptr(),
            dtype: state.dtype,
            heads: state.heads,
            head_dim: state.row.last().copied().unwrap_or(0),
            head_bytes: state.head_bytes,
            capacity: state.capacity,
            window: state.window,
        }
    }

    /// Extents of a state's rows as `[heads, head_dim]`.
    pub(crate) fn row_shape(&self, state: StateId) -> [usize; 2] {
        let state = &self.states[state.index()];
        [state.heads, state.row.last().copied().unwrap_or(0)]
    }

    /// Slot and position as indices, if the state has them.
    pub(crate) fn place(&self, state: StateId, slot: i32, position: i32) -> Result<(usize, usize), OpError> {
        let state = &self.states[state.index()];
        let index = |what, index: i32, len| {
            usize::try_from(index).ok().filter(|i| *i < len).ok_or(OpError::Index { what, index: index.into(), len })
        };
        let positions = if state.window.is_some() { usize::MAX } else { state.capacity };
        Ok((index("slots", slot, self.slots.count())?, index("positions of the context", position, positions)?))
    }

    /// One head of one row as f32.
    pub(crate) fn read(&self, state: StateId, slot: usize, position: usize, head: usize) -> Result<Vec<f32>, OpError> {
        let state = &self.states[state.index()];
        let at = state.offset(slot, head, position);
        let len = state.row.last().copied().unwrap_or(0);
        Ok(crate::decode_f32(state.dtype, &state.bytes[at..at + state.head_bytes], len)?)
    }

    /// Writes one row.
    pub(crate) fn write(&mut self, id: StateId, slot: i32, position: i32, row: &[f32]) -> Result<(), OpError> {
        let (slot, position) = self.place(id, slot, position)?;
        let state = &mut self.states[id.index()];
        let head_dim = state.row.last().copied().unwrap_or(0).max(1);
        for (head, values) in row.chunks(head_dim).enumerate() {
            let at = state.offset(slot, head, position);
            encode(state.dtype, values, &mut state.bytes[at..at + state.head_bytes])?;
        }
        Ok(())
    }
}

/// Writes f32 as the dtype of a state.
fn encode(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), OpError> {
    match dtype {
        DType::F16 => {
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = half::f16::from_f32(*value).to_le_bytes();
            }
        }
        DType::Block(BlockFormat::Q8_0) => block::encode_q8_0(values, out).map_err(TensorError::from)?,
        _ => out.copy_from_slice(bytemuck::cast_slice(values)),
    }
    Ok(())
}
