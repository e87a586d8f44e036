//! Submissions that take too long are cut into shorter ones.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use core_tensor::op::{MatMul, Op};
use core_tensor::{Backend, Bindings, DType, Dim, Graph, ReferenceBackend};
use gpu_polaris::GpuOptions;

use crate::model::{assert_near, floats, open};
use crate::random::Random;

#[test]
fn a_program_whose_submission_took_too_long_is_recorded_again_in_pieces() {
    // No work ends within a nanosecond: after the first full run every product is a submission of its own.
    let options = GpuOptions::default().with_submission_time(Duration::from_nanos(1)).with_validation();
    let backend = open(&options);
    let mut random = Random::new(6);
    let mut graph = Graph::new("products");
    let mut x = graph.input("x", DType::F32, &[Dim::sym("rows"), 64.into()]);
    let products = 4u64;
    for i in 0..products {
        let w = graph.weight(&format!("w{i}"), random.weight(DType::F32, &[64, 64]));
        x = graph.add(&format!("y{i}"), Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
    }
    graph.output(x);
    let (graph, bounds) = (Arc::new(graph), Bindings::new().with("rows", 3));
    let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let program = backend.compile(&graph, &weights, &bounds).unwrap();
    let mut session = backend.new_session(&graph, 1, &bounds).unwrap();
    let mut submissions = || {
        let before = backend.gpu().submissions();
        for rows in [2, 3] {
            let input = random.f32(&[rows, 64]);
            let found = floats(&program.run(&mut *session, std::slice::from_ref(&input)).unwrap());
            let reference = ReferenceBackend::new(false);
            let weights = reference.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let expected = reference.compile(&graph, &weights, &bounds).unwrap();
            let mut states = reference.new_session(&graph, 1, &bounds).unwrap();
            assert_near(&found, &floats(&expected.run(&mut *states, &[input]).unwrap()));
        }
        backend.gpu().submissions() - before
    };
    assert_eq!(submissions(), 2, "what is not measured is one submission a run");
    // And one that brings the output to the host.
    assert_eq!(submissions(), 2 * (products + 1), "what was measured is cut");
    assert_eq!(submissions(), 2 * (products + 1), "and stays as it is");
    assert_eq!(backend.gpu().validation_messages(), Vec::<String>::new());
}
