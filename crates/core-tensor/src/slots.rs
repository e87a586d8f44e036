//! Which positions the slots of a session hold, whatever memory their rows lie in.

use crate::host_state::StateError;
use crate::op::OpError;
use crate::{SlotSnapshot, StateRows};

/// Rows of one state: how many, whether they wrap around, and from which position on each slot still has them.
#[derive(Clone, Debug)]
struct Rows {
    capacity: usize,
    window: Option<usize>,
    /// For each slot the first position whose row is there: not 0 once a ring has wrapped around.
    first: Vec<usize>,
}

impl Rows {
    /// Whether the rows are there that a reader at position `len` looks back at.
    fn holds_window(&self, slot: usize, len: usize) -> bool {
        self.window.is_none_or(|window| (len + 1).saturating_sub(window) >= self.first[slot])
    }
}

/// The account of a session's slots: every backend keeps one beside the memory of its states.
#[derive(Clone, Debug)]
pub struct Slots {
    states: Vec<Rows>,
    len: Vec<usize>,
}

impl Slots {
    /// Empty slots for states of these capacities and windows.
    #[must_use]
    pub fn new(slots: usize, states: impl IntoIterator<Item = (usize, Option<usize>)>) -> Slots {
        let rows = |(capacity, window)| Rows { capacity, window, first: vec![0; slots] };
        Slots { states: states.into_iter().map(rows).collect(), len: vec![0; slots] }
    }

    /// Slots.
    #[must_use]
    pub fn count(&self) -> usize {
        self.len.len()
    }

    fn check(&self, slot: usize) -> Result<(), StateError> {
        let slots = self.count();
        if slot < slots { Ok(()) } else { Err(StateError::Slot { slot, slots }) }
    }

    /// Positions that a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.check(slot)?;
        Ok(self.len[slot])
    }

    /// The first position of a slot whose row a state still has.
    #[must_use]
    pub fn first(&self, state: usize, slot: usize) -> usize {
        self.states[state].first[slot].min(self.len[slot])
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

    /// Checks that a slot can be copied to another.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn check_copy(&self, from: usize, to: usize) -> Result<(), StateError> {
        self.check(from)?;
        self.check(to)
    }

    /// Records that slot `to` now has the rows of slot `from`; both are there.
    pub fn copied(&mut self, from: usize, to: usize) {
        self.states.iter_mut().for_each(|state| state.first[to] = state.first[from]);
        self.len[to] = self.len[from];
    }

    /// Checks that a snapshot fits: the same states, rows as long as it says, no more positions than there is room for. `expected` gives dtype
    /// and row extents of each state, and the bytes of one row.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check_restore<'a>(
        &self,
        slot: usize,
        snapshot: &SlotSnapshot,
        expected: impl ExactSizeIterator<Item = (crate::DType, &'a [usize], usize)>,
    ) -> Result<(), StateError> {
        self.check(slot)?;
        if snapshot.states.len() != expected.len() || expected.len() != self.states.len() {
            let (found, expected) = (snapshot.states.len(), expected.len());
            return Err(StateError::Snapshot(format!("it has {found} states, the session {expected}")));
        }
        if i32::try_from(snapshot.len).is_err() {
            return Err(StateError::Snapshot(format!("it holds {} positions", snapshot.len)));
        }
        for ((state, rows), (dtype, row, row_bytes)) in self.states.iter().zip(&snapshot.states).zip(expected) {
            if rows.dtype != dtype || rows.row != row {
                return Err(StateError::Snapshot(format!(
                    "it has rows of {} {:?}, the session of {dtype} {row:?}",
                    rows.dtype, rows.row
                )));
            }
            let kept = snapshot.len.checked_sub(rows.first);
            if kept.and_then(|kept| kept.checked_mul(row_bytes)) != Some(rows.bytes.len()) {
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
        Ok(())
    }

    /// The first position of a snapshot's rows that a state has room for.
    #[must_use]
    pub fn first_restored(&self, state: usize, snapshot: &SlotSnapshot, rows: &StateRows) -> usize {
        let state = &self.states[state];
        rows.first.max(if state.window.is_some() { snapshot.len.saturating_sub(state.capacity) } else { 0 })
    }

    /// Records that a slot has the rows of a snapshot.
    pub fn restored(&mut self, slot: usize, snapshot: &SlotSnapshot) {
        for (i, rows) in snapshot.states.iter().enumerate() {
            self.states[i].first[slot] = self.first_restored(i, snapshot, rows);
        }
        self.len[slot] = snapshot.len;
    }

    /// Checks a step's slots and positions before it runs: each row's slot exists; the positions of a slot increase, leave no gap after what it
    /// holds and are inside every capacity; a ring is only continued, and no step writes more rows than it can take.
    ///
    /// # Errors
    /// The first row that is wrong.
    pub fn check_step(&self, positions: &[i32], slots: &[i32]) -> Result<(), OpError> {
        let mut len = self.len.clone();
        let mut next = vec![0usize; self.count()];
        let mut rows = vec![0usize; self.count()];
        let ring = self.states.iter().any(|state| state.window.is_some());
        for (position, slot) in positions.iter().zip(slots) {
            let at = usize::try_from(*slot).ok().filter(|slot| *slot < self.count()).ok_or(OpError::Index {
                what: "slots",
                index: i64::from(*slot),
                len: self.count(),
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
        for (position, slot) in rows(positions, slots) {
            if slot < self.count() {
                self.len[slot] = self.len[slot].max(position + 1);
            }
        }
    }

    /// Records that a step that failed may have written these rows: the slots do not hold them, but rings have lost what lay there.
    pub fn overwritten(&mut self, positions: &[i32], slots: &[i32]) {
        for (position, slot) in rows(positions, slots) {
            if slot < self.count() {
                for state in self.states.iter_mut().filter(|state| state.window.is_some()) {
                    state.first[slot] = state.first[slot].max((position + 1).saturating_sub(state.capacity));
                }
            }
        }
    }
}

/// Positions and slots that are indices.
fn rows<'a>(positions: &'a [i32], slots: &'a [i32]) -> impl Iterator<Item = (usize, usize)> + 'a {
    positions.iter().zip(slots).filter_map(|(p, s)| Some((usize::try_from(*p).ok()?, usize::try_from(*s).ok()?)))
}
