//! Reductions by the numbers that `shaders/reduce.comp` knows them by.

use core_tensor::op::ReduceKind;

/// The most elements that `shaders/topk.comp` finds in a row.
pub(crate) const LARGEST_K: usize = 256;

pub(crate) const SOFTMAX: u32 = 0;
pub(crate) const ARG_MAX: u32 = 4;

/// `None` where shaders do not know the reduction.
pub(crate) fn reduce_code(kind: ReduceKind) -> Option<u32> {
    Some(match kind {
        ReduceKind::Sum => 1,
        ReduceKind::Mean => 2,
        ReduceKind::Max => 3,
        _ => return None,
    })
}
