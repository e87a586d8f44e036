use core_tensor::op::{ArgMax, CumSum, LogSoftmax, Op, Softmax, Sort, TopK};

use super::{assert_close, one, refusal, run, tensor};

#[test]
fn sorting_is_stable_and_puts_nan_last() {
    let x = tensor(&[5], &[2.0f32, f32::NAN, -0.0, 0.0, -1.0]);
    let places = |descending| run(&Op::Sort(Sort { descending }), std::slice::from_ref(&x))[1].to_vec::<i64>().unwrap();
    assert_eq!(places(false), [4, 2, 3, 0, 1]);
    assert_eq!(places(true), [0, 2, 3, 4, 1]);
    let integers = tensor(&[2, 2], &[i64::MAX, i64::MIN, 3, 3]);
    let y = run(&Op::Sort(Sort { descending: true }), &[integers]);
    assert_eq!(y[0].to_vec::<i64>().unwrap(), [i64::MAX, i64::MIN, 3, 3]);
    assert_eq!(y[1].to_vec::<i64>().unwrap(), [0, 1, 0, 1]);
}

#[test]
fn the_largest_of_any_dtype_keep_it() {
    let op = Op::TopK(TopK { k: 2 });
    let y = run(&op, &[tensor(&[2, 3], &[u64::MAX, 0, 1, 5, 5, 4])]);
    assert_eq!(y[0].to_vec::<u64>().unwrap(), [u64::MAX, 1, 5, 5]);
    assert_eq!(y[1].to_vec::<i32>().unwrap(), [0, 2, 0, 1]);
    let y = run(&op, &[tensor(&[3], &[1.0f64, f64::NAN, 1.0 + 1e-12])]);
    assert_eq!(y[1].to_vec::<i32>().unwrap(), [2, 0]);
    for k in [0, 4, usize::MAX] {
        refusal(&Op::TopK(TopK { k }), &[tensor(&[3], &[1i32, 2, 3])]);
    }
    let best = run(&Op::ArgMax(ArgMax), &[tensor(&[2, 2], &[1i64, 2, 4, 4])]);
    assert_eq!(best[0].to_vec::<i32>().unwrap(), [1, 0]);
}

#[test]
fn running_sums_go_either_way_with_or_without_the_element() {
    let x = tensor(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
    let sums = |axis, exclusive, reverse| {
        run(&Op::CumSum(CumSum { axis, exclusive, reverse }), std::slice::from_ref(&x))[0].to_vec::<i32>().unwrap()
    };
    assert_eq!(sums(1, false, false), [1, 3, 6, 4, 9, 15]);
    assert_eq!(sums(-1, true, false), [0, 1, 3, 0, 4, 9]);
    assert_eq!(sums(1, true, true), [5, 3, 0, 11, 6, 0]);
    assert_eq!(sums(0, false, true), [5, 7, 9, 4, 5, 6]);
    refusal(&Op::CumSum(CumSum { axis: 2, exclusive: false, reverse: false }), &[x]);
}

#[test]
fn softmax_and_its_logarithm_do_not_overflow() {
    let x = tensor(&[1, 2], &[1000.0f64, 1000.0]);
    assert_eq!(run(&Op::Softmax(Softmax), std::slice::from_ref(&x))[0].to_vec::<f64>().unwrap(), [0.5, 0.5]);
    let log = run(&Op::LogSoftmax(LogSoftmax), &[x])[0].to_vec::<f64>().unwrap();
    assert!(log.iter().all(|v| (v + std::f64::consts::LN_2).abs() < 1e-15));
    let (_, y) = one(&Op::LogSoftmax(LogSoftmax), &[tensor(&[1, 2], &[0.0f32, 3.0f32.ln()])]);
    assert_close(&y, &[0.25f32.ln(), 0.75f32.ln()]);
}
