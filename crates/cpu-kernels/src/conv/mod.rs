//! Convolutions as products of packed weights and activations that are packed tile by tile (implicit GEMM).
//!
//! A tile is up to fourteen pixels of the result, wherever they lie, and 32 of its channels. For each tile the activations that its windows see
//! are copied side by side, zeros where a window reaches over the border; the copy is shared by all output channels, so it costs next to nothing,
//! and the inner loop ([`tile`]) knows nothing of strides, dilations and borders. Groups are blocks of a matrix with zeros elsewhere; a transposed
//! convolution is one convolution for each phase of its stride ([`geometry`]). Depthwise convolutions have a kernel of their own ([`depthwise`]), and
//! windows of 3 × 3 are computed by Winograd's transformation where that pays ([`winograd`]).

use core_tensor::ValueId;

use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

pub(crate) mod depthwise;
pub(crate) mod geometry;
pub(crate) mod group_norm;
pub(crate) mod image;
pub(crate) mod packing;
pub(crate) mod planar;
pub(crate) mod pointwise;
mod rows;
pub(crate) mod tile;
pub(crate) mod winograd;

use geometry::Phase;
use image::{BLOCK, Blocked, Extent};
use packing::{ConvId, Form, PackedConv};
use tile::{Activation, Epilogue, IN_A_ROW, MAX_PIXELS, Tile, tile_pixels};

/// Segments of 16 products that are summed before the results are stored for the first time.
const SLICE: usize = 16;
/// Tiles that one unit of work packs side by side, at most.
const CHUNK_TILES: usize = 16;
/// Segments that are read where they lie, at most.
const READY_SEGMENTS: usize = 8;
/// Products of a convolution of form `Rows`.
pub(crate) const MAX_ROW_PRODUCTS: usize = SLICE * BLOCK;

/// What a convolution does to its sums: `post(pre(sum + bias) + residual)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub(crate) bias: Option<ValueId>,
    pub(crate) pre: Activation,
    pub(crate) residual: Option<Blocked>,
    pub(crate) post: Activation,
}

impl Finish {
    pub(crate) fn describe(&self) -> String {
        let bias = self.bias.map(|bias| format!(" + {bias}")).unwrap_or_default();
        let residual = self.residual.map(|image| format!(" + {}", image.value)).unwrap_or_default();
        format!("{bias}{}{residual}{}", self.pre, self.post)
    }

    fn epilogue(&self, cx: &RunContext<'_>) -> Epilogue {
        let residual = self.residual.map_or(std::ptr::null(), |image| image.ptr(cx).cast_const());
        Epilogue { pre: self.pre, residual, post: self.post }
    }

    fn bias(&self, cx: &RunContext<'_>) -> *const f32 {
        self.bias.map_or(std::ptr::null(), |bias| match cx.weights.biases.get(&bias) {
            Some(tensor) => tensor.bytes().as_ptr().cast(),
            None => cx.floats(bias).as_ptr(),
        })
    }
}

/// What a convolution reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// A plain image.
    Plain(ValueId),
    Blocked(Blocked),
}

impl Source {
    fn value(&self) -> ValueId {
        match self {
            Source::Plain(value) => *value,
            Source::Blocked(image) => image.value,
        }
    }
}

/// A convolution of form `Tiles` or `Rows`.
pub(crate) struct ConvStep {
    pub(crate) weight: ConvId,
    pub(crate) phases: Vec<Phase>,
    pub(crate) x: Source,
    pub(crate) y: Blocked,
    pub(crate) finish: Finish,
    /// Packed activations, [`scratch_bytes`] for each thread.
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Bytes of scratch that a thread needs.
pub(crate) fn scratch_bytes() -> usize {
    CHUNK_TILES * MAX_PIXELS * SLICE * BLOCK * 4
}

/// How the work of a phase is divided: pixels and pairs of output blocks of a unit.
#[derive(Clone, Copy)]
struct Division {
    columns: usize,
    pixels: usize,
    chunk: usize,
    chunks: usize,
    pairs: usize,
    pair_chunk: usize,
    pair_chunks: usize,
}

impl Division {
    /// `heavy`: the weights are more than the image, so each should be read by one thread alone.
    fn new(extent: [usize; 2], batch: usize, blocks: usize, lanes: usize, threads: usize, heavy: bool) -> Division {
        let pixels = extent[0] * extent[1];
        let tile = tile_pixels(lanes, usize::MAX);
        let pairs = blocks.div_ceil(2);
        let tiles = pixels.div_ceil(tile).max(1);
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let most = if heavy { CHUNK_TILES } else { CHUNK_TILES / 2 };
        let chunk = if heavy { tiles } else { (batch * tiles).div_ceil(wanted) }.clamp(1, most);
        let chunks = tiles.div_ceil(chunk);
        let parts = wanted.div_ceil((batch * chunks).max(1)).min(pairs).max(1);
        let pair_chunk = pairs.div_ceil(parts);
        let (chunk, chunks) = (chunk * tile, pixels.div_ceil(chunk * tile));
        Division {
            columns: extent[1],
            pixels,
            chunk,
            chunks,
            pairs,
            pair_chunk,
            pair_chunks: pairs.div_ceil(pair_chunk),
        }
    }

    fn units(&self, batch: usize) -> usize {
        batch * self.chunks * self.pair_chunks
    }
}

impl Step for ConvStep {
    fn describe(&self) -> String {
        let (weight, y) = (self.weight.weight, self.y.value);
        let name = if self.weight.geometry.transposed { "ConvTranspose" } else { "Conv" };
        let (x, finish) = (self.x.value(), self.finish.describe());
        format!("{name} {:?} {x} * {weight}{finish} -> {y}", self.weight.form)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.convs.get(&self.weight) else { return };
        let (x_extent, y_extent) = (Extent::of(cx.view(self.x.value()).shape), self.y.extent(cx));
        let x = match self.x {
            Source::Plain(value) => cx.view(value).f32(),
            Source::Blocked(image) => image.ptr(cx),
        };
        let threads = cx.worker.count;
        let heavy = weights.bytes() > 4 * x_extent.blocked_len() || self.weight.geometry.groups > 1;
        let step = self.weight.geometry.output_step();
        let divisions: Vec<Division> = self
            .phases
            .iter()
            .map(|phase| {
                let along = |extent: usize, axis: usize| extent.saturating_sub(phase.first[axis]).div_ceil(step[axis]);
                let extent = [along(y_extent.height, 0), along(y_extent.width, 1)];
                Division::new(extent, y_extent.batch, weights.blocks.len(), cx.level.run(Lanes), threads, heavy)
            })
            .collect();
        let units = divisions.iter().map(|division| division.units(y_extent.batch)).sum();
        let scratch = cx.scratch(self.scratch).wrapping_add(cx.worker.index * scratch_bytes()).cast();
        let (y, bias, epilogue) = (self.y.ptr(cx), self.finish.bias(cx), self.finish.epilogue(cx));
        while let Some(mut unit) = cx.claim(self.counter, units) {
            let mut i = 0;
            while unit >= divisions[i].units(y_extent.batch) {
                unit -= divisions[i].units(y_extent.batch);
                i += 1;
            }
            let (phase, division) = (&self.phases[i], divisions[i]);
            let (batch, unit) =
                (unit / (division.chunks * division.pair_chunks), unit % (division.chunks * division.pair_chunks));
            let (chunk, part) = (unit / division.pair_chunks, unit % division.pair_chunks);
            let image = y_extent.blocks() * y_extent.pixels() * BLOCK;
            let epilogue = Epilogue {
                residual: if epilogue.residual.is_null() {
                    epilogue.residual
                } else {
                    epilogue.residual.wrapping_add(batch * image)
                },
                ..epilogue
            };
            let x = match self.x {
                Source::Plain(_) => x.wrapping_add(batch * x_extent.channels * x_extent.pixels()),
                Source::Blocked(_) => x.wrapping_add(batch * x_extent.blocks() * x_extent.pixels() * BLOCK),
            };
            let unit = Unit {
                step: self,
                weights,
                phase,
                columns: division.columns,
                x,
                x_extent,
                y: y.wrapping_add(batch * image),
                y_extent,
                pixels: chunk * division.chunk..((chunk + 1) * division.chunk).min(division.pixels),
                pairs: part * division.pair_chunk..((part + 1) * division.pair_chunk).min(division.pairs),
                bias,
                epilogue,
                scratch,
            };
            cx.level.run(unit);
        }
    }
}

/// Asks for the lanes of a level's vectors.
struct Lanes;

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// Some pixels and output channels of one image.
struct Unit<'a> {
    step: &'a ConvStep,
    weights: &'a PackedConv,
    phase: &'a Phase,
    /// Pixels of a row of the phase.
    columns: usize,
    x: *const f32,
    x_extent: Extent,
    y: *mut f32,
    y_extent: Extent,
    /// Of the phase.
    pixels: std::ops::Range<usize>,
    /// Pairs of output blocks.
    pairs: std::ops::Range<usize>,
    bias: *const f32,
    epilogue: Epilogue,
    scratch: *mut f32,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.pairs.start * 2..(self.pairs.end * 2).min(self.weights.blocks.len());
        let mut first = blocks.start;
        // Output blocks that see the same input channels share the packed activations: without groups all do.
        while first < blocks.end {
            let sees = |block: usize| (self.weights.blocks[block].first, self.weights.blocks[block].count);
            let mut end = first + 1;
            while end < blocks.end && sees(end) == sees(first) {
                end += 1;
            }
            // SAFETY: the step's values have these extents.
            unsafe {
                if self.step.weight.form == Form::Rows {
                    self.products::<S, true>(s, first..end);
                } else {
                    self.products::<S, false>(s, first..end);
                }
            }
            first = end;
        }
    }
}

impl Unit<'_> {
    /// Whether the activations of a tile lie as it reads them: pixels of a window of one element, at stride 1. Not so where many planes would be read
    /// again and again, whose distance may map them to the same lines of the cache.
    #[inline(always)]
    fn lie_ready(&self, segments: usize, blocks: usize) -> bool {
        let plane = &self.step.weight.geometry.plane;
        let alike = plane.taps() == 1 && plane.strides == [1, 1] && plane.pads == [0, 0];
        let columns = (self.x_extent.height, self.x_extent.width) == (self.y_extent.height, self.y_extent.width);
        alike && columns && !self.step.weight.geometry.transposed && (segments <= READY_SEGMENTS || blocks <= 4)
    }

    /// All products of some output blocks that see the same input channels.
    #[inline(always)]
    unsafe fn products<S: Simd, const ROWS: bool>(&self, s: S, blocks: std::ops::Range<usize>) {
        let sees = self.weights.blocks[blocks.start];
        let per_tap = sees.count.div_ceil(BLOCK);
        let total = if ROWS { 1 } else { self.phase.taps.len() * per_tap };
        let slices = total.div_ceil(SLICE).max(1);
        let size = total.div_ceil(slices);
        let product_rows = if ROWS { sees.count * self.step.weight.geometry.plane.taps() } else { 0 };
        let last = if ROWS { product_rows } else { sees.count - (per_tap - 1) * BLOCK };
        let ready = !ROWS && self.lie_ready(total, blocks.len());
        let x_plane = self.x_extent.pixels() * BLOCK;
        let plane = self.y_extent.pixels() * BLOCK;
        for slice in 0..slices {
            let segments = slice * size..((slice + 1) * size).min(total);
            let tile_floats = if ROWS { product_rows } else { segments.len() * BLOCK };
            // Rows of weights before the slice: whole taps, then whole segments.
            let skipped = if ROWS {
                0
            } else {
                (self.phase.taps.start + segments.start / per_tap) * sees.count + segments.start % per_tap * BLOCK
            };
            if ROWS {
                // SAFETY: the scratch has room for a chunk's tiles.
                unsafe { self.pack_rows(s, product_rows) };
            } else if !ready {
                let mut packed = self.scratch;
                let mut pixel = self.pixels.start;
                while pixel < self.pixels.end {
                    let n = tile_pixels(S::LANES, self.pixels.end - pixel);
                    // SAFETY: the scratch has room for a chunk's tiles of a slice.
                    unsafe { self.pack(s, pixel, n, sees.first / BLOCK, per_tap, segments.clone(), packed) };
                    packed = packed.wrapping_add(n * tile_floats);
                    pixel += n;
                }
            }
            let mut block = blocks.start;
            while block < blocks.end {
                let count = (blocks.end - block).min(2);
                let mut packed = self.scratch.cast_const();
                let mut pixel = self.pixels.start;
                let is_last = slice + 1 == slices;
                let y = self.y.wrapping_add(block * plane);
                let residual = self.epilogue.residual.wrapping_add(block * plane);
                while pixel < self.pixels.end {
                    let n = tile_pixels(S::LANES, self.pixels.end - pixel);
                    let (x, x_apart) = if ready {
                        let at = (sees.first / BLOCK + segments.start) * x_plane + pixel * BLOCK;
                        (self.x.wrapping_add(at), x_plane)
                    } else {
                        (packed, n * BLOCK)
                    };
                    let (at, offset) = if self.step.weight.geometry.transposed {
                        (&self.places(pixel, n), 0)
                    } else {
                        (&IN_A_ROW, pixel * BLOCK)
                    };
                    let tile = Tile {
                        weights: self.weights.block(block).wrapping_add(skipped * BLOCK),
                        apart: if count == 2 { self.weights.apart(block) } else { 0 },
                        blocks: count,
                        x,
                        segments: segments.len(),
                        x_apart,
                        phase: segments.start % per_tap,
                        per_tap,
                        last,
                        bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(block * BLOCK) },
                        lanes: self.weights.outputs - block * BLOCK,
                        y: y.wrapping_add(offset),
                        y_apart: plane,
                        at,
                        pixels: n,
                        accumulate: slice > 0,
                        epilogue: is_last.then(|| Epilogue {
                            residual: if self.epilogue.residual.is_null() {
                                self.epilogue.residual
                            } else {
                                residual.wrapping_add(offset)
                            },
                            ..self.epilogue
                        }),
                    };
                    // SAFETY: the activations lie ready or were packed above; pixels and output blocks are those of the image.
                    unsafe { tile.run::<S, ROWS>(s) };
                    packed = packed.wrapping_add(n * tile_floats);
                    pixel += n;
                }
                block += count;
            }
        }
    }

    /// Where pixels of the phase lie in a plane of the result.
    #[inline(always)]
    fn places(&self, pixel: usize, n: usize) -> [usize; MAX_PIXELS] {
        let step = self.step.weight.geometry.output_step();
        let mut at = [0; MAX_PIXELS];
        let (mut row, mut column) = (pixel / self.columns, pixel % self.columns);
        for at in &mut at[..n] {
            let (y, x) = (self.phase.first[0] + row * step[0], self.phase.first[1] + column * step[1]);
            *at = (y * self.y_extent.width + x) * BLOCK;
            column += 1;
            if column == self.columns {
                (row, column) = (row + 1, 0);
            }
        }
        at
    }

    /// Copies what the windows of `n` pixels see: `[segment][pixel][16]`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the extents of one slice
    unsafe fn pack<S: Simd>(
        &self,
        s: S,
        pixel: usize,
        n: usize,
        first_block: usize,
        per_tap: usize,
        segments: std::ops::Range<usize>,
        out: *mut f32,
    ) {
        let step = self.step.weight.geometry.input_step();
        let (height, width) = (self.x_extent.height, self.x_extent.width);
        let plane = height * width * BLOCK;
        let (mut row, mut column) = (pixel / self.columns, pixel % self.columns);
        for c in 0..n {
            let mut out = out.wrapping_add(c * BLOCK);
            let (y, x) = ((row * step[0]).cast_signed(), (column * step[1]).cast_signed());
            let mut segment = segments.start;
            while segment < segments.end {
                let (tap, block) = (segment / per_tap, segment % per_tap);
                let end = (segment + per_tap - block).min(segments.end);
                let [dy, dx] = self.phase.offsets[tap];
                let (y, x) = ((y + dy).cast_unsigned(), (x + dx).cast_unsigned());
                if y < height && x < width {
                    let at = (first_block + block) * plane + (y * width + x) * BLOCK;
                    let mut from = self.x.wrapping_add(at);
                    for _ in segment..end {
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            // SAFETY: the pixel is inside of the image, and the tile has room for it.
                            unsafe { s.f_store(out.add(lane), s.f_load(from.add(lane))) };
                        }
                        from = from.wrapping_add(plane);
                        out = out.wrapping_add(n * BLOCK);
                    }
                } else {
                    for _ in segment..end {
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            // SAFETY: the tile has room for it.
                            unsafe { s.f_store(out.add(lane), s.f_splat(0.0)) };
                        }
                        out = out.wrapping_add(n * BLOCK);
                    }
                }
                segment = end;
            }
            column += 1;
            if column == self.columns {
                (row, column) = (row + 1, 0);
            }
        }
    }
}
