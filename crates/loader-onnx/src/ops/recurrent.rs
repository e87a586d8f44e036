//! Recurrent layers.

use core_tensor::op::{Cell, Direction, Gate, Op, Recurrent, Scalar, Unary};
use core_tensor::{DType, Dim};

use super::Entry;
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};

pub(super) const OPERATORS: &[Entry] = &[("GRU", 6, recurrent), ("LSTM", 7, recurrent), ("RNN", 7, recurrent)];

/// Operators of the domain com.microsoft.
pub(super) const MICROSOFT: &[Entry] = &[("DynamicQuantizeLSTM", 1, dynamic_quantize_lstm)];

/// Activations by name; parameters are taken from the lists in the order in which functions that have any occur.
fn activations(call: &Call<'_>, defaults: &[&'static str], directions: usize) -> Res<Vec<Gate>> {
    let names = match call.attributes.texts("activations")? {
        Some(names) if names.len() == defaults.len() * directions => names,
        Some(names) => return fail(format!("{} activations, {} expected", names.len(), defaults.len() * directions)),
        None => defaults.repeat(directions),
    };
    let mut alphas = call.attributes.floats("activation_alpha")?.unwrap_or_default().iter().copied();
    let mut betas = call.attributes.floats("activation_beta")?.unwrap_or_default().iter().copied();
    names
        .iter()
        .map(|name| {
            let mut alpha = |default: f32| Scalar::new(alphas.next().unwrap_or(default));
            Ok(match name.to_ascii_lowercase().as_str() {
                "relu" => Unary::Relu,
                "tanh" => Unary::Tanh,
                "sigmoid" => Unary::Sigmoid,
                "softsign" => Unary::Softsign,
                "softplus" => Unary::Softplus,
                "leakyrelu" => Unary::LeakyRelu { alpha: alpha(0.01) },
                "thresholdedrelu" => Unary::ThresholdedRelu { alpha: alpha(1.0) },
                "elu" => Unary::Elu { alpha: alpha(1.0) },
                "hardsigmoid" => {
                    Unary::HardSigmoid { alpha: alpha(0.2), beta: Scalar::new(betas.next().unwrap_or(0.5)) }
                }
                _ => return fail(format!("activation '{name}' is not supported")),
            })
        })
        .collect()
}

fn recurrent<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let inputs = (0..call.inputs.len()).map(|i| Ok(call.optional(i)?.cloned())).collect::<Res<Vec<_>>>()?;
    layer(lower, call, inputs)
}

/// An LSTM whose weights W and R are integers, `[directions, input or hidden, 4 hidden]`, with scales and zero points for each direction or for each of its
/// columns. They are dequantized, and activations are not rounded: nearer to the float layer than ONNX Runtime's.
fn dynamic_quantize_lstm<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let mut inputs = (0..8).map(|i| Ok(call.optional(i)?.cloned())).collect::<Res<Vec<_>>>()?;
    for (at, factors) in [(1, 8), (2, 10)] {
        let mut weight = lower.cast(call.input(at)?, DType::F32)?;
        let mut parameter = |at: usize| -> Res<Option<Operand>> {
            let Some(x) = call.optional(at)?.cloned() else { return Ok(None) };
            let x = lower.cast(&x, DType::F32)?;
            let (directions, columns) = match x.shape() {
                [directions] => (directions.clone(), Dim::Num(1)),
                [directions, columns] => (directions.clone(), columns.clone()),
                _ => return fail(format!("input {at} has {} extents, not 1 or 2", x.rank())),
            };
            Ok(Some(lower.reshape(&x, &[directions, Dim::Num(1), columns])?))
        };
        let (scale, zero) = (parameter(factors)?, parameter(factors + 1)?);
        let Some(scale) = scale else { return fail(format!("input {factors}, a scale, is missing")) };
        if let Some(zero) = zero {
            weight = lower.sub(&weight, &zero)?;
        }
        let weight = lower.mul(&weight, &scale)?;
        inputs[at] = Some(lower.transpose(&weight, &[0, 2, 1])?);
    }
    layer(lower, call, inputs)
}

/// The layer that a node is, on the inputs that the standard operators have.
fn layer<'a>(lower: &mut Lower<'a>, call: &Call<'a>, given: Vec<Option<Operand>>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let (cell, defaults): (Cell, &[&'static str]) = match call.proto.op_type() {
        "RNN" => (Cell::Rnn, &["Tanh"]),
        "GRU" => {
            (Cell::Gru { linear_before_reset: attributes.flag("linear_before_reset", false)? }, &["Sigmoid", "Tanh"])
        }
        "LSTM" | "DynamicQuantizeLSTM" => {
            (Cell::Lstm { input_forget: attributes.flag("input_forget", false)? }, &["Sigmoid", "Tanh", "Tanh"])
        }
        _ => return Err(Fail::Unsupported),
    };
    let direction = match attributes.text_or("direction", "forward")? {
        "forward" => Direction::Forward,
        "reverse" => Direction::Reverse,
        "bidirectional" => Direction::Bidirectional,
        other => return fail(format!("attribute direction is '{other}'")),
    };
    let directions = if direction == Direction::Bidirectional { 2 } else { 1 };
    let batch_first = attributes.flag("layout", false)?;
    let dtype = call.input(0)?.dtype();
    let mut inputs: Vec<Option<Operand>> = Vec::new();
    for (i, x) in given.into_iter().enumerate() {
        let Some(x) = x else {
            inputs.push(None);
            continue;
        };
        // Input 4 holds lengths.
        let x = if i == 4 { lower.cast(&x, DType::I32)? } else { lower.f32(&x)? };
        inputs.push(Some(match i {
            0 | 5 | 6 if batch_first => lower.transpose(&x, &[1, 0, 2])?,
            _ => x,
        }));
    }
    let hidden = match attributes.count("hidden_size", 0)? {
        0 => match inputs.get(2).and_then(Option::as_ref).and_then(|r| r.shape().last()?.as_num()) {
            Some(hidden) => hidden,
            None => return fail("its hidden size is not known"),
        },
        hidden => hidden,
    };
    let op = Recurrent {
        cell,
        hidden,
        direction,
        activations: activations(call, defaults, directions)?,
        clip: attributes.float("clip")?.map(Scalar::new),
    };
    let inputs: Vec<Option<&Operand>> = inputs.iter().map(Option::as_ref).collect();
    let outputs = lower.ops(Op::Recurrent(op), &inputs)?;
    let mut results = Vec::new();
    for (i, y) in outputs.into_iter().enumerate() {
        let y = match (batch_first, i) {
            (true, 0) => lower.transpose(&y, &[2, 0, 1, 3])?,
            (true, _) => lower.transpose(&y, &[1, 0, 2])?,
            _ => y,
        };
        results.push(lower.back(y, dtype)?.into());
    }
    Ok(results)
}
