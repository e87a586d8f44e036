//! Normalizations.

use core_tensor::Dim;
use core_tensor::op::{GroupNormalization, LayerNormalization, Lrn, Op, ReduceKind, RmsNormalization, Unary};

use super::reduce::reduce;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axes, axis};
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::product;

pub(super) const OPERATORS: &[Entry] = &[
    ("BatchNormalization", 6, batch_normalization),
    ("GroupNormalization", 18, group_normalization),
    ("InstanceNormalization", 6, instance_normalization),
    ("LRN", 1, lrn),
    ("LayerNormalization", 17, layer_normalization),
    ("MeanVarianceNormalization", 9, mean_variance_normalization),
    ("RMSNormalization", 23, rms_normalization),
];

/// A weight as a vector over all normalized extents, to which it broadcasts.
fn flat_weight(lower: &mut Lower<'_>, w: &Operand, extents: &[Dim]) -> Res<Operand> {
    let w = lower.f32(w)?;
    let w = if w.shape() == extents {
        w
    } else {
        // Leading extents of 1 are none.
        let skip = w.rank().saturating_sub(extents.len());
        let inner = w.shape()[skip..].to_vec();
        let w = lower.reshape(&w, &inner)?;
        lower.expand(&w, extents)?
    };
    lower.reshape(&w, &[product(extents)])
}

/// Normalizes all extents from `at` on as if they were one, in f32.
pub(super) fn layer_norm(
    lower: &mut Lower<'_>,
    x: &Operand,
    at: usize,
    w: Option<&Operand>,
    b: Option<&Operand>,
    epsilon: f32,
) -> Res<Operand> {
    let dtype = x.dtype();
    let flat = flat_tail(lower, x, at)?;
    let extents = x.shape()[at..].to_vec();
    let w = w.map(|w| flat_weight(lower, w, &extents)).transpose()?;
    let b = b.map(|b| flat_weight(lower, b, &extents)).transpose()?;
    let inputs: &[Option<&Operand>] = match (&w, &b) {
        (None, None) => &[Some(&flat)],
        (w, None) => &[Some(&flat), w.as_ref()],
        (w, b) => &[Some(&flat), w.as_ref(), b.as_ref()],
    };
    let Some(y) = lower.ops(Op::LayerNormalization(LayerNormalization { epsilon }), inputs)?.pop() else {
        return fail("no result");
    };
    let y = lower.reshape(&y, x.shape())?;
    lower.back(y, dtype)
}

fn flat_tail(lower: &mut Lower<'_>, x: &Operand, at: usize) -> Res<Operand> {
    let x = lower.f32(x)?;
    let (lead, tail) = x.shape().split_at(at);
    let shape: Vec<Dim> = lead.iter().cloned().chain([product(tail)]).collect();
    lower.reshape(&x, &shape)
}

fn layer_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let (w, b) = (call.optional(1)?.cloned(), call.optional(2)?.cloned());
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    let y = layer_norm(lower, &x, at, w.as_ref(), b.as_ref(), epsilon)?;
    let mut outputs = vec![Value::Tensor(y)];
    if call.wants(1) || call.wants(2) {
        let places: Vec<usize> = (at..x.rank()).collect();
        let x = lower.f32(&x)?;
        let (mean, deviation) = moments(lower, &x, &places, epsilon)?;
        let inverse = lower.unary(Unary::Reciprocal, &deviation)?;
        outputs.extend([mean.into(), inverse.into()]);
    }
    Ok(outputs)
}

/// Mean and `sqrt(variance + epsilon)` over some extents, which become 1.
fn moments(lower: &mut Lower<'_>, x: &Operand, places: &[usize], epsilon: f32) -> Res<(Operand, Operand)> {
    let mean = reduce(lower, ReduceKind::Mean, x, places, true)?;
    let centered = lower.sub(x, &mean)?;
    let squares = lower.mul(&centered, &centered)?;
    let variance = reduce(lower, ReduceKind::Mean, &squares, places, true)?;
    let epsilon = lower.scalar(x.dtype(), f64::from(epsilon))?;
    let sum = lower.add(&variance, &epsilon)?;
    Ok((mean, lower.unary(Unary::Sqrt, &sum)?))
}

fn rms_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w) = (call.input(0)?.clone(), call.optional(1)?.cloned());
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    one(rms_norm(lower, &x, at, w.as_ref(), epsilon)?)
}

/// Root-mean-square normalization of all extents from `at` on as if they were one, in f32.
pub(super) fn rms_norm(
    lower: &mut Lower<'_>,
    x: &Operand,
    at: usize,
    w: Option<&Operand>,
    epsilon: f32,
) -> Res<Operand> {
    let flat = flat_tail(lower, x, at)?;
    let extents = x.shape()[at..].to_vec();
    let w = match w {
        Some(w) => w.clone(),
        None => lower.scalar(core_tensor::DType::F32, 1.0)?,
    };
    let w = flat_weight(lower, &w, &extents)?;
    let y = lower.op(Op::RmsNormalization(RmsNormalization { epsilon }), &[&flat, &w])?;
    let y = lower.reshape(&y, x.shape())?;
    lower.back(y, x.dtype())
}

/// A vector over the channels of an image, as it broadcasts to it.
fn channels(lower: &mut Lower<'_>, w: &Operand, rank: usize) -> Res<Operand> {
    let mut shape = vec![Dim::Num(1); rank.saturating_sub(1)];
    if let Some(first) = shape.first_mut() {
        *first = w.count();
    } else {
        shape.push(w.count());
    }
    lower.reshape(w, &shape)
}

fn batch_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    if x.rank() < 2 {
        return fail("its input has no channels");
    }
    let mut vectors = Vec::new();
    for i in 1..5 {
        vectors.push(call.input(i)?.clone());
    }
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    let mut outputs = Vec::new();
    if call.attributes.flag("training_mode", false)? {
        let momentum = call.attributes.float_or("momentum", 0.9)?;
        let places: Vec<usize> = (0..x.rank()).filter(|i| *i != 1).collect();
        let mean = reduce(lower, ReduceKind::Mean, &x, &places, true)?;
        let centered = lower.sub(&x, &mean)?;
        let squares = lower.mul(&centered, &centered)?;
        let variance = reduce(lower, ReduceKind::Mean, &squares, &places, true)?;
        for (i, now) in [(2, mean), (3, variance)] {
            let now = lower.reshape(&now, vectors[i].shape())?;
            let (old, new) =
                (lower.scalar(x.dtype(), f64::from(momentum))?, lower.scalar(x.dtype(), 1.0 - f64::from(momentum))?);
            let (old, new) = (lower.mul(&vectors[i].clone(), &old)?, lower.mul(&now, &new)?);
            outputs.push(Value::Tensor(lower.add(&old, &new)?));
            vectors[i] = now;
        }
    } else if call.wants(1) {
        return fail("running statistics are outputs, but training mode is off");
    }
    let [scale, bias, mean, variance] = &vectors[..] else { return fail("inputs are missing") };
    let wide = |lower: &mut Lower<'a>, w: &Operand| lower.cast(w, x.dtype());
    let (scale, bias) = (wide(lower, scale)?, wide(lower, bias)?);
    let (mean, variance) = (wide(lower, mean)?, wide(lower, variance)?);
    let epsilon = lower.scalar(x.dtype(), f64::from(epsilon))?;
    let sum = lower.add(&variance, &epsilon)?;
    let deviation = lower.unary(Unary::Sqrt, &sum)?;
    let factor = lower.div(&scale, &deviation)?;
    let shift = lower.mul(&mean, &factor)?;
    let shift = lower.sub(&bias, &shift)?;
    let (factor, shift) = (channels(lower, &factor, x.rank())?, channels(lower, &shift, x.rank())?);
    let y = lower.mul(&x, &factor)?;
    let y = lower.add(&y, &shift)?;
    outputs.insert(0, y.into());
    Ok(outputs)
}

fn grouped(lower: &mut Lower<'_>, x: &Operand, w: &Operand, b: &Operand, groups: usize, epsilon: f32) -> Res<Operand> {
    let (dtype, x) = (x.dtype(), lower.f32(x)?);
    let (w, b) = (lower.f32(w)?, lower.f32(b)?);
    let y = lower.op(Op::GroupNormalization(GroupNormalization { groups, epsilon }), &[&x, &w, &b])?;
    lower.back(y, dtype)
}

fn instance_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let groups = x.shape().get(1).and_then(Dim::as_num).or_else(|| w.count().as_num());
    let Some(groups) = groups else { return fail("its number of channels is not known") };
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    one(grouped(lower, &x, &w, &b, groups, epsilon)?)
}

fn group_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, mut w, mut b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let groups = call.attributes.count("num_groups", 0)?;
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    if call.opset < 21 {
        // One weight per group.
        let Some(channels) = x.shape().get(1).and_then(Dim::as_num) else {
            return fail("its number of channels is not known");
        };
        let each = channels.checked_div(groups).unwrap_or(0);
        for vector in [&mut w, &mut b] {
            let apart = lower.unsqueeze(vector, &[1])?;
            let wide = lower.expand(&apart, &[Dim::Num(groups), Dim::Num(each)])?;
            *vector = lower.reshape(&wide, &[Dim::Num(groups * each)])?;
        }
    }
    one(grouped(lower, &x, &w, &b, groups, epsilon)?)
}

fn lrn<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let op = Lrn {
        size: call.attributes.count("size", 0)?,
        alpha: call.attributes.float_or("alpha", 1e-4)?,
        beta: call.attributes.float_or("beta", 0.75)?,
        bias: call.attributes.float_or("bias", 1.0)?,
    };
    let (dtype, x) = (x.dtype(), lower.f32(&x)?);
    let y = lower.op(Op::Lrn(op), &[&x])?;
    one(lower.back(y, dtype)?)
}

fn mean_variance_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let places = axes(call.attributes.ints("axes")?.unwrap_or(&[0, 2, 3]), x.rank())?;
    let mean = reduce(lower, ReduceKind::Mean, &x, &places, true)?;
    let centered = lower.sub(&x, &mean)?;
    let squares = lower.mul(&centered, &centered)?;
    let variance = reduce(lower, ReduceKind::Mean, &squares, &places, true)?;
    let deviation = lower.unary(Unary::Sqrt, &variance)?;
    let epsilon = lower.scalar(x.dtype(), 1e-9)?;
    let deviation = lower.add(&deviation, &epsilon)?;
    one(lower.div(&centered, &deviation)?)
}
