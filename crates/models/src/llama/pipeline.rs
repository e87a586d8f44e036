//! The pipeline: a GGUF file to logits and text.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use core_tensor::{Backend, BackendError, Bindings, Graph, WeightSource};
use loader_gguf::Gguf;
use polaris_runtime::{MemoryReport, Model, ModelOptions, ROW_BUCKETS, RuntimeError};

use super::generation::Generator;
use super::graph::symbol;
use super::{
    Chat, ChatOptions, DEFAULT_CONTEXT, GenerateOptions, Generation, LlamaConfig, LlamaOptions, Perplexity,
    PerplexityOptions, Piece, Row, Sequences, vocabulary,
};
use crate::tokenizer::{EncodeOptions, Tokenizer};
use crate::{Error, backends};

/// Told while a model loads: bytes done, bytes in all. `Break` cancels.
pub type LoadProgress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + Send + 'a;

/// A language model with its tokenizer, ready to run.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    tokenizer: Tokenizer,
    /// The source of the file's chat template; parsed when a conversation begins.
    chat_template: Option<String>,
    name: Option<String>,
    model: Model,
    context: usize,
    load_seconds: f64,
    device_note: Option<String>,
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
        let start = Instant::now();
        let gguf = Gguf::open(path, options.access)?;
        let opened = backends::open(&options.backend)?;
        let mut model = Llama::from_gguf(gguf, &opened.backends, options, progress)?;
        model.load_seconds = start.elapsed().as_secs_f64();
        model.device_note = opened.note.or(model.device_note);
        Ok(model)
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
        Llama::with_weights(&gguf, &gguf, backends, options, progress)
    }

    /// The same with weights from elsewhere; metadata and vocabulary are the file's.
    pub(crate) fn with_weights(
        gguf: &Gguf,
        weights: &dyn WeightSource,
        backends: &[Arc<dyn Backend>],
        options: &LlamaOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Llama, Error> {
        let config = LlamaConfig::from_gguf(gguf)?;
        let context = positions(&config, options)?;
        let graph = super::build(&config, weights, options.kv_dtype, context)?;
        Llama::with_graph(gguf, config, graph, backends, options, progress)
    }

    /// The same with a graph that is at hand: the model's, perhaps with further outputs.
    pub(super) fn with_graph(
        gguf: &Gguf,
        config: LlamaConfig,
        graph: Graph,
        backends: &[Arc<dyn Backend>],
        options: &LlamaOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Llama, Error> {
        let start = Instant::now();
        let context = positions(&config, options)?;
        // The vocabulary takes as long as the weights, and neither needs the other.
        let (tokenizer, model) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| vocabulary::tokenizer(gguf));
            let model = Model::load(backends, graph, runtime_options(context, options.slots), progress);
            (tokenizer.join(), model)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if tokenizer.vocabulary_size() > config.vocabulary {
            return Err(Error::Metadata {
                path: gguf.path().to_owned(),
                key: "tokenizer.ggml.tokens".into(),
                reason: format!(
                    "{} tokens, and the embedding has {} rows",
                    tokenizer.vocabulary_size(),
                    config.vocabulary
                ),
            });
        }
        let model = model.map_err(|error| match error {
            RuntimeError::Backend { source: BackendError::Cancelled, .. } => Error::Cancelled,
            error => error.into(),
        })?;
        Ok(Llama {
            tokenizer,
            chat_template: gguf.optional::<&str>("tokenizer.chat_template")?.map(str::to_owned),
            name: gguf.optional::<&str>("general.name")?.map(str::to_owned),
            config,
            device_note: (!model.passed_over().is_empty()).then(|| model.passed_over().join("; ")),
            model,
            context,
            load_seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The name that the file gives the model.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The source of the file's chat template.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The loaded graph: programs, passes, memory.
    #[must_use]
    pub fn runtime(&self) -> &Model {
        &self.model
    }

    /// Positions that a sequence may hold.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// What the model takes, and where.
    #[must_use]
    pub fn memory(&self) -> &MemoryReport {
        self.model.memory()
    }

    /// What runs the model, for people; and why it is not the device that would have been the first choice.
    #[must_use]
    pub fn device(&self) -> String {
        let description = self.model.backend().description();
        match &self.device_note {
            Some(note) => format!("{description} ({note})"),
            None => description,
        }
    }

    /// Seconds that opening and loading took.
    #[must_use]
    pub fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// The ids of a text.
    #[must_use]
    pub fn tokenize(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        self.tokenizer.encode(text, options)
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
        let mut sequences = self.sequences(1)?;
        Generator::new(self, &mut sequences, 0, options)?.run(prompt, on_piece)
    }

    /// The logits after each of the tokens: `[tokens][vocabulary]`.
    ///
    /// # Errors
    /// When there are more tokens than the context has positions, one is outside of the vocabulary, or the backend fails.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let rows: Vec<Row> = tokens.iter().map(|token| Row { slot: 0, token: *token, logits: true }).collect();
        self.sequences(1)?.step(&rows)
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
        super::perplexity::measure(self, text, options, on_chunk)
    }

    /// Begins a conversation that keeps its KV cache between turns.
    ///
    /// # Errors
    /// When the file has no chat template and the options none, or there is no memory for the states.
    pub fn chat(&self, options: ChatOptions) -> Result<Chat<'_>, Error> {
        Chat::new(self, options)
    }

    /// Several sequences side by side: what batching, beams and servers build on.
    ///
    /// # Errors
    /// When there is no memory for the states.
    pub fn sequences(&self, slots: usize) -> Result<Sequences<'_>, Error> {
        Sequences::new(self, slots)
    }
}

/// Positions that sequences will hold.
pub(super) fn positions(config: &LlamaConfig, options: &LlamaOptions) -> Result<usize, Error> {
    let context = options.context.unwrap_or(config.trained_context.min(DEFAULT_CONTEXT));
    if context == 0 || i32::try_from(context).is_err() {
        return Err(Error::Option { name: "context", reason: format!("{context} positions cannot be held") });
    }
    Ok(context)
}

/// Buckets for the rows of a step and those with logits; the memory check counts with the largest step that asks for one row's logits.
pub(super) fn runtime_options(context: usize, slots: usize) -> ModelOptions {
    let rows = ROW_BUCKETS.to_vec();
    ModelOptions {
        buckets: vec![(symbol::TOKENS.into(), rows.clone()), (symbol::LOGIT_ROWS.into(), rows)],
        fixed: Bindings::new().with(symbol::CONTEXT, context),
        estimated: Bindings::new().with(symbol::LOGIT_ROWS, 1),
        slots,
        optimize: true,
    }
}
