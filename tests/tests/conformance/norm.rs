//! Normalizations.

use core_tensor::op::{Op, RmsNormalization};
use core_tensor::{Bindings, DType, Dim, Graph};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

fn rms(n: usize, heads: Option<usize>, epsilon: f32, weight_is_input: bool, rows: &[usize], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("norm");
    let shape: Vec<Dim> = [Dim::sym("rows")].into_iter().chain(heads.map(Dim::from)).chain([n.into()]).collect();
    let x = graph.input("x", DType::F32, &shape);
    let w = random.stored(DType::F32, &[n]);
    let weight = if weight_is_input {
        graph.input("w", DType::F32, &[n.into()])
    } else {
        graph.weight("w", core_tensor::Weight::stored(w.clone()))
    };
    let y = graph.add("y", Op::RmsNormalization(RmsNormalization { epsilon }), &[x, weight]).expect("a norm");
    graph.output(y);
    let steps = rows.iter().map(|rows| {
        let shape: Vec<usize> = [*rows].into_iter().chain(heads).chain([n]).collect();
        let mut inputs = vec![random.scaled_f32(&shape, 3.0)];
        inputs.extend(weight_is_input.then(|| w.clone()));
        inputs
    });
    let steps = steps.collect();
    Case::new(graph, Bindings::new().with("rows", rows.iter().copied().max().unwrap_or(1)), steps)
}

#[test]
fn rms_normalization_agrees_at_odd_sizes() {
    for (i, n) in [1, 3, 16, 20, 31, 33, 576].into_iter().enumerate() {
        rms(n, None, 1e-5, i % 2 == 0, &[1, 2, 5, 3], i as u64).check();
    }
}

#[test]
fn rms_normalization_of_heads_agrees() {
    rms(64, Some(3), 1e-6, false, &[1, 2, 5], 1).check();
    rms(20, Some(1), 1e-6, true, &[1, 7], 2).check();
}

#[test]
fn epsilon_counts_where_rows_are_small() {
    rms(33, None, 10.0, false, &[2], 3).check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(12))]

    #[test]
    fn rms_normalization_of_any_size_agrees(
        n in 1usize..300,
        heads in prop::option::of(1usize..5),
        rows in prop::collection::vec(1usize..9, 1..3),
        seed: u64,
    ) {
        rms(n, heads, 1e-5, seed % 2 == 0, &rows, seed).check();
    }
}
