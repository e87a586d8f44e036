//! Products of computed and of several matrices, with what follows them.

use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{Bindings, DType, Dim, Graph};

use crate::compare::Case;
use crate::random::Random;

#[test]
fn products_of_several_matrices_agree_with_every_broadcast() {
    let b = Dim::sym("batch");
    let shapes: [(Vec<Dim>, Vec<Dim>); 9] = [
        (vec![b.clone()], vec![b.clone()]),
        (vec![b.clone(), 2.into()], vec![b.clone(), 2.into()]),
        (vec![b.clone()], vec![1.into()]),
        (vec![1.into()], vec![b.clone()]),
        (vec![], vec![b.clone()]),
        (vec![b.clone()], vec![]),
        (vec![b.clone(), 1.into()], vec![1.into(), 3.into()]),
        (vec![3.into()], vec![b.clone(), 3.into()]),
        (vec![b.clone(), 3.into()], vec![1.into(), 3.into()]),
    ];
    for transpose_b in [false, true] {
        for (k, n) in [(32, 64), (37, 70), (5, 3)] {
            for (i, (a_batch, b_batch)) in shapes.iter().enumerate() {
                let mut random = Random::new(i as u64);
                let mut graph = Graph::new("products");
                let a_shape = [&a_batch[..], &[Dim::sym("m"), k.into()]].concat();
                let last = if transpose_b { [n, k] } else { [k, n] };
                let b_shape = [&b_batch[..], &last.map(Dim::Num)].concat();
                let inputs = [graph.input("a", DType::F32, &a_shape), graph.input("b", DType::F32, &b_shape)];
                let y = graph.add("y", Op::MatMul(MatMul { transpose_b }), &inputs).expect("a product");
                graph.output(y);
                let steps = [(1, 1), (2, 9), (3, 5), (2, 33)].map(|(batch, m)| {
                    let bindings = Bindings::new().with("batch", batch).with("m", m);
                    let mut tensor = |shape: &[Dim]| {
                        random.f32(&core_tensor::eval_shape(shape, &bindings).expect("symbols are bound"))
                    };
                    vec![tensor(&a_shape), tensor(&b_shape)]
                });
                Case::new(graph, Bindings::new().with("batch", 3).with("m", 33), steps.into()).everywhere().check();
            }
        }
    }
}

#[test]
fn products_with_a_vector_and_with_weights_of_many_matrices_agree() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let mut random = Random::new(6);
        let mut graph = Graph::new("products");
        let x = graph.input("x", DType::F32, &[3.into(), Dim::sym("m"), 40.into()]);
        let v = graph.input("v", DType::F32, &[40.into()]);
        let w = graph.weight("w", random.weight(dtype, &[3, 40, 9]));
        let one = graph.weight("one", random.weight(dtype, &[40, 9]));
        for (a, b) in [(x, w), (v, w), (v, one), (x, one)] {
            let y = graph.add("y", Op::MatMul(MatMul { transpose_b: false }), &[a, b]).expect("a product");
            graph.output(y);
        }
        let steps = [1, 6].map(|m| vec![random.f32(&[3, m, 40]), random.f32(&[40])]);
        Case::new(graph, Bindings::new().with("m", 6), steps.into()).everywhere().check();
    }
}

#[test]
fn what_follows_a_product_is_computed_with_it_in_every_order() {
    let functions =
        [None, Some(Unary::Relu), Some(Unary::Tanh), Some(Unary::Gelu), Some(Unary::Silu), Some(Unary::HardSwish)];
    for (i, function) in functions.into_iter().enumerate() {
        for residual_first in [false, true] {
            let mut random = Random::new(i as u64);
            let mut graph = Graph::new("epilogue");
            let x = graph.input("x", DType::F32, &[2.into(), Dim::sym("rows"), 64.into()]);
            let r = graph.input("r", DType::F32, &[2.into(), Dim::sym("rows"), 70.into()]);
            let residual = graph.add("residual", Op::Unary(Unary::Abs), &[r]).expect("a function");
            let w = graph.weight("w", random.weight(DType::F16, &[64, 70]));
            let bias = graph.weight("bias", random.weight(DType::F32, &[70]));
            let add = Op::Binary(Binary::Add);
            let mut y = graph.add("y", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).expect("a product");
            y = graph.add("biased", add.clone(), &[y, bias]).expect("a sum");
            let apply = |graph: &mut Graph, y| match function {
                Some(function) => graph.add("function", Op::Unary(function), &[y]).expect("a function"),
                None => y,
            };
            if residual_first {
                y = graph.add("sum", add, &[residual, y]).expect("a sum");
                y = apply(&mut graph, y);
            } else {
                y = apply(&mut graph, y);
                y = graph.add("sum", add, &[y, residual]).expect("a sum");
            }
            graph.output(y);
            let steps = [1, 4, 17].map(|rows| vec![random.f32(&[2, rows, 64]), random.f32(&[2, rows, 70])]);
            Case::new(graph.clone(), Bindings::new().with("rows", 17), steps.into()).everywhere().check();
            // And one row.
            let steps = vec![vec![random.f32(&[2, 1, 64]), random.f32(&[2, 1, 70])]];
            Case::new(graph, Bindings::new().with("rows", 1), steps).everywhere().check();
        }
    }
}
