use core_tensor::op::{
    GatherElements, GatherNd, NonMaxSuppression, NonZero, Op, OpError, ScatterElements, ScatterNd, ScatterReduction,
    Unique,
};
use core_tensor::{DType, Dim, Tensor};

use super::{one, refusal, run, tensor};

#[test]
fn single_elements_are_taken_along_an_extent() {
    let op = Op::GatherElements(GatherElements { axis: 1 });
    let data = tensor(&[2, 2], &[1i32, 2, 3, 4]);
    let y = run(&op, &[data.clone(), tensor(&[2, 3], &[0i64, 0, -1, 1, 0, 1])]);
    assert_eq!(y[0].to_vec::<i32>().unwrap(), [1, 1, 2, 4, 3, 4]);
    let error = refusal(&op, &[data.clone(), tensor(&[1, 1], &[2i64])]);
    assert!(matches!(error, OpError::Index { index: 2, len: 2, .. }));
    refusal(&op, &[data.clone(), tensor(&[3, 1], &[0i64; 3])]);
    refusal(&op, &[data, tensor(&[1, 1], &[i64::MIN])]);
}

#[test]
fn tuples_name_slices_behind_shared_extents() {
    let data = tensor(&[2, 2, 2], &[0i32, 1, 2, 3, 4, 5, 6, 7]);
    let gather = |batch_dims: usize| Op::GatherNd(GatherNd { batch_dims });
    let y = run(&gather(1), &[data.clone(), tensor(&[2, 1], &[1i64, 0])]);
    assert_eq!((y[0].shape(), y[0].to_vec::<i32>().unwrap()), (&[2, 2][..], vec![2, 3, 4, 5]));
    let y = run(&gather(0), &[data.clone(), tensor(&[2, 3], &[0i64, 0, 1, 1, -1, 0])]);
    assert_eq!(y[0].to_vec::<i32>().unwrap(), [1, 6]);
    refusal(&gather(0), &[data.clone(), tensor(&[4], &[0i64; 4])]);
    refusal(&gather(usize::MAX), &[data.clone(), tensor(&[2, 1], &[1i64, 0])]);
    refusal(&gather(0), &[data, tensor(&[1], &[2i64])]);
}

#[test]
fn scattered_elements_replace_or_join() {
    let data = tensor(&[1, 3], &[1.0f32, 2.0, 3.0]);
    let inputs = [data.clone(), tensor(&[1, 3], &[1i64, 1, -1]), tensor(&[1, 3], &[10.0f32, 20.0, 0.5])];
    let expected = [
        (ScatterReduction::None, [1.0, 20.0, 0.5]),
        (ScatterReduction::Add, [1.0, 32.0, 3.5]),
        (ScatterReduction::Mul, [1.0, 400.0, 1.5]),
        (ScatterReduction::Min, [1.0, 2.0, 0.5]),
        (ScatterReduction::Max, [1.0, 20.0, 3.0]),
    ];
    for (reduction, expected) in expected {
        assert_eq!(one(&Op::ScatterElements(ScatterElements { axis: -1, reduction }), &inputs).1, expected);
        let nd = Op::ScatterNd(ScatterNd { reduction });
        let tuples = tensor(&[3, 2], &[0i64, 1, 0, 1, 0, -1]);
        assert_eq!(one(&nd, &[data.clone(), tuples, tensor(&[3], &[10.0f32, 20.0, 0.5])]).1, expected);
    }
    let nd = Op::ScatterNd(ScatterNd { reduction: ScatterReduction::None });
    refusal(&nd, &[data, tensor(&[1, 1], &[0i64]), tensor(&[1, 2], &[1.0f32, 2.0])]);
}

#[test]
fn places_of_what_is_not_zero_are_in_row_major_order() {
    let op = Op::NonZero(NonZero { count: Dim::sym("count") });
    let y = run(&op, &[tensor(&[2, 2], &[1.0f32, -0.0, 3.0, f32::NAN])]);
    assert_eq!((y[0].shape(), y[0].to_vec::<i64>().unwrap()), (&[2, 3][..], vec![0, 1, 1, 0, 0, 1]));
    let bools = Tensor::from_bytes(DType::Bool, &[2], &[0, 1]).unwrap();
    assert_eq!(run(&op, &[bools])[0].to_vec::<i64>().unwrap(), [1]);
    assert_eq!(run(&op, &[tensor(&[], &[5i32])])[0].shape(), [0, 1]);
}

#[test]
fn of_boxes_that_overlap_the_best_one_stays() {
    let corners = [
        [0.0f32, 0.0, 1.0, 1.0],
        [0.0, 0.1, 1.0, 1.1],
        [0.0, -0.1, 1.0, 0.9],
        [0.0, 10.0, 1.0, 11.0],
        [0.0, 10.1, 1.0, 11.1],
        [0.0, 100.0, 1.0, 101.0],
    ];
    let centers = corners.map(|[y0, x0, y1, x1]| [(x0 + x1) / 2.0, (y0 + y1) / 2.0, x1 - x0, y1 - y0]);
    let scores = tensor(&[1, 1, 6], &[0.9f32, 0.75, 0.6, 0.95, 0.5, 0.3]);
    for (boxes, center_point_box) in [(corners, false), (centers, true)] {
        let op = Op::NonMaxSuppression(NonMaxSuppression { center_point_box, count: Dim::sym("count") });
        let boxes = tensor(&[1, 6, 4], boxes.as_flattened());
        let limits = |most: i64, least: f32| [tensor(&[1], &[most]), tensor(&[1], &[0.5f32]), tensor(&[1], &[least])];
        let chosen = |most: i64, least: f32| {
            let inputs = [vec![boxes.clone(), scores.clone()], limits(most, least).to_vec()].concat();
            run(&op, &inputs)[0].to_vec::<i64>().unwrap()
        };
        assert_eq!(chosen(9, 0.0), [0, 0, 3, 0, 0, 0, 0, 0, 5]);
        assert_eq!(chosen(9, 0.4), [0, 0, 3, 0, 0, 0]);
        assert_eq!(chosen(1, 0.0), [0, 0, 3]);
        assert!(chosen(-1, 0.0).is_empty());
        assert!(run(&op, &[boxes.clone(), scores.clone()])[0].is_empty(), "without a limit nothing is chosen");
    }
}

#[test]
fn unique_elements_and_slices_know_where_they_come_from() {
    let unique = |axis: Option<isize>, sorted: bool| Op::Unique(Unique { axis, sorted, count: Dim::sym("count") });
    let x = tensor(&[6], &[2.0f32, 1.0, 1.0, 3.0, 4.0, 3.0]);
    let numbers = |op: &Op, x: &Tensor| -> Vec<Vec<i64>> {
        run(op, std::slice::from_ref(x))[1..].iter().map(|t| t.to_vec::<i64>().unwrap()).collect()
    };
    assert_eq!(run(&unique(None, true), std::slice::from_ref(&x))[0].to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(numbers(&unique(None, true), &x), [vec![1, 0, 3, 4], vec![1, 0, 0, 2, 3, 2], vec![2, 1, 2, 1]]);
    assert_eq!(run(&unique(None, false), std::slice::from_ref(&x))[0].to_f32().unwrap(), [2.0, 1.0, 3.0, 4.0]);
    assert_eq!(numbers(&unique(None, false), &x), [vec![0, 1, 3, 4], vec![0, 1, 1, 2, 3, 2], vec![1, 2, 2, 1]]);
    let rows = tensor(&[3, 2], &[1i32, 0, 1, 0, -2, 3]);
    let y = run(&unique(Some(0), true), std::slice::from_ref(&rows));
    assert_eq!((y[0].shape(), y[0].to_vec::<i32>().unwrap()), (&[2, 2][..], vec![-2, 3, 1, 0]));
    assert_eq!(numbers(&unique(Some(0), true), &rows), [vec![2, 0], vec![1, 1, 0], vec![1, 2]]);
    let columns = run(&unique(Some(1), true), &[tensor(&[2, 3], &[5i32, 1, 5, 6, 2, 6])]);
    assert_eq!(columns[0].to_vec::<i32>().unwrap(), [1, 5, 2, 6]);
}
