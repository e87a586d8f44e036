//! Each pass alone, before and after; and what passes must leave alone.

use std::sync::Arc;

use core_tensor::op::{
    Attention, Binary, Cast, Concat, Gather, MatMul, Op, Reshape, Slice, StateWrite, Transpose, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, StateDecl, Tensor, ValueId, Weight};
use polaris_optimizer::{OptimizeOptions, OptimizerError, Pass, optimize, optimize_with, optimize_with_options};

fn rows() -> Dim {
    Dim::sym("rows")
}

fn constant(graph: &mut Graph, name: &str, shape: &[usize], value: f32) -> ValueId {
    let values = vec![value; shape.iter().product()];
    graph.weight(name, Weight::stored(Tensor::from_slice(shape, &values).unwrap()))
}

fn ramp(graph: &mut Graph, name: &str, shape: &[usize]) -> ValueId {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
    graph.weight(name, Weight::stored(Tensor::from_slice(shape, &values).unwrap()))
}

/// The graph before and after one pass, and what was changed.
fn before_and_after(graph: Graph, pass: Pass) -> String {
    let before = graph.to_text();
    let (after, report) = optimize_with(graph, &[pass]).unwrap();
    format!("{before}---- {report}\n{}", after.to_text())
}

/// Runs a graph of one input of `[2, 4]` without states.
fn run(graph: Graph) -> Vec<Vec<f32>> {
    let graph = Arc::new(graph);
    let mut states = HostStates::new(&graph, 1, &Bindings::new()).unwrap();
    let x: Vec<f32> = (0..8).map(|i| i as f32 - 3.5).collect();
    let outputs = Interpreter::new(graph).run(&mut states, &[Tensor::from_slice(&[2, 4], &x).unwrap()]).unwrap();
    outputs.iter().map(|output| output.to_f32().unwrap()).collect()
}

/// Something for every pass.
fn mixed() -> Graph {
    let mut graph = Graph::new("mixed");
    let x = graph.input("x", DType::F32, &[rows(), 4.into()]);
    let w = ramp(&mut graph, "w", &[4, 4]);
    let half = constant(&mut graph, "half", &[1], 0.5);
    let one = constant(&mut graph, "one", &[4], 1.0);
    let scaled = graph.add("w.scaled", Op::Binary(Binary::Mul), &[w, half]).unwrap();
    let gate = graph.add("gate", Op::MatMul(MatMul { transpose_b: true }), &[x, scaled]).unwrap();
    let again = graph.add("again", Op::MatMul(MatMul { transpose_b: true }), &[x, scaled]).unwrap();
    let act = graph.add("act", Op::Unary(Unary::Silu), &[gate]).unwrap();
    let up = graph.add("up", Op::Binary(Binary::Mul), &[again, one]).unwrap();
    let gated = graph.add("gated", Op::Binary(Binary::Mul), &[act, up]).unwrap();
    graph.add("unused", Op::Unary(Unary::Exp), &[gated]).unwrap();
    graph.output(gated);
    graph
}

#[test]
fn dead_code_leaves_what_outputs_and_effects_need() {
    let mut graph = Graph::new("dead");
    let state = graph.add_state(StateDecl {
        name: "kept".into(),
        dtype: DType::F32,
        row: vec![1, 4],
        capacity: 8.into(),
        window: None,
    });
    let x = graph.input("x", DType::F32, &[rows(), 4.into()]);
    let at = graph.input("at", DType::I32, &[rows()]);
    let unused = graph.input("unused", DType::I32, &[rows()]);
    let w = ramp(&mut graph, "w.unused", &[4]);
    let dead = graph.add("dead", Op::Binary(Binary::Add), &[x, w]).unwrap();
    graph.add("dead.too", Op::Unary(Unary::Neg), &[dead]).unwrap();
    let row = graph.add("row", Op::Reshape(Reshape { shape: vec![rows(), 1.into(), 4.into()] }), &[x]).unwrap();
    graph.add("write", Op::StateWrite(StateWrite { state }), &[row, at, unused]).unwrap();
    let y = graph.add("y", Op::Unary(Unary::Exp), &[x]).unwrap();
    graph.output(y);
    insta::assert_snapshot!(before_and_after(graph, Pass::DeadCode));
}

#[test]
fn identities_are_taken_out_and_reshapes_joined() {
    let mut graph = Graph::new("identities");
    let mut x = graph.input("x", DType::F32, &[rows(), 4.into()]);
    let (zero, one) = (constant(&mut graph, "zero", &[4], 0.0), constant(&mut graph, "one", &[1], 1.0));
    let same = Reshape { shape: vec![rows(), 4.into()] };
    x = graph.add("reshape", Op::Reshape(same), &[x]).unwrap();
    x = graph.add("cast", Op::Cast(Cast { to: DType::F32 }), &[x]).unwrap();
    x = graph.add("transpose", Op::Transpose(Transpose { perm: vec![0, 1] }), &[x]).unwrap();
    x = graph.add("slice", Op::Slice(Slice::range(1, 0, 4)), &[x]).unwrap();
    x = graph.add("concat", Op::Concat(Concat { axis: 0 }), &[x]).unwrap();
    x = graph.add("add", Op::Binary(Binary::Add), &[x, zero]).unwrap();
    x = graph.add("add.left", Op::Binary(Binary::Add), &[zero, x]).unwrap();
    x = graph.add("sub", Op::Binary(Binary::Sub), &[x, zero]).unwrap();
    x = graph.add("mul", Op::Binary(Binary::Mul), &[x, one]).unwrap();
    x = graph.add("div", Op::Binary(Binary::Div), &[x, one]).unwrap();
    x = graph.add("pow", Op::Binary(Binary::Pow), &[x, one]).unwrap();
    x = graph.add("negated", Op::Binary(Binary::Sub), &[zero, x]).unwrap();
    x = graph.add("split", Op::Reshape(Reshape { shape: vec![rows(), 2.into(), 2.into()] }), &[x]).unwrap();
    x = graph.add("joined", Op::Reshape(Reshape { shape: vec![rows(), 1.into(), 4.into()] }), &[x]).unwrap();
    graph.output(x);
    let text = before_and_after(graph, Pass::Identities);
    insta::assert_snapshot!(text);
}

#[test]
fn a_neutral_constant_that_broadcasts_the_result_stays() {
    let mut graph = Graph::new("broadcast");
    let x = graph.input("x", DType::F32, &[1.into(), 4.into()]);
    let one = constant(&mut graph, "one", &[3, 4], 1.0);
    let y = graph.add("y", Op::Binary(Binary::Mul), &[x, one]).unwrap();
    graph.output(y);
    assert_eq!(optimize(graph).unwrap().0.nodes().len(), 1);
}

#[test]
fn constants_fold() {
    let mut graph = Graph::new("constants");
    let x = graph.input("x", DType::F32, &[rows(), 4.into()]);
    let w = ramp(&mut graph, "w", &[2, 4]);
    let two = constant(&mut graph, "two", &[1], 2.0);
    let scaled = graph.add("scaled", Op::Binary(Binary::Mul), &[w, two]).unwrap();
    let turned = graph.add("turned", Op::Transpose(Transpose { perm: vec![1, 0] }), &[scaled]).unwrap();
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: false }), &[x, turned]).unwrap();
    graph.output(y);
    insta::assert_snapshot!(before_and_after(graph, Pass::ConstantFolding));
}

#[test]
fn a_constant_that_would_grow_is_not_folded() {
    let mut graph = Graph::new("growth");
    let a = constant(&mut graph, "a", &[1024, 1], 1.5);
    let b = constant(&mut graph, "b", &[1, 1024], 2.5);
    let y = graph.add("y", Op::Binary(Binary::Add), &[a, b]).unwrap();
    graph.output(y);
    let (graph, report) = optimize(graph).unwrap();
    assert_eq!((graph.nodes().len(), report.rounds), (1, 1));
}

/// Each doubles what it is made of: without an end to it, thirty make a terabyte.
#[test]
fn constants_that_grow_by_each_other_are_folded_up_to_a_budget() {
    let mut graph = Graph::new("bomb");
    let mut y = ramp(&mut graph, "x", &[32 << 10]);
    for i in 0..30 {
        y = graph.add(&format!("y{i}"), Op::Concat(Concat { axis: 0 }), &[y, y]).unwrap();
    }
    graph.output(y);
    let options = OptimizeOptions { growth: 1 << 20, ..OptimizeOptions::default() };
    let (graph, report) = optimize_with_options(graph, &options).unwrap();
    assert!(graph.nodes().len() > 20, "{}", graph.to_text());
    assert!(report.weight_bytes_after <= 2 << 20, "{}", report.weight_bytes_after);
}

#[test]
fn equal_nodes_and_equal_weights_merge() {
    let mut graph = Graph::new("common");
    let x = graph.input("x", DType::F32, &[rows(), 4.into()]);
    let stored = Weight::stored(Tensor::from_slice(&[4], &[1.0f32, 2.0, 3.0, 4.0]).unwrap());
    let (w, tied) = (graph.weight("w", stored.clone()), graph.weight("tied", stored));
    let a = graph.add("a", Op::Binary(Binary::Add), &[x, w]).unwrap();
    let b = graph.add("b", Op::Binary(Binary::Add), &[x, tied]).unwrap();
    let c = graph.add("c", Op::Binary(Binary::Mul), &[a, b]).unwrap();
    let d = graph.add("d", Op::Binary(Binary::Sub), &[b, a]).unwrap();
    graph.output(c);
    graph.output(d);
    insta::assert_snapshot!(before_and_after(graph, Pass::CommonSubexpressions));
}

#[test]
fn an_activation_times_a_value_becomes_one_node() {
    let mut graph = Graph::new("gated");
    let gate = graph.input("gate", DType::F32, &[rows(), 4.into()]);
    let up = graph.input("up", DType::F32, &[rows(), 4.into()]);
    let silu = graph.add("silu", Op::Unary(Unary::Silu), &[gate]).unwrap();
    let left = graph.add("left", Op::Binary(Binary::Mul), &[silu, up]).unwrap();
    let gelu = graph.add("gelu", Op::Unary(Unary::GeluTanh), &[left]).unwrap();
    let right = graph.add("right", Op::Binary(Binary::Mul), &[up, gelu]).unwrap();
    // Used twice, the activation is computed in any case.
    let shared = graph.add("shared", Op::Unary(Unary::Gelu), &[right]).unwrap();
    let kept = graph.add("kept", Op::Binary(Binary::Mul), &[shared, up]).unwrap();
    graph.output(kept);
    graph.output(shared);
    insta::assert_snapshot!(before_and_after(graph, Pass::GatedActivations));
}

#[test]
fn all_passes_together_leave_the_results_as_they_were() {
    let expected = run(mixed());
    let (graph, report) = optimize(mixed()).unwrap();
    assert_eq!(run(graph.clone()), expected);
    insta::assert_snapshot!(format!("{report}\n{}", graph.to_text()));
}

#[test]
fn writes_and_reads_of_states_keep_their_order() {
    let mut graph = Graph::new("states");
    let capacity = Dim::sym("context");
    let mut state = |name: &str| {
        graph.add_state(StateDecl {
            name: name.into(),
            dtype: DType::F32,
            row: vec![1, 4],
            capacity: capacity.clone(),
            window: None,
        })
    };
    let (k, v) = (state("k"), state("v"));
    let x = graph.input("x", DType::F32, &[rows(), 1.into(), 4.into()]);
    let at = graph.input("at", DType::I32, &[rows()]);
    let slots = graph.input("slots", DType::I32, &[rows()]);
    let read = Attention { scale: 1.0, softcap: None, window: None };
    let write = |graph: &mut Graph, name: &str, state, x| {
        graph.add(name, Op::StateWrite(StateWrite { state }), &[x, at, slots]).unwrap()
    };
    let (k0, v0) = (write(&mut graph, "k0", k, x), write(&mut graph, "v0", v, x));
    let first = graph.add("first", Op::Attention(read), &[x, k0, v0, at, slots]).unwrap();
    let same = graph.add("same", Op::Attention(read), &[x, k0, v0, at, slots]).unwrap();
    let v1 = write(&mut graph, "v1", v, first);
    let second = graph.add("second", Op::Attention(read), &[x, k0, v1, at, slots]).unwrap();
    let sum = graph.add("sum", Op::Binary(Binary::Add), &[same, second]).unwrap();
    graph.output(sum);
    let (graph, _) = optimize(graph).unwrap();
    let names: Vec<&str> = graph.nodes().iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["k0", "v0", "first", "v1", "second", "sum"]);
}

#[test]
fn a_wrong_graph_is_refused() {
    let mut graph = Graph::new("wrong");
    let x = graph.input("x", DType::F32, &[rows()]);
    let other = {
        let mut other = Graph::new("other");
        let w = ramp(&mut other, "w", &[4, 4]);
        let at = other.input("at", DType::I32, &[rows()]);
        other.add("gathered", Op::Gather(Gather::rows()), &[w, at]).unwrap()
    };
    graph.output(x);
    graph.output(other);
    assert!(matches!(optimize(graph), Err(OptimizerError::Input(_))));
}
