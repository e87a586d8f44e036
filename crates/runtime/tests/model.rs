//! Models on the reference backend, and on backends that refuse.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Attention, Op, Reshape, StateWrite, Unary};
use core_tensor::{
    Backend, BackendError, Bindings, DType, DeviceMemory, Dim, Graph, Node, Program, Progress, ReferenceBackend,
    Session as BackendSession, StateDecl, StateError, Tensor, Weights,
};
use polaris_runtime::{Model, ModelOptions, RuntimeError, Session, estimate};

/// A backend that refuses some operators, and has so much memory.
struct Picky {
    refused: &'static [&'static str],
    bytes: u64,
    inner: ReferenceBackend,
}

impl Backend for Picky {
    fn name(&self) -> &str {
        "picky"
    }

    fn description(&self) -> String {
        "picky".into()
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory { name: "small".into(), bytes: self.bytes, max_allocation: self.bytes }
    }

    fn supports(&self, _: &Graph, node: &Node) -> Result<(), String> {
        if self.refused.contains(&node.op.name()) { Err("no kernel".into()) } else { Ok(()) }
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        self.inner.load_weights(graph, progress)
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        self.inner.compile(graph, weights, bounds)
    }

    fn new_session(
        &self,
        graph: &Graph,
        slots: usize,
        bounds: &Bindings,
    ) -> Result<Box<dyn BackendSession>, BackendError> {
        self.inner.new_session(graph, slots, bounds)
    }
}

/// Attention over what was written: one head of two elements.
fn attention() -> Graph {
    let mut graph = Graph::new("attention");
    let tokens = Dim::sym("tokens");
    let mut state = |name: &str| {
        let capacity = Dim::sym("context");
        graph.add_state(StateDecl { name: name.into(), dtype: DType::F32, row: vec![1, 2], capacity, window: None })
    };
    let (k, v) = (state("k"), state("v"));
    let x = graph.input("x", DType::F32, &[tokens.clone(), 2.into()]);
    let at = graph.input("positions", DType::I32, std::slice::from_ref(&tokens));
    let slots = graph.input("slots", DType::I32, std::slice::from_ref(&tokens));
    let heads = graph.add("heads", Op::Reshape(Reshape { shape: vec![tokens, 1.into(), 2.into()] }), &[x]).unwrap();
    let k = graph.add("k", Op::StateWrite(StateWrite { state: k }), &[heads, at, slots]).unwrap();
    let v = graph.add("v", Op::StateWrite(StateWrite { state: v }), &[heads, at, slots]).unwrap();
    let attention = Attention { scale: 1.0, softcap: None, window: None };
    let y = graph.add("y", Op::Attention(attention), &[heads, k, v, at, slots]).unwrap();
    graph.output(y);
    graph
}

fn options() -> ModelOptions {
    ModelOptions { fixed: Bindings::new().with("context", 8), ..ModelOptions::default() }
}

fn load(backends: &[Arc<dyn Backend>]) -> Result<Model, RuntimeError> {
    Model::load(backends, attention(), options(), &mut |_, _| ControlFlow::Continue(()))
}

fn reference() -> Arc<dyn Backend> {
    Arc::new(ReferenceBackend::default())
}

fn picky(refused: &'static [&'static str], bytes: u64) -> Arc<dyn Backend> {
    Arc::new(Picky { refused, bytes, inner: ReferenceBackend::default() })
}

/// Appends rows to a slot and gives the outputs.
fn step(model: &Model, session: &mut Session, slot: i32, rows: &[[f32; 2]]) -> Result<Vec<f32>, RuntimeError> {
    let held = session.len(slot as usize).unwrap();
    let positions: Vec<i32> = (held..held + rows.len()).map(|p| p as i32).collect();
    let x = Tensor::from_slice(&[rows.len(), 2], rows.as_flattened()).unwrap();
    let ints = |values: &[i32]| Tensor::from_slice(&[values.len()], values).unwrap();
    let out = model.step(session, &[x, ints(&positions), ints(&vec![slot; rows.len()])])?;
    Ok(out[0].to_f32().unwrap())
}

#[test]
fn rows_evaluated_one_by_one_or_together_give_the_same() {
    let model = load(&[reference()]).unwrap();
    let rows = [[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]];
    let mut session = model.session(2, &Bindings::new()).unwrap();
    let together = step(&model, &mut session, 0, &rows).unwrap();
    let mut single = Vec::new();
    for row in rows {
        single.extend(step(&model, &mut session, 1, &[row]).unwrap());
    }
    assert_eq!(together, single);
    assert_eq!(model.compiled(), [[1], [8]], "one program for single rows, one for up to 8");
}

#[test]
fn slots_are_cut_copied_saved_and_restored() {
    let model = load(&[reference()]).unwrap();
    let mut session = model.session(2, &Bindings::new()).unwrap();
    step(&model, &mut session, 0, &[[1.0, 0.0], [0.5, 2.0]]).unwrap();
    let snapshot = session.save_slot(0).unwrap();
    let third = step(&model, &mut session, 0, &[[3.0, 1.0]]).unwrap();
    session.truncate(0, 2).unwrap();
    assert_eq!(step(&model, &mut session, 0, &[[3.0, 1.0]]).unwrap(), third);
    session.restore_slot(1, &snapshot).unwrap();
    assert_eq!(session.len(1).unwrap(), 2);
    assert_eq!(step(&model, &mut session, 1, &[[3.0, 1.0]]).unwrap(), third);
    session.truncate(0, 0).unwrap();
    session.copy_slot(1, 0).unwrap();
    assert_eq!(session.len(0).unwrap(), 3);
    assert_eq!(session.truncate(0, 4), Err(StateError::Length { slot: 0, len: 3, asked: 4 }));
}

#[test]
fn a_failed_step_leaves_the_session_as_it_was() {
    let model = load(&[reference()]).unwrap();
    let mut session = model.session(1, &Bindings::new()).unwrap();
    step(&model, &mut session, 0, &[[1.0, 0.0]; 8]).unwrap();
    let full = step(&model, &mut session, 0, &[[1.0, 0.0]]).unwrap_err();
    assert_eq!(full.to_string(), "backend reference: index 8 is outside of 0..8 (positions of the context)");
    assert_eq!(session.len(0).unwrap(), 8);
}

#[test]
fn a_step_beyond_the_largest_bucket_is_refused() {
    let model = load(&[reference()]).unwrap();
    let mut session = model.session(1, &Bindings::new()).unwrap();
    let error = step(&model, &mut session, 0, &[[0.0; 2]; 513]).unwrap_err();
    assert_eq!(error.to_string(), "a step with tokens = 513 is larger than the largest bucket, 512");
}

#[test]
fn the_first_backend_that_takes_all_nodes_is_chosen() {
    let model = load(&[picky(&["Attention"], u64::MAX), reference()]).unwrap();
    assert_eq!(model.backend().name(), "reference");
    let model = load(&[picky(&["Exp"], u64::MAX), reference()]).unwrap();
    assert_eq!(model.backend().name(), "picky");
}

#[test]
fn a_graph_that_no_backend_takes_says_which_nodes_stand_in_the_way() {
    let error = load(&[picky(&["Attention", "StateWrite"], u64::MAX)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no backend runs all of graph \"attention\": \
         picky refuses node \"k\" (StateWrite): no kernel; picky refuses node \"v\" (StateWrite): no kernel; \
         picky refuses node \"y\" (Attention): no kernel"
    );
    assert_eq!(load(&[]).unwrap_err().to_string(), "no backend was given");
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_anything_is_loaded() {
    let error = load(&[picky(&[], 1000)]).unwrap_err();
    let RuntimeError::NoMemory { needed, weights: 0, states: 128, available: 1000, .. } = error else {
        panic!("{error}");
    };
    assert!(needed > 1000);
}

#[test]
fn memory_is_estimated_from_the_graph_alone() {
    let bounds = Bindings::new().with("context", 100).with("tokens", 16);
    let estimate = estimate(&attention(), 3, &bounds).unwrap();
    // K and V of 3 slots, 100 positions, 2 elements of 4 bytes; the reshape and the result, 16 rows of 8 bytes each.
    assert_eq!((estimate.weights, estimate.states, estimate.arena), (0, 2 * 3 * 100 * 8, 2 * 128));
    assert!(polaris_runtime::estimate(&attention(), 1, &Bindings::new()).is_err());
}

#[test]
fn loading_can_be_cancelled() {
    let error = Model::load(&[reference()], attention(), options(), &mut |_, _| ControlFlow::Break(())).unwrap_err();
    assert!(error.is_cancelled());
}

#[test]
fn passes_run_unless_they_are_switched_off() {
    let graph = || {
        let mut graph = Graph::new("passes");
        let x = graph.input("x", DType::F32, &[Dim::sym("tokens")]);
        graph.add("unused", Op::Unary(Unary::Exp), &[x]).unwrap();
        graph.output(x);
        graph
    };
    let nodes = |optimize| {
        let options = ModelOptions { optimize, ..ModelOptions::default() };
        let model = Model::load(&[reference()], graph(), options, &mut |_, _| ControlFlow::Continue(())).unwrap();
        model.graph().nodes().len()
    };
    assert_eq!((nodes(true), nodes(false)), (0, 1));
}
