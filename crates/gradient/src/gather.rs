//! Gathering.

use core_tensor::op::{Cast, Gather, Op, ScatterNd, ScatterReduction};
use core_tensor::{DType, Dim, Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

impl Backward {
    /// Rows are added up where they were taken.
    pub(crate) fn gather(&mut self, op: Gather, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let (table, indices) = (self.input(node, 0)?, self.input(node, 1)?);
        let build = &mut self.build;
        let shape = build.shape(table);
        let rank = shape.len() as isize;
        if op.axis != 0 && op.axis != -rank {
            return Err(unsupported(node, " along any but the first extent"));
        }
        let zero = build.scalar(0.0)?;
        let zeros = build.expand(zero, &shape)?;
        let indices = build.op(Op::Cast(Cast { to: DType::I64 }), &[indices])?;
        let tuples: Vec<Dim> = build.shape(indices).into_iter().chain([Dim::Num(1)]).collect();
        let indices = build.reshape(indices, &tuples)?;
        let op = Op::ScatterNd(ScatterNd { reduction: ScatterReduction::Add });
        let dx = build.op(op, &[zeros, indices, dy])?;
        self.give(node, 0, dx)
    }
}
