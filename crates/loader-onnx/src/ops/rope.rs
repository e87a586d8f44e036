//! Rotary position embedding.

use core_tensor::Dim;

use super::shape::strided;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::quotient;

pub(super) const OPERATORS: &[Entry] = &[("RotaryEmbedding", 23, rotary_embedding)];

/// Rotates `x`, `[batch, tokens, heads, d]`, f32, by tables `[batch, tokens, d / 2]`, f32 (or what broadcasts to it).
pub(super) fn rotate(
    lower: &mut Lower<'_>,
    x: &Operand,
    cos: &Operand,
    sin: &Operand,
    rotated: usize,
    interleaved: bool,
) -> Res<Operand> {
    let whole = x.shape()[3].clone();
    let rest = match &whole {
        Dim::Num(n) if rotated == 0 || rotated == *n => None,
        Dim::Num(n) if rotated < *n => Some(lower.slice(x, 3, Dim::Num(rotated), Dim::Num(n - rotated))?),
        _ if rotated == 0 => None,
        _ => return fail("more is rotated than a head has"),
    };
    let head = if rest.is_some() { lower.slice(x, 3, Dim::Num(0), Dim::Num(rotated))? } else { x.clone() };
    let half = quotient(&head.shape()[3..], &[Dim::Num(2)]);
    let (a, b) = if interleaved {
        (strided(lower, &head, 3, Dim::Num(0), half.clone(), 2)?, strided(lower, &head, 3, Dim::Num(1), half, 2)?)
    } else {
        (lower.slice(&head, 3, Dim::Num(0), half.clone())?, lower.slice(&head, 3, half.clone(), half)?)
    };
    if cos.rank() == 0 || sin.rank() == 0 {
        return fail("the tables of cosines and sines must have an extent");
    }
    let (cos, sin) = (lower.unsqueeze(cos, &[cos.rank() - 1])?, lower.unsqueeze(sin, &[sin.rank() - 1])?);
    let (left, right) = (lower.mul(&a, &cos)?, lower.mul(&b, &sin)?);
    let real = lower.sub(&left, &right)?;
    let (left, right) = (lower.mul(&a, &sin)?, lower.mul(&b, &cos)?);
    let imaginary = lower.add(&left, &right)?;
    let y = if interleaved {
        let (real, imaginary) = (lower.unsqueeze(&real, &[4])?, lower.unsqueeze(&imaginary, &[4])?);
        let y = lower.concat(&[real, imaginary], 4)?;
        lower.reshape(&y, head.shape())?
    } else {
        lower.concat(&[real, imaginary], 3)?
    };
    match rest {
        Some(rest) => lower.concat(&[y, rest], 3),
        None => Ok(y),
    }
}

fn rotary_embedding<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, cos, sin) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    one(embed(lower, call, &x, &cos, &sin, call.optional(3)?.cloned().as_ref())?)
}

/// With tables `[positions, d / 2]` looked up by positions, or `[batch, tokens, d / 2]`.
pub(super) fn embed<'a>(
    lower: &mut Lower<'a>,
    call: &Call<'a>,
    x: &Operand,
    cos: &Operand,
    sin: &Operand,
    positions: Option<&Operand>,
) -> Res<Operand> {
    let dtype = x.dtype();
    let interleaved = call.attributes.flag("interleaved", false)?;
    let rotated = call.attributes.count("rotary_embedding_dim", 0)?;
    let (mut cos, mut sin) = (lower.f32(cos)?, lower.f32(sin)?);
    if let Some(positions) = positions {
        cos = lower.gather(&cos, 0, positions)?;
        sin = lower.gather(&sin, 0, positions)?;
    }
    let wide = lower.f32(x)?;
    let y = if x.rank() == 4 {
        let apart = lower.transpose(&wide, &[0, 2, 1, 3])?;
        let y = rotate(lower, &apart, &cos, &sin, rotated, interleaved)?;
        lower.transpose(&y, &[0, 2, 1, 3])?
    } else {
        let mut heads = call.attributes.count("num_heads", 0)?;
        if heads == 0 {
            let table = cos.shape().last().and_then(Dim::as_num).unwrap_or(0);
            let hidden = x.shape().last().and_then(Dim::as_num).unwrap_or(0);
            heads = hidden.checked_div(2 * table).unwrap_or(0);
        }
        if heads == 0 {
            return fail("its number of heads is not known");
        }
        let apart = super::attention::split_heads(lower, &wide, heads)?;
        let y = rotate(lower, &apart, &cos, &sin, rotated, interleaved)?;
        super::attention::join_heads(lower, &y)?
    };
    lower.back(y, dtype)
}
