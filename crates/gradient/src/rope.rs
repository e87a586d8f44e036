//! Rotary position embedding.

use core_tensor::op::{Op, RotaryEmbedding};
use core_tensor::{Dim, Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

impl Backward {
    /// A rotation's transpose turns back. Between two reflections, which change the sign of the second element of each pair, the same rotation does: so
    /// the positions stay the graph's own.
    pub(crate) fn rotary_embedding(
        &mut self,
        op: &RotaryEmbedding,
        node: &Node,
        dy: ValueId,
    ) -> Result<(), GradientError> {
        if self.wants(node, 2) {
            return Err(unsupported(node, " by its frequency factors"));
        }
        let Some(Dim::Num(length)) = self.build.shape(dy).last().cloned() else {
            return Err(unsupported(node, ": the length of a head must be known"));
        };
        let mut signs = vec![1.0; length];
        for pair in 0..op.rotary_dims / 2 {
            signs[if op.interleaved { 2 * pair + 1 } else { pair + op.rotary_dims / 2 }] = -1.0;
        }
        let signs = self.build.vector("signs", &signs)?;
        let reflected = self.build.mul(dy, signs)?;
        let mut inputs = vec![Some(reflected)];
        inputs.extend_from_slice(&node.inputs[1..]);
        let turned = self.build.graph.add_node(&self.build.part, Op::RotaryEmbedding(*op), inputs)?;
        let dx = self.build.mul(turned[0], signs)?;
        self.give(node, 0, dx)
    }
}
