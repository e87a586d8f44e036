//! What is refused, and how.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Gather, MatMul, Op, Unary};
use core_tensor::{BackendError, Bindings, DType, Dim, Graph};

use crate::backends::candidates;
use crate::compare::load;
use crate::decoder::{Decoder, step};
use crate::random::{Random, ints};

fn product(k: usize) -> Arc<Graph> {
    let mut graph = Graph::new("product");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), k.into()]);
    let w = graph.weight("w", Random::new(1).weight(DType::F32, &[3, k]));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product");
    graph.output(y);
    Arc::new(graph)
}

#[test]
fn an_index_outside_of_a_table_is_an_error_and_the_next_run_is_right() {
    let mut random = Random::new(1);
    let mut graph = Graph::new("gather");
    let table = graph.weight("table", random.weight(DType::F16, &[5, 40]));
    let data = graph.input("data", DType::F32, &[5.into(), 40.into()]);
    let indices = graph.input("indices", DType::I32, &[Dim::sym("rows")]);
    for data in [table, data] {
        let y = graph.add("y", Op::Gather(Gather::rows()), &[data, indices]).expect("a gather");
        let y = graph.add("abs", Op::Unary(Unary::Abs), &[y]).expect("a function");
        graph.output(y);
    }
    let graph = Arc::new(graph);
    let data = random.f32(&[5, 40]);
    for candidate in candidates() {
        let bounds = Bindings::new().with("rows", 4);
        let mut loaded = load(&*candidate.backend, &graph, 1, &bounds).expect("it loads");
        let right = [data.clone(), ints(&[4, 0])];
        let expected = loaded.run(&right).expect("it runs");
        for wrong in [5, -6, i32::MAX, i32::MIN] {
            let result = loaded.run(&[data.clone(), ints(&[0, wrong, 1])]);
            assert!(matches!(result, Err(BackendError::Op(_))), "{wrong}: {result:?}");
            let again = loaded.run(&right).expect("it runs");
            assert!(again.iter().zip(&expected).all(|(a, b)| a.bytes() == b.bytes()));
        }
    }
}

#[test]
fn what_exceeds_the_bounds_or_has_none_is_refused() {
    let graph = product(4);
    for candidate in candidates() {
        let backend = &*candidate.backend;
        let mut loaded = load(backend, &graph, 1, &Bindings::new().with("rows", 2)).expect("it loads");
        assert!(matches!(loaded.run(&[Random::new(1).f32(&[3, 4])]), Err(BackendError::Bound { .. })));
        assert!(matches!(loaded.run(&[Random::new(1).f32(&[2, 5])]), Err(BackendError::Graph(_))));
        assert!(matches!(loaded.run(&[ints(&[1])]), Err(BackendError::Graph(_))));
        assert!(loaded.run(&[Random::new(1).f32(&[2, 4])]).is_ok());
        assert!(loaded.run(&[Random::new(1).f32(&[0, 4])]).is_ok_and(|y| y[0].shape() == [0, 3]));
        assert!(load(backend, &graph, 1, &Bindings::new()).is_err());
    }
}

#[test]
fn an_extent_that_grows_as_its_symbol_falls_is_refused_beyond_what_was_planned() {
    let mut graph = Graph::new("falling");
    let a = graph.input("a", DType::F32, &[Dim::sym("rows")]);
    let b = graph.input("b", DType::F32, &[Dim::Num(512).sub(Dim::sym("rows"))]);
    for x in [a, b] {
        let y = graph.add("y", Op::Unary(Unary::Abs), &[x]).expect("a function");
        graph.output(y);
    }
    let graph = Arc::new(graph);
    for candidate in candidates() {
        let bounds = Bindings::new().with("rows", 256);
        let mut loaded = load(&*candidate.backend, &graph, 1, &bounds).expect("it loads");
        let mut random = Random::new(1);
        assert!(loaded.run(&[random.f32(&[256]), random.f32(&[256])]).is_ok());
        let result = loaded.run(&[random.f32(&[1]), random.f32(&[511])]);
        assert!(matches!(result, Err(BackendError::Bound { .. })), "{result:?}");
    }
}

#[test]
fn parts_of_different_models_are_refused() {
    let (a, b) = (product(4), Decoder::default().graph());
    let bounds = Decoder::bounds();
    for candidate in candidates() {
        let backend = &*candidate.backend;
        let weights = backend.load_weights(&a, &mut |_, _| ControlFlow::Continue(())).expect("it loads");
        assert!(matches!(backend.compile(&b, &weights, &bounds), Err(BackendError::Mismatch(_))));
        let other = load(backend, &a, 1, &bounds).expect("it loads");
        let mut loaded = load(backend, &b, 1, &bounds).expect("it loads");
        loaded.session = other.session;
        assert!(matches!(loaded.run(&step(&[1], 0, 0)), Err(BackendError::Mismatch(_))));
        let reference = core_tensor::ReferenceBackend::default();
        loaded.session = load(&reference, &b, 1, &bounds).expect("it loads").session;
        assert!(matches!(loaded.run(&step(&[1], 0, 0)), Err(BackendError::Mismatch(_))));
    }
}

#[test]
fn loading_that_is_cancelled_says_so() {
    let graph = Decoder::default().graph();
    for candidate in candidates() {
        let result = candidate.backend.load_weights(&graph, &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(result, Err(BackendError::Cancelled)));
    }
}
