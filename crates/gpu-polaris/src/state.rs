//! Where the rows of states lie on the device (`shaders/kv.glsl`), and how they are read from and written to snapshots.

use core_tensor::block::BlockQ8_0;
use core_tensor::{DType, StateDecl};

use crate::compile::units;

/// Positions side by side in the layout of keys.
pub(crate) const TILE: usize = 64;

/// The place of one state.
#[derive(Clone, Debug)]
pub(crate) struct StatePlace {
    pub(crate) dtype: DType,
    pub(crate) row: Vec<usize>,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) units: usize,
    pub(crate) capacity: usize,
    pub(crate) window: Option<usize>,
    /// Whether attention reads it as keys.
    pub(crate) keys: bool,
}

impl StatePlace {
    /// # Errors
    /// When kernels do not know its type or rows.
    pub(crate) fn new(decl: &StateDecl, capacity: usize, keys: bool) -> Result<StatePlace, String> {
        let [heads, dim] = decl.row[..] else { return Err("its rows are not [heads, head_dim]".into()) };
        let units = units(decl.dtype, dim).ok_or_else(|| {
            format!("rows of {dim} elements of {} (f32, f16 and whole blocks of q8_0 can be kept)", decl.dtype)
        })?;
        if decl.window.is_some_and(|window| window > capacity || window == 0) || capacity == 0 {
            return Err(format!("a capacity of {capacity} for a window of {:?}", decl.window));
        }
        let (dtype, row, window) = (decl.dtype, decl.row.clone(), decl.window);
        Ok(StatePlace { dtype, row, heads, dim, units, capacity, window, keys })
    }

    /// Rows that there is room for: keys come in whole tiles.
    fn rows(&self) -> usize {
        if self.keys { self.capacity.next_multiple_of(TILE) } else { self.capacity }
    }

    /// Bytes of one slot's rows.
    pub(crate) fn slot_bytes(&self) -> Option<usize> {
        self.heads.checked_mul(self.rows())?.checked_mul(self.units)?.checked_mul(16)
    }

    /// Bytes of one slot's scales, in whole words.
    pub(crate) fn scale_bytes(&self) -> usize {
        if self.dtype.is_block() { self.heads * self.rows() * (self.dim / 32) * 2 } else { 0 }
    }

    /// Bytes of one head of one row, as snapshots have it.
    pub(crate) fn head_bytes(&self) -> usize {
        self.dtype.row_bytes(self.dim).unwrap_or(0)
    }

    /// The row of a position.
    pub(crate) fn row(&self, position: usize) -> usize {
        if self.window.is_some() { position % self.capacity } else { position }
    }

    /// Where unit `unit` of a row lies in a slot, in bytes.
    fn unit(&self, head: usize, row: usize, unit: usize) -> usize {
        16 * if self.keys {
            ((head * self.rows() / TILE + row / TILE) * self.units + unit) * TILE + row % TILE
        } else {
            (head * self.capacity + row) * self.units + unit
        }
    }

    fn scale(&self, head: usize, row: usize, block: usize) -> usize {
        let blocks = self.dim / 32;
        2 * if self.keys {
            ((head * self.rows() / TILE + row / TILE) * blocks + block) * TILE + row % TILE
        } else {
            (head * self.capacity + row) * blocks + block
        }
    }

    /// Copies one head of one row out of a slot.
    pub(crate) fn read(&self, slot: &[u8], scales: &[u8], head: usize, row: usize, out: &mut [u8]) {
        if !self.dtype.is_block() {
            for (unit, out) in out.chunks_mut(16).enumerate() {
                let at = self.unit(head, row, unit);
                out.copy_from_slice(&slot[at..at + out.len()]);
            }
            return;
        }
        for (b, out) in out.chunks_exact_mut(size_of::<BlockQ8_0>()).enumerate() {
            let at = self.scale(head, row, b);
            out[..2].copy_from_slice(&scales[at..at + 2]);
            for half in 0..2 {
                let at = self.unit(head, row, 2 * b + half);
                out[2 + 16 * half..18 + 16 * half].copy_from_slice(&slot[at..at + 16]);
            }
        }
    }

    /// Copies one head of one row into a slot.
    pub(crate) fn write(&self, slot: &mut [u8], scales: &mut [u8], head: usize, row: usize, bytes: &[u8]) {
        if !self.dtype.is_block() {
            for (unit, bytes) in bytes.chunks(16).enumerate() {
                let at = self.unit(head, row, unit);
                slot[at..at + bytes.len()].copy_from_slice(bytes);
            }
            return;
        }
        for (b, bytes) in bytes.chunks_exact(size_of::<BlockQ8_0>()).enumerate() {
            let at = self.scale(head, row, b);
            scales[at..at + 2].copy_from_slice(&bytes[..2]);
            for half in 0..2 {
                let at = self.unit(head, row, 2 * b + half);
                slot[at..at + 16].copy_from_slice(&bytes[2 + 16 * half..18 + 16 * half]);
            }
        }
    }
}
