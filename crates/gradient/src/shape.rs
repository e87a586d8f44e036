//! What moves elements: gradients move back.

use core_tensor::op::{Cast, Op, Pad, PadMode, Slice, Transpose};
use core_tensor::{DType, Dim, Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

/// An axis that may count from the end.
fn axis(axis: isize, rank: usize) -> usize {
    if axis < 0 { rank.saturating_add_signed(axis) } else { axis as usize }
}

impl Backward {
    pub(crate) fn reshape(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let shape = self.build.shape(self.input(node, 0)?);
        let dx = self.build.reshape(dy, &shape)?;
        self.give(node, 0, dx)
    }

    pub(crate) fn transpose(&mut self, op: &Transpose, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let mut back = vec![0; op.perm.len()];
        op.perm.iter().enumerate().for_each(|(to, from)| back[*from] = to);
        let dx = self.build.transpose(dy, back)?;
        self.give(node, 0, dx)
    }

    pub(crate) fn slice(&mut self, op: &Slice, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        if op.step != 1 {
            return Err(unsupported(node, " by steps other than 1"));
        }
        let shape = self.build.shape(self.input(node, 0)?);
        let at = axis(op.axis, shape.len());
        let mut pads = vec![(Dim::Num(0), Dim::Num(0)); shape.len()];
        pads[at] = (op.start.clone(), shape[at].clone().sub(op.start.clone().add(op.len.clone())));
        let dx = self.build.op(Op::Pad(Pad { pads, mode: PadMode::Constant }), &[dy])?;
        self.give(node, 0, dx)
    }

    pub(crate) fn concat(&mut self, along: isize, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let mut start = Dim::Num(0);
        for input in 0..node.inputs.len() {
            let shape = self.build.shape(self.input(node, input)?);
            let at = axis(along, shape.len());
            let len = shape[at].clone();
            if self.wants(node, input) {
                let op = Slice { axis: at as isize, start: start.clone(), len: len.clone(), step: 1 };
                let dx = self.build.op(Op::Slice(op), &[dy])?;
                self.give(node, input, dx)?;
            }
            start = start.add(len);
        }
        Ok(())
    }

    /// The sum over what was expanded.
    pub(crate) fn expand(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        self.give(node, 0, dy)
    }

    pub(crate) fn pad(&mut self, op: &Pad, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        if op.mode != PadMode::Constant || self.wants(node, 1) {
            return Err(unsupported(node, " but with a constant"));
        }
        let shape = self.build.shape(self.input(node, 0)?);
        let mut dx = dy;
        for (i, ((before, after), len)) in op.pads.iter().zip(shape).enumerate() {
            if *before != Dim::Num(0) || *after != Dim::Num(0) {
                let op = Slice { axis: i as isize, start: before.clone(), len, step: 1 };
                dx = self.build.op(Op::Slice(op), &[dx])?;
            }
        }
        self.give(node, 0, dx)
    }

    pub(crate) fn trilu(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let dx = self.build.op(node.op.clone(), &[dy])?;
        self.give(node, 0, dx)
    }

    pub(crate) fn cast(&mut self, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let x = self.input(node, 0)?;
        let from = self.build.graph.tensor_type(x).map_or(DType::F32, |(dtype, _)| dtype);
        let dx = if from == DType::F32 && self.build.graph.tensor_type(dy).is_some_and(|(to, _)| to == from) {
            dy
        } else {
            self.build.op(Op::Cast(Cast { to: from }), &[dy])?
        };
        self.give(node, 0, dx)
    }
}
