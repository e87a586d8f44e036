//! The states of a model's sequences.

use core_tensor::{SlotSnapshot, StateError};

/// Slots, each a sequence with its own length. Made by [`Model::session`](crate::Model::session), advanced by
/// [`Model::step`](crate::Model::step).
pub struct Session {
    pub(crate) states: Box<dyn core_tensor::Session>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("slots", &self.slots()).field("bytes", &self.byte_len()).finish()
    }
}

impl Session {
    /// Slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.states.slots()
    }

    /// Bytes of all states.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.states.byte_len()
    }

    /// Positions that a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.states.len(slot)
    }

    /// Forgets all positions of a slot from `len` on.
    ///
    /// # Errors
    /// When the slot holds fewer, or a sliding window has moved past what would be needed.
    pub fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.states.truncate(slot, len)
    }

    /// Makes slot `to` hold what slot `from` holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.states.copy_slot(from, to)
    }

    /// A copy of what a slot holds, independent of the backend.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        self.states.save_slot(slot)
    }

    /// Makes a slot hold what a snapshot holds.
    ///
    /// # Errors
    /// When it does not fit; the slot is then unchanged.
    pub fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        self.states.restore_slot(slot, snapshot)
    }
}
