//! Graphs with control flow and data-dependent extents run as the interpreter runs them.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::{Binary, Cast, ExtentValues, If, Loop, Op, Range, Reduce, ReduceKind, Reshape, Unary};
use core_tensor::{
    Backend, Bindings, DType, Dim, Graph, HostStates, Interpreter, Node, Program, Progress, ReferenceBackend, Session,
    Tensor, ValueType, Weight, Weights,
};
use polaris_runtime::{Executable, ExecutableOptions};

/// The reference backend without some operators.
struct Without(&'static [&'static str], ReferenceBackend);

impl Backend for Without {
    fn name(&self) -> &str {
        "partial"
    }
    fn description(&self) -> String {
        "part of the reference".into()
    }
    fn memory(&self) -> core_tensor::DeviceMemory {
        self.1.memory()
    }
    fn supports(&self, _: &Graph, node: &Node) -> Result<(), String> {
        if self.0.contains(&node.op.name()) { Err("left out".into()) } else { Ok(()) }
    }
    fn load_weights(
        &self,
        graph: &Arc<Graph>,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<dyn Weights>, core_tensor::BackendError> {
        self.1.load_weights(graph, progress)
    }
    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, core_tensor::BackendError> {
        self.1.compile(graph, weights, bounds)
    }
    fn new_session(
        &self,
        graph: &Graph,
        slots: usize,
        bounds: &Bindings,
    ) -> Result<Box<dyn Session>, core_tensor::BackendError> {
        self.1.new_session(graph, slots, bounds)
    }
}

fn load(graph: &Graph, backends: &[Arc<dyn Backend>]) -> Executable {
    let options = ExecutableOptions { optimize: false };
    Executable::load(backends, graph.clone(), options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

fn check(graph: Graph, inputs: &[Tensor]) -> Executable {
    let backends: [Arc<dyn Backend>; 2] =
        [Arc::new(Without(&["Neg", "Mul"], ReferenceBackend::default())), Arc::new(ReferenceBackend::default())];
    let executable = load(&graph, &backends);
    let shared = Arc::new(graph);
    let mut states = HostStates::new(&shared, 0, &Bindings::new()).unwrap();
    let expected = Interpreter::new(shared).run(&mut states, inputs).unwrap();
    for _ in 0..2 {
        let found = executable.run(inputs).unwrap();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert_eq!((a.dtype(), a.shape(), a.bytes()), (b.dtype(), b.shape(), b.bytes()));
        }
    }
    executable
}

fn scalar(graph: &mut Graph, name: &str, value: f32) -> core_tensor::ValueId {
    graph.weight(name, Weight::stored(Tensor::from_slice(&[], &[value]).unwrap()))
}

#[test]
fn a_graph_is_split_where_a_backend_lacks_a_node() {
    let mut graph = Graph::new("split");
    let x = graph.input("x", DType::F32, &[Dim::sym("n"), 3.into()]);
    let a = graph.add("abs", Op::Unary(Unary::Abs), &[x]).unwrap();
    let b = graph.add("neg", Op::Unary(Unary::Neg), &[a]).unwrap();
    let c = graph.add("exp", Op::Unary(Unary::Exp), &[b]).unwrap();
    let d = graph.add("add", Op::Binary(Binary::Add), &[c, a]).unwrap();
    graph.output(d);
    graph.output(x);
    let executable = check(graph, &[Tensor::from_slice(&[2, 3], &[1.0f32, -2.0, 3.0, -4.0, 5.0, 6.0]).unwrap()]);
    let pieces: Vec<String> = executable.pieces().into_iter().map(|(name, nodes)| format!("{name} {nodes}")).collect();
    assert_eq!(pieces, ["partial 1", "reference 1", "partial 2"]);
    assert_eq!(executable.passed_over(), ["partial refuses node \"neg\" (Neg): left out"]);
}

#[test]
fn extents_that_depend_on_data_reach_later_pieces() {
    let mut graph = Graph::new("dynamic");
    let limit = graph.input("limit", DType::F32, &[]);
    let x = graph.input("x", DType::F32, &[Dim::sym("n")]);
    let (zero, one) = (scalar(&mut graph, "zero", 0.0), scalar(&mut graph, "one", 1.0));
    let count = Dim::sym("count");
    let range = graph.add("range", Op::Range(Range { len: count.clone() }), &[zero, limit, one]).unwrap();
    let doubled = graph.add("double", Op::Binary(Binary::Add), &[range, range]).unwrap();
    let rows = Op::Reshape(Reshape { shape: vec![1.into(), count.clone()] });
    let row = graph.add("row", rows, &[doubled]).unwrap();
    // Neither extent comes from an input of the node.
    let extents = Op::ExtentValues(ExtentValues { dims: vec![count.add(1.into()), Dim::sym("n")] });
    let extents = graph.add("extents", extents, &[]).unwrap();
    let sum = graph.add("sum", Op::Reduce(Reduce { kind: ReduceKind::Sum }), &[x]).unwrap();
    for output in [row, extents, sum] {
        graph.output(output);
    }
    let x = Tensor::from_slice(&[3], &[1.0f32, 2.0, 3.0]).unwrap();
    for limit in [4.5f32, 0.0, 17.0] {
        check(graph.clone(), &[Tensor::from_slice(&[], &[limit]).unwrap(), x.clone()]);
    }
}

#[test]
fn branches_and_loops_run_their_subgraphs() {
    let shape = [Dim::sym("n")];
    let branch = |name: &str, op: Op| {
        let mut graph = Graph::new(name);
        let x = graph.input("x", DType::F32, &shape);
        let y = graph.add("y", op, &[x]).unwrap();
        graph.output(y);
        Arc::new(graph)
    };
    let mut body = Graph::new("body");
    let iteration = body.input("iteration", DType::I64, &[]);
    let going = body.input("going", DType::Bool, &[]);
    let carried = body.input("carried", DType::F32, &shape);
    let capture = body.input("capture", DType::F32, &shape);
    let float = body.add("float", Op::Cast(Cast { to: DType::F32 }), &[iteration]).unwrap();
    let scaled = body.add("scaled", Op::Binary(Binary::Mul), &[capture, float]).unwrap();
    let next = body.add("next", Op::Binary(Binary::Add), &[carried, scaled]).unwrap();
    for output in [going, next, scaled] {
        body.output(output);
    }
    let mut graph = Graph::new("control");
    let condition = graph.input("condition", DType::Bool, &[]);
    let most = graph.input("most", DType::I64, &[]);
    let x = graph.input("x", DType::F32, &shape);
    let ty = ValueType::tensor(DType::F32, &shape);
    let choice = Op::If(If {
        then_branch: branch("then", Op::Unary(Unary::Neg)),
        else_branch: branch("else", Op::Unary(Unary::Exp)),
        outputs: vec![ty.clone()],
    });
    let chosen = graph.add("chosen", choice, &[condition, x]).unwrap();
    let rows = ValueType::tensor(DType::F32, &[Dim::sym("iterations"), Dim::sym("n")]);
    let repeat = Op::Loop(Loop { body: Arc::new(body), carried: 1, outputs: vec![ty, rows] });
    let inputs = vec![Some(most), None, Some(chosen), Some(x)];
    for output in graph.add_node("repeat", repeat, inputs).unwrap() {
        graph.output(output);
    }
    let x = Tensor::from_slice(&[2], &[0.5f32, -1.5]).unwrap();
    for (condition, most) in [(1u8, 3i64), (0, 5), (1, 0)] {
        let condition = Tensor::from_bytes(DType::Bool, &[], &[condition]).unwrap();
        check(graph.clone(), &[condition, Tensor::from_slice(&[], &[most]).unwrap(), x.clone()]);
    }
}
