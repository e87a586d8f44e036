//! Keys and values that grow by concatenation become states.

use std::sync::Arc;

use core_tensor::op::{Op, TensorAttention};
use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, Tensor, ValueId};
use polaris_optimizer::{PastError, PastToStates, past_to_states};

use crate::graphs::{Build, run, sym};

const DIM: usize = 4;

/// A decoder's attention with two heads that share one of keys and values.
fn decoder(needs_length: bool) -> Graph {
    let mut b = Build::new();
    let x = b.input(&[sym("batch"), sym("tokens"), 8.into()]);
    let past: Vec<ValueId> = (0..2).map(|_| b.input(&[sym("batch"), 1.into(), sym("past"), DIM.into()])).collect();
    let mask = b.input(&[1.into(), 1.into(), sym("tokens"), sym("past").add(sym("tokens"))]);
    let project = |n: usize, b: &mut Build| {
        let w = b.weight(&[8, n * DIM]);
        let y = b.matmul(x, w);
        b.reshape(y, &[sym("batch"), sym("tokens"), n.into(), DIM.into()])
    };
    let (q, k, v) = (project(2, &mut b), project(1, &mut b), project(1, &mut b));
    let joined: Vec<ValueId> = [(past[0], k), (past[1], v)]
        .into_iter()
        .map(|(past, new)| {
            let new = b.transpose(new, &[0, 2, 1, 3]);
            b.concat(2, &[past, new])
        })
        .collect();
    let [k, v] = [joined[0], joined[1]].map(|x| b.transpose(x, &[0, 2, 1, 3]));
    let op = TensorAttention { scale: 0.5, causal: true, softcap: None };
    let y = b.op(Op::TensorAttention(op), &[q, k, v, mask]);
    let mut y = b.reshape(y, &[sym("batch"), sym("tokens"), 8.into()]);
    if needs_length {
        let length = b.op(Op::ExtentValues(core_tensor::op::ExtentValues { dims: vec![sym("past")] }), &[]);
        let length = b.cast(length, DType::F32);
        y = b.add(y, length);
    }
    b.graph.output(joined[0]);
    b.graph.output(joined[1]);
    b.output(y)
}

fn options() -> PastToStates {
    PastToStates { capacity: Dim::Num(16), dtype: DType::F32 }
}

#[test]
fn steps_over_states_give_what_one_run_over_everything_gives() {
    let graph = decoder(false);
    let (with_states, count) = past_to_states(&graph, &options()).unwrap();
    assert_eq!(
        (count, with_states.states().len(), with_states.inputs().len(), with_states.outputs().len()),
        (1, 2, 3, 1)
    );
    let mut numbers = Build::new();
    let x: Vec<f32> = (0..5 * 8).map(|_| numbers.next()).collect();
    let none = Tensor::zeroed(DType::F32, &[1, 1, 0, DIM]).unwrap();
    let mask = Tensor::zeroed(DType::F32, &[1, 1, 5, 5]).unwrap();
    let whole = run(graph, &[Tensor::from_slice(&[1, 5, 8], &x).unwrap(), none.clone(), none, mask]);
    let expected = whole[2].to_f32().unwrap();
    let with_states = Arc::new(with_states);
    let mut states = HostStates::new(&with_states, 1, &Bindings::new()).unwrap();
    let interpreter = Interpreter::new(with_states);
    let mut found = Vec::new();
    for (start, end) in [(0, 3), (3, 4), (4, 5)] {
        let step = Tensor::from_slice(&[1, end - start, 8], &x[start * 8..end * 8]).unwrap();
        let positions: Vec<i32> = (start as i32..end as i32).collect();
        let positions = Tensor::from_slice(&[end - start], &positions).unwrap();
        let slots = Tensor::from_slice(&[end - start], &vec![0i32; end - start]).unwrap();
        found.extend(interpreter.run(&mut states, &[step, positions, slots]).unwrap()[0].to_f32().unwrap());
    }
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-5), "{found:?} {expected:?}");
}

#[test]
fn a_node_that_needs_the_length_of_the_past_is_named() {
    let error = past_to_states(&decoder(true), &options()).unwrap_err();
    assert!(matches!(&error, PastError::Needed { what, .. } if what == "the extent past"), "{error}");
}

#[test]
fn a_graph_without_past_is_refused() {
    let mut b = Build::new();
    let x = b.input(&[sym("rows"), 4.into()]);
    let y = b.softmax(x);
    assert_eq!(past_to_states(&b.output(y), &options()).unwrap_err(), PastError::NotFound(None));
}
