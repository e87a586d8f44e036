//! Activations.

use core_tensor::Dim;
use core_tensor::op::{Scalar, Unary};

use super::super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::quotient;

pub(in crate::ops) const OPERATORS: &[Entry] = &[
    ("BiasAdd", 1, bias_add),
    ("BiasGelu", 1, bias_gelu),
    ("BiasSplitGelu", 1, bias_split_gelu),
    ("FastGelu", 1, fast_gelu),
    ("Gelu", 1, gelu),
    ("QuickGelu", 1, quick_gelu),
];

fn biased(lower: &mut Lower<'_>, call: &Call<'_>) -> Res<Operand> {
    let x = call.input(0)?.clone();
    match call.optional(1)?.cloned() {
        Some(bias) => lower.add(&x, &bias),
        None => Ok(x),
    }
}

fn gelu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    one(lower.unary(Unary::Gelu, &x)?)
}

fn bias_gelu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = biased(lower, call)?;
    one(lower.unary(Unary::Gelu, &x)?)
}

fn fast_gelu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = biased(lower, call)?;
    one(lower.unary(Unary::GeluTanh, &x)?)
}

fn quick_gelu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let alpha = call.attributes.float_or("alpha", 1.702)?;
    let op = match alpha {
        1.702 => Unary::GeluQuick,
        1.0 => Unary::Silu,
        alpha => Unary::Swish { alpha: Scalar::new(alpha) },
    };
    one(lower.unary(op, &x)?)
}

fn bias_add<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = biased(lower, call)?;
    let skip = call.input(2)?.clone();
    one(lower.add(&x, &skip)?)
}

fn bias_split_gelu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = biased(lower, call)?;
    let Some(last) = x.rank().checked_sub(1) else { return fail("its input is a scalar") };
    let half = quotient(&x.shape()[last..], &[Dim::Num(2)]);
    let left = lower.slice(&x, last, Dim::Num(0), half.clone())?;
    let right = lower.slice(&x, last, half.clone(), half)?;
    let right = lower.unary(Unary::Gelu, &right)?;
    one(lower.mul(&left, &right)?)
}
