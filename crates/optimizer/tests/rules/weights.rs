//! Factors, biases, padding and transposes that go into weights.

use core_tensor::op::{Conv, ConvTranspose, MatMul, Op, Pad, PadMode, Unary, Window};
use core_tensor::{DType, Dim, Tensor, ValueId};

use crate::graphs::{Build, dims, operators, optimized, sym};

fn window(pads: usize) -> Window {
    Window { strides: vec![1, 1], dilations: vec![1, 1], pads_begin: vec![pads; 2], pads_end: vec![pads; 2] }
}

fn image(b: &mut Build) -> ValueId {
    b.input(&[sym("batch"), 3.into(), 5.into(), 5.into()])
}

#[test]
fn batch_normalization_goes_into_a_convolution() {
    let mut b = Build::new();
    let x = image(&mut b);
    let (w, bias) = (b.weight(&[4, 3, 3, 3]), b.weight(&[4]));
    let y = b.op(Op::Conv(Conv { window: window(1), groups: 1 }), &[x, w, bias]);
    let (scale, shift) = (b.weight(&[4, 1, 1]), b.weight(&[1, 4, 1, 1]));
    let y = b.mul(y, scale);
    let y = b.add(y, shift);
    let y = b.unary(Unary::Relu, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn grouped_and_transposed_convolutions_take_factors_too() {
    let mut b = Build::new();
    let x = image(&mut b);
    let (w, scale) = (b.weight(&[6, 1, 3, 3]), b.weight(&[6, 1, 1]));
    let y = b.op(Op::Conv(Conv { window: window(0), groups: 3 }), &[x, w]);
    let y = b.mul(scale, y);
    let (w, scale, shift) = (b.weight(&[6, 2, 3, 3]), b.weight(&[2, 1, 1]), b.number(0.5));
    let op = ConvTranspose { window: window(1), groups: 1, output_padding: vec![0, 0] };
    let y = b.op(Op::ConvTranspose(op), &[y, w]);
    let y = b.mul(y, scale);
    let y = b.add(y, shift);
    assert_eq!(operators(b.output(y)), "Conv ConvTranspose");
}

#[test]
fn a_sum_of_images_is_no_bias() {
    let mut b = Build::new();
    let x = image(&mut b);
    let (w, other) = (b.weight(&[3, 3, 1, 1]), b.weight(&[3, 5, 5]));
    let y = b.op(Op::Conv(Conv { window: window(0), groups: 1 }), &[x, w]);
    let y = b.add(y, other);
    let (_, report) = optimized(b.output(y));
    let rule = report.rule("convolution-bias").unwrap();
    assert_eq!(
        (rule.fired, rule.near_misses[0].reason.as_str()),
        (0, "the constant [3, 5, 5] is not one number per channel")
    );
}

#[test]
fn zeros_around_an_image_become_padding() {
    for value in [0.0, 1.0] {
        let mut b = Build::new();
        let x = image(&mut b);
        let none = (Dim::Num(0), Dim::Num(0));
        let pads = vec![none.clone(), none, (1.into(), 2.into()), (0.into(), 1.into())];
        let value_id = b.number(value);
        let y = b.op(Op::Pad(Pad { pads, mode: PadMode::Constant }), &[x, value_id]);
        let w = b.weight(&[2, 3, 3, 3]);
        let y = b.op(Op::Conv(Conv { window: window(1), groups: 1 }), &[y, w]);
        assert_eq!(operators(b.output(y)), if value == 0.0 { "Conv" } else { "Pad Conv" });
    }
}

#[test]
fn a_factor_goes_into_a_weight_and_its_bias() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let (w, bias, scale) = (b.weight(&[4, 6]), b.weight(&[6]), b.weight(&[6]));
    let y = b.matmul(x, w);
    let y = b.add(y, bias);
    let y = b.mul(y, scale);
    let (w, half) = (b.weight(&[5, 6]), b.number(0.5));
    let y = b.op(Op::MatMul(MatMul { transpose_b: true }), &[y, w]);
    let y = b.mul(half, y);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn weights_of_half_precision_stay_as_they_are_stored() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let halves: Vec<u8> = (0..8u16).flat_map(|i| (0x3c00 + i * 64).to_le_bytes()).collect();
    let w = b.tensor(Tensor::from_bytes(DType::F16, &[4, 2], &halves).unwrap());
    let y = b.matmul(x, w);
    let half = b.number(0.5);
    let y = b.mul(y, half);
    let (_, report) = optimized(b.output(y));
    let reason = &report.rule("product-scale").unwrap().near_misses[0].reason;
    assert_eq!(reason, "weights of f16 stay as they are stored");
}

#[test]
fn a_transposed_weight_is_read_as_it_is_stored() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let w = b.weight(&[6, 4]);
    let w = b.transpose(w, &[1, 0]);
    let y = b.matmul(x, w);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn a_shared_weight_is_not_doubled() {
    let mut b = Build::new();
    let x = b.input(&dims(&[2, 4]));
    let w = b.weight(&[4, 4]);
    let y = b.matmul(x, w);
    let half = b.number(0.5);
    let y = b.mul(y, half);
    let z = b.matmul(y, w);
    assert_eq!(operators(b.output(z)), "MatMul Mul MatMul");
}
