//! Reductions by the numbers that `shaders/reduce.comp` knows them by.

use core_tensor::op::ReduceKind;

/// The most elements that `shaders/topk.comp` finds in a row.
pub(crate) const LARGEST_K: usize = 256;

pub(crate) const SOFTMAX: u32 = 0;
pub(crate) const ARG_MAX: u32 = 4;
pub(crate) const LOG_SOFTMAX: u32 = 12;

/// A reduction's number.
pub(crate) fn reduce_code(kind: ReduceKind) -> u32 {
    match kind {
        ReduceKind::Sum => 1,
        ReduceKind::Mean => 2,
        ReduceKind::Max => 3,
        ReduceKind::Min => 5,
        ReduceKind::Prod => 6,
        ReduceKind::L1 => 7,
        ReduceKind::L2 => 8,
        ReduceKind::SumSquare => 9,
        ReduceKind::LogSum => 10,
        ReduceKind::LogSumExp => 11,
    }
}
