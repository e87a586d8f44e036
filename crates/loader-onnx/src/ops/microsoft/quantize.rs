//! Operators on quantized tensors: dequantized, applied, quantized again.

use core_tensor::op::{Binary, Gather, Granularity, Op, ReduceKind, Scalar, Softmax, Unary};
use core_tensor::{DType, Dim, Tensor};

use super::super::quantize::{dequantize, quantize};
use super::super::reduce::{along_axis, reduce};
use super::super::{Entry, find, one};
use super::matmul::{blocks_of, nibbles, scaled_product};
use crate::lower::Lower;
use crate::lower::call::{Call, axis};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};

pub(in crate::ops) const OPERATORS: &[Entry] = &[
    ("DequantizeLinear", 1, standard),
    ("GatherBlockQuantized", 1, gather_block_quantized),
    ("QGemm", 1, q_gemm),
    ("QLinearAdd", 1, q_linear_binary),
    ("QLinearAveragePool", 1, q_linear_pool),
    ("QLinearConcat", 1, q_linear_concat),
    ("QLinearConv", 1, standard),
    ("QLinearGlobalAveragePool", 1, q_linear_pool),
    ("QLinearLeakyRelu", 1, q_linear_unary),
    ("QLinearMul", 1, q_linear_binary),
    ("QLinearSigmoid", 1, q_linear_unary),
    ("QLinearSoftmax", 1, q_linear_unary),
    ("QuantizeLinear", 1, standard),
];

/// As the standard domain's operator of the same name.
fn standard<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    if call.attributes.flag("channels_last", false)? {
        return fail("channels last are not supported");
    }
    match find("", call.proto.op_type(), 21) {
        Some(lowering) => lowering(lower, call),
        None => Err(Fail::Unsupported),
    }
}

/// Rows of a table in blocks: what is taken becomes floats, and not the table.
fn gather_block_quantized<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (data, indices, scales) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let zeros = call.optional(3)?.cloned();
    let (bits, block) = (call.attributes.count("bits", 4)?, call.attributes.count("block_size", 128)?);
    let gather_axis = axis(call.attributes.int_or("gather_axis", 0)?, data.rank())?;
    let quantize_axis = axis(call.attributes.int_or("quantize_axis", 1)?, data.rank())?;
    if block == 0 || gather_axis == quantize_axis {
        return fail("blocks along the extent that is gathered are not supported");
    }
    if !matches!(data.dtype(), DType::U8 | DType::I4 | DType::U4) || !matches!(bits, 4 | 8) {
        return fail(format!("tables of {} in {bits} bits are not supported", data.dtype()));
    }
    // Numbers of 4 bits whose rows are odd have become bytes already; only packed ones have twice as many columns as the scales are for.
    let last = |x: &Operand| x.shape().last().and_then(Dim::as_num).unwrap_or(0);
    let doubled = last(&data).saturating_mul(8 / bits);
    let expected = if quantize_axis + 1 == data.rank() { doubled.div_ceil(block) } else { doubled };
    let in_bytes = data.dtype() == DType::U8 && (bits == 8 || gather_axis == 0 && last(&scales) == expected);
    if in_bytes
        && zeros.is_none()
        && gather_axis == 0
        && let (2, Some(packed)) = (data.rank(), data.tensor())
    {
        let (packed, rows) = (packed.clone(), packed.shape()[0]);
        let columns = packed.shape()[1].saturating_mul(8 / bits);
        if block.is_multiple_of(32)
            && columns.is_multiple_of(block)
            && let Some(table) = blocks_of(&packed, &scales, rows, columns, block, bits)?
        {
            let table = lower.constant(table, data.name());
            let y = lower.op(Op::Gather(Gather { axis: 0 }), &[&table, &indices])?;
            return one(lower.back(y, scales.dtype())?);
        }
    }
    let numbers = |lower: &mut Lower<'a>, x: &Operand| -> Res<Operand> {
        if !in_bytes || bits == 8 {
            return Ok(x.clone());
        }
        // Two numbers of a byte side by side, the low one first.
        let Some(tensor) = x.tensor() else { return fail("its table must be constant") };
        let mut shape = tensor.shape().to_vec();
        let Some(last) = shape.last_mut() else { return fail("its table is a single number") };
        *last = last.saturating_mul(2);
        let tensor = Tensor::from_slice(&shape, &nibbles(tensor.bytes()))?;
        Ok(lower.constant(tensor, x.name()))
    };
    let data = numbers(lower, &data)?;
    let middle = in_bytes.then(|| 1u8 << (bits - 1));
    let zeros = match (zeros, middle) {
        (Some(zeros), _) => Some(numbers(lower, &zeros)?),
        (None, Some(middle)) => {
            let shape: Option<Vec<usize>> = scales.shape().iter().map(Dim::as_num).collect();
            let Some(shape) = shape else { return fail("its scales must be constant") };
            let count = shape.iter().product();
            Some(lower.constant(Tensor::from_slice(&shape, &vec![middle; count])?, ""))
        }
        (None, None) => None,
    };
    let dtype = scales.dtype();
    let rows = lower.gather(&data, gather_axis, &indices)?;
    let scales = lower.f32(&scales)?;
    let scales = lower.gather(&scales, gather_axis, &indices)?;
    let zeros = zeros.map(|zeros| lower.gather(&zeros, gather_axis, &indices)).transpose()?;
    let moved = if quantize_axis > gather_axis { indices.rank() as isize - 1 } else { 0 };
    let granularity = Granularity::Blocks { axis: quantize_axis as isize + moved, block };
    let y = dequantize(lower, &rows, &scales, zeros.as_ref(), granularity)?;
    one(lower.back(y, dtype)?)
}

/// Inputs `at`, `at + 1`, `at + 2` as one f32 tensor.
fn real(lower: &mut Lower<'_>, call: &Call<'_>, at: usize) -> Res<Operand> {
    let (x, scale, zero) = (call.input(at)?.clone(), call.input(at + 1)?.clone(), call.optional(at + 2)?.cloned());
    dequantize(lower, &x, &scale, zero.as_ref(), Granularity::Tensor)
}

/// Quantized by inputs `at` and `at + 1`.
fn stored(lower: &mut Lower<'_>, call: &Call<'_>, y: &Operand, at: usize, to: DType) -> Res<Operand> {
    let (scale, zero) = (call.input(at)?.clone(), call.optional(at + 1)?.cloned());
    let to = zero.as_ref().map_or(to, Operand::dtype);
    quantize(lower, y, &scale, zero.as_ref(), Granularity::Tensor, to, true)
}

fn q_linear_binary<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b) = (real(lower, call, 0)?, real(lower, call, 3)?);
    let op = if call.proto.op_type() == "QLinearAdd" { Binary::Add } else { Binary::Mul };
    let y = lower.binary(op, &a, &b)?;
    let to = call.input(0)?.dtype();
    one(stored(lower, call, &y, 6, to)?)
}

fn q_linear_unary<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = real(lower, call, 0)?;
    let y = match call.proto.op_type() {
        "QLinearSigmoid" => lower.unary(Unary::Sigmoid, &x)?,
        "QLinearLeakyRelu" => {
            let alpha = Scalar::new(call.attributes.float_or("alpha", 0.01)?);
            lower.unary(Unary::LeakyRelu { alpha }, &x)?
        }
        _ => {
            let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
            along_axis(lower, &x, at, |lower, x| lower.op(Op::Softmax(Softmax), &[x]))?
        }
    };
    let to = call.input(0)?.dtype();
    one(stored(lower, call, &y, 3, to)?)
}

fn q_linear_pool<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let mut x = real(lower, call, 0)?;
    let rank = x.rank();
    let channels_last = call.attributes.flag("channels_last", false)?;
    if channels_last && rank > 2 {
        let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        x = lower.transpose(&x, &perm)?;
    }
    let mut y = if call.proto.op_type() == "QLinearGlobalAveragePool" {
        reduce(lower, ReduceKind::Mean, &x, &(2..rank).collect::<Vec<_>>(), true)?
    } else {
        super::super::pool::average(lower, call, &x)?
    };
    if channels_last && rank > 2 {
        let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
        y = lower.transpose(&y, &perm)?;
    }
    let to = call.input(0)?.dtype();
    one(stored(lower, call, &y, 3, to)?)
}

fn q_linear_concat<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let count = call.inputs.len().saturating_sub(2) / 3;
    let mut parts = Vec::with_capacity(count);
    for i in 0..count {
        parts.push(real(lower, call, 2 + 3 * i)?);
    }
    let Some(first) = parts.first() else { return fail("nothing to join") };
    let at = axis(call.attributes.int_or("axis", 1)?, first.rank())?;
    let y = lower.concat(&parts, at)?;
    let to = call.input(2)?.dtype();
    one(stored(lower, call, &y, 0, to)?)
}

fn q_gemm<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (mut a, a_scale, a_zero) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let (mut b, b_scale, b_zero) = (call.input(3)?.clone(), call.input(4)?.clone(), call.optional(5)?.cloned());
    if call.attributes.flag("transA", false)? {
        a = lower.transpose(&a, &[1, 0])?;
    }
    if call.attributes.flag("transB", false)? {
        b = lower.transpose(&b, &[1, 0])?;
    }
    let mut y = scaled_product(lower, (&a, &a_scale, a_zero.as_ref()), (&b, &b_scale, b_zero.as_ref()), None)?;
    let alpha = call.attributes.float_or("alpha", 1.0)?;
    let scalar = |lower: &mut Lower<'a>, x: &Operand| -> Res<Operand> {
        let x = lower.f32(x)?;
        if x.count() == Dim::Num(1) { lower.reshape(&x, &[]) } else { Ok(x) }
    };
    if let Some(bias) = call.optional(6)?.cloned() {
        // The bias counts in units of both scales.
        let (a_scale, b_scale) = (scalar(lower, &a_scale)?, scalar(lower, &b_scale)?);
        let unit = lower.mul(&a_scale, &b_scale)?;
        let bias = lower.cast(&bias, DType::F32)?;
        let bias = lower.mul(&bias, &unit)?;
        y = lower.add(&y, &bias)?;
    }
    if alpha != 1.0 {
        let alpha = lower.scalar(DType::F32, f64::from(alpha))?;
        y = lower.mul(&y, &alpha)?;
    }
    if call.optional(7)?.is_none() {
        return one(y);
    }
    let to = call.input(0)?.dtype();
    one(stored(lower, call, &y, 7, to)?)
}
