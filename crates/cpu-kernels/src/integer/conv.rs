//! Convolutions of bytes, with what follows them: the windows of pixels are read where they lie.

use core_tensor::ValueId;

use super::image::{Pixels, SLACK, pixel_bytes};
use super::linear::{Finisher, Operand, Sums, Tail, Target, UNIT_GROUPS, UNIT_OUTPUTS, UNIT_ROWS, scratch_bytes};
use super::quantize::{QuantizeRows, zero_at};
use crate::conv::geometry::Plane;
use crate::conv::image::{BLOCK, Extent};
use crate::matmul::GROUP_ROWS;
use crate::matmul::integer::{IntegerMatrix, Product, RowTable, Rows};
use crate::program::{RunContext, Step};
use crate::weights::{IntegerId, PackedIntegers};

/// `y = x * w` and its tail. The extents are those of images; one of a single spatial extent has height 1.
pub(crate) struct IntegerConv {
    pub(crate) x: Pixels,
    /// The zero point of `x`, which padding has the value of.
    pub(crate) zero: Option<ValueId>,
    pub(crate) weight: IntegerId,
    pub(crate) plane: Plane,
    pub(crate) tail: Tail,
    /// The scratch buffer of the result's other form: f32 in blocks of channels, or bytes by pixels. Sums are plain.
    pub(crate) to: Option<usize>,
    /// Scratch of each thread, of [`IntegerConv::scratch_bytes`].
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

impl IntegerConv {
    /// Bytes of scratch for one thread: a pixel of padding, sums of rows, and what a [`Finisher`] needs.
    pub(crate) fn scratch_bytes(channels: usize) -> usize {
        (scratch_bytes() + 4 * UNIT_ROWS.next_multiple_of(16) + pixel_bytes(channels) + SLACK).next_multiple_of(64)
    }
}

/// One unit of work: some pixels of an image of the result.
struct Unit {
    batch: usize,
    first: usize,
    n: usize,
}

impl Step for IntegerConv {
    fn describe(&self) -> String {
        format!("IntegerConv {:?} {} * {}{}", self.plane.kernel, self.x.value, self.weight.weight, self.tail.describe())
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.integers.get(&self.weight) else { return };
        let (from, to) = (self.x.extent(cx), Extent::of(cx.view(self.tail.result()).shape));
        let zero = self.x.zero(cx, self.zero);
        let width = pixel_bytes(from.channels);
        let scratch = cx.scratch(self.scratch).wrapping_add(cx.worker.index * Self::scratch_bytes(from.channels));
        let sums: *mut i32 = scratch.wrapping_add(scratch_bytes()).cast();
        let padding = scratch.wrapping_add(scratch_bytes() + 4 * UNIT_ROWS.next_multiple_of(16));
        // SAFETY: this thread's scratch.
        unsafe { std::ptr::write_bytes(padding, zero as u8, width + SLACK) };
        let (count, k) = match weights {
            PackedIntegers::Conv { groups, .. } => (groups.len(), groups.first().map_or(0, IntegerMatrix::k)),
            PackedIntegers::Channels(windows) => (1, windows.n()),
            PackedIntegers::Matrix(_) => return,
        };
        let mut table = RowTable::new(self.plane.taps(), k);
        let pixels = to.pixels();
        let chunks = pixels.div_ceil(UNIT_ROWS);
        // Few pixels with many outputs are shared by outputs, too.
        let outputs = to.channels.div_ceil(count).div_ceil(UNIT_OUTPUTS);
        let parts = (4 * cx.worker.count).div_ceil((to.batch * chunks).max(1)).min(outputs).max(1);
        while let Some(unit) = cx.claim(self.counter, to.batch * chunks * parts) {
            let (place, part) = (unit / parts, unit % parts);
            let (batch, first) = (place / chunks, place % chunks * UNIT_ROWS);
            let unit = Unit { batch, first, n: UNIT_ROWS.min(pixels - first) };
            let image = self.x.ptr(cx).cast_const().wrapping_add(batch * from.pixels() * width);
            for group in 0..count {
                table.fill(unit.n, |row, tap| {
                    let pixel = first + row;
                    let at = self.pixel(&from, [pixel / to.width, pixel % to.width], tap);
                    at.map_or(padding.cast_const(), |at| image.wrapping_add(at * width)).wrapping_add(group * k)
                });
                let operand = match weights {
                    PackedIntegers::Conv { groups, ones } => {
                        if let Some(ones) = ones {
                            self.sum_rows(cx, ones, &table, sums);
                        }
                        Operand::of(&groups[group])
                    }
                    PackedIntegers::Channels(windows) => Operand::Channels(windows),
                    PackedIntegers::Matrix(_) => return,
                };
                // SAFETY: this thread's scratch: sums of these rows where any are needed.
                let sums = unsafe { std::slice::from_raw_parts(sums, unit.n) };
                let n = to.channels / count;
                let all = n.div_ceil(GROUP_ROWS);
                let share = all * part / parts..all * (part + 1) / parts;
                for start in share.clone().step_by(UNIT_GROUPS) {
                    let groups = start..(start + UNIT_GROUPS).min(share.end);
                    let finisher = Finisher::new(cx, operand, &self.tail, scratch.cast(), groups, group * n);
                    let tile = finisher.tile(&table, Rows { zeros: &[zero], sums });
                    let first = group * n + start * GROUP_ROWS;
                    let lanes = (n - start * GROUP_ROWS).min(UNIT_OUTPUTS.min((share.end - start) * GROUP_ROWS));
                    self.put(cx, &to, &unit, tile, first, lanes);
                }
            }
        }
    }
}

impl IntegerConv {
    /// The pixel of an image that a tap sees from a place of the result; `None` for padding.
    fn pixel(&self, from: &Extent, place: [usize; 2], tap: usize) -> Option<usize> {
        let plane = &self.plane;
        let tap = [tap / plane.kernel[1], tap % plane.kernel[1]];
        let along = |axis: usize, len: usize| {
            let at = (place[axis] * plane.strides[axis] + tap[axis] * plane.dilations[axis])
                .checked_sub(plane.pads[axis])?;
            (at < len).then_some(at)
        };
        Some(along(0, from.height)? * from.width + along(1, from.width)?)
    }

    /// Sums of the bytes of rows.
    fn sum_rows(&self, cx: &RunContext<'_>, ones: &IntegerMatrix, table: &RowTable, sums: *mut i32) {
        let product = Product {
            panels: ones.panels(),
            n: 1,
            groups: 0..1,
            table,
            columns: ones.columns(),
            rows: Rows { zeros: &[0], sums: &[] },
            finish: Sums { y: sums, stride: 1, column: 0 },
        };
        // SAFETY: room for a unit's rows; the table is one of these weights.
        unsafe { product.run(cx.level) };
    }

    /// Brings a tile of results where they belong: `lanes` outputs from `first` on.
    fn put(&self, cx: &RunContext<'_>, to: &Extent, unit: &Unit, tile: *mut f32, first: usize, lanes: usize) {
        let pixels = to.pixels();
        let pixel = unit.batch * pixels + unit.first;
        let Some(buffer) = self.to else {
            let y = cx.view(self.tail.result()).f32();
            for lane in 0..lanes {
                let y = y.wrapping_add((unit.batch * to.channels + first + lane) * pixels + unit.first);
                for row in 0..unit.n {
                    // SAFETY: pixels of a channel of the result, and rows of the tile; both this thread's.
                    unsafe { y.add(row).write(tile.add(row * UNIT_OUTPUTS + lane).read()) };
                }
            }
            return;
        };
        if let Tail::Floats(floats) = &self.tail
            && let Target::Quantize { scale, zero, signed, .. } = floats.target
        {
            let width = pixel_bytes(to.channels);
            let y = cx.scratch(buffer).wrapping_add(pixel * width + first);
            // Bytes of pixels are unsigned.
            let zero = zero_at(zero.map(|zero| cx.view(zero)), 0, signed) + if signed { 128 } else { 0 };
            let (scale, strides) = (cx.floats(scale)[0], [UNIT_OUTPUTS, width]);
            cx.level.run(QuantizeRows { x: tile, y, rows: unit.n, strides, n: lanes, scale, zero, signed: false });
            return;
        }
        let y: *mut f32 = cx.scratch(buffer).cast();
        let mut lane = 0;
        while lane < lanes {
            // Within a block of channels, which groups of a convolution need not begin with.
            let (block, at) = ((first + lane) / BLOCK, (first + lane) % BLOCK);
            let n = (BLOCK - at).min(lanes - lane);
            let to = y.wrapping_add(((unit.batch * to.blocks() + block) * pixels + unit.first) * BLOCK + at);
            for row in 0..unit.n {
                // SAFETY: lanes of a pixel of a block, and of a row of the tile.
                unsafe {
                    let from = tile.add(row * UNIT_OUTPUTS + lane);
                    std::ptr::copy_nonoverlapping(from, to.add(row * BLOCK), n);
                }
            }
            lane += n;
        }
    }
}
