//! Element-wise operators.

use core_tensor::DType;
use core_tensor::op::{Binary, Granularity, Op, Scalar, Unary, Where};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{MAX_INTS, Operand, Value};
use crate::lower::sym_int::SymInt;

pub(super) const OPERATORS: &[Entry] = &[
    ("Abs", 6, unary),
    ("Acos", 6, unary),
    ("Acosh", 9, unary),
    ("Asin", 6, unary),
    ("Asinh", 9, unary),
    ("Atan", 6, unary),
    ("Atanh", 9, unary),
    ("BitwiseNot", 18, unary),
    ("Ceil", 6, unary),
    ("Celu", 12, unary),
    ("Cos", 6, unary),
    ("Cosh", 9, unary),
    ("Elu", 6, unary),
    ("Erf", 9, unary),
    ("Exp", 6, unary),
    ("Floor", 6, unary),
    ("Gelu", 20, unary),
    ("HardSigmoid", 6, unary),
    ("HardSwish", 14, unary),
    ("IsInf", 10, unary),
    ("IsNaN", 9, unary),
    ("LeakyRelu", 6, unary),
    ("Log", 6, unary),
    ("Mish", 18, unary),
    ("Neg", 6, unary),
    ("Not", 1, unary),
    ("Reciprocal", 6, unary),
    ("Relu", 6, unary),
    ("Round", 11, unary),
    ("Selu", 6, unary),
    ("Shrink", 9, unary),
    ("Sigmoid", 6, unary),
    ("Sign", 9, unary),
    ("Sin", 6, unary),
    ("Sinh", 9, unary),
    ("Softplus", 1, unary),
    ("Softsign", 1, unary),
    ("Sqrt", 6, unary),
    ("Swish", 24, unary),
    ("Tan", 6, unary),
    ("Tanh", 6, unary),
    ("ThresholdedRelu", 10, unary),
    ("Add", 6, binary),
    ("And", 6, binary),
    ("BitShift", 11, binary),
    ("BitwiseAnd", 18, binary),
    ("BitwiseOr", 18, binary),
    ("BitwiseXor", 18, binary),
    ("Div", 6, binary),
    ("Equal", 6, binary),
    ("Greater", 6, binary),
    ("GreaterOrEqual", 12, binary),
    ("Less", 6, binary),
    ("LessOrEqual", 12, binary),
    ("Mod", 10, binary),
    ("Mul", 6, binary),
    ("Or", 6, binary),
    ("PRelu", 6, p_relu),
    ("Pow", 6, power),
    ("Sub", 6, binary),
    ("Xor", 6, binary),
    ("Max", 6, variadic),
    ("Mean", 6, variadic),
    ("Min", 6, variadic),
    ("Sum", 6, variadic),
    ("Clip", 6, clip),
    ("Where", 9, choose),
    ("Cast", 6, cast),
    ("CastLike", 15, cast_like),
];

fn unary<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let scalar = |name: &str, default: f32| attributes.float_or(name, default).map(Scalar::new);
    let op = match call.proto.op_type() {
        "Abs" => Unary::Abs,
        "Acos" => Unary::Acos,
        "Acosh" => Unary::Acosh,
        "Asin" => Unary::Asin,
        "Asinh" => Unary::Asinh,
        "Atan" => Unary::Atan,
        "Atanh" => Unary::Atanh,
        "BitwiseNot" => Unary::BitwiseNot,
        "Ceil" => Unary::Ceil,
        "Celu" => Unary::Celu { alpha: scalar("alpha", 1.0)? },
        "Cos" => Unary::Cos,
        "Cosh" => Unary::Cosh,
        "Elu" => Unary::Elu { alpha: scalar("alpha", 1.0)? },
        "Erf" => Unary::Erf,
        "Exp" => Unary::Exp,
        "Floor" => Unary::Floor,
        "Gelu" => match attributes.text_or("approximate", "none")? {
            "none" => Unary::Gelu,
            "tanh" => Unary::GeluTanh,
            other => return fail(format!("attribute approximate is '{other}'")),
        },
        "HardSigmoid" => Unary::HardSigmoid { alpha: scalar("alpha", 0.2)?, beta: scalar("beta", 0.5)? },
        "HardSwish" => Unary::HardSwish,
        "IsInf" => Unary::IsInf {
            negative: attributes.flag("detect_negative", true)?,
            positive: attributes.flag("detect_positive", true)?,
        },
        "IsNaN" => Unary::IsNan,
        "LeakyRelu" => Unary::LeakyRelu { alpha: scalar("alpha", 0.01)? },
        "Log" => Unary::Log,
        "Mish" => Unary::Mish,
        "Neg" => Unary::Neg,
        "Not" => Unary::Not,
        "Reciprocal" => Unary::Reciprocal,
        "Relu" => Unary::Relu,
        "Round" => Unary::Round,
        "Selu" => Unary::Selu { alpha: scalar("alpha", 1.673_263_2)?, gamma: scalar("gamma", 1.050_701)? },
        "Shrink" => Unary::Shrink { lambd: scalar("lambd", 0.5)?, bias: scalar("bias", 0.0)? },
        "Sigmoid" => Unary::Sigmoid,
        "Sign" => Unary::Sign,
        "Sin" => Unary::Sin,
        "Sinh" => Unary::Sinh,
        "Softplus" => Unary::Softplus,
        "Softsign" => Unary::Softsign,
        "Sqrt" => Unary::Sqrt,
        "Swish" => match attributes.float_or("alpha", 1.0)? {
            1.0 => Unary::Silu,
            alpha => Unary::Swish { alpha: Scalar::new(alpha) },
        },
        "Tan" => Unary::Tan,
        "Tanh" => Unary::Tanh,
        "ThresholdedRelu" => Unary::ThresholdedRelu { alpha: scalar("alpha", 1.0)? },
        _ => return Err(Fail::Unsupported),
    };
    let x = call.input(0)?.clone();
    one(apply(lower, op, &x)?)
}

/// A function of one operand; integers of extents stay such under negation, and Not.
pub(super) fn apply(lower: &mut Lower<'_>, op: Unary, x: &Operand) -> Res<Operand> {
    let ints = match op {
        Unary::Neg => x.ints().map(|ints| ints.iter().map(SymInt::neg).collect::<Vec<_>>()),
        Unary::Not => x.ints().map(|ints| ints.iter().map(|x| SymInt::Num(0).equal(x)).collect()),
        _ => None,
    };
    match ints {
        Some(ints) if !x.is_constant() && !ints.contains(&SymInt::Unknown) => {
            lower.integers(x.dtype(), x.shape(), ints)
        }
        ints => {
            let y = lower.unary(op, x)?;
            Ok(lower.with_ints(y, ints))
        }
    }
}

fn binary<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let op = match call.proto.op_type() {
        "Add" => Binary::Add,
        "And" => Binary::And,
        "BitShift" => match call.attributes.text_or("direction", "")? {
            "LEFT" => Binary::ShiftLeft,
            "RIGHT" => Binary::ShiftRight,
            other => return fail(format!("attribute direction is '{other}'")),
        },
        "BitwiseAnd" => Binary::BitwiseAnd,
        "BitwiseOr" => Binary::BitwiseOr,
        "BitwiseXor" => Binary::BitwiseXor,
        "Div" => Binary::Div,
        "Equal" => Binary::Equal,
        "Greater" => Binary::Greater,
        "GreaterOrEqual" => Binary::GreaterOrEqual,
        "Less" => Binary::Less,
        "LessOrEqual" => Binary::LessOrEqual,
        "Mod" if call.attributes.flag("fmod", false)? => Binary::Fmod,
        "Mod" => Binary::Mod,
        "Mul" => Binary::Mul,
        "Or" => Binary::Or,
        "Sub" => Binary::Sub,
        "Xor" => Binary::Xor,
        _ => return Err(Fail::Unsupported),
    };
    let (a, mut b) = (call.input(0)?.clone(), call.input(1)?.clone());
    // Version 6 says where the second operand's extents begin.
    if call.opset < 7
        && let Some(at) = call.attributes.int("axis")?
    {
        let at = crate::lower::call::axis(at, a.rank())?;
        let Some(after) = a.rank().checked_sub(at + b.rank()) else { return fail("its operands do not broadcast") };
        let shape: Vec<_> = b.shape().iter().cloned().chain(vec![core_tensor::Dim::Num(1); after]).collect();
        b = lower.reshape(&b, &shape)?;
    }
    one(combine(lower, op, &a, &b)?)
}

/// A function of two operands; on integers of extents it is computed now.
pub(super) fn combine(lower: &mut Lower<'_>, op: Binary, a: &Operand, b: &Operand) -> Res<Operand> {
    let symbolic = a.symbolic().is_some() || b.symbolic().is_some();
    let ints = if symbolic { fold_ints(op, a, b) } else { None };
    let dtype = if op.is_comparison() { DType::Bool } else { a.dtype() };
    if let Some((shape, ints)) = &ints
        && !ints.contains(&SymInt::Unknown)
    {
        return lower.integers(dtype, shape, ints.clone());
    }
    let y = lower.binary(op, a, b)?;
    Ok(lower.with_ints(y, ints.map(|(_, ints)| ints)))
}

type Ints = (Vec<core_tensor::Dim>, Vec<SymInt>);

fn fold_ints(op: Binary, a: &Operand, b: &Operand) -> Option<Ints> {
    let (x, y) = (a.ints()?, b.ints()?);
    let (a_shape, b_shape) = (extents(a)?, extents(b)?);
    let (shape, places) = broadcast(&[&a_shape, &b_shape])?;
    let apply = |x: &SymInt, y: &SymInt| match op {
        Binary::Add => x.add(y),
        Binary::Sub => x.sub(y),
        Binary::Mul => x.mul(y),
        Binary::Div => x.div(y),
        Binary::Mod | Binary::Fmod => x.rem(y),
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Equal => x.equal(y),
        Binary::Less => x.less(y),
        Binary::Greater => y.less(x),
        Binary::LessOrEqual => not(&y.less(x)),
        Binary::GreaterOrEqual => not(&x.less(y)),
        Binary::And => x.mul(y),
        Binary::Or => x.max(y),
        _ => SymInt::Unknown,
    };
    let ints = places.iter().map(|at| Some(apply(x.get(at[0])?, y.get(at[1])?))).collect::<Option<_>>()?;
    Some((shape.into_iter().map(core_tensor::Dim::Num).collect(), ints))
}

fn not(x: &SymInt) -> SymInt {
    SymInt::Num(0).equal(x)
}

fn extents(x: &Operand) -> Option<Vec<usize>> {
    x.shape().iter().map(core_tensor::Dim::as_num).collect()
}

/// The broadcast of small shapes, and where each element of it lies in each operand.
fn broadcast(shapes: &[&[usize]]) -> Option<(Vec<usize>, Vec<Vec<usize>>)> {
    let rank = shapes.iter().map(|shape| shape.len()).max()?;
    let mut result = vec![1usize; rank];
    for shape in shapes {
        for (i, n) in shape.iter().rev().enumerate() {
            let at = result.get_mut(rank - 1 - i)?;
            match (*at, *n) {
                (a, b) if a == b => {}
                (1, b) => *at = b,
                (_, 1) => {}
                _ => return None,
            }
        }
    }
    let count = result.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent))?;
    if count > MAX_INTS {
        return None;
    }
    let place = |index: usize, shape: &[usize]| {
        let (mut rest, mut at, mut stride) = (index, 0, 1);
        for i in (0..rank).rev() {
            let c = rest % result[i];
            rest /= result[i];
            if let Some(j) = (i + shape.len()).checked_sub(rank) {
                at += if shape[j] == 1 { 0 } else { c * stride };
                stride *= shape[j];
            }
        }
        at
    };
    let places = (0..count).map(|i| shapes.iter().map(|shape| place(i, shape)).collect()).collect();
    Some((result, places))
}

fn p_relu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, mut slope) = (call.input(0)?.clone(), call.input(1)?.clone());
    // Version 6 has one slope per channel.
    if call.opset < 7 && slope.rank() == 1 && x.rank() > 2 {
        let rest = vec![core_tensor::Dim::Num(1); x.rank() - 2];
        let shape: Vec<_> = slope.shape().iter().cloned().chain(rest).collect();
        slope = lower.reshape(&slope, &shape)?;
    }
    one(lower.binary(Binary::PRelu, &x, &slope)?)
}

fn power<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, exponent) = (call.input(0)?.clone(), call.input(1)?.clone());
    let dtype = x.dtype();
    if exponent.dtype() == dtype {
        return one(lower.binary(Binary::Pow, &x, &exponent)?);
    }
    // The result has the base's type; an exponent that is no integer needs floats on the way.
    if dtype.is_int() && exponent.dtype().is_float() {
        let (a, b) = (lower.cast(&x, DType::F64)?, lower.cast(&exponent, DType::F64)?);
        let y = lower.binary(Binary::Pow, &a, &b)?;
        return one(lower.cast(&y, dtype)?);
    }
    let exponent = lower.cast(&exponent, dtype)?;
    one(lower.binary(Binary::Pow, &x, &exponent)?)
}

fn variadic<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let name = call.proto.op_type();
    let op = match name {
        "Max" => Binary::Max,
        "Min" => Binary::Min,
        _ => Binary::Add,
    };
    let all = call.all()?;
    let Some((first, rest)) = all.split_first() else { return fail("it has no inputs") };
    let mut y = first.clone();
    for x in rest {
        y = combine(lower, op, &y, x)?;
    }
    if name == "Mean" && all.len() > 1 {
        let n = lower.scalar(y.dtype(), all.len() as f64)?;
        y = lower.div(&y, &n)?;
    }
    one(y)
}

fn clip<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    if call.opset < 11 {
        let min = call.attributes.float("min")?;
        let max = call.attributes.float("max")?;
        return one(clamp(lower, &x, min, max)?);
    }
    let (min, max) = (call.optional(1)?.cloned(), call.optional(2)?.cloned());
    let constant = |bound: &Option<Operand>| bound.as_ref().map(|bound| bound.float("bound").ok());
    if x.dtype().is_float()
        && let (min, max) = (constant(&min), constant(&max))
        && min != Some(None)
        && max != Some(None)
    {
        return one(clamp(lower, &x, min.flatten(), max.flatten())?);
    }
    let mut y = x;
    if let Some(min) = min {
        y = combine(lower, Binary::Max, &y, &min)?;
    }
    if let Some(max) = max {
        y = combine(lower, Binary::Min, &y, &max)?;
    }
    one(y)
}

fn clamp(lower: &mut Lower<'_>, x: &Operand, min: Option<f32>, max: Option<f32>) -> Res<Operand> {
    let (min, max) = (min.unwrap_or(f32::NEG_INFINITY), max.unwrap_or(f32::INFINITY));
    match (min, max) {
        (f32::NEG_INFINITY, f32::INFINITY) => Ok(x.clone()),
        (0.0, f32::INFINITY) => lower.unary(Unary::Relu, x),
        _ => lower.unary(Unary::Clip { min: Scalar::new(min), max: Scalar::new(max) }, x),
    }
}

fn choose<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (condition, a, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let ints = (|| {
        let (c, x, y) = (condition.ints()?, a.ints()?, b.ints()?);
        let shapes = [extents(&condition)?, extents(&a)?, extents(&b)?];
        let (shape, places) = broadcast(&[&shapes[0], &shapes[1], &shapes[2]])?;
        let pick = |at: &Vec<usize>| {
            let (x, y) = (x.get(at[1])?, y.get(at[2])?);
            Some(match c.get(at[0])? {
                SymInt::Num(0) => y.clone(),
                SymInt::Num(_) => x.clone(),
                _ if x == y => x.clone(),
                _ => SymInt::Unknown,
            })
        };
        let ints: Vec<SymInt> = places.iter().map(pick).collect::<Option<_>>()?;
        Some((shape.into_iter().map(core_tensor::Dim::Num).collect::<Vec<_>>(), ints))
    })();
    if let Some((shape, ints)) = &ints
        && a.dtype().is_int()
        && !ints.contains(&SymInt::Unknown)
    {
        return one(lower.integers(a.dtype(), shape, ints.clone())?);
    }
    let y = lower.op(Op::Where(Where), &[&condition, &a, &b])?;
    one(lower.with_ints(y, ints.map(|(_, ints)| ints)))
}

fn cast<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let Some(to) = call.attributes.dtype("to")? else { return fail("attribute to is missing") };
    let x = call.input(0)?.clone();
    one(convert(lower, call, &x, to)?)
}

fn cast_like<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, to) = (call.input(0)?.clone(), call.input(1)?.dtype());
    one(convert(lower, call, &x, to)?)
}

fn convert<'a>(lower: &mut Lower<'a>, call: &Call<'a>, x: &Operand, to: DType) -> Res<Operand> {
    if matches!(to, DType::F8E4M3 | DType::F8E5M2) && !call.attributes.flag("saturate", true)? {
        let scale = lower.scalar(DType::F32, 1.0)?;
        let x = lower.f32(x)?;
        return super::quantize::quantize(lower, &x, &scale, None, Granularity::Tensor, to, false);
    }
    if matches!(to, DType::I4 | DType::U4) && x.dtype() != to {
        // The low four bits, as they are held in a byte.
        let wide = lower.cast(x, DType::I32)?;
        let (base, shift) = (lower.scalar(DType::I32, 16.0)?, lower.scalar(DType::I32, 8.0)?);
        let y = if to == DType::I4 {
            let y = lower.add(&wide, &shift)?;
            let y = lower.binary(Binary::Mod, &y, &base)?;
            lower.sub(&y, &shift)?
        } else {
            lower.binary(Binary::Mod, &wide, &base)?
        };
        let y = lower.cast(&y, crate::lower::operand::held(to))?;
        return lower.declare(&y, to);
    }
    lower.cast(x, to)
}
