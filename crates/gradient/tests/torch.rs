//! Gradients of two blocks equal those of torch's autograd (`make_reference.py`).

use std::collections::HashMap;
use std::sync::Arc;

use core_tensor::op::{
    Binary, Conv, GatedActivation, LayerNormalization, LogSoftmax, MatMul, Op, Reduce, ReduceKind, Reshape,
    RmsNormalization, RopeScaling, RotaryEmbedding, TensorAttention, Transpose, Unary, Window,
};
use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, Tensor, ValueId};
use polaris_gradient::backward;
use serde_json::Value;

fn tensor(value: &Value) -> Tensor {
    let numbers = |key: &str| value[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<f64>>();
    let shape: Vec<usize> = numbers("shape").into_iter().map(|n| n as usize).collect();
    let values: Vec<f32> = numbers("values").into_iter().map(|n| n as f32).collect();
    Tensor::from_slice(&shape, &values).unwrap()
}

/// A graph whose inputs are those of a case.
struct Block {
    graph: Graph,
    inputs: HashMap<String, ValueId>,
}

impl Block {
    fn node(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add("node", op, inputs).unwrap()
    }

    fn get(&self, name: &str) -> ValueId {
        self.inputs[name]
    }

    /// `x · wᵀ`
    fn linear(&mut self, x: ValueId, w: &str) -> ValueId {
        let w = self.get(w);
        self.node(Op::MatMul(MatMul { transpose_b: true }), &[x, w])
    }

    fn reshape(&mut self, x: ValueId, shape: &[usize]) -> ValueId {
        let shape = shape.iter().map(|n| Dim::Num(*n)).collect();
        self.node(Op::Reshape(Reshape { shape }), &[x])
    }

    fn rms(&mut self, x: ValueId, w: &str) -> ValueId {
        let w = self.get(w);
        self.node(Op::RmsNormalization(RmsNormalization { epsilon: 1e-5 }), &[x, w])
    }

    fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.node(Op::Binary(Binary::Add), &[a, b])
    }
}

/// Builds a case's graph, differentiates it, runs it and compares.
fn assert_torch(case: &str, build: impl FnOnce(&mut Block) -> ValueId, further: &[(&str, Tensor)]) {
    let reference: Value = serde_json::from_str(include_str!("torch_reference.json")).unwrap();
    let case = &reference[case];
    let mut block = Block { graph: Graph::new("block"), inputs: HashMap::new() };
    let names: Vec<&String> = case["inputs"].as_object().unwrap().keys().collect();
    let mut given = Vec::new();
    let all = names.iter().map(|name| (name.as_str(), tensor(&case["inputs"][name.as_str()])));
    for (name, tensor) in all.chain(further.iter().cloned()) {
        let shape: Vec<Dim> = tensor.shape().iter().map(|n| Dim::Num(*n)).collect();
        let id = block.graph.input(name, tensor.dtype(), &shape);
        block.inputs.insert(name.to_owned(), id);
        given.push(tensor);
    }
    let y = build(&mut block);
    block.graph.output(y);
    let cotangent = tensor(&case["cotangent"]);
    let shape: Vec<Dim> = cotangent.shape().iter().map(|n| Dim::Num(*n)).collect();
    let dy = block.graph.input("cotangent", DType::F32, &shape);
    given.push(cotangent);
    let by: Vec<ValueId> = names.iter().map(|name| block.get(name)).collect();
    let graph = Arc::new(backward(&block.graph, y, Some(dy), &by).unwrap());
    let mut states = HostStates::new(&graph, 0, &Bindings::new()).unwrap();
    let outputs = Interpreter::new(graph).run(&mut states, &given).unwrap();
    let mut expected = vec![("y", tensor(&case["y"]))];
    expected.extend(names.iter().map(|name| (name.as_str(), tensor(&case["gradients"][name.as_str()]))));
    assert_eq!(outputs.len(), expected.len());
    for (found, (name, expected)) in outputs.iter().zip(expected) {
        assert_eq!(found.shape(), expected.shape(), "{name}");
        let (found, expected) = (found.to_f32().unwrap(), expected.to_f32().unwrap());
        let sum = |f: &dyn Fn(f32, f32) -> f32| -> f64 {
            found.iter().zip(&expected).map(|(a, b)| f64::from(f(*a, *b))).sum()
        };
        let nmse = sum(&|a, b| (a - b) * (a - b)) / sum(&|_, b| b * b);
        assert!(nmse < 1e-10, "{name}: NMSE {nmse:.2e}");
    }
}

#[test]
fn a_layer_of_a_language_model() {
    let positions = Tensor::from_slice(&[5], &[0i32, 1, 2, 3, 4]).unwrap();
    let build = |b: &mut Block| {
        let x = b.get("x");
        let h = b.rms(x, "n1");
        let rope = RotaryEmbedding { interleaved: false, rotary_dims: 4, theta: 100.0, scaling: RopeScaling::None };
        let mut heads = Vec::new();
        for (w, count) in [("wq", 4), ("wk", 2), ("wv", 2)] {
            let flat = b.linear(h, w);
            let mut part = b.reshape(flat, &[5, count, 4]);
            if w != "wv" {
                let positions = b.get("positions");
                part = b.node(Op::RotaryEmbedding(rope), &[part, positions]);
            }
            heads.push(b.reshape(part, &[1, 5, count, 4]));
        }
        let attention = TensorAttention { scale: 0.5, causal: true, softcap: None };
        let out = b.node(Op::TensorAttention(attention), &heads);
        let out = b.reshape(out, &[5, 16]);
        let h = b.linear(out, "wo");
        let x = b.add(x, h);
        let h = b.rms(x, "n2");
        let (gate, up) = (b.linear(h, "gate"), b.linear(h, "up"));
        let inner = b.node(Op::GatedActivation(GatedActivation { activation: Unary::Silu }), &[gate, up]);
        let h = b.linear(inner, "down");
        b.add(x, h)
    };
    assert_torch("decoder", build, &[("positions", positions)]);
}

#[test]
fn a_convolutional_net() {
    let window = |stride: usize| Window {
        strides: vec![stride; 2],
        dilations: vec![1; 2],
        pads_begin: vec![1; 2],
        pads_end: vec![1; 2],
    };
    let build = |b: &mut Block| {
        let inputs = ["x", "w1", "b1"].map(|name| b.get(name));
        let x = b.node(Op::Conv(Conv { window: window(2), groups: 1 }), &inputs);
        let x = b.node(Op::Unary(Unary::Gelu), &[x]);
        let inputs = [x, b.get("w2"), b.get("b2")];
        let x = b.node(Op::Conv(Conv { window: window(1), groups: 4 }), &inputs);
        let x = b.node(Op::Transpose(Transpose { perm: vec![0, 2, 3, 1] }), &[x]);
        let inputs = [x, b.get("scale"), b.get("shift")];
        let x = b.node(Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 }), &inputs);
        let x = b.node(Op::Unary(Unary::HardSwish), &[x]);
        let x = b.reshape(x, &[2, 9, 4]);
        let x = b.node(Op::Transpose(Transpose { perm: vec![0, 2, 1] }), &[x]);
        let x = b.node(Op::Reduce(Reduce { kind: ReduceKind::Mean }), &[x]);
        let x = b.reshape(x, &[2, 4]);
        let x = b.linear(x, "w3");
        b.node(Op::LogSoftmax(LogSoftmax), &[x])
    };
    assert_torch("net", build, &[]);
}
