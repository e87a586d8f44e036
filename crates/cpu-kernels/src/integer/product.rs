//! Products of bytes whose second operand is computed, too: it is packed on the way.

use super::linear::{Bytes, Finisher, Operand, Tail, UNIT_GROUPS, UNIT_ROWS, Unsigned, scratch_bytes, zero_points};
use crate::matmul::GROUP_ROWS;
use crate::matmul::integer::{Columns, Panels, RowTable, Rows, packed_bytes, quads};
use crate::product::place;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// `y = a · b` over batches that broadcast; one zero point for each operand.
pub(crate) struct IntegerProduct {
    pub(crate) a: Bytes,
    pub(crate) b: Bytes,
    pub(crate) tail: Tail,
    /// Scratch of each thread, of [`IntegerProduct::scratch_bytes`].
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
    /// The extents n and k at the bounds, for which the scratch was sized.
    pub(crate) largest: [usize; 2],
}

/// Bytes of packed columns at most (but for one group): they stay in the second-level cache.
const PANEL_BYTES: usize = 128 << 10;

/// Where the parts of a thread's scratch lie that come before the panels.
struct Parts {
    sums: usize,
    rows: usize,
    zeros: usize,
    panels: usize,
}

impl Parts {
    fn of([n, k]: [usize; 2]) -> Parts {
        let sums = scratch_bytes();
        let rows = sums + (4 * UNIT_ROWS).next_multiple_of(64);
        let zeros = rows + (UNIT_ROWS * k.next_multiple_of(4)).next_multiple_of(64);
        Parts { sums, rows, zeros, panels: zeros + 8 * n.next_multiple_of(GROUP_ROWS) }
    }
}

impl IntegerProduct {
    /// Bytes of scratch for one thread.
    pub(crate) fn scratch_bytes([n, k]: [usize; 2]) -> usize {
        let panels = packed_bytes(n, 1, k).min(PANEL_BYTES.max(packed_bytes(1, 1, k)));
        (Parts::of([n, k]).panels + panels).next_multiple_of(64)
    }
}

impl Step for IntegerProduct {
    fn describe(&self) -> String {
        format!("IntegerProduct {} {}{}", self.a.value, self.b.value, self.tail.describe())
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (a, b, y) = (cx.view(self.a.value), cx.view(self.b.value), cx.view(self.tail.result()));
        let ([a_batch @ .., m, k], [b_batch @ .., _, n]) = (a.shape, b.shape) else { return };
        let ([batch @ .., _, _], (m, n, k)) = (y.shape, (*m, *n, *k)) else { return };
        let count: usize = batch.iter().product();
        if count * m * n == 0 {
            return;
        }
        let parts = Parts::of(self.largest);
        let scratch = cx.scratch(self.scratch).wrapping_add(cx.worker.index * Self::scratch_bytes(self.largest));
        let (stride, flip) = (k.next_multiple_of(4), if self.b.signed { 0 } else { 0x80 });
        let zeros = zero_points(cx, &self.a);
        let b_zero = zero_points(cx, &self.b)[0] - 128;
        let groups = n.div_ceil(GROUP_ROWS);
        let most = (PANEL_BYTES / packed_bytes(1, 1, k).max(1)).clamp(1, groups);
        // Few matrices are cut into as many parts as keep all threads busy.
        let rows = m.div_ceil((4 * cx.worker.count).div_ceil(count)).next_multiple_of(12).min(UNIT_ROWS);
        let blocks = m.div_ceil(rows);
        let mut table = RowTable::new(1, k);
        while let Some(unit) = cx.claim(self.counter, count * blocks) {
            let (matrix, first) = (unit / blocks, unit % blocks * rows);
            let rows = rows.min(m - first);
            let bytes = scratch.wrapping_add(parts.rows);
            let sums: *mut i32 = scratch.wrapping_add(parts.sums).cast();
            let a = a.ptr.wrapping_add((place(matrix, batch, a_batch) * m + first) * k);
            cx.level.run(Unsigned { a, k, bytes, stride, sums, rows: 0..rows, signed: self.a.signed });
            table.fill(rows, |row, _| bytes.cast_const().wrapping_add(row * stride));
            // SAFETY: this thread's scratch, written above.
            let sums = unsafe { std::slice::from_raw_parts(sums, rows) };
            let b = b.ptr.cast_const().wrapping_add(place(matrix, batch, b_batch) * n * k);
            for start in (0..groups).step_by(most) {
                let end = (start + most).min(groups);
                let panels = scratch.wrapping_add(parts.panels);
                let column_sums: *mut i32 = scratch.wrapping_add(parts.zeros).cast();
                let column_zeros = column_sums.wrapping_add(groups * GROUP_ROWS);
                let pack = Pack { b, n, k, flip, zero: b_zero, groups: start..end, panels, column_sums, column_zeros };
                cx.level.run(pack);
                // SAFETY: this thread's scratch, room for all outputs, of which those of these groups have been written.
                let columns = unsafe {
                    Columns {
                        zeros: std::slice::from_raw_parts(column_zeros, groups * GROUP_ROWS),
                        sums: std::slice::from_raw_parts(column_sums, groups * GROUP_ROWS),
                        shifted: b_zero != 0,
                    }
                };
                // Groups are counted from the first of the matrix.
                let data = panels.cast_const().wrapping_sub(start * packed_bytes(1, 1, k));
                let panels = Panels { data, quads: quads(k) };
                for from in (start..end).step_by(UNIT_GROUPS) {
                    let groups = from..(from + UNIT_GROUPS).min(end);
                    let operand = Operand::Matrix { panels, n, columns };
                    let finisher = Finisher::new(cx, operand, &self.tail, scratch.cast(), groups, 0);
                    finisher.rows(&table, Rows { zeros: &zeros, sums }, matrix * m + first);
                }
            }
        }
    }
}

/// Packs some groups of columns of `[k, n]` bytes, with their sums.
struct Pack {
    b: *const u8,
    n: usize,
    k: usize,
    flip: u8,
    zero: i32,
    groups: std::ops::Range<usize>,
    panels: *mut u8,
    column_sums: *mut i32,
    column_zeros: *mut i32,
}

impl Kernel for Pack {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let quads = quads(self.k);
        for (at, group) in self.groups.enumerate() {
            let panel = self.panels.wrapping_add(at * quads * 4 * GROUP_ROWS);
            let column = group * GROUP_ROWS;
            let count = (self.n - column).min(GROUP_ROWS);
            for quad in 0..quads {
                let mut rows = [[0u8; GROUP_ROWS]; 4];
                let mut words = [0u32; GROUP_ROWS];
                for (i, row) in rows.iter_mut().enumerate().take(self.k - 4 * quad) {
                    let from = self.b.wrapping_add((4 * quad + i) * self.n + column);
                    // SAFETY: these columns of a row of b.
                    unsafe {
                        if count == GROUP_ROWS {
                            *row = from.cast::<[u8; GROUP_ROWS]>().read_unaligned();
                        } else {
                            std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), count);
                        }
                    }
                    row.iter_mut().for_each(|byte| *byte ^= self.flip);
                }
                for (lane, word) in words.iter_mut().enumerate() {
                    *word = u32::from(rows[0][lane])
                        | u32::from(rows[1][lane]) << 8
                        | u32::from(rows[2][lane]) << 16
                        | u32::from(rows[3][lane]) << 24;
                }
                // SAFETY: the panel holds a vector of sixteen words for each quad.
                unsafe {
                    panel.add(quad * 4 * GROUP_ROWS).cast::<[u32; GROUP_ROWS]>().write_unaligned(words.map(u32::to_le))
                };
            }
            let ones = [1u8; 4];
            let mut lane = 0;
            while lane < GROUP_ROWS {
                let mut sums = [[s.i_splat(0)]];
                // SAFETY: the panel was written above; sums and zero points have room for whole groups.
                unsafe {
                    for quad in 0..quads {
                        let w = s.i_load(panel.add((quad * GROUP_ROWS + lane) * 4));
                        s.dot_bytes::<1, 1>(&mut sums, [w], [ones.as_ptr()]);
                    }
                    let shift = self.zero.wrapping_mul(self.k as i32);
                    let sums = s.i_sub(sums[0][0], s.i_splat(shift));
                    s.i_store(self.column_sums.add(column + lane).cast(), sums);
                    s.i_store(self.column_zeros.add(column + lane).cast(), s.i_splat(self.zero));
                }
                lane += S::LANES;
            }
        }
    }
}
