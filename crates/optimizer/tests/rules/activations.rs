//! Activations and softmax.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use core_tensor::ValueId;
use core_tensor::op::{Binary, ReduceKind, Scalar, Unary};

use crate::graphs::{Build, operators, optimized, sym};

/// The operators that are left of a function of one input.
fn left(f: impl FnOnce(&mut Build, ValueId) -> ValueId) -> String {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 6.into()]);
    let y = f(&mut b, x);
    operators(b.output(y))
}

fn erf_gate(b: &mut Build, x: ValueId, divide: bool) -> ValueId {
    let (root, one) = (b.number(if divide { SQRT_2 } else { FRAC_1_SQRT_2 }), b.number(1.0));
    let scaled = if divide { b.div(x, root) } else { b.mul(root, x) };
    let erf = b.unary(Unary::Erf, scaled);
    b.add(one, erf)
}

#[test]
fn gelu_is_found_in_all_orders() {
    for divide in [false, true] {
        assert_eq!(
            left(|b, x| {
                let (gate, half) = (erf_gate(b, x, divide), b.number(0.5));
                let y = b.mul(x, gate);
                b.mul(y, half)
            }),
            "Gelu"
        );
        assert_eq!(
            left(|b, x| {
                let (gate, half) = (erf_gate(b, x, divide), b.number(0.5));
                let y = b.mul(half, x);
                b.mul(gate, y)
            }),
            "Gelu"
        );
        assert_eq!(
            left(|b, x| {
                let (gate, two) = (erf_gate(b, x, divide), b.number(2.0));
                let y = b.div(gate, two);
                b.mul(x, y)
            }),
            "Gelu"
        );
    }
}

#[test]
fn gelu_by_tanh_is_found_with_its_cubic_term_in_all_forms() {
    for form in 0..4 {
        let text = left(|b, x| {
            let (cubic, factor) = (b.number(0.044_715), b.number(0.797_884_6));
            let (one, half) = (b.number(1.0), b.number(0.5));
            let inner = if form == 3 {
                let square = b.mul(x, x);
                let square = b.mul(square, cubic);
                let sum = b.add(one, square);
                let scaled = b.mul(x, factor);
                b.mul(scaled, sum)
            } else {
                let cube = match form {
                    0 => {
                        let cube = b.pow(x, 3.0);
                        b.mul(cube, cubic)
                    }
                    1 => {
                        let square = b.mul(x, x);
                        let cube = b.mul(x, square);
                        b.mul(cubic, cube)
                    }
                    _ => {
                        let y = b.mul(x, cubic);
                        let y = b.mul(y, x);
                        b.mul(y, x)
                    }
                };
                let sum = b.add(x, cube);
                b.mul(sum, factor)
            };
            let tanh = b.unary(Unary::Tanh, inner);
            let gate = b.add(tanh, one);
            let y = b.mul(x, half);
            b.mul(y, gate)
        });
        assert_eq!(text, "GeluTanh", "form {form}");
    }
}

#[test]
fn gated_functions_are_found() {
    let silu = left(|b, x| {
        let s = b.unary(Unary::Sigmoid, x);
        b.mul(s, x)
    });
    assert_eq!(silu, "Silu");
    let written_out = left(|b, x| {
        let (n, one) = (b.unary(Unary::Neg, x), b.number(1.0));
        let e = b.unary(Unary::Exp, n);
        let sum = b.add(e, one);
        b.div(x, sum)
    });
    assert_eq!(written_out, "Silu");
    let quick = left(|b, x| {
        let factor = b.number(1.702);
        let y = b.mul(x, factor);
        let s = b.unary(Unary::Sigmoid, y);
        b.mul(x, s)
    });
    assert_eq!(quick, "GeluQuick");
    let mish = left(|b, x| {
        let (e, one) = (b.unary(Unary::Exp, x), b.number(1.0));
        let sum = b.add(e, one);
        let log = b.unary(Unary::Log, sum);
        let tanh = b.unary(Unary::Tanh, log);
        b.mul(x, tanh)
    });
    assert_eq!(mish, "Mish");
    let hard_swish = left(|b, x| {
        let (three, six) = (b.number(3.0), b.number(6.0));
        let y = b.add(x, three);
        let y = b.unary(Unary::Clip { min: Scalar::new(0.0), max: Scalar::new(6.0) }, y);
        let y = b.mul(x, y);
        b.div(y, six)
    });
    assert_eq!(hard_swish, "HardSwish");
    let leaky = left(|b, x| {
        let a = b.number(0.2);
        let y = b.mul(x, a);
        b.binary(Binary::Max, x, y)
    });
    assert_eq!(leaky, "LeakyRelu");
}

#[test]
fn an_activation_whose_inner_result_is_used_elsewhere_stays() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let (e, one) = (b.unary(Unary::Exp, x), b.number(1.0));
    let sum = b.add(e, one);
    let log = b.unary(Unary::Log, sum);
    let both = b.mul(log, e);
    let (_, report) = optimized(b.output(both));
    let softplus = report.rule("softplus").unwrap();
    assert_eq!(softplus.fired, 0);
    assert_eq!(softplus.near_misses[0].reason, "the result of Exp \"Exp\" is used elsewhere, too");
}

#[test]
fn softmax_is_found_with_and_without_its_maximum() {
    for with_max in [false, true] {
        let text = left(|b, x| {
            let shifted = if with_max {
                let max = b.reduce(ReduceKind::Max, x);
                b.sub(x, max)
            } else {
                x
            };
            let e = b.unary(Unary::Exp, shifted);
            let sum = b.reduce(ReduceKind::Sum, e);
            let p = b.div(e, sum);
            b.unary(Unary::Log, p)
        });
        assert_eq!(text, "LogSoftmax");
    }
}

#[test]
fn a_gated_network_gets_one_node() {
    let mut b = Build::new();
    let (x, up) = (b.input(&[sym("rows"), 4.into()]), b.input(&[sym("rows"), 4.into()]));
    let s = b.unary(Unary::Sigmoid, x);
    let silu = b.mul(x, s);
    let y = b.mul(silu, up);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}
