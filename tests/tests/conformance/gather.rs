//! Gathering.

use core_tensor::op::{Cast, Gather, Op};
use core_tensor::{Bindings, BlockFormat, DType, Dim, Graph};

use crate::compare::Case;
use crate::random::Random;

#[test]
fn rows_of_tables_of_every_dtype_are_moved_and_decoded_exactly() {
    let plain = [DType::F32, DType::F16, DType::BF16, DType::F64, DType::F8E4M3, DType::F8E5M2, DType::I32];
    for (i, dtype) in plain.into_iter().chain(BlockFormat::ALL.map(DType::Block)).enumerate() {
        let mut random = Random::new(i as u64);
        let mut graph = Graph::new("gather");
        let row = if dtype.is_block() { 256 } else { 37 };
        let table = graph.weight("table", random.weight(dtype, &[11, row]));
        let indices = graph.input("indices", DType::I32, &[Dim::sym("rows")]);
        let y = graph.add("y", Op::Gather(Gather::rows()), &[table, indices]).expect("a gather");
        graph.output(y);
        let steps = [1, 5, 2].map(|rows| vec![random.i32_below(rows, 11)]);
        Case::new(graph, Bindings::new().with("rows", 5), steps.into()).exact().check();
    }
}

#[test]
fn elements_of_a_vector_are_gathered() {
    for (i, dtype) in [DType::F32, DType::F16, DType::I32].into_iter().enumerate() {
        let mut random = Random::new(70 + i as u64);
        let mut graph = Graph::new("gather");
        let table = graph.weight("table", random.weight(dtype, &[10]));
        let indices = graph.input("indices", DType::I32, &[Dim::sym("rows")]);
        let y = graph.add("y", Op::Gather(Gather::rows()), &[table, indices]).expect("a gather");
        graph.output(y);
        let steps = vec![vec![random.i32_below(5, 10)]];
        Case::new(graph, Bindings::new().with("rows", 5), steps).exact().check();
    }
}

#[test]
fn rows_of_more_than_one_extent_and_of_computed_values_are_moved_exactly() {
    let mut random = Random::new(50);
    let mut graph = Graph::new("gather");
    let indices = graph.input("indices", DType::I32, &[Dim::sym("rows")]);
    let x = graph.input("x", DType::F32, &[6.into(), 3.into()]);
    let n = graph.input("n", DType::I32, &[6.into()]);
    let h = graph.input("h", DType::F16, &[6.into(), 5.into()]);
    let table = graph.weight("table", random.weight(DType::Block(BlockFormat::Q8_0), &[6, 3, 32]));
    let half = graph.add("half", Op::Cast(Cast { to: DType::BF16 }), &[x]).expect("a cast");
    for data in [x, n, h, table, half] {
        let y = graph.add("y", Op::Gather(Gather::rows()), &[data, indices]).expect("a gather");
        graph.output(y);
        // And what was gathered, gathered again.
        let z = graph.add("z", Op::Gather(Gather::rows()), &[data, n]).expect("a gather");
        let z = graph.add("z", Op::Gather(Gather::rows()), &[z, indices]).expect("a gather");
        graph.output(z);
    }
    let steps = [1, 7, 3].map(|rows| {
        let h = random.stored(DType::F16, &[6, 5]);
        vec![random.i32_below(rows, 6), random.f32(&[6, 3]), random.i32_below(6, 6), h]
    });
    Case::new(graph, Bindings::new().with("rows", 7), steps.into()).exact().check();
}
