//! The reference interpreter: the oracle of every test. Never tuned.

use std::sync::Arc;

use crate::dim::{Bindings, Dim, eval_shape};
use crate::graph::{Graph, GraphError, StateDecl, StateId, ValueId, ValueSource, ValueType};
use crate::host_state::HostStates;
use crate::op::{Inference, Numbers, Op, OpError};
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
        self.run_bound(states, self.graph.bind_inputs(inputs)?, inputs)
    }

    /// Runs a graph without states inside of another one, whose symbols have these values.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn run_within(&self, outer: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, InterpreterError> {
        let bindings = self.graph.bind_inputs_within(outer, inputs)?;
        let mut states = HostStates::new(&self.graph, 0, &bindings)
            .map_err(|e| InterpreterError::Weight { name: self.graph.name().to_owned(), reason: e.to_string() })?;
        self.run_bound(&mut states, bindings, inputs)
    }

    fn run_bound(
        &self,
        states: &mut HostStates,
        mut bindings: Bindings,
        inputs: &[Tensor],
    ) -> Result<Vec<Tensor>, InterpreterError> {
        let graph = &*self.graph;
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
            let op = node.op.bind(&bindings);
            let mut cx = Evaluation {
                op: &op,
                inputs: node.inputs.iter().map(|id| id.and_then(|id| values[id.index()].clone())).collect(),
                tokens: node.inputs.iter().map(|id| id.as_ref().and_then(token)).collect(),
                declared: graph.states(),
                bindings: &bindings,
                outputs: vec![None; node.outputs.len()],
                states,
                quantize_activations: self.quantize_activations,
            };
            op.eval(&mut cx).map_err(failed)?;
            let outputs = cx.outputs;
            for (id, tensor) in node.outputs.iter().zip(outputs) {
                if let (Some((dtype, shape)), Some(tensor)) = (graph.tensor_type(*id), &tensor) {
                    bindings.bind_shape(shape, tensor.shape());
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
/// When the operator fails, has an effect, or has an input that is no weight.
pub fn evaluate_constant(graph: &Graph, node: &crate::Node) -> Result<Vec<Tensor>, InterpreterError> {
    let mut inputs = Vec::new();
    for id in &node.inputs {
        inputs.push(match id {
            None => None,
            Some(id) => match &graph.value(*id).source {
                ValueSource::Weight(weight) => Some(weight.to_tensor().map_err(|e| InterpreterError::Weight {
                    name: graph.value(*id).name.clone(),
                    reason: e.to_string(),
                })?),
                ValueSource::Input | ValueSource::Node => {
                    return Err(GraphError::Order { node: node.name.clone(), value: *id }.into());
                }
            },
        });
    }
    let failed = |source| InterpreterError::Node { node: node.name.clone(), op: node.op.name(), source };
    evaluate(&node.op, &inputs, &Bindings::new()).map_err(failed)
}

/// One operator's reference implementation on tensors: what backends fall back to, and what importers fold constants with. Symbols in its
/// attributes get their values from `bindings`.
///
/// # Errors
/// When the operator refuses the inputs or fails, or works on states.
pub fn evaluate(op: &Op, inputs: &[Option<Tensor>], bindings: &Bindings) -> Result<Vec<Tensor>, OpError> {
    let op = op.bind(bindings);
    let types: Vec<Option<ValueType>> = inputs.iter().map(|input| input.as_ref().map(tensor_type)).collect();
    let given: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
    let count = op.infer(&Inference { inputs: &given, states: &[] })?.len();
    let stateless = || OpError::DType { input: 0, expected: "tensors", found: "a state".into() };
    let mut states = HostStates::new(&Graph::new(""), 0, bindings).map_err(|_| stateless())?;
    let mut cx = Evaluation {
        op: &op,
        inputs: inputs.to_vec(),
        tokens: vec![None; inputs.len()],
        declared: &[],
        bindings,
        outputs: vec![None; count],
        states: &mut states,
        quantize_activations: false,
    };
    op.eval(&mut cx)?;
    cx.outputs.into_iter().map(|output| output.ok_or_else(stateless)).collect()
}

fn tensor_type(tensor: &Tensor) -> ValueType {
    ValueType::Tensor { dtype: tensor.dtype(), shape: tensor.shape().iter().map(|n| Dim::Num(*n)).collect() }
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
                (Some(tensor), None) => Some(tensor_type(tensor)),
                (None, None) => None,
            })
            .collect();
        let inputs: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let outputs = self.op.infer(&Inference { inputs: &inputs, states: self.declared })?;
        match outputs.get(output).and_then(ValueType::as_tensor) {
            Some((dtype, shape)) => Ok((dtype, crate::op::concrete(shape, self.bindings)?)),
            None => Err(OpError::Arity { expected: "a tensor output", found: output }),
        }
    }

    pub(crate) fn output_shape(&self, output: usize) -> Result<Vec<usize>, OpError> {
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

    /// Stores numbers with the dtype and shape that the shape rule gives.
    pub(crate) fn put_numbers(&mut self, output: usize, numbers: &Numbers) -> Result<(), OpError> {
        let (dtype, shape) = self.output_type(output)?;
        self.put_tensor(output, numbers.store(dtype, &shape)?)
    }

    /// The values of symbols.
    pub(crate) fn bindings(&self) -> &Bindings {
        self.bindings
    }

    pub(crate) fn put_f32(&mut self, output: usize, elements: &[f32]) -> Result<(), OpError> {
        self.put(output, elements)
    }
}
