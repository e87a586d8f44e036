//! Faults that tests plant below everything else: no driver at hand loses its device or runs out of memory when asked to.

use std::sync::Mutex;
use std::sync::PoisonError;

/// A fault that the next operation of its kind meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An allocation fails as if the heap were full.
    OutOfMemory,
    /// A submission fails as if the device were lost; so do all that follow.
    DeviceLost,
    /// A submission does not end within its time.
    Timeout,
    /// A barrier is left out of what is recorded: what the validation layer has to notice.
    MissingBarrier,
}

/// Faults to come.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<(Fault, usize)>>);

impl Faults {
    /// Plants a fault: `after` operations of its kind succeed before.
    pub(super) fn plant(&self, fault: Fault, after: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((fault, after));
    }

    /// Whether an operation meets one of these faults now.
    pub(super) fn meet(&self, kinds: &[Fault]) -> Option<Fault> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut met = None;
        faults.retain_mut(|(fault, after)| {
            if !kinds.contains(fault) || met.is_some() {
                return true;
            }
            if *after > 0 {
                *after -= 1;
                return true;
            }
            met = Some(*fault);
            // A lost device stays lost.
            *fault == Fault::DeviceLost
        });
        met
    }
}
