//! Making models smaller.
//!
//! [`block`] has the encoders of the block formats that GGUF files hold: scales of least squared error, weighted by the
//! importance of each column where it is known. [`Mixture`] and [`assign`] say which tensor of a language model gets which
//! type. [`graph`] makes weights and activations of any graph integers of 8 or 4 bits. [`prune`] takes weights, neurons and heads out.
//!
//! ```
//! use core_tensor::{BlockFormat, DType};
//!
//! // Two rows of 256 weights.
//! let weights: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
//! let dtype = DType::Block(BlockFormat::Q4_K);
//! let mut bytes = vec![0; 2 * 144];
//! polaris_quant::block::encode(dtype, &weights, 256, None, &mut bytes)?;
//!
//! let mut decoded = vec![0.0; 512];
//! core_tensor::block::decode(BlockFormat::Q4_K, &bytes, &mut decoded)?;
//! let noise: f32 = weights.iter().zip(&decoded).map(|(x, y)| (x - y) * (x - y)).sum();
//! assert!(noise / 512.0 < 0.002);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod block;
mod differences;
mod dot;
pub mod gptq;
pub mod graph;
mod importance;
pub mod mixed;
mod mixture;
pub mod plot;
pub mod prune;
#[cfg(test)]
mod random;
pub mod reconstruct;
mod widest;

pub use differences::differences;
pub use importance::{Importance, Importances};
pub use mixture::{AssignOptions, Mixture, ModelFacts, TensorFacts, UnknownMixture, assign};
