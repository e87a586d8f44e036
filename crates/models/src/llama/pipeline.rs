//! The pipeline: a GGUF file to logits and text.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use core_tensor::Backend;
use loader_gguf::Gguf;
use polaris_runtime::MemoryReport;

use super::{
    Chat, ChatOptions, GenerateOptions, Generation, LlamaOptions, Perplexity, PerplexityOptions, Piece, Sequences,
};
use crate::Error;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Told while a model loads: bytes done, bytes in all. `Break` cancels.
pub type LoadProgress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a;

/// A language model with its tokenizer, ready to run.
pub struct Llama {
    _gguf: Gguf,
}

impl Llama {
    /// Opens a GGUF file (of a split model: any of its files) and loads its weights.
    ///
    /// # Errors
    /// When the file cannot be read or its metadata, vocabulary or tensors do not make a model that is supported, the device cannot be used,
    /// there is not enough memory, or `progress` cancels.
    pub fn open(
        path: impl AsRef<Path>,
        options: &LlamaOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Llama, Error> {
        let _ = (path.as_ref(), options, progress);
        todo!()
    }

    /// The same from an opened file, on backends of the caller's choice (`options.backend` is then not looked at).
    ///
    /// # Errors
    /// As [`Llama::open`].
    pub fn from_gguf(
        gguf: Gguf,
        backends: &[Arc<dyn Backend>],
        options: &LlamaOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Llama, Error> {
        let _ = (gguf, backends, options, progress);
        todo!()
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        todo!()
    }

    /// Positions that a sequence may hold.
    #[must_use]
    pub fn context(&self) -> usize {
        todo!()
    }

    /// What the model takes, and where.
    #[must_use]
    pub fn memory(&self) -> &MemoryReport {
        todo!()
    }

    /// What runs the model, for people.
    #[must_use]
    pub fn device(&self) -> String {
        todo!()
    }

    /// Seconds that opening and loading took.
    #[must_use]
    pub fn load_seconds(&self) -> f64 {
        todo!()
    }

    /// The ids of a text.
    #[must_use]
    pub fn tokenize(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        self.tokenizer().encode(text, options)
    }

    /// Continues a prompt. `on_piece` gets text as it comes; `Break` stops.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, an option is out of range, or the backend fails.
    pub fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        self.generate_tokens(&self.tokenize(prompt, options.encode), options, on_piece)
    }

    /// Continues a prompt of tokens.
    ///
    /// # Errors
    /// As [`Llama::generate`]; also when a token is outside of the vocabulary.
    pub fn generate_tokens(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let _ = (prompt, options, on_piece);
        todo!()
    }

    /// The logits after each of the tokens: `[tokens][vocabulary]`.
    ///
    /// # Errors
    /// When there are more tokens than the context has positions, one is outside of the vocabulary, or the backend fails.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let _ = tokens;
        todo!()
    }

    /// Perplexity of a text, by llama.cpp's procedure, so that figures compare. `on_chunk` gets the running estimate after each
    /// chunk (chunks done, chunks in all, perplexity so far); `Break` stops there.
    ///
    /// # Errors
    /// When the text has fewer than two chunks of tokens, the chunks do not fit the context, or the backend fails.
    pub fn perplexity(
        &self,
        text: &str,
        options: &PerplexityOptions,
        on_chunk: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
    ) -> Result<Perplexity, Error> {
        let _ = (text, options, on_chunk);
        todo!()
    }

    /// Begins a conversation that keeps its KV cache between turns.
    ///
    /// # Errors
    /// When the file has no chat template and the options none, or there is no memory for the states.
    pub fn chat(&self, options: ChatOptions) -> Result<Chat<'_>, Error> {
        let _ = options;
        todo!()
    }

    /// Several sequences side by side: what batching, beams and servers build on.
    ///
    /// # Errors
    /// When there is no memory for the states.
    pub fn sequences(&self, slots: usize) -> Result<Sequences<'_>, Error> {
        let _ = slots;
        todo!()
    }
}
