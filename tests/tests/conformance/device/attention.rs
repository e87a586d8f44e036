//! Attention over tensors.

use core_tensor::op::{Op, TensorAttention};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor};

use crate::compare::Case;
use crate::random::Random;

/// Heads, heads of keys, elements of keys and of values: each shape is a shader of its own, which software drivers take seconds to compile.
const HEADS: [(usize, usize, usize, usize); 3] = [(4, 2, 16, 24), (3, 1, 5, 7), (1, 1, 40, 300)];

fn graph(shape: (usize, usize, usize, usize), op: TensorAttention, mask: Option<(DType, Vec<Dim>)>) -> Graph {
    let (heads, kv, dim, value) = shape;
    let (batch, tokens, n) = (Dim::sym("batch"), Dim::sym("tokens"), Dim::sym("n"));
    let mut graph = Graph::new("attention");
    let q = graph.input("q", DType::F32, &[batch.clone(), tokens, heads.into(), dim.into()]);
    let k = graph.input("k", DType::F32, &[batch.clone(), n.clone(), kv.into(), dim.into()]);
    let v = graph.input("v", DType::F32, &[batch, n, kv.into(), value.into()]);
    let mut inputs = vec![q, k, v];
    inputs.extend(mask.map(|(dtype, shape)| graph.input("mask", dtype, &shape)));
    let y = graph.add("y", Op::TensorAttention(op), &inputs).expect("an attention");
    graph.output(y);
    graph
}

const PLAIN: TensorAttention = TensorAttention { scale: 0.2, causal: false, softcap: None };

fn steps(
    random: &mut Random,
    (heads, kv, dim, value): (usize, usize, usize, usize),
    mask: Option<(DType, &[Dim])>,
) -> Vec<Vec<Tensor>> {
    [(1, 1, 1), (2, 20, 70), (1, 33, 5), (2, 3, 64)]
        .map(|(batch, tokens, n)| {
            let mut inputs = vec![
                random.scaled_f32(&[batch, tokens, heads, dim], 3.0),
                random.scaled_f32(&[batch, n, kv, dim], 3.0),
                random.f32(&[batch, n, kv, value]),
            ];
            if let Some((dtype, shape)) = mask {
                let bindings = Bindings::new().with("batch", batch).with("tokens", tokens).with("n", n);
                let shape = core_tensor::eval_shape(shape, &bindings).expect("symbols are bound");
                inputs.push(if dtype == DType::F32 {
                    random.scaled_f32(&shape, 5.0)
                } else {
                    let bytes: Vec<u8> = (0..shape.iter().product()).map(|_| u8::from(random.below(3) > 0)).collect();
                    Tensor::from_bytes(dtype, &shape, &bytes).expect("a small tensor")
                });
            }
            inputs
        })
        .into()
}

fn bounds() -> Bindings {
    Bindings::new().with("batch", 2).with("tokens", 33).with("n", 70)
}

#[test]
fn heads_of_every_size_attend_with_and_without_an_order() {
    for (i, shape) in HEADS.into_iter().enumerate() {
        let others = [TensorAttention { causal: true, ..PLAIN }, TensorAttention { softcap: Some(3.0), ..PLAIN }];
        for op in [PLAIN].into_iter().chain(others.into_iter().filter(|_| i == 0)) {
            let steps = steps(&mut Random::new(i as u64), shape, None);
            Case::new(graph(shape, op, None), bounds(), steps).everywhere().check();
        }
    }
}

#[test]
fn masks_of_every_broadcast_are_seen() {
    let (batch, tokens, n) = (Dim::sym("batch"), Dim::sym("tokens"), Dim::sym("n"));
    let shapes: [Vec<Dim>; 6] = [
        vec![batch.clone(), 1.into(), 1.into(), n.clone()],
        vec![batch.clone(), 2.into(), tokens.clone(), n.clone()],
        vec![1.into(), 2.into(), tokens.clone(), n.clone()],
        vec![tokens.clone(), n.clone()],
        vec![batch, 1.into(), tokens, 1.into()],
        vec![n],
    ];
    for dtype in [DType::F32, DType::Bool] {
        for (i, shape) in shapes.iter().enumerate() {
            let heads = (2, 1, 16, 24);
            let steps = steps(&mut Random::new(i as u64), heads, Some((dtype, shape)));
            Case::new(graph(heads, PLAIN, Some((dtype, shape.clone()))), bounds(), steps).everywhere().check();
        }
    }
}

#[test]
fn rows_that_see_nothing_give_zeros_and_the_least_mask_hides_as_in_the_reference() {
    let heads = (1, 1, 8, 8);
    let shape: Vec<Dim> = vec![3.into(), Dim::sym("n")];
    let mut random = Random::new(1);
    for hidden in [f32::NEG_INFINITY, f32::MIN, -10_000.0] {
        let mask: Vec<f32> = (0..210).map(|i| if i < 70 || i % 3 == 0 { hidden } else { 0.0 }).collect();
        let inputs = vec![
            random.f32(&[1, 3, 1, 8]),
            random.f32(&[1, 70, 1, 8]),
            random.f32(&[1, 70, 1, 8]),
            Tensor::from_slice(&[3, 70], &mask).expect("a small tensor"),
        ];
        let graph = graph(heads, PLAIN, Some((DType::F32, shape.clone())));
        Case::new(graph, bounds().with("tokens", 3), vec![inputs]).everywhere().check();
    }
}
