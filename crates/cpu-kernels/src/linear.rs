//! The fused linear step: one or more matrices over the same activations, with what comes before (a normalization) and after (bias,
//! residual, activation, gated activation) done on the way.

use std::ops::Range;

use core_tensor::ValueId;
use core_tensor::op::Unary;

use crate::elementwise::{GatedRun, UnaryRows};
use crate::matmul::{ActivationKind, ActivationLayout, ActivationView, GROUP_ROWS, Output, PackedMatrix};
use crate::norm::Norm;
use crate::program::{RunContext, Step};
use crate::weights::MatrixId;

/// Where the results of a matrix go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// `y = Wx`, or a function of it.
    Store(ValueId, Option<Unary>),
    /// `y += Wx`, for a residual whose buffer `y` takes over.
    Accumulate(ValueId),
    /// `y = activation(Wx) * (Ux)`
    Gated { up: MatrixId, up_bias: Option<ValueId>, activation: Unary, y: ValueId },
}

/// One matrix of the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) weight: MatrixId,
    pub(crate) bias: Option<ValueId>,
    pub(crate) target: Target,
}

/// What a thread takes at a time.
pub(crate) type Unit = Vec<Chunk>;

/// Consecutive groups of one part.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    part: usize,
    groups: Range<usize>,
}

/// Normalization of the activations, computed while they are packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prologue {
    pub(crate) norm: Norm,
    /// Where the normalized rows are kept, if others read them, too.
    pub(crate) store: Option<ValueId>,
}

pub(crate) struct Linear {
    pub(crate) x: ValueId,
    pub(crate) k: usize,
    pub(crate) norm: Option<Prologue>,
    pub(crate) parts: Vec<Part>,
    /// Kinds of packed activations that the parts need, each with its scratch buffer.
    pub(crate) kinds: Vec<(ActivationKind, usize)>,
    /// Kind that each part reads, as an index into `kinds`.
    pub(crate) part_kinds: Vec<usize>,
    /// Scratch: per thread one row (the normalized activations) and two tiles (gate and up).
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
    /// Units of work of a step of few rows and of a step of many.
    pub(crate) units: [Vec<Unit>; 2],
}

/// Rows of a tile of gate and up results: with the outputs of [`TILE_GROUPS`] it stays in the first-level cache.
const TILE_ROWS: usize = 32;
/// The same where weights are brought into another form for each tile: that is to serve many rows, and the tile stays in the second-level cache.
const LONG_TILE_ROWS: usize = 256;
/// Rows whose results stay in the cache until a function has been applied to them: a multiple of every register tile.
const ACTIVATED_ROWS: usize = 240;
/// Rows that are normalized and packed together: those of a tile of packed activations.
const PACKED_ROWS: usize = 4;
/// Groups of a tile.
const TILE_GROUPS: usize = 4;
/// Up to so many rows a step is bound by the memory that the weights come from.
const FEW_ROWS: usize = 4;

impl Linear {
    /// Bytes of scratch that the step needs for one thread.
    pub(crate) fn scratch_bytes(k: usize) -> usize {
        (Self::row_floats(k) + 2 * LONG_TILE_ROWS * TILE_GROUPS * GROUP_ROWS) * 4
    }

    /// Floats of the normalized rows at the beginning of a thread's scratch.
    fn row_floats(k: usize) -> usize {
        (PACKED_ROWS * k).next_multiple_of(16)
    }

    /// Bytes of packed activations of one kind: shared by all threads for many rows, one row for each thread otherwise.
    pub(crate) fn packed_bytes(kind: ActivationKind, rows: usize, k: usize, threads: usize) -> usize {
        let one = Self::one_row_bytes(kind, k);
        ActivationLayout::max_bytes(kind, rows, k).max(ActivationLayout::max_bytes(kind, 3, k)).max(one * threads)
    }

    fn one_row_bytes(kind: ActivationKind, k: usize) -> usize {
        ActivationLayout::new(kind, 1, k).bytes().next_multiple_of(64)
    }

    /// Cuts parts of so many groups into units of work.
    ///
    /// With few rows each thread streams most of its share of the weights in one go, since every start of a stream costs;
    /// the rest is cut small, so that all end at the same time.
    pub(crate) fn units(parts: &[usize], threads: usize, few_rows: bool) -> Vec<Unit> {
        let total: usize = parts.iter().sum();
        // Of many rows two groups make a register tile.
        let least = if few_rows || total < 4 * threads { 1 } else { 2 };
        let small = if few_rows { total / (threads * 16) } else { (total / (threads * 8)).min(TILE_GROUPS) }.max(least);
        let large = total / threads * 3 / 4;
        let mut units = Vec::new();
        let (mut part, mut start) = (0, 0);
        while part < parts.len() {
            let mut left = if few_rows && units.len() < threads { large.max(small) } else { small };
            let mut unit = Unit::new();
            while left > 0 && part < parts.len() {
                let end = (start + left).min(parts[part]);
                if start < end {
                    unit.push(Chunk { part, groups: start..end });
                }
                left -= end - start;
                start = end;
                if start == parts[part] {
                    (part, start) = (part + 1, 0);
                }
                if !few_rows {
                    // Many rows read the weights from the cache: nothing is gained by going on with another matrix.
                    break;
                }
            }
            if !unit.is_empty() {
                units.push(unit);
            }
        }
        units
    }

    /// Packs some rows of the activations for every kind.
    fn pack(&self, cx: &RunContext<'_>, one_row: bool, rows: Range<usize>, layouts: &[(ActivationLayout, *mut u8)]) {
        let x = cx.view(self.x);
        let Some(norm) = self.norm else {
            for (layout, out) in layouts {
                let x = x.f32().wrapping_add(rows.start * self.k);
                // SAFETY: the rows are inside x and the layout, and this thread's alone.
                unsafe { layout.pack_rows(cx.level, *out, rows.clone(), x, self.k) };
            }
            return;
        };
        // Of one row each thread makes its own; the first one keeps it for others.
        let store = norm.store.filter(|_| !(one_row && cx.worker.index != 0)).map(|id| cx.view(id).f32());
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + PACKED_ROWS).min(rows.end);
            let normal = store.map_or(self.thread_scratch(cx), |store| store.wrapping_add(start * self.k));
            for row in start..end {
                let x = x.f32().wrapping_add(row * self.k);
                // SAFETY: a row of x, and one of this thread's rows of the scratch or of what is kept.
                unsafe { norm.norm.row(cx, x, normal.wrapping_add((row - start) * self.k), self.k) };
            }
            for (layout, out) in layouts {
                // SAFETY: rows of k elements, normalized above.
                unsafe { layout.pack_rows(cx.level, *out, start..end, normal, self.k) };
            }
            start = end;
        }
    }

    fn thread_scratch(&self, cx: &RunContext<'_>) -> *mut f32 {
        cx.scratch(self.scratch).wrapping_add(cx.worker.index * Self::scratch_bytes(self.k)).cast()
    }

    fn compute(&self, cx: &RunContext<'_>, chunk: &Chunk, rows: usize, views: &[ActivationView<'_>]) {
        let part = &self.parts[chunk.part];
        let view = &views[self.part_kinds[chunk.part]];
        let Some(matrix) = cx.weights.matrices.get(&part.weight) else { return };
        let bias = part.bias.map(|id| cx.floats(id));
        let column = chunk.groups.start * GROUP_ROWS;
        match part.target {
            Target::Store(y, Some(activation)) => {
                let (y, n) = (cx.view(y).f32().wrapping_add(column), matrix.n());
                let count = (chunk.groups.len() * GROUP_ROWS).min(n - column);
                for start in (0..rows).step_by(ACTIVATED_ROWS) {
                    let rows = start..(start + ACTIVATED_ROWS).min(rows);
                    let out = Output::new(y.wrapping_add(start * n), n).with_bias(bias);
                    // SAFETY: y holds rows × n results; this thread alone has these columns.
                    unsafe { matrix.matmul(cx.level, chunk.groups.clone(), view, rows.clone(), out) };
                    let y = y.wrapping_add(start * n);
                    cx.level.run(UnaryRows { op: activation, x: y, y, rows: rows.len(), stride: n, n: count });
                }
            }
            Target::Store(y, None) | Target::Accumulate(y) => {
                let y = cx.view(y).f32().wrapping_add(column);
                let accumulate = matches!(part.target, Target::Accumulate(_));
                let out = Output::new(y, matrix.n()).with_bias(bias).accumulating(accumulate);
                // SAFETY: y holds rows × n results; this thread alone has these columns.
                unsafe { matrix.matmul(cx.level, chunk.groups.clone(), view, 0..rows, out) };
            }
            Target::Gated { up, up_bias, activation, y } => {
                let Some(up) = cx.weights.matrices.get(&up) else { return };
                let up_bias = up_bias.map(|id| cx.floats(id));
                let gated =
                    GatedTile { activation, gate: matrix, gate_bias: bias, up, up_bias, view, y: cx.view(y).f32() };
                let tiles = self.thread_scratch(cx).wrapping_add(Self::row_floats(self.k));
                let tile_rows = if view.layout().kind() == ActivationKind::Q8 { TILE_ROWS } else { LONG_TILE_ROWS };
                let tile_groups = if rows == 1 { TILE_ROWS * TILE_GROUPS } else { TILE_GROUPS };
                let mut start = chunk.groups.start;
                while start < chunk.groups.end {
                    let end = (start + tile_groups).min(chunk.groups.end);
                    for row in (0..rows).step_by(tile_rows) {
                        gated.run(cx, start..end, row..(row + tile_rows).min(rows), tiles);
                    }
                    start = end;
                }
            }
        }
    }
}

/// What the gate and up tiles of a gated part share.
struct GatedTile<'a> {
    activation: Unary,
    gate: &'a PackedMatrix,
    gate_bias: Option<&'a [f32]>,
    up: &'a PackedMatrix,
    up_bias: Option<&'a [f32]>,
    view: &'a ActivationView<'a>,
    y: *mut f32,
}

impl GatedTile<'_> {
    fn run(&self, cx: &RunContext<'_>, groups: Range<usize>, rows: Range<usize>, tiles: *mut f32) {
        // The tile of one row is as wide as that of many is long.
        let stride = groups.len().max(TILE_GROUPS) * GROUP_ROWS;
        let (gate, up) = (tiles, tiles.wrapping_add(LONG_TILE_ROWS * TILE_GROUPS * GROUP_ROWS));
        let n = self.gate.n();
        let column = groups.start * GROUP_ROWS;
        let count = (groups.len() * GROUP_ROWS).min(n - column);
        // SAFETY: both tiles hold rows × stride results and are this thread's.
        unsafe {
            let out = Output::new(gate, stride).with_bias(self.gate_bias);
            self.gate.matmul(cx.level, groups.clone(), self.view, rows.clone(), out);
            let out = Output::new(up, stride).with_bias(self.up_bias);
            self.up.matmul(cx.level, groups, self.view, rows.clone(), out);
        }
        for (i, row) in rows.enumerate() {
            cx.level.run(GatedRun {
                activation: self.activation,
                gate: gate.wrapping_add(i * stride),
                up: up.wrapping_add(i * stride),
                y: self.y.wrapping_add(row * n + column),
                n: count,
            });
        }
    }
}

impl Step for Linear {
    fn describe(&self) -> String {
        let mut text = format!("Linear {}", self.x);
        if let Some(prologue) = &self.norm {
            text += &format!(" {}", prologue.norm.name());
            text += &prologue.store.map_or(String::new(), |y| format!(" -> {y}"));
        }
        for part in &self.parts {
            let bias = if part.bias.is_some() { " +bias" } else { "" };
            text += &match part.target {
                Target::Store(y, None) => format!("; {}{bias} -> {y}", part.weight),
                Target::Store(y, Some(activation)) => format!("; {activation:?}({}{bias}) -> {y}", part.weight),
                Target::Accumulate(y) => format!("; {}{bias} +-> {y}", part.weight),
                Target::Gated { up, activation, y, .. } => format!("; {activation:?}({}) * {up} -> {y}", part.weight),
            };
        }
        text
    }

    fn run(&self, cx: &RunContext<'_>) {
        let rows = cx.view(self.x).rows();
        let one_row = rows == 1;
        let layouts: Vec<(ActivationLayout, *mut u8)> = self
            .kinds
            .iter()
            .map(|(kind, buffer)| {
                let own = if one_row { cx.worker.index * Self::one_row_bytes(*kind, self.k) } else { 0 };
                (ActivationLayout::new(*kind, rows, self.k), cx.scratch(*buffer).wrapping_add(own))
            })
            .collect();
        if one_row {
            // Each thread packs the row for itself: that is faster than to wait for another.
            self.pack(cx, true, 0..1, &layouts);
        } else {
            let tile = layouts.first().map_or(1, |(layout, _)| layout.tile_rows());
            let tiles = cx.worker.share(rows.div_ceil(tile));
            if !tiles.is_empty() {
                self.pack(cx, false, tiles.start * tile..(tiles.end * tile).min(rows), &layouts);
            }
            cx.worker.barrier();
        }
        let views: Vec<ActivationView<'_>> = layouts
            .iter()
            // SAFETY: all rows were packed before the barrier (or by this thread), and the buffer is not written before the next one.
            .map(|(layout, data)| unsafe { ActivationView::from_raw(*layout, data.cast_const()) })
            .collect();
        let units = &self.units[usize::from(rows > FEW_ROWS)];
        while let Some(unit) = cx.claim(self.counter, units.len()) {
            for chunk in &units[unit] {
                self.compute(cx, chunk, rows, &views);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_hold_every_group_once() {
        for parts in [&[1][..], &[0], &[17], &[36, 12, 12], &[96], &[0, 5, 0, 3], &[3_072]] {
            for threads in [1, 2, 3, 64] {
                for few_rows in [true, false] {
                    let mut taken: Vec<Vec<usize>> = parts.iter().map(|groups| vec![0; *groups]).collect();
                    for chunk in Linear::units(parts, threads, few_rows).iter().flatten() {
                        chunk.groups.clone().for_each(|group| taken[chunk.part][group] += 1);
                    }
                    assert!(taken.iter().flatten().all(|count| *count == 1), "{parts:?}, {threads} threads");
                }
            }
        }
    }
}
