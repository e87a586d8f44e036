//! Reductions along the last extent.

use core_tensor::op::{ArgMax, Op, Reduce, ReduceKind, Softmax, TopK};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

fn all(n: usize, rows: &[usize], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("reductions");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), n.into()]);
    let kinds = [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max].map(|kind| Op::Reduce(Reduce { kind }));
    for op in [Op::Softmax(Softmax), Op::ArgMax(ArgMax)].into_iter().chain(kinds) {
        let y = graph.add("y", op, &[x]).expect("a reduction");
        graph.output(y);
    }
    let steps = rows.iter().map(|rows| vec![random.scaled_f32(&[*rows, n], 5.0)]).collect();
    Case::new(graph, Bindings::new().with("rows", rows.iter().copied().max().unwrap_or(1)), steps)
}

#[test]
fn reductions_agree_at_odd_sizes() {
    for n in [1, 2, 7, 16, 17, 31, 64, 1000] {
        all(n, &[1, 3, 8, 2], n as u64).check();
    }
}

#[test]
fn the_first_of_equals_is_the_largest() {
    let mut case = all(20, &[2], 1);
    case.steps =
        vec![vec![Tensor::from_slice(&[2, 20], &[[-1.5f32; 20], [3.0; 20]].concat()).expect("a small tensor")]];
    case.check();
}

#[test]
fn what_is_no_number_stays_none_and_hides_no_maximum() {
    let mut case = all(48, &[1], 1);
    let mut row = [0.0f32; 48];
    (row[0], row[16], row[32]) = (100.0, f32::NAN, 1.0);
    case.steps = vec![vec![Tensor::from_slice(&[1, 48], &row).expect("a small tensor")]];
    case.check();
}

#[test]
fn a_softmax_over_masked_elements_agrees() {
    let mut case = all(20, &[1], 1);
    let row: Vec<f32> = (0..20).map(|i| if i % 3 == 0 { -1e30 } else { i as f32 * 0.1 }).collect();
    case.steps = vec![vec![Tensor::from_slice(&[1, 20], &row).expect("a small tensor")]];
    case.check();
}

#[test]
fn scalars_per_vector_agree() {
    let mut random = Random::new(3);
    let mut graph = Graph::new("vector");
    let x = graph.input("x", DType::F32, &[5.into()]);
    let y = graph.add("y", Op::ArgMax(ArgMax), &[x]).expect("a reduction");
    graph.output(y);
    Case::new(graph, Bindings::new(), vec![vec![random.f32(&[5])]]).exact().check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(10))]

    #[test]
    fn reductions_of_any_size_agree(n in 1usize..200, rows in prop::collection::vec(1usize..9, 1..3), seed: u64) {
        all(n, &rows, seed).check();
    }
}

#[test]
fn the_largest_elements_come_in_order_the_first_of_equals_first() {
    let n = 1_000;
    let mut random = Random::new(5);
    for k in [1, 2, 64, 256] {
        let mut graph = Graph::new("largest");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), n.into()]);
        let outputs = graph.add_node("y", Op::TopK(TopK { k }), vec![Some(x)]).expect("the largest");
        outputs.into_iter().for_each(|output| graph.output(output));
        let few = |values: &[f32], rows: usize| -> Tensor {
            let values: Vec<f32> = (0..rows * n).map(|i| values[(i * 7_919) % values.len()]).collect();
            Tensor::from_slice(&[rows, n], &values).expect("a tensor")
        };
        let steps = vec![
            vec![random.f32(&[3, n])],
            vec![few(&[1.0, 2.0, 2.0], 2)],
            vec![few(&[0.0, -0.0, 0.0], 1)],
            vec![few(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1.5, 1e-40, -1e-40], 2)],
            vec![few(&[f32::NAN], 1)],
        ];
        Case::new(graph, Bindings::new().with("rows", 3), steps).exact().check();
    }
    // A row of just as many elements as are asked for, and of fewer.
    let mut graph = Graph::new("all");
    let x = graph.input("x", DType::F32, &[5.into()]);
    let outputs = graph.add_node("y", Op::TopK(TopK { k: 5 }), vec![Some(x)]).expect("the largest");
    outputs.into_iter().for_each(|output| graph.output(output));
    Case::new(graph, Bindings::new(), vec![vec![random.f32(&[5])]]).exact().check();
    let mut graph = Graph::new("too many");
    let x = graph.input("x", DType::F32, &[4.into()]);
    assert!(graph.add_node("y", Op::TopK(TopK { k: 5 }), vec![Some(x)]).is_err());
    assert!(graph.add_node("y", Op::TopK(TopK { k: 0 }), vec![Some(x)]).is_err());
}
