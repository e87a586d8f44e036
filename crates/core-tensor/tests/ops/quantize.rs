use core_tensor::DType;
use core_tensor::op::{DequantizeLinear, DynamicQuantizeLinear, Granularity, Op, QuantizeLinear};

use super::{one, refusal, run, tensor};

fn quantize(granularity: Granularity, to: DType, bits: Option<u8>) -> Op {
    Op::QuantizeLinear(QuantizeLinear { granularity, to, saturate: true, bits })
}

#[test]
fn halves_go_to_even_and_what_is_too_large_is_cut() {
    let x = tensor(&[6], &[1.0f32, 3.0, -1.0, 1000.0, -1000.0, f32::NAN]);
    let inputs = [x, tensor(&[], &[2.0f32]), tensor(&[], &[10u8])];
    let y = run(&quantize(Granularity::Tensor, DType::U8, None), &inputs);
    assert_eq!(y[0].to_vec::<u8>().unwrap(), [10, 12, 10, 255, 0, 10]);
}

#[test]
fn fewer_bits_have_a_smaller_range() {
    let x = tensor(&[4], &[100.0f32, -100.0, 1.0, -2.0]);
    for (bits, expected) in [(4, [7, -8, 1, -2]), (2, [1, -2, 1, -2])] {
        let y = run(&quantize(Granularity::Tensor, DType::I8, Some(bits)), &[x.clone(), tensor(&[1], &[1.0f32])]);
        assert_eq!(y[0].to_vec::<i8>().unwrap(), expected);
    }
}

#[test]
fn scales_belong_to_an_axis_or_to_blocks_of_it() {
    let x = tensor(&[2, 3], &[2i8, 2, 2, 2, 2, 2]);
    let dequantize = |granularity| Op::DequantizeLinear(DequantizeLinear { granularity });
    let axis = [x.clone(), tensor(&[3], &[1.0f32, 2.0, 3.0]), tensor(&[3], &[0i8, 1, 2])];
    assert_eq!(one(&dequantize(Granularity::Axis(-1)), &axis).1, [2.0, 2.0, 0.0, 2.0, 2.0, 0.0]);
    let blocks = [x.clone(), tensor(&[2, 2], &[1.0f32, 2.0, 3.0, 4.0])];
    let per_block = dequantize(Granularity::Blocks { axis: 1, block: 2 });
    assert_eq!(one(&per_block, &blocks).1, [2.0, 2.0, 4.0, 6.0, 6.0, 8.0]);
    for granularity in [
        Granularity::Tensor,
        Granularity::Axis(2),
        Granularity::Axis(isize::MIN),
        Granularity::Blocks { axis: 1, block: 0 },
        Granularity::Blocks { axis: 1, block: 3 },
    ] {
        refusal(&dequantize(granularity), &blocks);
    }
}

#[test]
fn eight_bit_floats_go_both_ways() {
    let inputs = [tensor(&[4], &[1.0f32, -3.0, 1e9, 0.0]), tensor(&[], &[0.5f32])];
    let y = run(&quantize(Granularity::Tensor, DType::F8E4M3, None), &inputs);
    let back = Op::DequantizeLinear(DequantizeLinear { granularity: Granularity::Tensor });
    assert_eq!(one(&back, &[y[0].clone(), inputs[1].clone()]).1, [1.0, -3.0, 224.0, 0.0]);
}

#[test]
fn nothing_is_quantized_to_dtypes_or_bits_that_are_not_there() {
    let inputs = [tensor(&[1], &[1.0f32]), tensor(&[], &[0.5f32])];
    let combinations =
        [(DType::F32, None), (DType::I64, None), (DType::U16, Some(4)), (DType::U8, Some(3)), (DType::F8E5M2, Some(4))];
    for (to, bits) in combinations {
        refusal(&quantize(Granularity::Tensor, to, bits), &inputs);
    }
}

#[test]
fn the_range_of_the_data_contains_zero() {
    let op = Op::DynamicQuantizeLinear(DynamicQuantizeLinear);
    // The example of the ONNX specification.
    let y = run(&op, &[tensor(&[6], &[0.0f32, 2.0, -3.0, -2.5, 1.34, 0.5])]);
    assert_eq!(y[0].to_vec::<u8>().unwrap(), [153, 255, 0, 26, 221, 179]);
    assert!((y[1].to_f32().unwrap()[0] - 0.019_607_844).abs() < 1e-7);
    assert_eq!(y[2].to_vec::<u8>().unwrap(), [153]);
    let zeros = run(&op, &[tensor(&[2], &[0.0f32, 0.0])]);
    assert_eq!(zeros[0].to_vec::<u8>().unwrap(), [0, 0]);
    let positive = run(&op, &[tensor(&[2], &[255.0f32, 51.0])]);
    assert_eq!(positive[0].to_vec::<u8>().unwrap(), [255, 51]);
}
