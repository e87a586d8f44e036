//! Normalizations.

use core_tensor::op::{LayerNormalization, ReduceKind, RmsNormalization, Unary};
use core_tensor::{Node, ValueId};

use crate::GradientError;
use crate::backward::Backward;

impl Backward {
    /// `1 / sqrt(mean(x²) + epsilon)`
    fn inverse_root(&mut self, x: ValueId, epsilon: f32) -> Result<ValueId, GradientError> {
        let build = &mut self.build;
        let squares = build.square(x)?;
        let mean = build.reduce(ReduceKind::Mean, squares)?;
        let mean = build.shifted(mean, epsilon)?;
        let root = build.unary(Unary::Sqrt, mean)?;
        build.unary(Unary::Reciprocal, root)
    }

    /// Of `y = x̂ w` with `x̂ = x r`: `dx = r (g - x̂ mean(g x̂))` with `g = dy w`.
    pub(crate) fn rms_normalization(
        &mut self,
        op: &RmsNormalization,
        node: &Node,
        dy: ValueId,
    ) -> Result<(), GradientError> {
        let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
        let r = self.inverse_root(x, op.epsilon)?;
        let normal = self.build.mul(x, r)?;
        if self.wants(node, 0) {
            let build = &mut self.build;
            let g = build.mul(dy, w)?;
            let along = build.mul(g, normal)?;
            let along = build.reduce(ReduceKind::Mean, along)?;
            let along = build.mul(normal, along)?;
            let across = build.sub(g, along)?;
            let dx = build.mul(across, r)?;
            self.give(node, 0, dx)?;
        }
        if self.wants(node, 1) {
            let dw = self.build.mul(dy, normal)?;
            self.give(node, 1, dw)?;
        }
        Ok(())
    }

    /// The same with the mean taken off first: `dx = r (g - mean(g) - x̂ mean(g x̂))`.
    pub(crate) fn layer_normalization(
        &mut self,
        op: &LayerNormalization,
        node: &Node,
        dy: ValueId,
    ) -> Result<(), GradientError> {
        let x = self.input(node, 0)?;
        let mean = self.build.reduce(ReduceKind::Mean, x)?;
        let centred = self.build.sub(x, mean)?;
        let r = self.inverse_root(centred, op.epsilon)?;
        let normal = self.build.mul(centred, r)?;
        if self.wants(node, 0) {
            let weight = node.inputs.get(1).copied().flatten();
            let build = &mut self.build;
            let g = match weight {
                Some(w) => build.mul(dy, w)?,
                None => dy,
            };
            let level = build.reduce(ReduceKind::Mean, g)?;
            let along = build.mul(g, normal)?;
            let along = build.reduce(ReduceKind::Mean, along)?;
            let along = build.mul(normal, along)?;
            let across = build.sub(g, level)?;
            let across = build.sub(across, along)?;
            let dx = build.mul(across, r)?;
            self.give(node, 0, dx)?;
        }
        if self.wants(node, 1) {
            let dw = self.build.mul(dy, normal)?;
            self.give(node, 1, dw)?;
        }
        if self.wants(node, 2) {
            self.give(node, 2, dy)?;
        }
        Ok(())
    }
}
