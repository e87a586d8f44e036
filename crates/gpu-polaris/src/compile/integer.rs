//! Quantization, and products of bytes.

use core_tensor::op::{DequantizeLinear, Granularity, Op, QuantizeLinear};
use core_tensor::{BackendError, DType, Dim, Graph, Node, ValueId};

use super::moves::axis;
use super::nodes::known;
use super::{Compiler, ELEMENT_THREADS};
use crate::plan::{Dispatch, Memory};
use crate::step::{least, product};

/// Workgroups that look for the range of a value.
const RANGE_GROUPS: usize = 64;
/// What turns four bytes with a sign into bytes without, 128 more.
const FLIP: u32 = 0x8080_8080;

/// A dtype's number in `dequantize.comp`.
fn quantized_code(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::U8 => 0,
        DType::I8 => 1,
        DType::U16 => 2,
        DType::I16 => 3,
        DType::I32 => 4,
        DType::F8E4M3 => 5,
        DType::F8E5M2 => 6,
        _ => return None,
    })
}

/// A dtype's number in `quantize.comp`, with the least and the largest integer.
fn target_code(op: QuantizeLinear) -> Option<(u32, i32, i32)> {
    let whole = |bits: u32| op.bits.map_or(bits, u32::from);
    let (code, bits, signed) = match op.to {
        DType::U8 => (0, whole(8), false),
        DType::I8 => (0, whole(8), true),
        DType::U16 => (1, whole(16), false),
        DType::I16 => (1, whole(16), true),
        DType::F8E4M3 => return Some((2, 0, 0)),
        DType::F8E5M2 => return Some((3, 0, 0)),
        _ => return None,
    };
    let steps = 1i32.checked_shl(bits)?;
    Some(if signed { (code, -steps / 2, steps / 2 - 1) } else { (code, 0, steps - 1) })
}

/// Whether there is a kernel for a quantization, or the other way.
///
/// # Errors
/// Why not.
pub(super) fn supports(graph: &Graph, node: &Node) -> Result<(), String> {
    let tensor = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.tensor_type(id));
    match &node.op {
        Op::QuantizeLinear(op) => match target_code(*op) {
            Some(_) => Ok(()),
            None => Err(format!("no kernel quantizes to {}", op.to)),
        },
        Op::MatMulInteger(_) => multiplies(tensor(0), tensor(1), tensor(2), tensor(3)),
        _ => Ok(()),
    }
}

type Typed<'a> = Option<(DType, &'a [Dim])>;

/// Whether zero points are such as the kernel takes off: one, or one for each row of all A's matrices, or for each column of B's.
fn multiplies(a: Typed<'_>, b: Typed<'_>, zero_a: Typed<'_>, zero_b: Typed<'_>) -> Result<(), String> {
    let (Some((_, a)), Some((_, b))) = (a, b) else { return Err("no tensor".into()) };
    if a.len().max(b.len()) > super::moves::MOST_EXTENTS {
        return Err(format!("operands have more than {} extents", super::moves::MOST_EXTENTS));
    }
    let several = b.len() > 2 && product(&b[..b.len() - 2]) != Dim::Num(1);
    let zero_a_fits = zero_a.is_none_or(|(_, zero)| is_single(zero) || !several && is_rows(zero, a));
    let zero_b_fits = zero_b.is_none_or(|(_, zero)| is_single(zero) || is_columns(zero, b));
    if zero_a_fits && zero_b_fits { Ok(()) } else { Err("no kernel takes off zero points of that shape".into()) }
}

fn is_single(shape: &[Dim]) -> bool {
    shape.iter().all(|dim| *dim == Dim::Num(1))
}

/// Whether a shape has an element for each row of a matrix, or of all matrices.
fn is_rows(zero: &[Dim], a: &[Dim]) -> bool {
    match (zero, a) {
        ([zero], [m, _]) => zero == m,
        ([zero @ .., Dim::Num(1)], [rows @ .., _]) => zero == rows,
        _ => false,
    }
}

/// Whether a shape has an element for each column of a matrix.
fn is_columns(zero: &[Dim], b: &[Dim]) -> bool {
    zero.split_last().is_some_and(|(n, lead)| Some(n) == b.last() && is_single(lead))
}

/// What kernels see of who shares a scale: the kind, elements from one index of the extent to the next, the extent, and how many indices share one.
struct Shares(u32, Dim, Dim, u32);

impl Shares {
    fn new(granularity: Granularity, shape: &[Dim]) -> Shares {
        let along = |axis_: isize| {
            let at = axis(axis_, shape.len());
            (product(&shape[at + 1..]), shape[at].clone())
        };
        match granularity {
            Granularity::Tensor => Shares(0, 1.into(), 1.into(), 1),
            Granularity::Axis(axis) => {
                let (inner, length) = along(axis);
                Shares(1, inner, length, 1)
            }
            Granularity::Blocks { axis, block } => {
                let (inner, length) = along(axis);
                Shares(2, inner, length, u32::try_from(block).unwrap_or(u32::MAX >> 1))
            }
        }
    }
}

impl Compiler<'_> {
    pub(super) fn quantize(&mut self, i: usize, op: QuantizeLinear) -> Result<(), BackendError> {
        let (kind, least, most) = known(target_code(op))?;
        let node = &self.graph.nodes()[i];
        let x = self.input(node, 0)?;
        let whole = u32::from(self.tensor(x)?.0 == DType::I32) << 1 | u32::from(op.saturate) << 2;
        let count = self.count(x)?.div_ceil(4.into());
        self.scaled(i, "quantize", op.granularity, &count, &[kind, least as u32, most as u32], whole)
    }

    pub(super) fn dequantize(&mut self, i: usize, op: DequantizeLinear) -> Result<(), BackendError> {
        let x = self.input(&self.graph.nodes()[i], 0)?;
        let kind = known(quantized_code(self.tensor(x)?.0))?;
        let count = self.count(x)?;
        self.scaled(i, "dequantize", op.granularity, &count, &[kind], 0)
    }

    /// A dispatch over elements with scales and zero points; `items` are what threads take.
    fn scaled(
        &mut self,
        i: usize,
        shader: &str,
        granularity: Granularity,
        items: &Dim,
        kind: &[u32],
        flags: u32,
    ) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, scale, zero) = (self.input(node, 0)?, self.input(node, 1)?, self.optional(i, 2));
        let (_, shape) = self.tensor(x)?;
        let Shares(mode, inner, length, block) = Shares::new(granularity, &shape);
        let words = [self.values.word(&product(&shape)), mode, self.values.word(&inner), self.values.word(&length)];
        let dispatch = Dispatch::new(&node.name, shader, ELEMENT_THREADS)
            .write(4, Memory::Value(node.outputs[0]))
            .push(words)
            .push([block])
            .push(kind.iter().copied())
            .push([flags | u32::from(zero.is_some())])
            .grid(self.linear_grid(items));
        let dispatch = self.reads(dispatch, 1, x)?;
        let dispatch = self.reads(dispatch, 2, scale)?;
        let dispatch = match zero {
            Some(zero) => self.reads(dispatch, 3, zero)?,
            None => dispatch.read(3, Memory::Unused),
        };
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn quantize_by_range(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let x = self.input(node, 0)?;
        let [y, scale, zero] = node.outputs[..] else { return Err(BackendError::Mismatch("outputs and operator")) };
        let count = self.count(x)?;
        let groups = least(count.clone().div_ceil((ELEMENT_THREADS as usize * 4).into()).max(1.into()), RANGE_GROUPS);
        let ranges = self.scratch(&format!("{}, ranges", node.name), RANGE_GROUPS * 8);
        let grid = self.values.grid([groups.clone(), 1.into(), 1.into()]);
        let dispatch = Dispatch::new(&node.name, "dynamic_range", ELEMENT_THREADS)
            .constant(1, 0)
            .write(2, ranges)
            .read(3, Memory::Unused)
            .push([self.values.word(&count)])
            .grid(grid);
        let dispatch = self.reads(dispatch, 1, x)?;
        self.emit(dispatch);
        let dispatch = Dispatch::new(&node.name, "dynamic_range", ELEMENT_THREADS)
            .constant(1, 1)
            .read(1, ranges)
            .write(2, Memory::Value(scale))
            .write(3, Memory::Value(zero))
            .push([self.values.word(&groups)]);
        self.emit(dispatch);
        let dispatch = Dispatch::new(&node.name, "quantize", ELEMENT_THREADS)
            .read(1, self.memory(x))
            .read(2, Memory::Value(scale))
            .read(3, Memory::Value(zero))
            .write(4, Memory::Value(y))
            .push([self.values.word(&count), 0, 1, 1, 1, 0, 0, 255, 1])
            .grid(self.linear_grid(&count.div_ceil(4.into())));
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn mat_mul_integer(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (a, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let zeros = [self.optional(i, 2), self.optional(i, 3)];
        for id in [Some(a), Some(b)].into_iter().chain(zeros).flatten() {
            self.settle(id)?;
        }
        let ((a_dtype, a_shape), (b_dtype, b_shape), (_, y_shape)) =
            (self.tensor(a)?, self.tensor(b)?, self.tensor(y)?);
        let flip = |dtype: DType| if dtype == DType::I8 { FLIP } else { 0 };
        let (b_batch, b_last) = b_shape.split_at(b_shape.len() - 2);
        let (k, n) = (b_last[0].clone(), b_last[1].clone());
        // One matrix: the rows of all of A's are multiplied by it.
        let one = product(b_batch) == Dim::Num(1);
        let (m, matrices, a_memory, a_count, b_memory, b_count) = if one {
            (self.rows(a)?.0, Dim::Num(1), self.memory(a), Dim::Num(1), self.memory(b), Dim::Num(1))
        } else {
            let m = if a_shape.len() < 2 { Dim::Num(1) } else { a_shape[a_shape.len() - 2].clone() };
            let batch = &y_shape[..y_shape.len() - if a_shape.len() < 2 { 1 } else { 2 }];
            let a_batch = &a_shape[..a_shape.len().saturating_sub(2)];
            let (a_memory, a_count) = self.spread(&node.name, a, a_batch, batch, m.clone().mul(k.clone()))?;
            let (b_memory, b_count) = self.spread(&node.name, b, b_batch, batch, product(b_last))?;
            (m, product(batch), a_memory, a_count, b_memory, b_count)
        };
        let tile = if self.bound(&m)? <= 1 { 1 } else { 8 };
        let (tiles, groups, words) =
            (m.clone().div_ceil(tile.into()), k.clone().div_ceil(4.into()), n.clone().div_ceil(4.into()));
        let packed = product(&[a_count.clone(), tiles.clone(), groups, (tile * 4).into()]);
        let packed = self.scratch(&format!("{}, packed", node.name), self.bound(&packed)?);
        let sums = self.bound(&a_count.clone().mul(m.clone()))?.saturating_mul(4);
        let sums = self.scratch(&format!("{}, sums", node.name), sums);
        let grid = self.values.grid([tile.into(), tiles.clone(), a_count.clone()]);
        let dispatch = Dispatch::new(&node.name, "pack_bytes", 64)
            .read(1, a_memory)
            .write(2, packed)
            .write(3, sums)
            .push([self.values.word(&m), self.values.word(&k), tile as u32, flip(a_dtype)])
            .grid(grid);
        self.emit(dispatch);
        let aligned = n.as_num().is_some_and(|n| n.is_multiple_of(4));
        let b_memory = if aligned {
            b_memory
        } else {
            let rows = b_count.clone().mul(k.clone());
            let count = rows.clone().mul(words.clone());
            let to = self.scratch(&format!("{}, aligned", node.name), self.bound(&count)?.saturating_mul(4));
            let dispatch = Dispatch::new(&node.name, "align_bytes", ELEMENT_THREADS)
                .read(1, b_memory)
                .write(2, to)
                .push([self.values.word(&rows), self.values.word(&n)])
                .grid(self.linear_grid(&count));
            self.emit(dispatch);
            to
        };
        let apart = |count: &Dim, one: Dim| if *count == Dim::Num(1) { Dim::Num(0) } else { one };
        let a_matrix = apart(&a_count, tiles.clone());
        let b_matrix = apart(&b_count, k.clone().mul(words.clone()));
        let several = |id: Option<ValueId>| -> Result<u32, BackendError> {
            Ok(id.map(|id| self.tensor(id)).transpose()?.map_or(0, |(_, shape)| if is_single(&shape) { 1 } else { 3 }))
        };
        let flags = several(zeros[0])? | several(zeros[1])? << 2;
        let columns = words.div_ceil(64.into());
        let waves = self.bound(&product(&[columns.clone(), tiles.clone(), matrices.clone()]))?;
        // Parts of k where there are few waves; each takes some hundred elements.
        let wanted = self.target_waves.div_ceil(waves.max(1)).min(self.bound(&k)? / 128).clamp(1, 4);
        let slices = 1 << wanted.ilog2();
        let push = [&m, &k, &n].map(|dim| self.values.word(dim));
        let apart = [&a_matrix, &b_matrix].map(|dim| self.values.word(dim));
        let work = self.bound(&product(&[m, k, n, matrices.clone()]))? as f64;
        let grid = self.values.grid([columns, tiles, matrices]);
        let mut dispatch = Dispatch::new(&node.name, format!("matmul_integer.{tile}"), 64 * slices)
            .read(1, packed)
            .read(2, sums)
            .read(3, b_memory)
            .write(6, Memory::Value(y))
            .push(push)
            .push([flip(b_dtype), flip(a_dtype) & 0xff, flags])
            .push(apart)
            .work(work)
            .grid(grid);
        for (binding, zero) in [(4, zeros[0]), (5, zeros[1])] {
            dispatch = match zero {
                Some(zero) => self.reads(dispatch, binding, zero)?,
                None => dispatch.read(binding, Memory::Unused),
            };
        }
        self.emit(dispatch);
        Ok(())
    }
}
