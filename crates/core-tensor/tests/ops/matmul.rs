use core_tensor::op::{MatMul, MatMulInteger, Op};

use super::{assert_close, one, refusal, run, tensor, wave};

const PLAIN: Op = Op::MatMul(MatMul { transpose_b: false });

#[test]
fn batches_broadcast_as_in_numpy() {
    let (shape, y) = one(&PLAIN, &[wave(&[2, 1, 2, 3], 0), wave(&[3, 3, 2], 4)]);
    assert_eq!(shape, [2, 3, 2, 2]);
    let expected = [
        0.4098242, 0.06321198, 1.858896, 1.202857, -0.9501845, -0.8111544, -2.291817, -2.35162, 0.7390482, 0.9175586,
        0.9121505, 1.640498, 1.243335, 1.006516, -0.7531697, -0.3077387, -1.087981, -1.280196, 1.32425, 1.213113,
        0.07214823, 0.5413738, -0.8479874, -1.159041,
    ];
    assert_close(&y, &expected);
}

#[test]
fn a_vector_has_no_rows_and_a_transposed_matrix_gives_the_same() {
    let b = tensor(&[1, 2, 2], &[1.0f32, 2.0, 3.0, 4.0]);
    let a = tensor(&[2], &[5.0f32, 6.0]);
    assert_eq!(one(&PLAIN, &[a.clone(), b.clone()]), (vec![1, 2], vec![23.0, 34.0]));
    assert_eq!(one(&Op::MatMul(MatMul { transpose_b: true }), &[a, b]), (vec![1, 2], vec![17.0, 39.0]));
}

#[test]
fn integers_wrap_around_and_f64_keeps_its_digits() {
    let a = tensor(&[1, 2], &[i64::MAX, 1]);
    assert_eq!(run(&PLAIN, &[a, tensor(&[2, 1], &[1i64, 1])])[0].to_vec::<i64>().unwrap(), [i64::MIN]);
    let a = tensor(&[1, 2], &[1.0f64, 1e-12]);
    assert_eq!(run(&PLAIN, &[a, tensor(&[2, 1], &[1.0f64, 1.0])])[0].to_vec::<f64>().unwrap(), [1.0 + 1e-12]);
}

#[test]
fn without_shared_elements_products_are_zero() {
    assert_eq!(one(&PLAIN, &[tensor::<f32>(&[2, 0], &[]), tensor::<f32>(&[0, 2], &[])]).1, [0.0; 4]);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    refusal(&PLAIN, &[wave(&[2, 3], 0), wave(&[2, 3], 0)]);
    refusal(&PLAIN, &[wave(&[2, 2, 3], 0), wave(&[3, 3, 2], 0)]);
    refusal(&PLAIN, &[wave(&[2, 3], 0), wave(&[3], 0)]);
    refusal(&PLAIN, &[tensor(&[1, 1], &[1i32]), tensor(&[1, 1], &[1i64])]);
}

#[test]
fn zero_points_are_per_row_of_a_and_per_column_of_b() {
    let op = Op::MatMulInteger(MatMulInteger);
    let (a, b) = (tensor(&[2, 2], &[1u8, 2, 3, 4]), tensor(&[2, 2], &[-1i8, 2, 3, -128]));
    let y = |inputs: &[core_tensor::Tensor]| run(&op, inputs)[0].to_vec::<i32>().unwrap();
    assert_eq!(y(&[a.clone(), b.clone()]), [5, -254, 9, -506]);
    // (1 2; 3 4) - (1; 2) = (0 1; 1 2), b - (1 2) = (-2 0; 2 -130)
    let zeros = [tensor(&[2], &[1u8, 2]), tensor(&[2], &[1i8, 2])];
    assert_eq!(y(&[vec![a.clone(), b.clone()], zeros.to_vec()].concat()), [2, -130, 2, -260]);
    refusal(&op, &[a, b, tensor(&[3], &[1u8, 2, 3])]);
}
