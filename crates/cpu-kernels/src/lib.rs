//! The CPU backend of Polaris: SIMD picked at run time, an own thread pool, quantized weights computed with as the file stores them.
//!
//! [`CpuBackend`] implements [`core_tensor::Backend`]. Weights are packed once for the widest dot product that the machine has
//! ([`matmul`]); a graph is fused into few steps (`Linear` takes normalization, bias, residual and gated activation along), and a
//! program runs them as one parallel region, with a barrier only where one step needs what another thread computed.
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//! use core_tensor::op::{MatMul, Op};
//! use core_tensor::{Backend, Bindings, DType, Dim, Graph, Tensor, Weight};
//! use cpu_kernels::{CpuBackend, CpuOptions};
//!
//! let mut graph = Graph::new("example");
//! let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 2.into()]);
//! let w = graph.weight("w", Weight::stored(Tensor::from_slice(&[1, 2], &[3.0f32, 4.0])?));
//! let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w])?;
//! graph.output(y);
//! let graph = Arc::new(graph);
//!
//! let cpu = CpuBackend::new(CpuOptions::default().with_threads(1));
//! let bounds = Bindings::new().with("rows", 8);
//! let weights = cpu.load_weights(&graph, &mut |_, _| ControlFlow::Continue(()))?;
//! let program = cpu.compile(&graph, &weights, &bounds)?;
//! let mut session = cpu.new_session(&graph, 1, &bounds)?;
//! let out = program.run(&mut *session, &[Tensor::from_slice(&[1, 2], &[1.0f32, 2.0])?])?;
//! assert_eq!(out[0].to_f32()?, [11.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Kernels walk several arrays by one lane index, the vectors of a block side by side.
#![allow(clippy::needless_range_loop)]

mod attention;
mod backend;
mod compile;
mod conv;
mod elementwise;
mod gather;
mod integer;
mod linear;
mod math;
pub mod matmul;
mod norm;
mod pad;
mod pool;
mod product;
mod program;
mod recurrent;
mod reduce;
mod resize;
mod rope;
mod shape;
pub mod simd;
mod state;
mod strided;
mod system;
mod threads;
mod weights;

pub use backend::{CpuBackend, CpuOptions};
pub use threads::{ThreadPool, Worker};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
