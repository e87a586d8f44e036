//! Runs a graph on every backend and compares what comes out with the reference.

use std::ops::ControlFlow;
use std::sync::Arc;

use core_tensor::op::Op;
use core_tensor::{
    Backend, BackendError, Bindings, BlockFormat, DType, Graph, Program, ReferenceBackend, Session, Tensor, ValueId,
};

use crate::backends::{Candidate, candidates};

/// The bound for f32 kernels, and for integer kernels against the reference that rounds activations alike.
pub(crate) const KERNEL: f64 = 1e-7;
/// The bound for kernels with 8-bit activations against f32.
pub(crate) const EIGHT_BITS: f64 = 5e-4;

/// A graph, what it is compiled for, and the steps it runs in one session.
pub(crate) struct Case {
    pub(crate) graph: Arc<Graph>,
    pub(crate) bounds: Bindings,
    pub(crate) slots: usize,
    pub(crate) steps: Vec<Vec<Tensor>>,
    /// Largest normalised mean squared error; 0 for bit by bit.
    pub(crate) tolerance: f64,
    /// The same, for 8-bit activations compared with f32.
    pub(crate) rounding: f64,
    /// Whether every backend must run it, even those that may refuse nodes.
    pub(crate) everywhere: bool,
}

/// Everything that a model needs to run.
pub(crate) struct Loaded {
    pub(crate) program: Arc<dyn Program>,
    pub(crate) session: Box<dyn Session>,
}

pub(crate) fn load(
    backend: &dyn Backend,
    graph: &Arc<Graph>,
    slots: usize,
    bounds: &Bindings,
) -> Result<Loaded, BackendError> {
    let weights = backend.load_weights(graph, &mut |_, _| ControlFlow::Continue(()))?;
    let program = backend.compile(graph, &weights, bounds)?;
    Ok(Loaded { program, session: backend.new_session(graph, slots, bounds)? })
}

impl Loaded {
    pub(crate) fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        self.program.run(&mut *self.session, inputs)
    }
}

impl Case {
    /// A case without states, at the bound of kernels.
    pub(crate) fn new(graph: Graph, bounds: Bindings, steps: Vec<Vec<Tensor>>) -> Case {
        Case {
            graph: Arc::new(graph),
            bounds,
            slots: 1,
            steps,
            tolerance: KERNEL,
            rounding: EIGHT_BITS,
            everywhere: false,
        }
    }

    pub(crate) fn exact(mut self) -> Case {
        self.tolerance = 0.0;
        self
    }

    pub(crate) fn within(mut self, tolerance: f64) -> Case {
        self.tolerance = tolerance;
        self
    }

    /// No backend may refuse it.
    pub(crate) fn everywhere(mut self) -> Case {
        self.everywhere = true;
        self
    }

    pub(crate) fn with_slots(mut self, slots: usize) -> Case {
        self.slots = slots;
        self
    }

    /// The outputs of every step.
    pub(crate) fn run(&self, backend: &dyn Backend) -> Result<Vec<Vec<Tensor>>, BackendError> {
        let mut loaded = load(backend, &self.graph, self.slots, &self.bounds)?;
        self.steps.iter().map(|inputs| loaded.run(inputs)).collect()
    }

    /// The block formats that products multiply by.
    fn formats(&self) -> Vec<BlockFormat> {
        let weight = |id: &Option<ValueId>| id.and_then(|id| self.graph.tensor_type(id));
        let products = self.graph.nodes().iter().filter(|node| matches!(node.op, Op::MatMul(_)));
        products
            .filter_map(|node| match weight(&node.inputs[1]) {
                Some((DType::Block(format), _)) => Some(format),
                _ => None,
            })
            .collect()
    }

    /// Compares every candidate with the reference; panics with what differs.
    pub(crate) fn check(&self) {
        self.check_on(candidates());
    }

    /// Compares some candidates with the reference.
    pub(crate) fn check_on<'a>(&self, on: impl IntoIterator<Item = &'a Candidate>) {
        let run = |rounds| self.run(&ReferenceBackend::new(rounds)).expect("the reference runs");
        let formats = self.formats();
        let exact = run(false);
        let rounded = if formats.is_empty() { None } else { Some(run(true)) };
        for candidate in on {
            let rounds: Vec<bool> = formats.iter().map(|format| (candidate.rounds_activations)(*format)).collect();
            assert!(rounds.iter().all(|r| *r == rounds[0]), "a case needs formats that are all treated alike");
            let rounds = rounds.first() == Some(&true);
            let reference = if rounds { rounded.as_ref().unwrap_or(&exact) } else { &exact };
            let name = candidate.backend.description();
            let refused = self.graph.nodes().iter().any(|node| candidate.backend.supports(&self.graph, node).is_err());
            if candidate.partial && refused {
                let why = |node| candidate.backend.supports(&self.graph, node).err();
                let why: Vec<String> = self.graph.nodes().iter().filter_map(why).collect();
                assert!(!self.everywhere, "{name} refuses nodes: {why:?}\n{}", self.graph.to_text());
                continue;
            }
            let found = match self.run(&*candidate.backend) {
                Ok(found) => found,
                Err(error) => panic!("{name}: {error}\n{}", self.graph.to_text()),
            };
            if candidate.flushes_subnormals {
                let (found, reference) = (
                    found.iter().map(|step| flushed(step)).collect::<Vec<_>>(),
                    reference.iter().map(|step| flushed(step)),
                );
                self.compare(&name, &found, &reference.collect::<Vec<_>>(), self.tolerance);
                continue;
            }
            self.compare(&name, &found, reference, self.tolerance);
            if rounds {
                self.compare(&name, &[together(&found)], &[together(&exact)], self.tolerance.max(self.rounding));
            }
        }
    }

    fn compare(&self, name: &str, found: &[Vec<Tensor>], expected: &[Vec<Tensor>], tolerance: f64) {
        for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found.len(), expected.len());
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                if let Err(difference) = difference(found, expected, tolerance) {
                    panic!("{name}, step {step}, output {i}: {difference}\n{}", self.graph.to_text());
                }
            }
        }
    }
}

/// Each output of all steps as one tensor, if it is f32: what rounding makes of a product is relative to its terms, and a single sum that is nearly zero tells
/// nothing of it. The others as they are.
fn together(steps: &[Vec<Tensor>]) -> Vec<Tensor> {
    let outputs = steps.first().map_or(0, Vec::len);
    let joined = (0..outputs).flat_map(|at| {
        let all: Vec<&Tensor> = steps.iter().map(|step| &step[at]).collect();
        if all.iter().any(|tensor| tensor.dtype() != DType::F32) {
            return all.into_iter().cloned().collect();
        }
        let values: Vec<f32> = all.iter().flat_map(|tensor| tensor.to_f32().expect("floats")).collect();
        vec![Tensor::from_slice(&[values.len()], &values).expect("as many as counted")]
    });
    joined.collect()
}

/// A step's outputs with zeros for numbers that f32 holds with fewer bits: Vulkan leaves it to the device whether it has such numbers.
fn flushed(outputs: &[Tensor]) -> Vec<Tensor> {
    let flush = |tensor: &Tensor| {
        if tensor.dtype() != DType::F32 {
            return tensor.clone();
        }
        let mut values = tensor.to_f32().expect("floats");
        values.iter_mut().filter(|value| value.is_subnormal()).for_each(|value| *value = 0.0_f32.copysign(*value));
        Tensor::from_slice(tensor.shape(), &values).expect("as large as before")
    };
    outputs.iter().map(flush).collect()
}

/// What is wrong with a tensor, if anything is.
pub(crate) fn difference(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<(), String> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Err(format!("{found:?} instead of {expected:?}"));
    }
    let float = matches!(found.dtype(), DType::F32 | DType::F16 | DType::BF16);
    if tolerance == 0.0 || !float {
        let same = found.bytes() == expected.bytes();
        return if same { Ok(()) } else { Err("its bytes differ".into()) };
    }
    let (found, expected) = (found.to_f32().expect("floats"), expected.to_f32().expect("floats"));
    let error = nmse(&found, &expected);
    if error <= tolerance {
        return Ok(());
    }
    let worst = (0..found.len()).max_by(|i, j| {
        let off = |i: usize| if found[i].is_finite() { (found[i] - expected[i]).abs() } else { f32::INFINITY };
        off(*i).total_cmp(&off(*j))
    });
    let worst = worst.unwrap_or(0);
    Err(format!("NMSE {error:.3e}; element {worst} is {} instead of {}", found[worst], expected[worst]))
}

/// Normalised mean squared error. What is not finite must be the same on both sides.
pub(crate) fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    let (mut error, mut power) = (0.0, 0.0);
    for (found, expected) in found.iter().zip(expected) {
        if found.is_nan() && expected.is_nan() || found == expected {
            power += if expected.is_finite() { f64::from(*expected).powi(2) } else { 0.0 };
            continue;
        }
        error += (f64::from(*found) - f64::from(*expected)).powi(2);
        power += f64::from(*expected).powi(2);
    }
    if error == 0.0 { 0.0 } else { error / power }
}

#[test]
fn the_comparison_sees_what_differs() {
    let tensor = |values: &[f32]| Tensor::from_slice(&[values.len()], values).expect("a small tensor");
    let one = tensor(&[1.0, 2.0, f32::NAN]);
    assert!(difference(&one, &one, KERNEL).is_ok());
    assert!(difference(&tensor(&[1.0, 2.0, 0.0]), &one, KERNEL).is_err());
    assert!(difference(&tensor(&[1.0, 2.001, f32::NAN]), &one, KERNEL).is_err());
    assert!(difference(&tensor(&[1.0, 2.000_1, f32::NAN]), &one, KERNEL).is_ok());
    assert!(difference(&tensor(&[1.0, 2.000_1, f32::NAN]), &one, 0.0).is_err());
    assert!(difference(&tensor(&[0.1]), &tensor(&[0.0]), KERNEL).is_err());
}
