//! Windows of 3 × 3 at stride 1 by Winograd's minimal filtering F(4 × 4, 3 × 3) (Lavin and Gray 2016): 36 products instead of 144 for sixteen results.
//!
//! Tiles of 6 × 6 elements are transformed, multiplied with transformed weights at each of 36 positions (that is 36 matrix products, by the register
//! tile that other convolutions use), and transformed back into 4 × 4 results.

use std::ops::Range;

use super::Finish;
use super::image::{BLOCK, Blocked, Extent};
use super::packing::{ConvId, PackedConv};
use super::tile::{Epilogue, IN_A_ROW, Tile, tile_pixels};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Elements of a transformed tile.
pub(crate) const POSITIONS: usize = SIDE * SIDE;
/// Rows and columns of elements that a tile sees.
const SIDE: usize = 6;
/// Rows and columns of results of a tile.
const RESULTS: usize = 4;

/// A 3 × 3 window's weights for one pair of channels, transformed: `G w Gᵀ`.
pub(crate) fn transform_kernel(kernel: &[f32; 9]) -> [f32; POSITIONS] {
    const G: [[f64; 3]; SIDE] = [
        [0.25, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    // Rows first, then columns.
    let mut rows = [[0.0; 3]; SIDE];
    for (row, g) in rows.iter_mut().zip(&G) {
        for (x, value) in row.iter_mut().enumerate() {
            *value = (0..3).map(|y| g[y] * f64::from(kernel[y * 3 + x])).sum();
        }
    }
    std::array::from_fn(|position| {
        let (row, g) = (&rows[position / SIDE], &G[position % SIDE]);
        (row[0] * g[0] + row[1] * g[1] + row[2] * g[2]) as f32
    })
}

/// A convolution of form `Winograd`.
pub(crate) struct WinogradStep {
    pub(crate) weight: ConvId,
    pub(crate) x: Blocked,
    pub(crate) y: Blocked,
    pub(crate) finish: Finish,
    /// Transformed tiles, [`scratch_bytes`] for each thread.
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Tiles that are transformed together: all positions of them should stay in the cache's second level.
fn chunk_tiles(inputs: usize) -> usize {
    if inputs <= 128 { 28 } else { 16 }
}

/// Bytes of scratch that a thread needs.
pub(crate) fn scratch_bytes(inputs: usize) -> usize {
    chunk_tiles(inputs) * POSITIONS * (inputs.next_multiple_of(BLOCK) + 2 * BLOCK) * 4
}

impl Step for WinogradStep {
    fn describe(&self) -> String {
        let (x, y, weight) = (self.x.value, self.y.value, self.weight.weight);
        format!("Conv Winograd {x} * {weight}{} -> {y}", self.finish.describe())
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.convs.get(&self.weight) else { return };
        let (x_extent, y_extent) = (self.x.extent(cx), self.y.extent(cx));
        let across = y_extent.width.div_ceil(RESULTS);
        let tiles = y_extent.height.div_ceil(RESULTS) * across;
        // Chunks of equal length, of at least one for each thread where there are so many tiles.
        let most = chunk_tiles(weights.inputs);
        let chunks = tiles.div_ceil(most);
        let chunk = tiles.div_ceil(chunks.max(1)).max(1);
        let pairs = weights.blocks.len().div_ceil(2);
        let parts = cx.worker.count.div_ceil((y_extent.batch * chunks).max(1)).min(pairs).max(1);
        let part = pairs.div_ceil(parts);
        let (bias, epilogue) = (self.finish.bias(cx), self.finish.epilogue(cx));
        let scratch = cx.scratch(self.scratch).wrapping_add(cx.worker.index * scratch_bytes(weights.inputs));
        while let Some(unit) = cx.claim(self.counter, y_extent.batch * chunks * parts) {
            let (batch, unit) = (unit / (chunks * parts), unit % (chunks * parts));
            let (first, first_pair) = (unit / parts * chunk, unit % parts * part);
            let image = batch * y_extent.blocks() * y_extent.pixels() * BLOCK;
            let residual = epilogue.residual;
            cx.level.run(Unit {
                weights,
                pads: self.weight.geometry.plane.pads,
                x: self.x.ptr(cx).wrapping_add(batch * x_extent.blocks() * x_extent.pixels() * BLOCK),
                x_extent,
                y: self.y.ptr(cx).wrapping_add(image),
                y_extent,
                across,
                tiles: first..(first + chunk).min(tiles),
                pairs: first_pair..(first_pair + part).min(pairs),
                bias,
                epilogue: Epilogue {
                    residual: if residual.is_null() { residual } else { residual.wrapping_add(image) },
                    ..epilogue
                },
                scratch: scratch.cast(),
            });
        }
    }
}

/// Some tiles and output channels of one image.
struct Unit<'a> {
    weights: &'a PackedConv,
    pads: [usize; 2],
    x: *const f32,
    x_extent: Extent,
    y: *mut f32,
    y_extent: Extent,
    /// Tiles of a row.
    across: usize,
    tiles: Range<usize>,
    pairs: Range<usize>,
    bias: *const f32,
    epilogue: Epilogue,
    scratch: *mut f32,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.x_extent.blocks();
        let count = self.tiles.len();
        let products = self.scratch.wrapping_add(POSITIONS * inputs * BLOCK * count);
        let mut done = 0;
        while done < count {
            let n = tile_pixels(S::LANES, count - done);
            for c in 0..n {
                for block in 0..inputs {
                    let at = done * inputs * BLOCK + (block * n + c) * BLOCK;
                    let out = self.scratch.wrapping_add(at);
                    // SAFETY: the scratch has room for a chunk's tiles.
                    unsafe { self.transform(s, self.tiles.start + done + c, block, out, inputs * BLOCK * count) };
                }
            }
            done += n;
        }
        for pair in self.pairs.clone() {
            let blocks = (self.weights.blocks.len() - 2 * pair).min(2);
            let apart = if blocks == 2 { self.weights.apart(2 * pair) } else { 0 };
            for position in 0..POSITIONS {
                let x = self.scratch.wrapping_add(position * inputs * BLOCK * count);
                let y = products.wrapping_add(position * 2 * count * BLOCK);
                let weights = self.weights.block(2 * pair).wrapping_add(position * self.weights.inputs * BLOCK);
                let mut done = 0;
                while done < count {
                    let n = tile_pixels(S::LANES, count - done);
                    let tile = Tile {
                        weights,
                        apart,
                        blocks,
                        x: x.wrapping_add(done * inputs * BLOCK),
                        segments: inputs,
                        x_apart: n * BLOCK,
                        phase: 0,
                        per_tap: inputs,
                        last: self.weights.inputs - (inputs - 1) * BLOCK,
                        bias: std::ptr::null(),
                        lanes: 0,
                        y: y.wrapping_add(done * BLOCK),
                        y_apart: count * BLOCK,
                        at: &IN_A_ROW,
                        pixels: n,
                        accumulate: false,
                        epilogue: None,
                    };
                    // SAFETY: activations were transformed above, and the products have room for two blocks of the chunk.
                    unsafe { tile.run::<S, false>(s) };
                    done += n;
                }
            }
            for block in 0..blocks {
                for i in 0..count {
                    let from = products.wrapping_add((block * count + i) * BLOCK);
                    // SAFETY: as above; the results are those of the tile.
                    unsafe { self.restore(s, self.tiles.start + i, 2 * pair + block, from, 2 * count * BLOCK) };
                }
            }
        }
    }
}

/// `Bᵀ d`: what six elements in a row come to.
#[inline(always)]
fn input_side<S: Simd>(s: S, d: [S::F; SIDE]) -> [S::F; SIDE] {
    let (four, five, two) = (s.f_splat(4.0), s.f_splat(-5.0), s.f_splat(2.0));
    let minus_four = s.f_splat(-4.0);
    let a = s.f_fma(minus_four, d[2], d[4]);
    let b = s.f_fma(minus_four, d[1], d[3]);
    let c = s.f_sub(d[4], d[2]);
    let e = s.f_mul(two, s.f_sub(d[3], d[1]));
    [
        s.f_fma(four, d[0], s.f_fma(five, d[2], d[4])),
        s.f_add(a, b),
        s.f_sub(a, b),
        s.f_add(c, e),
        s.f_sub(c, e),
        s.f_fma(four, d[1], s.f_fma(five, d[3], d[5])),
    ]
}

/// `Aᵀ m`: four results of six products in a row.
#[inline(always)]
fn output_side<S: Simd>(s: S, m: [S::F; SIDE]) -> [S::F; RESULTS] {
    let (p, q) = (s.f_add(m[1], m[2]), s.f_sub(m[1], m[2]));
    let (r, u) = (s.f_add(m[3], m[4]), s.f_sub(m[3], m[4]));
    [
        s.f_add(m[0], s.f_add(p, r)),
        s.f_fma(s.f_splat(2.0), u, q),
        s.f_fma(s.f_splat(4.0), r, p),
        s.f_add(m[5], s.f_fma(s.f_splat(8.0), u, q)),
    ]
}

impl Unit<'_> {
    /// Transforms one tile of a block of channels; positions come to lie `apart` elements from each other.
    #[inline(always)]
    unsafe fn transform<S: Simd>(&self, s: S, tile: usize, block: usize, out: *mut f32, apart: usize) {
        let (height, width) = (self.x_extent.height, self.x_extent.width);
        let plane = self.x.wrapping_add(block * height * width * BLOCK);
        let top = (tile / self.across * RESULTS).cast_signed() - self.pads[0].cast_signed();
        let left = (tile % self.across * RESULTS).cast_signed() - self.pads[1].cast_signed();
        for lane in (0..BLOCK).step_by(S::LANES) {
            let mut rows = [[s.f_splat(0.0); SIDE]; SIDE];
            for (y, row) in rows.iter_mut().enumerate() {
                let y = (top + y.cast_signed()).cast_unsigned();
                if y >= height {
                    continue;
                }
                let mut d = [s.f_splat(0.0); SIDE];
                for (x, d) in d.iter_mut().enumerate() {
                    let x = (left + x.cast_signed()).cast_unsigned();
                    if x < width {
                        // SAFETY: the element is inside of the plane.
                        *d = unsafe { s.f_load(plane.add((y * width + x) * BLOCK + lane)) };
                    }
                }
                *row = input_side(s, d);
            }
            for x in 0..SIDE {
                let column = input_side(s, std::array::from_fn(|y| rows[y][x]));
                for (y, value) in column.into_iter().enumerate() {
                    // SAFETY: there is room for every position.
                    unsafe { s.f_store(out.add((y * SIDE + x) * apart + lane), value) };
                }
            }
        }
    }

    /// The results of one tile and block of output channels, from products whose positions lie `apart`.
    #[inline(always)]
    unsafe fn restore<S: Simd>(&self, s: S, tile: usize, block: usize, from: *const f32, apart: usize) {
        let (height, width) = (self.y_extent.height, self.y_extent.width);
        let (top, left) = (tile / self.across * RESULTS, tile % self.across * RESULTS);
        let plane = block * height * width * BLOCK;
        for lane in (0..BLOCK).step_by(S::LANES) {
            let mut columns = [[s.f_splat(0.0); SIDE]; RESULTS];
            for x in 0..SIDE {
                // SAFETY: every position has been computed.
                let m = std::array::from_fn(|y| unsafe { s.f_load(from.add((y * SIDE + x) * apart + lane)) });
                for (y, value) in output_side(s, m).into_iter().enumerate() {
                    columns[y][x] = value;
                }
            }
            let bias = if self.bias.is_null() {
                s.f_splat(0.0)
            } else {
                let channel = block * BLOCK + lane;
                let n = self.weights.outputs.saturating_sub(channel).min(S::LANES);
                // SAFETY: the bias has an element for each output channel.
                unsafe { s.f_load_first(self.bias.wrapping_add(channel), n) }
            };
            for (y, row) in columns.into_iter().enumerate().take(height - top) {
                let results = output_side(s, row);
                for (x, value) in results.into_iter().enumerate().take(width - left) {
                    let at = plane + ((top + y) * width + left + x) * BLOCK + lane;
                    // SAFETY: the pixel is inside of the result, and the residual has its extents.
                    unsafe {
                        let mut value = s.f_add(value, bias);
                        if !self.epilogue.pre.is_simple() {
                            value = self.epilogue.pre.apply(s, value);
                        } else {
                            value = self.epilogue.pre.simple(s, value);
                        }
                        if !self.epilogue.residual.is_null() {
                            value = s.f_add(value, s.f_load(self.epilogue.residual.add(at)));
                        }
                        s.f_store(self.y.add(at), self.epilogue.post.simple(s, value));
                    }
                }
            }
            if !self.epilogue.post.is_simple() {
                for y in 0..RESULTS.min(height - top) {
                    for x in 0..RESULTS.min(width - left) {
                        // SAFETY: as above.
                        unsafe {
                            let y = self.y.add(plane + ((top + y) * width + left + x) * BLOCK + lane);
                            s.f_store(y, self.epilogue.post.apply(s, s.f_load(y)));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    /// Convolves a 6 × 6 tile in each lane with one window.
    struct Whole<'a> {
        elements: &'a [f32; POSITIONS],
        kernel: &'a [f32; 9],
        results: &'a mut [f32; RESULTS * RESULTS],
    }

    impl Kernel for Whole<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let kernel = transform_kernel(self.kernel);
            let rows: [[S::F; SIDE]; SIDE] =
                std::array::from_fn(|y| input_side(s, std::array::from_fn(|x| s.f_splat(self.elements[y * SIDE + x]))));
            let columns: [[S::F; RESULTS]; SIDE] = std::array::from_fn(|x| {
                let column = input_side(s, std::array::from_fn(|y| rows[y][x]));
                output_side(s, std::array::from_fn(|y| s.f_mul(column[y], s.f_splat(kernel[y * SIDE + x]))))
            });
            for y in 0..RESULTS {
                let row = output_side(s, std::array::from_fn(|x| columns[x][y]));
                for (x, value) in row.into_iter().enumerate() {
                    self.results[y * RESULTS + x] = s.f_reduce_max(value);
                }
            }
        }
    }

    #[test]
    fn a_transformed_tile_gives_the_sums_of_the_window() {
        let elements: [f32; POSITIONS] = std::array::from_fn(|i| ((i * 37 + 5) % 23) as f32 / 11.0 - 1.0);
        let kernel: [f32; 9] = std::array::from_fn(|i| ((i * 7 + 2) % 9) as f32 / 4.0 - 1.0);
        for level in Level::available() {
            let mut results = [0.0; RESULTS * RESULTS];
            level.run(Whole { elements: &elements, kernel: &kernel, results: &mut results });
            for (i, found) in results.into_iter().enumerate() {
                let (y, x) = (i / RESULTS, i % RESULTS);
                let expected: f32 = (0..9).map(|tap| kernel[tap] * elements[(y + tap / 3) * SIDE + x + tap % 3]).sum();
                assert!((found - expected).abs() < 1e-5, "{level} {i}: {found} {expected}");
            }
        }
    }
}
