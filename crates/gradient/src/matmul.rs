//! Products of matrices.

use core_tensor::op::MatMul;
use core_tensor::{Dim, Node, ValueId};

use crate::GradientError;
use crate::backward::Backward;

impl Backward {
    /// Of `Y = A·B`: `dA = dY·Bᵀ`, `dB = Aᵀ·dY`.
    pub(crate) fn matmul(&mut self, op: MatMul, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let (mut a, b) = (self.input(node, 0)?, self.input(node, 1)?);
        let build = &mut self.build;
        let (a_shape, b_shape) = (build.shape(a), build.shape(b));
        let (mut a_rows, mut dy) = (a_shape.clone(), dy);
        if let [k] = &a_shape[..] {
            // A vector is a matrix of one row, which the result lacks.
            a_rows = vec![Dim::Num(1), k.clone()];
            a = build.reshape(a, &a_rows)?;
            let mut shape = build.shape(dy);
            let at = shape.len() - 1;
            shape.insert(at, Dim::Num(1));
            dy = build.reshape(dy, &shape)?;
        } else if b_shape.len() == 2 && a_shape.len() > 2 {
            // One matrix for all batches: their rows are rows of one product.
            let flat = |shape: &[Dim]| {
                let (last, rest) =
                    shape.split_last().map_or((Dim::Num(1), &[][..]), |(last, rest)| (last.clone(), rest));
                vec![rest.iter().cloned().fold(Dim::Num(1), Dim::mul), last]
            };
            (a_rows, a) = (flat(&a_shape), build.reshape(a, &flat(&a_shape))?);
            let shape = flat(&build.shape(dy));
            dy = build.reshape(dy, &shape)?;
        }
        if self.wants(node, 0) {
            let b = self.build.floats(b)?;
            let da = self.build.matmul(dy, b, !op.transpose_b)?;
            if a_rows == a_shape {
                self.give(node, 0, da)?;
            } else {
                // What broadcast among the batches is summed before the shape is A's again.
                let ambiguous = |reason: String| crate::backward::unsupported(node, &format!(": {reason}"));
                let da = self.build.sum_to(da, &a_rows, ambiguous)?;
                let da = self.build.reshape(da, &a_shape)?;
                self.give(node, 0, da)?;
            }
        }
        if self.wants(node, 1) {
            let (left, right) = if op.transpose_b { (dy, a) } else { (a, dy) };
            let left = self.build.transpose_last(left)?;
            let db = self.build.matmul(left, right, false)?;
            self.give(node, 1, db)?;
        }
        Ok(())
    }
}
