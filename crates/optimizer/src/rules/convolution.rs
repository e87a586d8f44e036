//! Convolutions: per-channel factors (folded batch normalizations), biases and padding go into them.
//!
//! A convolution followed by an activation, or by a sum and an activation, stays two or three nodes: each backend's own fusion makes an epilogue of them.

use std::sync::Arc;

use core_tensor::op::{Conv, ConvTranspose, Op, Pad};
use core_tensor::{DType, Dim, Tensor, ValueId, Weight};

use super::movement::pads_zeros;
use super::normalization::channel_values;
use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "convolution-scale",
            "a convolution times a number per channel has these in its weights (batch normalization)",
            Pattern::product(convolution(), Pattern::constant("scale")),
            scale,
        ),
        Rule::new(
            "convolution-bias",
            "a convolution plus a number per channel has these as its bias",
            Pattern::sum(convolution(), Pattern::constant("bias")),
            bias,
        ),
        Rule::new(
            "convolution-padding",
            "zeros around the input of a convolution become its padding",
            Pattern::node(
                "Conv",
                |op| matches!(op, Op::Conv(_)),
                [Pattern::node("Pad", |op| matches!(op, Op::Pad(_)), [Pattern::value("x")])
                    .and_more_inputs()
                    .named("pad")],
            )
            .and_more_inputs(),
            padding,
        ),
    ]
}

/// A convolution of either kind.
fn convolution() -> Pattern {
    Pattern::node(
        "a convolution",
        |op| matches!(op, Op::Conv(_) | Op::ConvTranspose(_)),
        [Pattern::any(), Pattern::constant("w")],
    )
    .and_more_inputs()
    .named("conv")
}

/// Where the output channels lie in the weights: their extent, and how many groups share it.
fn output_channels(op: &Op, shape: &[usize]) -> Result<usize, Reject> {
    match op {
        Op::Conv(_) if shape.len() >= 3 => Ok(0),
        Op::ConvTranspose(ConvTranspose { groups: 1, .. }) if shape.len() >= 3 => Ok(1),
        Op::ConvTranspose(_) => Err(Reject::because("a transposed convolution of several groups")),
        _ => Err(Reject::nothing_to_do()),
    }
}

fn scale(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let conv = r.producer(r.found("conv")?).ok_or_else(Reject::nothing_to_do)?;
    let w = r.found("w")?;
    let weight: Arc<Weight> = r.weight(w)?.clone();
    let axis = output_channels(&conv.op, weight.shape())?;
    if weight.dtype() != DType::F32 {
        return Err(Reject::because(format!("weights of {} stay as they are stored", weight.dtype())));
    }
    if r.uses(w) > 1 {
        return Err(Reject::because("the weights are used elsewhere, too"));
    }
    let (rank, channels) = (weight.shape().len(), weight.shape()[axis]);
    let factors = channel_values(r, rank, channels, r.found("scale")?)?;
    let inner: usize = weight.shape()[axis + 1..].iter().product();
    let mut values = r.tensor(w)?.to_f32().map_err(|error| Reject::because(error.to_string()))?;
    for (i, value) in values.iter_mut().enumerate() {
        *value *= factors[i / inner.max(1) % channels];
    }
    let name = r.graph().value(w).name.clone();
    let tensor = Tensor::from_slice(weight.shape(), &values).map_err(|error| Reject::because(error.to_string()))?;
    // The bias first: it may be refused.
    let bias = match conv.inputs.get(2).copied().flatten() {
        None => None,
        Some(id) => {
            let mut bias = r.tensor(id)?.to_f32().map_err(|error| Reject::because(error.to_string()))?;
            bias.iter_mut().zip(&factors).for_each(|(bias, factor)| *bias *= factor);
            let name = r.graph().value(id).name.clone();
            Some(r.add_constant(&name, &[channels], &bias)?)
        }
    };
    let w = r.add_weight(&name, Weight::stored(tensor));
    let x = conv.inputs[0].ok_or_else(Reject::nothing_to_do)?;
    let mut inputs = vec![Some(r.new_value(x)), Some(w)];
    inputs.extend(bias.map(Some));
    r.add_with(conv.op.clone(), inputs)
}

fn bias(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let conv = r.producer(r.found("conv")?).ok_or_else(Reject::nothing_to_do)?;
    let w = r.found("w")?;
    let shape: Vec<usize> = r.weight(w)?.shape().to_vec();
    let channels = match &conv.op {
        Op::Conv(_) => shape[0],
        Op::ConvTranspose(op) => shape[1].saturating_mul(op.groups),
        _ => return Err(Reject::nothing_to_do()),
    };
    let mut sum = channel_values(r, shape.len(), channels, r.found("bias")?)?;
    if let Some(id) = conv.inputs.get(2).copied().flatten() {
        let bias = r.tensor(id)?.to_f32().map_err(|error| Reject::because(error.to_string()))?;
        sum.iter_mut().zip(&bias).for_each(|(sum, bias)| *sum += bias);
    }
    let name = r.graph().value(r.found("bias")?).name.clone();
    let bias = r.add_constant(&name, &[channels], &sum)?;
    let x = conv.inputs[0].ok_or_else(Reject::nothing_to_do)?;
    let inputs = [r.new_value(x), r.new_value(w), bias];
    r.add(conv.op.clone(), &inputs)
}

fn padding(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let node = r.producer(r.found("pad")?).ok_or_else(Reject::nothing_to_do)?;
    let (Op::Pad(pad), Op::Conv(conv)) = (&node.op, &r.root().op) else { return Err(Reject::nothing_to_do()) };
    if !pads_zeros(r, pad, node.inputs.get(1).copied().flatten()) {
        return Err(Reject::because("the padding is not of zeros"));
    }
    let (begin, end) = spatial_pads(pad, conv)?;
    let mut window = conv.window.clone();
    window.pads_begin.iter_mut().zip(begin).for_each(|(pad, more)| *pad += more);
    window.pads_end.iter_mut().zip(end).for_each(|(pad, more)| *pad += more);
    let mut inputs = vec![Some(r.input("x")?)];
    for id in &r.root().inputs[1..] {
        let id = id.map(|id| r.new_value(id));
        inputs.push(id);
    }
    r.add_with(Op::Conv(Conv { window, groups: conv.groups }), inputs)
}

/// What is added before and after the spatial extents, if nothing is added to batch and channels.
fn spatial_pads(pad: &Pad, conv: &Conv) -> Result<(Vec<usize>, Vec<usize>), Reject> {
    let zero = (Dim::Num(0), Dim::Num(0));
    let spatial = match &pad.pads[..] {
        [batch, channels, spatial @ ..] if *batch == zero && *channels == zero => spatial,
        _ => return Err(Reject::because("batch or channels are padded")),
    };
    let numbers: Option<Vec<(usize, usize)>> =
        spatial.iter().map(|(begin, end)| Some((begin.as_num()?, end.as_num()?))).collect();
    let numbers = numbers.ok_or_else(|| Reject::because("the padding depends on the input's extents"))?;
    if numbers.len() != conv.window.pads_begin.len() {
        return Err(Reject::nothing_to_do());
    }
    Ok(numbers.into_iter().unzip())
}
