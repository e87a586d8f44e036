//! States in host memory: what the reference interpreter and the CPU backend keep KV caches in.

use crate::dim::Bindings;
use crate::graph::{Graph, StateId};
use crate::op::OpError;
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
    /// For each slot the first position whose row is there: not 0 once a ring has wrapped around.
    first: Vec<usize>,
}

impl State {
    fn offset(&self, slot: usize, head: usize, position: usize) -> usize {
        let row = if self.window.is_some() { position % self.capacity } else { position };
        ((slot * self.heads + head) * self.capacity + row) * self.head_bytes
    }

    /// Records that a row was written: a ring lost the row that lay there.
    fn wrote(&mut self, slot: usize, position: usize) {
        if self.window.is_some() {
            self.first[slot] = self.first[slot].max((position + 1).saturating_sub(self.capacity));
        }
    }

    /// Whether the rows are there that a reader at position `len` looks back at.
    fn holds_window(&self, slot: usize, len: usize) -> bool {
        self.window.is_none_or(|window| (len + 1).saturating_sub(window) >= self.first[slot])
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
    slots: usize,
    len: Vec<usize>,
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
                first: vec![0; slots],
            });
        }
        Ok(HostStates { states, slots, len: vec![0; slots] })
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
        self.slots
    }

    /// Bytes of all states.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.states.iter().map(|state| state.bytes.len()).sum()
    }

    fn check_slot(&self, slot: usize) -> Result<(), StateError> {
        if slot < self.slots { Ok(()) } else { Err(StateError::Slot { slot, slots: self.slots }) }
    }

    /// Positions that a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.check_slot(slot)?;
        Ok(self.len[slot])
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// When the slot holds fewer, or a sliding window has moved past what would be needed.
    pub fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        let held = self.len(slot)?;
        if len > held {
            return Err(StateError::Length { slot, len: held, asked: len });
        }
        if len == 0 {
            self.states.iter_mut().for_each(|state| state.first[slot] = 0);
        } else if len < held && !self.states.iter().all(|state| state.holds_window(slot, len)) {
            return Err(StateError::WindowMoved { slot, asked: len });
        }
        self.len[slot] = len;
        Ok(())
    }

    /// Makes slot `to` hold what slot `from` holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.check_slot(from)?;
        self.check_slot(to)?;
        if from == to {
            return Ok(());
        }
        for state in &mut self.states {
            // A slot's rows are contiguous, head after head; of each head only the rows that are held are copied.
            let rows = if state.window.is_some() { state.capacity } else { self.len[from] };
            let stride = state.capacity * state.head_bytes;
            for head in 0..state.heads {
                let source = (from * state.heads + head) * stride;
                let target = (to * state.heads + head) * stride;
                state.bytes.copy_within(source..source + rows * state.head_bytes, target);
            }
            state.first[to] = state.first[from];
        }
        self.len[to] = self.len[from];
        Ok(())
    }

    /// A copy of what a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        let len = self.len(slot)?;
        let states = self
            .states
            .iter()
            .map(|state| {
                let first = state.first[slot].min(len);
                let mut bytes = Vec::with_capacity((len - first) * state.heads * state.head_bytes);
                for position in first..len {
                    for head in 0..state.heads {
                        let at = state.offset(slot, head, position);
                        bytes.extend_from_slice(&state.bytes[at..at + state.head_bytes]);
                    }
                }
                StateRows { dtype: state.dtype, row: state.row.clone(), first, bytes }
            })
            .collect();
        Ok(SlotSnapshot { len, states })
    }

    /// Makes a slot hold what a snapshot holds. On an error the slot is unchanged.
    ///
    /// # Errors
    /// When there is no such slot, or the snapshot is of other states or of more positions than fit.
    pub fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        self.check_slot(slot)?;
        if snapshot.states.len() != self.states.len() {
            let (found, expected) = (snapshot.states.len(), self.states.len());
            return Err(StateError::Snapshot(format!("it has {found} states, the session {expected}")));
        }
        if i32::try_from(snapshot.len).is_err() {
            return Err(StateError::Snapshot(format!("it holds {} positions", snapshot.len)));
        }
        for (state, rows) in self.states.iter().zip(&snapshot.states) {
            if rows.dtype != state.dtype || rows.row != state.row {
                return Err(StateError::Snapshot(format!(
                    "it has rows of {} {:?}, the session of {} {:?}",
                    rows.dtype, rows.row, state.dtype, state.row
                )));
            }
            let kept = snapshot.len.checked_sub(rows.first);
            let expected = kept.and_then(|kept| kept.checked_mul(state.heads.checked_mul(state.head_bytes)?));
            if expected != Some(rows.bytes.len()) {
                return Err(StateError::Snapshot("its rows are not as long as it says".into()));
            }
            let fits = match state.window {
                Some(window) => rows.first == 0 || snapshot.len.saturating_add(1).saturating_sub(window) >= rows.first,
                None => rows.first == 0 && snapshot.len <= state.capacity,
            };
            if !fits {
                return Err(StateError::Snapshot(format!(
                    "{} positions from {} on do not fit a capacity of {}",
                    snapshot.len, rows.first, state.capacity
                )));
            }
        }
        for (state, rows) in self.states.iter_mut().zip(&snapshot.states) {
            let first =
                rows.first.max(if state.window.is_some() { snapshot.len.saturating_sub(state.capacity) } else { 0 });
            for position in first..snapshot.len {
                for head in 0..state.heads {
                    let from = ((position - rows.first) * state.heads + head) * state.head_bytes;
                    let at = state.offset(slot, head, position);
                    state.bytes[at..at + state.head_bytes].copy_from_slice(&rows.bytes[from..from + state.head_bytes]);
                }
            }
            state.first[slot] = first;
        }
        self.len[slot] = snapshot.len;
        Ok(())
    }

    /// Checks a step's slots and positions before it runs: each row's slot exists; the positions of a slot increase, leave no gap after what it
    /// holds and are inside every capacity; a ring is only continued, and no step writes more rows than it can take.
    ///
    /// # Errors
    /// The first row that is wrong.
    pub fn check_step(&self, positions: &[i32], slots: &[i32]) -> Result<(), OpError> {
        let mut len = self.len.clone();
        let mut next = vec![0usize; self.slots];
        let mut rows = vec![0usize; self.slots];
        let ring = self.states.iter().any(|state| state.window.is_some());
        for (position, slot) in positions.iter().zip(slots) {
            let at = usize::try_from(*slot).ok().filter(|slot| *slot < self.slots).ok_or(OpError::Index {
                what: "slots",
                index: i64::from(*slot),
                len: self.slots,
            })?;
            let held = len[at];
            let fits = |p: &usize| *p <= held && *p >= next[at] && (*p == held || !ring);
            let position = usize::try_from(*position).ok().filter(fits).ok_or(OpError::Index {
                what: "positions that continue the slot",
                index: i64::from(*position),
                len: held + 1,
            })?;
            next[at] = position + 1;
            len[at] = held.max(position + 1);
            rows[at] += 1;
            for state in &self.states {
                let (limit, index) = match state.window {
                    Some(window) => (state.capacity - window + 1, rows[at] - 1),
                    None => (state.capacity, position),
                };
                if index >= limit {
                    let what = if state.window.is_some() {
                        "rows of a step over a sliding window"
                    } else {
                        "positions of the context"
                    };
                    return Err(OpError::Index { what, index: index as i64, len: limit });
                }
            }
        }
        Ok(())
    }

    /// Records that a step wrote these rows and succeeded: the slots hold them now.
    pub fn advance(&mut self, positions: &[i32], slots: &[i32]) {
        self.overwritten(positions, slots);
        for (position, slot) in positions.iter().zip(slots) {
            let (Ok(position), Ok(slot)) = (usize::try_from(*position), usize::try_from(*slot)) else { continue };
            if slot < self.slots {
                self.len[slot] = self.len[slot].max(position + 1);
            }
        }
    }

    /// Records that a step that failed may have written these rows: the slots do not hold them, but rings have lost what lay there.
    pub fn overwritten(&mut self, positions: &[i32], slots: &[i32]) {
        for (position, slot) in positions.iter().zip(slots) {
            let (Ok(position), Ok(slot)) = (usize::try_from(*position), usize::try_from(*slot)) else { continue };
            if slot < self.slots {
                self.states.iter_mut().for_each(|state| state.wrote(slot, position));
            }
        }
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
        Ok((index("slots", slot, self.slots)?, index("positions of the context", position, positions)?))
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
