//! Convolutions.

use super::{Evaluation, Inference, OpError, Operator, expect_shape, filled, show};
use crate::{DType, Dim, ValueType};

mod deform;
mod taps;
mod transpose;

pub use deform::DeformConv;
pub(crate) use taps::{places, taps};
pub use transpose::ConvTranspose;

/// Where a window stands on the spatial extents of an image, one entry per spatial extent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Step from one place to the next.
    pub strides: Vec<usize>,
    /// Distance between the window's elements.
    pub dilations: Vec<usize>,
    /// What is added before each extent. (May be negative in transposed convolutions by lowering to a slice; here it is not.)
    pub pads_begin: Vec<usize>,
    /// What is added after each extent.
    pub pads_end: Vec<usize>,
}

/// Convolution (ONNX Conv) over 1 to 3 (any number of) spatial extents.
///
/// Inputs: x f32 `[batch, channels, spatial...]`; w f32 (weights of any float dtype) `[out, channels / groups, kernel...]`; optionally bias f32
/// `[out]`. Output: f32 `[batch, out, spatial'...]` with `spatial' = (spatial + pads - dilation·(kernel - 1) - 1) / stride + 1`.
/// (auto_pad is resolved by the importer, or, where extents are symbols, by a Pad in front.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
}

/// Convolution of integers (ONNX ConvInteger): exact, i32.
///
/// Inputs: x u8 or i8; w u8 or i8; optionally x's zero point, a scalar of x's dtype; optionally w's zero point, scalar or `[out]`, of w's dtype.
/// Output: i32. Padding counts as x's zero point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvInteger {
    /// The window.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
}

impl Window {
    /// Fails unless it stands on this many spatial extents and moves.
    pub(crate) fn check(&self, rank: usize) -> Result<(), OpError> {
        let wrong = |name, reason| Err(OpError::Attribute { name, reason });
        let lists = [
            ("strides", &self.strides),
            ("dilations", &self.dilations),
            ("pads_begin", &self.pads_begin),
            ("pads_end", &self.pads_end),
        ];
        for (name, list) in lists {
            if list.len() != rank {
                return wrong(name, format!("{} of them for {rank} spatial extents", list.len()));
            }
            // Places are computed with sums of products of these.
            if let Some(n) = list.iter().find(|n| **n > i32::MAX as usize) {
                return wrong(name, format!("{n} is not below 2³¹"));
            }
        }
        if self.strides.contains(&0) {
            return wrong("strides", "one is 0".into());
        }
        if self.dilations.contains(&0) {
            return wrong("dilations", "one is 0".into());
        }
        Ok(())
    }

    /// What a kernel extends over along spatial extent `i`: `dilation·(kernel - 1) + 1`.
    pub(crate) fn span(&self, i: usize, kernel: &Dim) -> Result<Dim, OpError> {
        let steps = kernel.clone().sub(Dim::Num(1));
        known(Dim::Num(self.dilations[i]).mul(steps).add(Dim::Num(1)), &[kernel], "kernel")
    }

    /// An extent with its padding.
    pub(crate) fn padded(&self, i: usize, extent: &Dim) -> Result<Dim, OpError> {
        let padded = extent.clone().add(Dim::Num(self.pads_begin[i])).add(Dim::Num(self.pads_end[i]));
        known(padded, &[extent], "pads")
    }

    /// At how many places a kernel stands along spatial extent `i`.
    pub(crate) fn places(&self, i: usize, extent: &Dim, kernel: &Dim) -> Result<Dim, OpError> {
        let free = self.padded(i, extent)?.sub(self.span(i, kernel)?);
        let places = free.div(Dim::Num(self.strides[i])).add(Dim::Num(1));
        known(places, &[extent, kernel], "the window does not fit into the padded input")
    }

    /// As a text of attributes.
    pub(crate) fn text(&self) -> String {
        format!(
            "strides={:?}, dilations={:?}, pads={:?}+{:?}",
            self.strides, self.dilations, self.pads_begin, self.pads_end
        )
    }
}

/// An extent computed from others; an error if all of these are numbers and it still is none: it is negative or overflows.
pub(crate) fn known(dim: Dim, of: &[&Dim], what: &str) -> Result<Dim, OpError> {
    if dim.as_num().is_none() && of.iter().all(|dim| dim.as_num().is_some()) {
        let of: Vec<Dim> = of.iter().map(|dim| (*dim).clone()).collect();
        return Err(OpError::Shape(format!("{what}: {dim} of {} is no extent", show(&of))));
    }
    Ok(dim)
}

/// Batch, channels and spatial extents of an image.
pub(crate) fn image(x: &[Dim]) -> Result<(&Dim, &Dim, &[Dim]), OpError> {
    match x {
        [batch, channels, spatial @ ..] => Ok((batch, channels, spatial)),
        _ => Err(OpError::Shape(format!("x must be [batch, channels, spatial...], it is {}", show(x)))),
    }
}

/// Fails unless `n` is known to be (or may be) a multiple of `groups`.
fn divisible(n: &Dim, groups: usize, name: &'static str) -> Result<(), OpError> {
    if groups == 0 || n.as_num().is_some_and(|n| !n.is_multiple_of(groups)) {
        return Err(OpError::Attribute { name, reason: format!("{groups} groups of {n} channels") });
    }
    Ok(())
}

/// The shape of a convolution's result.
fn convolved(window: &Window, groups: usize, x: &[Dim], w: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let (batch, channels, spatial) = image(x)?;
    window.check(spatial.len())?;
    let [out, per_group, kernel @ ..] = w else {
        return Err(OpError::Shape(format!("w must be [out, channels / groups, kernel...], it is {}", show(w))));
    };
    divisible(channels, groups, "groups")?;
    divisible(out, groups, "groups")?;
    let fits = !channels.clone().div(Dim::Num(groups)).differs(per_group) && kernel.len() == spatial.len();
    if !fits {
        let reason = format!("x {} and w {} with {groups} groups do not fit", show(x), show(w));
        return Err(OpError::Shape(reason));
    }
    let mut shape = vec![batch.clone(), out.clone()];
    for (i, (extent, kernel)) in spatial.iter().zip(kernel).enumerate() {
        shape.push(window.places(i, extent, kernel)?);
    }
    Ok(shape)
}

/// Convolves: the sum over all taps of `x * w`, from `zero` on.
fn convolve<T: Copy>(
    window: &Window,
    groups: usize,
    (x, x_shape): (&[T], &[usize]),
    (w, w_shape): (&[T], &[usize]),
    shape: &[usize],
    zero: T,
    multiply_add: impl Fn(T, T, T) -> T,
) -> Result<Vec<T>, OpError> {
    let mut y = filled(shape, zero)?;
    let (spatial, kernel) = (&x_shape[2..], &w_shape[2..]);
    if x.is_empty() || w.is_empty() {
        return Ok(y);
    }
    let (places, plane, volume): (usize, usize, usize) =
        (shape[2..].iter().product(), spatial.iter().product(), kernel.iter().product());
    let (batch, out, channels) = (shape[0], shape[1], w_shape[1]);
    for place in 0..if y.is_empty() { 0 } else { places } {
        // Which elements of the kernel meet which elements of a plane is the same for all channels.
        let taps = taps(window, place, &shape[2..], kernel, spatial);
        for image in 0..batch {
            for channel in 0..out {
                let first = channel / (out / groups) * channels;
                let result = &mut y[(image * out + channel) * places + place];
                for c in 0..channels {
                    let x = &x[(image * channels * groups + first + c) * plane..][..plane];
                    let w = &w[(channel * channels + c) * volume..][..volume];
                    for (k, i) in &taps {
                        *result = multiply_add(*result, x[*i], w[*k]);
                    }
                }
            }
        }
    }
    Ok(y)
}

/// Adds a bias to each channel.
fn add_bias(y: &mut [f32], shape: &[usize], bias: &[f32]) {
    let places: usize = shape[2..].iter().product();
    for (i, plane) in y.chunks_mut(places.max(1)).enumerate() {
        plane.iter_mut().for_each(|v| *v += bias[i % bias.len()]);
    }
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn attributes(&self) -> String {
        format!(" {{{}, groups={}}}", self.window.text(), self.groups)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=3, "2 or 3")?;
        let shape = convolved(&self.window, self.groups, cx.f32(0)?, cx.float(1)?)?;
        if cx.has(2) {
            expect_shape(cx.float(2)?, &shape[1..2], "the bias")?;
        }
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, w) = (cx.f32(0)?, cx.f32(1)?);
        let (x, w) = ((&x[..], cx.tensor(0)?.shape()), (&w[..], cx.tensor(1)?.shape()));
        let mut y = convolve(&self.window, self.groups, x, w, &shape, 0.0, |sum, x, w| sum + x * w)?;
        if cx.has(2) {
            add_bias(&mut y, &shape, &cx.f32(2)?);
        }
        cx.put_f32(0, &y)
    }
}

impl Operator for ConvInteger {
    fn name(&self) -> &'static str {
        "ConvInteger"
    }

    fn attributes(&self) -> String {
        format!(" {{{}, groups={}}}", self.window.text(), self.groups)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=4, "2 to 4")?;
        let bytes = [DType::U8, DType::I8];
        let (x, w) = (cx.typed(0, &bytes, "u8 or i8")?, cx.typed(1, &bytes, "u8 or i8")?);
        let shape = convolved(&self.window, self.groups, x, w)?;
        for input in [2, 3] {
            if cx.has(input) {
                let zero = cx.typed(input, &[cx.tensor(input - 2)?.0], "of its operand's dtype")?;
                let single = super::shape::product(zero) == Dim::Num(1);
                if !single && (input == 2 || zero.len() != 1 || zero[0].differs(&shape[1])) {
                    return Err(OpError::Shape(format!("the zero point {} does not fit", show(zero))));
                }
            }
        }
        Ok(vec![ValueType::Tensor { dtype: DType::I32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let integers = |input: usize| super::matmul::small_integers(cx.tensor(input)?);
        let (mut x, mut w) = (integers(0)?, integers(1)?);
        // What is padded is the zero point, which counts as nothing.
        if cx.has(2) {
            let zero = integers(2)?[0];
            x.iter_mut().for_each(|x| *x -= zero);
        }
        if cx.has(3) {
            let zero = integers(3)?;
            let per_channel = w.len().checked_div(shape[1]).unwrap_or(0).max(1);
            w.chunks_mut(per_channel)
                .enumerate()
                .for_each(|(i, w)| w.iter_mut().for_each(|w| *w -= zero[i % zero.len()]));
        }
        let (x, w) = ((&x[..], cx.tensor(0)?.shape()), (&w[..], cx.tensor(1)?.shape()));
        let add = |sum: i32, x: i32, w: i32| sum.wrapping_add(x * w);
        let y = convolve(&self.window, self.groups, x, w, &shape, 0, add)?;
        cx.put(0, &y)
    }
}
