//! Functions of two and three operands, broadcast.

use core_tensor::op::{Binary, Unary};
use core_tensor::{Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

impl Backward {
    pub(crate) fn binary(&mut self, op: Binary, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let (a, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        for input in [0, 1] {
            if !self.wants(node, input) {
                continue;
            }
            let build = &mut self.build;
            let gradient = match (op, input) {
                (Binary::Add, _) | (Binary::Sub, 0) => dy,
                (Binary::Sub, _) => build.unary(Unary::Neg, dy)?,
                (Binary::Mul, 0) => build.mul(dy, b)?,
                (Binary::Mul, _) => build.mul(dy, a)?,
                (Binary::Div, 0) => build.div(dy, b)?,
                (Binary::Div, _) => {
                    let part = build.div(y, b)?;
                    let part = build.mul(dy, part)?;
                    build.unary(Unary::Neg, part)?
                }
                (Binary::Min | Binary::Max, _) => {
                    // Of equal operands the first is the one.
                    let side = if op == Binary::Min { Binary::LessOrEqual } else { Binary::GreaterOrEqual };
                    let first = build.binary(side, a, b)?;
                    let zero = build.scalar(0.0)?;
                    let (yes, no) = if input == 0 { (dy, zero) } else { (zero, dy) };
                    build.choose(first, yes, no)?
                }
                (Binary::Pow, 0) => {
                    let less = build.shifted(b, -1.0)?;
                    let power = build.binary(Binary::Pow, a, less)?;
                    let slope = build.mul(b, power)?;
                    // Any base to the power of 0 is 1, 0 as well.
                    let constant = build.compared(Binary::Equal, b, 0.0)?;
                    let zero = build.scalar(0.0)?;
                    let slope = build.choose(constant, zero, slope)?;
                    build.mul(dy, slope)?
                }
                (Binary::Pow, _) => {
                    // Where a is 0, so is the slope, and the logarithm is not to spoil it.
                    let positive = build.compared(Binary::Greater, a, 0.0)?;
                    let (zero, one) = (build.scalar(0.0)?, build.scalar(1.0)?);
                    let base = build.choose(positive, a, one)?;
                    let log = build.unary(Unary::Log, base)?;
                    let slope = build.mul(y, log)?;
                    let slope = build.choose(positive, slope, zero)?;
                    build.mul(dy, slope)?
                }
                (Binary::PRelu, _) => {
                    let below = build.compared(Binary::Less, a, 0.0)?;
                    let (low, high) = match input {
                        0 => (build.mul(dy, b)?, dy),
                        _ => (build.mul(dy, a)?, build.scalar(0.0)?),
                    };
                    build.choose(below, low, high)?
                }
                _ => return Err(unsupported(node, "")),
            };
            self.give(node, input, gradient)?;
        }
        Ok(())
    }

    /// Of a choice between operands.
    pub(crate) fn choice(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let condition = self.input(node, 0)?;
        for input in [1, 2] {
            if self.wants(node, input) {
                let zero = self.build.scalar(0.0)?;
                let (yes, no) = if input == 1 { (dy, zero) } else { (zero, dy) };
                let gradient = self.build.choose(condition, yes, no)?;
                self.give(node, input, gradient)?;
            }
        }
        Ok(())
    }
}
