//! Convolutions with few outputs: pixels lie across the lanes, and images stay plain.
//!
//! In blocks of channels most lanes of a single output would compute nothing. Here each vector holds neighbouring pixels of one output. The rows of the
//! image that a band of the result sees are first split by the window's stride into rows of their own, with zeros for the padding, so that what
//! neighbouring pixels see of one element of the window is a run of such a row.

use core_tensor::ValueId;

use super::Finish;
use super::geometry::{Geometry, Plane};
use super::image::{BLOCK, Extent};
use super::packing::{ConvId, PackedConv};
use super::tile::Activation;
use crate::elementwise::UnaryRows;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Outputs up to which a convolution is planar.
const MAX_OUTPUTS: usize = 8;

/// Columns below which most pixels of a tile would be none.
const LEAST_COLUMNS: usize = 48;
/// Floats of split rows for one row of the result, at most.
const MOST_FLOATS: usize = 256 << 10;

/// Whether a convolution is quicker so: images of an unknown width are taken for wide ones.
pub(crate) fn pays(geometry: &Geometry, channels: usize, outputs: usize, width: Option<usize>) -> bool {
    let plane = &geometry.plane;
    let wide = width.is_none_or(|width| width / plane.strides[1] >= LEAST_COLUMNS);
    let fits = band_floats(plane, channels, 1, width.unwrap_or(COLUMNS)) <= MOST_FLOATS;
    !geometry.transposed && geometry.groups == 1 && outputs <= MAX_OUTPUTS && plane.taps() > 1 && wide && fits
}

/// Floats of split rows that stay in the second-level cache.
const ROW_FLOATS: usize = 64 << 10;
/// Columns of a unit of work at most.
const COLUMNS: usize = 1024;
/// Elements that may be read behind a run: the widest tile.
const SLACK: usize = 8 * 16;

/// A convolution of form `Planar`.
pub(crate) struct PlanarStep {
    pub(crate) weight: ConvId,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
    /// The bias and the function of results.
    pub(crate) finish: Finish,
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Elements of a part of a split row.
fn part_len(plane: &Plane, columns: usize) -> usize {
    columns.min(COLUMNS) + (plane.kernel[1] - 1) * plane.dilations[1] / plane.strides[1] + 1 + SLACK
}

/// Floats of the split rows of a band of the result.
fn band_floats(plane: &Plane, channels: usize, rows: usize, columns: usize) -> usize {
    channels * seen_rows(plane, rows) * plane.strides[1] * part_len(plane, columns)
}

/// Rows of the image that some rows of the result see.
fn seen_rows(plane: &Plane, rows: usize) -> usize {
    (rows - 1) * plane.strides[0] + (plane.kernel[0] - 1) * plane.dilations[0] + 1
}

/// Floats of scratch for one thread, for a result of so many columns.
pub(crate) fn scratch_floats(plane: &Plane, channels: usize, columns: usize) -> usize {
    band_floats(plane, channels, 1, columns).max(ROW_FLOATS).next_multiple_of(16)
}

impl Step for PlanarStep {
    fn describe(&self) -> String {
        format!("Conv Planar {} * {}{} -> {}", self.x, self.weight.weight, self.finish.describe(), self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.convs.get(&self.weight) else { return };
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let (from, to) = (Extent::of(x.shape), Extent::of(y.shape));
        if to.batch * to.pixels() == 0 {
            return;
        }
        let plane = &self.weight.geometry.plane;
        let room = ROW_FLOATS.max(band_floats(plane, from.channels, 1, to.width));
        let mut rows = (to.batch * to.height).div_ceil(4 * cx.worker.count).clamp(1, to.height);
        while rows > 1 && band_floats(plane, from.channels, rows, to.width) > room {
            rows = rows.div_ceil(2);
        }
        let (bands, parts) = (to.height.div_ceil(rows), to.width.div_ceil(COLUMNS));
        let floats = scratch_floats(plane, from.channels, to.width);
        let scratch = cx.scratch(self.scratch).cast::<f32>().wrapping_add(cx.worker.index * floats);
        let (bias, post) = (self.finish.bias(cx), self.finish.post);
        while let Some(unit) = cx.claim(self.counter, to.batch * bands * parts) {
            let (place, part) = (unit / parts, unit % parts);
            let (batch, band) = (place / bands, place % bands);
            let band = Band {
                plane,
                weights,
                bias,
                post,
                x: x.f32().wrapping_add(batch * from.channels * from.pixels()),
                from,
                y: y.f32().wrapping_add(batch * to.channels * to.pixels()),
                to,
                rows: band * rows..((band + 1) * rows).min(to.height),
                columns: part * COLUMNS..((part + 1) * COLUMNS).min(to.width),
                split: scratch,
            };
            let (rows, columns) = (band.rows.clone(), band.columns.clone());
            let first = band.y.wrapping_add(rows.start * to.width + columns.start);
            cx.level.run(band);
            if let Activation::Other(op) = post {
                for output in 0..to.channels {
                    let y = first.wrapping_add(output * to.pixels());
                    let (rows, stride, n) = (rows.len(), to.width, columns.len());
                    cx.level.run(UnaryRows { op, x: y, y, rows, stride, n });
                }
            }
        }
    }
}

/// Some rows and columns of one result.
struct Band<'a> {
    plane: &'a Plane,
    weights: &'a PackedConv,
    bias: *const f32,
    post: Activation,
    x: *const f32,
    from: Extent,
    y: *mut f32,
    to: Extent,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    split: *mut f32,
}

impl Kernel for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the step's values have these extents, the scratch room for the band.
        unsafe {
            self.split();
            match (S::LANES, self.weights.outputs) {
                (16, 1) => self.outputs::<S, 1, 8>(s),
                (16, 2) => self.outputs::<S, 2, 8>(s),
                (16, 3 | 4) => self.outputs::<S, 4, 6>(s),
                (16, _) => self.outputs::<S, 8, 3>(s),
                (_, 1) => self.outputs::<S, 1, 8>(s),
                (_, 2) => self.outputs::<S, 2, 4>(s),
                (_, 3 | 4) => self.outputs::<S, 4, 2>(s),
                _ => self.outputs::<S, 8, 1>(s),
            }
        }
    }
}

impl Band<'_> {
    /// Rows that the band sees, and elements of a part of each.
    #[inline(always)]
    fn extents(&self) -> (usize, usize) {
        (seen_rows(self.plane, self.rows.len()), part_len(self.plane, self.to.width))
    }

    /// Splits the rows that the band sees.
    #[inline(always)]
    unsafe fn split(&self) {
        let (count, len) = self.extents();
        let ([stride_y, stride], [pad_y, pad]) = (self.plane.strides, self.plane.pads);
        let (height, width) = (self.from.height, self.from.width);
        for channel in 0..self.from.channels {
            for row in 0..count {
                let out = self.split.wrapping_add((channel * count + row) * stride * len);
                let y = (self.rows.start * stride_y + row).wrapping_sub(pad_y);
                // SAFETY: a row of the scratch, and of the image where there is one.
                unsafe {
                    std::ptr::write_bytes(out, 0, stride * len);
                    if y >= height {
                        continue;
                    }
                    let from = self.x.add((channel * height + y) * width);
                    for part in 0..stride {
                        // Element i of the part is element (start + i) * stride + part of the padded row.
                        let start = self.columns.start;
                        let first = pad.saturating_sub(part).div_ceil(stride).max(start);
                        let end = (width + pad).saturating_sub(part).div_ceil(stride).min(start + len);
                        let out = out.wrapping_add(part * len);
                        if stride == 1 && first < end {
                            std::ptr::copy_nonoverlapping(from.add(first - pad), out.add(first - start), end - first);
                            continue;
                        }
                        for i in first..end {
                            *out.add(i - start) = *from.add(i * stride + part - pad);
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd, const O: usize, const V: usize>(&self, s: S) {
        for row in self.rows.clone() {
            for column in self.columns.clone().step_by(V * S::LANES) {
                // SAFETY: the caller's.
                unsafe { self.tile::<S, O, V>(s, row, column) };
            }
        }
    }

    /// `V` vectors of pixels of `O` outputs, of which those there are are stored.
    #[inline(always)]
    unsafe fn tile<S: Simd, const O: usize, const V: usize>(&self, s: S, row: usize, column: usize) {
        let (count, len) = self.extents();
        let stride = self.plane.strides[1];
        let outputs = self.weights.outputs;
        let mut acc = [[s.f_splat(0.0); V]; O];
        let mut weights = self.weights.block(0);
        // SAFETY: the band's rows were split, weights have a row of sixteen for each product, and the bias an element for each output.
        unsafe {
            if !self.bias.is_null() {
                for o in 0..O.min(outputs) {
                    acc[o] = [s.f_broadcast(self.bias.add(o)); V];
                }
            }
            for channel in 0..self.from.channels {
                for ky in 0..self.plane.kernel[0] {
                    let seen = (row - self.rows.start) * self.plane.strides[0] + ky * self.plane.dilations[0];
                    let base = self.split.add((channel * count + seen) * stride * len + column - self.columns.start);
                    for kx in 0..self.plane.kernel[1] {
                        let reach = kx * self.plane.dilations[1];
                        let x = base.add(reach % stride * len + reach / stride);
                        let x: [S::F; V] = std::array::from_fn(|v| s.f_load(x.add(v * S::LANES)));
                        for o in 0..O {
                            let w = s.f_broadcast(weights.add(o));
                            for v in 0..V {
                                acc[o][v] = s.f_fma(w, x[v], acc[o][v]);
                            }
                        }
                        weights = weights.add(BLOCK);
                    }
                }
            }
            for o in 0..O.min(outputs) {
                let y = self.y.add(o * self.to.pixels() + row * self.to.width);
                for v in 0..V {
                    let at = column + v * S::LANES;
                    let n = self.columns.end.saturating_sub(at).min(S::LANES);
                    if n > 0 {
                        s.f_store_first(y.add(at), self.post.simple(s, acc[o][v]), n);
                    }
                }
            }
        }
    }
}
