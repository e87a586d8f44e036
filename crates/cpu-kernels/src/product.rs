//! Products of computed matrices: both operands are packed on the way, as weights and activations are.

use core_tensor::ValueId;

use crate::matmul::{ActivationKind, ActivationLayout, ActivationView, GROUP_ROWS, Output, multiply_panels};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Floats of packed columns of B, at most (but for two groups): they stay in the second-level cache.
const PANEL_FLOATS: usize = 64 << 10;
/// Floats of packed rows of A, at most (but for one register tile).
const ROWS_FLOATS: usize = 128 << 10;
/// Rows of the tallest register tile.
const TILE_ROWS: usize = 12;

/// `Y = A·B` or `A·Bᵀ`, f32 `[..., m, k]` and `[..., k, n]` or `[..., n, k]`; the extents before broadcast.
pub(crate) struct TensorProduct {
    pub(crate) a: ValueId,
    pub(crate) b: ValueId,
    pub(crate) y: ValueId,
    pub(crate) transpose_b: bool,
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
    /// The extents m, n and k at the bounds, for which the scratch was sized.
    pub(crate) largest: [usize; 3],
}

/// Rows of A and groups of columns of B that are packed at a time.
fn blocks(m: usize, n: usize, k: usize) -> (usize, usize) {
    let rows = (ROWS_FLOATS / k.max(1) / TILE_ROWS * TILE_ROWS).clamp(TILE_ROWS, 240);
    let groups = (PANEL_FLOATS / (k.max(1) * GROUP_ROWS) / 2 * 2).max(2);
    (rows.min(m.next_multiple_of(TILE_ROWS)), groups.min(n.div_ceil(GROUP_ROWS)))
}

impl TensorProduct {
    /// Bytes of scratch for one thread.
    pub(crate) fn scratch_bytes([m, n, k]: [usize; 3]) -> usize {
        // A smaller k takes more rows and groups, but not more floats than these.
        let a = (m.next_multiple_of(TILE_ROWS) * k).min(ROWS_FLOATS.max(TILE_ROWS * k));
        let b = (n.next_multiple_of(GROUP_ROWS) * k).min(PANEL_FLOATS.max(2 * GROUP_ROWS * k));
        (a.next_multiple_of(16) + b.next_multiple_of(16)) * 4
    }
}

impl Step for TensorProduct {
    fn describe(&self) -> String {
        format!("MatMul {} {}{} -> {}", self.a, self.b, if self.transpose_b { " transposed" } else { "" }, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (a, b, y) = (cx.view(self.a), cx.view(self.b), cx.view(self.y));
        let ([a_batch @ .., m, k], [batch @ .., _, n]) = (a.shape, y.shape) else { return };
        let ([b_batch @ .., _, _], (m, n, k)) = (b.shape, (*m, *n, *k)) else { return };
        let count: usize = batch.iter().product();
        if count * m * n == 0 {
            return;
        }
        if m <= FEW_ROWS {
            return self.few_rows(cx, [count, m, n, k]);
        }
        let (most_rows, most_groups) = blocks(m, n, k);
        // Few matrices are cut into as many parts as keep all threads busy.
        let parts = (4 * cx.worker.count).div_ceil(count);
        let rows = m.div_ceil(parts).next_multiple_of(TILE_ROWS).min(most_rows);
        let row_blocks = m.div_ceil(rows);
        let groups = n.div_ceil(GROUP_ROWS);
        let scratch: *mut f32 = cx.scratch(self.scratch).cast();
        let scratch = scratch.wrapping_add(cx.worker.index * Self::scratch_bytes(self.largest) / 4);
        let panels = scratch.wrapping_add((most_rows * k).next_multiple_of(16));
        while let Some(unit) = cx.claim(self.counter, count * row_blocks) {
            let (matrix, first) = (unit / row_blocks, unit % row_blocks * rows);
            let rows = rows.min(m - first);
            let a = a.f32().wrapping_add((place(matrix, batch, a_batch) * m + first) * k);
            let b = b.f32().wrapping_add(place(matrix, batch, b_batch) * n * k);
            let y = y.f32().wrapping_add((matrix * m + first) * n);
            let layout = ActivationLayout::new(ActivationKind::F32, rows, k);
            // SAFETY: rows of A and the thread's scratch, which `scratch_bytes` has made large enough for them.
            let view = unsafe {
                layout.pack_rows(cx.level, scratch.cast(), 0..rows, a, k);
                ActivationView::from_raw(layout, scratch.cast_const().cast())
            };
            for start in (0..groups).step_by(most_groups) {
                let column = start * GROUP_ROWS;
                let width = (n - column).min(most_groups * GROUP_ROWS);
                cx.level.run(Pack { b, panels, n, k, column, width, transposed: self.transpose_b });
                let out = Output::new(y.wrapping_add(column), n);
                // SAFETY: the panels hold these columns; the rows of y are this thread's.
                unsafe { multiply_panels(cx.level, panels, width, &view, out) };
            }
        }
    }
}

impl TensorProduct {
    /// Few rows of A: B is read once, and packing it would cost more than the products.
    fn few_rows(&self, cx: &RunContext<'_>, [count, m, n, k]: [usize; 4]) {
        let (a, b, y) = (cx.view(self.a), cx.view(self.b), cx.view(self.y));
        let batch = |shape: &[usize]| shape.len() - 2;
        let chunks = n.div_ceil(FEW_COLUMNS);
        while let Some(unit) = cx.claim(self.counter, count * chunks) {
            let (matrix, column) = (unit / chunks, unit % chunks * FEW_COLUMNS);
            let outer = &y.shape[..batch(y.shape)];
            cx.level.run(FewRows {
                a: a.f32().wrapping_add(place(matrix, outer, &a.shape[..batch(a.shape)]) * m * k),
                b: b.f32().wrapping_add(place(matrix, outer, &b.shape[..batch(b.shape)]) * n * k),
                y: y.f32().wrapping_add(matrix * m * n),
                m,
                n,
                k,
                columns: column..(column + FEW_COLUMNS).min(n),
                transposed: self.transpose_b,
            });
        }
    }
}

/// Rows up to which columns are not packed.
const FEW_ROWS: usize = 4;
/// Columns of a unit of work of few rows: runs of B long enough for the memory.
const FEW_COLUMNS: usize = 128;

/// Some columns of a product of few rows.
struct FewRows {
    a: *const f32,
    b: *const f32,
    y: *mut f32,
    m: usize,
    n: usize,
    k: usize,
    columns: std::ops::Range<usize>,
    transposed: bool,
}

impl Kernel for FewRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the operands have these extents, and the columns are this thread's.
        unsafe {
            match self.m {
                1 => self.rows::<S, 1>(s),
                2 => self.rows::<S, 2>(s),
                3 => self.rows::<S, 3>(s),
                _ => self.rows::<S, 4>(s),
            }
        }
    }
}

impl FewRows {
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(&self, s: S) {
        // SAFETY: the caller's.
        unsafe {
            if self.transposed {
                for column in self.columns.clone() {
                    let b = self.b.add(column * self.k);
                    let mut acc = [[s.f_splat(0.0); 2]; M];
                    for i in (0..self.k).step_by(2 * S::LANES) {
                        for half in 0..2 {
                            let at = i + half * S::LANES;
                            let n = self.k.saturating_sub(at).min(S::LANES);
                            if n > 0 {
                                let whole = n == S::LANES;
                                let load = |p: *const f32| if whole { s.f_load(p) } else { s.f_load_first(p, n) };
                                let b = load(b.add(at));
                                for (row, acc) in acc.iter_mut().enumerate() {
                                    acc[half] = s.f_fma(load(self.a.add(row * self.k + at)), b, acc[half]);
                                }
                            }
                        }
                    }
                    for (row, acc) in acc.iter().enumerate() {
                        *self.y.add(row * self.n + column) = s.f_reduce_add(s.f_add(acc[0], acc[1]));
                    }
                }
                return;
            }
            let mut column = self.columns.start;
            while column + 4 * S::LANES <= self.columns.end {
                self.tile::<S, M, 4>(s, column, S::LANES);
                column += 4 * S::LANES;
            }
            while column < self.columns.end {
                let n = (self.columns.end - column).min(S::LANES);
                self.tile::<S, M, 1>(s, column, n);
                column += n;
            }
        }
    }

    /// `V` vectors of columns, the last of which has `last` that count.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(&self, s: S, column: usize, last: usize) {
        let mut acc = [[s.f_splat(0.0); V]; M];
        let count = |v: usize| if v + 1 == V { last } else { S::LANES };
        // SAFETY: the caller's.
        unsafe {
            for i in 0..self.k {
                let b = self.b.add(i * self.n + column);
                let b: [S::F; V] = std::array::from_fn(|v| {
                    let b = b.add(v * S::LANES);
                    if count(v) == S::LANES { s.f_load(b) } else { s.f_load_first(b, count(v)) }
                });
                for (row, acc) in acc.iter_mut().enumerate() {
                    let a = s.f_broadcast(self.a.add(row * self.k + i));
                    for v in 0..V {
                        acc[v] = s.f_fma(a, b[v], acc[v]);
                    }
                }
            }
            for (row, acc) in acc.iter().enumerate() {
                for v in 0..V {
                    s.f_store_first(self.y.add(row * self.n + column + v * S::LANES), acc[v], count(v));
                }
            }
        }
    }
}

/// Which matrix of an operand goes into a matrix of the result.
pub(crate) fn place(matrix: usize, batch: &[usize], operand: &[usize]) -> usize {
    let (mut rest, mut at, mut stride) = (matrix, 0, 1);
    for (i, extent) in batch.iter().enumerate().rev() {
        if let Some(j) = (i + operand.len()).checked_sub(batch.len()) {
            if operand[j] != 1 {
                at += rest % extent * stride;
            }
            stride *= operand[j];
        }
        rest /= extent;
    }
    at
}

/// Packs columns of B: `[k][16]` for each group, filled up with zeros.
struct Pack {
    b: *const f32,
    panels: *mut f32,
    n: usize,
    k: usize,
    column: usize,
    width: usize,
    transposed: bool,
}

impl Kernel for Pack {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group, at) in (0..self.width).step_by(GROUP_ROWS).enumerate() {
            let panel = self.panels.wrapping_add(group * GROUP_ROWS * self.k);
            let count = (self.width - at).min(GROUP_ROWS);
            // SAFETY: the columns are inside of B, and the panel holds k × 16.
            unsafe {
                if self.transposed {
                    self.transpose(panel, at, count);
                    continue;
                }
                for i in 0..self.k {
                    let row = self.b.add(i * self.n + self.column + at);
                    let mut lane = 0;
                    while lane < GROUP_ROWS {
                        let m = count.saturating_sub(lane).min(S::LANES);
                        s.f_store(panel.add(i * GROUP_ROWS + lane), s.f_load_first(row.wrapping_add(lane), m));
                        lane += S::LANES;
                    }
                }
            }
        }
    }
}

impl Pack {
    #[inline(always)]
    unsafe fn transpose(&self, panel: *mut f32, at: usize, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            for lane in 0..GROUP_ROWS {
                let row = self.b.wrapping_add((self.column + at + lane) * self.k);
                for i in 0..self.k {
                    *panel.add(i * GROUP_ROWS + lane) = if lane < count { *row.add(i) } else { 0.0 };
                }
            }
        }
    }
}
