//! Normalizations from the primitives that exporters write.

use core_tensor::op::{
    Binary, GroupNormalization, LayerNormalization, Op, Reduce, ReduceKind, RmsNormalization, Unary,
};
use core_tensor::{Dim, ValueId};

use super::movement::reshape;
use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let x = || Pattern::value("x");
    vec![
        Rule::new(
            "mean",
            "a sum times 1/n becomes a mean",
            Pattern::product(
                Pattern::node("ReduceSum", |op| matches!(op, Op::Reduce(Reduce { kind: ReduceKind::Sum })), [x()]),
                Pattern::uniform("factor"),
            ),
            |r| {
                let (x, factor) = (r.found("x")?, r.found("factor")?);
                let (n, factor) = (last_extent(r, x)? as f32, r.number(factor)?);
                if (factor * n - 1.0).abs() > 1e-6 {
                    return Err(Reject::nothing_to_do());
                }
                let x = r.new_value(x);
                r.add(Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x])
            },
        ),
        Rule::new(
            "layer-norm-by-moments",
            "(x - mean) w / sqrt(mean(x²) - mean² + ε) becomes LayerNormalization (Flax's form)",
            Pattern::product(
                Pattern::binary(Binary::Sub, x(), mean(x()).named("mean")),
                Pattern::binary(Binary::Div, Pattern::constant("w"), Pattern::unary(Unary::Sqrt, moments())),
            ),
            |r| {
                let (x, w, epsilon) = (r.found("x")?, r.found("w")?, epsilon(r)?);
                let w = vector(r, x, w)?;
                let x = r.new_value(x);
                r.add(Op::LayerNormalization(LayerNormalization { epsilon }), &[x, w])
            },
        ),
        Rule::new(
            "layer-norm",
            "(x - mean) / sqrt(variance + ε) over the last extent becomes LayerNormalization",
            over_root_of_mean_square(&deviation()),
            |r| {
                let (x, epsilon) = (r.input("x")?, epsilon(r)?);
                r.add(Op::LayerNormalization(LayerNormalization { epsilon }), &[x])
            },
        ),
        Rule::new(
            "layer-norm-as-batch-norm",
            "x * r + (b - mean * r), where r = w / sqrt(variance + ε), becomes LayerNormalization (TensorFlow's form)",
            tensorflow_layer_norm(),
            |r| {
                let epsilon = epsilon(r)?;
                let (x, w, b) = (r.found("x")?, r.found("w")?, r.found("b")?);
                let (w, b) = (vector(r, x, w)?, vector(r, x, b)?);
                let x = r.new_value(x);
                r.add(Op::LayerNormalization(LayerNormalization { epsilon }), &[x, w, b])
            },
        ),
        Rule::new(
            "layer-norm-weight",
            "LayerNormalization without weight, times a vector, gets the weight",
            Pattern::product(norm("LayerNormalization", &[1]), Pattern::value("w")),
            |r| with_weight(r, vector),
        ),
        Rule::new(
            "layer-norm-bias",
            "LayerNormalization without bias, plus a vector, gets the bias",
            Pattern::sum(norm("LayerNormalization", &[1, 2]), Pattern::value("b")),
            |r| with_bias(r, vector),
        ),
        Rule::new(
            "rms-norm",
            "x / sqrt(mean(x²) + ε) over the last extent becomes RmsNormalization",
            over_root_of_mean_square(&x()),
            |r| {
                let (x, epsilon) = (r.found("x")?, epsilon(r)?);
                let n = last_extent(r, x)?;
                if n.saturating_mul(4) > r.growth() {
                    return Err(Reject::because(format!("a weight of {n} ones would exceed the budget")));
                }
                let ones = r.add_constant("ones", &[n], &vec![1.0; n])?;
                let x = r.new_value(x);
                r.add(Op::RmsNormalization(RmsNormalization { epsilon }), &[x, ones])
            },
        ),
        Rule::new(
            "rms-norm-weight",
            "RmsNormalization with a weight of ones, times a vector, gets the weight",
            Pattern::product(
                Pattern::node(
                    "RmsNormalization",
                    |op| matches!(op, Op::RmsNormalization(_)),
                    [x(), Pattern::scalar(1.0)],
                )
                .named("norm"),
                Pattern::value("w"),
            ),
            |r| {
                let node = inner(r)?;
                let (x, w) = (r.found("x")?, r.found("w")?);
                let w = vector(r, x, w)?;
                let x = r.new_value(x);
                r.add(node.op.clone(), &[x, w])
            },
        ),
        Rule::new(
            "group-norm",
            "an instance normalization over reshaped groups becomes GroupNormalization",
            reshape(
                Pattern::node(
                    "GroupNormalization",
                    |op| matches!(op, Op::GroupNormalization(_)),
                    [reshape(x()).named("grouped")],
                )
                .and_more_inputs()
                .named("norm"),
            ),
            group_norm,
        ),
        Rule::new(
            "group-norm-weight",
            "GroupNormalization without weight, times a number per channel, gets the weight",
            Pattern::product(norm("GroupNormalization", &[1]), Pattern::constant("w")),
            |r| with_weight(r, per_channel),
        ),
        Rule::new(
            "group-norm-bias",
            "GroupNormalization without bias, plus a number per channel, gets the bias",
            Pattern::sum(norm("GroupNormalization", &[1, 2]), Pattern::constant("b")),
            |r| with_bias(r, per_channel),
        ),
    ]
}

fn mean(x: Pattern) -> Pattern {
    Pattern::node("ReduceMean", |op| matches!(op, Op::Reduce(Reduce { kind: ReduceKind::Mean })), [x])
}

/// `x - mean(x)`
fn deviation() -> Pattern {
    Pattern::binary(Binary::Sub, Pattern::value("x"), mean(Pattern::value("x"))).named("deviation")
}

/// `y / sqrt(mean(y²) + ε)` in the ways in which it is written.
fn over_root_of_mean_square(y: &Pattern) -> Pattern {
    let root = Pattern::unary(Unary::Sqrt, mean_square_and_epsilon(y));
    Pattern::either([
        Pattern::binary(Binary::Div, y.clone(), root.clone()),
        Pattern::product(y.clone(), Pattern::unary(Unary::Reciprocal, root)),
    ])
}

fn mean_square_and_epsilon(y: &Pattern) -> Pattern {
    Pattern::sum(mean(Pattern::square(y)), Pattern::uniform("epsilon"))
}

/// `mean(x²) - mean(x)² + ε`, perhaps kept from falling below 0.
fn moments() -> Pattern {
    let x = Pattern::value("x");
    let mean_x = Pattern::either([mean(x.clone()).named("mean"), Pattern::value("mean")]);
    let variance = Pattern::binary(Binary::Sub, mean(Pattern::square(&x)), Pattern::square(&mean_x));
    let variance = Pattern::optional(variance, |variance| Pattern::unary(Unary::Relu, variance));
    Pattern::sum(variance, Pattern::uniform("epsilon"))
}

fn tensorflow_layer_norm() -> Pattern {
    let (x, mean) = (Pattern::value("x"), mean(Pattern::value("x")).named("mean"));
    let deviation = Pattern::binary(Binary::Sub, x.clone(), mean.clone());
    let either_sign = Pattern::either([deviation, Pattern::binary(Binary::Sub, mean.clone(), x.clone())]);
    let root = Pattern::unary(Unary::Sqrt, mean_square_and_epsilon(&either_sign.named("deviation")));
    let w = || Pattern::constant("w");
    let r = Pattern::either([
        Pattern::product(Pattern::unary(Unary::Reciprocal, root.clone()), w()),
        Pattern::binary(Binary::Div, w(), root),
    ])
    .named("r");
    Pattern::sum(
        Pattern::product(x, r),
        Pattern::binary(Binary::Sub, Pattern::constant("b"), Pattern::product(mean, Pattern::value("r"))),
    )
}

/// A normalization with as many inputs as one of `counts`: what it lacks can be added.
fn norm(what: &'static str, counts: &[usize]) -> Pattern {
    let inputs = |count: usize| (0..count).map(|_| Pattern::any()).collect::<Vec<_>>();
    let all = counts.iter().map(|count| Pattern::node(what, move |op| op.name() == what, inputs(*count)));
    Pattern::either(all).named("norm")
}

/// Brings a factor or summand of `x` into the form that a normalization takes.
type Bring = fn(&mut Rewrite<'_, '_>, ValueId, ValueId) -> Result<ValueId, Reject>;

/// The normalization found, which has no weight, with `w`.
fn with_weight(r: &mut Rewrite<'_, '_>, bring: Bring) -> Result<ValueId, Reject> {
    let node = inner(r)?;
    let [Some(x)] = node.inputs[..] else { return Err(Reject::nothing_to_do()) };
    let w = r.found("w")?;
    let w = bring(r, x, w)?;
    let x = r.new_value(x);
    r.add(node.op.clone(), &[x, w])
}

/// The normalization found, which has no bias, with `b`.
fn with_bias(r: &mut Rewrite<'_, '_>, bring: Bring) -> Result<ValueId, Reject> {
    let node = inner(r)?;
    let (x, w) = match node.inputs[..] {
        [Some(x)] => (x, None),
        [Some(x), w] => (x, w),
        _ => return Err(Reject::nothing_to_do()),
    };
    let b = r.found("b")?;
    let b = bring(r, x, b)?;
    let inputs = vec![Some(r.new_value(x)), w.map(|w| r.new_value(w)), Some(b)];
    r.add_with(node.op.clone(), inputs)
}

fn inner<'a>(r: &Rewrite<'a, '_>) -> Result<&'a core_tensor::Node, Reject> {
    r.producer(r.found("norm")?).ok_or_else(Reject::nothing_to_do)
}

fn epsilon(r: &Rewrite<'_, '_>) -> Result<f32, Reject> {
    let epsilon = r.number(r.found("epsilon")?)?;
    if epsilon < 0.0 || !epsilon.is_finite() {
        return Err(Reject::because(format!("ε is {epsilon}")));
    }
    Ok(epsilon)
}

fn last_extent(r: &Rewrite<'_, '_>, x: ValueId) -> Result<usize, Reject> {
    let last = r.shape(x)?.last().and_then(Dim::as_num);
    last.ok_or_else(|| Reject::because("the last extent is not known"))
}

/// A value as a vector along x's last extent, if that is what broadcasting makes of it.
fn vector(r: &mut Rewrite<'_, '_>, x: ValueId, w: ValueId) -> Result<ValueId, Reject> {
    let n = last_extent(r, x)?;
    let (dtype, shape) = r.ty(w)?;
    if dtype != core_tensor::DType::F32 {
        return Err(Reject::because(format!("the factor or summand is {dtype}")));
    }
    let is_vector = shape.split_last().is_some_and(|(last, rest)| {
        *last == Dim::Num(n)
            && rest.iter().all(|dim| *dim == Dim::Num(1))
            && shape.len() <= r.shape(x).map_or(0, <[Dim]>::len)
    });
    if !is_vector {
        return match r.weight(w) {
            Ok(_) => Err(Reject::because("the factor or summand is no vector along the last extent")),
            Err(_) => Err(Reject::nothing_to_do()),
        };
    }
    let new = r.new_value(w);
    r.reshape(new, &[Dim::Num(n)])
}

/// A constant as a vector over channels (extent 1 of x), if that is what broadcasting makes of it.
pub(crate) fn per_channel(r: &mut Rewrite<'_, '_>, x: ValueId, w: ValueId) -> Result<ValueId, Reject> {
    let rank = r.shape(x)?.len();
    let channels = r.shape(x)?.get(1).and_then(Dim::as_num);
    let channels = channels.ok_or_else(|| Reject::because("the number of channels is not known"))?;
    let values = channel_values(r, rank, channels, w)?;
    let name = r.graph().value(w).name.clone();
    r.add_constant(&name, &[channels], &values)
}

/// The numbers per channel that a constant is against a value `[batch, channels, ...]` of a rank.
pub(crate) fn channel_values(
    r: &Rewrite<'_, '_>,
    rank: usize,
    channels: usize,
    constant: ValueId,
) -> Result<Vec<f32>, Reject> {
    let weight = r.weight(constant)?;
    let shape = weight.shape();
    if weight.dtype() != core_tensor::DType::F32 || shape.len() > rank {
        return Err(Reject::because("the constant is not f32 or has more extents"));
    }
    let first = rank - shape.len();
    let fits = shape.iter().enumerate().all(|(i, n)| *n == 1 || (i + first == 1 && *n == channels));
    if !fits {
        return Err(Reject::because(format!("the constant {shape:?} is not one number per channel")));
    }
    let values = r.tensor(constant)?.to_f32().map_err(|error| Reject::because(error.to_string()))?;
    Ok(if values.len() == 1 { vec![values[0]; channels] } else { values })
}

fn group_norm(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let (x, grouped, node) = (r.found("x")?, r.found("grouped")?, inner(r)?);
    let Op::GroupNormalization(GroupNormalization { groups, epsilon }) = node.op else {
        return Err(Reject::nothing_to_do());
    };
    let (shape, inner_shape) = (r.shape(x)?, r.shape(grouped)?);
    if r.shape(r.root().outputs[0])? != shape {
        return Err(Reject::because("the shape afterwards is another than before"));
    }
    let ([batch, Dim::Num(channels), ..], [inner_batch, Dim::Num(inner_channels), ..]) = (shape, inner_shape) else {
        return Err(Reject::because("the number of channels is not known"));
    };
    if batch != inner_batch || *inner_channels != groups || groups == 0 || !channels.is_multiple_of(groups) {
        return Err(Reject::because("the groups do not divide the channels"));
    }
    let neutral = |at: usize, number: f32| match node.inputs.get(at).copied().flatten() {
        None => true,
        Some(id) => r.number(id).is_ok_and(|found| found == number),
    };
    if !neutral(1, 1.0) || !neutral(2, 0.0) {
        return Err(Reject::because("the groups have weights of their own"));
    }
    let x = r.new_value(x);
    r.add(Op::GroupNormalization(GroupNormalization { groups, epsilon }), &[x])
}
