//! The reference interpreter: the oracle of every test. Never tuned.

use std::sync::Arc;

use crate::dim::{Bindings, Dim, eval_shape};
use crate::graph::{Graph, GraphError, StateDecl, StateId, ValueId, ValueSource, ValueType};
use crate::host_state::HostStates;
use crate::op::{Inference, Op, OpError};
use crate::{DType, Element, Tensor, TensorError};

/// Why a reference run failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InterpreterError {
    /// The inputs do not fit the graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A node failed.
    #[error("node {node:?} ({op}): {source}")]
    Node {
        /// The node.
        node: String,
        /// The operator.
        op: &'static str,
        /// Why.
        source: OpError,
    },
    /// A weight could not be read.
    #[error("weight {name:?}: {reason}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Runs graphs with the reference implementations of their operators.
#[derive(Clone, Debug)]
pub struct Interpreter {
    graph: Arc<Graph>,
    quantize_activations: bool,
}

/// What an operator's reference implementation sees.
pub(crate) struct Evaluation<'a> {
    op: &'a Op,
    inputs: Vec<Option<Tensor>>,
    tokens: Vec<Option<StateId>>,
    declared: &'a [StateDecl],
    bindings: &'a Bindings,
    outputs: Vec<Option<Tensor>>,
    pub(crate) states: &'a mut HostStates,
    pub(crate) quantize_activations: bool,
}

impl Interpreter {
    /// An interpreter with f32 activations.
    #[must_use]
    pub fn new(graph: Arc<Graph>) -> Interpreter {
        Interpreter { graph, quantize_activations: false }
    }

    /// Rounds the activations that meet quantized weights to 8 bits, as integer kernels do ([`crate::op::quantize_row_q8`]).
    #[must_use]
    pub fn with_quantized_activations(mut self, on: bool) -> Interpreter {
        self.quantize_activations = on;
        self
    }

    /// Runs the graph once.
    ///
    /// # Errors
    /// When inputs do not fit, a node fails or a weight cannot be read.
    pub fn run(&self, states: &mut HostStates, inputs: &[Tensor]) -> Result<Vec<Tensor>, InterpreterError> {
        let graph = &*self.graph;
        let bindings = graph.bind_inputs(inputs)?;
        let mut values: Vec<Option<Tensor>> = vec![None; graph.values().len()];
        for (id, tensor) in graph.inputs().iter().zip(inputs) {
            values[id.index()] = Some(tensor.clone());
        }
        for (id, weight) in graph.weights() {
            let name = &graph.value(id).name;
            let tensor = weight
                .to_tensor()
                .map_err(|e| InterpreterError::Weight { name: name.clone(), reason: e.to_string() })?;
            values[id.index()] = Some(tensor);
        }
        for node in graph.nodes() {
            let failed = |source| InterpreterError::Node { node: node.name.clone(), op: node.op.name(), source };
            let token = |id: &ValueId| match graph.value(*id).ty {
                ValueType::Token(state) => Some(state),
                ValueType::Tensor { .. } => None,
            };
            let mut cx = Evaluation {
                op: &node.op,
                inputs: node.inputs.iter().map(|id| id.and_then(|id| values[id.index()].clone())).collect(),
                tokens: node.inputs.iter().map(|id| id.as_ref().and_then(token)).collect(),
                declared: graph.states(),
                bindings: &bindings,
                outputs: vec![None; node.outputs.len()],
                states,
                quantize_activations: self.quantize_activations,
            };
            node.op.eval(&mut cx).map_err(failed)?;
            let outputs = cx.outputs;
            for (id, tensor) in node.outputs.iter().zip(outputs) {
                if let (Some((dtype, shape)), Some(tensor)) = (graph.tensor_type(*id), &tensor) {
                    let shape = eval_shape(shape, &bindings).map_err(|e| failed(e.into()))?;
                    if tensor.dtype() != dtype || tensor.shape() != shape {
                        return Err(failed(OpError::Shape(format!("computed {tensor:?}, {dtype} {shape:?} expected"))));
                    }
                }
                values[id.index()] = tensor;
            }
        }
        let missing = |id: &ValueId| InterpreterError::Graph(GraphError::Output { value: *id });
        graph.outputs().iter().map(|id| values[id.index()].clone().ok_or_else(|| missing(id))).collect()
    }
}

/// The values of a graph that depend on nothing but weights are constant; this evaluates one node of such inputs.
///
/// # Errors
/// When the operator fails, has an effect, or has an input that is no tensor.
pub fn evaluate_constant(graph: &Graph, node: &crate::Node) -> Result<Vec<Tensor>, InterpreterError> {
    let mut small = Graph::new(&node.name);
    let mut inputs = Vec::new();
    for id in &node.inputs {
        inputs.push(match id {
            None => None,
            Some(id) => match &graph.value(*id).source {
                ValueSource::Weight(weight) => Some(small.weight(&graph.value(*id).name, weight.clone())),
                ValueSource::Input | ValueSource::Node => {
                    return Err(GraphError::Order { node: node.name.clone(), value: *id }.into());
                }
            },
        });
    }
    let outputs = small.add_node(&node.name, node.op.clone(), inputs)?;
    outputs.into_iter().for_each(|output| small.output(output));
    let mut none = HostStates::new(&small, 0, &Bindings::new())
        .map_err(|e| InterpreterError::Weight { name: node.name.clone(), reason: e.to_string() })?;
    Interpreter::new(Arc::new(small)).run(&mut none, &[])
}

impl Evaluation<'_> {
    pub(crate) fn input_count(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn has(&self, input: usize) -> bool {
        self.inputs.get(input).is_some_and(Option::is_some)
    }

    pub(crate) fn tensor(&self, input: usize) -> Result<&Tensor, OpError> {
        let missing = || OpError::DType { input, expected: "a tensor", found: "left out".into() };
        self.inputs.get(input).and_then(Option::as_ref).ok_or_else(missing)
    }

    pub(crate) fn f32(&self, input: usize) -> Result<Vec<f32>, OpError> {
        Ok(self.tensor(input)?.to_f32()?)
    }

    pub(crate) fn i32(&self, input: usize) -> Result<Vec<i32>, OpError> {
        Ok(self.tensor(input)?.to_vec::<i32>()?)
    }

    pub(crate) fn token(&self, input: usize) -> Result<StateId, OpError> {
        let missing = || OpError::DType { input, expected: "a state token", found: "a tensor".into() };
        self.tokens.get(input).copied().flatten().ok_or_else(missing)
    }

    pub(crate) fn last_extent(&self, input: usize) -> Result<usize, OpError> {
        Ok(self.tensor(input)?.shape().last().copied().unwrap_or(1))
    }

    /// The output's type, from the shape rule on the inputs' actual shapes.
    fn output_type(&self, output: usize) -> Result<(DType, Vec<usize>), OpError> {
        let types: Vec<Option<ValueType>> = self
            .inputs
            .iter()
            .zip(&self.tokens)
            .map(|(input, token)| match (input, token) {
                (_, Some(state)) => Some(ValueType::Token(*state)),
                (Some(tensor), None) => {
                    let shape = tensor.shape().iter().map(|n| Dim::Num(*n)).collect();
                    Some(ValueType::Tensor { dtype: tensor.dtype(), shape })
                }
                (None, None) => None,
            })
            .collect();
        let inputs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let outputs = self.op.infer(&Inference { inputs: &inputs, states: self.declared })?;
        match outputs.get(output).and_then(ValueType::as_tensor) {
            Some((dtype, shape)) => Ok((dtype, crate::op::concrete(shape, &Bindings::new())?)),
            None => Err(OpError::Arity { expected: "a tensor output", found: output }),
        }
    }

    pub(crate) fn output_shape(&self, output: usize) -> Result<Vec<usize>, OpError> {
        // A reshape's target names symbols itself; what other operators give follows from their inputs' actual extents.
        if let Op::Reshape(reshape) = self.op {
            return crate::op::concrete(&reshape.shape, self.bindings);
        }
        Ok(self.output_type(output)?.1)
    }

    pub(crate) fn output_len(&self, output: usize) -> Result<usize, OpError> {
        Ok(self.output_shape(output)?.iter().product())
    }

    pub(crate) fn put_tensor(&mut self, output: usize, tensor: Tensor) -> Result<(), OpError> {
        match self.outputs.get_mut(output) {
            Some(place) => {
                *place = Some(tensor);
                Ok(())
            }
            None => Err(OpError::Arity { expected: "as many outputs as its shape rule gives", found: output + 1 }),
        }
    }

    pub(crate) fn put_bytes(&mut self, output: usize, bytes: &[u8]) -> Result<(), OpError> {
        let (dtype, shape) = self.output_type(output)?;
        self.put_tensor(output, Tensor::from_bytes(dtype, &shape, bytes)?)
    }

    pub(crate) fn put<T: Element>(&mut self, output: usize, elements: &[T]) -> Result<(), OpError> {
        let (dtype, shape) = self.output_type(output)?;
        if dtype != T::DTYPE {
            return Err(TensorError::WrongDType { expected: dtype, found: T::DTYPE }.into());
        }
        self.put_tensor(output, Tensor::from_slice(&shape, elements)?)
    }

    pub(crate) fn put_f32(&mut self, output: usize, elements: &[f32]) -> Result<(), OpError> {
        self.put(output, elements)
    }
}
