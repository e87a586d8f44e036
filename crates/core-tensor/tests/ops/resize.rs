use core_tensor::op::{
    Col2Im, CoordinateMode, GridMode, GridPadding, GridSample, NearestMode, Op, Resize, ResizeMode, Scalar,
};

use super::conv::window;
use super::{assert_close, dims, one, refusal, run, tensor, wave};

fn resize(mode: ResizeMode, shape: &[usize]) -> Resize {
    Resize {
        mode,
        coordinates: CoordinateMode::HalfPixel,
        shape: dims(shape),
        scales: None,
        antialias: false,
        exclude_outside: false,
        extrapolation_value: 0.0,
    }
}

#[test]
fn cubic_samples_as_onnx_runtime_has_them() {
    let x = wave(&[1, 1, 4, 5], 0);
    let cubic = Op::Resize(resize(ResizeMode::Cubic(Scalar::new(-0.75)), &[1, 1, 3, 7]));
    let expected = [
        0.1411838, 0.307091, 0.5371806, 0.6785443, 0.7850811, 0.8380721, 0.840274, 0.3442504, 0.1658733, -0.1109245,
        -0.324561, -0.5215393, -0.7136272, -0.8137009, -0.6930846, -0.5730183, -0.3593469, -0.1582095, 0.05104836,
        0.3060118, 0.4642476,
    ];
    assert_close(&one(&cubic, &[x]).1, &expected);
}

#[test]
fn a_stretched_filter_repeats_the_edge() {
    // Two elements become one, by a triangle of four: those outside are the edge's.
    let smooth = Op::Resize(Resize { antialias: true, ..resize(ResizeMode::Linear, &[2]) });
    assert_close(&one(&smooth, &[tensor(&[4], &[0.0f32, 0.0, 8.0, 8.0])]).1, &[1.0, 7.0]);
}

#[test]
fn nearest_elements_of_any_dtype_by_any_rounding() {
    let x = tensor(&[3], &[1i64, 2, 3]);
    let expected = [
        (NearestMode::RoundPreferFloor, [1, 1, 2, 2, 3, 3]),
        (NearestMode::Floor, [1, 1, 2, 2, 3, 3]),
        (NearestMode::RoundPreferCeil, [1, 2, 2, 3, 3, 3]),
        (NearestMode::Ceil, [1, 2, 2, 3, 3, 3]),
    ];
    for (mode, expected) in expected {
        let coordinates = CoordinateMode::Asymmetric;
        let op = Op::Resize(Resize { coordinates, ..resize(ResizeMode::Nearest(mode), &[6]) });
        assert_eq!(run(&op, std::slice::from_ref(&x))[0].to_vec::<i64>().unwrap(), expected);
    }
}

#[test]
fn what_is_cropped_outside_has_the_given_value() {
    let op = Resize {
        coordinates: CoordinateMode::TfCropAndResize,
        extrapolation_value: 9.0,
        ..resize(ResizeMode::Linear, &[1, 3])
    };
    let x = tensor(&[1, 2], &[1.0f32, 3.0]);
    assert_close(
        &one(&Op::Resize(op.clone()), &[x.clone(), tensor(&[4], &[0.0f32, 0.0, 1.0, 2.0])]).1,
        &[1.0, 3.0, 9.0],
    );
    refusal(&Op::Resize(op), &[x]);
}

#[test]
fn factors_and_shapes_from_hostile_files_are_refused() {
    let x = wave(&[1, 4], 0);
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let op = Resize { scales: Some(vec![1.0, scale]), ..resize(ResizeMode::Linear, &[1, 4]) };
        refusal(&Op::Resize(op), std::slice::from_ref(&x));
    }
    let tiny = Resize { scales: Some(vec![1.0, 1e-30]), antialias: true, ..resize(ResizeMode::Linear, &[1, 4]) };
    refusal(&Op::Resize(tiny), std::slice::from_ref(&x));
    refusal(&Op::Resize(resize(ResizeMode::Linear, &[1, 1, 4])), std::slice::from_ref(&x));
    refusal(&Op::Resize(resize(ResizeMode::Linear, &[2, 2])), &[tensor::<f32>(&[0, 2], &[])]);
    refusal(&Op::Resize(resize(ResizeMode::Linear, &[1, 4])), &[tensor(&[1, 4], &[1i32; 4])]);
    assert_eq!(one(&Op::Resize(resize(ResizeMode::Linear, &[0, 3])), &[x]).0, [0, 3]);
}

#[test]
fn samples_at_given_places_as_onnx_runtime_has_them() {
    let (x, grid) = (wave(&[1, 1, 3, 4], 0), tensor(&[1, 2, 2, 2], &[-1.0f32, -1.0, 0.3, -0.2, 1.3, 0.5, 0.9, 1.9]));
    let expected = [
        (GridMode::Linear, GridPadding::Zeros, [0.0, 0.7474481, 0.0, 0.0]),
        (GridMode::Linear, GridPadding::Border, [0.0, 0.7474481, -0.469489, -0.8006668]),
        (GridMode::Linear, GridPadding::Reflection, [0.0, 0.7474481, -0.4423637, 0.3253382]),
        (GridMode::Cubic, GridPadding::Zeros, [-0.06711505, 0.9360244, 0.0363313, 0.008708513]),
        (GridMode::Nearest, GridPadding::Zeros, [0.0, 0.796_565_5, 0.0, 0.0]),
    ];
    for (mode, padding, expected) in expected {
        let op = Op::GridSample(GridSample { mode, padding, align_corners: false });
        assert_close(&one(&op, &[x.clone(), grid.clone()]).1, &expected);
    }
}

#[test]
fn places_that_are_no_numbers_end_no_program() {
    let grid = tensor(&[1, 1, 2, 2], &[f32::NAN, f32::INFINITY, -1e30, f32::NEG_INFINITY]);
    for mode in [GridMode::Linear, GridMode::Nearest, GridMode::Cubic] {
        for padding in [GridPadding::Zeros, GridPadding::Border, GridPadding::Reflection] {
            for shape in [[1, 1, 1, 1], [1, 1, 0, 2]] {
                let op = Op::GridSample(GridSample { mode, padding, align_corners: true });
                assert_eq!(one(&op, &[wave(&shape, 0), grid.clone()]).0, [1, 1, 1, 2]);
            }
        }
    }
}

#[test]
fn overlapping_blocks_add_up() {
    let op = |block: usize| Col2Im { image: vec![3], block: vec![block], window: window(&[1], &[1], &[0], &[0]) };
    let x = tensor(&[1, 2, 2], &[1.0f32, 2.0, 10.0, 20.0]);
    assert_eq!(one(&Op::Col2Im(op(2)), std::slice::from_ref(&x)), (vec![1, 1, 3], vec![1.0, 12.0, 20.0]));
    for block in [0, 1, 3, 4, usize::MAX] {
        refusal(&Op::Col2Im(op(block)), std::slice::from_ref(&x));
    }
}
