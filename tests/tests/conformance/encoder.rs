//! What encoders are made of: layer normalization, attention over tensors, functions after products.

use std::sync::atomic::AtomicUsize;

use core_tensor::op::{
    Binary, LayerNormalization, MatMul, Op, Reshape, RmsNormalization, Softmax, TensorAttention, Transpose, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId, Weight};
use proptest::prelude::*;

use crate::backends::sampled;
use crate::compare::Case;
use crate::random::Random;

fn layer_norm(n: usize, weight: bool, bias: bool, mean: f32, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("norm");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), n.into()]);
    let mut parameter =
        |name: &str, there: bool| there.then(|| graph.weight(name, Weight::stored(random.stored(DType::F32, &[n]))));
    let inputs = vec![Some(x), parameter("w", weight), parameter("b", bias)];
    let y = graph.add_node("y", Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 }), inputs).expect("a norm");
    graph.output(y[0]);
    let steps = [1, 2, 7].map(|rows| {
        let x: Vec<f32> = random.f32(&[rows, n]).to_f32().expect("floats").iter().map(|x| x + mean).collect();
        vec![Tensor::from_slice(&[rows, n], &x).expect("rows")]
    });
    Case::new(graph, Bindings::new().with("rows", 7), steps.into())
}

#[test]
fn layer_normalization_agrees_at_odd_sizes_with_and_without_parameters() {
    for (i, n) in [2, 3, 16, 31, 33, 48, 384].into_iter().enumerate() {
        layer_norm(n, i % 2 == 0, i % 3 == 0, 0.0, i as u64).check();
        layer_norm(n, true, true, 0.0, i as u64).check();
    }
}

#[test]
fn the_variance_of_rows_far_from_zero_is_not_lost() {
    layer_norm(100, true, true, 100.0, 1).check();
}

fn linear(graph: &mut Graph, random: &mut Random, x: ValueId, n: usize, k: usize) -> ValueId {
    let w = graph.weight("w", random.weight(DType::F32, &[n, k]));
    let b = graph.weight("b", random.weight(DType::F32, &[n]));
    let y = graph.add("product", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product");
    graph.add("biased", Op::Binary(Binary::Add), &[y, b]).expect("a sum")
}

#[test]
fn a_normalization_is_read_by_products_and_by_others() {
    for rms in [false, true] {
        for (n, seed) in [(33, 1), (64, 2)] {
            let mut random = Random::new(seed);
            let mut graph = Graph::new("block");
            let x = graph.input("x", DType::F32, &[Dim::sym("rows"), n.into()]);
            let x = graph.add("moved", Op::Unary(Unary::Neg), &[x]).expect("a function");
            let w = graph.weight("norm", random.weight(DType::F32, &[n]));
            let op = if rms {
                Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 })
            } else {
                Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 })
            };
            let y = graph.add("normal", op, &[x, w]).expect("a norm");
            let a = linear(&mut graph, &mut random, y, n, n);
            let b = linear(&mut graph, &mut random, y, 17, n);
            // The residual is the normalized value, and so is an output.
            let sum = graph.add("sum", Op::Binary(Binary::Add), &[a, y]).expect("a sum");
            let again = graph.add("again", Op::Binary(Binary::Mul), &[sum, y]).expect("a product");
            for output in [b, sum, again, y] {
                graph.output(output);
            }
            let steps = [1, 4, 9, 2].map(|rows| vec![random.f32(&[rows, n])]);
            Case::new(graph, Bindings::new().with("rows", 9), steps.into()).check();
        }
    }
}

#[test]
fn functions_after_products_agree() {
    for (i, op) in Unary::all().into_iter().enumerate() {
        let mut random = Random::new(i as u64);
        let mut graph = Graph::new("activation");
        let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 20.into()]);
        let y = linear(&mut graph, &mut random, x, 35, 20);
        let y = graph.add("y", Op::Unary(op), &[y]).expect("a function");
        graph.output(y);
        let steps = [1, 6].map(|rows| vec![random.f32(&[rows, 20])]);
        Case::new(graph, Bindings::new().with("rows", 6), steps.into()).check();
    }
}

#[derive(Clone, Copy, Debug)]
struct Attend {
    heads: usize,
    n_kv: usize,
    k_dim: usize,
    v_dim: usize,
    causal: bool,
    softcap: Option<f32>,
    /// Extents of the mask that are not 1, and whether it is bool.
    mask: Option<([bool; 4], bool)>,
}

/// Steps are (batch, queries, keys).
fn attention(a: Attend, sizes: &[(usize, usize, usize)], seed: u64) -> Case {
    let mut random = Random::new(seed);
    let mut graph = Graph::new("attention");
    let dim = |name: &str| Dim::sym(name);
    let q = graph.input("q", DType::F32, &[dim("batch"), dim("tokens"), a.heads.into(), a.k_dim.into()]);
    let k = graph.input("k", DType::F32, &[dim("batch"), dim("keys"), a.n_kv.into(), a.k_dim.into()]);
    let v = graph.input("v", DType::F32, &[dim("batch"), dim("keys"), a.n_kv.into(), a.v_dim.into()]);
    let mut inputs = vec![q, k, v];
    let full = [dim("batch"), a.heads.into(), dim("tokens"), dim("keys")];
    if let Some((extents, bool)) = a.mask {
        let shape: Vec<Dim> =
            full.iter().zip(extents).map(|(dim, there)| if there { dim.clone() } else { Dim::Num(1) }).collect();
        inputs.push(graph.input("mask", if bool { DType::Bool } else { DType::F32 }, &shape));
    }
    let op = TensorAttention { scale: 0.3, causal: a.causal, softcap: a.softcap };
    let y = graph.add("y", Op::TensorAttention(op), &inputs).expect("attention");
    graph.output(y);
    let steps = sizes.iter().map(|(batch, tokens, keys)| {
        let mut step = vec![
            random.f32(&[*batch, *tokens, a.heads, a.k_dim]),
            random.f32(&[*batch, *keys, a.n_kv, a.k_dim]),
            random.f32(&[*batch, *keys, a.n_kv, a.v_dim]),
        ];
        if let Some((extents, bool)) = a.mask {
            let full = [*batch, a.heads, *tokens, *keys];
            let shape: Vec<usize> = full.iter().zip(extents).map(|(n, there)| if there { *n } else { 1 }).collect();
            let values = random.f32(&shape).to_f32().expect("floats");
            step.push(if bool {
                let seen: Vec<u8> = values.iter().map(|x| u8::from(*x > -0.2)).collect();
                Tensor::from_bytes(DType::Bool, &shape, &seen).expect("a mask")
            } else {
                let added: Vec<f32> = values.iter().map(|x| if *x > 0.9 { f32::MIN } else { *x }).collect();
                Tensor::from_slice(&shape, &added).expect("a mask")
            });
        }
        step
    });
    let steps = steps.collect();
    let largest = |f: fn(&(usize, usize, usize)) -> usize| sizes.iter().map(f).max().unwrap_or(1);
    let bounds = Bindings::new().with("batch", largest(|s| s.0)).with("tokens", largest(|s| s.1));
    Case::new(graph, bounds.with("keys", largest(|s| s.2)), steps)
}

const PLAIN: Attend = Attend { heads: 2, n_kv: 2, k_dim: 16, v_dim: 16, causal: false, softcap: None, mask: None };

#[test]
fn attention_over_tensors_agrees_at_odd_sizes() {
    let sizes = [(1, 1, 1), (2, 7, 9), (1, 33, 130), (1, 17, 300), (1, 3, 8)];
    attention(PLAIN, &sizes, 1).check();
    attention(Attend { k_dim: 13, v_dim: 21, softcap: Some(2.0), ..PLAIN }, &sizes, 2).check();
    attention(Attend { heads: 6, n_kv: 2, ..PLAIN }, &sizes, 3).check();
}

#[test]
fn masks_of_every_extent_agree_and_rows_that_see_nothing_are_zero() {
    let sizes = [(2, 5, 9), (1, 40, 140)];
    for (i, bool) in [false, true].into_iter().enumerate() {
        for (j, extents) in
            [[true, false, false, true], [false, false, true, true], [true; 4], [false, true, true, false]]
                .into_iter()
                .enumerate()
        {
            attention(Attend { mask: Some((extents, bool)), ..PLAIN }, &sizes, (i * 4 + j) as u64).check();
        }
    }
}

#[test]
fn causal_attention_agrees_with_more_and_with_fewer_keys_than_queries() {
    let sizes = [(1, 5, 5), (2, 3, 140), (1, 40, 37), (1, 1, 9), (1, 150, 150)];
    attention(Attend { causal: true, ..PLAIN }, &sizes, 1).check();
    attention(Attend { causal: true, mask: Some(([true, false, false, true], true)), ..PLAIN }, &sizes, 2).check();
}

/// Attention as exporters spell it.
#[test]
fn attention_out_of_primitive_operators_agrees() {
    let mut random = Random::new(11);
    let mut graph = Graph::new("primitive");
    let (heads, dim) = (3, 10);
    let shape = || vec![Dim::sym("batch"), Dim::sym("tokens"), Dim::Num(heads * dim)];
    let split = vec![Dim::sym("batch"), Dim::sym("tokens"), Dim::Num(heads), Dim::Num(dim)];
    let x = graph.input("x", DType::F32, &shape());
    let parts = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]].map(|perm| {
        let y = linear(&mut graph, &mut random, x, heads * dim, heads * dim);
        let y = graph.add("split", Op::Reshape(Reshape { shape: split.clone() }), &[y]).expect("a shape");
        graph.add("moved", Op::Transpose(Transpose { perm: perm.to_vec() }), &[y]).expect("a transpose")
    });
    let product = Op::MatMul(MatMul { transpose_b: false });
    let scores = graph.add("scores", product.clone(), &[parts[0], parts[1]]).expect("scores");
    let p = graph.add("softmax", Op::Softmax(Softmax), &[scores]).expect("a softmax");
    let y = graph.add("weighted", product, &[p, parts[2]]).expect("a product");
    let y = graph.add("back", Op::Transpose(Transpose { perm: vec![0, 2, 1, 3] }), &[y]).expect("a transpose");
    let y = graph.add("joined", Op::Reshape(Reshape { shape: shape() }), &[y]).expect("a shape");
    graph.output(y);
    let steps = [(1, 1), (2, 5), (1, 37)].map(|(b, t)| vec![random.f32(&[b, t, heads * dim])]);
    Case::new(graph, Bindings::new().with("batch", 2).with("tokens", 37), steps.into()).check();
}

proptest! {
    #![proptest_config(crate::random::proptest_config(16))]

    #[test]
    fn attention_of_any_size_agrees(
        n_kv in 1usize..4,
        group in 1usize..4,
        k_dim in 1usize..40,
        v_dim in 1usize..40,
        causal: bool,
        mask in prop::option::of((prop::array::uniform4(any::<bool>()), any::<bool>())),
        sizes in prop::collection::vec((1usize..3, 1usize..70, 1usize..150), 1..3),
        seed: u64,
    ) {
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let heads = n_kv * group;
        attention(Attend { heads, n_kv, k_dim, v_dim, causal, softcap: None, mask }, &sizes, seed).check_on(sampled(&CASES));
    }
}
