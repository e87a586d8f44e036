use core_tensor::op::{Op, Pool, PoolKind, RoiAlign};

use super::conv::window;
use super::{assert_close, one, refusal, run, tensor, wave};

fn pool(kind: PoolKind) -> Pool {
    let window = window(&[2, 2], &[1, 1], &[1, 1], &[1, 1]);
    Pool { kind, kernel: vec![3, 3], window, ceil_mode: true, indices: false, column_major: false }
}

#[test]
fn means_leave_padding_out_as_onnx_runtime_does() {
    let op = Op::Pool(pool(PoolKind::Average { count_include_pad: false }));
    let (shape, y) = one(&op, &[wave(&[1, 1, 5, 5], 0)]);
    assert_eq!(shape, [1, 1, 3, 3]);
    let expected = [0.529864, 0.5721347, 0.4712203, -0.09952597, -0.13759, -0.1412201, 0.2176726, 0.4612999, 0.5894802];
    assert_close(&y, &expected);
}

#[test]
fn padding_counts_as_zeros_if_asked_for() {
    let op = Op::Pool(pool(PoolKind::Average { count_include_pad: true }));
    let (_, y) = one(&op, &[tensor(&[1, 1, 1, 1], &[18.0f32])]);
    assert_close(&y, &[2.0]);
}

#[test]
fn a_last_window_begins_in_the_input() {
    let kernel = vec![1];
    let window = window(&[2], &[1], &[0], &[0]);
    let op = Pool { kind: PoolKind::Max, kernel, window, ceil_mode: true, indices: false, column_major: false };
    // ceil((4 - 1) / 2) + 1 = 3, but the third one would begin behind the input.
    assert_eq!(one(&Op::Pool(op), &[wave(&[1, 1, 4], 0)]).0, [1, 1, 2]);
}

#[test]
fn maxima_have_places_in_either_order() {
    let x = tensor(&[1, 2, 2, 3], &[1i8, 2, 3, 4, -128, 9, -1, -2, -3, -4, -5, -6]);
    let window = window(&[1, 1], &[1, 1], &[0, 0], &[0, 0]);
    for (column_major, places) in [(false, [3, 5, 6, 7]), (true, [1, 5, 6, 8])] {
        let window = window.clone();
        let op =
            Pool { kind: PoolKind::Max, kernel: vec![2, 2], window, ceil_mode: false, indices: true, column_major };
        let outputs = run(&Op::Pool(op), std::slice::from_ref(&x));
        assert_eq!(outputs[0].to_vec::<i8>().unwrap(), [4, 9, -1, -2]);
        assert_eq!(outputs[1].to_vec::<i64>().unwrap(), places);
    }
}

#[test]
fn norms_of_windows() {
    let window = window(&[1], &[1], &[0], &[0]);
    let kind = PoolKind::Lp { p: 2 };
    let op = Pool { kind, kernel: vec![2], window, ceil_mode: false, indices: false, column_major: false };
    assert_close(&one(&Op::Pool(op), &[tensor(&[1, 1, 3], &[3.0f32, -4.0, 3.0])]).1, &[5.0, 5.0]);
}

#[test]
fn kernels_that_do_not_fit_are_refused_and_large_ones_cost_nothing() {
    let x = wave(&[1, 1, 3, 3], 0);
    for kernel in [vec![0, 1], vec![6, 6], vec![3], vec![usize::MAX, 1]] {
        let op = Pool { kernel, ceil_mode: false, ..pool(PoolKind::Max) };
        refusal(&Op::Pool(op), std::slice::from_ref(&x));
    }
    let beyond = window(&[1 << 40, 1], &[1, 1], &[0, 0], &[0, 0]);
    refusal(&Op::Pool(Pool { window: beyond, ceil_mode: false, ..pool(PoolKind::Max) }), std::slice::from_ref(&x));
    let large = 1 << 30;
    let window = window(&[large, large], &[1, 1], &[large, large], &[0, 0]);
    let op = Pool { kernel: vec![large, large], window, ceil_mode: false, ..pool(PoolKind::Max) };
    assert_eq!(one(&Op::Pool(op), &[x]).0, [1, 1, 1, 1]);
}

#[test]
fn regions_are_sampled_between_elements() {
    let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let op = RoiAlign {
        output_height: 1,
        output_width: 2,
        sampling_ratio: 1,
        spatial_scale: 1.0,
        half_pixel: true,
        max: false,
    };
    let inputs = [tensor(&[1, 1, 4, 4], &x), tensor(&[1, 4], &[0.5f32, 0.5, 2.5, 2.5]), tensor(&[1], &[0i64])];
    // Bins of 1 by 2 from (0, 0) on: their centers are (0.5, 1) and (1.5, 1).
    assert_close(&one(&Op::RoiAlign(op), &inputs).1, &[4.5, 5.5]);
    let wrong = [inputs[0].clone(), inputs[1].clone(), tensor(&[1], &[1i64])];
    refusal(&Op::RoiAlign(op), &wrong);
    refusal(&Op::RoiAlign(RoiAlign { sampling_ratio: usize::MAX, ..op }), &inputs);
    refusal(&Op::RoiAlign(RoiAlign { sampling_ratio: 0, spatial_scale: 1e30, ..op }), &inputs);
}
