//! Resampling of images.

use super::shape::{bind, plain};
use super::{Evaluation, Inference, Numbers, Op, OpError, Operator, expect_shape, filled, room, show};
use crate::{Bindings, DType, Dim, ValueType};

mod col2im;
mod grid_sample;

pub use col2im::Col2Im;
pub use grid_sample::{GridMode, GridPadding, GridSample};

/// How samples between elements are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeMode {
    /// The nearest, by this rounding.
    Nearest(NearestMode),
    /// Linear in each extent.
    Linear,
    /// Cubic convolution with this coefficient (usually -0.75).
    Cubic(super::Scalar),
}

/// Rounding of a coordinate to an element (ONNX nearest_mode).
#[allow(missing_docs)] // the names are ONNX's
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearestMode {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// Where an element of the result lies in the input (ONNX coordinate_transformation_mode).
#[allow(missing_docs)] // the names are ONNX's
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoordinateMode {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    /// With the region of interest's start and end for each extent.
    TfCropAndResize,
}

/// Resampling (ONNX Resize).
///
/// Input: f32 or f64 (Nearest: any plain dtype); with TfCropAndResize a second input, the roi, f32 `[2 · rank]`. Output: the shape given.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// The mode.
    pub mode: ResizeMode,
    /// Where elements lie.
    pub coordinates: CoordinateMode,
    /// The result's shape.
    pub shape: Vec<Dim>,
    /// Factor of each extent, where the file gives factors: they are used as given and not recomputed from the shapes.
    pub scales: Option<Vec<f32>>,
    /// Whether a filter is stretched when an extent shrinks.
    pub antialias: bool,
    /// Whether weights outside of the image are left out (and the others scaled up).
    pub exclude_outside: bool,
    /// What lies outside with TfCropAndResize.
    pub extrapolation_value: f32,
}

/// More taps of a stretched filter are an attack.
const MOST_TAPS: usize = 1 << 20;

/// What an element of the result is made of along one extent: elements of the input and their weights; `None`: it lies outside.
type Taps = Option<Vec<(usize, f64)>>;

/// One extent of a resize.
struct Extent {
    from: usize,
    to: usize,
    scale: f64,
    /// The extent of the result before it was rounded to a whole number.
    length: f64,
    /// Start and end of the region of interest.
    roi: (f64, f64),
}

impl Resize {
    /// Where element `x` of the result lies in the input.
    fn coordinate(&self, e: &Extent, x: usize) -> f64 {
        let (x, from) = (x as f64, e.from as f64);
        match self.coordinates {
            CoordinateMode::AlignCorners if e.length == 1.0 => 0.0,
            CoordinateMode::AlignCorners => x * (from - 1.0) / (e.length - 1.0),
            CoordinateMode::Asymmetric => x / e.scale,
            CoordinateMode::PytorchHalfPixel if e.length == 1.0 => -0.5,
            CoordinateMode::HalfPixel | CoordinateMode::PytorchHalfPixel => (x + 0.5) / e.scale - 0.5,
            CoordinateMode::HalfPixelSymmetric => {
                let offset = from / 2.0 * (1.0 - e.to as f64 / e.length);
                offset + (x + 0.5) / e.scale - 0.5
            }
            CoordinateMode::TfCropAndResize => {
                let (start, end) = e.roi;
                let within = if e.length == 1.0 {
                    (end - start) * (from - 1.0) / 2.0
                } else {
                    x * (end - start) * (from - 1.0) / (e.length - 1.0)
                };
                within + start * (from - 1.0)
            }
        }
    }

    /// The weight of an element at a distance from the sample.
    fn weight(&self, distance: f64) -> f64 {
        let d = distance.abs();
        match self.mode {
            ResizeMode::Nearest(_) | ResizeMode::Linear => (1.0 - d).max(0.0),
            ResizeMode::Cubic(a) => {
                let a = f64::from(a.get());
                match d {
                    d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
                    d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
                    _ => 0.0,
                }
            }
        }
    }

    fn taps(&self, e: &Extent, x: usize) -> Result<Taps, OpError> {
        let at = self.coordinate(e, x);
        if self.coordinates == CoordinateMode::TfCropAndResize && !(0.0..=e.from as f64 - 1.0).contains(&at) {
            return Ok(None);
        }
        // Elements outside of the input are those at its edge.
        let clamp = |at: f64| at.clamp(0.0, (e.from - 1) as f64) as usize;
        if let ResizeMode::Nearest(mode) = self.mode {
            let rounded = match mode {
                NearestMode::Floor => at.floor(),
                NearestMode::Ceil => at.ceil(),
                NearestMode::RoundPreferFloor => (at - 0.5).ceil(),
                NearestMode::RoundPreferCeil => (at + 0.5).floor(),
            };
            return Ok(Some(vec![(clamp(rounded), 1.0)]));
        }
        let shrink = if self.antialias { e.scale.min(1.0) } else { 1.0 };
        let reach = if self.mode == ResizeMode::Linear { 1.0 } else { 2.0 } / shrink;
        if reach.is_nan() || reach > MOST_TAPS as f64 {
            return Err(OpError::Shape(format!("an extent of {} cannot shrink by {}", e.from, e.scale)));
        }
        let base = at.floor();
        let first = (-reach).floor() as i64 + 1;
        let mut taps: Vec<(f64, f64)> =
            (first..2 - first).map(|i| (base + i as f64, self.weight((base + i as f64 - at) * shrink))).collect();
        if self.exclude_outside {
            taps.retain(|(place, _)| (0.0..e.from as f64).contains(place));
        }
        let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
        let whole = if (self.antialias || self.exclude_outside) && sum != 0.0 { sum } else { 1.0 };
        Ok(Some(taps.into_iter().map(|(place, weight)| (clamp(place), weight / whole)).collect()))
    }

    /// For each extent, what each element of the result is made of.
    fn all_taps(&self, from: &[usize], to: &[usize], roi: &[f32]) -> Result<Vec<Vec<Taps>>, OpError> {
        let mut all = Vec::new();
        for (i, (from, to)) in from.iter().copied().zip(to.iter().copied()).enumerate() {
            let given = self.scales.as_ref().map(|scales| scales[i]);
            let extent = Extent {
                from,
                to,
                scale: given.map_or(to as f64 / from as f64, f64::from),
                length: given.map_or(to as f64, |scale| f64::from(scale * from as f32)),
                roi: match (roi.get(i), roi.get(i + roi.len() / 2)) {
                    (Some(start), Some(end)) => (f64::from(*start), f64::from(*end)),
                    _ => (0.0, 1.0),
                },
            };
            all.push((0..to).map(|x| self.taps(&extent, x)).collect::<Result<_, _>>()?);
        }
        Ok(all)
    }
}

/// Resamples one extent of row-major elements.
fn resample(x: &[f64], shape: &mut [usize], along: usize, taps: &[Taps]) -> Result<Vec<f64>, OpError> {
    let inner: usize = shape[along + 1..].iter().product();
    let from = shape[along];
    shape[along] = taps.len();
    let mut y = filled(shape, 0.0)?;
    for (i, v) in y.iter_mut().enumerate() {
        let (outer, at, inside) = (i / inner / taps.len(), i / inner % taps.len(), i % inner);
        if let Some(taps) = &taps[at] {
            *v = taps.iter().map(|(place, weight)| x[(outer * from + place) * inner + inside] * weight).sum();
        }
    }
    Ok(y)
}

impl Operator for Resize {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn attributes(&self) -> String {
        let scales = self.scales.as_ref().map_or(String::new(), |scales| format!(", scales={scales:?}"));
        format!(
            " {{mode={:?}, coordinates={:?}, shape={}{scales}, antialias={}, exclude_outside={}, extrapolation_value={:?}}}",
            self.mode,
            self.coordinates,
            show(&self.shape),
            self.antialias,
            self.exclude_outside,
            self.extrapolation_value
        )
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=2, "1 or 2")?;
        let (dtype, x) = cx.tensor(0)?;
        plain(dtype, 0)?;
        if !matches!(self.mode, ResizeMode::Nearest(_)) && !matches!(dtype, DType::F32 | DType::F64) {
            return Err(OpError::DType { input: 0, expected: "f32 or f64", found: dtype.to_string() });
        }
        let impossible = |(from, to): (&Dim, &Dim)| *from == Dim::Num(0) && to.differs(from);
        if self.shape.len() != x.len() || x.iter().zip(&self.shape).any(impossible) {
            return Err(OpError::Shape(format!("{} cannot be resized to {}", show(x), show(&self.shape))));
        }
        if let Some(scales) = &self.scales
            && (scales.len() != x.len() || scales.iter().any(|scale| !scale.is_finite() || *scale <= 0.0))
        {
            return Err(OpError::Attribute { name: "scales", reason: format!("{scales:?} for {}", show(x)) });
        }
        if self.coordinates == CoordinateMode::TfCropAndResize {
            expect_shape(cx.f32(1)?, &[Dim::Num(2 * x.len())], "the roi")?;
        }
        Ok(vec![ValueType::tensor(dtype, &self.shape)])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Resize(Resize { shape: bind(&self.shape, bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let x = cx.tensor(0)?.clone();
        if shape.contains(&0) {
            return cx.put_bytes(0, &[]);
        }
        let mut bytes: Vec<u8> = room(&[&shape[..], &[x.dtype().packing().1]].concat())?;
        let roi = if cx.has(1) { cx.f32(1)? } else { Vec::new() };
        let taps = self.all_taps(x.shape(), &shape, &roi)?;
        if matches!(self.mode, ResizeMode::Nearest(_)) {
            let size = x.dtype().packing().1;
            let outside = Numbers::F32(vec![self.extrapolation_value]).store(x.dtype(), &[])?;
            for i in 0..shape.iter().product() {
                let places = super::conv::places(i, &shape);
                let at = (0..shape.len())
                    .try_fold(0, |at, d| taps[d][places[d]].as_ref().map(|taps| at * x.shape()[d] + taps[0].0));
                bytes.extend_from_slice(at.map_or(outside.bytes(), |at| &x.bytes()[at * size..][..size]));
            }
            return cx.put_bytes(0, &bytes);
        }
        let mut current = x.shape().to_vec();
        let mut y = Numbers::load(&x)?.to_f64();
        // What shrinks comes first, so that nothing in between is larger than both input and result.
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.sort_by_key(|d| shape[*d] > current[*d]);
        for d in order {
            let same = |(i, taps): (usize, &Taps)| {
                taps.as_ref().is_some_and(|t| t.iter().all(|(at, w)| *w == 0.0 || (*at == i && *w == 1.0)))
            };
            if shape[d] != current[d] || !taps[d].iter().enumerate().all(same) {
                y = resample(&y, &mut current, d, &taps[d])?;
            }
        }
        if taps.iter().flatten().any(Option::is_none) {
            for (i, v) in y.iter_mut().enumerate() {
                let places = super::conv::places(i, &shape);
                if (0..shape.len()).any(|d| taps[d][places[d]].is_none()) {
                    *v = f64::from(self.extrapolation_value);
                }
            }
        }
        cx.put_numbers(0, &Numbers::F64(y))
    }
}
