//! Normalizations.

use core_tensor::ValueId;
use core_tensor::op::{Binary, GroupNormalization, Op, ReduceKind, Unary};

use crate::graphs::{Build, dims, operators, optimized, sym};

/// As PyTorch exports it below opset 17.
fn layer_norm(b: &mut Build, x: ValueId, n: usize) -> ValueId {
    let mean = b.mean(x);
    let d = b.sub(x, mean);
    let square = b.pow(d, 2.0);
    let variance = b.mean(square);
    let epsilon = b.number(1e-5);
    let sum = b.add(variance, epsilon);
    let root = b.unary(Unary::Sqrt, sum);
    let y = b.div(d, root);
    let (w, bias) = (b.weight(&[n]), b.weight(&[n]));
    let y = b.mul(y, w);
    b.add(y, bias)
}

#[test]
fn layer_norm_of_pytorch_is_found() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), sym("tokens"), 8.into()]);
    let y = layer_norm(&mut b, x, 8);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn layer_norm_of_tensorflow_is_found() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), sym("tokens"), 8.into()]);
    let mean = b.mean(x);
    let d = b.sub(x, mean);
    let square = b.mul(d, d);
    let variance = b.mean(square);
    let epsilon = b.number(1e-6);
    let sum = b.add(epsilon, variance);
    let root = b.unary(Unary::Sqrt, sum);
    let over = b.unary(Unary::Reciprocal, root);
    let (w, bias) = (b.weight(&[8]), b.weight(&[8]));
    let r = b.mul(over, w);
    let scaled = b.mul(x, r);
    let shift = b.mul(mean, r);
    let rest = b.sub(bias, shift);
    let y = b.add(scaled, rest);
    assert_eq!(operators(b.output(y)), "LayerNormalization");
}

#[test]
fn layer_norm_of_flax_is_found() {
    let mut b = Build::new();
    let x = b.input(&[sym("tokens"), 8.into()]);
    let eighth = b.number(0.125);
    let sum = b.reduce(ReduceKind::Sum, x);
    let mean = b.mul(sum, eighth);
    let square = b.mul(x, x);
    let squares = b.reduce(ReduceKind::Sum, square);
    let squares = b.mul(squares, eighth);
    let of_mean = b.mul(mean, mean);
    let variance = b.sub(squares, of_mean);
    let zero = b.number(0.0);
    let variance = b.binary(Binary::Max, variance, zero);
    let epsilon = b.number(1e-6);
    let sum = b.add(variance, epsilon);
    let root = b.unary(Unary::Sqrt, sum);
    let over = b.unary(Unary::Reciprocal, root);
    let (w, bias) = (b.weight(&[8]), b.weight(&[8]));
    let scale = b.mul(over, w);
    let d = b.sub(x, mean);
    let y = b.mul(d, scale);
    let y = b.add(y, bias);
    assert_eq!(operators(b.output(y)), "LayerNormalization");
}

#[test]
fn layer_norm_with_reduced_extents_that_come_back_is_found() {
    let mut b = Build::new();
    let x = b.input(&[sym("tokens"), 8.into()]);
    let mean = b.mean(x);
    let flat = b.reshape(mean, &[sym("tokens")]);
    let mean = b.reshape(flat, &[sym("tokens"), 1.into()]);
    let d = b.sub(x, mean);
    let square = b.mul(d, d);
    let variance = b.mean(square);
    let flat = b.reshape(variance, &[sym("tokens")]);
    let variance = b.reshape(flat, &[sym("tokens"), 1.into()]);
    let epsilon = b.number(1e-6);
    let sum = b.add(variance, epsilon);
    let y = b.pow(sum, -0.5);
    let y = b.mul(y, d);
    assert_eq!(operators(b.output(y)), "LayerNormalization");
}

#[test]
fn rms_norm_is_found_with_its_weight_on_either_side() {
    for left in [false, true] {
        let mut b = Build::new();
        let x = b.input(&[sym("tokens"), 8.into()]);
        let square = b.pow(x, 2.0);
        let mean = b.mean(square);
        let epsilon = b.number(1e-6);
        let sum = b.add(mean, epsilon);
        let root = b.unary(Unary::Sqrt, sum);
        let one = b.number(1.0);
        let over = b.div(one, root);
        let y = b.mul(x, over);
        let w = b.weight(&[8]);
        let y = if left { b.mul(w, y) } else { b.mul(y, w) };
        assert_eq!(operators(b.output(y)), "RMSNormalization");
    }
}

#[test]
fn a_normalization_over_the_variance_of_something_else_stays() {
    let mut b = Build::new();
    let (x, z) = (b.input(&[sym("tokens"), 8.into()]), b.input(&[sym("tokens"), 8.into()]));
    let square = b.pow(z, 2.0);
    let mean = b.mean(square);
    let epsilon = b.number(1e-6);
    let sum = b.add(mean, epsilon);
    let root = b.unary(Unary::Sqrt, sum);
    let y = b.div(x, root);
    let (text, report) = optimized(b.output(y));
    assert!(!text.contains("RMSNormalization"), "{text}");
    assert_eq!(
        report.rule("rms-norm").unwrap().near_misses[0].reason,
        "5 of 5 nodes are there, then x is expected and \"x1\" found"
    );
}

#[test]
fn group_norm_by_instance_norm_is_found() {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), 6.into(), 4.into(), 4.into()]);
    let y = b.reshape(x, &[sym("batch"), 2.into(), 48.into()]);
    let (ones, zeros) = (b.constant(&[2], &[1.0, 1.0]), b.constant(&[2], &[0.0, 0.0]));
    let norm = Op::GroupNormalization(GroupNormalization { groups: 2, epsilon: 1e-5 });
    let y = b.op(norm, &[y, ones, zeros]);
    let y = b.reshape(y, &[sym("batch"), 6.into(), 4.into(), 4.into()]);
    let (w, bias) = (b.weight(&[6, 1, 1]), b.weight(&[1, 6, 1, 1]));
    let y = b.mul(y, w);
    let y = b.add(y, bias);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn a_factor_that_is_no_vector_stays_outside() {
    let mut b = Build::new();
    let x = b.input(&dims(&[3, 8]));
    let y = layer_norm(&mut b, x, 8);
    let w = b.weight(&[3, 8]);
    let y = b.mul(y, w);
    assert_eq!(operators(b.output(y)), "LayerNormalization Mul");
}
