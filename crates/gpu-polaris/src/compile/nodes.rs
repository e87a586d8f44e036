//! One node after the other.

use core_tensor::op::{CumSum, Op};
use core_tensor::{BackendError, DType, ValueId};

use super::{Compiler, ELEMENT_THREADS, Waiting, moves};
use crate::elementwise::integer_kind;
use crate::plan::{Dispatch, Memory};
use crate::reduce::{ARG_MAX, LOG_SOFTMAX, SOFTMAX, reduce_code};
use crate::step::product;

impl Compiler<'_> {
    pub(super) fn node(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        let pair = self.pair_of(y);
        match &node.op {
            Op::MatMul(op) => {
                // A product of a gated pair is computed with the activation.
                let paired = self.weights.analysis.pairs.values().any(|(gate, up)| *gate == y || *up == y);
                if !paired {
                    self.mat_mul(i, *op)?;
                }
            }
            Op::RmsNormalization(_) if self.feeds_products(y) => {
                self.waiting.insert(y, Waiting::Norm(i));
            }
            Op::LayerNormalization(_) if self.feeds_products(y) && self.is_whole_norm(i) => {
                self.waiting.insert(y, Waiting::Norm(i));
            }
            Op::RmsNormalization(_) | Op::LayerNormalization(_) => self.norm(i)?,
            Op::GatedActivation(_) => match pair {
                Some((gate, up)) => self.pair(i, gate, up)?,
                None if self.feeds_products(y) => {
                    self.waiting.insert(y, Waiting::Gated(i));
                }
                None => self.gated(i)?,
            },
            Op::RotaryEmbedding(_) => self.rotate(i)?,
            Op::StateWrite(_) => self.state_write(i)?,
            Op::Attention(op) => self.attention(i, op)?,
            Op::TensorAttention(op) => self.tensor_attention(i, *op)?,
            Op::Gather(op) => self.gather(i, *op)?,
            Op::Unary(op) => self.unary(i, *op)?,
            Op::Binary(op) => self.binary(i, *op)?,
            Op::Where(_) => self.choose(i)?,
            Op::Softmax(_) => self.reduce(i, SOFTMAX)?,
            Op::LogSoftmax(_) => self.reduce(i, LOG_SOFTMAX)?,
            Op::Reduce(op) if self.tensor(y)?.0 == DType::F32 => self.reduce(i, reduce_code(op.kind))?,
            Op::Reduce(op) => self.reduce_integers(i, reduce_code(op.kind))?,
            Op::ArgMax(_) => self.reduce(i, ARG_MAX)?,
            Op::CumSum(op) => self.running_sum(i, *op)?,
            Op::TopK(op) => {
                let x = self.input(node, 0)?;
                let (rows, n) = self.rows(x)?;
                let words = [self.values.word(&rows), self.values.word(&n), op.k as u32];
                let dispatch = Dispatch::new(&node.name, "topk", ELEMENT_THREADS)
                    .write(2, Memory::Value(y))
                    .write(3, Memory::Value(node.outputs[1]))
                    .push(words)
                    .grid(self.row_grid(&rows));
                let dispatch = self.reads(dispatch, 1, x)?;
                self.emit(dispatch);
            }
            Op::Reshape(_) => self.reshape(i)?,
            Op::Transpose(op) => self.transpose(i, op)?,
            Op::Slice(op) => self.slice(i, op)?,
            Op::Expand(_) => self.expand(i)?,
            Op::Pad(op) => self.pad(i, op)?,
            Op::Concat(op) => self.concat(i, op)?,
            Op::Cast(op) => self.cast(i, *op)?,
            Op::GroupNormalization(op) => self.group_norm(i, *op)?,
            Op::Conv(op) => self.conv(i, &op.window)?,
            Op::ConvTranspose(op) => self.conv(i, &op.window)?,
            Op::Pool(op) => self.pool(i, op)?,
            Op::GatherElements(op) => self.gather_elements(i, *op)?,
            Op::GatherNd(op) => self.gather_nd(i, *op)?,
            Op::ScatterElements(op) => self.scatter_elements(i, *op)?,
            Op::ScatterNd(op) => self.scatter_nd(i, op.reduction)?,
            Op::Trilu(op) => self.trilu(i, *op)?,
            Op::Range(op) => self.range(i, op)?,
            Op::Resize(op) => self.resize(i, op)?,
            Op::GridSample(op) => self.grid_sample(i, *op)?,
            Op::QuantizeLinear(op) => self.quantize(i, *op)?,
            Op::DequantizeLinear(op) => self.dequantize(i, *op)?,
            Op::DynamicQuantizeLinear(_) => self.quantize_by_range(i)?,
            Op::MatMulInteger(_) => self.mat_mul_integer(i)?,
            _ => {
                return Err(BackendError::Unsupported {
                    node: node.name.clone(),
                    op: node.op.name(),
                    reason: "there is no kernel for it".into(),
                });
            }
        }
        Ok(())
    }

    /// Whether a normalization has both a weight and a bias.
    fn is_whole_norm(&self, i: usize) -> bool {
        self.graph.nodes()[i].inputs.iter().flatten().count() == 3
    }

    pub(super) fn norm(&mut self, i: usize) -> Result<(), BackendError> {
        let y = self.graph.nodes()[i].outputs[0];
        self.norm_into(i, true, Memory::Value(y))
    }

    /// A normalization, or only what a row is multiplied with (and, before that, less).
    pub(super) fn norm_into(&mut self, i: usize, whole: bool, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let x = self.input(node, 0)?;
        self.settle(x)?;
        let (rows, n) = self.rows(x)?;
        let grid = self.row_grid(&rows);
        let mut words = vec![self.values.word(&rows), self.values.word(&n)];
        let (w, b) = (node.inputs.get(1).copied().flatten(), node.inputs.get(2).copied().flatten());
        let dispatch = match node.op {
            Op::RmsNormalization(op) => {
                words.push(op.epsilon.to_bits());
                let dispatch = Dispatch::new(&node.name, "norm", ELEMENT_THREADS).constant(1, u32::from(whole));
                self.reads(dispatch, 2, w.ok_or(BackendError::Mismatch("weights and graph"))?)?.write(3, to)
            }
            Op::LayerNormalization(op) => {
                words.push(op.epsilon.to_bits());
                let parts = u32::from(w.is_some()) | u32::from(b.is_some()) << 1;
                let mut dispatch = Dispatch::new(&node.name, "layer_norm", self.row_threads(&n))
                    .constant(1, u32::from(whole))
                    .constant(2, parts)
                    .write(4, to);
                for (binding, id) in [(2, w), (3, b)] {
                    dispatch = match id {
                        Some(id) => self.reads(dispatch, binding, id)?,
                        None => dispatch.read(binding, Memory::Unused),
                    };
                }
                dispatch
            }
            _ => return Err(BackendError::Mismatch("normalization and node")),
        };
        let dispatch = dispatch.read(1, self.memory(x)).push(words).grid(grid);
        self.emit(dispatch);
        Ok(())
    }

    fn reduce(&mut self, i: usize, kind: u32) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (rows, n) = self.rows(x)?;
        let words = [self.values.word(&rows), self.values.word(&n)];
        let dispatch = Dispatch::new(&node.name, "reduce", self.row_threads(&n))
            .constant(1, kind)
            .write(2, Memory::Value(y))
            .push(words)
            .grid(self.row_grid(&rows));
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    fn reduce_integers(&mut self, i: usize, kind: u32) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (rows, n) = self.rows(x)?;
        let dtype = self.tensor(x)?.0;
        let words = [self.values.word(&rows), self.values.word(&n), known(integer_kind(dtype))?, kind];
        // As many threads as there are rows at most: few, of which each goes on for long.
        let groups = crate::step::least(rows.div_ceil(64.into()), self.gpu.limits().max_groups as usize);
        let grid = self.values.grid([groups, 1.into(), 1.into()]);
        let dispatch =
            Dispatch::new(&node.name, "reduce_integer", 64).write(2, Memory::Value(y)).push(words).grid(grid);
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    fn running_sum(&mut self, i: usize, op: CumSum) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (_, shape) = self.tensor(x)?;
        let axis = moves::axis(op.axis, shape.len());
        let stride = product(&shape[axis + 1..]);
        let lines = product(&shape[..axis]).mul(stride.clone());
        let words: Vec<u32> = [&lines, &shape[axis], &stride].map(|dim| self.values.word(dim)).into();
        let most = self.gpu.limits().max_groups as usize;
        let groups = crate::step::least(lines.div_ceil(64.into()), most);
        let grid = self.values.grid([groups, 1.into(), 1.into()]);
        let dispatch = Dispatch::new(&node.name, "cumsum", 64)
            .constant(1, u32::from(op.exclusive))
            .constant(2, u32::from(op.reverse))
            .write(2, Memory::Value(y))
            .push(words)
            .grid(grid);
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    /// The value of an input that may be left out.
    pub(super) fn optional(&self, i: usize, input: usize) -> Option<ValueId> {
        self.graph.nodes()[i].inputs.get(input).copied().flatten()
    }
}

/// What [`super::supports`] has seen to be there.
pub(super) fn known<T>(code: Option<T>) -> Result<T, BackendError> {
    code.ok_or(BackendError::Mismatch("functions and shaders"))
}
