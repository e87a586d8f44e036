//! Softmax and reductions along the last extent.

use core_tensor::op::{Binary, ReduceKind, Unary};
use core_tensor::{Dim, Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

impl Backward {
    /// `dx = y (dy - Σ dy y)`
    pub(crate) fn softmax(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let y = node.outputs[0];
        let build = &mut self.build;
        let along = build.mul(dy, y)?;
        let along = build.reduce(ReduceKind::Sum, along)?;
        let across = build.sub(dy, along)?;
        let dx = build.mul(across, y)?;
        self.give(node, 0, dx)
    }

    /// `dx = dy - e^y Σ dy`
    pub(crate) fn log_softmax(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let y = node.outputs[0];
        let build = &mut self.build;
        let sum = build.reduce(ReduceKind::Sum, dy)?;
        let y = build.unary(Unary::Exp, y)?;
        let share = build.mul(y, sum)?;
        let dx = build.sub(dy, share)?;
        self.give(node, 0, dx)
    }

    pub(crate) fn reduce(&mut self, kind: ReduceKind, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let build = &mut self.build;
        let shape = build.shape(x);
        let dx = match kind {
            ReduceKind::Sum => build.expand(dy, &shape)?,
            ReduceKind::Mean => {
                let dy = match shape.last().and_then(Dim::as_num) {
                    Some(n) => build.scaled(dy, 1.0 / n.max(1) as f32)?,
                    None => {
                        // How many there are is the sum of as many ones.
                        let one = build.scalar(1.0)?;
                        let ones = build.expand(one, shape.last().map(std::slice::from_ref).unwrap_or_default())?;
                        let count = build.reduce(ReduceKind::Sum, ones)?;
                        build.div(dy, count)?
                    }
                };
                build.expand(dy, &shape)?
            }
            ReduceKind::L1 => {
                let sign = build.unary(Unary::Sign, x)?;
                build.mul(sign, dy)?
            }
            ReduceKind::L2 => {
                // A row of zeros is a corner, where the slope is said to be 0.
                let some = build.compared(Binary::Greater, y, 0.0)?;
                let one = build.scalar(1.0)?;
                let length = build.choose(some, y, one)?;
                let unit = build.div(x, length)?;
                build.mul(unit, dy)?
            }
            ReduceKind::SumSquare => {
                let double = build.scaled(x, 2.0)?;
                build.mul(double, dy)?
            }
            ReduceKind::LogSum => {
                let sum = build.unary(Unary::Exp, y)?;
                let dy = build.div(dy, sum)?;
                build.expand(dy, &shape)?
            }
            ReduceKind::LogSumExp => {
                let below = build.sub(x, y)?;
                let share = build.unary(Unary::Exp, below)?;
                build.mul(share, dy)?
            }
            ReduceKind::Max | ReduceKind::Min | ReduceKind::Prod => return Err(unsupported(node, "")),
        };
        self.give(node, 0, dx)
    }
}
