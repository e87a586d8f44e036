//! Operators that move elements or convert them.

use core_tensor::op::{Cast, Concat, Gather, Op, Pad, PadMode, Slice, Transpose};
use core_tensor::{BackendError, DType, Dim, ValueId};

use super::nodes::known;
use super::{Compiler, ELEMENT_THREADS};
use crate::analysis::is_table;
use crate::elementwise::cast_code;
use crate::plan::{Access, Dispatch, Memory};
use crate::step::{least, product};
use crate::walk::{Walk, contiguous};

/// Extents of a result that `view.comp` and `pad.comp` walk over.
pub(super) const MOST_EXTENTS: usize = 8;

/// Words that so many elements of `size` bytes lie in; pairs of bytes are words of their own.
pub(crate) fn in_words(count: Dim, size: usize) -> Dim {
    match size {
        1 => count.div_ceil(4.into()),
        2 => count,
        _ => count.mul(Dim::Num(size / 4)),
    }
}

/// An axis that may count from the end; the shape rule has checked it.
pub(super) fn axis(axis: isize, rank: usize) -> usize {
    if axis < 0 { rank.saturating_sub(axis.unsigned_abs()) } else { axis.unsigned_abs() }
}

impl Compiler<'_> {
    pub(super) fn reshape(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        self.settle(x)?;
        if matches!(self.memory(x), Memory::Value(_)) {
            // The same bytes under another shape.
            self.root[y.index()] = self.root[x.index()];
            return Ok(());
        }
        self.copy(&node.name, x, y)
    }

    pub(super) fn transpose(&mut self, i: usize, op: &Transpose) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let x = self.input(node, 0)?;
        let (_, shape) = self.tensor(x)?;
        let apart = contiguous(&shape);
        let dims = op.perm.iter().map(|from| shape[*from].clone()).collect();
        let strides = op.perm.iter().map(|from| apart[*from].clone()).collect();
        self.view(i, x, Walk { dims, strides: vec![strides] }.merged(), 0, Dim::Num(0))
    }

    pub(super) fn slice(&mut self, i: usize, op: &Slice) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (dtype, shape) = self.tensor(x)?;
        let axis = axis(op.axis, shape.len());
        let inner = product(&shape[axis + 1..]);
        if op.step == 1 && dtype.packing().1 > 1 {
            let run = op.len.clone().mul(inner.clone());
            let stride = shape[axis].clone().mul(inner.clone());
            let first = op.start.clone().mul(inner);
            let extents = (product(&shape[..axis]).mul(run.clone()), run.clone());
            return self.runs(&node.name, x, y, extents, (first, stride), (0.into(), run));
        }
        // Backwards it is the same run of elements, walked from its other end. No element: no place is computed.
        let step: Dim = op.step.unsigned_abs().into();
        let back = op.len.clone().max(1.into()).sub(1.into()).mul(step.clone());
        let start = if op.step < 0 { op.start.clone().sub(back) } else { op.start.clone() };
        let walk = Walk {
            dims: vec![product(&shape[..axis]), op.len.clone(), inner.clone()],
            strides: vec![vec![shape[axis].clone().mul(inner.clone()), step.mul(inner.clone()), 1.into()]],
        };
        let flipped = if op.step < 0 { 1 << 1 } else { 0 };
        self.view(i, x, walk, flipped, start.mul(inner))
    }

    pub(super) fn expand(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (from, to) = (self.tensor(x)?.1, self.tensor(y)?.1);
        let walk = Walk::broadcast(&to, &[&from]);
        self.view(i, x, walk, 0, Dim::Num(0))
    }

    fn view(&mut self, i: usize, x: ValueId, walk: Walk, flipped: u32, first: Dim) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        self.settle(x)?;
        let (from, size) = (self.memory(x), self.tensor(x)?.0.packing().1);
        self.view_into(&node.name, (from, size), walk, flipped, first, Memory::Value(node.outputs[0]));
        Ok(())
    }

    /// Elements of so many bytes from where a walk says; `flipped` has a bit for each extent that is walked backwards.
    pub(super) fn view_into(
        &mut self,
        name: &str,
        (from, size): (Memory, usize),
        mut walk: Walk,
        flipped: u32,
        first: Dim,
        to: Memory,
    ) {
        let (word, per) = (size.min(4), size.div_ceil(4));
        let first = first.mul(per.into());
        // Words of an element follow each other; a walk with flipped extents is not merged, so that bits keep their meaning.
        if per > 1 {
            walk.strides[0].iter_mut().for_each(|stride| *stride = stride.clone().mul(per.into()));
            walk.dims.push(per.into());
            walk.strides[0].push(1.into());
            walk = if flipped == 0 { walk.merged() } else { walk };
        }
        let count = product(&walk.dims);
        let mut push = vec![self.values.word(&count), self.values.word(&first)];
        for list in [&walk.dims, &walk.strides[0]] {
            push.extend((0..MOST_EXTENTS).map(|d| list.get(d).map_or(1, |dim| self.values.word(dim))));
        }
        let groups = if word == 1 { count.div_ceil(4.into()) } else { count };
        let dispatch = Dispatch::new(name, format!("view.{word}"), ELEMENT_THREADS)
            .constant(1, flipped)
            .constant(2, walk.dims.len() as u32)
            .read(1, from)
            .write(2, to)
            .push(push)
            .grid(self.linear_grid(&groups));
        self.emit(dispatch);
    }

    pub(super) fn pad(&mut self, i: usize, op: &Pad) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let constant = node.inputs.get(1).copied().flatten();
        let (from, to) = (self.tensor(x)?.1, self.tensor(y)?.1);
        let before: Vec<Dim> = op.pads.iter().map(|(before, _)| before.clone()).collect();
        let count = product(&to);
        let mut push = vec![self.values.word(&count)];
        for (list, rest) in [(&to, 1), (&from, 1), (&before, 0)] {
            push.extend((0..MOST_EXTENTS).map(|d| list.get(d).map_or(rest, |dim| self.values.word(dim))));
        }
        let mode = match op.mode {
            PadMode::Constant => 0,
            PadMode::Edge => 1,
            PadMode::Reflect => 2,
            PadMode::Wrap => 3,
        };
        let dispatch = Dispatch::new(&node.name, "pad", ELEMENT_THREADS)
            .constant(1, mode)
            .constant(2, to.len() as u32)
            .constant(3, u32::from(constant.is_some()))
            .write(3, Memory::Value(y))
            .push(push)
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, x)?;
        let dispatch = match constant {
            Some(id) => self.reads(dispatch, 2, id)?,
            None => dispatch.read(2, Memory::Unused),
        };
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn concat(&mut self, i: usize, op: &Concat) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let y = node.outputs[0];
        let (_, shape) = self.tensor(y)?;
        let axis = axis(op.axis, shape.len());
        let inner = product(&shape[axis + 1..]);
        let stride = shape[axis].clone().mul(inner.clone());
        let mut first = Dim::Num(0);
        for x in node.inputs.iter().copied().flatten() {
            let (_, part) = self.tensor(x)?;
            let run = part[axis].clone().mul(inner.clone());
            let extents = (product(&part), run.clone());
            self.runs(&node.name, x, y, extents, (0.into(), run.clone()), (first.clone(), stride.clone()))?;
            first = first.add(run);
        }
        Ok(())
    }

    pub(super) fn cast(&mut self, i: usize, op: Cast) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (from, _) = self.tensor(x)?;
        if from == op.to {
            return self.copy(&node.name, x, y);
        }
        let codes = (known(cast_code(from))?, known(cast_code(op.to))?);
        let count = self.count(x)?;
        self.settle(x)?;
        let from = self.memory(x);
        self.convert(&node.name, codes, &count, from, Memory::Value(y));
        Ok(())
    }

    /// Elements of one kind as another.
    pub(super) fn convert(&mut self, name: &str, (from, to): (u32, u32), count: &Dim, x: Memory, y: Memory) {
        let dispatch = Dispatch::new(name, "cast", ELEMENT_THREADS)
            .constant(1, from)
            .constant(2, to)
            .read(1, x)
            .write(2, y)
            .push([self.values.word(count)])
            .grid(self.linear_grid(&count.clone().div_ceil(4.into())));
        self.emit(dispatch);
    }

    /// A value of any float dtype as f32: itself, or a copy of it.
    pub(super) fn as_f32(&mut self, name: &str, id: ValueId) -> Result<Memory, BackendError> {
        self.settle(id)?;
        let (dtype, _) = self.tensor(id)?;
        let from = self.memory(id);
        if dtype == DType::F32 {
            return Ok(from);
        }
        let count = self.count(id)?;
        let bytes = self.bound(&count)?.saturating_mul(4);
        let to = self.scratch(&format!("{name}, as f32"), bytes);
        self.convert(name, (known(cast_code(dtype))?, 0), &count, from, to);
        Ok(to)
    }

    pub(super) fn gather(&mut self, i: usize, op: Gather) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (data, indices, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let count = self.count(indices)?;
        self.settle(indices)?;
        let at = self.memory(indices);
        let index_words = if self.tensor(indices)?.0 == DType::I64 { 2 } else { 1 };
        if is_table(self.graph, op, data) {
            let matrix = self.matrix(data, None, false).ok_or(BackendError::Mismatch("weights and graph"))?;
            let blocks = matrix.blocks;
            let total = count.clone().mul(blocks.into());
            for chunk in &matrix.chunks {
                let words = self.values.word(&count);
                let (first, here) = (chunk.first_tile * 64, chunk.tiles * 64);
                let mut dispatch = Dispatch::new(&node.name, format!("gather.{}", matrix.format.name()), 64)
                    .constant(1, index_words)
                    .read(5, at)
                    .write(6, Memory::Value(y))
                    .bind(7, Memory::Status, Access::ReadWrite)
                    .push([words, matrix.rows as u32, matrix.k as u32, blocks as u32, first as u32, here as u32]);
                for (part, binding) in chunk.parts.iter().zip(1..) {
                    if part.len > 0 {
                        dispatch = dispatch.read(binding, Memory::Weights(*part));
                    }
                }
                let most = self.gpu.limits().max_groups as usize;
                let groups = least(total.clone().div_ceil(64.into()), most);
                let grid = self.values.grid([groups, 1.into(), 1.into()]);
                self.emit(dispatch.grid(grid));
            }
            return Ok(());
        }
        let (dtype, shape) = self.tensor(data)?;
        let axis = axis(op.axis, shape.len());
        if gathers_bytes(dtype) {
            return self.gather_rows(i, &shape);
        }
        let (table, per) = match dtype {
            DType::F16 => (1, 1),
            DType::BF16 => (2, 1),
            _ => (0, dtype.packing().1 / 4),
        };
        let (outer, width) = (product(&shape[..axis]), product(&shape[axis + 1..]).mul(per.into()));
        let words: Vec<u32> = [&count, &shape[axis], &width, &outer].map(|dim| self.values.word(dim)).into();
        let dispatch = Dispatch::new(&node.name, format!("rows.{table}"), ELEMENT_THREADS)
            .constant(1, index_words)
            .read(5, at)
            .write(6, Memory::Value(y))
            .bind(7, Memory::Status, Access::ReadWrite)
            .push(words)
            .grid(self.linear_grid(&count.mul(width).mul(outer)));
        let dispatch = self.reads(dispatch, 1, data)?;
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn copy(&mut self, name: &str, x: ValueId, y: ValueId) -> Result<(), BackendError> {
        let (dtype, _) = self.tensor(x)?;
        let count = self.count(x)?;
        let whole = if dtype.packing().1 == 1 { count.div_ceil(4.into()) } else { count };
        self.runs(name, x, y, (whole.clone(), whole.clone()), (0.into(), whole.clone()), (0.into(), whole))
    }

    /// Moves runs of elements (of words, where elements are bytes): how many in all and in a run; where they begin and how far runs are apart, in
    /// `x` and in `y`.
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
        let (word, per) = if size == 2 { ("uint16_t", 1) } else { ("uint", size.div_ceil(4)) };
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

/// Whether rows of a dtype are gathered element by element, since they may begin and end within a word.
pub(super) fn gathers_bytes(dtype: DType) -> bool {
    matches!(dtype.packing(), (1, 1 | 2)) && !matches!(dtype, DType::F16 | DType::BF16)
}

/// Whether an operator only looks at its input in another way, and not at elements of a byte that `move.comp` would have to split.
pub(super) fn moves_words(op: &Op, size: usize) -> Result<(), String> {
    match (op, size) {
        (Op::Concat(_), 1) => Err("no kernel joins runs of single bytes".into()),
        (_, 1 | 2 | 4 | 8) => Ok(()),
        _ => Err(format!("no kernel moves elements of {size} bytes")),
    }
}
