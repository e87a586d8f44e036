//! Products of bytes, exactly: `y[r][o] = Σ (a[r][k] - a_zero) · (w[o][k] - w_zero[o])` in i32, wrapping.
//!
//! Activations are unsigned and weights signed, which is what dot-product instructions take; where they are not, 128 moves to the zero point.
//! Zero points are taken off at the end: `Σ a·w - a_zero · (Σ w - k·w_zero) - w_zero · Σ a`, the last of which needs the sum of a row only where
//! weights have a zero point.
//!
//! Weights lie in groups of sixteen outputs: per quad (four weights along k) 64 bytes, four of each output. Activations are read where they are, by
//! a table of pointers: a row of a matrix is one run of bytes, and the window of a convolution one run for each of its taps.

use std::ops::Range;

use super::buffer::Buffer;
use super::formats::GROUP;
use crate::simd::{Kernel, Level, Simd};

/// Rows of the tallest register tile; row tables come in tiles of so many.
pub(crate) const TILE: usize = 12;

/// Weights of `n` outputs, `taps` runs of `k` bytes each.
#[derive(Debug)]
pub(crate) struct IntegerMatrix {
    n: usize,
    taps: usize,
    k: usize,
    data: Buffer,
    zeros: Vec<i32>,
    sums: Vec<i32>,
}

/// Zero points and sums of outputs, of which a product needs those from its first output on.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// The zero point of each output, filled up to whole groups.
    pub(crate) zeros: &'a [i32],
    /// `Σ w - k · zero` of each output, filled up to whole groups.
    pub(crate) sums: &'a [i32],
    /// Whether any zero point is another than 0.
    pub(crate) shifted: bool,
}

/// Quads of a run of `k` bytes.
pub(crate) const fn quads(k: usize) -> usize {
    k.div_ceil(4)
}

/// Bytes of `n` packed outputs.
pub(crate) const fn packed_bytes(n: usize, taps: usize, k: usize) -> usize {
    n.div_ceil(GROUP) * GROUP * 4 * taps * quads(k)
}

impl IntegerMatrix {
    /// Packs weights: `weight(output, tap, i)` is a byte as stored, `signed` or not, `zero(output)` its zero point. `None` if there is no memory.
    pub(crate) fn pack(
        [n, taps, k]: [usize; 3],
        signed: bool,
        weight: impl Fn(usize, usize, usize) -> u8,
        zero: impl Fn(usize) -> i32,
    ) -> Option<IntegerMatrix> {
        let data = Buffer::new(packed_bytes(n, taps, k))?;
        let padded = n.next_multiple_of(GROUP);
        let (mut zeros, mut sums) = (vec![0; padded], vec![0i32; padded]);
        let flip = if signed { 0 } else { 0x80 };
        // SAFETY: nobody else knows the buffer yet.
        let out = unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr(), data.len()) };
        out.fill(0);
        let group_bytes = GROUP * 4 * taps * quads(k);
        for o in 0..n {
            let lane = &mut out[o / GROUP * group_bytes + o % GROUP * 4..];
            for tap in 0..taps {
                for i in 0..k {
                    let byte = weight(o, tap, i) ^ flip;
                    sums[o] = sums[o].wrapping_add(i32::from(byte.cast_signed()));
                    lane[(tap * quads(k) + i / 4) * 4 * GROUP + i % 4] = byte;
                }
            }
            zeros[o] = zero(o) - i32::from(flip);
            sums[o] = sums[o].wrapping_sub(zeros[o].wrapping_mul((taps * k) as i32));
        }
        Some(IntegerMatrix { n, taps, k, data, zeros, sums })
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Bytes of a run.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn groups(&self) -> usize {
        self.n.div_ceil(GROUP)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len() + 4 * (self.zeros.len() + self.sums.len())
    }

    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns { zeros: &self.zeros, sums: &self.sums, shifted: self.zeros.iter().any(|zero| *zero != 0) }
    }

    pub(crate) fn panels(&self) -> Panels {
        Panels { data: self.data.as_ptr(), quads: self.taps * quads(self.k) }
    }
}

/// Packed weights in memory.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) data: *const u8,
    /// Quads of an output.
    pub(crate) quads: usize,
}

/// Where the activations of some rows lie: for each tile of [`TILE`] rows, `[taps][TILE]` pointers, and the quads that are read at each.
pub(crate) struct RowTable {
    pointers: Vec<*const u8>,
    rows: usize,
    taps: usize,
    quads: usize,
}

impl RowTable {
    /// A table of no rows, to be [filled](Self::fill).
    pub(crate) fn new(taps: usize, k: usize) -> RowTable {
        RowTable { pointers: Vec::new(), rows: 0, taps, quads: quads(k) }
    }

    /// Sets the rows: `place(row, tap)` is where a run begins.
    pub(crate) fn fill(&mut self, rows: usize, place: impl Fn(usize, usize) -> *const u8) {
        self.rows = rows;
        self.pointers.clear();
        for tile in (0..rows).step_by(TILE) {
            for tap in 0..self.taps {
                // The rows beyond the last are computed, but not stored.
                self.pointers.extend((tile..tile + TILE).map(|row| place(row.min(rows - 1), tap)));
            }
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Where a run of a row begins.
    pub(crate) fn pointer(&self, row: usize, tap: usize) -> *const u8 {
        self.pointers[(row / TILE * self.taps + tap) * TILE + row % TILE]
    }
}

/// What is done with sums: called for each vector of a row.
pub(crate) trait Finish {
    /// Takes the exact products of outputs `first .. first + count` of a row.
    ///
    /// # Safety
    /// `count <= LANES`; row and outputs are within what the implementor writes to.
    unsafe fn finish<S: Simd>(&self, s: S, row: usize, first: usize, count: usize, v: S::I);
}

/// Zero points of rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// One for all, or one for each row; those of activations as unsigned bytes.
    pub(crate) zeros: &'a [i32],
    /// Sums of the activations, where weights have zero points.
    pub(crate) sums: &'a [i32],
}

/// A product of rows with groups of outputs.
pub(crate) struct Product<'a, F> {
    pub(crate) panels: Panels,
    pub(crate) n: usize,
    pub(crate) groups: Range<usize>,
    pub(crate) table: &'a RowTable,
    pub(crate) columns: Columns<'a>,
    pub(crate) rows: Rows<'a>,
    pub(crate) finish: F,
}

impl<F: Finish> Product<'_, F> {
    /// Computes it.
    ///
    /// # Safety
    /// Every pointer of the table is readable for its quads; the panels hold the groups; [`Finish`] may be called for every row and output.
    pub(crate) unsafe fn run(self, level: Level) {
        assert!(self.panels.quads == self.table.taps * self.table.quads, "rows and weights differ in length");
        assert!(
            self.columns.sums.len() >= self.groups.end * GROUP && self.columns.zeros.len() >= self.groups.end * GROUP
        );
        assert!(self.rows.zeros.len() == 1 || self.rows.zeros.len() >= self.table.rows);
        assert!(!self.columns.shifted || self.rows.sums.len() >= self.table.rows);
        if self.table.rows > 0 {
            level.run(self);
        }
    }
}

impl<F: Finish> Kernel for Product<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let per_group = GROUP / S::LANES;
        let (mut vector, end) = (self.groups.start * per_group, self.groups.end * per_group);
        // SAFETY: `run`'s caller vouches for pointers and results.
        unsafe {
            if self.table.rows < 4 {
                while vector + 4 <= end {
                    match self.table.rows {
                        1 => self.tile::<S, 1, 4>(s, 0, vector),
                        2 => self.tile::<S, 2, 4>(s, 0, vector),
                        _ if S::LANES == 16 => self.tile::<S, 3, 4>(s, 0, vector),
                        _ => {
                            self.tile::<S, 3, 2>(s, 0, vector);
                            self.tile::<S, 3, 2>(s, 0, vector + 2);
                        }
                    }
                    vector += 4;
                }
                while vector < end {
                    match self.table.rows {
                        1 => self.tile::<S, 1, 1>(s, 0, vector),
                        2 => self.tile::<S, 2, 1>(s, 0, vector),
                        _ => self.tile::<S, 3, 1>(s, 0, vector),
                    }
                    vector += 1;
                }
                return;
            }
            while vector + 2 <= end {
                self.rows_of::<S, 2>(s, vector);
                vector += 2;
            }
            if vector < end {
                self.rows_of::<S, 1>(s, vector);
            }
        }
    }
}

impl<F: Finish> Product<'_, F> {
    /// All rows of `NG` vectors of outputs.
    #[inline(always)]
    unsafe fn rows_of<S: Simd, const NG: usize>(&self, s: S, vector: usize) {
        let rows = self.table.rows;
        let mut row = 0;
        // SAFETY: the caller's.
        unsafe {
            while row < rows {
                // Within a tile of the table.
                let left = (rows - row).min(TILE - row % TILE);
                if S::LANES == 16 && left > 8 {
                    self.tile::<S, 12, NG>(s, row, vector);
                    row += 12;
                } else if S::LANES == 16 && left > 4 {
                    self.tile::<S, 8, NG>(s, row, vector);
                    row += 8;
                } else {
                    self.tile::<S, 4, NG>(s, row, vector);
                    row += 4;
                }
            }
        }
    }

    /// `NC` rows of `NG` vectors of outputs.
    #[inline(always)]
    unsafe fn tile<S: Simd, const NC: usize, const NG: usize>(&self, s: S, row: usize, vector: usize) {
        let table = self.table;
        let group_bytes = self.panels.quads * 4 * GROUP;
        let per_group = GROUP / S::LANES;
        // Vectors of the same group lie side by side, groups one after the other.
        let mut weights: [*const u8; NG] = std::array::from_fn(|g| {
            let vector = vector + g;
            self.panels.data.wrapping_add(vector / per_group * group_bytes + vector % per_group * S::LANES * 4)
        });
        let mut acc = [[s.i_splat(0); NG]; NC];
        let tile = &table.pointers[row / TILE * TILE * table.taps..];
        for tap in 0..table.taps {
            let from = &tile[tap * TILE + row % TILE..][..NC.min(TILE)];
            let mut a: [*const u8; NC] = std::array::from_fn(|c| from[c]);
            // SAFETY: runs of these quads, says the caller.
            unsafe {
                for _ in 0..table.quads / 4 {
                    for quad in 0..4 {
                        let w = weights.map(|p| s.i_load(p.wrapping_add(4 * GROUP * quad)));
                        s.dot_bytes::<NC, NG>(&mut acc, w, a.map(|a| a.wrapping_add(4 * quad)));
                    }
                    a = a.map(|a| a.wrapping_add(16));
                    weights = weights.map(|p| p.wrapping_add(16 * GROUP));
                }
                for _ in 0..table.quads % 4 {
                    s.dot_bytes::<NC, NG>(&mut acc, weights.map(|p| s.i_load(p)), a);
                    a = a.map(|a| a.wrapping_add(4));
                    weights = weights.map(|p| p.wrapping_add(4 * GROUP));
                }
            }
        }
        for g in 0..NG {
            let first = (vector + g) * S::LANES;
            let count = self.n.saturating_sub(first).min(S::LANES);
            if count == 0 {
                continue;
            }
            // SAFETY: both are filled up to whole groups, as `run` has checked; rows of the table are the finisher's.
            unsafe {
                let sums = s.i_load(self.columns.sums.as_ptr().add(first).cast());
                let zeros = s.i_load(self.columns.zeros.as_ptr().add(first).cast());
                for (c, acc) in acc.iter().enumerate() {
                    let row = row + c;
                    if row >= table.rows {
                        break;
                    }
                    let zero = self.rows.zeros[if self.rows.zeros.len() == 1 { 0 } else { row }];
                    let mut v = s.i_sub(acc[g], s.i_mul(s.i_splat(zero), sums));
                    if self.columns.shifted {
                        v = s.i_sub(v, s.i_mul(s.i_splat(self.rows.sums[row]), zeros));
                    }
                    self.finish.finish(s, row, first, count, v);
                }
            }
        }
    }
}
