//! Pooling.

use super::conv::{Window, image, known, places, taps};
use super::{Evaluation, Inference, Numbers, OpError, Operator, expect_shape, filled, show};
use crate::{DType, Dim, ValueType};

/// What a window is reduced to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// The largest.
    Max,
    /// The mean; whether padding counts as elements.
    Average {
        /// ONNX count_include_pad.
        count_include_pad: bool,
    },
    /// `(Σ|x|^p)^(1/p)`
    Lp {
        /// The exponent.
        p: u32,
    },
}

/// Pooling over windows (ONNX MaxPool, AveragePool, LpPool). Global pooling is a Reduce.
///
/// Input: `[batch, channels, spatial...]`, f32 (Max: also i8, u8, f64). Output: same dtype, spatial extents as for Conv, rounded up if `ceil_mode`
/// (windows that would begin in the padding after the end are left out). With `indices` (Max only) a second output, i64: places of the maxima in
/// the flattened input, column-major over the spatial extents if `column_major`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What a window is reduced to.
    pub kind: PoolKind,
    /// Extents of the window.
    pub kernel: Vec<usize>,
    /// Where it stands.
    pub window: Window,
    /// Whether a last, incomplete window counts.
    pub ceil_mode: bool,
    /// Whether places are given, too.
    pub indices: bool,
    /// How the places count (ONNX storage_order = 1).
    pub column_major: bool,
}

/// Pooling over regions of interest by bilinear samples (ONNX RoiAlign).
///
/// Inputs: x f32 `[batch, channels, h, w]`; rois f32 `[n, 4]` (x1, y1, x2, y2); batch_indices i64 `[n]`. Output: f32 `[n, channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Rows of the output.
    pub output_height: usize,
    /// Columns of the output.
    pub output_width: usize,
    /// Samples per bin and direction; 0: as many as the bin is long.
    pub sampling_ratio: usize,
    /// What coordinates are multiplied with.
    pub spatial_scale: f32,
    /// Whether half a pixel is taken off (coordinate_transformation_mode = half_pixel).
    pub half_pixel: bool,
    /// The largest sample of a bin, and not the mean.
    pub max: bool,
}

impl Pool {
    /// At how many places the window stands along spatial extent `i`.
    fn places(&self, i: usize, extent: &Dim) -> Result<Dim, OpError> {
        let kernel = Dim::Num(self.kernel[i]);
        if !self.ceil_mode {
            return self.window.places(i, extent, &kernel);
        }
        let stride = Dim::Num(self.window.strides[i]);
        let free = self.window.padded(i, extent)?.add(stride.clone()).sub(self.window.span(i, &kernel)?);
        // A window must begin in the input or in the padding before it.
        let begins = extent.clone().add(Dim::Num(self.window.pads_begin[i])).div_ceil(stride.clone());
        known(free.div_ceil(stride).min(begins), &[extent], "the window does not fit into the padded input")
    }

    /// How many elements of the window at a place count for the mean: those inside of the input, or also those in the padding.
    fn counted(&self, at: &[usize], spatial: &[usize], inside: usize) -> f64 {
        match self.kind {
            PoolKind::Average { count_include_pad: true } => (0..spatial.len())
                .map(|i| {
                    let window = &self.window;
                    let start = at[i] as f64 * window.strides[i] as f64;
                    let end = window.pads_begin[i] as f64 + spatial[i] as f64 + window.pads_end[i] as f64;
                    ((end - start) / window.dilations[i] as f64).ceil().min(self.kernel[i] as f64)
                })
                .product(),
            _ => inside as f64,
        }
    }
}

impl Operator for Pool {
    fn name(&self) -> &'static str {
        match self.kind {
            PoolKind::Max => "MaxPool",
            PoolKind::Average { .. } => "AveragePool",
            PoolKind::Lp { .. } => "LpPool",
        }
    }

    fn attributes(&self) -> String {
        let kind = match self.kind {
            PoolKind::Max => format!(", indices={}, column_major={}", self.indices, self.column_major),
            PoolKind::Average { count_include_pad } => format!(", count_include_pad={count_include_pad}"),
            PoolKind::Lp { p } => format!(", p={p}"),
        };
        format!(" {{kernel={:?}, {}, ceil_mode={}{kind}}}", self.kernel, self.window.text(), self.ceil_mode)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, x) = cx.tensor(0)?;
        let fits = match dtype {
            DType::F32 | DType::F64 => true,
            DType::I8 | DType::U8 => self.kind == PoolKind::Max,
            _ => false,
        };
        if !fits {
            return Err(OpError::DType {
                input: 0,
                expected: "f32 or f64 (for maxima also i8 or u8)",
                found: dtype.to_string(),
            });
        }
        let (batch, channels, spatial) = image(x)?;
        self.window.check(spatial.len())?;
        let wrong = |name, reason: String| Err(OpError::Attribute { name, reason });
        if self.kernel.len() != spatial.len() || self.kernel.contains(&0) {
            return wrong("kernel", format!("{:?} for {} spatial extents", self.kernel, spatial.len()));
        }
        if self.indices && self.kind != PoolKind::Max {
            return wrong("indices", "only maxima have a place".into());
        }
        if self.kind == (PoolKind::Lp { p: 0 }) {
            return wrong("p", "it is 0".into());
        }
        let mut shape = vec![batch.clone(), channels.clone()];
        for (i, extent) in spatial.iter().enumerate() {
            shape.push(self.places(i, extent)?);
        }
        let mut outputs = vec![ValueType::tensor(dtype, &shape)];
        if self.indices {
            outputs.push(ValueType::Tensor { dtype: DType::I64, shape });
        }
        Ok(outputs)
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let x = Numbers::load(cx.tensor(0)?)?.to_f64();
        let spatial = cx.tensor(0)?.shape()[2..].to_vec();
        let plane: usize = spatial.iter().product();
        let out_plane: usize = shape[2..].iter().product();
        let mut y = filled(&shape, 0.0f64)?;
        let mut indices = if self.indices { filled(&shape, 0i64)? } else { Vec::new() };
        let planes = y.len().checked_div(out_plane).unwrap_or(0);
        for place in 0..if planes == 0 { 0 } else { out_plane } {
            let taps = taps(&self.window, place, &shape[2..], &self.kernel, &spatial);
            let count = self.counted(&places(place, &shape[2..]), &spatial, taps.len());
            for i in 0..planes {
                let x = &x[i * plane..(i + 1) * plane];
                let mut values = taps.iter().map(|(_, at)| x[*at]);
                y[i * out_plane + place] = match self.kind {
                    PoolKind::Max => {
                        let mut best = None;
                        for (_, at) in &taps {
                            if best.is_none_or(|best: usize| x[*at] > x[best] || (x[*at].is_nan() && !x[best].is_nan()))
                            {
                                best = Some(*at);
                            }
                        }
                        if let (true, Some(best)) = (self.indices, best) {
                            indices[i * out_plane + place] = (i * plane + self.ordered(best, &spatial)) as i64;
                        }
                        best.map_or(f64::NEG_INFINITY, |best| x[best])
                    }
                    // A window that lies in the padding alone has no mean.
                    PoolKind::Average { .. } if count == 0.0 => 0.0,
                    PoolKind::Average { .. } => values.sum::<f64>() / count,
                    PoolKind::Lp { p: 1 } => values.map(f64::abs).sum(),
                    PoolKind::Lp { p } => {
                        let p = f64::from(p);
                        values.by_ref().map(|v| v.abs().powf(p)).sum::<f64>().powf(1.0 / p)
                    }
                };
            }
        }
        cx.put_numbers(0, &Numbers::F64(y))?;
        if self.indices { cx.put(1, &indices) } else { Ok(()) }
    }
}

impl Pool {
    /// The index of an element of a plane, counted as the attributes say.
    fn ordered(&self, index: usize, spatial: &[usize]) -> usize {
        if !self.column_major {
            return index;
        }
        places(index, spatial).iter().zip(spatial).rev().fold(0, |sum, (at, extent)| sum * extent + at)
    }
}

impl Operator for RoiAlign {
    fn name(&self) -> &'static str {
        "RoiAlign"
    }

    fn attributes(&self) -> String {
        format!(
            " {{output=[{}, {}], sampling_ratio={}, spatial_scale={}, half_pixel={}, max={}}}",
            self.output_height, self.output_width, self.sampling_ratio, self.spatial_scale, self.half_pixel, self.max
        )
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=3, "3")?;
        let (x, rois) = (cx.f32(0)?, cx.f32(1)?);
        let ([_, channels, _, _], [n, four]) = (x, rois) else {
            let reason = format!("x {} must have 4 extents, rois {} 2", show(x), show(rois));
            return Err(OpError::Shape(reason));
        };
        expect_shape(std::slice::from_ref(four), &[Dim::Num(4)], "a region")?;
        let batch = cx.typed(2, &[DType::I64], "i64")?;
        expect_shape(batch, std::slice::from_ref(n), "batch_indices")?;
        if self.sampling_ratio > MOST_SAMPLES {
            let reason = format!("{} samples per bin", self.sampling_ratio);
            return Err(OpError::Attribute { name: "sampling_ratio", reason });
        }
        let shape = vec![n.clone(), channels.clone(), Dim::Num(self.output_height), Dim::Num(self.output_width)];
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, rois) = (cx.f32(0)?, cx.f32(1)?);
        let x_shape = cx.tensor(0)?.shape().to_vec();
        let (channels, height, width) = (x_shape[1], x_shape[2], x_shape[3]);
        let images = super::gather::indices(cx, 2, x_shape[0], "images")?;
        let mut y = filled(&shape, 0.0f32)?;
        for (i, out) in y.iter_mut().enumerate() {
            let (col, row) = (i % shape[3], i / shape[3] % shape[2]);
            let (channel, roi) = (i / shape[3] / shape[2] % channels, i / shape[3] / shape[2] / channels);
            let plane = &x[(images[roi] * channels + channel) * height * width..][..height * width];
            let corners = &rois[roi * 4..][..4];
            let ys = self.samples(corners[1], corners[3], row, shape[2], height)?;
            let xs = self.samples(corners[0], corners[2], col, shape[3], width)?;
            let count = (ys.len() * xs.len()).max(1) as f32;
            let mut sum = 0.0;
            let mut max: Option<f32> = None;
            for y in &ys {
                for x in &xs {
                    let (Some((y0, y1, wy)), Some((x0, x1, wx))) = (y, x) else {
                        max = Some(max.map_or(0.0, |max| max.max(0.0)));
                        continue;
                    };
                    let at = |y: usize, x: usize| plane[y * width + x];
                    let parts = [
                        (1.0 - wy) * (1.0 - wx) * at(*y0, *x0),
                        (1.0 - wy) * wx * at(*y0, *x1),
                        wy * (1.0 - wx) * at(*y1, *x0),
                        wy * wx * at(*y1, *x1),
                    ];
                    sum += parts.iter().sum::<f32>();
                    // ONNX takes the largest weighted part, not the largest sample.
                    let largest = parts.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    max = Some(max.map_or(largest, |max| max.max(largest)));
                }
            }
            *out = if self.max { max.unwrap_or(0.0) } else { sum / count };
        }
        cx.put_f32(0, &y)
    }
}

/// More samples per bin and direction are an attack.
const MOST_SAMPLES: usize = 1 << 12;

/// Between which two elements a sample lies, and the weight of the second.
type Sample = Option<(usize, usize, f32)>;

impl RoiAlign {
    /// The samples of one bin along one direction; `None` for those outside of the image.
    fn samples(&self, start: f32, end: f32, bin: usize, bins: usize, extent: usize) -> Result<Vec<Sample>, OpError> {
        let offset = if self.half_pixel { 0.5 } else { 0.0 };
        let (start, end) = (start * self.spatial_scale - offset, end * self.spatial_scale - offset);
        let length = if self.half_pixel { end - start } else { (end - start).max(1.0) };
        let size = length / bins as f32;
        let count = if self.sampling_ratio > 0 { self.sampling_ratio } else { size.ceil().max(0.0) as usize };
        if count > MOST_SAMPLES {
            return Err(OpError::Shape(format!("a region of {length} elements")));
        }
        let sample = |i: usize| {
            let at = start + bin as f32 * size + (i as f32 + 0.5) * size / count as f32;
            if !(-1.0..=extent as f32).contains(&at) || extent == 0 {
                return None;
            }
            let at = at.max(0.0);
            let low = at as usize;
            if low + 1 >= extent {
                return Some((extent - 1, extent - 1, 0.0));
            }
            Some((low, low + 1, at - low as f32))
        };
        Ok((0..count).map(sample).collect())
    }
}
