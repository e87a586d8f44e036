//! Attention as ONNX Runtime's transformer optimizer and its model builder write it.

use core_tensor::op::{Binary, Op, Where};
use core_tensor::{DType, Dim};

use super::super::attention::{Heads, Scores, additive, both, join_heads, last, split_heads};
use super::super::matmul::multiply;
use super::super::rope::{embed, rotate};
use super::super::{Entry, one};
use super::matmul::scaled_product;
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::SymInt;

pub(in crate::ops) const OPERATORS: &[Entry] = &[
    ("Attention", 1, attention),
    ("GroupQueryAttention", 1, group_query_attention),
    ("MultiHeadAttention", 1, multi_head_attention),
    ("QAttention", 1, q_attention),
    ("RotaryEmbedding", 1, rotary_embedding),
];

/// A mask as these operators take it, made something that is added to the scores, `[batch, 1, 1 or tokens, n]`.
fn mask_of(lower: &mut Lower<'_>, mask: &Operand, n: &Dim, low: f32) -> Res<Operand> {
    let seen = match mask.shape() {
        // The length of each sequence.
        [_] => {
            let lens = lower.cast(mask, DType::I64)?;
            let lens = lower.unsqueeze(&lens, &[1, 2, 3])?;
            let columns = lower.iota(n.clone())?;
            lower.binary(Binary::Less, &columns, &lens)?
        }
        shape @ ([_, _] | [_, _, _] | [_, _, _, _]) => {
            let places: &[usize] = match shape.len() {
                2 => &[1, 2],
                3 => &[1],
                _ => &[],
            };
            let mask = lower.unsqueeze(mask, places)?;
            lower.cast(&mask, DType::Bool)?
        }
        _ => return fail(format!("a mask of {} extents is not supported", mask.rank())),
    };
    additive(lower, &seen, low)
}

/// Attends, with what was seen before: gives the output `[batch, tokens, hidden]` and the present keys and values `[batch, heads, n, d]`.
struct Step {
    heads: Heads,
    past: Option<(Operand, Operand)>,
    mask: Option<Operand>,
    bias: Option<Operand>,
    low: f32,
    causal: bool,
    scale: Option<f32>,
}

impl Step {
    fn run(mut self, lower: &mut Lower<'_>) -> Res<(Operand, Operand, Operand)> {
        let swap = [0, 2, 1, 3];
        if let Some((past_k, past_v)) = &self.past {
            let (past_k, past_v) = (lower.f32(past_k)?, lower.f32(past_v)?);
            let (past_k, past_v) = (lower.transpose(&past_k, &swap)?, lower.transpose(&past_v, &swap)?);
            self.heads.k = lower.concat(&[past_k, self.heads.k.clone()], 1)?;
            self.heads.v = lower.concat(&[past_v, self.heads.v.clone()], 1)?;
        }
        let n = self.heads.k.shape()[1].clone();
        let mask = match &self.mask {
            Some(mask) => Some(mask_of(lower, mask, &n, self.low)?),
            None => None,
        };
        let bias = match &self.bias {
            Some(bias) => Some(lower.f32(bias)?),
            None => None,
        };
        let mask = both(lower, mask, bias)?;
        let scale = match self.scale {
            Some(scale) if scale != 0.0 => scale,
            _ => 1.0 / (last(&self.heads.q)? as f32).sqrt(),
        };
        let scores = Scores { scale, causal: self.causal, softcap: None };
        let y = self.heads.attend(lower, mask.as_ref(), scores)?;
        let y = join_heads(lower, &y)?;
        Ok((y, lower.transpose(&self.heads.k, &swap)?, lower.transpose(&self.heads.v, &swap)?))
    }
}

/// Attention over one product of queries, keys and values, `[batch, tokens, 3 · hidden]`.
fn packed<'a>(lower: &mut Lower<'a>, call: &Call<'a>, qkv: &Operand, inputs: [usize; 3]) -> Res<Vec<Value>> {
    let [mask, past, bias] = inputs;
    let attributes = &call.attributes;
    let heads = attributes.count("num_heads", 0)?;
    if heads == 0 {
        return fail("attribute num_heads is missing");
    }
    if attributes.flag("do_rotary", false)? {
        return fail("do_rotary is not supported");
    }
    let sizes = match attributes.counts("qkv_hidden_sizes")? {
        Some(sizes) if sizes.len() == 3 => sizes,
        _ => vec![last(qkv)? / 3; 3],
    };
    let mut start = 0;
    let mut parts = Vec::new();
    for size in sizes {
        let part = lower.slice(qkv, 2, Dim::Num(start), Dim::Num(size))?;
        parts.push(split_heads(lower, &part, heads)?);
        start += size;
    }
    let (Some(v), Some(k), Some(q)) = (parts.pop(), parts.pop(), parts.pop()) else { return fail("no heads") };
    let past = match call.optional(past)?.cloned() {
        Some(past) => {
            let key = lower.slice(&past, 0, Dim::Num(0), Dim::Num(1))?;
            let value = lower.slice(&past, 0, Dim::Num(1), Dim::Num(1))?;
            Some((lower.squeeze(&key, &[0])?, lower.squeeze(&value, &[0])?))
        }
        None => None,
    };
    let step = Step {
        heads: Heads { q, k, v },
        past,
        mask: call.optional(mask)?.cloned(),
        bias: call.optional(bias)?.cloned(),
        low: attributes.float_or("mask_filter_value", -10_000.0)?,
        causal: attributes.flag("unidirectional", false)?,
        scale: attributes.float("scale")?,
    };
    let (y, k, v) = step.run(lower)?;
    let mut outputs = vec![Value::Tensor(y)];
    if call.wants(1) {
        let (k, v) = (lower.unsqueeze(&k, &[0])?, lower.unsqueeze(&v, &[0])?);
        outputs.push(lower.concat(&[k, v], 0)?.into());
    }
    Ok(outputs)
}

fn attention<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let dtype = x.dtype();
    let x = lower.f32(&x)?;
    let mut qkv = multiply(lower, &x, &w, false)?;
    if let Some(b) = b {
        let b = lower.f32(&b)?;
        qkv = lower.add(&qkv, &b)?;
    }
    let outputs = packed(lower, call, &qkv, [3, 4, 5])?;
    back(lower, outputs, dtype)
}

fn back(lower: &mut Lower<'_>, outputs: Vec<Value>, dtype: DType) -> Res<Vec<Value>> {
    outputs
        .into_iter()
        .map(|value| match value {
            Value::Tensor(y) => Ok(lower.back(y, dtype)?.into()),
            other => Ok(other),
        })
        .collect()
}

fn q_attention<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let (x_scale, w_scale) = (call.input(3)?.clone(), call.input(4)?.clone());
    let (x_zero, w_zero) = (call.optional(6)?.cloned(), call.optional(7)?.cloned());
    let qkv = scaled_product(lower, (&x, &x_scale, x_zero.as_ref()), (&w, &w_scale, w_zero.as_ref()), Some(&b))?;
    // It has no bias of scores: the last input does not exist.
    packed(lower, call, &qkv, [5, 8, usize::MAX])
}

fn multi_head_attention<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let heads = attributes.count("num_heads", 0)?;
    if heads == 0 {
        return fail("attribute num_heads is missing");
    }
    let dtype = call.input(0)?.dtype();
    let query = lower.f32(&call.input(0)?.clone())?;
    let (key, value) = (call.optional(1)?.cloned(), call.optional(2)?.cloned());
    let mut parts: Vec<Operand> = Vec::new();
    // `[batch, tokens, heads, how many, d]`, one after the other.
    let unpack = |lower: &mut Lower<'a>, x: &Operand, count: usize, parts: &mut Vec<Operand>| -> Res<()> {
        for i in 0..count {
            let part = lower.slice(x, 3, Dim::Num(i), Dim::Num(1))?;
            parts.push(lower.squeeze(&part, &[3])?);
        }
        Ok(())
    };
    match (&key, &value) {
        (None, None) if query.rank() == 5 => unpack(lower, &query, 3, &mut parts)?,
        (Some(key), None) if key.rank() == 5 => {
            parts.push(split_heads(lower, &query, heads)?);
            let key = lower.f32(key)?;
            unpack(lower, &key, 2, &mut parts)?;
        }
        (Some(key), Some(value)) => {
            for x in [&query, key, value] {
                let x = lower.f32(x)?;
                parts.push(match x.rank() {
                    3 => split_heads(lower, &x, heads)?,
                    // Keys and values of an encoder, computed before.
                    4 => lower.transpose(&x, &[0, 2, 1, 3])?,
                    other => return fail(format!("an input of {other} extents")),
                });
            }
        }
        _ => return fail("its keys and values are missing"),
    }
    if let Some(bias) = call.optional(3)?.cloned() {
        let bias = lower.f32(&bias)?;
        let mut start = 0;
        for part in &mut parts {
            let each = last(part)?;
            let piece = lower.slice(&bias, 0, Dim::Num(start), Dim::Num(heads * each))?;
            let piece = lower.reshape(&piece, &[Dim::Num(heads), Dim::Num(each)])?;
            *part = lower.add(part, &piece)?;
            start += heads * each;
        }
    }
    let (Some(v), Some(k), Some(q)) = (parts.pop(), parts.pop(), parts.pop()) else { return fail("no heads") };
    let past = match (call.optional(6)?.cloned(), call.optional(7)?.cloned()) {
        (Some(key), Some(value)) => Some((key, value)),
        _ => None,
    };
    let step = Step {
        heads: Heads { q, k, v },
        past,
        mask: call.optional(4)?.cloned(),
        bias: call.optional(5)?.cloned(),
        low: attributes.float_or("mask_filter_value", -10_000.0)?,
        causal: attributes.flag("unidirectional", false)?,
        scale: attributes.float("scale")?,
    };
    let (y, k, v) = step.run(lower)?;
    back(lower, vec![y.into(), k.into(), v.into()], dtype)
}

fn rotary_embedding<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, positions) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (cos, sin) = (call.input(2)?.clone(), call.input(3)?.clone());
    // One position: that of the first token.
    let positions = if positions.rank() == 1 {
        let tokens = if x.rank() == 4 { x.shape()[2].clone() } else { x.shape()[1].clone() };
        let steps = lower.iota(tokens)?;
        let first = lower.cast(&positions, DType::I64)?;
        let all = lower.add(&steps, &first)?;
        lower.unsqueeze(&all, &[0])?
    } else {
        positions
    };
    one(embed(lower, call, &x, &cos, &sin, Some(&positions))?)
}

fn group_query_attention<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let (heads, own) = (attributes.count("num_heads", 0)?, attributes.count("kv_num_heads", 0)?);
    if heads == 0 || own == 0 {
        return fail("attributes num_heads and kv_num_heads are missing");
    }
    if attributes.flag("smooth_softmax", false)? || call.optional(11)?.is_some() {
        return fail("a smooth softmax is not supported");
    }
    let dtype = call.input(0)?.dtype();
    let query = lower.f32(&call.input(0)?.clone())?;
    let (mut q, mut k, v) = match (call.optional(1)?.cloned(), call.optional(2)?.cloned()) {
        (Some(key), Some(value)) => {
            let (key, value) = (lower.f32(&key)?, lower.f32(&value)?);
            (split_heads(lower, &query, heads)?, split_heads(lower, &key, own)?, split_heads(lower, &value, own)?)
        }
        _ => {
            let all = split_heads(lower, &query, heads + 2 * own)?;
            (
                lower.slice(&all, 2, Dim::Num(0), Dim::Num(heads))?,
                lower.slice(&all, 2, Dim::Num(heads), Dim::Num(own))?,
                lower.slice(&all, 2, Dim::Num(heads + own), Dim::Num(own))?,
            )
        }
    };
    let tokens = q.shape()[1].clone();
    // Of each sequence: the place of its last token, and so those of this step's.
    let lens = lower.cast(&call.input(5)?.clone(), DType::I64)?;
    let count = lens.count();
    let lens = lower.reshape(&lens, &[count, Dim::Num(1)])?;
    let back_to = lower.integers(DType::I64, &[], vec![SymInt::of(tokens.clone()).sub(&SymInt::Num(1))])?;
    let first = lower.sub(&lens, &back_to)?;
    let zero = lower.scalar(DType::I64, 0.0)?;
    // A prompt that is padded at its end begins at 0.
    let first = lower.binary(Binary::Max, &first, &zero)?;
    let steps = lower.iota(tokens)?;
    let places = lower.add(&first, &steps)?;
    if attributes.flag("do_rotary", false)? {
        let (cos, sin) = (lower.f32(&call.input(7)?.clone())?, lower.f32(&call.input(8)?.clone())?);
        let positions = call.optional(9)?.cloned().unwrap_or_else(|| places.clone());
        let (cos, sin) = (lower.gather(&cos, 0, &positions)?, lower.gather(&sin, 0, &positions)?);
        let interleaved = attributes.flag("rotary_interleaved", false)?;
        let table = cos.shape().last().and_then(Dim::as_num).unwrap_or(0);
        q = rotate(lower, &q, &cos, &sin, 2 * table, interleaved)?;
        k = rotate(lower, &k, &cos, &sin, 2 * table, interleaved)?;
    }
    let swap = [0, 2, 1, 3];
    let (mut keys, mut values) = (k, v);
    if let (Some(past_k), Some(past_v)) = (call.optional(3)?.cloned(), call.optional(4)?.cloned()) {
        let (past_k, past_v) = (lower.f32(&past_k)?, lower.f32(&past_v)?);
        let (past_k, past_v) = (lower.transpose(&past_k, &swap)?, lower.transpose(&past_v, &swap)?);
        keys = lower.concat(&[past_k, keys], 1)?;
        values = lower.concat(&[past_v, values], 1)?;
    }
    let n = keys.shape()[1].clone();
    let columns = lower.iota(n)?;
    let places = lower.unsqueeze(&places, &[1, 3])?;
    let mut mask = lower.binary(Binary::LessOrEqual, &columns, &places)?;
    let window = attributes.int_or("local_window_size", -1)?;
    if window > 0 {
        let window = lower.scalar(DType::I64, window as f64)?;
        let edge = lower.sub(&places, &window)?;
        let near = lower.binary(Binary::Greater, &columns, &edge)?;
        mask = lower.binary(Binary::And, &mask, &near)?;
    }
    let mut mask = mask;
    if let Some(bias) = call.optional(10)?.cloned() {
        let bias = lower.f32(&bias)?;
        let low = lower.scalar(DType::F32, f64::NEG_INFINITY)?;
        mask = lower.op(Op::Where(Where), &[&mask, &bias, &low])?;
    }
    let scale = match attributes.float("scale")? {
        Some(scale) if scale != 0.0 => scale,
        _ => 1.0 / (last(&q)? as f32).sqrt(),
    };
    let softcap = attributes.float("softcap")?.filter(|cap| *cap > 0.0);
    let attended = Heads { q, k: keys.clone(), v: values.clone() };
    let y = attended.attend(lower, Some(&mask), Scores { scale, causal: false, softcap })?;
    let y = join_heads(lower, &y)?;
    let outputs = vec![y, lower.transpose(&keys, &swap)?, lower.transpose(&values, &swap)?];
    back(lower, outputs.into_iter().map(Value::from).collect(), dtype)
}
