//! Devices whose limits are small: what can be cut is cut, what cannot is refused with the reason.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Gather, MatMul, Op};
use core_tensor::{Backend, Bindings, BlockFormat, DType, Dim, Graph, ReferenceBackend, Tensor};
use gpu_polaris::GpuOptions;

use crate::model::{assert_near, floats, open};
use crate::random::Random;

const MIB: u64 = 1 << 20;

/// A device that binds and allocates a mebibyte at most.
fn small() -> GpuOptions {
    GpuOptions::default().with_max_range(MIB).with_max_allocation(MIB).with_validation()
}

/// Every format that kernels read.
fn formats() -> Vec<DType> {
    use BlockFormat::*;
    let blocks = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0];
    let blocks = blocks.map(DType::Block);
    [DType::F32, DType::F16, DType::BF16].into_iter().chain(blocks).collect()
}

fn run(backend: &dyn Backend, graph: &Arc<Graph>, bounds: &Bindings, inputs: &[Tensor]) -> Vec<f32> {
    let weights = backend.load_weights(graph, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let program = backend.compile(graph, &weights, bounds).unwrap();
    let mut session = backend.new_session(graph, 1, bounds).unwrap();
    floats(&program.run(&mut *session, inputs).unwrap())
}

/// Rows whose layout takes more than two mebibytes in a format, so that there are three chunks and arenas at least.
fn rows_of_chunks(format: DType, k: usize) -> usize {
    (5 * MIB as usize / 2) / format.row_bytes(k).expect("whole blocks")
}

#[test]
fn matrices_larger_than_a_binding_and_an_allocation_are_cut_in_every_format() {
    let backend = open(&small());
    let k = 768;
    for format in formats() {
        let mut random = Random::new(3);
        // Not whole tiles: the last chunk ends within one.
        let n = rows_of_chunks(format, k) + 5;
        let mut graph = Graph::new("large");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), k.into()]);
        let w = graph.weight("w", random.weight(format, &[n, k]));
        let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
        graph.output(y);
        let graph = Arc::new(graph);
        for rows in [1, 3] {
            let bounds = Bindings::new().with("rows", rows);
            let x = random.f32(&[rows, k]);
            let found = run(&backend, &graph, &bounds, std::slice::from_ref(&x));
            let expected = run(&ReferenceBackend::new(false), &graph, &bounds, &[x]);
            assert_near(&found, &expected);
        }
        assert_eq!(backend.gpu().validation_messages(), Vec::<String>::new(), "{format}");
    }
    assert_eq!(backend.gpu().allocated(), 0);
}

#[test]
fn an_embedding_table_in_chunks_gives_every_row_from_the_right_one() {
    let backend = open(&small());
    let k = 512;
    for format in formats() {
        let mut random = Random::new(4);
        let n = rows_of_chunks(format, k) + 7;
        let mut graph = Graph::new("table");
        let indices = graph.input("indices", DType::I32, &[Dim::sym("rows")]);
        let table = graph.weight("table", random.weight(format, &[n, k]));
        let y = graph.add("rows", Op::Gather(Gather::rows()), &[table, indices]).unwrap();
        graph.output(y);
        let graph = Arc::new(graph);
        // First and last rows, both sides of every tile's edge that may be a chunk's, and some between.
        let mut wanted: Vec<i32> =
            (0..n).step_by(64).flat_map(|i| [i, (i + 63).min(n - 1)]).map(|i| i as i32).collect();
        wanted.push(n as i32 - 1);
        let stride = wanted.len().div_ceil(96);
        let wanted: Vec<i32> = wanted.into_iter().rev().step_by(stride).collect();
        let bounds = Bindings::new().with("rows", wanted.len());
        let inputs = [Tensor::from_slice(&[wanted.len()], &wanted).unwrap()];
        let found = run(&backend, &graph, &bounds, &inputs);
        let expected = run(&ReferenceBackend::new(false), &graph, &bounds, &inputs);
        let differs = found.iter().zip(&expected).position(|(a, b)| (a - b).abs() > 1e-6 * b.abs());
        assert_eq!(differs.map(|i| wanted[i / k]), None, "the row of {format} that differs");
        assert_eq!(backend.gpu().validation_messages(), Vec::<String>::new(), "{format}");
    }
}

#[test]
fn a_value_that_cannot_be_cut_is_refused_by_its_name_and_size() {
    let backend = open(&small());
    let mut graph = Graph::new("wide");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 2048.into()]);
    let w = graph.weight("w", Random::new(5).weight(DType::F32, &[64, 2048]));
    let y = graph.add("product", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
    let z = graph.add("again", Op::MatMul(MatMul { transpose_b: true }), &[y, y]).unwrap();
    graph.output(z);
    let graph = Arc::new(graph);
    let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).unwrap();
    // 1024 rows of 2048 floats are eight mebibytes; nothing binds that.
    let refused = backend.compile(&graph, &weights, &Bindings::new().with("rows", 1024));
    let text = refused.map(drop).unwrap_err().to_string();
    assert!(text.contains("bytes") && text.contains("1048576"), "{text}");
    // A few rows fit.
    backend.compile(&graph, &weights, &Bindings::new().with("rows", 32)).unwrap();
}

#[test]
fn a_weight_whose_single_tile_is_too_large_is_refused_by_its_name_and_size() {
    let backend = open(&GpuOptions::default().with_max_range(64 << 10));
    let mut graph = Graph::new("long rows");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 1024.into()]);
    let w = graph.weight("long", Random::new(6).weight(DType::F32, &[64, 1024]));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
    graph.output(y);
    let loaded = backend.load_weights(&Arc::new(graph), &mut |_, _| ControlFlow::Continue(()));
    let text = loaded.map(drop).expect_err("a tile has 262144 bytes").to_string();
    assert!(text.contains("\"long\"") && text.contains("262144") && text.contains("65536"), "{text}");
    assert_eq!(backend.gpu().allocated(), 0);
}
