//! Llama and its kin (`llama`, `qwen2`, `gemma3`): from a GGUF file to text.
//!
//! [`Llama`] is the pipeline. Everything about a model comes from the file's metadata.

mod calibration;
mod chat;
mod chunks;
mod comparison;
mod config;
mod generation;
mod graph;
pub(crate) mod names;
mod options;
mod perplexity;
mod pipeline;
mod sequences;
mod taps;
pub(crate) mod trained;
mod vocabulary;
pub(crate) mod weights;

pub use crate::chat_template::Message;
pub use crate::sampler::SamplerOptions;
pub use calibration::{CalibrationOptions, FeedbackOptions, Hold, MatrixInputs, OnChunk, TextCalibration, importances};
pub use chat::{Chat, ChatOptions};
pub use chunks::Picked;
pub use comparison::{Comparison, ComparisonSums, Divergence, Reference, compare};
pub use config::{Architecture, Layer, LlamaConfig, Rope};
pub use graph::{CANDIDATES, MAX_ROWS, bounds, build};
pub use options::{
    ContextFull, DEFAULT_CONTEXT, FinishReason, GenerateOptions, Generation, KvDType, LlamaOptions, Piece, Timings,
};
pub use perplexity::{Perplexity, PerplexityOptions};
pub use pipeline::{Llama, LoadProgress};
pub use sequences::{EachCandidates, Row, Sequences};
pub use vocabulary::tokenizer;
