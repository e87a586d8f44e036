use core_tensor::op::{Conv, ConvInteger, ConvTranspose, DeformConv, Op, Window};
use core_tensor::{Bindings, evaluate};

use super::{assert_close, one, refusal, run, tensor, wave};

pub(crate) fn window(strides: &[usize], dilations: &[usize], begin: &[usize], end: &[usize]) -> Window {
    let own = <[usize]>::to_vec;
    Window { strides: own(strides), dilations: own(dilations), pads_begin: own(begin), pads_end: own(end) }
}

fn plain() -> Window {
    window(&[1, 1], &[1, 1], &[0, 0], &[0, 0])
}

#[test]
fn groups_strides_dilations_and_pads_as_onnx_runtime_has_them() {
    let op = Op::Conv(Conv { window: window(&[1, 2], &[2, 1], &[0, 1], &[1, 2]), groups: 2 });
    let (shape, y) = one(&op, &[wave(&[1, 4, 3, 5], 0), wave(&[4, 2, 2, 2], 7), wave(&[4], 3)]);
    assert_eq!(shape, [1, 4, 2, 4]);
    let expected = [
        1.665769,
        2.816279,
        2.917677,
        0.8956987,
        0.2037278,
        -0.3140738,
        -0.1770774,
        0.8956987,
        0.3662959,
        -0.7878664,
        -1.15977,
        0.9958808,
        1.462061,
        1.815727,
        1.945591,
        0.9958808,
        -0.04829872,
        -0.4153346,
        1.118784,
        0.9612752,
        1.430847,
        1.65357,
        1.15039,
        0.9612752,
        1.908984,
        2.453819,
        0.9944223,
        0.7965655,
        0.3136217,
        -0.1429142,
        0.1507556,
        0.7965655,
    ];
    assert_close(&y, &expected);
}

#[test]
fn a_transposed_convolution_puts_and_cuts_as_onnx_runtime_does() {
    let window = window(&[2, 1], &[1, 2], &[1, 0], &[1, 2]);
    let op = Op::ConvTranspose(ConvTranspose { window, groups: 2, output_padding: vec![1, 0] });
    let x = wave(&[1, 4, 3, 5], 0);
    let (shape, y) = one(&op, &[x, wave(&[4, 1, 2, 3], 2), wave(&[2], 1)]);
    assert_eq!(shape, [1, 2, 5, 7]);
    assert_close(&y[..7], &[0.8974536, 0.9936671, 1.648901, 1.558221, 1.97164, 1.263769, 0.8472149]);
    assert_close(&y[63..], &[1.470127, 1.434897, 2.103714, 1.757979, 1.974494, 1.377155, 0.8081437]);
}

#[test]
fn padding_of_integers_is_the_zero_point() {
    let op = Op::ConvInteger(ConvInteger { window: window(&[1, 1], &[1, 1], &[1, 1], &[1, 1]), groups: 1 });
    let x = tensor(&[1, 1, 3, 3], &[2u8, 3, 4, 5, 6, 7, 8, 9, 10]);
    let outputs = run(&op, &[x, tensor(&[1, 1, 2, 2], &[1u8, 1, 1, 1]), tensor(&[], &[1u8])]);
    let y = outputs[0].to_vec::<i32>().unwrap();
    assert_eq!(y, [1, 3, 5, 3, 5, 12, 16, 9, 11, 24, 28, 15, 7, 15, 17, 9]);
}

#[test]
fn without_offsets_a_deformable_convolution_is_a_convolution() {
    let (x, w, b) = (wave(&[2, 4, 4, 5], 0), wave(&[2, 2, 2, 2], 7), wave(&[2], 3));
    let window = window(&[1, 2], &[2, 1], &[0, 1], &[1, 0]);
    let plain = Op::Conv(Conv { window: window.clone(), groups: 2 });
    let (shape, expected) = one(&plain, &[x.clone(), w.clone(), b.clone()]);
    let offsets = vec![0.0f32; 2 * 2 * 8 * shape[2] * shape[3]];
    let offset = tensor(&[2, 16, shape[2], shape[3]], &offsets);
    let op = Op::DeformConv(DeformConv { window, groups: 2, offset_groups: 2 });
    assert_close(&one(&op, &[x, w, offset, b]).1, &expected);
}

#[test]
fn an_offset_of_half_an_element_gives_the_mean_of_two() {
    let op = Op::DeformConv(DeformConv { window: plain(), groups: 1, offset_groups: 1 });
    let x = tensor(&[1, 1, 1, 2], &[2.0f32, 4.0]);
    let w = tensor(&[1, 1, 1, 1], &[3.0f32]);
    // Columns move by 1/2 and by 1/2; the second one meets nothing on its right.
    let offset = tensor(&[1, 2, 1, 2], &[0.0f32, 0.0, 0.5, 0.5]);
    assert_close(&one(&op, &[x, w, offset]).1, &[9.0, 6.0]);
}

#[test]
fn an_empty_batch_gives_an_empty_result() {
    let op = Op::Conv(Conv { window: plain(), groups: 1 });
    let (shape, y) = one(&op, &[wave(&[0, 1, 3, 3], 0), wave(&[2, 1, 2, 2], 0)]);
    assert_eq!((shape, y.len()), (vec![0, 2, 2, 2], 0));
}

#[test]
fn windows_and_groups_that_do_not_fit_are_refused() {
    let conv = |window: Window, groups: usize| Op::Conv(Conv { window, groups });
    let inputs = [wave(&[1, 4, 3, 3], 0), wave(&[4, 2, 2, 2], 0)];
    const HUGE: usize = usize::MAX;
    let windows = [
        window(&[0, 1], &[1, 1], &[0, 0], &[0, 0]),
        window(&[1, 1], &[0, 1], &[0, 0], &[0, 0]),
        window(&[1, 1], &[HUGE, 1], &[0, 0], &[0, 0]),
        window(&[1, 1], &[9, 1], &[0, 0], &[0, 0]),
        window(&[1, 1], &[1, 1], &[HUGE, 0], &[HUGE, 0]),
        window(&[1, 1], &[1, 1], &[HUGE / 4, HUGE / 4], &[0, 0]),
        window(&[1], &[1], &[0], &[0]),
    ];
    for window in windows {
        refusal(&conv(window, 2), &inputs);
    }
    for groups in [0, 1, 3, 4, HUGE] {
        refusal(&conv(plain(), groups), &inputs);
    }
    let cut = window(&[1, 1], &[1, 1], &[9, 0], &[0, 0]);
    let transposed = |window| Op::ConvTranspose(ConvTranspose { window, groups: 1, output_padding: vec![0, 0] });
    refusal(&transposed(cut), &[wave(&[1, 4, 3, 3], 0), wave(&[4, 2, 2, 2], 0)]);
    refusal(
        &transposed(window(&[HUGE, 1], &[1, 1], &[0, 0], &[0, 0])),
        &[wave(&[1, 4, 3, 3], 0), wave(&[4, 2, 2, 2], 0)],
    );
    assert!(evaluate(&conv(plain(), 2), &[None, None], &Bindings::new()).is_err());
}
