//! From the value back to what it depends on.

use std::collections::HashMap;

use core_tensor::op::Op;
use core_tensor::{DType, Dim, Graph, GraphError, Node, ValueId};

use crate::builder::Builder;

/// Why there is no backward pass.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// An operator on the way has no derivative here.
    #[error("node {node:?}: {op} cannot be differentiated{reason}")]
    Unsupported {
        /// The node.
        node: String,
        /// The operator.
        op: &'static str,
        /// What about it, if it is not the operator as such; begins with a colon.
        reason: String,
    },
    /// What is differentiated, or by what, is no f32 tensor.
    #[error("{name:?} is {found}; gradients are of f32 tensors, by f32 tensors")]
    Type {
        /// The value.
        name: String,
        /// Its type.
        found: String,
    },
    /// A value of more than one element is differentiated, and there is no cotangent.
    #[error("{name:?} is {found} and no single number: it needs a cotangent")]
    NotScalar {
        /// The value.
        name: String,
        /// Its type.
        found: String,
    },
    /// The cotangent does not have the type of what is differentiated.
    #[error("the cotangent is {found}; {name:?} is {expected}")]
    Cotangent {
        /// What is differentiated.
        name: String,
        /// Its type.
        expected: String,
        /// The cotangent's.
        found: String,
    },
    /// The value does not depend on what it is to be differentiated by.
    #[error("{of:?} does not depend on {by:?}, or by steps alone")]
    Independent {
        /// The value.
        of: String,
        /// What it was to be differentiated by.
        by: String,
    },
    /// The graph does not have such a value.
    #[error("there is no value {0}")]
    Unknown(ValueId),
    /// The graph is none, or an extent is unknown where it must not be.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Adds the gradients of `of` by each of `by` to a graph, as outputs behind those that it has, in the order of `by`.
///
/// All ids of the given graph stay what they are. `of` is an f32 tensor of one element; or of any shape with a `cotangent`, a value of the same
/// type (often an input), and the gradients are those of the sum of its products with `of`. `by` are f32 tensors: inputs, weights or values
/// between. Each gradient has the shape of what it belongs to.
///
/// # Errors
/// When an operator on the way is not among [those](crate#operators) that are differentiated, when types do not fit, or when nothing depends on one of
/// `by`.
pub fn backward(
    graph: &Graph,
    of: ValueId,
    cotangent: Option<ValueId>,
    by: &[ValueId],
) -> Result<Graph, GradientError> {
    let name = |id: ValueId| graph.value(id).name.clone();
    let found = |id: ValueId| graph.value(id).ty.to_string();
    for id in by.iter().chain([&of]).chain(cotangent.iter()) {
        if id.index() >= graph.values().len() {
            return Err(GradientError::Unknown(*id));
        }
        if graph.tensor_type(*id).is_none_or(|(dtype, _)| dtype != DType::F32) {
            return Err(GradientError::Type { name: name(*id), found: found(*id) });
        }
    }
    graph.verify()?;
    let shape = |id: ValueId| graph.tensor_type(id).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let mut tape = Backward { active: active(graph, by), adjoints: HashMap::new(), build: Builder::new(graph.clone()) };
    let seed = match cotangent {
        Some(cotangent) if shape(cotangent) == shape(of) => cotangent,
        Some(cotangent) => {
            return Err(GradientError::Cotangent { name: name(of), expected: found(of), found: found(cotangent) });
        }
        None if shape(of).iter().all(|dim| *dim == Dim::Num(1)) => {
            let one = tape.build.scalar(1.0)?;
            tape.build.expand(one, &shape(of))?
        }
        None => return Err(GradientError::NotScalar { name: name(of), found: found(of) }),
    };
    tape.adjoints.insert(of, seed);
    for node in graph.nodes().iter().rev() {
        tape.node(node)?;
    }
    for id in by {
        let gradient = tape.adjoints.get(id).copied();
        let gradient = gradient.ok_or_else(|| GradientError::Independent { of: name(of), by: name(*id) })?;
        tape.build.graph.output(gradient);
    }
    Ok(tape.build.graph)
}

/// Which values depend on those that are differentiated by.
fn active(graph: &Graph, by: &[ValueId]) -> Vec<bool> {
    let mut active = vec![false; graph.values().len()];
    by.iter().for_each(|id| active[id.index()] = true);
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|id| active[id.index()]) {
            for output in &node.outputs {
                // What became whole numbers or truths does not change by little.
                let float = graph.tensor_type(*output).is_none_or(|(dtype, _)| dtype.is_float());
                active[output.index()] |= float;
            }
        }
    }
    active
}

/// The backward pass while it grows.
pub(crate) struct Backward {
    active: Vec<bool>,
    /// The gradient by each value, as far as it is summed up.
    adjoints: HashMap<ValueId, ValueId>,
    pub(crate) build: Builder,
}

impl Backward {
    fn node(&mut self, node: &Node) -> Result<(), GradientError> {
        let seeds: Vec<Option<ValueId>> = node.outputs.iter().map(|id| self.adjoints.get(id).copied()).collect();
        if seeds.iter().all(Option::is_none) || !node.inputs.iter().flatten().any(|id| self.active[id.index()]) {
            return Ok(());
        }
        let [Some(dy)] = seeds[..] else { return Err(unsupported(node, ": it has several outputs")) };
        self.build.part = format!("gradient.{}", node.name);
        match &node.op {
            Op::MatMul(op) => self.matmul(*op, node, dy),
            Op::Conv(op) => self.conv(op, node, dy),
            Op::TensorAttention(op) => self.tensor_attention(op, node, dy),
            Op::RmsNormalization(op) => self.rms_normalization(op, node, dy),
            Op::LayerNormalization(op) => self.layer_normalization(op, node, dy),
            Op::RotaryEmbedding(op) => self.rotary_embedding(op, node, dy),
            Op::Unary(op) => self.unary(*op, node, dy),
            Op::Binary(op) => self.binary(*op, node, dy),
            Op::Where(_) => self.choice(node, dy),
            Op::GatedActivation(op) => self.gated_activation(op.activation, node, dy),
            Op::Softmax(_) => self.softmax(node, dy),
            Op::LogSoftmax(_) => self.log_softmax(node, dy),
            Op::Reduce(op) => self.reduce(op.kind, node, dy),
            Op::Gather(op) => self.gather(*op, node, dy),
            Op::Reshape(_) => self.reshape(node, dy),
            Op::Transpose(op) => self.transpose(op, node, dy),
            Op::Slice(op) => self.slice(op, node, dy),
            Op::Concat(op) => self.concat(op.axis, node, dy),
            Op::Expand(_) => self.expand(node, dy),
            Op::Pad(op) => self.pad(op, node, dy),
            Op::Trilu(_) => self.trilu(node, dy),
            Op::Cast(_) => self.cast(node, dy),
            _ => Err(unsupported(node, "")),
        }
    }

    /// A required input.
    pub(crate) fn input(&self, node: &Node, input: usize) -> Result<ValueId, GradientError> {
        node.inputs.get(input).copied().flatten().ok_or_else(|| unsupported(node, ": an input is left out"))
    }

    /// Whether the gradient by an input is asked for.
    pub(crate) fn wants(&self, node: &Node, input: usize) -> bool {
        node.inputs.get(input).copied().flatten().is_some_and(|id| self.active[id.index()])
    }

    /// Adds to the gradient by an input, which broadcasting may have expanded.
    pub(crate) fn give(&mut self, node: &Node, input: usize, gradient: ValueId) -> Result<(), GradientError> {
        let id = self.input(node, input)?;
        let shape = self.build.shape(id);
        let ambiguous = |reason: String| unsupported(node, &format!(": {reason}"));
        let gradient = self.build.sum_to(gradient, &shape, ambiguous)?;
        let sum = match self.adjoints.get(&id) {
            Some(known) => self.build.add(*known, gradient)?,
            None => gradient,
        };
        self.adjoints.insert(id, sum);
        Ok(())
    }
}

/// The error of a node that has no derivative.
pub(crate) fn unsupported(node: &Node, reason: &str) -> GradientError {
    GradientError::Unsupported { node: node.name.clone(), op: node.op.name(), reason: reason.to_owned() }
}
