//! What can be wrong with a graph.

use super::ValueId;
use crate::dim::DimError;
use crate::op::OpError;

/// Why a graph is wrong, or could not be extended.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An operator refused its inputs.
    #[error("node {node:?} ({op}): {source}")]
    Op {
        /// The node.
        node: String,
        /// The operator.
        op: &'static str,
        /// The operator's reason.
        source: OpError,
    },
    /// A node uses a value before it is computed, or one that is not there.
    #[error("node {node:?} uses {value} before it is computed")]
    Order {
        /// The node.
        node: String,
        /// The value.
        value: ValueId,
    },
    /// A value is computed twice.
    #[error("{value} is computed twice, the second time by node {node:?}")]
    Twice {
        /// The second node.
        node: String,
        /// The value.
        value: ValueId,
    },
    /// The recorded type of a value is not what its operator gives.
    #[error("node {node:?}: {value} is recorded as {recorded}, the operator gives {inferred}")]
    Type {
        /// The node.
        node: String,
        /// The value.
        value: ValueId,
        /// The type in the graph.
        recorded: String,
        /// The type that the operator's shape rule gives.
        inferred: String,
    },
    /// The graph has an output that nothing computes.
    #[error("output {value} is not computed")]
    Output {
        /// The value.
        value: ValueId,
    },
    /// The graph has an output that is the token of a state.
    #[error("output {value} is a state's token, no tensor")]
    Token {
        /// The value.
        value: ValueId,
    },
    /// A node has another number of outputs than its operator gives.
    #[error("node {node:?} has {recorded} outputs, the operator gives {inferred}")]
    OutputCount {
        /// The node.
        node: String,
        /// Outputs in the graph.
        recorded: usize,
        /// Outputs that the operator's shape rule gives.
        inferred: usize,
    },
    /// A run was given the wrong number of inputs.
    #[error("the graph takes {expected} inputs, {found} given")]
    InputCount {
        /// Inputs of the graph.
        expected: usize,
        /// Inputs given.
        found: usize,
    },
    /// A run was given an input of the wrong dtype or shape.
    #[error("input {name:?} is {expected}, {found} given")]
    Input {
        /// The input.
        name: String,
        /// The type in the graph.
        expected: String,
        /// The type given.
        found: String,
    },
    /// An extent has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
}
