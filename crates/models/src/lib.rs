//! Model builders and pipelines: from a file to text.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use models::llama::{GenerateOptions, Llama, LlamaOptions};
//!
//! let model = Llama::open("model.gguf", &LlamaOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
//! model.generate("The capital of France is", &GenerateOptions::default(), &mut |piece| {
//!     print!("{}", piece.text);
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), models::Error>(())
//! ```

pub mod backends;
pub mod bert;
pub mod chat_template;
mod error;
pub mod graph_file;
pub mod inspect;
pub mod llama;
pub mod prune;
pub mod quantize;
pub mod sampler;
pub mod tokenizer;

pub use error::Error;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
