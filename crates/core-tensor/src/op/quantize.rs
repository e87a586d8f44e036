//! Quantization.

use super::shape::product;
use super::{Evaluation, Inference, Numbers, OpError, Operator, axis, expect_shape, show};
use crate::{DType, Dim, ValueType};

/// How many elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All (the scale is a scalar or one element).
    Tensor,
    /// Those with the same index in this extent (scale `[extent]`); negative counts from the end.
    Axis(isize),
    /// Blocks of `block` along an extent (the scale has the input's shape with this extent divided, rounded up).
    Blocks {
        /// The extent; negative counts from the end.
        axis: isize,
        /// Elements per block.
        block: usize,
    },
}

/// `saturate(round(x / scale) + zero_point)`, halves to even (ONNX QuantizeLinear).
///
/// Inputs: x f32 or i32; scale f32; optionally zero_point of dtype `to` and the scale's shape. Output: dtype `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeLinear {
    /// Who shares a scale.
    pub granularity: Granularity,
    /// u8, i8, u16, i16, f8e4m3 or f8e5m2.
    pub to: DType,
    /// Floats of 8 bits: whether what is too large becomes the largest number, and not infinity or NaN.
    pub saturate: bool,
    /// Integers of fewer bits than the dtype has, held one per byte: 2, 4; `None`: all bits.
    pub bits: Option<u8>,
}

/// `(x - zero_point) * scale` (ONNX DequantizeLinear).
///
/// Inputs: x u8, i8, u16, i16, i32, f8e4m3 or f8e5m2; scale f32; optionally zero_point of x's dtype and the scale's shape. Output: f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DequantizeLinear {
    /// Who shares a scale.
    pub granularity: Granularity,
}

/// Quantizes to u8 by the range of the data, which is widened to contain 0 (ONNX DynamicQuantizeLinear).
///
/// Input: f32. Outputs: u8 of the same shape; scale f32 scalar; zero_point u8 scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicQuantizeLinear;

/// Rounds to an 8-bit float, halves to even. What is too large becomes the largest number if `saturate`, else infinity (or NaN in E4M3).
pub(crate) fn float8(x: f32, to: DType, saturate: bool) -> u8 {
    // (mantissa bits, exponent bias, largest finite magnitude)
    let (mantissa, bias, largest) = if to == DType::F8E4M3 { (3i32, 7i32, 448.0f32) } else { (2, 15, 57_344.0) };
    let sign = if x.is_sign_negative() { 0x80u8 } else { 0 };
    let nan = if to == DType::F8E4M3 { 0x7f } else { 0x7e };
    let top = if to == DType::F8E4M3 { 0x7e } else { 0x7b };
    let infinity = if to == DType::F8E4M3 { 0x7f } else { 0x7c };
    let a = x.abs();
    if a.is_nan() {
        return sign | nan;
    }
    if a == f32::INFINITY {
        return sign | if saturate { top } else { infinity };
    }
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(1 - bias);
    let unit = ((exponent - mantissa) as f32).exp2();
    let rounded = (a / unit).round_ties_even() * unit;
    if rounded > largest {
        return sign | if saturate { top } else { infinity };
    }
    let exponent = ((rounded.to_bits() >> 23) as i32 - 127).max(1 - bias);
    let unit = ((exponent - mantissa) as f32).exp2();
    let steps = (rounded / unit) as i32;
    let hidden = 1 << mantissa;
    let bits = if steps < hidden { steps } else { ((exponent + bias) << mantissa) + steps - hidden };
    sign | bits as u8
}

impl Granularity {
    fn text(self) -> String {
        match self {
            Granularity::Tensor => "per=tensor".into(),
            Granularity::Axis(axis) => format!("per=axis {axis}"),
            Granularity::Blocks { axis, block } => format!("per={block} of axis {axis}"),
        }
    }

    /// Fails where a scale or zero point does not fit the shape.
    fn check(self, shape: &[Dim], scale: &[Dim]) -> Result<(), OpError> {
        match self {
            Granularity::Tensor if product(scale).differs(&Dim::Num(1)) => {
                Err(OpError::Shape(format!("the scale or zero point is {}, no single element", show(scale))))
            }
            Granularity::Tensor => Ok(()),
            Granularity::Axis(along) => {
                let along = axis(along, shape.len())?;
                expect_shape(scale, &shape[along..=along], "the scale or zero point")
            }
            Granularity::Blocks { axis: along, block } => {
                let along = axis(along, shape.len())?;
                if block == 0 {
                    return Err(OpError::Attribute { name: "block", reason: "it is 0".into() });
                }
                let mut expected = shape.to_vec();
                expected[along] = expected[along].clone().div_ceil(Dim::Num(block));
                expect_shape(scale, &expected, "the scale or zero point")
            }
        }
    }

    /// For each element of a shape, which scale it has.
    fn places(self, shape: &[usize]) -> Result<impl Fn(usize) -> usize, OpError> {
        let (along, block) = match self {
            Granularity::Tensor => (None, 1),
            Granularity::Axis(along) => (Some(axis(along, shape.len())?), 1),
            Granularity::Blocks { axis: along, block } => (Some(axis(along, shape.len())?), block),
        };
        let extent = along.map_or(1, |along| shape[along]);
        let inner: usize = along.map_or(1, |along| shape[along + 1..].iter().product());
        let blocks = matches!(self, Granularity::Blocks { .. });
        Ok(move |i: usize| match along {
            None => 0,
            Some(_) if blocks => {
                (i / inner / extent * extent.div_ceil(block) + i / inner % extent / block) * inner + i % inner
            }
            Some(_) => i / inner % extent,
        })
    }
}

impl QuantizeLinear {
    /// The least and the largest integer of the result; `None` if it is a float.
    fn range(&self) -> Result<Option<(i64, i64)>, OpError> {
        let (signed, bits) = match self.to {
            DType::U8 => (false, 8),
            DType::I8 => (true, 8),
            DType::U16 => (false, 16),
            DType::I16 => (true, 16),
            DType::F8E4M3 | DType::F8E5M2 if self.bits.is_none() => return Ok(None),
            to => return Err(OpError::Attribute { name: "to", reason: format!("nothing is quantized to {to}") }),
        };
        let bits = match self.bits {
            None => bits,
            Some(fewer @ (2 | 4)) if bits == 8 => u32::from(fewer),
            Some(fewer) => {
                return Err(OpError::Attribute { name: "bits", reason: format!("{fewer} bits of {}", self.to) });
            }
        };
        let steps = 1i64 << bits;
        Ok(Some(if signed { (-steps / 2, steps / 2 - 1) } else { (0, steps - 1) }))
    }
}

impl Operator for QuantizeLinear {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn attributes(&self) -> String {
        let bits = self.bits.map_or(String::new(), |bits| format!(", bits={bits}"));
        format!(" {{{}, to={}, saturate={}{bits}}}", self.granularity.text(), self.to, self.saturate)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=3, "2 or 3")?;
        let x = cx.typed(0, &[DType::F32, DType::I32], "f32 or i32")?;
        self.granularity.check(x, cx.f32(1)?)?;
        self.range()?;
        if cx.has(2) {
            self.granularity.check(x, cx.typed(2, &[self.to], "of the result's dtype")?)?;
        }
        Ok(vec![ValueType::tensor(self.to, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (x, scale) = (cx.f32(0)?, cx.f32(1)?);
        let place = self.granularity.places(&shape)?;
        let Some((least, most)) = self.range()? else {
            let y: Vec<u8> =
                x.iter().enumerate().map(|(i, x)| float8(x / scale[place(i)], self.to, self.saturate)).collect();
            return cx.put_bytes(0, &y);
        };
        let zero = integers(cx, 2)?;
        let y = x.iter().enumerate().map(|(i, x)| {
            let zero = zero.as_ref().map_or(0, |zero| zero[place(i)]);
            let rounded = (x / scale[place(i)]).round_ties_even() as i64;
            i128::from(rounded.saturating_add(zero).clamp(least, most))
        });
        let y = Numbers::Int(y.collect());
        cx.put_numbers(0, &y)
    }
}

/// The elements of an optional integer input.
fn integers(cx: &Evaluation<'_>, input: usize) -> Result<Option<Vec<i64>>, OpError> {
    if !cx.has(input) {
        return Ok(None);
    }
    match Numbers::load(cx.tensor(input)?)? {
        Numbers::Int(v) => Ok(Some(v.into_iter().map(|v| v as i64).collect())),
        _ => Err(OpError::DType { input, expected: "integers", found: "floats".into() }),
    }
}

impl Operator for DequantizeLinear {
    fn name(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn attributes(&self) -> String {
        format!(" {{{}}}", self.granularity.text())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=3, "2 or 3")?;
        let quantized = [DType::U8, DType::I8, DType::U16, DType::I16, DType::I32, DType::F8E4M3, DType::F8E5M2];
        let x = cx.typed(0, &quantized, "an integer of up to 32 bits or a float of 8")?;
        self.granularity.check(x, cx.f32(1)?)?;
        if cx.has(2) {
            self.granularity.check(x, cx.typed(2, &[cx.tensor(0)?.0], "of x's dtype")?)?;
        }
        Ok(vec![ValueType::tensor(DType::F32, x)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let scale = cx.f32(1)?;
        let place = self.granularity.places(&shape)?;
        let y: Vec<f32> = match Numbers::load(cx.tensor(0)?)? {
            Numbers::Int(x) => {
                let zero = integers(cx, 2)?;
                let less = |i: usize| zero.as_ref().map_or(0, |zero| i128::from(zero[place(i)]));
                x.iter().enumerate().map(|(i, x)| (x - less(i)) as f32 * scale[place(i)]).collect()
            }
            _ => {
                let zero = if cx.has(2) { Some(cx.f32(2)?) } else { None };
                let less = |i: usize| zero.as_ref().map_or(0.0, |zero| zero[place(i)]);
                cx.f32(0)?.iter().enumerate().map(|(i, x)| (x - less(i)) * scale[place(i)]).collect()
            }
        };
        cx.put_f32(0, &y)
    }
}

impl Operator for DynamicQuantizeLinear {
    fn name(&self) -> &'static str {
        "DynamicQuantizeLinear"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let x = cx.f32(0)?;
        let scalar = |dtype| ValueType::tensor(dtype, &[]);
        Ok(vec![ValueType::tensor(DType::U8, x), scalar(DType::F32), scalar(DType::U8)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.f32(0)?;
        let least = x.iter().fold(0.0f32, |m, v| m.min(*v));
        let most = x.iter().fold(0.0f32, |m, v| m.max(*v));
        let scale = if most == least { 1.0 } else { (most - least) / 255.0 };
        let zero = (-least / scale).clamp(0.0, 255.0).round_ties_even();
        let y: Vec<u8> = x.iter().map(|v| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8).collect();
        cx.put(0, &y)?;
        cx.put_f32(1, &[scale])?;
        cx.put(2, &[zero as u8])
    }
}
