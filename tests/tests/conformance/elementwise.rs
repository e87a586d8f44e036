//! Element-wise operators.

use core_tensor::op::{Binary, GatedActivation, Op, Unary};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::Random;

fn sizes(columns: usize) -> (Dim, Bindings, [usize; 4]) {
    let rows = [1, 2, 7, 3];
    (Dim::Num(columns), Bindings::new().with("rows", 7), rows)
}

#[test]
fn every_unary_function_agrees() {
    for op in Unary::ALL {
        let mut random = Random::new(1);
        let (columns, bounds, rows) = sizes(37);
        let mut graph = Graph::new("unary");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), columns]);
        let y = graph.add("y", Op::Unary(op), &[x]).expect("a function");
        graph.output(y);
        // Once more, in place, and on a value that is read again.
        let z = graph.add("z", Op::Unary(Unary::Neg), &[y]).expect("a function");
        let z = graph.add("z", Op::Unary(Unary::Abs), &[z]).expect("a function");
        graph.output(z);
        let steps = rows.map(|rows| vec![random.scaled_f32(&[rows, 37], 6.0)]);
        Case::new(graph, bounds, steps.into()).check();
    }
}

#[test]
fn unary_functions_agree_where_they_saturate() {
    let values = [
        0.0,
        -0.0,
        1e-30,
        -1e-30,
        1e-4,
        20.0,
        -20.0,
        87.0,
        -87.0,
        100.0,
        -100.0,
        3e38,
        -3e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    for op in [Unary::Neg, Unary::Abs, Unary::Tanh, Unary::Sigmoid, Unary::Relu, Unary::Sqrt, Unary::Exp, Unary::Log] {
        let mut graph = Graph::new("saturation");
        let x = graph.input("x", DType::F32, &[Dim::sym("n")]);
        let y = graph.add("y", Op::Unary(op), &[x]).expect("a function");
        graph.output(y);
        let steps = values.map(|value| vec![Tensor::from_slice(&[1], &[value]).expect("a small tensor")]);
        // One number at a time, so that none hides behind a larger one: a relative error of 3e-4 at most. Zero is zero only where the function
        // says so; sigmoid's 1e-38 for 0 is what the clamped exponential gives.
        let steps = steps.into_iter().filter(|step| {
            let x = step[0].to_f32().expect("floats")[0];
            op != Unary::Sigmoid || x > -80.0
        });
        let steps = steps.collect();
        Case::new(graph, Bindings::new().with("n", 1), steps).check();
    }
}

#[test]
fn every_binary_function_agrees_with_every_broadcast() {
    let r = Dim::sym("rows");
    let shapes: [(Vec<Dim>, Vec<Dim>); 9] = [
        (vec![r.clone(), 21.into()], vec![r.clone(), 21.into()]),
        (vec![r.clone(), 21.into()], vec![21.into()]),
        (vec![21.into()], vec![r.clone(), 21.into()]),
        (vec![r.clone(), 21.into()], vec![r.clone(), 1.into()]),
        (vec![1.into(), 21.into()], vec![r.clone(), 1.into()]),
        (vec![r.clone(), 3.into(), 4.into()], vec![3.into(), 1.into()]),
        (vec![r.clone(), 1.into(), 4.into()], vec![1.into(), 3.into(), 4.into()]),
        (vec![r.clone(), 5.into()], vec![]),
        (vec![], vec![]),
    ];
    for op in Binary::ALL {
        for (i, (a, b)) in shapes.iter().enumerate() {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("binary");
            let inputs = [graph.input("a", DType::F32, a), graph.input("b", DType::F32, b)];
            // Computed operands, whose buffers may be taken over.
            let operands = inputs.map(|x| graph.add("abs", Op::Unary(Unary::Abs), &[x]).expect("a function"));
            let y = graph.add("y", Op::Binary(op), &operands).expect("a function");
            graph.output(y);
            let own = graph.add("own", Op::Binary(op), &[inputs[0], inputs[0]]).expect("a function");
            graph.output(own);
            let steps = [1, 2, 7, 3].map(|rows| {
                let bindings = Bindings::new().with("rows", rows);
                let mut tensor =
                    |shape: &[Dim]| random.f32(&core_tensor::eval_shape(shape, &bindings).expect("rows are bound"));
                vec![tensor(a), tensor(b)]
            });
            Case::new(graph, Bindings::new().with("rows", 7), steps.into()).check();
        }
    }
}

#[test]
fn gated_activations_agree() {
    for activation in Unary::ALL {
        let mut random = Random::new(2);
        let (columns, bounds, rows) = sizes(19);
        let mut graph = Graph::new("gated");
        let gate = graph.input("gate", DType::F32, &[Dim::sym("rows"), columns.clone()]);
        let up = graph.input("up", DType::F32, &[Dim::sym("rows"), columns]);
        let op = GatedActivation { activation };
        let y = graph.add("y", Op::GatedActivation(op), &[gate, up]).expect("a gate");
        let z = graph.add("z", Op::GatedActivation(op), &[up, up]).expect("a gate");
        graph.output(y);
        graph.output(z);
        let steps = rows.map(|rows| vec![random.scaled_f32(&[rows, 19], 4.0), random.f32(&[rows, 19])]);
        Case::new(graph, bounds, steps.into()).check();
    }
}

proptest! {
    #![proptest_config(crate::random::proptest_config(16))]

    #[test]
    fn binary_functions_of_any_broadcast_agree(
        extents in prop::collection::vec((1usize..6, 0u8..4), 1..4),
        shorter in 0usize..3,
        op in prop::sample::select(Binary::ALL.to_vec()),
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let a: Vec<usize> = extents.iter().map(|(n, ones)| if ones & 1 == 1 && *n > 3 { 1 } else { *n }).collect();
        let b: Vec<usize> = extents.iter().map(|(n, ones)| if ones & 2 == 2 { 1 } else { *n }).collect();
        let b = b[shorter.min(b.len() - 1)..].to_vec();
        let mut graph = Graph::new("binary");
        let dims = |shape: &[usize]| shape.iter().map(|n| Dim::Num(*n)).collect::<Vec<_>>();
        let (x, y) = (graph.input("a", DType::F32, &dims(&a)), graph.input("b", DType::F32, &dims(&b)));
        for operands in [[x, y], [y, x]] {
            if let Ok(z) = graph.add("z", Op::Binary(op), &operands) {
                graph.output(z);
            }
        }
        Case::new(graph, Bindings::new(), vec![vec![random.f32(&a), random.f32(&b)]]).check();
    }
}
