//! Users' operators.

use std::sync::Arc;

use core_tensor::op::{CustomOp, Inference, MatMul, Op, OpError, Unary};
use core_tensor::{BackendError, Bindings, DType, Dim, Graph, Tensor, ValueType};

use crate::backends::candidates;
use crate::compare::{Case, load};
use crate::random::Random;

/// Takes its time, and gives its input and twice its input.
#[derive(Debug)]
pub(crate) struct Slow {
    pub(crate) microseconds: u64,
}

impl CustomOp for Slow {
    fn name(&self) -> &'static str {
        "Slow"
    }

    fn attribute_bytes(&self) -> Vec<u8> {
        self.microseconds.to_le_bytes().to_vec()
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        match cx.inputs {
            [Some(ty @ ValueType::Tensor { dtype: DType::F32, .. })] => Ok(vec![(*ty).clone(), (*ty).clone()]),
            _ => Err(OpError::Custom("takes one f32 tensor".into())),
        }
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
        std::thread::sleep(std::time::Duration::from_micros(self.microseconds));
        let twice: Vec<f32> = inputs[0].to_f32()?.iter().map(|x| 2.0 * x).collect();
        Ok(vec![inputs[0].clone(), Tensor::from_slice(inputs[0].shape(), &twice)?])
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Error,
    WrongShape,
    TooFew,
    Panic,
}

#[derive(Debug)]
struct Faulty(Fault);

impl CustomOp for Faulty {
    fn name(&self) -> &'static str {
        "Faulty"
    }

    fn attribute_bytes(&self) -> Vec<u8> {
        vec![self.0 as u8]
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.inputs.first().copied().flatten().map(|ty| vec![ty.clone()]).ok_or(OpError::Custom("takes an input".into()))
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
        match self.0 {
            Fault::Error => Err(OpError::Custom("no luck".into())),
            Fault::WrongShape => {
                Ok(vec![Tensor::from_slice(&[inputs[0].len() + 1], &vec![0.0f32; inputs[0].len() + 1])?])
            }
            Fault::TooFew => Ok(Vec::new()),
            Fault::Panic => panic!("a user's operator panics: this is part of the test"),
        }
    }
}

#[test]
fn users_operators_run_between_others() {
    let mut random = Random::new(1);
    let mut graph = Graph::new("custom");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 32.into()]);
    let w = graph.weight("w", random.weight(DType::F32, &[32, 32]));
    let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).expect("a product");
    let op: Arc<dyn CustomOp> = Arc::new(Slow { microseconds: 300 });
    let both = graph.add_node("custom", Op::Custom(op), vec![Some(y)]).expect("a custom operator");
    let z = graph.add("z", Op::MatMul(MatMul { transpose_b: true }), &[both[1], w]).expect("a product");
    let neg = graph.add("neg", Op::Unary(Unary::Neg), &[both[0]]).expect("a function");
    graph.output(z);
    graph.output(neg);
    let steps = [1, 6, 2].map(|rows| vec![random.f32(&[rows, 32])]);
    Case::new(graph, Bindings::new().with("rows", 6), steps.into()).check();
}

#[test]
fn what_goes_wrong_in_a_users_operator_is_an_error_of_the_run() {
    for fault in [Fault::Error, Fault::WrongShape, Fault::TooFew, Fault::Panic] {
        let mut graph = Graph::new("faulty");
        let x = graph.input("x", DType::F32, &[4.into()]);
        let op: Arc<dyn CustomOp> = Arc::new(Faulty(fault));
        let y = graph.add("y", Op::Custom(op), &[x]).expect("a custom operator");
        let y = graph.add("abs", Op::Unary(Unary::Abs), &[y]).expect("a function");
        graph.output(y);
        let graph = Arc::new(graph);
        for candidate in candidates().iter().filter(|candidate| !candidate.partial) {
            let mut loaded = load(&*candidate.backend, &graph, 1, &Bindings::new()).expect("it compiles");
            for _ in 0..2 {
                let result = loaded.run(&[Random::new(1).f32(&[4])]);
                assert!(matches!(result, Err(BackendError::Op(_))), "{fault:?}: {result:?}");
            }
        }
    }
}
