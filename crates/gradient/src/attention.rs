//! Attention over tensors: scores are computed again.

use core_tensor::op::{Binary, Cast, Op, ReduceKind, TensorAttention, Trilu, Unary};
use core_tensor::{DType, Dim, Node, Shape, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};

/// The score of what is not seen: no score that is seen is below it, and it is finite, so that rows that see nothing are numbers.
const UNSEEN: f32 = f32::MIN;

impl Backward {
    /// With `P = softmax(scale Q Kᵀ + mask)` and `O = P V`: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - Σ dP P)`, `dQ = scale dS K`,
    /// `dK = scale dSᵀ Q`.
    pub(crate) fn tensor_attention(
        &mut self,
        op: &TensorAttention,
        node: &Node,
        dy: ValueId,
    ) -> Result<(), GradientError> {
        if self.wants(node, 3) {
            return Err(unsupported(node, " by its mask"));
        }
        let [q, k, v] = [self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?];
        let (q_shape, k_shape) = (self.build.shape(q), self.build.shape(k));
        let [batch, tokens, Dim::Num(heads), _] = &q_shape[..] else {
            return Err(unsupported(node, ": how many heads there are must be known"));
        };
        let Dim::Num(n_kv) = k_shape[2] else {
            return Err(unsupported(node, ": how many heads of keys there are must be known"));
        };
        let (n, group) = (k_shape[1].clone(), heads / n_kv.max(1));
        // Scores: [batch, heads of keys, queries that share them, tokens, n]; the middle two are one for products.
        let scores_shape = vec![batch.clone(), n_kv.into(), group.into(), tokens.clone(), n.clone()];
        let q = self.grouped(q, n_kv, group)?;
        let d_out = self.grouped(dy, n_kv, group)?;
        let k = self.build.transpose(k, vec![0, 2, 1, 3])?;
        let v = self.build.transpose(v, vec![0, 2, 1, 3])?;
        let b = &mut self.build;
        let products = b.matmul(q, k, true)?;
        let mut scores = b.scaled(products, op.scale)?;
        let mut bend = None;
        if let Some(cap) = op.softcap {
            let inner = b.scaled(scores, 1.0 / cap)?;
            let tanh = b.unary(Unary::Tanh, inner)?;
            scores = b.scaled(tanh, cap)?;
            let square = b.square(tanh)?;
            bend = Some(b.rest(1.0, square)?);
        }
        let merged = b.shape(scores);
        scores = b.reshape(scores, &scores_shape)?;
        // Which keys a row sees, as ones and zeros, and whether each row sees any.
        let (mut seen, mut all_see) = (None, true);
        if op.causal {
            let (ones, all) = self.causal(node, tokens, &n)?;
            (seen, all_see) = (Some(ones), all);
        }
        if let Some(mask) = node.inputs.get(3).copied().flatten() {
            let b = &mut self.build;
            // [batch, heads, tokens, n] with ones in front; heads are two extents here.
            let shape = b.shape(mask);
            let mut full: Shape = vec![Dim::Num(1); 4 - shape.len()];
            full.extend(shape);
            let split = if full[1] == Dim::Num(1) { [1, 1] } else { [n_kv, group] };
            let shape = [full[0].clone(), split[0].into(), split[1].into(), full[2].clone(), full[3].clone()];
            let mask = b.reshape(mask, &shape)?;
            let mut visible = mask;
            if b.graph.tensor_type(mask).is_some_and(|(dtype, _)| dtype != DType::Bool) {
                // Numbers are added, however far below 0; infinite ones hide.
                visible = b.compared(Binary::GreaterOrEqual, mask, UNSEEN)?;
                scores = b.add(scores, mask)?;
            }
            let ones = b.op(Op::Cast(Cast { to: DType::F32 }), &[visible])?;
            seen = Some(match seen {
                Some(causal) => b.mul(causal, ones)?,
                None => ones,
            });
            all_see = false;
        }
        let b = &mut self.build;
        if let Some(ones) = seen {
            let sees = b.compared(Binary::Greater, ones, 0.5)?;
            let least = b.scalar(UNSEEN)?;
            scores = b.choose(sees, scores, least)?;
        }
        let mut p = b.op(Op::Softmax(core_tensor::op::Softmax), &[scores])?;
        if let Some(ones) = seen.filter(|_| !all_see) {
            // Rows that see nothing have shared the whole among what they do not see, and those whose scores are all as low a part of it.
            p = b.mul(p, ones)?;
            let whole = b.reduce(ReduceKind::Sum, p)?;
            let least = b.scalar(f32::MIN_POSITIVE)?;
            let whole = b.binary(Binary::Max, whole, least)?;
            p = b.div(p, whole)?;
        }
        let p = b.reshape(p, &merged)?;
        if self.wants(node, 2) {
            let b = &mut self.build;
            let turned = b.transpose_last(p)?;
            let dv = b.matmul(turned, d_out, false)?;
            let dv = b.transpose(dv, vec![0, 2, 1, 3])?;
            self.give(node, 2, dv)?;
        }
        if !self.wants(node, 0) && !self.wants(node, 1) {
            return Ok(());
        }
        let b = &mut self.build;
        let dp = b.matmul(d_out, v, true)?;
        let along = b.mul(dp, p)?;
        let along = b.reduce(ReduceKind::Sum, along)?;
        let across = b.sub(dp, along)?;
        let mut ds = b.mul(across, p)?;
        if let Some(bend) = bend {
            ds = b.mul(ds, bend)?;
        }
        ds = b.scaled(ds, op.scale)?;
        if self.wants(node, 0) {
            let b = &mut self.build;
            let dq = b.matmul(ds, k, false)?;
            let shape = b.shape(dq);
            let dq = b.reshape(dq, &[batch.clone(), n_kv.into(), group.into(), tokens.clone(), shape[3].clone()])?;
            let dq = b.transpose(dq, vec![0, 3, 1, 2, 4])?;
            let dq = b.reshape(dq, &q_shape)?;
            self.give(node, 0, dq)?;
        }
        if self.wants(node, 1) {
            let b = &mut self.build;
            let turned = b.transpose_last(ds)?;
            let dk = b.matmul(turned, q, false)?;
            let dk = b.transpose(dk, vec![0, 2, 1, 3])?;
            self.give(node, 1, dk)?;
        }
        Ok(())
    }

    /// `[batch, tokens, heads, dim]` as `[batch, heads of keys, queries of each · tokens, dim]`.
    fn grouped(&mut self, x: ValueId, n_kv: usize, group: usize) -> Result<ValueId, GradientError> {
        let shape = self.build.shape(x);
        let (batch, tokens, dim) = (shape[0].clone(), shape[1].clone(), shape[3].clone());
        let x = self.build.reshape(x, &[batch.clone(), tokens.clone(), n_kv.into(), group.into(), dim.clone()])?;
        let x = self.build.transpose(x, vec![0, 2, 3, 1, 4])?;
        self.build.reshape(x, &[batch, n_kv.into(), Dim::Num(group).mul(tokens), dim])
    }

    /// Which keys a query sees, ones and zeros `[tokens, n]`, and whether each query sees any.
    fn causal(&mut self, node: &Node, tokens: &Dim, n: &Dim) -> Result<(ValueId, bool), GradientError> {
        let k = match (tokens, n) {
            (tokens, n) if tokens == n => 0,
            (Dim::Num(tokens), Dim::Num(n)) => *n as i64 - *tokens as i64,
            _ => return Err(unsupported(node, ": how many more keys than queries there are must be known")),
        };
        let one = self.build.scalar(1.0)?;
        let ones = self.build.expand(one, &[tokens.clone(), n.clone()])?;
        Ok((self.build.op(Op::Trilu(Trilu { upper: false, k }), &[ones])?, k >= 0))
    }
}
