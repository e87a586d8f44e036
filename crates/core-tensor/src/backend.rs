//! What a backend is.

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::dim::Bindings;
use crate::graph::{Graph, Node};
use crate::host_state::{SlotSnapshot, StateError};
use crate::plan::{DeviceMemory, MemoryPlan};
use crate::{Tensor, WeightError};

/// Why a backend could not load, compile or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A node is not supported.
    #[error("node {node:?} ({op}): {reason}")]
    Unsupported {
        /// The node.
        node: String,
        /// The operator.
        op: &'static str,
        /// Why.
        reason: String,
    },
    /// A weight could not be loaded.
    #[error("weight {name:?}: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// Why.
        source: WeightError,
    },
    /// There is no memory.
    #[error("no memory for {bytes} bytes of {what}")]
    NoMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// There is no memory on a device.
    #[error(
        "{device}: no memory for {bytes} bytes of {what}: {free} bytes are free, one allocation may have {largest}"
    )]
    NoDeviceMemory {
        /// The device.
        device: String,
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes that were free.
        free: u64,
        /// Bytes of the largest single allocation.
        largest: u64,
    },
    /// The inputs do not fit the program.
    #[error(transparent)]
    Graph(#[from] crate::GraphError),
    /// A step failed.
    #[error(transparent)]
    Op(#[from] crate::op::OpError),
    /// A state could not be made or changed.
    #[error(transparent)]
    State(#[from] StateError),
    /// An extent has no upper bound, or a run exceeds it.
    #[error("extent {symbol:?}: {reason}")]
    Bound {
        /// The symbol.
        symbol: String,
        /// What is wrong.
        reason: String,
    },
    /// Weights, session and program are not of one model and backend.
    #[error("{0} belong to another backend or model")]
    Mismatch(&'static str),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The device or its driver failed.
    #[error("{0}")]
    Device(String),
}

/// Told while weights load: bytes done, bytes in all. `Break` cancels.
pub type Progress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a;

/// A backend: loads weights into its own layout, compiles graphs for it.
pub trait Backend: Send + Sync {
    /// A short name: `cpu`.
    fn name(&self) -> &str;

    /// What it runs on, for people: processor and instruction set, or graphics card and driver.
    fn description(&self) -> String;

    /// Memory that it can use.
    fn memory(&self) -> DeviceMemory;

    /// Whether results travel over a bus on their way to the host, so that it pays to reduce them before.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether it has a kernel for a node.
    ///
    /// # Errors
    /// Why not.
    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String>;

    /// Brings a graph's weights into the backend's layout, once per model; every program of the model shares them.
    ///
    /// # Errors
    /// When a weight cannot be read or held, or `progress` cancels.
    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError>;

    /// Compiles a graph, the one that the weights were loaded for or one with some of its outputs ([`Graph::with_outputs`]), for up to `bounds` of its symbols. A program runs any extents up to the bounds, at the cost of the actual ones.
    ///
    /// # Errors
    /// When a node is not supported, a symbol has no bound, or the weights are another model's.
    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError>;

    /// Makes the states of a model: `slots` sequences, capacities from `bounds`.
    ///
    /// # Errors
    /// When there is no memory for them or a capacity is unbound.
    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError>;
}

/// A model's weights in a backend's layout.
pub trait Weights: Send + Sync {
    /// Bytes held.
    fn byte_len(&self) -> u64;

    /// For the backend that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A compiled graph.
pub trait Program: Send + Sync {
    /// Runs once: inputs and outputs in the graph's order. States are read and written in the session.
    ///
    /// # Errors
    /// When inputs do not fit the graph or exceed the bounds; the session is then unchanged.
    fn run(&self, session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError>;

    /// Where its values lie.
    fn plan(&self) -> &MemoryPlan;

    /// The steps after the backend's own fusion, for people.
    fn to_text(&self) -> String;

    /// What each step took in all runs so far, where the backend was made to measure.
    fn step_times(&self) -> Vec<StepTime> {
        Vec::new()
    }
}

/// What a step of a program took.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// The step, as [`Program::to_text`] shows it.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Nanoseconds of all runs.
    pub nanoseconds: u64,
    /// Bytes that one run reads and writes at the program's bounds.
    pub bytes: u64,
}

/// The states of a model: a number of slots, each a sequence with its own length.
pub trait Session: Send {
    /// Slots.
    fn slots(&self) -> usize;

    /// Bytes of all states.
    fn byte_len(&self) -> u64;

    /// Positions that a slot holds.
    ///
    /// # Errors
    /// When there is no such slot.
    fn len(&self, slot: usize) -> Result<usize, StateError>;

    /// Forgets all positions of a slot from `len` on.
    ///
    /// # Errors
    /// When the slot holds fewer, or a sliding window has moved past what would be needed.
    fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError>;

    /// Makes slot `to` hold what slot `from` holds.
    ///
    /// # Errors
    /// When there is no such slot.
    fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError>;

    /// A copy of what a slot holds, independent of the backend.
    ///
    /// # Errors
    /// When there is no such slot.
    fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError>;

    /// Makes a slot hold what a snapshot holds.
    ///
    /// # Errors
    /// When it does not fit; the slot is then unchanged.
    fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError>;

    /// For the backend that made it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A session whose states lie in host memory.
pub struct HostSession {
    /// The states.
    pub states: crate::HostStates,
}

impl Session for HostSession {
    fn slots(&self) -> usize {
        self.states.slots()
    }

    fn byte_len(&self) -> u64 {
        self.states.byte_len() as u64
    }

    fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.states.len(slot)
    }

    fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.states.truncate(slot, len)
    }

    fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.states.copy_slot(from, to)
    }

    fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        self.states.save_slot(slot)
    }

    fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        self.states.restore_slot(slot, snapshot)
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
