//! Optimizes, plans, compiles, caches and runs [`core_tensor`] graphs on the backends that it is handed.
//!
//! A [`Model`] is a graph on a backend: its weights are loaded once, its programs are compiled when a step of their size is first run, and
//! its [`Session`]s hold the states of sequences.
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//! use core_tensor::op::{Op, Unary};
//! use core_tensor::{Backend, Bindings, DType, Dim, Graph, ReferenceBackend, Tensor};
//! use polaris_runtime::{Model, ModelOptions};
//!
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("tokens")]);
//! let y = graph.add("y", Op::Unary(Unary::Neg), &[x])?;
//! graph.output(y);
//!
//! let backends: [Arc<dyn Backend>; 1] = [Arc::new(ReferenceBackend::default())];
//! let model = Model::load(&backends, graph, ModelOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
//! let mut session = model.session(1, &Bindings::new())?;
//! let out = model.step(&mut session, &[Tensor::from_slice(&[2], &[1.0f32, -2.0])?])?;
//! assert_eq!(out[0].to_f32()?, [-1.0, 2.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod executable;
mod memory;
mod model;
mod partition;
mod session;
mod split;

pub use error::RuntimeError;
pub use executable::{Executable, ExecutableOptions, OpTime};
pub use memory::estimate;
pub use model::{MemoryReport, Model, ModelOptions, ROW_BUCKETS};
pub use session::Session;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
