//! Operators whose elements come from where indices say, or go there; ranges and triangles.

use core_tensor::op::{GatherElements, GatherNd, Op, Range, ScatterElements, ScatterReduction, Trilu};
use core_tensor::{BackendError, DType, Dim, Graph, Node, ValueId};

use super::moves::{MOST_EXTENTS, axis};
use super::nodes::known;
use super::{Compiler, ELEMENT_THREADS};
use crate::plan::{Access, Dispatch, Memory};
use crate::step::product;
use crate::walk::{self, Walk, contiguous};

/// Indices that a thread of `scatter.comp` looks through for an element.
const MOST_SCATTERED: usize = 4096;

/// A dtype's number in `range.comp`.
fn range_code(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F32 => Some(0),
        DType::I32 => Some(1),
        DType::I64 => Some(2),
        _ => None,
    }
}

fn join_code(reduction: ScatterReduction) -> u32 {
    match reduction {
        ScatterReduction::None => 0,
        ScatterReduction::Add => 1,
        ScatterReduction::Mul => 2,
        ScatterReduction::Min => 3,
        ScatterReduction::Max => 4,
    }
}

/// Whether there is a kernel for a node of these operators.
///
/// # Errors
/// Why not.
pub(super) fn supports(graph: &Graph, node: &Node) -> Result<(), String> {
    let tensor = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.tensor_type(id));
    let (dtype, data) = tensor(0).ok_or("no tensor")?;
    if !matches!(dtype.packing(), (1, 1 | 2 | 4 | 8)) {
        return Err(format!("no kernel moves elements of {dtype}"));
    }
    let indices = tensor(1).map_or(&[][..], |(_, shape)| shape);
    match &node.op {
        Op::GatherElements(_) if data.len() > walk::MOST_EXTENTS => {
            Err(format!("the tensor has more than {} extents", walk::MOST_EXTENTS))
        }
        Op::GatherNd(_) if indices.last().and_then(Dim::as_num).is_none_or(|tuple| tuple > MOST_EXTENTS) => {
            Err(format!("kernels take {MOST_EXTENTS} indices of a tuple"))
        }
        Op::ScatterElements(op) => {
            let many = indices.get(axis(op.axis, indices.len())).cloned();
            scatters(data.len(), many, op.reduction, dtype)
        }
        Op::ScatterNd(op) => {
            let many = indices.split_last().map(|(_, tuples)| product(tuples));
            scatters(data.len(), many, op.reduction, dtype)
        }
        Op::Range(_) if range_code(dtype).is_none() => Err(format!("no kernel makes a range of {dtype}")),
        _ => Ok(()),
    }
}

fn scatters(rank: usize, many: Option<Dim>, reduction: ScatterReduction, dtype: DType) -> Result<(), String> {
    if rank > MOST_EXTENTS {
        return Err(format!("the tensor has more than {MOST_EXTENTS} extents"));
    }
    if many.and_then(|many| many.as_num()).is_none_or(|many| many > MOST_SCATTERED) {
        return Err(format!("kernels look through {MOST_SCATTERED} indices"));
    }
    if reduction != ScatterReduction::None && !matches!(dtype, DType::F32 | DType::I32) {
        return Err(format!("no kernel joins elements of {dtype}"));
    }
    Ok(())
}

impl Compiler<'_> {
    /// A grid for a kernel that makes elements of so many bytes word by word.
    pub(super) fn word_grid(&mut self, count: &Dim, size: usize) -> crate::step::Grid {
        let words = super::moves::in_words(count.clone(), size);
        let words = if size == 2 { words.div_ceil(2.into()) } else { words };
        self.linear_grid(&words)
    }

    /// A dispatch that takes elements of `data` by `indices`.
    fn indexed(&mut self, i: usize, shader: &str) -> Result<Dispatch, BackendError> {
        let node = &self.graph.nodes()[i];
        let (data, indices, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let index_words = if self.tensor(indices)?.0 == DType::I64 { 2 } else { 1 };
        let count = self.count(y)?;
        let size = self.tensor(y)?.0.packing().1;
        let dispatch = Dispatch::new(&node.name, shader, ELEMENT_THREADS)
            .constant(1, index_words)
            .write(2, Memory::Value(y))
            .bind(7, Memory::Status, Access::ReadWrite)
            .push([self.values.word(&count), size as u32])
            .grid(self.word_grid(&count, size));
        let dispatch = self.reads(dispatch, 1, data)?;
        self.reads(dispatch, 5, indices)
    }

    fn words(&mut self, dims: &[Dim], room: usize, rest: u32) -> Vec<u32> {
        (0..room).map(|d| dims.get(d).map_or(rest, |dim| self.values.word(dim))).collect()
    }

    pub(super) fn gather_elements(&mut self, i: usize, op: GatherElements) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (_, data) = self.tensor(self.input(node, 0)?)?;
        let (_, indices) = self.tensor(self.input(node, 1)?)?;
        let axis = axis(op.axis, data.len());
        let mut strides = contiguous(&data);
        let apart = std::mem::replace(&mut strides[axis], Dim::Num(0));
        let walk = Walk { dims: indices, strides: vec![strides] }.merged();
        let words = [self.values.word(&data[axis]), self.values.word(&apart)];
        let dims = self.words(&walk.dims, walk::MOST_EXTENTS, 1);
        let strides = self.words(&walk.strides[0], walk::MOST_EXTENTS, 1);
        let dispatch = self.indexed(i, "gather_elements")?.constant(2, walk.dims.len() as u32);
        self.emit(dispatch.push(words).push(dims).push(strides));
        Ok(())
    }

    pub(super) fn gather_nd(&mut self, i: usize, op: GatherNd) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (_, data) = self.tensor(self.input(node, 0)?)?;
        let (_, indices) = self.tensor(self.input(node, 1)?)?;
        let (tuple, tuples) = indices.split_last().ok_or(BackendError::Mismatch("indices and graph"))?;
        let tuple = known(tuple.as_num())?;
        let named = &data[op.batch_dims..op.batch_dims + tuple];
        let run = product(&data[op.batch_dims + tuple..]);
        let batch = product(&tuples[op.batch_dims..]);
        let words = [self.values.word(&run), self.values.word(&batch), tuple as u32];
        let dims = self.words(named, MOST_EXTENTS, 1);
        let dispatch = self.indexed(i, "gather_nd")?;
        self.emit(dispatch.push(words).push(dims));
        Ok(())
    }

    /// Rows of bytes by their numbers, which are tuples of one index.
    pub(super) fn gather_rows(&mut self, i: usize, data: &[Dim]) -> Result<(), BackendError> {
        let (named, rest) = data.split_first().ok_or(BackendError::Mismatch("indices and graph"))?;
        let count = self.count(self.input(&self.graph.nodes()[i], 1)?)?;
        let words = [self.values.word(&product(rest)), self.values.word(&count.max(1.into())), 1];
        let dims = self.words(std::slice::from_ref(named), MOST_EXTENTS, 1);
        let dispatch = self.indexed(i, "gather_nd")?;
        self.emit(dispatch.push(words).push(dims));
        Ok(())
    }

    pub(super) fn scatter_elements(&mut self, i: usize, op: ScatterElements) -> Result<(), BackendError> {
        let (_, indices) = self.tensor(self.input(&self.graph.nodes()[i], 1)?)?;
        let axis = axis(op.axis, indices.len());
        self.scatter(i, (0, indices.len(), axis), (indices[axis].clone(), Dim::Num(1)), op.reduction)
    }

    pub(super) fn scatter_nd(&mut self, i: usize, reduction: ScatterReduction) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (_, data) = self.tensor(self.input(node, 0)?)?;
        let (_, indices) = self.tensor(self.input(node, 1)?)?;
        let (tuple, tuples) = indices.split_last().ok_or(BackendError::Mismatch("indices and graph"))?;
        let tuple = known(tuple.as_num())?;
        self.scatter(i, (1, tuple, 0), (product(tuples), product(&data[tuple..])), reduction)
    }

    fn scatter(
        &mut self,
        i: usize,
        (mode, rank, axis): (u32, usize, usize),
        (many, run): (Dim, Dim),
        reduction: ScatterReduction,
    ) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (dtype, data) = self.tensor(self.input(node, 0)?)?;
        let (_, indices) = self.tensor(self.input(node, 1)?)?;
        let updates = self.input(node, 2)?;
        let words = [self.values.word(&many), self.values.word(&run), rank as u32, axis as u32];
        let dims = self.words(&data, MOST_EXTENTS, 1);
        let at_dims = self.words(&indices, MOST_EXTENTS, 1);
        let work = self.bound(&product(&data))? as f64 * self.bound(&many)? as f64;
        let dispatch = self.indexed(i, "scatter")?.constant(2, mode).push(words).work(work);
        let dispatch = dispatch.push([join_code(reduction), u32::from(dtype != DType::F32)]).push(dims).push(at_dims);
        let dispatch = self.reads(dispatch, 3, updates)?;
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn trilu(&mut self, i: usize, op: Trilu) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        let (dtype, shape) = self.tensor(x)?;
        let [.., rows, columns] = &shape[..] else { return Err(BackendError::Mismatch("matrices and graph")) };
        let (count, size) = (product(&shape), dtype.packing().1);
        let words = [&count, rows, columns].map(|dim| self.values.word(dim));
        // Farther than any matrix is wide.
        let diagonal = op.k.clamp(-(1 << 30), 1 << 30) as i32;
        let dispatch = Dispatch::new(&node.name, "trilu", ELEMENT_THREADS)
            .write(2, Memory::Value(y))
            .push([words[0], size as u32, words[1], words[2], u32::from(op.upper), diagonal as u32])
            .grid(self.word_grid(&count, size));
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn range(&mut self, i: usize, op: &Range) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (start, delta, y): (ValueId, ValueId, ValueId) =
            (self.input(node, 0)?, self.input(node, 2)?, node.outputs[0]);
        let kind = known(range_code(self.tensor(y)?.0))?;
        let dispatch = Dispatch::new(&node.name, "range", ELEMENT_THREADS)
            .write(3, Memory::Value(y))
            .push([self.values.word(&op.len), kind])
            .grid(self.linear_grid(&op.len));
        let dispatch = self.reads(dispatch, 1, start)?;
        let dispatch = self.reads(dispatch, 2, delta)?;
        self.emit(dispatch);
        Ok(())
    }
}
