//! Arithmetic and conversions.

use core_tensor::op::{Binary, Unary};
use core_tensor::{DType, Tensor};
use polaris_optimizer::{OptimizeOptions, optimize_with_options};

use crate::graphs::{Build, operators, optimized, sym};

#[test]
fn constants_meet_and_divisions_become_products() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let (two, c, d, e) = (b.number(2.0), b.weight(&[4]), b.weight(&[4]), b.number(3.0));
    let y = b.div(x, two);
    let y = b.mul(y, c);
    let y = b.sub(y, d);
    let y = b.add(e, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn powers_become_products_and_roots() {
    for (exponent, expected) in
        [(2.0, "Mul"), (0.5, "Sqrt"), (-1.0, "Reciprocal"), (-0.5, "Sqrt Reciprocal"), (1.5, "Pow")]
    {
        let mut b = Build::new();
        let x = b.input(&[sym("rows"), 4.into()]);
        let x = b.unary(Unary::Exp, x);
        let y = b.pow(x, exponent);
        assert_eq!(operators(b.output(y)), format!("Exp {expected}"), "{exponent}");
    }
}

#[test]
fn negations_cancel() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let y = b.input(&[sym("rows")]);
    let n = b.unary(Unary::Neg, x);
    let n = b.unary(Unary::Neg, n);
    let m = b.unary(Unary::Neg, y);
    let sum = b.add(n, m);
    let zero = b.number(0.0);
    let back = b.sub(zero, sum);
    let two = b.number(2.0);
    let scaled = b.mul(back, two);
    assert_eq!(operators(b.output(scaled)), "Sub Mul");
}

#[test]
fn a_product_with_a_reciprocal_becomes_a_quotient() {
    let mut b = Build::new();
    let (x, y) = (b.input(&[sym("rows")]), b.input(&[sym("rows")]));
    let y = b.unary(Unary::Exp, y);
    let one = b.number(1.0);
    let over = b.div(one, y);
    let z = b.mul(over, x);
    assert_eq!(operators(b.output(z)), "Exp Div");
}

#[test]
fn choices_that_are_known_are_made() {
    let mut b = Build::new();
    let (x, y) = (b.input(&[sym("rows")]), b.input(&[sym("rows")]));
    let condition = b.tensor(Tensor::from_bytes(DType::Bool, &[1], &[0]).unwrap());
    let chosen = b.choose(condition, x, y);
    let other = b.binary(Binary::Less, x, y);
    let not = b.unary(Unary::Not, other);
    let not = b.unary(Unary::Not, not);
    let not = b.unary(Unary::Not, not);
    let z = b.choose(not, chosen, x);
    insta::assert_snapshot!(optimized(b.output(z)).0);
}

#[test]
fn conversions_that_lose_nothing_are_left_out() {
    let mut b = Build::new();
    let x = b.input_of(DType::I8, &[sym("rows")]);
    let y = b.cast(x, DType::I32);
    let y = b.cast(y, DType::I64);
    let y = b.cast(y, DType::F32);
    assert_eq!(operators(b.output(y)), "Cast");
}

#[test]
fn rounding_to_half_precision_stays_unless_it_is_asked_to_go() {
    let graph = || {
        let mut b = Build::new();
        let x = b.input(&[sym("rows")]);
        let y = b.cast(x, DType::F16);
        let y = b.cast(y, DType::F32);
        let y = b.unary(Unary::Exp, y);
        b.output(y)
    };
    assert_eq!(operators(graph()), "Cast Cast Exp");
    let options = OptimizeOptions { drop_half_rounding: true, ..OptimizeOptions::default() };
    assert_eq!(optimize_with_options(graph(), &options).unwrap().0.nodes().len(), 1);
}

#[test]
fn a_constant_that_would_overflow_is_not_made() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let (large, tiny) = (b.number(1e30), b.number(1e-30));
    let y = b.mul(x, tiny);
    let y = b.mul(y, large);
    let y = b.mul(y, large);
    let (text, report) = optimized(b.output(y));
    assert!(report.rule("multiply-constants").unwrap().near_misses.is_empty() || text.contains("Mul"), "{text}");
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let large = b.number(1e30);
    let y = b.mul(x, large);
    let y = b.mul(y, large);
    let (_, report) = optimized(b.output(y));
    let misses = &report.rule("multiply-constants").unwrap().near_misses;
    assert_eq!(misses[0].reason, "the folded constant would overflow or vanish");
}

#[test]
fn integers_that_wrap_around_are_not_taken_for_floats_that_saturate() {
    let kept = |from: DType, through: DType, to: DType| {
        let mut b = Build::new();
        let x = b.input_of(from, &[sym("rows")]);
        let y = b.cast(x, through);
        let y = b.cast(y, to);
        operators(b.output(y)) == "Cast Cast"
    };
    assert!(kept(DType::I8, DType::F32, DType::U8), "-1 becomes 0, not 255");
    assert!(kept(DType::U8, DType::F32, DType::I8), "200 becomes 127, not -56");
    assert!(!kept(DType::U8, DType::F32, DType::I16));
    assert!(!kept(DType::I8, DType::I32, DType::U8), "integers wrap around on any way");
}

#[test]
fn a_quotient_that_is_rounded_to_a_whole_number_stays_one() {
    for (divisor, expected) in [(41.0, "Div Add Floor"), (8.0, "Mul Add Floor")] {
        let mut b = Build::new();
        let x = b.input(&[sym("rows")]);
        let (c, d) = (b.number(divisor), b.number(2.0));
        let y = b.div(x, c);
        let y = b.add(y, d);
        let y = b.unary(Unary::Floor, y);
        assert_eq!(operators(b.output(y)), expected);
    }
}

#[test]
fn a_sum_that_rounds_by_a_large_constant_stays() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows")]);
    let large = b.number(12_582_912.0);
    let y = b.add(x, large);
    let y = b.sub(y, large);
    assert_eq!(operators(b.output(y)), "Add Add");
}
