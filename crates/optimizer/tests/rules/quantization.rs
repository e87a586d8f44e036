//! Quantized graphs.

use core_tensor::op::{Conv, DequantizeLinear, Granularity, Op, QuantizeLinear, Window};
use core_tensor::{DType, Tensor, ValueId};

use crate::graphs::{Build, operators, optimized, sym};

fn bytes(b: &mut Build, dtype: DType, shape: &[usize]) -> ValueId {
    let values: Vec<u8> = (0..shape.iter().product()).map(|_| (b.next() * 100.0) as i8 as u8).collect();
    b.tensor(Tensor::from_bytes(dtype, shape, &values).unwrap())
}

fn dequantize(b: &mut Build, inputs: &[ValueId], granularity: Granularity) -> ValueId {
    b.op(Op::DequantizeLinear(DequantizeLinear { granularity }), inputs)
}

fn quantize(b: &mut Build, inputs: &[ValueId]) -> ValueId {
    let op = QuantizeLinear { granularity: Granularity::Tensor, to: DType::U8, saturate: true, bits: None };
    b.op(Op::QuantizeLinear(op), inputs)
}

#[test]
fn a_product_of_dequantized_numbers_becomes_one_of_integers() {
    let mut b = Build::new();
    let x = b.input_of(DType::U8, &[sym("rows"), 4.into()]);
    let (scale, zero) = (b.number(0.02), b.tensor(Tensor::from_bytes(DType::U8, &[], &[128]).unwrap()));
    let (w, w_scale) = (bytes(&mut b, DType::I8, &[4, 6]), b.constant(&[6], &[0.01, 0.02, 0.03, 0.04, 0.05, 0.06]));
    let a = dequantize(&mut b, &[x, scale, zero], Granularity::Tensor);
    let w = dequantize(&mut b, &[w, w_scale], Granularity::Axis(1));
    let y = b.matmul(a, w);
    let y = quantize(&mut b, &[y, scale, zero]);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn a_convolution_of_dequantized_numbers_becomes_one_of_integers() {
    let mut b = Build::new();
    let x = b.input_of(DType::U8, &[sym("batch"), 3.into(), 5.into(), 5.into()]);
    let (scale, zero) = (b.number(0.02), b.tensor(Tensor::from_bytes(DType::U8, &[], &[100]).unwrap()));
    let (w, w_scale) = (bytes(&mut b, DType::I8, &[2, 3, 3, 3]), b.constant(&[2], &[0.01, 0.02]));
    let bias = b.weight(&[2]);
    let a = dequantize(&mut b, &[x, scale, zero], Granularity::Tensor);
    let w = dequantize(&mut b, &[w, w_scale], Granularity::Axis(0));
    let window = Window { strides: vec![2, 2], dilations: vec![1, 1], pads_begin: vec![1, 1], pads_end: vec![1, 1] };
    let y = b.op(Op::Conv(Conv { window, groups: 1 }), &[a, w, bias]);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}

#[test]
fn quantizing_what_was_dequantized_cancels_across_movement() {
    let mut b = Build::new();
    let x = b.input_of(DType::U8, &[sym("batch"), sym("tokens"), 4.into()]);
    let (scale, zero) = (b.number(0.02), b.tensor(Tensor::from_bytes(DType::U8, &[], &[7]).unwrap()));
    let (same_scale, same_zero) = (b.number(0.02), b.tensor(Tensor::from_bytes(DType::U8, &[], &[7]).unwrap()));
    let y = dequantize(&mut b, &[x, scale, zero], Granularity::Tensor);
    let y = b.transpose(y, &[0, 2, 1]);
    let y = quantize(&mut b, &[y, same_scale, same_zero]);
    assert_eq!(operators(b.output(y)), "Transpose");
}

#[test]
fn other_scales_do_not_cancel() {
    let mut b = Build::new();
    let x = b.input_of(DType::U8, &[sym("rows")]);
    let (scale, other) = (b.number(0.02), b.number(0.03));
    let y = dequantize(&mut b, &[x, scale], Granularity::Tensor);
    let y = quantize(&mut b, &[y, other]);
    assert_eq!(operators(b.output(y)), "DequantizeLinear QuantizeLinear");
}

#[test]
fn a_dequantized_weight_is_not_folded() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 256.into()]);
    let (w, scale) = (bytes(&mut b, DType::I8, &[256, 256]), b.number(0.01));
    let w = dequantize(&mut b, &[w, scale], Granularity::Tensor);
    let y = b.matmul(x, w);
    let (_, report) = optimized(b.output(y));
    assert_eq!((report.nodes_after, report.weight_bytes_after), (2, 256 * 256 + 4));
}

#[test]
fn dequantization_written_out_is_found_and_tables_are_read_by_rows() {
    let mut b = Build::new();
    let ids = b.input_of(DType::I64, &[sym("rows")]);
    let (table, scale) = (bytes(&mut b, DType::I8, &[256, 256]), b.weight(&[256, 1]));
    let (w, w_scale) = (bytes(&mut b, DType::I8, &[256, 256]), b.weight(&[1, 256]));
    let table = b.cast(table, DType::F32);
    let table = b.mul(table, scale);
    let w = b.cast(w, DType::F32);
    let w = b.mul(w, w_scale);
    let rows = b.gather(table, ids);
    let y = b.matmul(rows, w);
    insta::assert_snapshot!(optimized(b.output(y)).0);
}
