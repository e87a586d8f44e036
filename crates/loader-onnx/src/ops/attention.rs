//! Attention.

use core_tensor::op::{Binary, Op, Softmax, TensorAttention, Unary, Where};
use core_tensor::{DType, Dim};

use super::Entry;
use super::matmul::multiply;
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::{SymInt, quotient};

pub(super) const OPERATORS: &[Entry] = &[("Attention", 23, attention)];

/// What is attended, with heads apart.
pub(super) struct Heads {
    /// `[batch, tokens, heads, head_dim]`, f32.
    pub(super) q: Operand,
    /// `[batch, n, n_kv, head_dim]`, f32.
    pub(super) k: Operand,
    /// `[batch, n, n_kv, v_dim]`, f32.
    pub(super) v: Operand,
}

/// How it is attended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    pub(super) scale: f32,
    pub(super) causal: bool,
    pub(super) softcap: Option<f32>,
}

impl Heads {
    /// Attention in one node: `[batch, tokens, heads, v_dim]`.
    pub(super) fn attend(&self, lower: &mut Lower<'_>, mask: Option<&Operand>, scores: Scores) -> Res<Operand> {
        let Scores { scale, causal, softcap } = scores;
        let op = Op::TensorAttention(TensorAttention { scale, causal, softcap });
        match mask {
            Some(mask) => lower.op(op, &[&self.q, &self.k, &self.v, mask]),
            None => lower.op(op, &[&self.q, &self.k, &self.v]),
        }
    }
}

/// `[batch, tokens, heads · d]` → `[batch, tokens, heads, d]`.
pub(super) fn split_heads(lower: &mut Lower<'_>, x: &Operand, heads: usize) -> Res<Operand> {
    let [batch, tokens, hidden] = x.shape() else { return fail("heads of a tensor that has not 3 extents") };
    let each = quotient(std::slice::from_ref(hidden), &[Dim::Num(heads)]);
    let shape = [batch.clone(), tokens.clone(), Dim::Num(heads), each];
    lower.reshape(x, &shape)
}

/// `[batch, tokens, heads, d]` → `[batch, tokens, heads · d]`.
pub(super) fn join_heads(lower: &mut Lower<'_>, x: &Operand) -> Res<Operand> {
    let [batch, tokens, heads, each] = x.shape() else { return fail("no heads") };
    let shape = [batch.clone(), tokens.clone(), heads.clone().mul(each.clone())];
    lower.reshape(x, &shape)
}

/// The last extent, which must be a number.
pub(super) fn last(x: &Operand) -> Res<usize> {
    x.shape().last().and_then(Dim::as_num).ok_or_else(|| "the length of its heads is not known".into())
}

/// Bool `[tokens, n]`: whether key `j` lies not after query `i`, which is key `i + offset`.
pub(super) fn causal_mask(lower: &mut Lower<'_>, tokens: &Dim, n: &Dim, offset: Option<Dim>) -> Res<Operand> {
    let rows = lower.iota(tokens.clone())?;
    let mut rows = lower.unsqueeze(&rows, &[1])?;
    if let Some(offset) = offset {
        let offset = lower.integers(DType::I64, &[], vec![SymInt::of(offset)])?;
        rows = lower.add(&rows, &offset)?;
    }
    let columns = lower.iota(n.clone())?;
    lower.binary(Binary::LessOrEqual, &columns, &rows)
}

/// 0 where a mask is true, a large negative number elsewhere.
pub(super) fn additive(lower: &mut Lower<'_>, mask: &Operand, low: f32) -> Res<Operand> {
    if mask.dtype() != DType::Bool {
        return lower.f32(mask);
    }
    let (zero, low) = (lower.scalar(DType::F32, 0.0)?, lower.scalar(DType::F32, f64::from(low))?);
    lower.op(Op::Where(Where), &[mask, &zero, &low])
}

/// Both masks at once.
pub(super) fn both(lower: &mut Lower<'_>, a: Option<Operand>, b: Option<Operand>) -> Res<Option<Operand>> {
    Ok(match (a, b) {
        (Some(a), Some(b)) if a.dtype() == DType::Bool && b.dtype() == DType::Bool => {
            Some(lower.binary(Binary::And, &a, &b)?)
        }
        (Some(a), Some(b)) => {
            let (a, b) = (additive(lower, &a, f32::NEG_INFINITY)?, additive(lower, &b, f32::NEG_INFINITY)?);
            Some(lower.add(&a, &b)?)
        }
        (a, b) => a.or(b),
    })
}

fn attention<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let dtype = call.input(0)?.dtype();
    let attributes = &call.attributes;
    let flat = call.input(0)?.rank() == 3;
    // To [batch, heads, tokens, d], which caches have, too.
    let mut parts = Vec::new();
    for (i, name) in [(0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")] {
        let x = lower.f32(&call.input(i)?.clone())?;
        parts.push(if flat {
            let heads = attributes.count(name, 0)?;
            if heads == 0 {
                return fail(format!("attribute {name} is missing"));
            }
            let x = split_heads(lower, &x, heads)?;
            lower.transpose(&x, &[0, 2, 1, 3])?
        } else {
            x
        });
    }
    let [q, mut k, mut v] = <[Operand; 3]>::try_from(parts).map_err(|_| Fail::from("inputs are missing"))?;
    let scale = match attributes.float("scale")? {
        Some(scale) => scale,
        None => 1.0 / (last(&q)? as f32).sqrt(),
    };
    let softcap = attributes.float("softcap")?.filter(|cap| *cap > 0.0);
    let mut past = None;
    if let (Some(past_k), Some(past_v)) = (call.optional(4)?.cloned(), call.optional(5)?.cloned()) {
        past = Some(past_k.shape()[2].clone());
        let (past_k, past_v) = (lower.f32(&past_k)?, lower.f32(&past_v)?);
        k = lower.concat(&[past_k, k], 2)?;
        v = lower.concat(&[past_v, v], 2)?;
    }
    let (tokens, n) = (q.shape()[2].clone(), k.shape()[2].clone());
    let causal = attributes.flag("is_causal", false)?;
    let mut mask = call.optional(3)?.cloned();
    if let Some(given) = &mask {
        let given = if given.dtype() == DType::Bool { given.clone() } else { lower.f32(given)? };
        mask = Some(extended(lower, &given, &n)?);
    }
    if let Some(lens) = call.optional(6)?.cloned() {
        let lens = lower.cast(&lens, DType::I64)?;
        let lens = lower.unsqueeze(&lens, &[1, 2, 3])?;
        let columns = lower.iota(n.clone())?;
        let inside = lower.binary(Binary::Less, &columns, &lens)?;
        mask = both(lower, mask, Some(inside))?;
    }
    // Causality counts from the upper left, the operator's from the lower right; a softcap applies after the mask.
    let aligned = past.is_some() || tokens == n;
    let fused = softcap.is_none() || (mask.is_none() && !causal);
    let mode = attributes.int_or("qk_matmul_output_mode", 0)?;
    let mut outputs = Vec::new();
    if call.wants(3) || !fused {
        if causal {
            let seen = causal_mask(lower, &tokens, &n, past)?;
            mask = both(lower, mask, Some(seen))?;
        }
        let (heads, own) = (q.shape()[1].clone(), k.shape()[1].clone());
        let (wide_k, wide_v) = (repeated(lower, &k, &heads, &own)?, repeated(lower, &v, &heads, &own)?);
        let scores = multiply(lower, &q, &wide_k, true)?;
        let factor = lower.scalar(DType::F32, f64::from(scale))?;
        let scores = lower.mul(&scores, &factor)?;
        let biased = match &mask {
            Some(mask) => {
                let mask = additive(lower, mask, f32::NEG_INFINITY)?;
                lower.add(&scores, &mask)?
            }
            None => scores.clone(),
        };
        let capped = match softcap {
            Some(cap) => {
                let cap = lower.scalar(DType::F32, f64::from(cap))?;
                let y = lower.div(&biased, &cap)?;
                let y = lower.unary(Unary::Tanh, &y)?;
                lower.mul(&y, &cap)?
            }
            None => biased.clone(),
        };
        let weights = lower.op(Op::Softmax(Softmax), &[&capped])?;
        let y = multiply(lower, &weights, &wide_v, false)?;
        let shown = match mode {
            0 => scores,
            1 => biased,
            2 => capped,
            3 => weights,
            other => return fail(format!("attribute qk_matmul_output_mode is {other}")),
        };
        let y = lower.transpose(&y, &[0, 2, 1, 3])?;
        outputs.extend([y, k.clone(), v.clone(), shown]);
    } else {
        if causal && !aligned {
            let seen = causal_mask(lower, &tokens, &n, None)?;
            mask = both(lower, mask, Some(seen))?;
        }
        let heads = Heads {
            q: lower.transpose(&q, &[0, 2, 1, 3])?,
            k: lower.transpose(&k, &[0, 2, 1, 3])?,
            v: lower.transpose(&v, &[0, 2, 1, 3])?,
        };
        let y = heads.attend(lower, mask.as_ref(), Scores { scale, causal: causal && aligned, softcap })?;
        outputs.extend([y, k, v]);
    }
    outputs[0] = if flat {
        join_heads(lower, &outputs[0].clone())?
    } else {
        lower.transpose(&outputs[0].clone(), &[0, 2, 1, 3])?
    };
    outputs.into_iter().map(|y| Ok(lower.back(y, dtype)?.into())).collect()
}

/// A mask whose last extent may be shorter than that of the keys.
fn extended(lower: &mut Lower<'_>, mask: &Operand, n: &Dim) -> Res<Operand> {
    let Some(own) = mask.shape().last() else { return Ok(mask.clone()) };
    let missing = SymInt::of(n.clone()).sub(&SymInt::of(own.clone()));
    if *own == Dim::Num(1) || matches!(missing, SymInt::Num(..=0)) {
        return Ok(mask.clone());
    }
    let (Dim::Num(_), Dim::Num(_)) = (own, n) else { return Ok(mask.clone()) };
    let mut pads = vec![(SymInt::Num(0), SymInt::Num(0)); mask.rank()];
    if let Some(last) = pads.last_mut() {
        last.1 = missing;
    }
    let low = if mask.dtype() == DType::Bool { 0.0 } else { f64::NEG_INFINITY };
    let low = lower.scalar(mask.dtype(), low)?;
    super::shape::padded(lower, mask, &pads, core_tensor::op::PadMode::Constant, Some(&low))
}

/// Keys of `[batch, own, n, d]`, each repeated for the heads that share it.
fn repeated(lower: &mut Lower<'_>, x: &Operand, heads: &Dim, own: &Dim) -> Res<Operand> {
    if heads == own {
        return Ok(x.clone());
    }
    let each = quotient(std::slice::from_ref(heads), std::slice::from_ref(own));
    let [batch, _, n, d] = x.shape() else { return fail("no heads") };
    let wide = [batch.clone(), own.clone(), each, n.clone(), d.clone()];
    let result = [batch.clone(), heads.clone(), n.clone(), d.clone()];
    let apart = lower.unsqueeze(x, &[2])?;
    let y = lower.expand(&apart, &wide)?;
    lower.reshape(&y, &result)
}
