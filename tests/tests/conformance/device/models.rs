//! Graphs as importers make them of encoders and of convolutional nets.

use core_tensor::op::{
    Binary, Cast, Conv, Expand, Gather, LayerNormalization, MatMul, Op, Pool, PoolKind, Reduce, ReduceKind, Reshape,
    Softmax, TensorAttention, Transpose, Unary, Where, Window,
};
use core_tensor::{Bindings, DType, Dim, Graph, Tensor, ValueId};

use crate::compare::Case;
use crate::random::Random;

fn add(graph: &mut Graph, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
    graph.add(name, op, inputs).expect("an operator")
}

fn weight(graph: &mut Graph, random: &mut Random, shape: &[usize], scale: f32) -> ValueId {
    graph.weight("weight", core_tensor::Weight::stored(random.scaled_f32(shape, scale)))
}

fn scalar(graph: &mut Graph, value: f32) -> ValueId {
    graph.weight("scalar", core_tensor::Weight::stored(Tensor::from_slice(&[], &[value]).expect("a scalar")))
}

fn linear(graph: &mut Graph, random: &mut Random, x: ValueId, from: usize, to: usize) -> ValueId {
    let (w, b) = (weight(graph, random, &[from, to], 0.2), weight(graph, random, &[to], 0.2));
    let y = add(graph, "product", Op::MatMul(MatMul { transpose_b: false }), &[x, w]);
    add(graph, "biased", Op::Binary(Binary::Add), &[y, b])
}

fn norm(graph: &mut Graph, random: &mut Random, x: ValueId, width: usize) -> ValueId {
    let (w, b) = (weight(graph, random, &[width], 1.0), weight(graph, random, &[width], 1.0));
    add(graph, "norm", Op::LayerNormalization(LayerNormalization { epsilon: 1e-12 }), &[x, w, b])
}

/// What a mask becomes: added to scores, or chosen by.
fn encoder(fused: bool) -> (Graph, usize) {
    let (width, heads, inner, vocabulary) = (48, 3, 100, 90);
    let dim = width / heads;
    let mut random = Random::new(12);
    let mut graph = Graph::new("encoder");
    let (batch, tokens) = (Dim::sym("batch"), Dim::sym("tokens"));
    let of = |dims: &[Dim]| Reshape { shape: dims.to_vec() };
    let ids = graph.input("input_ids", DType::I64, &[batch.clone(), tokens.clone()]);
    let mask = graph.input("attention_mask", DType::I64, &[batch.clone(), tokens.clone()]);
    let table = weight(&mut graph, &mut random, &[vocabulary, width], 1.0);
    let places = weight(&mut graph, &mut random, &[64, width], 1.0);
    let mut x = add(&mut graph, "words", Op::Gather(Gather::rows()), &[table, ids]);
    let slice = core_tensor::op::Slice { axis: 0, start: 0.into(), len: tokens.clone(), step: 1 };
    let places = add(&mut graph, "places", Op::Slice(slice), &[places]);
    x = add(&mut graph, "embedded", Op::Binary(Binary::Add), &[x, places]);
    x = norm(&mut graph, &mut random, x, width);
    let mask = add(&mut graph, "wide", Op::Reshape(of(&[batch.clone(), 1.into(), 1.into(), tokens.clone()])), &[mask]);
    let mask = if fused {
        let mask = add(&mut graph, "float", Op::Cast(Cast { to: DType::F32 }), &[mask]);
        let (one, least) = (scalar(&mut graph, 1.0), scalar(&mut graph, f32::MIN));
        let hidden = add(&mut graph, "hidden", Op::Binary(Binary::Sub), &[one, mask]);
        add(&mut graph, "mask", Op::Binary(Binary::Mul), &[hidden, least])
    } else {
        let shape = [batch.clone(), 1.into(), tokens.clone(), tokens.clone()].into_iter().collect();
        let mask = add(&mut graph, "expanded", Op::Expand(Expand { shape }), &[mask]);
        let zero = Tensor::from_slice(&[], &[0i64]).expect("a scalar");
        let zero = graph.weight("zero", core_tensor::Weight::stored(zero));
        let hidden = add(&mut graph, "hidden", Op::Binary(Binary::Equal), &[mask, zero]);
        let (least, none) = (scalar(&mut graph, -1e4), scalar(&mut graph, 0.0));
        add(&mut graph, "mask", Op::Where(Where), &[hidden, least, none])
    };
    for _ in 0..2 {
        let split = of(&[batch.clone(), tokens.clone(), heads.into(), dim.into()]);
        let [q, k, v] = [(); 3].map(|()| {
            let y = linear(&mut graph, &mut random, x, width, width);
            add(&mut graph, "heads", Op::Reshape(split.clone()), &[y])
        });
        let scale = 1.0 / (dim as f32).sqrt();
        let y = if fused {
            let op = TensorAttention { scale, causal: false, softcap: None };
            add(&mut graph, "attention", Op::TensorAttention(op), &[q, k, v, mask])
        } else {
            let perm = |graph: &mut Graph, x, perm: [usize; 4]| {
                add(graph, "turned", Op::Transpose(Transpose { perm: perm.to_vec() }), &[x])
            };
            let (q, v) = (perm(&mut graph, q, [0, 2, 1, 3]), perm(&mut graph, v, [0, 2, 1, 3]));
            let k = perm(&mut graph, k, [0, 2, 3, 1]);
            let scores = add(&mut graph, "scores", Op::MatMul(MatMul { transpose_b: false }), &[q, k]);
            let factor = scalar(&mut graph, scale);
            let scores = add(&mut graph, "scaled", Op::Binary(Binary::Mul), &[scores, factor]);
            let scores = add(&mut graph, "masked", Op::Binary(Binary::Add), &[scores, mask]);
            let weights = add(&mut graph, "softmax", Op::Softmax(Softmax), &[scores]);
            let y = add(&mut graph, "mixed", Op::MatMul(MatMul { transpose_b: false }), &[weights, v]);
            perm(&mut graph, y, [0, 2, 1, 3])
        };
        let joined = of(&[batch.clone(), tokens.clone(), width.into()]);
        let y = add(&mut graph, "joined", Op::Reshape(joined), &[y]);
        let y = linear(&mut graph, &mut random, y, width, width);
        x = add(&mut graph, "sum", Op::Binary(Binary::Add), &[y, x]);
        x = norm(&mut graph, &mut random, x, width);
        let y = linear(&mut graph, &mut random, x, width, inner);
        let y = add(&mut graph, "gelu", Op::Unary(Unary::Gelu), &[y]);
        let y = linear(&mut graph, &mut random, y, inner, width);
        x = add(&mut graph, "sum", Op::Binary(Binary::Add), &[y, x]);
        x = norm(&mut graph, &mut random, x, width);
    }
    graph.output(x);
    let zero = Tensor::from_slice(&[], &[0i64]).expect("a scalar");
    let zero = graph.weight("zero", core_tensor::Weight::stored(zero));
    let first = add(&mut graph, "first", Op::Gather(Gather { axis: 1 }), &[x, zero]);
    let pooled = linear(&mut graph, &mut random, first, width, width);
    let pooled = add(&mut graph, "pooled", Op::Unary(Unary::Tanh), &[pooled]);
    graph.output(pooled);
    (graph, vocabulary)
}

#[test]
fn encoders_run_wholly_on_every_backend() {
    for fused in [true, false] {
        let (graph, vocabulary) = encoder(fused);
        let mut random = Random::new(3);
        let steps = [(1usize, 1usize), (2, 40), (3, 7)].map(|(batch, tokens)| {
            let ids: Vec<i64> = (0..batch * tokens).map(|_| random.below(vocabulary) as i64).collect();
            let mask: Vec<i64> =
                (0..batch * tokens).map(|i| i64::from(i % tokens < tokens.div_ceil(1 + i / tokens))).collect();
            let tensor = |values: &[i64]| Tensor::from_slice(&[batch, tokens], values).expect("a small tensor");
            vec![tensor(&ids), tensor(&mask)]
        });
        let bounds = Bindings::new().with("batch", 3).with("tokens", 40);
        Case::new(graph, bounds, steps.into()).everywhere().check();
    }
}

#[test]
fn convolutional_nets_run_wholly_on_every_backend() {
    let mut random = Random::new(5);
    let mut graph = Graph::new("residual net");
    let batch = Dim::sym("batch");
    let window = |stride: usize, pad: usize| Window {
        strides: vec![stride; 2],
        dilations: vec![1; 2],
        pads_begin: vec![pad; 2],
        pads_end: vec![pad; 2],
    };
    let mut convolution = |graph: &mut Graph, x, shape: [usize; 4], stride: usize, groups: usize| {
        let scale = 1.5 / (shape[1] * shape[2] * shape[3]) as f32;
        let (w, b) = (weight(graph, &mut random, &shape, scale.sqrt()), weight(graph, &mut random, &[shape[0]], 0.2));
        let op = Op::Conv(Conv { window: window(stride, shape[2] / 2), groups });
        add(graph, "conv", op, &[x, w, b])
    };
    let relu = |graph: &mut Graph, x| add(graph, "relu", Op::Unary(Unary::Relu), &[x]);
    let image = graph.input("image", DType::F32, &[batch.clone(), 3.into(), 37.into(), 33.into()]);
    let x = convolution(&mut graph, image, [20, 3, 7, 7], 2, 1);
    let x = relu(&mut graph, x);
    let pool = Pool {
        kind: PoolKind::Max,
        kernel: vec![3, 3],
        window: window(2, 1),
        ceil_mode: false,
        indices: false,
        column_major: false,
    };
    let mut x = add(&mut graph, "pool", Op::Pool(pool), &[x]);
    for (from, to, stride) in [(20, 20, 1), (20, 40, 2)] {
        let y = convolution(&mut graph, x, [12, from, 1, 1], 1, 1);
        let y = relu(&mut graph, y);
        let y = convolution(&mut graph, y, [12, 12, 3, 3], stride, 1);
        let y = relu(&mut graph, y);
        let y = convolution(&mut graph, y, [to, 12, 1, 1], 1, 1);
        let shortcut = if from == to { x } else { convolution(&mut graph, x, [to, from, 1, 1], stride, 1) };
        let y = add(&mut graph, "sum", Op::Binary(Binary::Add), &[y, shortcut]);
        x = relu(&mut graph, y);
    }
    // An inverted residual, as mobile nets have them.
    let relu6 =
        Op::Unary(Unary::Clip { min: core_tensor::op::Scalar::new(0.0), max: core_tensor::op::Scalar::new(6.0) });
    let y = convolution(&mut graph, x, [80, 40, 1, 1], 1, 1);
    let y = add(&mut graph, "relu6", relu6.clone(), &[y]);
    let y = convolution(&mut graph, y, [80, 1, 3, 3], 1, 80);
    let y = add(&mut graph, "relu6", relu6, &[y]);
    let y = convolution(&mut graph, y, [40, 80, 1, 1], 1, 1);
    let x = add(&mut graph, "sum", Op::Binary(Binary::Add), &[x, y]);
    let planes = Reshape { shape: [batch.clone(), 40.into(), Dim::Num(5 * 5)].into_iter().collect() };
    let x = add(&mut graph, "planes", Op::Reshape(planes), &[x]);
    let x = add(&mut graph, "mean", Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x]);
    let x = add(&mut graph, "flat", Op::Reshape(Reshape { shape: [batch, 40.into()].into_iter().collect() }), &[x]);
    let (w, b) =
        (weight(&mut graph, &mut Random::new(6), &[10, 40], 0.3), weight(&mut graph, &mut Random::new(7), &[10], 0.3));
    let x = add(&mut graph, "logits", Op::MatMul(MatMul { transpose_b: true }), &[x, w]);
    let x = add(&mut graph, "biased", Op::Binary(Binary::Add), &[x, b]);
    graph.output(x);
    let mut random = Random::new(9);
    let steps = [1, 2].map(|batch| vec![random.f32(&[batch, 3, 37, 33])]);
    Case::new(graph, Bindings::new().with("batch", 2), steps.into()).everywhere().check();
}
