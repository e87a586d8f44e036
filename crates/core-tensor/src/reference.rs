//! The reference interpreter as a backend.

use std::any::Any;
use std::sync::Arc;

use crate::Tensor;
use crate::backend::{Backend, BackendError, HostSession, Program, Progress, Session, Weights};
use crate::dim::Bindings;
use crate::graph::{Graph, Node};
use crate::host_state::HostStates;
use crate::interpreter::{Interpreter, InterpreterError};
use crate::op::OpError;
use crate::plan::{DeviceMemory, MemoryPlan};

/// Runs graphs with the [`Interpreter`]: supports every node, holds weights as they are stored, is slow. What pipelines and the
/// runtime are tested on, and a way to check another backend's results on a whole model.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend {
    quantize_activations: bool,
}

struct ReferenceWeights {
    bytes: u64,
}

struct ReferenceProgram {
    interpreter: Interpreter,
    graph: Arc<Graph>,
    bounds: Bindings,
    plan: MemoryPlan,
}

impl ReferenceBackend {
    /// `quantize_activations` rounds activations that meet quantized weights to 8 bits, as integer kernels do.
    #[must_use]
    pub fn new(quantize_activations: bool) -> ReferenceBackend {
        ReferenceBackend { quantize_activations }
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &str {
        "reference"
    }

    fn description(&self) -> String {
        "reference interpreter (plain loops)".into()
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory { name: "host".into(), bytes: u64::MAX, max_allocation: u64::MAX }
    }

    fn supports(&self, _graph: &Graph, _node: &Node) -> Result<(), String> {
        Ok(())
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        let total: u64 = graph.weights().map(|(_, weight)| weight.byte_len() as u64).sum();
        match progress(total, total) {
            std::ops::ControlFlow::Continue(()) => Ok(Arc::new(ReferenceWeights { bytes: total })),
            std::ops::ControlFlow::Break(()) => Err(BackendError::Cancelled),
        }
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        _weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        graph.verify()?;
        let interpreter = Interpreter::new(graph.clone()).with_quantized_activations(self.quantize_activations);
        let plan = MemoryPlan::new(Vec::new(), 1);
        Ok(Arc::new(ReferenceProgram { interpreter, graph: graph.clone(), bounds: bounds.clone(), plan }))
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(HostSession { states: HostStates::new(graph, slots, bounds)? }))
    }
}

impl Weights for ReferenceWeights {
    fn byte_len(&self) -> u64 {
        self.bytes
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Program for ReferenceProgram {
    fn run(&self, session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let bindings = self.graph.bind_inputs(inputs)?;
        for (symbol, value) in bindings.iter() {
            if self.bounds.get(symbol).is_some_and(|bound| value > bound) {
                let reason = format!("{value} is more than the program was compiled for");
                return Err(BackendError::Bound { symbol: symbol.into(), reason });
            }
        }
        let session = session.as_any_mut().downcast_mut::<HostSession>();
        let session = session.filter(|session| session.states.fit(&self.graph));
        let session = session.ok_or(BackendError::Mismatch("session and program"))?;
        let mut written = Vec::new();
        for rows in self.graph.row_inputs() {
            let ints = |input: usize| inputs[input].to_vec::<i32>().map_err(OpError::from);
            let (positions, slots) = (ints(rows.positions)?, ints(rows.slots)?);
            session.states.check_step(&positions, &slots)?;
            if rows.written {
                written.push((positions, slots));
            }
        }
        let outputs = self.interpreter.run(&mut session.states, inputs).map_err(|error| match error {
            InterpreterError::Graph(error) => BackendError::Graph(error),
            InterpreterError::Node { source, .. } => BackendError::Op(source),
            error @ InterpreterError::Weight { .. } => BackendError::Device(error.to_string()),
        });
        for (positions, slots) in &written {
            match outputs {
                Ok(_) => session.states.advance(positions, slots),
                Err(_) => session.states.overwritten(positions, slots),
            }
        }
        outputs
    }

    fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    fn to_text(&self) -> String {
        self.graph.to_text()
    }
}
