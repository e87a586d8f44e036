//! Every operator's gradients equal differences of its values, on the reference interpreter.

use std::sync::Arc;

use core_tensor::op::{
    Binary, Cast, Concat, Conv, Expand, GatedActivation, Gather, LayerNormalization, LogSoftmax, MatMul, Op, Pad,
    PadMode, Reduce, ReduceKind, Reshape, RmsNormalization, RopeScaling, RotaryEmbedding, Slice, Softmax,
    TensorAttention, Transpose, Trilu, Unary, Where, Window,
};
use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, Tensor, ValueId};
use polaris_gradient::{GradientError, backward};
use proptest::prelude::*;

/// Numbers between -1 and 1.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

fn run(graph: &Arc<Graph>, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut states = HostStates::new(graph, 0, &Bindings::new()).unwrap();
    Interpreter::new(graph.clone()).run(&mut states, inputs).unwrap()
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|n| Dim::Num(*n)).collect()
}

/// Checks one operator: `shapes` are those of its f32 inputs, which get values from `value`; other inputs come behind.
struct Check {
    op: Op,
    shapes: Vec<Vec<usize>>,
    others: Vec<Tensor>,
    /// Whether the others stand before the f32 inputs.
    others_first: bool,
    /// Extents of this number are a symbol in the graph.
    symbol: Option<usize>,
    seed: u64,
}

impl Check {
    fn new(op: Op, shapes: &[&[usize]], seed: u64) -> Check {
        let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
        Check { op, shapes, others: Vec::new(), others_first: false, symbol: None, seed }
    }

    /// Values are what `value` makes of numbers between -1 and 1. They stay away from where derivatives jump by themselves.
    fn run(&self, value: impl Fn(f32) -> f32) {
        self.run_by_input(|_, x| value(x));
    }

    /// The same with values by the number of the input.
    fn run_by_input(&self, value: impl Fn(usize, f32) -> f32) {
        let mut next = random(self.seed);
        let declared = |shape: &[usize]| -> Vec<Dim> {
            shape.iter().map(|n| if Some(*n) == self.symbol { Dim::sym("n") } else { Dim::Num(*n) }).collect()
        };
        let mut graph = Graph::new("checked");
        let floats: Vec<ValueId> = self
            .shapes
            .iter()
            .enumerate()
            .map(|(i, s)| graph.input(&format!("x{i}"), DType::F32, &declared(s)))
            .collect();
        let others: Vec<ValueId> = self
            .others
            .iter()
            .enumerate()
            .map(|(i, t)| graph.input(&format!("other{i}"), t.dtype(), &declared(t.shape())))
            .collect();
        let order =
            if self.others_first { [&others[..], &floats[..]].concat() } else { [&floats[..], &others[..]].concat() };
        let y = graph.add("y", self.op.clone(), &order).unwrap();
        graph.output(y);
        let y_shape = graph.tensor_type(y).unwrap().1.to_vec();
        let cotangent = graph.input("cotangent", DType::F32, &y_shape);
        let graph = Arc::new(backward(&graph, y, Some(cotangent), &floats).unwrap());
        graph.verify().unwrap();

        let mut values: Vec<Vec<f32>> = Vec::new();
        for (input, shape) in self.shapes.iter().enumerate() {
            values.push((0..shape.iter().product::<usize>()).map(|_| value(input, next())).collect());
        }

        let bindings = self.symbol.map_or(Bindings::new(), |n| Bindings::new().with("n", n));
        let y_shape = core_tensor::eval_shape(&y_shape, &bindings).unwrap();
        let weights: Vec<f32> = (0..y_shape.iter().product::<usize>()).map(|_| next()).collect();
        let evaluate = |values: &[Vec<f32>]| -> Vec<Tensor> {
            let mut inputs: Vec<Tensor> =
                self.shapes.iter().zip(values).map(|(s, v)| Tensor::from_slice(s, v).unwrap()).collect();
            inputs.extend(self.others.iter().cloned());
            inputs.push(Tensor::from_slice(&y_shape, &weights).unwrap());
            run(&graph, &inputs)
        };
        let sum = |outputs: &[Tensor]| -> f64 {
            outputs[0].to_f32().unwrap().iter().zip(&weights).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
        };
        let outputs = evaluate(&values);
        let gradients: Vec<Vec<f32>> = outputs[1..].iter().map(|g| g.to_f32().unwrap()).collect();
        for (input, gradient) in gradients.iter().enumerate() {
            assert_eq!(outputs[1 + input].shape(), self.shapes[input], "{}", self.op.name());
            let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for (i, found) in gradient.iter().enumerate() {
                let x = values[input][i];
                const H: f32 = 4e-3;
                let (above, below) = (x + H, x - H);
                values[input][i] = above;
                let high = sum(&evaluate(&values));
                values[input][i] = below;
                let low = sum(&evaluate(&values));
                values[input][i] = x;
                let expected = (high - low) / f64::from(above - below);
                let error = (f64::from(*found) - expected).abs();
                let allowed = 4e-3 * f64::from(largest.max(0.25));
                assert!(
                    error <= allowed,
                    "{} by input {input}, element {i}: {found}, differences give {expected}",
                    self.op.name()
                );
            }
        }
    }
}

fn plain(x: f32) -> f32 {
    x
}

/// Away from 0, where functions have their corners.
fn apart(x: f32) -> f32 {
    x + 0.05f32.copysign(x)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn products(seed: u64, m in 1usize..4, n in 1usize..4, k in 1usize..5, transpose_b: bool) {
        let op = Op::MatMul(MatMul { transpose_b });
        let b = |batch: &[usize]| [batch, &if transpose_b { [n, k] } else { [k, n] }].concat();
        let cases: [(Vec<usize>, Vec<usize>); 6] = [
            (vec![m, k], b(&[])),
            (vec![k], b(&[])),
            (vec![2, m, k], b(&[])),
            (vec![2, m, k], b(&[2])),
            (vec![2, 1, m, k], b(&[3])),
            (vec![k], b(&[2])),
        ];
        for (a, b) in cases {
            Check::new(op.clone(), &[&a, &b], seed).run(plain);
        }
    }

    #[test]
    fn products_of_rows_that_are_a_symbol(seed: u64) {
        let op = Op::MatMul(MatMul { transpose_b: true });
        for shape in [&[5usize, 3][..], &[2, 5, 3]] {
            Check { symbol: Some(5), ..Check::new(op.clone(), &[shape, &[4, 3]], seed) }.run(plain);
        }
    }

    #[test]
    fn functions_of_two(seed: u64) {
        let shapes: [[&[usize]; 2]; 6] =
            [[&[2, 3], &[2, 3]], [&[2, 3], &[3]], [&[3], &[2, 3]], [&[2, 1], &[1, 3]], [&[2, 3], &[]], [&[2, 1, 3], &[4, 1]]];
        for [a, b] in shapes {
            for op in [Binary::Min, Binary::Max] {
                // Never equal.
                Check::new(Op::Binary(op), &[a, b], seed).run_by_input(|input, x| (x * 8.0).round() / 8.0 + 0.06 * input as f32);
            }
            for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::PRelu] {
                Check::new(Op::Binary(op), &[a, b], seed).run(apart);
            }
            for op in [Binary::Div, Binary::Pow] {
                Check::new(Op::Binary(op), &[a, b], seed).run(|x| x * 0.4 + 1.2);
            }
            let condition = Tensor::from_bytes(DType::Bool, &[2, 1], &[1, 0]).unwrap();
            if (a.len(), b.len()) == (2, 2) {
                let check = Check::new(Op::Where(Where), &[a, b], seed);
                Check { others: vec![condition], others_first: true, ..check }.run(plain);
            }
        }
        Check { symbol: Some(5), ..Check::new(Op::Binary(Binary::Mul), &[&[5, 3], &[3]], seed) }.run(plain);
        Check { symbol: Some(5), ..Check::new(Op::Binary(Binary::Mul), &[&[5, 3], &[5, 1]], seed) }.run(plain);
    }

    #[test]
    fn rows(seed: u64, m in 1usize..4, n in 2usize..6) {
        let kinds = [
            ReduceKind::Sum, ReduceKind::Mean, ReduceKind::L1, ReduceKind::L2, ReduceKind::SumSquare, ReduceKind::LogSumExp,
        ];
        for kind in kinds {
            Check::new(Op::Reduce(Reduce { kind }), &[&[m, n]], seed).run(apart);
        }
        let mean = Op::Reduce(Reduce { kind: ReduceKind::Mean });
        Check { symbol: Some(n), ..Check::new(mean, &[&[7, n]], seed) }.run(plain);
        Check::new(Op::Reduce(Reduce { kind: ReduceKind::LogSum }), &[&[m, n]], seed).run(|x| x * 0.5 + 1.0);
        Check::new(Op::Softmax(Softmax), &[&[m, n]], seed).run(plain);
        Check::new(Op::LogSoftmax(LogSoftmax), &[&[m, n]], seed).run(plain);
        Check::new(Op::RmsNormalization(RmsNormalization { epsilon: 1e-3 }), &[&[2, m, n], &[n]], seed).run(apart);
        let op = LayerNormalization { epsilon: 1e-2 };
        Check::new(Op::LayerNormalization(op), &[&[m, n]], seed).run(apart);
        Check::new(Op::LayerNormalization(op), &[&[m, n], &[n], &[n]], seed).run(apart);
        let op = GatedActivation { activation: Unary::Silu };
        Check::new(Op::GatedActivation(op), &[&[m, n], &[m, n]], seed).run(plain);
    }

    #[test]
    fn rotations(seed: u64, interleaved: bool, yarn: bool) {
        let scaling = if yarn {
            RopeScaling::Yarn { factor: 0.25, ext_factor: 1.0, attn_factor: 1.1, beta_fast: 32.0, beta_slow: 1.0, original_context: 64 }
        } else {
            RopeScaling::None
        };
        let op = RotaryEmbedding { interleaved, rotary_dims: 4, theta: 100.0, scaling };
        let positions = Tensor::from_slice(&[3], &[0i32, 7, 2]).unwrap();
        let factors = Tensor::from_slice(&[2], &[1.0f32, 2.5]).unwrap();
        for others in [vec![positions.clone()], vec![positions, factors]] {
            Check { others, ..Check::new(Op::RotaryEmbedding(op), &[&[3, 2, 6]], seed) }.run(plain);
        }
    }

    #[test]
    fn what_moves(seed: u64) {
        let check = |op: Op, shapes: &[&[usize]]| Check::new(op, shapes, seed).run(plain);
        check(Op::Reshape(Reshape { shape: dims(&[3, 2]) }), &[&[2, 3]]);
        check(Op::Transpose(Transpose { perm: vec![2, 0, 1] }), &[&[2, 3, 2]]);
        check(Op::Slice(Slice::range(1, 1, 3)), &[&[2, 4]]);
        check(Op::Slice(Slice::range(-1, 0, 3)), &[&[2, 4]]);
        check(Op::Concat(Concat { axis: -1 }), &[&[2, 1], &[2, 3]]);
        check(Op::Expand(Expand { shape: dims(&[2, 3, 2]) }), &[&[3, 1]]);
        let pads = vec![(Dim::Num(0), Dim::Num(1)), (Dim::Num(2), Dim::Num(0))];
        check(Op::Pad(Pad { pads, mode: PadMode::Constant }), &[&[2, 3]]);
        check(Op::Trilu(Trilu { upper: false, k: 1 }), &[&[3, 4]]);
        check(Op::Cast(Cast { to: DType::F32 }), &[&[3]]);
        let indices = Tensor::from_slice(&[2, 2], &[2i32, 0, 2, -1]).unwrap();
        Check { others: vec![indices], ..Check::new(Op::Gather(Gather::rows()), &[&[4, 3]], seed) }.run(plain);
    }

    #[test]
    fn attention(seed: u64, causal: bool, cap: bool, symbolic: bool) {
        let op = TensorAttention { scale: 0.7, causal, softcap: cap.then_some(1.5) };
        let op = Op::TensorAttention(op);
        let symbol = symbolic.then_some(5);
        let check = Check::new(op.clone(), &[&[2, 5, 4, 3], &[2, 5, 2, 3], &[2, 5, 2, 2]], seed);
        Check { symbol, ..check }.run(plain);
        // More and fewer keys than queries: rows that see nothing are among them.
        Check::new(op.clone(), &[&[1, 2, 2, 3], &[1, 4, 1, 3], &[1, 4, 1, 2]], seed).run(plain);
        Check::new(op.clone(), &[&[1, 4, 2, 3], &[1, 2, 2, 3], &[1, 2, 2, 2]], seed).run(plain);
        let masks = [
            Tensor::from_slice(&[2, 3], &[0.0f32, -1.0, 0.5, f32::NEG_INFINITY, 0.0, 2.0]).unwrap(),
            Tensor::from_slice(&[2, 3], &[0.0f32, -1.0, 0.5, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY]).unwrap(),
            Tensor::from_bytes(DType::Bool, &[1, 2, 1, 3], &[1, 0, 1, 1, 1, 0]).unwrap(),
            Tensor::from_bytes(DType::Bool, &[1, 1, 2, 3], &[0, 0, 0, 1, 1, 0]).unwrap(),
        ];
        for mask in masks {
            let check = Check::new(op.clone(), &[&[1, 2, 2, 3], &[1, 3, 1, 3], &[1, 3, 1, 2]], seed);
            Check { others: vec![mask], ..check }.run(plain);
        }
        // The first row sees nothing where only what is before it is seen; numbers as low as there are are seen.
        let low = f32::MIN;
        let masks = [
            Tensor::from_bytes(DType::Bool, &[3, 3], &[0, 1, 1, 1, 0, 1, 1, 1, 1]).unwrap(),
            Tensor::from_slice(&[3, 3], &[f32::NEG_INFINITY, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap(),
            Tensor::from_slice(&[3, 3], &[low, 0.0, 0.0, low, -1.0, 0.0, low, 0.0, f32::NEG_INFINITY]).unwrap(),
            Tensor::from_slice(&[3, 3], &[-1e32f32, 0.0, 0.0, low, -1e35, 0.0, low, -1e35, low]).unwrap(),
        ];
        for mask in masks {
            let check = Check::new(op.clone(), &[&[1, 3, 2, 3], &[1, 3, 1, 3], &[1, 3, 1, 2]], seed);
            Check { others: vec![mask], ..check }.run(plain);
        }
    }

    #[test]
    fn convolutions(seed: u64, stride in 1usize..3, dilation in 1usize..3, before in 0usize..2, after in 0usize..3) {
        let window = |n: usize| Window {
            strides: vec![stride; n],
            dilations: vec![dilation; n],
            pads_begin: vec![before; n],
            pads_end: vec![after; n],
        };
        let conv = |n: usize, groups: usize| Op::Conv(Conv { window: window(n), groups });
        Check::new(conv(1, 1), &[&[2, 2, 7], &[3, 2, 3], &[3]], seed).run(plain);
        Check::new(conv(2, 1), &[&[1, 2, 5, 6], &[2, 2, 2, 3]], seed).run(plain);
        Check::new(conv(2, 2), &[&[1, 4, 5, 5], &[2, 2, 2, 2]], seed).run(plain);
        // Depthwise.
        Check::new(conv(1, 3), &[&[2, 3, 6], &[3, 1, 3], &[3]], seed).run(plain);
    }
}

#[test]
fn functions_of_one() {
    for op in Unary::all() {
        let flat = matches!(op, Unary::Floor | Unary::Ceil | Unary::Round | Unary::Sign);
        if flat {
            continue;
        }
        // Within the domain, with corners (0, ±1/2, 3/4, 1) between the values.
        let values: Vec<Vec<f32>> = match op {
            Unary::Log | Unary::Sqrt => vec![vec![0.3, 0.9, 2.0, 7.0]],
            Unary::Acosh => vec![vec![1.2, 1.9, 4.0]],
            Unary::Asin | Unary::Acos | Unary::Atanh => vec![vec![-0.8, -0.1, 0.4, 0.7]],
            Unary::Reciprocal => vec![vec![-2.0, -0.7, 0.6, 1.5]],
            Unary::Sinh | Unary::Cosh | Unary::Exp | Unary::Tan => vec![vec![-1.2, -0.3, 0.2, 1.1]],
            _ => vec![vec![-6.0, -2.2, -0.9, -0.4, -0.1, 0.1, 0.4, 0.6, 0.9, 2.4, 7.0]],
        };
        for x in values {
            let n = x.len();
            let mut graph = Graph::new("checked");
            let input = graph.input("x", DType::F32, &[n.into()]);
            let y = graph.add("y", Op::Unary(op), &[input]).unwrap();
            let cotangent = graph.input("dy", DType::F32, &[n.into()]);
            let graph = Arc::new(backward(&graph, y, Some(cotangent), &[input]).unwrap());
            let dy: Vec<f32> = (0..n).map(|i| 1.0 + i as f32 * 0.1).collect();
            let inputs = [Tensor::from_slice(&[n], &x).unwrap(), Tensor::from_slice(&[n], &dy).unwrap()];
            let found = run(&graph, &inputs)[0].to_f32().unwrap();
            for ((x, dy), found) in x.iter().zip(&dy).zip(found) {
                const H: f32 = 2e-3;
                let (above, below) = (x + H, x - H);
                let rise = f64::from(op.apply(above)) - f64::from(op.apply(below));
                let expected = rise / f64::from(above - below) * f64::from(*dy);
                let error = (f64::from(found) - expected).abs();
                assert!(error < 1e-3 * expected.abs().max(1.0), "{op:?} at {x}: {found}, {expected}");
            }
        }
    }
}

/// A graph of one input of two elements, with an operator behind it.
fn one(op: Op) -> (Graph, ValueId, ValueId) {
    let mut graph = Graph::new("one");
    let x = graph.input("x", DType::F32, &[2.into()]);
    let y = graph.add("y", op, &[x]).unwrap();
    (graph, x, y)
}

#[test]
fn an_operator_without_a_derivative_is_named() {
    let (graph, x, y) = one(Op::CumSum(core_tensor::op::CumSum { axis: 0, exclusive: false, reverse: false }));
    let cause = backward(&graph, y, Some(x), &[x]).unwrap_err();
    assert_eq!(cause.to_string(), "node \"y\": CumSum cannot be differentiated");
}

#[test]
fn what_does_not_go_through_the_differentiated_values_needs_no_derivative() {
    let (mut graph, x, y) = one(Op::CumSum(core_tensor::op::CumSum { axis: 0, exclusive: false, reverse: false }));
    let w = graph.input("w", DType::F32, &[2.into()]);
    let z = graph.add("z", Op::Binary(Binary::Mul), &[y, w]).unwrap();
    let graph = Arc::new(backward(&graph, z, Some(x), &[w]).unwrap());
    let inputs = [Tensor::from_slice(&[2], &[2.0f32, 3.0]).unwrap(), Tensor::from_slice(&[2], &[1.0f32, 1.0]).unwrap()];
    assert_eq!(run(&graph, &inputs)[0].to_f32().unwrap(), [4.0, 15.0]);
}

#[test]
fn a_value_that_is_used_twice_gets_the_sum() {
    let (mut graph, x, y) = one(Op::Unary(Unary::Exp));
    let z = graph.add("z", Op::Binary(Binary::Mul), &[x, y]).unwrap();
    let loss = graph.add("loss", Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[z]).unwrap();
    let graph = Arc::new(backward(&graph, loss, None, &[x]).unwrap());
    let found = run(&graph, &[Tensor::from_slice(&[2], &[0.0f32, 1.0]).unwrap()])[0].to_f32().unwrap();
    assert!((found[0] - 1.0).abs() < 1e-6 && (found[1] - 2.0 * 1f32.exp()).abs() < 1e-5, "{found:?}");
}

#[test]
fn a_row_with_the_lowest_scores_alone_is_shared_among_what_it_sees() {
    let mut graph = Graph::new("lowest");
    let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, DType::F32, &dims(&[1, 3, 1, 1])));
    let mask = graph.input("mask", DType::F32, &dims(&[3, 3]));
    let op = TensorAttention { scale: 1.0, causal: true, softcap: None };
    let y = graph.add("y", Op::TensorAttention(op), &[q, k, v, mask]).unwrap();
    graph.output(y);
    let cotangent = graph.input("dy", DType::F32, &dims(&[1, 3, 1, 1]));
    let graph = Arc::new(backward(&graph, y, Some(cotangent), &[v]).unwrap());
    let rows = [[1.0f32, -0.5, 0.3], [0.2, 1.0, -1.0], [3.0, 2.0, 1.0]];
    let mut inputs: Vec<Tensor> = rows.iter().map(|x| Tensor::from_slice(&[1, 3, 1, 1], x).unwrap()).collect();
    inputs.push(Tensor::from_slice(&[3, 3], &[f32::MIN; 9]).unwrap());
    inputs.push(Tensor::from_slice(&[1, 3, 1, 1], &[1.0f32; 3]).unwrap());
    let found: Vec<Vec<f32>> = run(&graph, &inputs).iter().map(|x| x.to_f32().unwrap()).collect();
    for (found, expected) in found.iter().zip([[3.0, 2.5, 2.0], [11.0 / 6.0, 5.0 / 6.0, 1.0 / 3.0]]) {
        assert!(found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-5), "{found:?} {expected:?}");
    }
}

#[test]
fn zeros_have_slopes() {
    let (graph, x, y) = one(Op::Reduce(Reduce { kind: ReduceKind::L2 }));
    let graph = Arc::new(backward(&graph, y, None, &[x]).unwrap());
    let gradient = |x: [f32; 2]| run(&graph, &[Tensor::from_slice(&[2], &x).unwrap()])[0].to_f32().unwrap();
    assert_eq!(gradient([0.0, 0.0]), [0.0, 0.0]);
    assert_eq!(gradient([3.0, -4.0]), [0.6, -0.8]);

    let mut graph = Graph::new("power");
    let [a, b] = ["a", "b"].map(|name| graph.input(name, DType::F32, &[3.into()]));
    let y = graph.add("y", Op::Binary(Binary::Pow), &[a, b]).unwrap();
    let loss = graph.add("loss", Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[y]).unwrap();
    let graph = Arc::new(backward(&graph, loss, None, &[a, b]).unwrap());
    let inputs = [[0.0f32, 0.0, 2.0], [0.0, 1.0, 3.0]].map(|x| Tensor::from_slice(&[3], &x).unwrap());
    let found: Vec<Vec<f32>> = run(&graph, &inputs).iter().map(|g| g.to_f32().unwrap()).collect();
    assert_eq!(found[0], [0.0, 1.0, 12.0]);
    assert_eq!(found[1], [0.0, 0.0, 8.0 * 2f32.ln()]);
}

#[test]
fn weights_in_blocks_pass_gradients_on() {
    use core_tensor::{BlockFormat, Weight};
    let mut graph = Graph::new("blocks");
    let x = graph.input("x", DType::F32, &[1.into(), 32.into()]);
    let mut bytes = vec![0u8; 2 * 34];
    // Scale 1, whole numbers.
    for (row, block) in bytes.chunks_exact_mut(34).enumerate() {
        block[..2].copy_from_slice(&[0x00, 0x3c]);
        block[2..].iter_mut().enumerate().for_each(|(i, q)| *q = (i as u8) + row as u8);
    }
    let stored = Tensor::from_bytes(DType::Block(BlockFormat::Q8_0), &[2, 32], &bytes).unwrap();
    let w = graph.weight("w", Weight::stored(stored));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
    let loss = graph.add("loss", Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[y]).unwrap();
    assert!(matches!(backward(&graph, loss, None, &[w]), Err(GradientError::Type { .. })));
    let graph = Arc::new(backward(&graph, loss, None, &[x]).unwrap());
    let found = run(&graph, &[Tensor::from_slice(&[1, 32], &[0.0f32; 32]).unwrap()])[0].to_f32().unwrap();
    let expected: Vec<f32> = (0..32).map(|i| (2 * i + 1) as f32).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let (mut graph, x, y) = one(Op::Unary(Unary::Exp));
    let other = graph.input("other", DType::F32, &[3.into()]);
    let whole = graph.input("whole", DType::I32, &[2.into()]);
    let flat = graph.add("flat", Op::Unary(Unary::Floor), &[x]).unwrap();
    assert!(matches!(backward(&graph, y, None, &[x]), Err(GradientError::NotScalar { .. })));
    assert!(matches!(backward(&graph, y, Some(other), &[x]), Err(GradientError::Cotangent { .. })));
    assert!(matches!(backward(&graph, y, Some(x), &[other]), Err(GradientError::Independent { .. })));
    assert!(matches!(backward(&graph, y, Some(x), &[whole]), Err(GradientError::Type { .. })));
    assert!(matches!(backward(&graph, flat, Some(x), &[x]), Err(GradientError::Independent { .. })));
}
