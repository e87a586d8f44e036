//! Transposes and reshapes.

use core_tensor::op::{Op, Pad, PadMode, Unary};
use core_tensor::{Dim, Tensor};

use crate::graphs::{Build, dims, operators, optimized, sym};

#[test]
fn transposes_around_elementwise_operators_cancel() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), 4.into(), 5.into(), 3.into()]);
    let y = b.input(&[sym("batch"), 4.into(), 5.into(), 3.into()]);
    let bias = b.weight(&[3, 1, 1]);
    let t = b.transpose(x, &[0, 3, 1, 2]);
    let u = b.transpose(y, &[0, 3, 1, 2]);
    let t = b.add(t, bias);
    let t = b.unary(Unary::Relu, t);
    let t = b.add(t, u);
    let t = b.transpose(t, &[0, 2, 3, 1]);
    insta::assert_snapshot!(optimized(b.output(t)).0);
}

#[test]
fn a_constant_matrix_is_transposed_with_its_operand() {
    let mut b = Build::new();
    let x = b.input(&dims(&[4, 3]));
    let c = b.weight(&[3, 4]);
    let t = b.transpose(x, &[1, 0]);
    let t = b.mul(c, t);
    let t = b.transpose(t, &[1, 0]);
    assert_eq!(operators(b.output(t)), "Mul");
}

#[test]
fn reshapes_sink_past_biases_and_cancel() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), sym("tokens"), 4.into()]);
    let w = b.weight(&[4, 6]);
    let bias = b.weight(&[6]);
    let y = b.matmul(x, w);
    let y = b.reshape(y, &[sym("batch").mul(sym("tokens")), 6.into()]);
    let y = b.add(y, bias);
    let y = b.unary(Unary::Tanh, y);
    let y = b.reshape(y, &[sym("batch"), sym("tokens"), 6.into()]);
    assert_eq!(operators(b.output(y)), "MatMul Add Tanh");
}

#[test]
fn a_transpose_of_single_extents_becomes_a_reshape() {
    let mut b = Build::new();
    let x = b.input(&[sym("tokens"), 1.into(), 4.into()]);
    let y = b.transpose(x, &[1, 0, 2]);
    assert_eq!(operators(b.output(y)), "Reshape");
}

#[test]
fn what_a_reshape_merges_is_transposed_before() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), 2.into(), sym("tokens"), 4.into()]);
    let y = b.reshape(x, &[sym("batch").mul(2.into()), sym("tokens"), 4.into()]);
    let y = b.transpose(y, &[0, 2, 1]);
    let y = b.reshape(y, &[sym("batch"), 2.into(), 4.into(), sym("tokens")]);
    let y = b.transpose(y, &[0, 1, 3, 2]);
    let y = b.unary(Unary::Exp, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn transposes_sink_past_slices_padding_and_concatenations() {
    let mut b = Build::new();
    let x = b.input(&dims(&[1, 4, 6, 3]));
    let y = b.input(&dims(&[1, 4, 6, 3]));
    let (t, u) = (b.transpose(x, &[0, 3, 1, 2]), b.transpose(y, &[0, 3, 1, 2]));
    let joined = b.concat(1, &[t, u]);
    let part = b.slice(joined, 3, 1, 5);
    let none = || (Dim::Num(0), Dim::Num(0));
    let pads = vec![none(), none(), (1.into(), 2.into()), (0.into(), 1.into())];
    let padded = b.op(Op::Pad(Pad { pads, mode: PadMode::Constant }), &[part]);
    let back = b.transpose(padded, &[0, 2, 3, 1]);
    assert_eq!(operators(b.output(back)), "Concat Slice Pad");
}

#[test]
fn an_expansion_that_broadcasting_makes_unnecessary_goes() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let y = b.input(&[1.into(), 4.into()]);
    let wide = b.expand(y, &[sym("rows"), 4.into()]);
    let z = b.add(x, wide);
    assert_eq!(operators(b.output(z)), "Add");
}

#[test]
fn an_expansion_that_makes_the_shape_stays() {
    let mut b = Build::new();
    let x = b.input(&dims(&[1, 4]));
    let y = b.input(&dims(&[1, 4]));
    let wide = b.expand(y, &dims(&[5, 4]));
    let z = b.add(x, wide);
    assert_eq!(operators(b.output(z)), "Expand Add");
}

#[test]
fn joined_projections_that_are_gathered_apart_are_sliced() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), sym("tokens"), 3.into(), 2.into(), 4.into()]);
    let t = b.transpose(x, &[2, 0, 3, 1, 4]);
    let parts: Vec<_> = [0i64, 1, -1]
        .iter()
        .map(|index| {
            let index = b.tensor(Tensor::from_slice(&[], &[*index]).unwrap());
            b.gather(t, index)
        })
        .collect();
    let y = b.add(parts[0], parts[1]);
    let y = b.mul(y, parts[2]);
    let y = b.transpose(y, &[0, 2, 1, 3]);
    assert_eq!(operators(b.output(y)), "Slice Slice Slice Add Mul Reshape");
}
