//! Quantization.

use super::{Evaluation, Inference, OpError, Operator};
use crate::{DType, ValueType};

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

super::pending!(QuantizeLinear, "QuantizeLinear");
super::pending!(DequantizeLinear, "DequantizeLinear");
super::pending!(DynamicQuantizeLinear, "DynamicQuantizeLinear");
