//! Loops with the widest vectors of the machine.

/// Calls `f`, compiled for the instructions that this machine has.
///
/// Only what is inlined into `f` is: mark closures `#[inline(always)]`. Given to `dispatch` itself a closure that consumes nothing would be called through a
/// function of its own, which is compiled for the oldest machine.
#[inline(always)]
pub(crate) fn widest<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
