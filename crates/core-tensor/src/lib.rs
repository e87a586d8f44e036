//! The vocabulary of Polaris: dtypes and block formats, symbolic shapes, host tensors, the graph, its operators with their shape rules and
//! reference semantics, the memory plan, and the traits of backends and weight sources.
//!
//! Everything that Polaris computes is a [`Graph`]: values, nodes in order of execution, declared states. Loaders and model builders
//! make one, the optimizer rewrites it, a [`Backend`] compiles it into a [`Program`]. The [`Interpreter`] here runs it by plain loops and is
//! what every kernel is compared with.
//!
//! ```
//! use std::sync::Arc;
//! use core_tensor::op::{MatMul, Op};
//! use core_tensor::{Bindings, DType, Dim, Graph, HostStates, Interpreter, Tensor, Weight};
//!
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 2.into()]);
//! let w = graph.weight("w", Weight::stored(Tensor::from_slice(&[1, 2], &[3.0f32, 4.0])?));
//! let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w])?;
//! graph.output(y);
//! let graph = Arc::new(graph);
//! let mut states = HostStates::new(&graph, 1, &Bindings::new())?;
//! let out = Interpreter::new(graph).run(&mut states, &[Tensor::from_slice(&[1, 2], &[1.0f32, 2.0])?])?;
//! assert_eq!(out[0].to_f32()?, [11.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
pub mod block;
mod dim;
mod dtype;
mod file;
mod graph;
mod host_state;
mod interpreter;
pub mod op;
mod partial_file;
mod plan;
mod reference;
mod slots;
mod source;
mod storage;
mod tensor;
mod weight;

pub use backend::{Backend, BackendError, HostSession, Program, Progress, Session, StepTime, Weights};
pub use dim::{Bindings, Dim, DimError, DimExpr, Shape, eval_shape};
pub use dtype::{BlockFormat, DType};
pub use file::{FileAccess, FileBytes, FileError};
pub use graph::{
    Graph, GraphError, Node, Rewriter, RowInputs, StateDecl, StateId, Value, ValueId, ValueSource, ValueType,
};
pub use host_state::{HostStates, SlotSnapshot, StateError, StateLayout, StateRows};
pub use interpreter::{Interpreter, InterpreterError, evaluate, evaluate_constant};
pub use partial_file::PartialFile;
pub use plan::{BufferRequest, DeviceMemory, MemoryEstimate, MemoryPlan};
pub use reference::ReferenceBackend;
pub use slots::Slots;
pub use source::WeightSource;
pub use storage::AlignedBytes;
pub use tensor::{Element, Tensor, TensorError, byte_len, decode_f32};
pub use weight::{Weight, WeightError};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
