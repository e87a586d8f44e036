use core_tensor::op::{Op, TensorAttention};
use core_tensor::{DType, Tensor};

use super::{assert_close, one, refusal, tensor, wave};

fn inputs() -> Vec<Tensor> {
    vec![wave(&[1, 2, 4, 2], 0), wave(&[1, 3, 2, 2], 3), wave(&[1, 3, 2, 2], 9)]
}

const EXPECTED: [f32; 16] = [
    -0.5497723,
    -0.6926084,
    -0.4603887,
    -0.6524702,
    -0.7798249,
    -0.8667324,
    -0.7683137,
    -0.813491,
    -0.398342,
    -0.3522339,
    -0.2327104,
    -0.01186895,
    0.1938509,
    0.4201189,
    0.1353896,
    0.3526728,
];

#[test]
fn query_heads_share_key_heads_under_a_causal_mask() {
    let op = Op::TensorAttention(TensorAttention { scale: 0.7, causal: true, softcap: Some(5.0) });
    let (shape, y) = one(&op, &inputs());
    assert_eq!(shape, [1, 2, 4, 2]);
    assert_close(&y, &EXPECTED);
}

#[test]
fn masks_of_bools_and_floats_hide_the_same_keys() {
    let op = Op::TensorAttention(TensorAttention { scale: 0.7, causal: false, softcap: Some(5.0) });
    let seen = [1u8, 1, 0, 1, 1, 1];
    let added = seen.map(|seen| if seen == 1 { 0.0 } else { f32::NEG_INFINITY });
    let masks = [Tensor::from_bytes(DType::Bool, &[2, 3], &seen).unwrap(), tensor(&[1, 1, 2, 3], &added)];
    for mask in masks {
        assert_close(&one(&op, &[inputs(), vec![mask]].concat()).1, &EXPECTED);
    }
}

#[test]
fn a_query_that_sees_nothing_gives_zeros() {
    let op = Op::TensorAttention(TensorAttention { scale: 1.0, causal: false, softcap: None });
    let mask = Tensor::from_bytes(DType::Bool, &[2, 1], &[0, 1]).unwrap();
    let (_, y) = one(&op, &[inputs(), vec![mask]].concat());
    assert_eq!(y[..8], [0.0; 8]);
    assert!(y[8..].iter().all(|v| *v != 0.0));
}

#[test]
fn heads_and_masks_that_do_not_fit_are_refused() {
    let op = Op::TensorAttention(TensorAttention { scale: 1.0, causal: false, softcap: None });
    let [q, k, v] = inputs().try_into().unwrap();
    refusal(&op, &[wave(&[1, 2, 3, 2], 0), k.clone(), v.clone()]);
    refusal(&op, &[q.clone(), wave(&[1, 3, 0, 2], 0), wave(&[1, 3, 0, 2], 0)]);
    refusal(&op, &[q.clone(), k.clone(), wave(&[1, 2, 2, 2], 0)]);
    refusal(&op, &[q, k, v, wave(&[3, 3], 0)]);
}
