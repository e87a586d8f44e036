use core_tensor::op::{GroupNormalization, LayerNormalization, Lrn, Op};

use super::{assert_close, one, refusal, tensor, wave};

#[test]
fn rows_get_mean_zero_and_variance_one() {
    let x = tensor(&[2, 2], &[1.0f32, 3.0, -5.0, 5.0]);
    let op = Op::LayerNormalization(LayerNormalization { epsilon: 0.0 });
    assert_close(&one(&op, std::slice::from_ref(&x)).1, &[-1.0, 1.0, -1.0, 1.0]);
    let (w, b) = (tensor(&[2], &[2.0f32, 3.0]), tensor(&[2], &[0.5f32, 1.0]));
    assert_close(&one(&op, &[x.clone(), w, b]).1, &[-1.5, 4.0, -1.5, 4.0]);
    refusal(&op, &[x, tensor(&[3], &[1.0f32; 3])]);
}

#[test]
fn large_offsets_do_not_drown_the_variance() {
    let op = Op::LayerNormalization(LayerNormalization { epsilon: 0.0 });
    assert_close(&one(&op, &[tensor(&[2], &[100_000.0f32, 100_002.0])]).1, &[-1.0, 1.0]);
}

#[test]
fn groups_of_channels_as_onnx_runtime_has_them() {
    let op = |groups| Op::GroupNormalization(GroupNormalization { groups, epsilon: 1e-5 });
    // ONNX Runtime was given one scale and offset per group.
    let inputs = [wave(&[1, 4, 3], 0), tensor(&[4], &[1.0f32, 1.0, 2.0, 2.0]), tensor(&[4], &[0.0f32, 0.0, 1.0, 1.0])];
    let expected = [
        -1.793917, -0.7930194, 0.07241125, 0.6852431, 0.9625323, 0.8667491, 3.841912, 2.873, 1.651917, 0.3439306,
        -0.8739293, -1.836831,
    ];
    assert_close(&one(&op(2), &inputs).1, &expected);
    for groups in [0, 3, usize::MAX] {
        refusal(&op(groups), &inputs);
    }
}

#[test]
fn a_response_is_divided_by_that_of_its_neighbours() {
    let lrn = |size| Op::Lrn(Lrn { size, alpha: 2.0, beta: 1.0, bias: 1.0 });
    let x = tensor(&[1, 3, 1], &[1.0f32, 2.0, 3.0]);
    // A window of 2 reaches one channel up.
    assert_close(&one(&lrn(2), std::slice::from_ref(&x)).1, &[1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0]);
    assert_eq!(one(&lrn(usize::MAX), std::slice::from_ref(&x)).0, [1, 3, 1]);
    refusal(&lrn(0), &[x]);
}
