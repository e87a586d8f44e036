//! Normalizations.

use core_tensor::op::{GroupNormalization, Op, ReduceKind, Unary};
use core_tensor::{DType, Dim};

use super::super::norm::{layer_norm, rms_norm};
use super::super::reduce::reduce;
use super::super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axis};
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};

pub(in crate::ops) const OPERATORS: &[Entry] = &[
    ("EmbedLayerNormalization", 1, embed_layer_normalization),
    ("GroupNorm", 1, group_norm),
    ("LayerNormalization", 1, layer_normalization),
    ("SimplifiedLayerNormalization", 1, layer_normalization),
    ("SkipLayerNormalization", 1, skip_layer_normalization),
    ("SkipSimplifiedLayerNormalization", 1, skip_layer_normalization),
];

/// What ONNX Runtime writes into the standard domain.
pub(in crate::ops) const STANDARD: &[Entry] =
    &[("LayerNormalization", 1, layer_normalization), ("SimplifiedLayerNormalization", 1, layer_normalization)];

fn layer_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.optional(1)?.cloned(), call.optional(2)?.cloned());
    let at = axis(call.attributes.int_or("axis", -1)?, x.rank())?;
    let epsilon = call.attributes.float_or("epsilon", 1e-5)?;
    if call.wants(1) || call.wants(2) {
        return fail("its mean and deviation are not supported as outputs");
    }
    if call.proto.op_type() == "LayerNormalization" {
        return one(layer_norm(lower, &x, at, w.as_ref(), b.as_ref(), epsilon)?);
    }
    one(rms_norm(lower, &x, at, w.as_ref(), epsilon)?)
}

fn skip_layer_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, skip, w) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let simplified = call.proto.op_type() == "SkipSimplifiedLayerNormalization";
    let (b, bias) = if simplified {
        (None, call.optional(3)?.cloned())
    } else {
        (call.optional(3)?.cloned(), call.optional(4)?.cloned())
    };
    let epsilon = call.attributes.float_or("epsilon", 1e-12)?;
    if call.wants(1) || call.wants(2) {
        return fail("its mean and deviation are not supported as outputs");
    }
    let mut sum = lower.add(&x, &skip)?;
    if let Some(bias) = bias {
        sum = lower.add(&sum, &bias)?;
    }
    let at = sum.rank().saturating_sub(1);
    let y = if simplified {
        rms_norm(lower, &sum, at, w.as_ref(), epsilon)?
    } else {
        layer_norm(lower, &sum, at, w.as_ref(), b.as_ref(), epsilon)?
    };
    let none = Value::Optional(None);
    Ok(vec![y.into(), none.clone(), none, sum.into()])
}

fn embed_layer_normalization<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (ids, segments) = (call.input(0)?.clone(), call.optional(1)?.cloned());
    let (words, positions) = (call.input(2)?.clone(), call.input(3)?.clone());
    let (w, b) = (call.optional(5)?.cloned(), call.optional(6)?.cloned());
    let epsilon = call.attributes.float_or("epsilon", 1e-12)?;
    let mut sum = lower.gather(&words, 0, &ids)?;
    let places = match call.optional(8)?.cloned() {
        Some(places) => lower.gather(&positions, 0, &places)?,
        None => {
            let Some(tokens) = ids.shape().last() else { return fail("its ids are a scalar") };
            lower.slice(&positions, 0, Dim::Num(0), tokens.clone())?
        }
    };
    sum = lower.add(&sum, &places)?;
    if let (Some(segments), Some(table)) = (segments, call.optional(4)?.cloned()) {
        let segments = lower.gather(&table, 0, &segments)?;
        sum = lower.add(&sum, &segments)?;
    }
    let at = sum.rank().saturating_sub(1);
    let y = layer_norm(lower, &sum, at, w.as_ref(), b.as_ref(), epsilon)?;
    // The second output counts the tokens of each sequence.
    let counts = match call.optional(7)?.cloned() {
        Some(mask) => {
            let mask = lower.cast(&mask, DType::I32)?;
            reduce(lower, ReduceKind::Sum, &mask, &[1], false)?
        }
        None => {
            let zero = lower.scalar(DType::I32, 0.0)?;
            lower.expand(&zero, &ids.shape()[..1])?
        }
    };
    Ok(vec![y.into(), counts.into(), sum.into()])
}

fn group_norm<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let (groups, epsilon) = (call.attributes.count("groups", 0)?, call.attributes.float_or("epsilon", 1e-5)?);
    let channels_last = call.attributes.flag("channels_last", true)?;
    let silu = call.attributes.int_or("activation", 0)? == 1;
    let dtype = x.dtype();
    let (x, w, b) = (lower.f32(&x)?, lower.f32(&w)?, lower.f32(&b)?);
    let op = Op::GroupNormalization(GroupNormalization { groups, epsilon });
    let rank = x.rank();
    if rank < 3 {
        return fail("its input is no image");
    }
    let inwards: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let outwards: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let x = if channels_last { lower.transpose(&x, &inwards)? } else { x };
    let mut y: Operand = lower.op(op, &[&x, &w, &b])?;
    if silu {
        y = lower.unary(Unary::Silu, &y)?;
    }
    let y = if channels_last { lower.transpose(&y, &outwards)? } else { y };
    one(lower.back(y, dtype)?)
}
