//! A product of bytes with a constant matrix, and the scales, bias, function, residual or requantization behind it as one step.

use core_tensor::ValueId;
use core_tensor::op::Unary;

use super::depthwise::{ChannelProduct, ChannelWindows};
use super::quantize::{QuantizeRows, zero_at};
use crate::elementwise::UnaryRows;
use crate::matmul::GROUP_ROWS;
use crate::matmul::integer::{Columns, Finish, IntegerMatrix, Panels, Product, RowTable, Rows};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};
use crate::weights::{IntegerId, PackedIntegers};

/// The bytes that a product multiplies: a value of two or more extents, and its zero points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    pub(crate) value: ValueId,
    pub(crate) signed: bool,
    /// One for all, or one for each row of a matrix.
    pub(crate) zero: Option<ValueId>,
}

/// What follows the exact product.
#[derive(Clone, Debug)]
pub(crate) enum Tail {
    /// Nothing: i32.
    Sums(ValueId),
    /// `function(float(sum) * (scale * scale) + bias)`.
    Floats(Floats),
}

/// Scales are one number, or one for each output.
#[derive(Clone, Debug)]
pub(crate) struct Floats {
    /// i32 added to the sums, one for each output.
    pub(crate) sum_bias: Option<ValueId>,
    pub(crate) scales: [Option<ValueId>; 2],
    pub(crate) bias: Option<ValueId>,
    pub(crate) activation: Option<Unary>,
    pub(crate) target: Target,
}

/// Where f32 results go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Store(ValueId),
    /// Added to a residual whose buffer the value takes over.
    Accumulate(ValueId),
    /// Rounded to bytes with one scale.
    Quantize {
        y: ValueId,
        scale: ValueId,
        zero: Option<ValueId>,
        signed: bool,
    },
}

impl Tail {
    pub(crate) fn reads(&self) -> Vec<ValueId> {
        let Tail::Floats(floats) = self else { return Vec::new() };
        let mut all: Vec<ValueId> =
            floats.scales.into_iter().flatten().chain(floats.bias).chain(floats.sum_bias).collect();
        match floats.target {
            Target::Store(_) => {}
            Target::Accumulate(y) => all.push(y),
            Target::Quantize { scale, zero, .. } => all.extend([scale].into_iter().chain(zero)),
        }
        all
    }

    pub(crate) fn result(&self) -> ValueId {
        match self {
            Tail::Sums(y) => *y,
            Tail::Floats(floats) => match floats.target {
                Target::Store(y) | Target::Accumulate(y) | Target::Quantize { y, .. } => y,
            },
        }
    }

    pub(crate) fn describe(&self) -> String {
        let Tail::Floats(floats) = self else { return format!(" -> {}", self.result()) };
        let mut text = " scaled".to_owned();
        if floats.bias.is_some() || floats.sum_bias.is_some() {
            text += " +bias";
        }
        if let Some(activation) = floats.activation {
            text += &format!(" {activation:?}");
        }
        let y = self.result();
        text + &match floats.target {
            Target::Store(_) => format!(" -> {y}"),
            Target::Accumulate(_) => format!(" +-> {y}"),
            Target::Quantize { .. } => format!(" quantized -> {y}"),
        }
    }
}

/// `y = a · w` for a constant matrix.
pub(crate) struct IntegerLinear {
    pub(crate) a: Bytes,
    pub(crate) weight: IntegerId,
    pub(crate) tail: Tail,
    /// Scratch: all rows as unsigned bytes with lengths that are multiples of four, and their sums; `None` where they are read as they are.
    pub(crate) rows: Option<usize>,
    /// Scratch of each thread, of [`scratch_bytes`].
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Rows of a unit of work whose results, [`UNIT_GROUPS`] wide, stay in the cache until they are finished.
pub(crate) const UNIT_ROWS: usize = 120;
/// Groups of a unit of work at most.
pub(crate) const UNIT_GROUPS: usize = 4;
/// Outputs of a unit.
pub(crate) const UNIT_OUTPUTS: usize = UNIT_GROUPS * GROUP_ROWS;
/// Bytes of activations that stay in the second-level cache while groups pass over them.
const CHUNK_BYTES: usize = 192 << 10;

/// Bytes of scratch for one thread: scales and both biases of a unit's outputs, and its results.
pub(crate) const fn scratch_bytes() -> usize {
    4 * UNIT_OUTPUTS * (3 + UNIT_ROWS)
}

impl IntegerLinear {
    /// Bytes of rows that are made unsigned.
    pub(crate) fn rows_bytes(rows: usize, k: usize) -> usize {
        (rows * k.next_multiple_of(4)).next_multiple_of(64) + 4 * rows
    }
}

impl Step for IntegerLinear {
    fn describe(&self) -> String {
        format!("IntegerLinear {}; {}{}", self.a.value, self.weight.weight, self.tail.describe())
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(PackedIntegers::Matrix(matrix)) = cx.weights.integers.get(&self.weight) else { return };
        let a = cx.view(self.a.value);
        let (rows, k) = (a.rows(), matrix.k());
        let (mut data, mut stride): (*const u8, usize) = (a.ptr, k);
        let mut sums: &[i32] = &[];
        if let Some(buffer) = self.rows {
            let bytes = cx.scratch(buffer);
            stride = k.next_multiple_of(4);
            let all: *mut i32 = bytes.wrapping_add((rows * stride).next_multiple_of(64)).cast();
            let signed = self.a.signed;
            cx.level.run(Unsigned { a: a.ptr, k, bytes, stride, sums: all, rows: cx.worker.share(rows), signed });
            cx.worker.barrier();
            data = bytes;
            if rows > 0 {
                // SAFETY: written before the barrier, and not again before the next one.
                sums = unsafe { std::slice::from_raw_parts(all, rows) };
            }
        }
        let zeros = zero_points(cx, &self.a);
        let chunk = (CHUNK_BYTES / stride.max(1) / UNIT_ROWS * UNIT_ROWS).max(UNIT_ROWS);
        let groups = matrix.groups();
        let width = (groups / (4 * cx.worker.count)).clamp(1, UNIT_GROUPS);
        let width = if width == 1 && groups >= 4 { 2 } else { width };
        let (chunks, columns) = (rows.div_ceil(chunk), groups.div_ceil(width));
        let mut table = RowTable::new(1, k);
        while let Some(unit) = cx.claim(self.counter, chunks * columns) {
            let first = unit / columns * chunk;
            let last = (first + chunk).min(rows);
            let start = unit % columns * width;
            let groups = start..(start + width).min(groups);
            let scratch = cx.scratch(self.scratch).wrapping_add(cx.worker.index * scratch_bytes()).cast();
            let finisher = Finisher::new(cx, Operand::of(matrix), &self.tail, scratch, groups.clone(), 0);
            // Results that are looked at again are made in tiles that stay in the cache.
            let step = if finisher.direct() { chunk } else { UNIT_ROWS };
            for from in (first..last).step_by(step) {
                let to = (from + step).min(last);
                table.fill(to - from, |row, _| data.wrapping_add((from + row) * stride));
                let pick = |all: &'_ [i32]| if all.len() > 1 { from..to } else { 0..all.len() };
                let rows =
                    Rows { zeros: &zeros[pick(&zeros)], sums: &sums[if sums.is_empty() { 0..0 } else { from..to }] };
                finisher.rows(&table, rows, from);
            }
        }
    }
}

/// The zero points of unsigned bytes.
pub(crate) fn zero_points(cx: &RunContext<'_>, a: &Bytes) -> Vec<i32> {
    let flip = if a.signed { 128 } else { 0 };
    let zero = a.zero.map(|zero| cx.view(zero));
    (0..zero.map_or(1, |zero| zero.len())).map(|i| zero_at(zero, i, a.signed) + flip).collect()
}

/// Rows as unsigned bytes, filled up to multiples of four, and their sums.
pub(crate) struct Unsigned {
    pub(crate) a: *const u8,
    pub(crate) k: usize,
    pub(crate) bytes: *mut u8,
    pub(crate) stride: usize,
    pub(crate) sums: *mut i32,
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) signed: bool,
}

impl Kernel for Unsigned {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let flip = if self.signed { 0x80 } else { 0 };
        for row in self.rows {
            // SAFETY: rows of k and stride bytes; this thread's, where they are written.
            unsafe {
                let from = std::slice::from_raw_parts(self.a.add(row * self.k), self.k);
                let to = std::slice::from_raw_parts_mut(self.bytes.add(row * self.stride), self.stride);
                let mut sum = 0u32;
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from ^ flip;
                    sum = sum.wrapping_add(u32::from(*to));
                }
                to[self.k..].fill(0);
                self.sums.add(row).write(sum.cast_signed());
            }
        }
    }
}

/// What rows are multiplied with.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Matrix { panels: Panels, n: usize, columns: Columns<'a> },
    Channels(&'a ChannelWindows),
}

impl<'a> Operand<'a> {
    pub(crate) fn of(matrix: &'a IntegerMatrix) -> Operand<'a> {
        Operand::Matrix { panels: matrix.panels(), n: matrix.n(), columns: matrix.columns() }
    }
}

/// What finishes the results of some groups of outputs.
pub(crate) struct Finisher<'a, 'c> {
    cx: &'a RunContext<'c>,
    operand: Operand<'a>,
    n: usize,
    tail: &'a Tail,
    groups: std::ops::Range<usize>,
    /// Scales of the groups' outputs, then biases of both kinds.
    scales: *mut f32,
    biased: bool,
    sums_biased: bool,
    tile: *mut f32,
}

impl<'a, 'c> Finisher<'a, 'c> {
    /// For a matrix of `n` outputs, the first of which has the tail's scale and bias number `base`; `scales` is a thread's scratch, of
    /// [`scratch_bytes`].
    pub(crate) fn new(
        cx: &'a RunContext<'c>,
        operand: Operand<'a>,
        tail: &'a Tail,
        scales: *mut f32,
        groups: std::ops::Range<usize>,
        base: usize,
    ) -> Self {
        let n = match operand {
            Operand::Matrix { n, .. } => n,
            Operand::Channels(windows) => windows.n(),
        };
        let tile = scales.wrapping_add(3 * UNIT_OUTPUTS);
        let (mut biased, mut sums_biased) = (false, false);
        if let Tail::Floats(floats) = tail {
            let first = groups.start * GROUP_ROWS;
            let count = (groups.len() * GROUP_ROWS).min(n - first);
            (biased, sums_biased) = (floats.bias.is_some(), floats.sum_bias.is_some());
            // SAFETY: room for the outputs of a unit, which is this thread's.
            let (scales, biases, sum_biases) = unsafe {
                (
                    std::slice::from_raw_parts_mut(scales, UNIT_OUTPUTS),
                    std::slice::from_raw_parts_mut(scales.add(UNIT_OUTPUTS), UNIT_OUTPUTS),
                    std::slice::from_raw_parts_mut(scales.add(2 * UNIT_OUTPUTS).cast::<i32>(), UNIT_OUTPUTS),
                )
            };
            // What fills up the last group is computed, too, and not stored or not read.
            scales.fill(0.0);
            factors(cx, floats, base + first, &mut scales[..count]);
            if let Some(bias) = floats.bias {
                biases[..count].copy_from_slice(&cx.floats(bias)[base + first..base + first + count]);
            }
            if let Some(bias) = floats.sum_bias {
                sum_biases[..count].copy_from_slice(&cx.ints(bias)[base + first..base + first + count]);
            }
        }
        Finisher { cx, operand, n, tail, groups, scales, biased, sums_biased, tile }
    }

    /// Whether results go where they belong at once.
    fn direct(&self) -> bool {
        match self.tail {
            Tail::Sums(_) => true,
            Tail::Floats(floats) => floats.activation.is_none() && !matches!(floats.target, Target::Quantize { .. }),
        }
    }

    /// The results of some rows, of which `from` is the first.
    pub(crate) fn rows(&self, table: &RowTable, rows: Rows<'_>, from: usize) {
        let (cx, n) = (self.cx, self.n);
        let first = self.groups.start * GROUP_ROWS;
        let count = (self.groups.len() * GROUP_ROWS).min(n - first);
        let floats = match self.tail {
            Tail::Sums(y) => {
                let y = cx.view(*y).ptr.cast::<i32>().wrapping_add(from * n);
                return self.multiply(table, rows, Sums { y, stride: n, column: 0 });
            }
            Tail::Floats(floats) => floats,
        };
        match floats.target {
            Target::Store(y) | Target::Accumulate(y) => {
                let accumulate = matches!(floats.target, Target::Accumulate(_));
                let y = cx.view(y).f32().wrapping_add(from * n);
                self.scaled(table, rows, (y, n, 0), accumulate);
                let y = y.wrapping_add(first);
                if let Some(op) = floats.activation {
                    cx.level.run(UnaryRows { op, x: y, y, rows: table.rows(), stride: n, n: count });
                }
            }
            Target::Quantize { y, scale, zero, signed } => {
                let tile = self.tile(table, rows);
                let zero = zero_at(zero.map(|zero| cx.view(zero)), 0, signed);
                let y = cx.view(y).ptr.wrapping_add(from * n + first);
                let (rows, scale, strides) = (table.rows(), cx.floats(scale)[0], [UNIT_OUTPUTS, n]);
                cx.level.run(QuantizeRows { x: tile, y, rows, strides, n: count, scale, zero, signed });
            }
        }
    }

    /// The same into the thread's tile, `[rows][UNIT_OUTPUTS]`: i32 for sums, else f32 after the function. It holds [`UNIT_ROWS`].
    pub(crate) fn tile(&self, table: &RowTable, rows: Rows<'_>) -> *mut f32 {
        let first = self.groups.start * GROUP_ROWS;
        match self.tail {
            Tail::Sums(_) => {
                self.multiply(table, rows, Sums { y: self.tile.cast(), stride: UNIT_OUTPUTS, column: first });
            }
            Tail::Floats(floats) => {
                self.scaled(table, rows, (self.tile, UNIT_OUTPUTS, first), false);
                if let Some(op) = floats.activation {
                    let (x, n) = (self.tile, (self.groups.len() * GROUP_ROWS).min(self.n - first));
                    self.cx.level.run(UnaryRows { op, x, y: x, rows: table.rows(), stride: UNIT_OUTPUTS, n });
                }
            }
        }
        self.tile
    }

    /// Scaled results at `y`, rows of so many elements, of which the first is that of output `column`.
    fn scaled(
        &self,
        table: &RowTable,
        rows: Rows<'_>,
        (y, stride, column): (*mut f32, usize, usize),
        accumulate: bool,
    ) {
        let bias = if self.biased { self.scales.wrapping_add(UNIT_OUTPUTS) } else { std::ptr::null_mut() };
        let sum_bias: *const i32 =
            if self.sums_biased { self.scales.wrapping_add(2 * UNIT_OUTPUTS).cast() } else { std::ptr::null() };
        let (scales, first) = (self.scales.cast_const(), self.groups.start * GROUP_ROWS);
        self.multiply(table, rows, Scaled { y, stride, column, first, scales, sum_bias, bias, accumulate });
    }

    fn multiply<F: Finish>(&self, table: &RowTable, rows: Rows<'_>, finish: F) {
        let groups = self.groups.clone();
        match self.operand {
            Operand::Matrix { panels, n, columns } => {
                let product = Product { panels, n, groups, table, columns, rows, finish };
                // SAFETY: the rows have the matrix's number of bytes, and results of these rows and outputs are this thread's.
                unsafe { product.run(self.cx.level) };
            }
            Operand::Channels(windows) => {
                self.cx.level.run(ChannelProduct { windows, groups, table, zero: rows.zeros[0], finish });
            }
        }
    }
}

/// The products of a tail's scales for outputs from `first` on.
pub(crate) fn factors(cx: &RunContext<'_>, floats: &Floats, first: usize, out: &mut [f32]) {
    let at = |scale: Option<ValueId>| scale.map(|id| cx.floats(id));
    let pick = |scale: &[f32], i: usize| scale[if scale.len() == 1 { 0 } else { first + i }];
    let (a, b) = (at(floats.scales[0]), at(floats.scales[1]));
    for (i, out) in out.iter_mut().enumerate() {
        *out = match (a, b) {
            (Some(a), Some(b)) => pick(a, i) * pick(b, i),
            (Some(a), None) => pick(a, i),
            _ => 1.0,
        };
    }
}

/// Stores the sums; `column` is the first output of a row of `y`.
pub(crate) struct Sums {
    pub(crate) y: *mut i32,
    pub(crate) stride: usize,
    pub(crate) column: usize,
}

impl Finish for Sums {
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, row: usize, first: usize, count: usize, v: S::I) {
        // SAFETY: the caller's.
        unsafe { s.f_store_first(self.y.add(row * self.stride + first - self.column).cast(), s.f_from_bits(v), count) };
    }
}

/// Stores `float(sum + sum_bias) * scale + bias`; scales and biases are those of outputs from `first` on, `column` is the first output of a row of `y`.
pub(crate) struct Scaled {
    pub(crate) y: *mut f32,
    pub(crate) stride: usize,
    pub(crate) column: usize,
    pub(crate) first: usize,
    pub(crate) scales: *const f32,
    /// Null for none, as the other bias.
    pub(crate) sum_bias: *const i32,
    pub(crate) bias: *const f32,
    pub(crate) accumulate: bool,
}

impl Finish for Scaled {
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, row: usize, first: usize, count: usize, v: S::I) {
        // SAFETY: the caller's; scales and biases have whole groups.
        unsafe {
            let at = first - self.first;
            let v = if self.sum_bias.is_null() { v } else { s.i_add(v, s.i_load(self.sum_bias.add(at).cast())) };
            let mut v = s.f_mul(s.f_from_i(v), s.f_load(self.scales.add(at)));
            if !self.bias.is_null() {
                v = s.f_add(v, s.f_load(self.bias.add(at)));
            }
            let y = self.y.add(row * self.stride + first - self.column);
            if count < S::LANES {
                if self.accumulate {
                    v = s.f_add(v, s.f_load_first(y, count));
                }
                return s.f_store_first(y, v, count);
            }
            if self.accumulate {
                v = s.f_add(v, s.f_load(y));
            }
            s.f_store(y, v);
        }
    }
}
