//! What running a model can end in.

use std::path::PathBuf;

use core_tensor::{GraphError, StateError, TensorError, WeightError};
use loader_gguf::GgufError;
use loader_onnx::OnnxError;
use loader_torch::TorchError;
use polaris_runtime::RuntimeError;

use crate::chat_template::ChatTemplateError;
use crate::sampler::SamplerError;
use crate::tokenizer::TokenizerError;

/// Everything that opening or running a model can end in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read, or is no GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file cannot be read, is no ONNX file, or has operators that are not supported.
    #[error(transparent)]
    Onnx(Box<OnnxError>),
    /// The file cannot be read, or is no safetensors file.
    #[error(transparent)]
    Torch(Box<TorchError>),
    /// A file cannot be read, or is not what is needed.
    #[error("{path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A key of a JSON configuration makes no sense, or asks for what is not supported.
    #[error("{path}: '{key}': {reason}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no gap to fill.
    #[error("the text has no {mask}{}", if *.truncated { " in as many tokens as the model takes" } else { "" })]
    NoMask {
        /// How a gap is written.
        mask: String,
        /// Whether the end of the text was cut off.
        truncated: bool,
    },
    /// The file's architecture has no builder here.
    #[error("{path}: architecture {found:?} is not supported (supported: {known})")]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// The architectures that have one, separated by commas.
        known: String,
    },
    /// A metadata value makes no sense for the architecture.
    #[error("{path}: metadata key '{key}': {reason}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Tensors that the architecture needs are not in the file.
    #[error("{path}: {count} tensor(s) that the architecture needs are missing: {}", list(.names, *.count))]
    MissingTensors {
        /// The file.
        path: PathBuf,
        /// The first few names.
        names: Vec<String>,
        /// How many there are in all.
        count: usize,
    },
    /// The file has tensors that the architecture does not use: it is another model than its metadata says.
    #[error("{path}: {count} tensor(s) that the architecture does not use: {}", list(.names, *.count))]
    UnusedTensors {
        /// The file.
        path: PathBuf,
        /// The first few names.
        names: Vec<String>,
        /// How many there are in all.
        count: usize,
    },
    /// A tensor is not of the shape that the metadata asks for.
    #[error("{path}: tensor '{name}' is {found:?}, the metadata asks for {expected:?}")]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its extents, outermost first.
        found: Vec<usize>,
        /// The extents that follow from the metadata.
        expected: Vec<usize>,
    },
    /// A tensor cannot be used as it is stored.
    #[error("{path}: tensor '{name}': {reason}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        reason: String,
    },
    /// The file's vocabulary cannot be used.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenizerError,
    },
    /// The chat template is missing, cannot be used, or refuses the messages.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// A sampling option is out of range, or the logits leave nothing to choose from.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// An option is out of range.
    #[error("option {name}: {reason}")]
    Option {
        /// The option.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The device is not built in or cannot be used.
    #[error("device {device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {tokens} tokens; a context of {context} has room for {room} beside what is to be generated"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the context.
        context: usize,
        /// Positions that a prompt may take.
        room: usize,
    },
    /// There is nothing to evaluate.
    #[error("the prompt is empty, and this model adds no token to begin a text with")]
    EmptyPrompt,
    /// A text has not one chunk of tokens.
    #[error("with a context of {context} the text needs at least {needed} tokens, it has {tokens}")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
        /// The context asked for.
        context: usize,
    },
    /// A token is none of the model's.
    #[error("token {token} is outside of the vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The runtime or its backend failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The graph could not be built: the file's parts do not fit each other.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A weight could not be derived from the stored ones.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A tensor could not be made or read.
    #[error(transparent)]
    TensorValue(#[from] TensorError),
    /// A sequence could not be cut, copied or restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// Loading was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<OnnxError> for Error {
    fn from(error: OnnxError) -> Error {
        Error::Onnx(Box::new(error))
    }
}

impl From<TorchError> for Error {
    fn from(error: TorchError) -> Error {
        Error::Torch(Box::new(error))
    }
}

/// Some names, and how many more there are.
fn list(names: &[String], count: usize) -> String {
    match count.saturating_sub(names.len()) {
        0 => names.join(", "),
        rest => format!("{} and {rest} more", names.join(", ")),
    }
}
