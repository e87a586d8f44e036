//! Reductions, and what goes along an extent.

use core_tensor::op::{ArgMax, Binary, CumSum, LogSoftmax, Op, ReduceKind, Softmax, Sort, TopK, Unary};
use core_tensor::{DType, Dim};

use super::shape::{flattened, strided};
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axes, axis};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value, held};
use crate::lower::sym_int::{SymInt, product};

pub(super) const OPERATORS: &[Entry] = &[
    ("ArgMax", 1, arg),
    ("ArgMin", 1, arg),
    ("CumSum", 11, cum_sum),
    ("Hardmax", 1, hardmax),
    ("LogSoftmax", 1, softmax),
    ("LpNormalization", 1, lp_normalization),
    ("ReduceL1", 1, reduction),
    ("ReduceL2", 1, reduction),
    ("ReduceLogSum", 1, reduction),
    ("ReduceLogSumExp", 1, reduction),
    ("ReduceMax", 1, reduction),
    ("ReduceMean", 1, reduction),
    ("ReduceMin", 1, reduction),
    ("ReduceProd", 1, reduction),
    ("ReduceSum", 1, reduction),
    ("ReduceSumSquare", 1, reduction),
    ("Softmax", 1, softmax),
    ("TopK", 1, top_k),
];

/// Reduces some extents, which become 1 or go away.
pub(super) fn reduce(
    lower: &mut Lower<'_>,
    kind: ReduceKind,
    x: &Operand,
    places: &[usize],
    keep: bool,
) -> Res<Operand> {
    let kept: Vec<usize> = (0..x.rank()).filter(|i| !places.contains(i)).collect();
    let mut shape: Vec<Dim> = kept.iter().map(|i| x.shape()[*i].clone()).collect();
    let result: Vec<Dim> = if keep {
        x.shape().iter().enumerate().map(|(i, d)| if places.contains(&i) { Dim::Num(1) } else { d.clone() }).collect()
    } else {
        shape.clone()
    };
    let reduced: Vec<usize> = (0..x.rank()).filter(|i| places.contains(i)).collect();
    let perm: Vec<usize> = kept.iter().chain(&reduced).copied().collect();
    let y = lower.transpose(x, &perm)?;
    shape.push(product(&reduced.iter().map(|i| x.shape()[*i].clone()).collect::<Vec<_>>()));
    let y = lower.reshape(&y, &shape)?;
    let y = lower.reduce_last(kind, &y)?;
    lower.reshape(&y, &result)
}

fn reduction<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let name = call.proto.op_type();
    let kind = match name {
        "ReduceL1" => ReduceKind::L1,
        "ReduceL2" => ReduceKind::L2,
        "ReduceLogSum" => ReduceKind::LogSum,
        "ReduceLogSumExp" => ReduceKind::LogSumExp,
        "ReduceMax" => ReduceKind::Max,
        "ReduceMean" => ReduceKind::Mean,
        "ReduceMin" => ReduceKind::Min,
        "ReduceProd" => ReduceKind::Prod,
        "ReduceSum" => ReduceKind::Sum,
        "ReduceSumSquare" => ReduceKind::SumSquare,
        _ => return Err(Fail::Unsupported),
    };
    let keep = call.attributes.flag("keepdims", true)?;
    let given = call.axes("axes", 1, if name == "ReduceSum" { 13 } else { 18 })?.unwrap_or_default();
    if given.is_empty() && call.attributes.flag("noop_with_empty_axes", false)? {
        // Nothing is reduced, but each element alone is.
        let y = match kind {
            ReduceKind::L1 | ReduceKind::L2 => lower.unary(Unary::Abs, &x)?,
            ReduceKind::SumSquare => lower.mul(&x, &x)?,
            ReduceKind::LogSum => lower.unary(Unary::Log, &x)?,
            _ => x,
        };
        return one(y);
    }
    let places = if given.is_empty() { (0..x.rank()).collect() } else { axes(&given, x.rank())? };
    if matches!(kind, ReduceKind::Prod | ReduceKind::Sum | ReduceKind::Max | ReduceKind::Min)
        && x.rank() == 1
        && !x.is_constant()
        && let Some(ints) = x.ints()
        && !ints.contains(&SymInt::Unknown)
        && let Some((first, rest)) = ints.split_first()
    {
        let y = rest.iter().fold(first.clone(), |y, x| match kind {
            ReduceKind::Prod => y.mul(x),
            ReduceKind::Max => y.max(x),
            ReduceKind::Min => y.min(x),
            _ => y.add(x),
        });
        if y != SymInt::Unknown {
            let shape = if keep { vec![Dim::Num(1)] } else { Vec::new() };
            return one(lower.integers(x.dtype(), &shape, vec![y])?);
        }
    }
    one(reduce(lower, kind, &x, &places, keep)?)
}

/// The extent that an operator works on, and whether, as before version 13, all after it belong to it.
fn along<'a>(
    lower: &mut Lower<'a>,
    call: &Call<'a>,
    x: &Operand,
    f: impl FnOnce(&mut Lower<'a>, &Operand) -> Res<Operand>,
) -> Res<Operand> {
    if call.opset < 13 {
        let at = call.attributes.int_or("axis", 1)?;
        let at = if at == x.rank() as i64 { x.rank() } else { axis(at, x.rank())? };
        let rest = x.shape().get(at + 1..).unwrap_or_default();
        if rest.iter().any(|dim| *dim != Dim::Num(1)) || at == x.rank() {
            let flat = flattened(lower, x, at)?;
            let y = f(lower, &flat)?;
            return lower.reshape(&y, x.shape());
        }
        return along_axis(lower, x, at, f);
    }
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    along_axis(lower, x, at, f)
}

/// Applies what works along the last extent along another.
pub(super) fn along_axis<'a>(
    lower: &mut Lower<'a>,
    x: &Operand,
    at: usize,
    f: impl FnOnce(&mut Lower<'a>, &Operand) -> Res<Operand>,
) -> Res<Operand> {
    let (x, back) = lower.axis_last(x, at)?;
    let y = f(lower, &x)?;
    lower.transpose(&y, &back)
}

fn softmax<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let dtype = x.dtype();
    let x = lower.f32(&x)?;
    let op = if call.proto.op_type() == "Softmax" { Op::Softmax(Softmax) } else { Op::LogSoftmax(LogSoftmax) };
    let y = along(lower, call, &x, |lower, x| lower.op(op, &[x]))?;
    one(lower.back(y, dtype)?)
}

fn hardmax<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let dtype = x.dtype();
    let y = along(lower, call, &x, |lower, x| {
        let best = largest(lower, x)?;
        let best = lower.unsqueeze(&best, &[best.rank()])?;
        let places = lower.iota(x.shape().last().cloned().unwrap_or(Dim::Num(1)))?;
        let hot = lower.binary(Binary::Equal, &best, &places)?;
        lower.cast(&hot, dtype)
    })?;
    one(y)
}

/// The place of the largest element along the last extent, i64.
pub(super) fn largest(lower: &mut Lower<'_>, x: &Operand) -> Res<Operand> {
    let x = lower.f32(x)?;
    let y = lower.op(Op::ArgMax(ArgMax), &[&x])?;
    lower.cast(&y, DType::I64)
}

fn arg<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = axis(call.attributes.int_or("axis", 0)?, x.rank())?;
    let keep = call.attributes.flag("keepdims", true)?;
    let last = call.attributes.flag("select_last_index", false)?;
    let mut x = lower.f32(&x)?;
    if call.proto.op_type() == "ArgMin" {
        x = lower.unary(Unary::Neg, &x)?;
    }
    let (mut x, _) = lower.axis_last(&x, at)?;
    let extent = x.shape().last().cloned().unwrap_or(Dim::Num(1));
    if last {
        let (place, end) = (x.rank() - 1, extent.clone().sub(Dim::Num(1)));
        x = strided(lower, &x, place, end, extent.clone(), -1)?;
    }
    let mut y = largest(lower, &x)?;
    if last {
        let end = lower.integers(DType::I64, &[], vec![SymInt::of(extent.sub(Dim::Num(1)))])?;
        y = lower.sub(&end, &y)?;
    }
    if keep {
        y = lower.unsqueeze(&y, &[at])?;
    }
    one(y)
}

fn cum_sum<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let [at] = call.input(1)?.numbers("axis")?[..] else { return fail("axis must be one number") };
    let op = CumSum {
        axis: axis(at, x.rank())? as isize,
        exclusive: call.attributes.flag("exclusive", false)?,
        reverse: call.attributes.flag("reverse", false)?,
    };
    one(lower.op(Op::CumSum(op), &[&x])?)
}

fn top_k<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    let largest = call.attributes.flag("largest", true)?;
    let k = if call.opset < 10 {
        Dim::Num(call.attributes.count("k", 0)?)
    } else {
        match &call.input(1)?.int_vector("k")?[..] {
            [int] => match int.as_dim() {
                Some(k) => k,
                None => lower.fresh(&format!("{}.k", lower.name)),
            },
            _ => return fail("k must be one number"),
        }
    };
    let (last, back) = lower.axis_last(&x, at)?;
    let (values, places) = match k {
        Dim::Num(k) if largest && k > 0 && held(x.dtype()) == DType::F32 => {
            let mut both = lower.ops(Op::TopK(TopK { k }), &[Some(&last)])?.into_iter();
            match (both.next(), both.next()) {
                (Some(values), Some(places)) => (values, lower.cast(&places, DType::I64)?),
                _ => return fail("no result"),
            }
        }
        k => {
            let k_known =
                call.opset < 10 || call.input(1)?.int_vector("k")?.first().is_some_and(|k| *k != SymInt::Unknown);
            let mut both = lower.ops(Op::Sort(Sort { descending: largest }), &[Some(&last)])?.into_iter();
            let (Some(values), Some(places)) = (both.next(), both.next()) else { return fail("no result") };
            let place = x.rank() - 1;
            if k_known {
                (lower.slice(&values, place, Dim::Num(0), k.clone())?, lower.slice(&places, place, Dim::Num(0), k)?)
            } else {
                let (zero, step) = (lower.vector(&[0i64])?, lower.vector(&[1i64])?);
                let limit = lower.cast(&call.input(1)?.clone(), DType::I64)?;
                let first = lower.op(Op::Range(core_tensor::op::Range { len: k }), &[&zero, &limit, &step])?;
                (lower.gather(&values, place, &first)?, lower.gather(&places, place, &first)?)
            }
        }
    };
    let values = lower.transpose(&values, &back)?;
    let places = lower.transpose(&places, &back)?;
    Ok(vec![values.into(), places.into()])
}

fn lp_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    let kind = match call.attributes.int_or("p", 2)? {
        1 => ReduceKind::L1,
        2 => ReduceKind::L2,
        other => return fail(format!("attribute p is {other}")),
    };
    let norm = reduce(lower, kind, &x, &[at], true)?;
    one(lower.div(&x, &norm)?)
}
