//! Opened graphs, trained: the graph of their integers computes what they did.

use crate::support::{Given, Random, first, options, run, window};
use core_tensor::op::{Binary, Conv, LayerNormalization, MatMul, Op, Unary};
use core_tensor::{DType, Graph, Tensor, ValueId, Weight};
use polaris_gradient::backward;
use polaris_quant::graph::{Calibration, GraphOptions, GraphType, Opened, Trained, open, quantize_with};
use polaris_quant::reconstruct::Rates;

fn weight(graph: &mut Graph, random: &mut Random, name: &str, shape: &[usize]) -> ValueId {
    graph.weight(name, Weight::stored(random.tensor(shape)))
}

/// Product → bias → LayerNormalization → ReLU → product → bias, the one weight `[inputs, outputs]` and the other `[outputs, inputs]`.
fn layers(random: &mut Random) -> Graph {
    let mut graph = Graph::new("layers");
    let x = graph.input("x", DType::F32, &[48.into(), 32.into()]);
    let w = weight(&mut graph, random, "first.w", &[32, 64]);
    let y = graph.add("first", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    let b = weight(&mut graph, random, "first.b", &[64]);
    let y = graph.add("biased", Op::Binary(Binary::Add), &[y, b]).unwrap();
    let vectors = ["norm.scale", "norm.bias"].map(|name| weight(&mut graph, random, name, &[64]));
    let norm = Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 });
    let y = graph.add("norm", norm, &[y, vectors[0], vectors[1]]).unwrap();
    let y = graph.add("relu", Op::Unary(Unary::Relu), &[y]).unwrap();
    let w = weight(&mut graph, random, "second.w", &[24, 64]);
    let y = graph.add("second", Op::MatMul(MatMul { transpose_b: true }), &[y, w]).unwrap();
    let b = weight(&mut graph, random, "second.b", &[24]);
    let y = graph.add("y", Op::Binary(Binary::Add), &[y, b]).unwrap();
    graph.output(y);
    graph
}

/// Convolution with a bias → ReLU → convolution in groups.
fn image(random: &mut Random) -> Graph {
    let mut graph = Graph::new("image");
    let x = graph.input("x", DType::F32, &[1.into(), 3.into(), 7.into(), 6.into()]);
    let (w, b) = (weight(&mut graph, random, "first.w", &[8, 3, 3, 3]), weight(&mut graph, random, "first.b", &[8]));
    let y = graph.add("first", Op::Conv(Conv { window: window(1), groups: 1 }), &[x, w, b]).unwrap();
    let y = graph.add("relu", Op::Unary(Unary::Relu), &[y]).unwrap();
    let w = weight(&mut graph, random, "second.w", &[4, 4, 3, 3]);
    let y = graph.add("y", Op::Conv(Conv { window: window(2), groups: 2 }), &[y, w]).unwrap();
    graph.output(y);
    graph
}

fn inputs(opened: &Opened, x: &Tensor) -> Vec<Tensor> {
    [vec![x.clone()], opened.tensors().unwrap()].concat()
}

/// Trains towards what the graph gave for `x`; the relative squared error before and after.
fn train(opened: &mut Opened, x: &Tensor, wanted: &[f32], steps: usize) -> [f32; 2] {
    let mut graph = opened.graph.clone();
    let y = graph.outputs()[0];
    let shape = graph.tensor_type(y).unwrap().1.to_vec();
    let cotangent = graph.input("dy", DType::F32, &shape);
    let graph = backward(&graph, y, Some(cotangent), &opened.parameters).unwrap();
    let power: f32 = wanted.iter().map(|y| y * y).sum();
    let differences = |opened: &Opened| -> Vec<f32> {
        first(&opened.graph, &inputs(opened, x)).iter().zip(wanted).map(|(y, wanted)| y - wanted).collect()
    };
    let error = |opened: &Opened| differences(opened).iter().map(|d| d * d).sum::<f32>() / power;
    let before = error(opened);
    for step in 0..steps {
        let extents: Vec<usize> = shape.iter().map(|n| n.as_num().unwrap()).collect();
        let dy = Tensor::from_slice(&extents, &differences(opened)).unwrap();
        let outputs = run(&graph, &[inputs(opened, x), vec![dy]].concat());
        let gradients: Vec<Vec<f32>> = outputs[1..].iter().map(|g| g.to_f32().unwrap()).collect();
        assert_eq!(gradients.len(), opened.parameters.len());
        let left = 1.0 - step as f32 / steps as f32;
        opened.step(&gradients, Rates { codes: 0.05 * left, scales: 1e-3 * left }, 2e-3 * left, 2);
    }
    [before, error(opened)]
}

/// Opens, trains and closes a graph; how the error changed.
fn trained(graph: &Graph, options: &GraphOptions, x: &Tensor, parameters: usize) -> [f32; 2] {
    let wanted = first(graph, std::slice::from_ref(x));
    let mut opened = open(graph, options).unwrap();
    assert_eq!(opened.parameters.len(), parameters);
    let errors = train(&mut opened, x, &wanted, 40);
    let expected = first(&opened.graph, &inputs(&opened, x));
    let (new, integers) = opened.finish(graph).unwrap();
    assert_eq!(integers.len(), 2);
    for integers in integers.values() {
        assert_eq!(matches!(integers, Trained::Groups(_)), matches!(options.ty, GraphType::Int4 { .. }));
    }
    let (closed, changes) = quantize_with(&new, options, &Calibration::default(), &mut Given(integers)).unwrap();
    assert_eq!(changes.len(), 2);
    let found = first(&closed, std::slice::from_ref(x));
    let most = expected.iter().fold(0.0f32, |most, y| most.max(y.abs()));
    for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
        assert!((x - y).abs() <= 1e-5 * most, "element {i}: {x}, {y} while it was trained");
    }
    errors
}

#[test]
fn layers_compute_what_they_did_in_training() {
    let mut random = Random(61);
    let graph = layers(&mut random);
    let x = random.tensor(&[48, 32]);
    // Two matrices, two biases, and the vectors of the normalization.
    let [before, after] = trained(&graph, &options(GraphType::Int4 { group: 32 }), &x, 6);
    assert!(after < 0.7 * before, "{after} and {before}");
    trained(&graph, &options(GraphType::Int8Weights), &x, 6);
}

#[test]
fn convolutions_compute_what_they_did_in_training() {
    let mut random = Random(62);
    let graph = image(&mut random);
    let x = random.tensor(&[1, 3, 7, 6]);
    trained(&graph, &options(GraphType::Int8Weights), &x, 3);
}

#[test]
fn a_weight_that_is_read_in_two_ways_is_refused() {
    let mut random = Random(5);
    let mut graph = Graph::new("ways");
    let x = graph.input("x", DType::F32, &[4.into(), 32.into()]);
    let w = weight(&mut graph, &mut random, "both.w", &[32, 32]);
    let y = graph.add("first", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    let y = graph.add("second", Op::MatMul(MatMul { transpose_b: true }), &[y, w]).unwrap();
    graph.output(y);
    let error = open(&graph, &options(GraphType::Int8Weights)).unwrap_err().to_string();
    assert!(error.contains("both.w") && error.contains("two ways"), "{error}");
}
