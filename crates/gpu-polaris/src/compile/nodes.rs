//! One node after the other.

use core_tensor::op::Op;
use core_tensor::{BackendError, DType, Dim, ValueId};

use super::{Compiler, ELEMENT_THREADS, Waiting};
use crate::analysis::is_table;
use crate::elementwise::{binary_code, unary_code};
use crate::plan::{Dispatch, Memory};
use crate::reduce::{ARG_MAX, SOFTMAX, reduce_code};
use crate::step::product;

impl Compiler<'_> {
    pub(super) fn node(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let name = node.name.as_str();
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
            Op::RmsNormalization(_) => {
                if self.feeds_products(y) {
                    self.waiting.insert(y, Waiting::Norm(i));
                } else {
                    self.norm(i)?;
                }
            }
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
            Op::Gather(_) => self.gather(i)?,
            Op::Unary(op) => {
                let x = self.input(node, 0)?;
                self.settle(x)?;
                let (from, count) = (self.memory(x), self.count(y)?);
                self.in_place(y, x, i);
                let dispatch = Dispatch::new(name, "unary", ELEMENT_THREADS)
                    .constant(1, known(unary_code(*op))?)
                    .read(1, from)
                    .write(2, self.memory(y))
                    .push([self.values.word(&count)])
                    .grid(self.linear_grid(&count));
                self.emit(dispatch);
            }
            Op::Binary(op) => self.binary(i, known(binary_code(*op))?)?,
            Op::Softmax(_) => self.reduce(i, SOFTMAX)?,
            Op::Reduce(op) => self.reduce(i, known(reduce_code(op.kind))?)?,
            Op::ArgMax(_) => self.reduce(i, ARG_MAX)?,
            Op::TopK(op) => {
                let x = self.input(node, 0)?;
                let (rows, n) = self.rows(x)?;
                let words = [self.values.word(&rows), self.values.word(&n), op.k as u32];
                let dispatch = Dispatch::new(name, "topk", ELEMENT_THREADS)
                    .write(2, Memory::Value(y))
                    .write(3, Memory::Value(node.outputs[1]))
                    .push(words)
                    .grid(self.row_grid(&rows));
                let dispatch = self.reads(dispatch, 1, x)?;
                self.emit(dispatch);
            }
            Op::Reshape(_) => {
                let x = self.input(node, 0)?;
                self.settle(x)?;
                if matches!(self.memory(x), Memory::Value(_)) {
                    // The same bytes under another shape.
                    self.root[y.index()] = self.root[x.index()];
                } else {
                    self.copy(name, x, y)?;
                }
            }
            Op::Transpose(op) => {
                let x = self.input(node, 0)?;
                let (dtype, shape) = self.tensor(x)?;
                let count = product(&shape);
                let word = if dtype.packing().1 == 2 { "uint16_t" } else { "uint" };
                let mut push = vec![self.values.word(&count)];
                for d in 0..8 {
                    push.push(shape.get(d).map_or(1, |dim| self.values.word(dim)));
                }
                push.extend((0..8).map(|d| op.perm.get(d).map_or(0, |at| *at as u32)));
                let dispatch = Dispatch::new(name, format!("transpose.{word}"), ELEMENT_THREADS)
                    .constant(1, shape.len() as u32)
                    .write(2, Memory::Value(y))
                    .push(push)
                    .grid(self.linear_grid(&count));
                let dispatch = self.reads(dispatch, 1, x)?;
                self.emit(dispatch);
            }
            Op::Slice(op) => {
                let x = self.input(node, 0)?;
                let (_, shape) = self.tensor(x)?;
                let axis = axis(op.axis, shape.len());
                let inner = product(&shape[axis + 1..]);
                let run = op.len.clone().mul(inner.clone());
                let stride = shape[axis].clone().mul(inner.clone());
                let first = op.start.clone().mul(inner);
                self.runs(
                    name,
                    x,
                    y,
                    (product(&shape[..axis]).mul(run.clone()), run.clone()),
                    (first, stride),
                    (0.into(), run),
                )?;
            }
            Op::Concat(op) => {
                let (_, shape) = self.tensor(y)?;
                let axis = axis(op.axis, shape.len());
                let inner = product(&shape[axis + 1..]);
                let stride = shape[axis].clone().mul(inner.clone());
                let mut first = Dim::Num(0);
                for x in node.inputs.iter().copied().flatten() {
                    let (_, part) = self.tensor(x)?;
                    let run = part[axis].clone().mul(inner.clone());
                    let extents = (product(&part), run.clone());
                    self.runs(name, x, y, extents, (0.into(), run.clone()), (first.clone(), stride.clone()))?;
                    first = first.add(run);
                }
            }
            Op::Cast(op) => {
                let x = self.input(node, 0)?;
                let (from, _) = self.tensor(x)?;
                if from == op.to {
                    self.copy(name, x, y)?;
                } else {
                    let count = self.count(x)?;
                    let shader = format!("cast.{}x{}", cast_code(from), cast_code(op.to));
                    let dispatch = Dispatch::new(name, shader, ELEMENT_THREADS)
                        .write(2, Memory::Value(y))
                        .push([self.values.word(&count)])
                        .grid(self.linear_grid(&count));
                    let dispatch = self.reads(dispatch, 1, x)?;
                    self.emit(dispatch);
                }
            }
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

    pub(super) fn norm(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::RmsNormalization(op) = node.op else { return Err(BackendError::Mismatch("normalization and node")) };
        let (x, w, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        self.settle(x)?;
        let (rows, n) = self.rows(x)?;
        let words = [self.values.word(&rows), self.values.word(&n), op.epsilon.to_bits()];
        let dispatch = Dispatch::new(&node.name, "norm", ELEMENT_THREADS)
            .constant(1, 1)
            .read(1, self.memory(x))
            .write(3, Memory::Value(y))
            .push(words)
            .grid(self.row_grid(&rows));
        let dispatch = self.reads(dispatch, 2, w)?;
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn gated(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let (gate, up, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let count = self.count(y)?;
        let dispatch = Dispatch::new(&node.name, "gated", ELEMENT_THREADS)
            .constant(1, known(unary_code(op.activation))?)
            .write(3, Memory::Value(y))
            .push([self.values.word(&count)])
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, gate)?;
        let dispatch = self.reads(dispatch, 2, up)?;
        self.emit(dispatch);
        Ok(())
    }

    fn binary(&mut self, i: usize, code: u32) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (a, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        self.settle(a)?;
        self.settle(b)?;
        let shapes = [self.tensor(y)?.1, self.tensor(a)?.1, self.tensor(b)?.1];
        // An operand whose extents are the last ones of the result repeats along it.
        let repeats = |shape: &[Dim]| {
            let own = shape.iter().position(|dim| *dim != Dim::Num(1)).unwrap_or(shape.len());
            shapes[0].ends_with(&shape[own..])
        };
        let rank = if repeats(&shapes[1]) && repeats(&shapes[2]) { 0 } else { shapes[0].len() };
        let counts: Vec<u32> = shapes.iter().map(|shape| self.values.word(&product(shape))).collect();
        let mut push = counts;
        for shape in &shapes {
            for d in 0..6 {
                let dim = (d + shape.len()).checked_sub(shapes[0].len()).and_then(|at| shape.get(at));
                let inside = d < shapes[0].len();
                push.push(dim.filter(|_| inside && rank > 0).map_or(1, |dim| self.values.word(dim)));
            }
        }
        let (left, right) = (self.memory(a), self.memory(b));
        if a != b && left != right {
            // Only one operand can be taken over; the result then lies where it was read, element by element.
            let same = |x: ValueId| self.graph.tensor_type(x) == self.graph.tensor_type(y);
            if same(a) && self.dies_at(a, i) {
                self.in_place(y, a, i);
            } else {
                self.in_place(y, b, i);
            }
        }
        let count = product(&shapes[0]);
        let dispatch = Dispatch::new(&node.name, "binary", ELEMENT_THREADS)
            .constant(1, code)
            .constant(2, rank as u32)
            .read(1, left)
            .read(2, right)
            .write(3, self.memory(y))
            .push(push)
            .grid(self.linear_grid(&count));
        self.emit(dispatch);
        Ok(())
    }

    fn reduce(&mut self, i: usize, kind: u32) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (rows, n) = self.rows(x)?;
        let words = [self.values.word(&rows), self.values.word(&n)];
        let dispatch = Dispatch::new(&node.name, "reduce", ELEMENT_THREADS)
            .constant(1, kind)
            .write(2, Memory::Value(y))
            .push(words)
            .grid(self.row_grid(&rows));
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    fn gather(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (data, indices, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let count = self.count(indices)?;
        self.settle(indices)?;
        let at = self.memory(indices);
        if is_table(self.graph, data) {
            let matrix = self.matrix(data, None, false).ok_or(BackendError::Mismatch("weights and graph"))?;
            let blocks = matrix.blocks;
            let total = count.clone().mul(blocks.into());
            for chunk in &matrix.chunks {
                let words = self.values.word(&count);
                let (first, here) = (chunk.first_tile * 64, chunk.tiles * 64);
                let mut dispatch = Dispatch::new(&node.name, format!("gather.{}", matrix.format.name()), 64)
                    .read(5, at)
                    .write(6, Memory::Value(y))
                    .bind(7, Memory::Status, crate::plan::Access::ReadWrite)
                    .push([words, matrix.rows as u32, matrix.k as u32, blocks as u32, first as u32, here as u32]);
                for (part, binding) in chunk.parts.iter().zip(1..) {
                    if part.len > 0 {
                        dispatch = dispatch.read(binding, Memory::Weights(*part));
                    }
                }
                let most = self.gpu.limits().max_groups as usize;
                let groups = crate::step::least(total.clone().div_ceil(64.into()), most);
                let grid = self.values.grid([groups, 1.into(), 1.into()]);
                self.emit(dispatch.grid(grid));
            }
            return Ok(());
        }
        let (_, shape) = self.tensor(data)?;
        let width = product(&shape[1..]);
        let words: Vec<u32> = [&count, &shape[0], &width].map(|dim| self.values.word(dim)).into();
        let dispatch = Dispatch::new(&node.name, "rows.uint", ELEMENT_THREADS)
            .read(5, at)
            .write(6, Memory::Value(y))
            .bind(7, Memory::Status, crate::plan::Access::ReadWrite)
            .push(words)
            .grid(self.linear_grid(&count.mul(width)));
        let dispatch = self.reads(dispatch, 1, data)?;
        self.emit(dispatch);
        Ok(())
    }

    fn copy(&mut self, name: &str, x: ValueId, y: ValueId) -> Result<(), BackendError> {
        let count = self.count(x)?;
        self.runs(name, x, y, (count.clone(), count.clone()), (0.into(), count.clone()), (0.into(), count))
    }

    /// Moves runs of elements: how many in all and in a run; where they begin and how far runs are apart, in `x` and in `y`.
    fn runs(
        &mut self,
        name: &str,
        x: ValueId,
        y: ValueId,
        (count, run): (Dim, Dim),
        (from, from_stride): (Dim, Dim),
        (to, to_stride): (Dim, Dim),
    ) -> Result<(), BackendError> {
        let (dtype, _) = self.tensor(x)?;
        let size = dtype.packing().1;
        let (word, per) = if size == 2 { ("uint16_t", 1) } else { ("uint", size / 4) };
        let scaled = |dim: Dim| dim.mul(per.into());
        let count = scaled(count);
        let words = [count.clone(), scaled(run), scaled(from), scaled(from_stride), scaled(to), scaled(to_stride)];
        let words: Vec<u32> = words.iter().map(|dim| self.values.word(dim)).collect();
        let dispatch = Dispatch::new(name, format!("move.{word}"), ELEMENT_THREADS)
            .write(2, Memory::Value(y))
            .push(words)
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }
}

/// An axis that may count from the end; the shape rule has checked it.
fn axis(axis: isize, rank: usize) -> usize {
    if axis < 0 { rank.saturating_sub(axis.unsigned_abs()) } else { axis.unsigned_abs() }
}

/// A dtype's number in names of cast shaders.
fn cast_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 3,
    }
}

/// A function's number, which [`super::supports`] has seen to be there.
pub(super) fn known(code: Option<u32>) -> Result<u32, BackendError> {
    code.ok_or(BackendError::Mismatch("functions and shaders"))
}
