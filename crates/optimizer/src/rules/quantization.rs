//! Quantized graphs: dequantization moves towards the outputs, meets quantization and cancels, or meets products and makes integer ones of them.
//!
//! Integer products are exact: they replace products of dequantized numbers, which round. A dequantized weight whose other operand is a float stays as it is: a
//! backend reads the integers in its kernel, and folding it would quadruple the file.

use core_tensor::op::{
    Binary, Cast, Conv, ConvInteger, DequantizeLinear, Gather, Granularity, MatMul, MatMulInteger, Op, Pool, PoolKind,
    Reshape, Transpose,
};
use core_tensor::{DType, Dim, Node, Tensor, ValueId, Weight};

use super::movement::axis_index;
use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let q = |x| Pattern::node("QuantizeLinear", |op| matches!(op, Op::QuantizeLinear(_)), [x]).and_more_inputs();
    vec![
        Rule::new(
            "quantize-dequantized",
            "quantizing what was dequantized with the same parameters gives it back",
            q(dequantized().shared().named("dequantized")),
            |r| {
                let node = r.producer(r.found("dequantized")?).ok_or_else(Reject::nothing_to_do)?;
                let (Op::QuantizeLinear(quantize), Op::DequantizeLinear(dequantize)) = (&r.root().op, &node.op) else {
                    return Err(Reject::nothing_to_do());
                };
                let x = node.inputs[0].ok_or_else(Reject::nothing_to_do)?;
                if r.ty(x)?.0 != quantize.to || quantize.bits.is_some() || !quantize.to.is_int() {
                    return Err(Reject::because("the integers are of another kind"));
                }
                if quantize.granularity != dequantize.granularity || !same_parameters(r, node, r.root()) {
                    return Err(Reject::because("scale or zero point differ"));
                }
                Ok(r.new_value(x))
            },
        ),
        Rule::new(
            "dequantization",
            "(float(integers) - zero) * scale of a weight becomes DequantizeLinear",
            {
                let cast = Pattern::node(
                    "Cast",
                    |op| matches!(op, Op::Cast(Cast { to: DType::F32 })),
                    [Pattern::constant("integers")],
                );
                let shifted = Pattern::optional(cast, |cast| Pattern::sum(cast, Pattern::uniform("shift")));
                Pattern::product(shifted, Pattern::constant("scale"))
            },
            written_out,
        ),
        Rule::new(
            "gather-dequantized",
            "rows of a dequantized table are dequantized, and not the table",
            Pattern::node(
                "Gather",
                |op| matches!(op, Op::Gather(Gather { axis: 0 })),
                [
                    Pattern::node(
                        "DequantizeLinear",
                        |op| matches!(op, Op::DequantizeLinear(_)),
                        [Pattern::constant("table"), Pattern::value("scale")],
                    )
                    .and_more_inputs()
                    .shared()
                    .named("dequantized"),
                    Pattern::value("indices"),
                ],
            ),
            gather_first,
        ),
        Rule::new(
            "sink-dequantization",
            "reshape, transpose, slice and maximum of dequantized numbers work on the integers",
            Pattern::node(
                "an operator that moves elements",
                |op| {
                    matches!(
                        op,
                        Op::Reshape(_)
                            | Op::Transpose(_)
                            | Op::Slice(_)
                            | Op::Pool(Pool { kind: PoolKind::Max, indices: false, .. })
                    )
                },
                [dequantized().named("dequantized")],
            ),
            sink,
        ),
        Rule::new(
            "integer-product",
            "a product of dequantized numbers becomes one of integers, times the scales",
            Pattern::node(
                "MatMul",
                |op| matches!(op, Op::MatMul(_)),
                [dequantized().shared().named("a"), dequantized().shared().named("b")],
            ),
            integer_product,
        ),
        Rule::new(
            "integer-convolution",
            "a convolution of dequantized numbers becomes one of integers, times the scales",
            Pattern::node(
                "Conv",
                |op| matches!(op, Op::Conv(_)),
                [dequantized().shared().named("a"), dequantized().shared().named("b")],
            )
            .and_more_inputs(),
            integer_convolution,
        ),
    ]
}

fn dequantized() -> Pattern {
    Pattern::node("DequantizeLinear", |op| matches!(op, Op::DequantizeLinear(_)), [Pattern::any()]).and_more_inputs()
}

/// Whether scale and zero point of two nodes are the same values, or constants of the same bytes.
fn same_parameters(r: &Rewrite<'_, '_>, a: &Node, b: &Node) -> bool {
    (1..3).all(|at| {
        let (a, b) = (a.inputs.get(at).copied().flatten(), b.inputs.get(at).copied().flatten());
        match (a, b) {
            (Some(a), Some(b)) if a == b => true,
            (Some(a), Some(b)) => match (r.tensor(a), r.tensor(b)) {
                (Ok(a), Ok(b)) => a.dtype() == b.dtype() && a.shape() == b.shape() && a.bytes() == b.bytes(),
                _ => false,
            },
            // No zero point is one of 0.
            (Some(id), None) | (None, Some(id)) => r.number(id).is_ok_and(|number| number == 0.0),
            (None, None) => true,
        }
    })
}

fn sink(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let node = r.producer(r.found("dequantized")?).ok_or_else(Reject::nothing_to_do)?;
    let Op::DequantizeLinear(DequantizeLinear { granularity }) = node.op else { return Err(Reject::nothing_to_do()) };
    let x = node.inputs[0].ok_or_else(Reject::nothing_to_do)?;
    if r.weight(x).is_ok() {
        // A weight is read as it is stored.
        return Err(Reject::nothing_to_do());
    }
    let dtype = r.ty(x)?.0;
    let granularity = match (granularity, &r.root().op) {
        (Granularity::Tensor, op) => {
            if matches!(op, Op::Pool(_)) && (!matches!(dtype, DType::U8 | DType::I8) || !positive(r, node)) {
                return Err(Reject::because("the scale is not known to be positive, or the integers are wide"));
            }
            Granularity::Tensor
        }
        (Granularity::Axis(axis), Op::Transpose(Transpose { perm })) => {
            let axis = axis_index(axis, perm.len())?;
            let to = perm.iter().position(|from| *from == axis).ok_or_else(Reject::nothing_to_do)?;
            Granularity::Axis(to as isize)
        }
        _ => return Err(Reject::because("scales per channel do not survive this")),
    };
    let x = r.new_value(x);
    let moved = r.add(r.root().op.clone(), &[x])?;
    let mut inputs = vec![Some(moved)];
    for id in &node.inputs[1..] {
        let id = id.map(|id| r.new_value(id));
        inputs.push(id);
    }
    r.add_with(Op::DequantizeLinear(DequantizeLinear { granularity }), inputs)
}

fn positive(r: &Rewrite<'_, '_>, node: &Node) -> bool {
    node.inputs.get(1).copied().flatten().is_some_and(|id| r.number(id).is_ok_and(|scale| scale > 0.0))
}

/// `(float(integers) + shift) * scale` as one operator, where the scale is a number or one per index of an extent.
fn written_out(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let (integers, scale) = (r.found("integers")?, r.found("scale")?);
    let (dtype, scale_shape) = (r.weight(integers)?.dtype(), r.weight(scale)?.shape());
    let shape = r.weight(integers)?.shape();
    if !matches!(dtype, DType::I8 | DType::U8) || shape.is_empty() || scale_shape.len() > shape.len() {
        return Err(Reject::nothing_to_do());
    }
    let lead = shape.len() - scale_shape.len();
    let long: Vec<usize> = (0..scale_shape.len()).filter(|i| scale_shape[*i] != 1).collect();
    let (granularity, extents) = match long[..] {
        [] => (Granularity::Tensor, Vec::new()),
        [axis] if scale_shape[axis] == shape[axis + lead] => {
            (Granularity::Axis((axis + lead) as isize), vec![Dim::Num(scale_shape[axis])])
        }
        _ => return Err(Reject::because("the scales are not one per index of one extent")),
    };
    let shift = match r.found("shift") {
        Ok(shift) => r.number(shift)?,
        Err(_) => 0.0,
    };
    let zero = match (dtype, -shift) {
        (_, 0.0) => None,
        (DType::U8, zero) if zero.fract() == 0.0 && (0.0..=255.0).contains(&zero) => Some(zero),
        (DType::I8, zero) if zero.fract() == 0.0 && (-128.0..=127.0).contains(&zero) => Some(zero),
        (_, zero) => return Err(Reject::because(format!("{zero} is no zero point of {dtype}"))),
    };
    let mut inputs =
        vec![Some(r.new_value(integers)), Some(r.fold(&Op::Reshape(Reshape { shape: extents.clone() }), &[scale])?)];
    if let Some(zero) = zero {
        let count = extents.first().and_then(Dim::as_num).unwrap_or(1);
        let shape: Vec<usize> = extents.iter().filter_map(Dim::as_num).collect();
        let bytes = vec![if dtype == DType::U8 { zero as u8 } else { (zero as i8) as u8 }; count];
        let tensor = Tensor::from_bytes(dtype, &shape, &bytes).map_err(|error| Reject::because(error.to_string()))?;
        inputs.push(Some(r.add_weight("zero point", Weight::stored(tensor))));
    }
    r.add_with(Op::DequantizeLinear(DequantizeLinear { granularity }), inputs)
}

fn gather_first(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let node = r.producer(r.found("dequantized")?).ok_or_else(Reject::nothing_to_do)?;
    let Op::DequantizeLinear(DequantizeLinear { granularity }) = node.op else { return Err(Reject::nothing_to_do()) };
    let (table, scale, indices) = (r.found("table")?, r.found("scale")?, r.found("indices")?);
    let zero = node.inputs.get(2).copied().flatten();
    let rank = r.shape(table)?.len();
    let (new_table, new_scale, new_indices) = (r.new_value(table), r.new_value(scale), r.new_value(indices));
    let rows = r.add(Op::Gather(Gather { axis: 0 }), &[new_table, new_indices])?;
    let axis = match granularity {
        Granularity::Tensor => None,
        Granularity::Axis(axis) => Some(axis_index(axis, rank)?),
        Granularity::Blocks { .. } => return Err(Reject::because("the scales are those of blocks")),
    };
    if axis != Some(0) {
        let lead = r.shape(indices)?.len();
        let granularity = axis.map_or(Granularity::Tensor, |axis| Granularity::Axis((axis + lead - 1) as isize));
        let zero = zero.map(|zero| r.new_value(zero));
        let mut inputs = vec![Some(rows), Some(new_scale)];
        inputs.extend(zero.map(Some));
        return r.add_with(Op::DequantizeLinear(DequantizeLinear { granularity }), inputs);
    }
    if zero.is_some_and(|zero| r.number(zero).is_err() || r.number(zero) != Ok(0.0)) {
        return Err(Reject::because("rows have zero points of their own"));
    }
    // A scale per row: it is gathered, too.
    let mut shape = r.shape(indices)?.to_vec();
    shape.extend((1..rank).map(|_| Dim::Num(1)));
    let scales = r.add(Op::Gather(Gather { axis: 0 }), &[new_scale, new_indices])?;
    let scales = r.reshape(scales, &shape)?;
    let rows = r.add(Op::Cast(Cast { to: DType::F32 }), &[rows])?;
    r.add(Op::Binary(Binary::Mul), &[rows, scales])
}

/// Integers with their parameters.
struct Quantized {
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    granularity: Granularity,
    rank: usize,
}

fn quantized(r: &Rewrite<'_, '_>, name: &str) -> Result<Quantized, Reject> {
    let node = r.producer(r.found(name)?).ok_or_else(Reject::nothing_to_do)?;
    let Op::DequantizeLinear(DequantizeLinear { granularity }) = node.op else { return Err(Reject::nothing_to_do()) };
    let [Some(x), Some(scale), ..] = node.inputs[..] else { return Err(Reject::nothing_to_do()) };
    let (dtype, shape) = r.ty(x)?;
    if !matches!(dtype, DType::U8 | DType::I8) {
        return Err(Reject::because(format!("{name} is {dtype}, integer products take u8 and i8")));
    }
    let zero = node.inputs.get(2).copied().flatten();
    Ok(Quantized { x, scale, zero, granularity, rank: shape.len() })
}

/// The product of two scales as f32 of a shape that broadcasts against the result: one number, or one per output channel at `axis` of `rank`.
fn joint_scale(
    r: &mut Rewrite<'_, '_>,
    a: &Quantized,
    b: &Quantized,
    channels: Option<(usize, usize)>,
) -> Result<ValueId, Reject> {
    let (a, b) = (r.new_value(a.scale), r.new_value(b.scale));
    let a = r.reshape(a, &[Dim::Num(1)])?;
    let b = match channels {
        None => r.reshape(b, &[Dim::Num(1)])?,
        Some((axis, rank)) => {
            let n = r.new_shape(b)?.first().cloned().ok_or_else(Reject::nothing_to_do)?;
            let mut shape = vec![Dim::Num(1); rank];
            shape[axis] = n;
            r.reshape(b, &shape)?
        }
    };
    r.add(Op::Binary(Binary::Mul), &[a, b])
}

/// The largest sum of products of two bytes that an i32 holds.
const MOST_PRODUCTS: usize = i32::MAX as usize / (255 * 255);

fn integer_product(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let Op::MatMul(MatMul { transpose_b }) = r.root().op else { return Err(Reject::nothing_to_do()) };
    let (a, b) = (quantized(r, "a")?, quantized(r, "b")?);
    if a.granularity != Granularity::Tensor {
        return Err(Reject::because("the activations have more than one scale"));
    }
    let k = r.shape(a.x)?.last().and_then(Dim::as_num);
    if k.is_none_or(|k| k > MOST_PRODUCTS) {
        return Err(Reject::because("the sums might not fit into 32 bits"));
    }
    let columns = if transpose_b { b.rank.checked_sub(2) } else { b.rank.checked_sub(1) };
    let per_column = match b.granularity {
        Granularity::Tensor => false,
        Granularity::Axis(axis) if b.rank == 2 && axis_index(axis, b.rank).ok() == columns => true,
        _ => return Err(Reject::because("the weights' scales are not one per column of the product")),
    };
    let x = r.new_value(a.x);
    let mut w = r.new_value(b.x);
    if transpose_b {
        let mut perm: Vec<usize> = (0..b.rank).collect();
        perm.swap(b.rank - 1, b.rank - 2);
        w = r.transpose(w, &perm)?;
    }
    let out_rank = r.shape(r.root().outputs[0])?.len();
    let scale = joint_scale(r, &a, &b, per_column.then(|| (out_rank - 1, out_rank)))?;
    let mut inputs = vec![Some(x), Some(w)];
    zero_points(r, &a, &b, &mut inputs)?;
    let y = r.add_with(Op::MatMulInteger(MatMulInteger), inputs)?;
    let y = r.add(Op::Cast(Cast { to: DType::F32 }), &[y])?;
    r.add(Op::Binary(Binary::Mul), &[y, scale])
}

/// Zero points as optional inputs: that of the activations as a scalar.
fn zero_points(
    r: &mut Rewrite<'_, '_>,
    a: &Quantized,
    b: &Quantized,
    inputs: &mut Vec<Option<ValueId>>,
) -> Result<(), Reject> {
    let zero = match a.zero {
        Some(zero) => {
            let zero = r.new_value(zero);
            Some(r.reshape(zero, &[])?)
        }
        None => None,
    };
    inputs.push(zero);
    let zero = match b.zero {
        Some(zero) => {
            let new = r.new_value(zero);
            Some(if b.granularity == Granularity::Tensor { r.reshape(new, &[])? } else { new })
        }
        None => None,
    };
    inputs.push(zero);
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    Ok(())
}

fn integer_convolution(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let Op::Conv(Conv { window, groups }) = &r.root().op else { return Err(Reject::nothing_to_do()) };
    let (a, b) = (quantized(r, "a")?, quantized(r, "b")?);
    if a.granularity != Granularity::Tensor {
        return Err(Reject::because("the activations have more than one scale"));
    }
    let per_channel = match b.granularity {
        Granularity::Tensor => false,
        Granularity::Axis(axis) if axis_index(axis, b.rank).ok() == Some(0) => true,
        _ => return Err(Reject::because("the weights' scales are not one per output channel")),
    };
    let kernel: Option<Vec<usize>> = r.shape(b.x)?.iter().skip(1).map(Dim::as_num).collect();
    if kernel.is_none_or(|kernel| kernel.iter().product::<usize>() > MOST_PRODUCTS) {
        return Err(Reject::because("the sums might not fit into 32 bits"));
    }
    let op = Op::ConvInteger(ConvInteger { window: window.clone(), groups: *groups });
    let mut inputs = vec![Some(r.new_value(a.x)), Some(r.new_value(b.x))];
    let scale = joint_scale(r, &a, &b, per_channel.then_some((1, a.rank)))?;
    zero_points(r, &a, &b, &mut inputs)?;
    let y = r.add_with(op, inputs)?;
    let y = r.add(Op::Cast(Cast { to: DType::F32 }), &[y])?;
    let y = r.add(Op::Binary(Binary::Mul), &[y, scale])?;
    let Some(bias) = r.root().inputs.get(2).copied().flatten() else { return Ok(y) };
    let bias = r.new_value(bias);
    let mut shape = vec![Dim::Num(1); a.rank];
    shape[1] = r.new_shape(bias)?.first().cloned().ok_or_else(Reject::nothing_to_do)?;
    let bias = r.add(Op::Reshape(Reshape { shape }), &[bias])?;
    r.add(Op::Binary(Binary::Add), &[y, bias])
}
