//! Resampling of images in blocks of channels.

use core_tensor::op::{CoordinateMode, NearestMode, Resize, ResizeMode};

use crate::conv::image::{BLOCK, Blocked, Extent};
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Elements of the input that one of the result is made of along an axis, at most.
const MAX_TAPS: usize = 4;

/// What the elements of the result are made of along one axis.
struct Axis {
    /// Elements of the input for each one of the result.
    taps: usize,
    /// Their places and weights.
    at: Vec<[usize; MAX_TAPS]>,
    weights: Vec<[f32; MAX_TAPS]>,
}

/// A resize of the spatial extents.
pub(crate) struct ResizeStep {
    pub(crate) op: Resize,
    pub(crate) x: Blocked,
    pub(crate) y: Blocked,
}

impl ResizeStep {
    /// Whether there is a kernel for these attributes.
    pub(crate) fn supports(op: &Resize) -> bool {
        let keeps_channels = op.scales.as_ref().is_none_or(|scales| scales[..2] == [1.0, 1.0]);
        let is_nearest = matches!(op.mode, ResizeMode::Nearest(_));
        let plain = is_nearest || !(op.antialias || op.exclude_outside);
        keeps_channels && plain && op.coordinates != CoordinateMode::TfCropAndResize
    }

    /// Where element `x` of the result lies in the input, of `from` elements; as the operator's definition says.
    fn coordinate(&self, x: usize, from: usize, to: usize, scale: f64, length: f64) -> f64 {
        let (x, from) = (x as f64, from as f64);
        match self.op.coordinates {
            CoordinateMode::AlignCorners if length == 1.0 => 0.0,
            CoordinateMode::AlignCorners => x * (from - 1.0) / (length - 1.0),
            CoordinateMode::PytorchHalfPixel if length == 1.0 => -0.5,
            CoordinateMode::HalfPixel | CoordinateMode::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
            CoordinateMode::HalfPixelSymmetric => {
                let offset = from / 2.0 * (1.0 - to as f64 / length);
                offset + (x + 0.5) / scale - 0.5
            }
            CoordinateMode::Asymmetric | CoordinateMode::TfCropAndResize => x / scale,
        }
    }

    fn axis(&self, from: usize, to: usize, scale: Option<f32>) -> Axis {
        let length = scale.map_or(to as f64, |scale| f64::from(scale * from as f32));
        let scale = scale.map_or(to as f64 / from as f64, f64::from);
        let clamp = |at: f64| at.clamp(0.0, from.saturating_sub(1) as f64) as usize;
        let mut axis = Axis { taps: 1, at: Vec::with_capacity(to), weights: Vec::with_capacity(to) };
        for x in 0..to {
            let at = self.coordinate(x, from, to, scale, length);
            let (mut places, mut weights) = ([0; MAX_TAPS], [0.0; MAX_TAPS]);
            let base = at.floor();
            match self.op.mode {
                ResizeMode::Nearest(mode) => {
                    let rounded = match mode {
                        NearestMode::Floor => base,
                        NearestMode::Ceil => at.ceil(),
                        NearestMode::RoundPreferFloor => (at - 0.5).ceil(),
                        NearestMode::RoundPreferCeil => (at + 0.5).floor(),
                    };
                    (places[0], weights[0]) = (clamp(rounded), 1.0);
                }
                ResizeMode::Linear => {
                    axis.taps = 2;
                    let part = at - base;
                    (places[0], weights[0]) = (clamp(base), (1.0 - part) as f32);
                    (places[1], weights[1]) = (clamp(base + 1.0), part as f32);
                }
                ResizeMode::Cubic(a) => {
                    axis.taps = 4;
                    let a = f64::from(a.get());
                    for tap in 0..4 {
                        let place = base + tap as f64 - 1.0;
                        let d = (place - at).abs();
                        let weight = if d <= 1.0 {
                            ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
                        } else if d < 2.0 {
                            ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
                        } else {
                            0.0
                        };
                        (places[tap], weights[tap]) = (clamp(place), weight as f32);
                    }
                }
            }
            axis.at.push(places);
            axis.weights.push(weights);
        }
        axis
    }
}

impl Step for ResizeStep {
    fn describe(&self) -> String {
        format!("Resize {:?} blocked {} -> {}", self.op.mode, self.x.value, self.y.value)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (from, to) = (self.x.extent(cx), self.y.extent(cx));
        if from.pixels() == 0 || to.pixels() == 0 {
            return;
        }
        let rank = self.op.shape.len();
        let scale = |i: usize| self.op.scales.as_ref().map(|scales| scales[i]);
        // An image of one spatial extent has a single row.
        let rows = if rank == 4 {
            self.axis(from.height, to.height, scale(2))
        } else {
            Axis { taps: 1, at: vec![[0; MAX_TAPS]], weights: vec![[1.0, 0.0, 0.0, 0.0]] }
        };
        let columns = self.axis(from.width, to.width, scale(rank - 1));
        for unit in cx.worker.share(to.batch * to.blocks() * to.height) {
            let (plane, row) = (unit / to.height, unit % to.height);
            cx.level.run(Row {
                x: self.x.ptr(cx).wrapping_add(plane * from.pixels() * BLOCK),
                from,
                y: self.y.ptr(cx).wrapping_add(unit * to.width * BLOCK),
                rows: (rows.taps, &rows.at[row], &rows.weights[row]),
                columns: &columns,
            });
        }
    }
}

/// A row of the result.
struct Row<'a> {
    x: *const f32,
    from: Extent,
    y: *mut f32,
    rows: (usize, &'a [usize; MAX_TAPS], &'a [f32; MAX_TAPS]),
    columns: &'a Axis,
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (taps, rows, row_weights) = self.rows;
        for (column, (at, weights)) in self.columns.at.iter().zip(&self.columns.weights).enumerate() {
            for lane in (0..BLOCK).step_by(S::LANES) {
                // SAFETY: places lie inside of the input, the column inside of the result.
                unsafe {
                    let load = |row: usize, column: usize| {
                        s.f_load(self.x.add((row * self.from.width + column) * BLOCK + lane))
                    };
                    let value = if taps == 1 && self.columns.taps == 1 {
                        load(rows[0], at[0])
                    } else {
                        let mut sum = s.f_splat(0.0);
                        for i in 0..taps {
                            let mut along = s.f_splat(0.0);
                            for j in 0..self.columns.taps {
                                along = s.f_fma(s.f_splat(weights[j]), load(rows[i], at[j]), along);
                            }
                            sum = s.f_fma(s.f_splat(row_weights[i]), along, sum);
                        }
                        sum
                    };
                    s.f_store(self.y.add(column * BLOCK + lane), value);
                }
            }
        }
    }
}
