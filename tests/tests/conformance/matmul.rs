//! Matrix products with weights of every dtype.

use core_tensor::op::{MatMul, Op};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph, Tensor};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

/// Row counts around the tiles of kernels.
const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 7, 9, 33, 1];

fn dtypes() -> impl Iterator<Item = DType> {
    let plain = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::F8E4M3, DType::F8E5M2];
    plain.into_iter().chain(BlockFormat::ALL.map(DType::Block))
}

fn product(dtype: DType, n: usize, k: usize, transpose_b: bool, rows: &[usize], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("product");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), k.into()]);
    let shape = if transpose_b { [n, k] } else { [k, n] };
    let w = graph.weight("w", random.weight(dtype, &shape));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b }), &[x, w]).expect("a product");
    graph.output(y);
    let bounds = Bindings::new().with("rows", rows.iter().copied().max().unwrap_or(1));
    Case::new(graph, bounds, rows.iter().map(|rows| vec![random.f32(&[*rows, k])]).collect())
}

#[test]
fn products_with_weights_of_every_dtype_agree_at_odd_sizes() {
    for (i, dtype) in dtypes().enumerate() {
        let shapes = match dtype.packing().0 {
            1 => [(1, 1), (17, 7), (33, 70)],
            len => [(1, len), (17, 3 * len), (33, 2 * len)],
        };
        for (n, k) in shapes {
            product(dtype, n, k, true, &ROWS, i as u64).check();
        }
    }
}

#[test]
fn products_with_untransposed_weights_agree() {
    for (i, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
        product(dtype, 19, 33, false, &ROWS, 90 + i as u64).check();
    }
}

#[test]
fn a_weight_may_be_used_as_it_is_and_transposed() {
    let mut random = Random::new(5);
    let mut graph = Graph::new("both");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 20.into()]);
    let w = graph.weight("w", random.weight(DType::F32, &[20, 20]));
    for transpose_b in [true, false] {
        let y = graph.add("y", Op::MatMul(MatMul { transpose_b }), &[x, w]).expect("a product");
        graph.output(y);
    }
    Case::new(graph, Bindings::new().with("rows", 3), vec![vec![random.f32(&[3, 20])]]).check();
}

#[test]
fn products_of_vectors_and_of_batches_agree() {
    let mut random = Random::new(6);
    let mut graph = Graph::new("ranks");
    let w = graph.weight("w", random.weight(DType::Block(BlockFormat::Q8_0), &[5, 32]));
    let vector = graph.input("vector", DType::F32, &[32.into()]);
    let batch = graph.input("batch", DType::F32, &[2.into(), Dim::sym("rows"), 32.into()]);
    for x in [vector, batch] {
        let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product");
        graph.output(y);
    }
    let steps = [1, 3, 6].map(|rows| vec![random.f32(&[32]), random.f32(&[2, rows, 32])]);
    Case::new(graph, Bindings::new().with("rows", 6), steps.into()).check();
}

#[test]
fn activations_of_any_magnitude_are_rounded_alike() {
    let mut random = Random::new(7);
    for scale in [1e-30, 1e-6, 1e4, 1e20] {
        let mut case = product(DType::Block(BlockFormat::Q4_0), 16, 64, true, &[5], 8);
        case.steps = vec![vec![random.scaled_f32(&[5, 64], scale)]];
        case.check();
    }
    let mut case = product(DType::Block(BlockFormat::Q4_1), 16, 64, true, &[5], 8);
    case.steps = vec![vec![Tensor::zeroed(DType::F32, &[5, 64]).expect("a small tensor")]];
    case.check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(24))]

    #[test]
    fn products_of_any_size_agree(
        dtype in prop::sample::select(dtypes().collect::<Vec<_>>()),
        n in 1usize..80,
        k in 1usize..6,
        rows in prop::collection::vec(1usize..40, 1..4),
        seed: u64,
    ) {
        let k = match dtype.packing().0 { 1 => k * 13, 256 => 256 * k.min(3), len => k * len };
        product(dtype, n, k, true, &rows, seed).check();
    }
}
