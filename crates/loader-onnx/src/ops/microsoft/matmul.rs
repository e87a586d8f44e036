//! Products of matrices, with weights of few bits.

use core_tensor::op::{Granularity, MatMul, Op, Unary};
use core_tensor::{BlockFormat, DType, Dim, Tensor};

use super::super::conv::convolve;
use super::super::matmul::{multiply, multiply_integers};
use super::super::quantize::dequantize;
use super::super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};

pub(in crate::ops) const OPERATORS: &[Entry] = &[
    ("DynamicQuantizeMatMul", 1, dynamic_quantize_mat_mul),
    ("FusedConv", 1, fused_conv),
    ("FusedGemm", 1, fused_gemm),
    ("FusedMatMul", 1, fused_mat_mul),
    ("MatMulIntegerToFloat", 1, mat_mul_integer_to_float),
    ("MatMulNBits", 1, mat_mul_n_bits),
    ("TransposeMatMul", 1, fused_mat_mul),
];

fn fused_mat_mul<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    if call.attributes.flag("transBatchA", false)? || call.attributes.flag("transBatchB", false)? {
        return fail("transposed batches are not supported");
    }
    let a = if call.attributes.flag("transA", false)? && a.rank() > 1 {
        let rank = a.rank();
        let perm: Vec<usize> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
        lower.transpose(&a, &perm)?
    } else {
        a
    };
    let transposed = call.attributes.flag("transB", false)? && b.rank() > 1;
    let y = multiply(lower, &a, &b, transposed)?;
    let alpha = call.attributes.float_or("alpha", 1.0)?;
    if alpha == 1.0 {
        return one(y);
    }
    let alpha = lower.scalar(y.dtype(), f64::from(alpha))?;
    one(lower.mul(&y, &alpha)?)
}

/// The activation that an operator ends with.
fn activated(lower: &mut Lower<'_>, call: &Call<'_>, y: Operand) -> Res<Operand> {
    use core_tensor::op::Scalar;
    let parameters = call.attributes.floats("activation_params")?.unwrap_or_default();
    let parameter = |i: usize, default: f32| Scalar::new(parameters.get(i).copied().unwrap_or(default));
    let op = match call.attributes.text_or("activation", "")? {
        "" => return Ok(y),
        "Relu" => Unary::Relu,
        "Tanh" => Unary::Tanh,
        "Sigmoid" => Unary::Sigmoid,
        "LeakyRelu" => Unary::LeakyRelu { alpha: parameter(0, 0.01) },
        "Clip" => Unary::Clip { min: parameter(0, f32::MIN), max: parameter(1, f32::MAX) },
        "HardSigmoid" => Unary::HardSigmoid { alpha: parameter(0, 0.2), beta: parameter(1, 0.5) },
        other => return fail(format!("activation '{other}' is not supported")),
    };
    lower.unary(op, &y)
}

fn fused_gemm<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let Some(gemm) = super::super::find("", "Gemm", 13) else { return Err(Fail::Unsupported) };
    match gemm(lower, call)?.into_iter().next() {
        Some(Value::Tensor(y)) => one(activated(lower, call, y)?),
        _ => fail("no result"),
    }
}

fn fused_conv<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let groups = call.attributes.count("group", 1)?;
    let mut y = convolve(lower, call, &x, &w, b.as_ref(), groups)?;
    if let Some(sum) = call.optional(3)?.cloned() {
        y = lower.add(&y, &sum)?;
    }
    one(activated(lower, call, y)?)
}

/// The product of integers, scaled: f32.
pub(super) fn scaled_product(
    lower: &mut Lower<'_>,
    (a, a_scale, a_zero): (&Operand, &Operand, Option<&Operand>),
    (b, b_scale, b_zero): (&Operand, &Operand, Option<&Operand>),
    bias: Option<&Operand>,
) -> Res<Operand> {
    let y = multiply_integers(lower, a, b, a_zero, b_zero)?;
    let y = lower.cast(&y, DType::F32)?;
    let (a_scale, b_scale) = (lower.f32(a_scale)?, lower.f32(b_scale)?);
    let a_scale = if a_scale.count() == Dim::Num(1) { lower.reshape(&a_scale, &[])? } else { a_scale };
    let b_scale = if b_scale.count() == Dim::Num(1) { lower.reshape(&b_scale, &[])? } else { b_scale };
    let scale = lower.mul(&a_scale, &b_scale)?;
    let y = lower.mul(&y, &scale)?;
    match bias {
        Some(bias) => {
            let bias = lower.f32(bias)?;
            lower.add(&y, &bias)
        }
        None => Ok(y),
    }
}

fn dynamic_quantize_mat_mul<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b, b_scale) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let (b_zero, bias) = (call.optional(3)?.cloned(), call.optional(4)?.cloned());
    let dtype = a.dtype();
    let a = lower.f32(&a)?;
    let op = Op::DynamicQuantizeLinear(core_tensor::op::DynamicQuantizeLinear);
    let all = lower.ops(op, &[Some(&a)])?;
    let [a, a_scale, a_zero] = &all[..] else { return fail("no result") };
    let y = scaled_product(lower, (a, a_scale, Some(a_zero)), (&b, &b_scale, b_zero.as_ref()), bias.as_ref())?;
    one(lower.back(y, dtype)?)
}

fn mat_mul_integer_to_float<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (a_scale, b_scale) = (call.input(2)?.clone(), call.input(3)?.clone());
    let (a_zero, b_zero) = (call.optional(4)?.cloned(), call.optional(5)?.cloned());
    let bias = call.optional(6)?.cloned();
    let dtype = a_scale.dtype();
    let y = scaled_product(lower, (&a, &a_scale, a_zero.as_ref()), (&b, &b_scale, b_zero.as_ref()), bias.as_ref())?;
    one(lower.back(y, dtype)?)
}

fn mat_mul_n_bits<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (a, b, scales) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let (zeros, order, bias) = (call.optional(3)?.cloned(), call.optional(4)?.cloned(), call.optional(5)?.cloned());
    let attributes = &call.attributes;
    let (columns, rows) = (attributes.count("K", 0)?, attributes.count("N", 0)?);
    let (bits, block) = (attributes.count("bits", 4)?, attributes.count("block_size", 0)?);
    if !matches!(bits, 4 | 8) {
        return fail(format!("weights of {bits} bits are not supported"));
    }
    if block == 0 || columns == 0 || rows == 0 {
        return fail("K, N and block_size must be positive");
    }
    if order.is_some() {
        return fail("a group index is not supported");
    }
    let Some(packed) = b.tensor() else { return fail("its weight must be constant") };
    let blocks = columns.div_ceil(block);
    let bytes = block.checked_mul(bits).map(|bits| bits / 8);
    let Some(len) = bytes.and_then(|bytes| rows.checked_mul(blocks)?.checked_mul(bytes)) else {
        return fail("its weight is too large");
    };
    if packed.bytes().len() != len {
        return fail(format!("its weight has {} bytes, {len} expected", packed.bytes().len()));
    }
    let packed = packed.clone();
    let weight = if zeros.is_none() && block.is_multiple_of(32) && columns.is_multiple_of(32) {
        blocks_of(&packed, &scales, rows, columns, block, bits)?
    } else {
        None
    };
    let dtype = a.dtype();
    let a = lower.f32(&a)?;
    let mut y = match weight {
        Some(weight) => {
            let weight = lower.constant(weight, b.name());
            lower.op(Op::MatMul(MatMul { transpose_b: true }), &[&a, &weight])?
        }
        None => {
            // One number per byte, and the scales and zero points of each block.
            let bytes: Vec<u8> = if bits == 8 { packed.bytes().to_vec() } else { nibbles(packed.bytes()) };
            let width = blocks * block;
            let kept: Vec<u8> = bytes.chunks_exact(width).flat_map(|row| row[..columns].iter().copied()).collect();
            let weight = lower.constant(Tensor::from_slice(&[rows, columns], &kept)?, b.name());
            let shape = [Dim::Num(rows), Dim::Num(blocks)];
            let scales = lower.f32(&scales)?;
            let scales = lower.reshape(&scales, &shape)?;
            let granularity = Granularity::Blocks { axis: 1, block };
            let weight = match zeros {
                Some(zeros) if zeros.dtype() == DType::U8 => {
                    let Some(zeros) = zeros.tensor() else { return fail("its zero points must be constant") };
                    let each = if bits == 8 { blocks } else { blocks.div_ceil(2) };
                    let bytes: Vec<u8> = zeros.bytes().to_vec();
                    if bytes.len() != rows * each {
                        return fail("its zero points do not fit");
                    }
                    let all: Vec<u8> = if bits == 8 {
                        bytes
                    } else {
                        bytes.chunks_exact(each).flat_map(|row| nibbles(row).into_iter().take(blocks)).collect()
                    };
                    let zeros = lower.constant(Tensor::from_slice(&[rows, blocks], &all)?, "");
                    dequantize(lower, &weight, &scales, Some(&zeros), granularity)?
                }
                Some(zeros) => {
                    // Zero points that are floats: what they stand for is taken off after scaling.
                    let zeros = lower.f32(&zeros)?;
                    let zeros = lower.reshape(&zeros, &shape)?;
                    let offset = lower.mul(&zeros, &scales)?;
                    let offset = lower.unsqueeze(&offset, &[2])?;
                    let wide = [Dim::Num(rows), Dim::Num(blocks), Dim::Num(block)];
                    let offset = lower.expand(&offset, &wide)?;
                    let offset = lower.reshape(&offset, &[Dim::Num(rows), Dim::Num(width)])?;
                    let offset = lower.slice(&offset, 1, Dim::Num(0), Dim::Num(columns))?;
                    let scaled = dequantize(lower, &weight, &scales, None, granularity)?;
                    lower.sub(&scaled, &offset)?
                }
                None => {
                    let middle = vec![1u8 << (bits - 1); rows * blocks];
                    let zeros = lower.constant(Tensor::from_slice(&[rows, blocks], &middle)?, "");
                    dequantize(lower, &weight, &scales, Some(&zeros), granularity)?
                }
            };
            multiply(lower, &a, &weight, true)?
        }
    };
    if let Some(bias) = bias {
        let bias = lower.f32(&bias)?;
        y = lower.add(&y, &bias)?;
    }
    one(lower.back(y, dtype)?)
}

/// The numbers of 4 bits in bytes, the low one first.
pub(super) fn nibbles(packed: &[u8]) -> Vec<u8> {
    packed.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect()
}

/// The same numbers as a block format, where that is exact: scales that are halves, the middle as zero point.
pub(super) fn blocks_of(
    packed: &Tensor,
    scales: &Operand,
    rows: usize,
    columns: usize,
    block: usize,
    bits: usize,
) -> Res<Option<Tensor>> {
    let Some(scales) = scales.tensor() else { return Ok(None) };
    let values = scales.to_f32()?;
    let blocks = columns.div_ceil(block);
    if packed.bytes().len() < rows.saturating_mul(blocks).saturating_mul(block * bits / 8) {
        return fail("its weight is too short");
    }
    if values.len() != rows * blocks {
        return fail(format!("{} scales, {} expected", values.len(), rows * blocks));
    }
    let halves: Vec<half::f16> = values.iter().map(|x| half::f16::from_f32(*x)).collect();
    if halves.iter().zip(&values).any(|(half, value)| half.to_f32() != *value) {
        return Ok(None);
    }
    let format = if bits == 4 { BlockFormat::Q4_0 } else { BlockFormat::Q8_0 };
    let per_row = blocks * block * bits / 8;
    let mut out = Vec::with_capacity(rows * (columns / 32) * format.block_bytes());
    for row in 0..rows {
        let bytes = &packed.bytes()[row * per_row..(row + 1) * per_row];
        for i in 0..columns / 32 {
            out.extend_from_slice(&halves[row * blocks + i * 32 / block].to_le_bytes());
            if bits == 4 {
                // Neighbours share a byte in the file; halves of a block share one here.
                let all = nibbles(&bytes[i * 16..(i + 1) * 16]);
                out.extend((0..16).map(|j| all[j] | all[j + 16] << 4));
            } else {
                out.extend(bytes[i * 32..(i + 1) * 32].iter().map(|byte| byte.wrapping_sub(128)));
            }
        }
    }
    Ok(Some(Tensor::from_bytes(DType::Block(format), &[rows, columns], &out)?))
}
