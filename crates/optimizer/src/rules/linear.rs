//! Products with weights: transposes and factors go into them.
//!
//! A product followed by a bias, an activation or a sum stays as nodes of its own: each backend's own fusion makes an epilogue of them, and joins products
//! over the same input (query, key and value).

use std::sync::Arc;

use core_tensor::op::{MatMul, Op, Transpose};
use core_tensor::{DType, Tensor, ValueId, Weight};

use super::movement::transpose;
use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let x = || Pattern::value("x");
    let product = |x, w| Pattern::node("MatMul", |op| matches!(op, Op::MatMul(_)), [x, w]);
    vec![
        Rule::new(
            "transposed-operand",
            "a product with a transposed second operand reads it as it is stored",
            product(x(), transpose(Pattern::value("b")).shared().named("moved")),
            |r| {
                let Op::MatMul(MatMul { transpose_b }) = r.root().op else { return Err(Reject::nothing_to_do()) };
                let (b, moved) = (r.found("b")?, r.found("moved")?);
                let perm = match r.producer(moved).map(|node| &node.op) {
                    Some(Op::Transpose(Transpose { perm })) => perm.clone(),
                    _ => return Err(Reject::nothing_to_do()),
                };
                let rank = perm.len();
                // The extent that runs fastest is to be the last one in the operand, too.
                if rank < 2 || perm[rank - 2] != rank - 1 {
                    return Err(Reject::nothing_to_do());
                }
                let mut swapped = perm;
                swapped.swap(rank - 2, rank - 1);
                let mut operand = r.new_value(b);
                if !swapped.is_sorted() {
                    operand = r.transpose(operand, &swapped)?;
                }
                let x = r.input("x")?;
                r.add(Op::MatMul(MatMul { transpose_b: !transpose_b }), &[x, operand])
            },
        ),
        Rule::new(
            "product-scale",
            "a product with a weight, times a constant, has the constant in its weight",
            Pattern::product(product(x(), Pattern::constant("w")).named("product"), Pattern::constant("scale")),
            |r| {
                let (x, w, scale) = (r.found("x")?, r.found("w")?, r.found("scale")?);
                let op = operator(r)?;
                let w = scaled(r, op, w, scale)?;
                let x = r.new_value(x);
                r.add(Op::MatMul(op), &[x, w])
            },
        ),
        Rule::new(
            "product-bias-scale",
            "(product + bias) times a constant has the constant in weight and bias",
            Pattern::product(
                Pattern::sum(product(x(), Pattern::constant("w")).named("product"), Pattern::constant("bias")),
                Pattern::constant("scale"),
            ),
            |r| {
                let (x, w, bias, scale) = (r.found("x")?, r.found("w")?, r.found("bias")?, r.found("scale")?);
                let op = operator(r)?;
                let bias = r.fold(&Op::Binary(core_tensor::op::Binary::Mul), &[bias, scale])?;
                let w = scaled(r, op, w, scale)?;
                let x = r.new_value(x);
                let product = r.add(Op::MatMul(op), &[x, w])?;
                r.add(Op::Binary(core_tensor::op::Binary::Add), &[product, bias])
            },
        ),
    ]
}

fn operator(r: &Rewrite<'_, '_>) -> Result<MatMul, Reject> {
    match r.producer(r.found("product")?).map(|node| &node.op) {
        Some(Op::MatMul(op)) => Ok(*op),
        _ => Err(Reject::nothing_to_do()),
    }
}

/// A weight with a factor for all, or one for each column of the product.
fn scaled(r: &mut Rewrite<'_, '_>, op: MatMul, w: ValueId, scale: ValueId) -> Result<ValueId, Reject> {
    let weight: Arc<Weight> = r.weight(w)?.clone();
    let name = r.graph().value(w).name.clone();
    let [rows, cols] = *weight.shape() else { return Err(Reject::because("the weight is no matrix")) };
    if weight.dtype() != DType::F32 {
        return Err(Reject::because(format!("weights of {} stay as they are stored", weight.dtype())));
    }
    if r.uses(w) > 1 {
        return Err(Reject::because("the weight is used elsewhere, too"));
    }
    let factor = r.weight(scale)?.clone();
    if factor.shape().iter().product::<usize>() == 1 {
        let factor = r.number(scale)?;
        return Ok(r.add_weight(&name, weight.scale(factor)));
    }
    let columns = if op.transpose_b { rows } else { cols };
    let vector = factor.shape().split_last().is_some_and(|(n, rest)| *n == columns && rest.iter().all(|n| *n == 1));
    if !vector || factor.dtype() != DType::F32 {
        return Err(Reject::because("the factor is neither a number nor one per column"));
    }
    let unreadable = |error: core_tensor::TensorError| Reject::because(error.to_string());
    let factors = r.tensor(scale)?.to_f32().map_err(unreadable)?;
    let mut values = r.tensor(w)?.to_f32().map_err(unreadable)?;
    for (i, value) in values.iter_mut().enumerate() {
        *value *= factors[if op.transpose_b { i / cols } else { i % cols }];
    }
    let tensor = Tensor::from_slice(&[rows, cols], &values).map_err(unreadable)?;
    Ok(r.add_weight(&name, Weight::stored(tensor)))
}
