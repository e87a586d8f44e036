//! How a model is opened, and how text is generated with it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use core_tensor::{BlockFormat, DType, FileAccess};
use serde::{Deserialize, Serialize};

use crate::backends::BackendOptions;
use crate::sampler::SamplerOptions;
use crate::tokenizer::EncodeOptions;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvDType {
    /// 4 bytes per element.
    F32,
    /// 2 bytes per element.
    #[default]
    F16,
    /// 34 bytes per 32 elements.
    Q8_0,
}

impl KvDType {
    /// Every type with the name that commands use.
    pub const ALL: [(&'static str, KvDType); 3] =
        [("f32", KvDType::F32), ("f16", KvDType::F16), ("q8_0", KvDType::Q8_0)];

    /// As a dtype of states.
    #[must_use]
    pub fn dtype(self) -> DType {
        match self {
            KvDType::F32 => DType::F32,
            KvDType::F16 => DType::F16,
            KvDType::Q8_0 => DType::Block(BlockFormat::Q8_0),
        }
    }
}

/// How a model is opened.
#[derive(Clone, Copy, Debug)]
pub struct LlamaOptions {
    /// Whether the file is mapped or read.
    pub access: FileAccess,
    /// Device, threads, activations.
    pub backend: BackendOptions,
    /// Element type of the KV cache.
    pub kv_dtype: KvDType,
    /// Positions that a sequence may hold. `None` takes what the model was trained with, at most [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// Sequences that may be evaluated side by side (at least 1).
    pub slots: usize,
}

/// The context where neither the caller nor the model asks for less.
pub const DEFAULT_CONTEXT: usize = 4096;

impl Default for LlamaOptions {
    fn default() -> LlamaOptions {
        LlamaOptions {
            access: FileAccess::default(),
            backend: BackendOptions::default(),
            kv_dtype: KvDType::default(),
            context: None,
            slots: 1,
        }
    }
}

/// What happens when the context is full while text is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContextFull {
    /// Generation ends with [`FinishReason::ContextFull`].
    #[default]
    Stop,
    /// The first `keep` tokens and the newer half of the others stay and are evaluated again; the rest is forgotten.
    Shift {
        /// Tokens at the start that are always kept (a system prompt).
        keep: usize,
    },
}

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: SamplerOptions,
    /// Texts that end the generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// What happens when the context is full.
    pub context_full: ContextFull,
    /// How the prompt is tokenized.
    pub encode: EncodeOptions,
    /// Goes on after tokens that end a text (for benchmarks).
    pub ignore_end: bool,
    /// Set to true from elsewhere, it ends the generation after the token at hand.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions {
            max_tokens: 128,
            sampling: SamplerOptions::default(),
            stop: Vec::new(),
            context_full: ContextFull::default(),
            encode: EncodeOptions::default(),
            ignore_end: false,
            cancel: None,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "detail")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its text; this is the token it did so with.
    EndOfText(u32),
    /// One of the stop strings came up.
    StopString(String),
    /// As many tokens as asked for were generated.
    MaxTokens,
    /// There is no room left in the context.
    ContextFull,
    /// The caller asked to stop.
    Cancelled,
}

/// How long things took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Opening the file and loading the weights.
    pub load_seconds: f64,
    /// Prompt tokens that were evaluated (those in the KV cache already are not).
    pub prompt_evaluated: usize,
    /// Evaluating them, to the first logits.
    pub prompt_seconds: f64,
    /// Steps of one token each.
    pub decoded: usize,
    /// Those steps, with sampling.
    pub decode_seconds: f64,
    /// From the call to the first token.
    pub first_token_seconds: f64,
    /// How often the context was full and shifted.
    pub shifts: usize,
}

impl Timings {
    /// Prompt tokens per second; 0 if none was evaluated.
    #[must_use]
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt_evaluated, self.prompt_seconds)
    }

    /// Generated tokens per second; 0 if none was.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.decoded, self.decode_seconds)
    }
}

fn rate(count: usize, seconds: f64) -> f64 {
    if count == 0 || seconds <= 0.0 { 0.0 } else { count as f64 / seconds }
}

/// A piece of generated text, as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The token that brought it; `None` for what was held back and is given out at the end.
    pub token: Option<u32>,
    /// The text that is certain now: whole characters, nothing that may still turn out to be a stop string. Often empty.
    pub text: &'a str,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The generated tokens, with the one that ended the text if there was one.
    pub tokens: Vec<u32>,
    /// The generated text, without what ended it.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// How long it took.
    pub timings: Timings,
}
