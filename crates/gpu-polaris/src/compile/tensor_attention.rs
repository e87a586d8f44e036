//! Attention over tensors.

use core_tensor::op::TensorAttention;
use core_tensor::{BackendError, DType, Dim, ValueId};

use super::{Compiler, ELEMENT_THREADS};
use crate::plan::{Dispatch, Memory};
use crate::step::product;
use crate::walk::{Walk, contiguous};

/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Keys of a tile.
const KEYS: usize = 64;
/// Elements of a value that a workgroup sums at most, four in a lane.
const VALUES: usize = 256;

/// How the elements of values are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Values {
    /// Workgroups that share a value.
    parts: usize,
    /// Elements that each sums: a multiple of 4.
    each: usize,
    /// Eights of rows of a workgroup.
    row_groups: usize,
}

impl Values {
    fn of(dim: usize) -> Values {
        let parts = dim.div_ceil(VALUES).max(1);
        let each = dim.div_ceil(parts).next_multiple_of(4).max(4);
        Values { parts, each, row_groups: if each <= VALUES / 2 { 2 } else { 1 } }
    }
}

impl Compiler<'_> {
    pub(super) fn tensor_attention(&mut self, i: usize, op: TensorAttention) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let name = node.name.as_str();
        let [q, k, v] = [self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?];
        let (q_shape, k_shape, v_shape) = (self.tensor(q)?.1, self.tensor(k)?.1, self.tensor(v)?.1);
        let number = |dim: &Dim| dim.as_num().ok_or(BackendError::Mismatch("heads and kernels"));
        let (heads, kv_heads) = (number(&q_shape[2])?, number(&k_shape[2])?);
        let (dim, value_dim) = (number(&q_shape[3])?, number(&v_shape[3])?);
        let (batch, rows, n) = (&q_shape[0], &q_shape[1], &k_shape[1]);
        let values = Values::of(value_dim);
        let tile = 8 * values.row_groups;
        let padded = dim.next_multiple_of(8).max(8);
        let (row_tiles, key_tiles) = (rows.clone().div_ceil(tile.into()), n.clone().div_ceil(KEYS.into()));
        // Where scores are not capped, they come times log2(e): then 2 to the power of one is its weight.
        let factor = if op.softcap.is_some() { op.scale } else { op.scale * std::f32::consts::LOG2_E };
        let queries =
            self.heads(name, q, (rows, heads, dim, padded), (tile, batch.clone().mul(row_tiles.clone()), factor))?;
        let keys = self.heads(name, k, (n, kv_heads, dim, padded), (0, batch.clone().mul(key_tiles.clone()), 1.0))?;
        self.settle(v)?;
        let (width, v) = if values.parts * values.each == value_dim {
            (value_dim, self.memory(v))
        } else {
            let width = values.parts * values.each;
            (width, self.widened(name, self.memory(v), &product(&v_shape[..3]), value_dim, width)?)
        };
        let (mask, kind, strides) = self.mask(i, [batch, &heads.into(), rows, n])?;
        let own_rows = strides[2] != Dim::Num(0);
        let mut words: Vec<u32> = [rows, n].map(|dim| self.values.word(dim)).into();
        words.extend([heads, kv_heads, values.parts, width, value_dim].map(|n| n as u32));
        words.extend([&key_tiles, &row_tiles].map(|dim| self.values.word(dim)));
        words.push(op.softcap.unwrap_or(0.0).to_bits());
        words.extend(strides.each_ref().map(|dim| self.values.word(dim)));
        let scores = product(&[batch.clone(), heads.into(), rows.clone(), n.clone()]);
        let work = self.bound(&scores)? as f64 * (padded * values.parts + value_dim) as f64;
        let grid = self.values.grid([(heads * values.parts).into(), row_tiles, batch.clone()]);
        let dispatch = Dispatch::new(name, "attention_tensor", THREADS)
            .constant(1, padded as u32)
            .constant(2, values.each as u32)
            .constant(3, u32::from(op.softcap.is_some()))
            .constant(4, values.row_groups as u32)
            .constant(5, kind)
            .constant(6, u32::from(own_rows))
            .constant(7, u32::from(op.causal))
            .read(1, queries)
            .read(2, keys)
            .read(3, v)
            .read(4, mask)
            .write(5, Memory::Value(node.outputs[0]))
            .push(words)
            .grid(grid)
            .work(work);
        self.emit(dispatch);
        Ok(())
    }

    /// Rows of heads in tiles of `tile` queries, or of 64 keys (0): so many tiles of all images; elements times a factor.
    fn heads(
        &mut self,
        name: &str,
        id: ValueId,
        (rows, heads, dim, padded): (&Dim, usize, usize, usize),
        (tile, all_tiles, factor): (usize, Dim, f32),
    ) -> Result<Memory, BackendError> {
        self.settle(id)?;
        let each = if tile == 0 { KEYS } else { tile };
        let count = all_tiles.mul((heads * padded * each).into());
        let to = self.scratch(&format!("{name}, in tiles"), self.bound(&count)?.saturating_mul(4));
        let tiles = rows.clone().div_ceil(each.into());
        let mut words: Vec<u32> = [&count, rows].map(|dim| self.values.word(dim)).into();
        words.extend([heads, dim, padded].map(|n| n as u32));
        words.extend([self.values.word(&tiles), factor.to_bits()]);
        let dispatch = Dispatch::new(name, "heads", ELEMENT_THREADS)
            .constant(1, tile as u32)
            .read(1, self.memory(id))
            .write(2, to)
            .push(words)
            .grid(self.linear_grid(&count));
        self.emit(dispatch);
        Ok(to)
    }

    /// Rows of `dim` elements with zeros behind them.
    fn widened(
        &mut self,
        name: &str,
        from: Memory,
        rows: &Dim,
        dim: usize,
        width: usize,
    ) -> Result<Memory, BackendError> {
        let count = rows.clone().mul(width.into());
        let to = self.scratch(&format!("{name}, widened"), self.bound(&count)?.saturating_mul(4));
        let rows = self.values.word(rows);
        let list = |values: [u32; 2], rest: u32| -> Vec<u32> {
            (0..super::moves::MOST_EXTENTS).map(|d| values.get(d).copied().unwrap_or(rest)).collect()
        };
        let dispatch = Dispatch::new(name, "pad", ELEMENT_THREADS)
            .constant(1, 0)
            .constant(2, 2)
            .constant(3, 0)
            .read(1, from)
            .read(2, Memory::Unused)
            .write(3, to)
            .push([self.values.word(&count)])
            .push(list([rows, width as u32], 1))
            .push(list([rows, dim as u32], 1))
            .push(list([0, 0], 0))
            .grid(self.linear_grid(&count));
        self.emit(dispatch);
        Ok(to)
    }

    /// The mask of an attention, its kind, and how far its elements are apart along images, heads, rows and keys.
    fn mask(&mut self, i: usize, full: [&Dim; 4]) -> Result<(Memory, u32, [Dim; 4]), BackendError> {
        let Some(id) = self.optional(i, 3) else { return Ok((Memory::Unused, 0, [const { Dim::Num(0) }; 4])) };
        self.settle(id)?;
        let (dtype, shape) = self.tensor(id)?;
        let own = contiguous(&shape);
        let strides = std::array::from_fn(|d| match (d + shape.len()).checked_sub(4) {
            None => Dim::Num(0),
            Some(at) if shape[at] == *full[d] => own[at].clone(),
            Some(at) => Walk::apart(&shape[at], own[at].clone()),
        });
        Ok((self.memory(id), if dtype == DType::Bool { 2 } else { 1 }, strides))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_length_are_shared_by_lanes() {
        for dim in 1..=512 {
            let values = Values::of(dim);
            assert!(values.parts * values.each >= dim && values.each <= VALUES && values.each.is_multiple_of(4));
            assert!(values.each / 4 * values.row_groups <= 64);
        }
    }
}
