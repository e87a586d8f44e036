//! Quantization.

use core_tensor::op::{DequantizeLinear, DynamicQuantizeLinear, Granularity, Op, QuantizeLinear};
use core_tensor::{DType, Dim};

use super::conv::convolve_integers;
use super::matmul::multiply_integers;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value, held};

pub(super) const OPERATORS: &[Entry] = &[
    ("DequantizeLinear", 10, dequantize_linear),
    ("DynamicQuantizeLinear", 11, dynamic_quantize_linear),
    ("QLinearConv", 10, q_linear_conv),
    ("QLinearMatMul", 10, q_linear_mat_mul),
    ("QuantizeLinear", 10, quantize_linear),
];

/// Who shares a scale.
fn granularity(call: &Call<'_>, x: &Operand, scale: &Operand) -> Res<Granularity> {
    let axis = call.attributes.int_or("axis", 1)?;
    if scale.count() == Dim::Num(1) && scale.rank() <= 1 {
        return Ok(Granularity::Tensor);
    }
    let axis = axis as isize;
    if scale.rank() == 1 {
        return Ok(Granularity::Axis(axis));
    }
    match call.attributes.count("block_size", 0)? {
        0 => fail(format!("a scale of {} extents for {} extents, without a block size", scale.rank(), x.rank())),
        block => Ok(Granularity::Blocks { axis, block }),
    }
}

fn bits(dtype: DType) -> Option<u8> {
    matches!(dtype, DType::I4 | DType::U4).then_some(4)
}

fn quantize_linear<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, scale, zero) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let granularity = granularity(call, &x, &scale)?;
    let to = match (&zero, call.attributes.dtype("output_dtype")?) {
        (Some(zero), _) => zero.dtype(),
        (None, Some(dtype)) => dtype,
        (None, None) => DType::U8,
    };
    let saturate = call.attributes.flag("saturate", true)?;
    one(quantize(lower, &x, &scale, zero.as_ref(), granularity, to, saturate)?)
}

/// `saturate(round(x / scale) + zero)`.
pub(super) fn quantize(
    lower: &mut Lower<'_>,
    x: &Operand,
    scale: &Operand,
    zero: Option<&Operand>,
    granularity: Granularity,
    to: DType,
    saturate: bool,
) -> Res<Operand> {
    let x = if x.dtype() == DType::I32 { x.clone() } else { lower.f32(x)? };
    let scale = lower.f32(scale)?;
    let op = Op::QuantizeLinear(QuantizeLinear { granularity, to: held(to), saturate, bits: bits(to) });
    let y = match zero {
        Some(zero) => lower.op(op, &[&x, &scale, zero])?,
        None => lower.op(op, &[&x, &scale])?,
    };
    lower.declare(&y, to)
}

fn dequantize_linear<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, scale, zero) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let granularity = granularity(call, &x, &scale)?;
    let dtype = call.attributes.dtype("output_dtype")?.unwrap_or(scale.dtype());
    let y = dequantize(lower, &x, &scale, zero.as_ref(), granularity)?;
    one(lower.back(y, dtype)?)
}

/// `(x - zero) * scale`, f32.
pub(super) fn dequantize(
    lower: &mut Lower<'_>,
    x: &Operand,
    scale: &Operand,
    zero: Option<&Operand>,
    granularity: Granularity,
) -> Res<Operand> {
    let scale = lower.f32(scale)?;
    let op = Op::DequantizeLinear(DequantizeLinear { granularity });
    match zero {
        Some(zero) => lower.op(op, &[x, &scale, zero]),
        None => lower.op(op, &[x, &scale]),
    }
}

fn dynamic_quantize_linear<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let x = lower.f32(&x)?;
    let outputs = lower.ops(Op::DynamicQuantizeLinear(DynamicQuantizeLinear), &[Some(&x)])?;
    Ok(outputs.into_iter().map(Value::from).collect())
}

/// A scale or zero point of rows or columns, as it broadcasts over `[..., m, n]`.
fn per_column(lower: &mut Lower<'_>, x: &Operand, of_rows: bool) -> Res<Operand> {
    match x.rank() {
        1 if of_rows && x.count() != Dim::Num(1) => lower.unsqueeze(x, &[1]),
        1 if x.count() == Dim::Num(1) => lower.reshape(x, &[]),
        _ => Ok(x.clone()),
    }
}

fn q_linear_mat_mul<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let all = call.all()?;
    let [a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero] = &all[..] else {
        return fail("it takes 8 inputs");
    };
    let y = multiply_integers(lower, a, b, Some(a_zero), Some(b_zero))?;
    let y = lower.cast(&y, DType::F32)?;
    let (a_scale, b_scale) = (lower.f32(a_scale)?, lower.f32(b_scale)?);
    let (a_scale, b_scale) = (per_column(lower, &a_scale, true)?, per_column(lower, &b_scale, false)?);
    let scale = lower.mul(&a_scale, &b_scale)?;
    let y = lower.mul(&y, &scale)?;
    let granularity =
        if y_scale.count() == Dim::Num(1) { Granularity::Tensor } else { Granularity::Axis(y.rank() as isize - 2) };
    let to = y_zero.dtype();
    one(quantize(lower, &y, y_scale, Some(y_zero), granularity, to, true)?)
}

fn q_linear_conv<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, x_scale, x_zero) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let (w, w_scale, w_zero) = (call.input(3)?.clone(), call.input(4)?.clone(), call.input(5)?.clone());
    let (y_scale, y_zero, bias) = (call.input(6)?.clone(), call.input(7)?.clone(), call.optional(8)?.cloned());
    let mut y = convolve_integers(lower, call, &x, &w, Some(&x_zero), Some(&w_zero))?;
    let over_channels = |lower: &mut Lower<'a>, v: &Operand| {
        let mut shape = vec![Dim::Num(1); x.rank()];
        shape[1] = v.count();
        lower.reshape(v, &shape)
    };
    if let Some(bias) = bias {
        let bias = over_channels(lower, &bias)?;
        y = lower.add(&y, &bias)?;
    }
    let y = lower.cast(&y, DType::F32)?;
    let (x_scale, w_scale) = (lower.f32(&x_scale)?, lower.f32(&w_scale)?);
    let w_scale = over_channels(lower, &w_scale)?;
    let x_scale = lower.reshape(&x_scale, &[])?;
    let scale = lower.mul(&x_scale, &w_scale)?;
    let y = lower.mul(&y, &scale)?;
    one(quantize(lower, &y, &y_scale, Some(&y_zero), Granularity::Tensor, y_zero.dtype(), true)?)
}
