//! The backward pass of a graph, as a graph.
//!
//! [`backward`] takes a [`Graph`], one of its values and the values to differentiate by, and gives the same graph with the gradients as further
//! outputs: reverse-mode differentiation (Linnainmaa 1970; Baydin et al. 2018), written with the operators that graphs have anyway. So whatever
//! runs graphs runs backward passes, and the crate runs nothing.
//!
//! ```
//! use std::sync::Arc;
//! use core_tensor::op::{MatMul, Op, Reduce, ReduceKind, Unary};
//! use core_tensor::{Bindings, DType, Graph, HostStates, Interpreter, Tensor};
//!
//! let mut graph = Graph::new("loss");
//! let x = graph.input("x", DType::F32, &[1.into(), 2.into()]);
//! let w = graph.input("w", DType::F32, &[3.into(), 2.into()]);
//! let y = graph.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w])?;
//! let loss = graph.add("loss", Op::Reduce(Reduce { kind: ReduceKind::SumSquare }), &[y])?;
//! graph.output(loss);
//!
//! let graph = Arc::new(polaris_gradient::backward(&graph, loss, None, &[w])?);
//! let inputs = [
//!     Tensor::from_slice(&[1, 2], &[1.0f32, 2.0])?,
//!     Tensor::from_slice(&[3, 2], &[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0])?,
//! ];
//! let mut states = HostStates::new(&graph, 0, &Bindings::new())?;
//! let outputs = Interpreter::new(graph).run(&mut states, &inputs)?;
//! assert_eq!(outputs[0].to_f32()?, [14.0]); // 1² + 2² + 3²
//! assert_eq!(outputs[1].to_f32()?, [2.0, 4.0, 4.0, 8.0, 6.0, 12.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Operators
//!
//! | family | differentiated | with respect to |
//! | --- | --- | --- |
//! | matmul | MatMul, in batches that broadcast, `transpose_b` or not | both operands; weights in blocks and of 16 bits are constants |
//! | conv | Conv over any number of spatial extents, groups, strides, dilations, pads | image, weight, bias |
//! | attention | TensorAttention: causal or not, grouped queries, masks, soft caps | queries, keys, values |
//! | norm | RMSNormalization, LayerNormalization | input, weight, bias |
//! | rope | RotaryEmbedding, every scaling | input |
//! | elementwise | every Unary function of floats; Add, Sub, Mul, Div, Min, Max, Pow, PRelu; Where; GatedActivation | all float operands |
//! | reduce | Softmax, LogSoftmax; Reduce by sum, mean, magnitudes, squares, 2-norm, logarithms of sums | input |
//! | gather | Gather along the first extent | table |
//! | shape | Reshape, Transpose, Slice by steps of 1, Concat, Expand, Pad with a constant, Trilu, Cast between floats | all inputs |
//!
//! Any other operator between the value and what it is differentiated by is an error with its name. Floor, Ceil, Round and Sign pass nothing on. Where
//! a derivative jumps (Relu at 0, Min and Max of equal operands), the first operand's side or 0 is taken.

#![forbid(unsafe_code)]

mod attention;
mod backward;
mod builder;
mod conv;
mod elementwise;
mod gather;
mod matmul;
mod norm;
mod reduce;
mod rope;
mod shape;

pub use backward::{GradientError, backward};

#[cfg(doc)]
use core_tensor::Graph;
