//! What loading or running a model can end in.

use core_tensor::{BackendError, DimError, GraphError};
use polaris_optimizer::OptimizerError;

/// Everything that the runtime can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No backend was given.
    #[error("no backend was given")]
    NoBackend,
    /// A graph with states needs one backend that supports every node, any other at least one for each node.
    #[error("no backend runs all of graph {graph:?}: {}", .refusals.join("; "))]
    Unsupported {
        /// The graph.
        graph: String,
        /// Backend, node and reason, the first few of each backend.
        refusals: Vec<String>,
    },
    /// The model does not fit the backend's memory.
    #[error(
        "{what} needs {needed} bytes (weights {weights}, states {states}, arena {arena}); {device} has {available}"
    )]
    NoMemory {
        /// The graph.
        what: String,
        /// Bytes in all.
        needed: u64,
        /// Bytes of weights.
        weights: u64,
        /// Bytes of states.
        states: u64,
        /// Bytes of the arena.
        arena: u64,
        /// The device.
        device: String,
        /// Bytes that it has.
        available: u64,
    },
    /// A step is larger than the largest bucket.
    #[error("a step with {symbol} = {found} is larger than the largest bucket, {bound}")]
    Bucket {
        /// The symbol.
        symbol: String,
        /// Its value in the step.
        found: usize,
        /// The largest bound.
        bound: usize,
    },
    /// The graph has states: a [`Model`](crate::Model) runs it.
    #[error("graph {graph:?} has states and cannot be split")]
    States {
        /// The graph.
        graph: String,
    },
    /// An operator that the host runs failed.
    #[error(transparent)]
    Op(#[from] core_tensor::op::OpError),
    /// A value could not be read on the host.
    #[error(transparent)]
    Host(#[from] BackendError),
    /// The graph is wrong, or inputs do not fit it.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An extent has no value.
    #[error(transparent)]
    Dim(#[from] DimError),
    /// A pass failed.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// A backend failed.
    #[error("backend {backend}: {source}")]
    Backend {
        /// The backend's name.
        backend: String,
        /// Why.
        source: BackendError,
    },
}

impl RuntimeError {
    /// Whether the work was cancelled by its caller.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, RuntimeError::Backend { source: BackendError::Cancelled, .. })
    }
}
