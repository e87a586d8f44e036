//! Losses: exporters leave them in models that are evaluated.

use core_tensor::op::{Binary, GatherElements, LogSoftmax, Op, ReduceKind, Unary, Where};
use core_tensor::{DType, Dim};

use super::Entry;
use super::reduce::{along_axis, reduce};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};

pub(super) const OPERATORS: &[Entry] = &[
    ("NegativeLogLikelihoodLoss", 12, negative_log_likelihood),
    ("SoftmaxCrossEntropyLoss", 12, softmax_cross_entropy),
];

fn negative_log_likelihood<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    Ok(vec![loss(lower, call, &x)?.into()])
}

fn softmax_cross_entropy<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let dtype = x.dtype();
    let wide = lower.f32(&x)?;
    let logs = along_axis(lower, &wide, 1, |lower, x| lower.op(Op::LogSoftmax(LogSoftmax), &[x]))?;
    let logs = lower.back(logs, dtype)?;
    Ok(vec![loss(lower, call, &logs)?.into(), logs.into()])
}

/// The loss of logarithms of probabilities `[batch, classes, ...]`.
fn loss<'a>(lower: &mut Lower<'a>, call: &Call<'a>, logs: &Operand) -> Res<Operand> {
    let (target, weight) = (call.input(1)?.clone(), call.optional(2)?.cloned());
    let ignored = call.attributes.int("ignore_index")?;
    let mut places = lower.cast(&target, DType::I64)?;
    let mut skipped = None;
    if let Some(ignored) = ignored {
        let (ignored, zero) = (lower.scalar(DType::I64, ignored as f64)?, lower.scalar(DType::I64, 0.0)?);
        let skip = lower.binary(Binary::Equal, &places, &ignored)?;
        places = lower.op(Op::Where(Where), &[&skip, &zero, &places])?;
        skipped = Some(skip);
    }
    let wide = lower.unsqueeze(&places, &[1])?;
    let picked = lower.op(Op::GatherElements(GatherElements { axis: 1 }), &[logs, &wide])?;
    let picked = lower.squeeze(&picked, &[1])?;
    let mut each = lower.unary(Unary::Neg, &picked)?;
    let mut weights = match weight {
        Some(weight) => Some(lower.gather(&weight, 0, &places)?),
        None => None,
    };
    if let Some(skip) = skipped {
        let (zero, single) = (lower.scalar(logs.dtype(), 0.0)?, lower.scalar(logs.dtype(), 1.0)?);
        let own = match &weights {
            Some(weights) => weights.clone(),
            None => single,
        };
        weights = Some(lower.op(Op::Where(Where), &[&skip, &zero, &own])?);
    }
    if let Some(weights) = &weights {
        each = lower.mul(&each, weights)?;
    }
    let all: Vec<usize> = (0..each.rank()).collect();
    match call.attributes.text_or("reduction", "mean")? {
        "none" => Ok(each),
        "sum" => reduce(lower, ReduceKind::Sum, &each, &all, false),
        "mean" => match weights {
            None => reduce(lower, ReduceKind::Mean, &each, &all, false),
            Some(weights) => {
                let sum = reduce(lower, ReduceKind::Sum, &each, &all, false)?;
                let shape: Vec<Dim> = each.shape().to_vec();
                let weights = lower.expand(&weights, &shape)?;
                let total = reduce(lower, ReduceKind::Sum, &weights, &all, false)?;
                lower.div(&sum, &total)
            }
        },
        other => fail(format!("attribute reduction is '{other}'")),
    }
}
