//! How an encoder is opened.

use std::ops::ControlFlow;
use std::path::PathBuf;

use core_tensor::FileAccess;

use crate::backends::BackendOptions;

/// How an encoder is opened.
#[derive(Clone, Debug)]
pub struct BertOptions {
    /// Whether the file is mapped or read.
    pub access: FileAccess,
    /// Device, threads, activations.
    pub backend: BackendOptions,
    /// Tokens of a text at most; `None` takes what the model was made for. What is longer is cut.
    pub max_tokens: Option<usize>,
    /// Texts that are evaluated side by side at most.
    pub batch: usize,
    /// The tokenizer's file; `None` takes `tokenizer.json` beside the model.
    pub tokenizer: Option<PathBuf>,
    /// The configuration's file; `None` takes `config.json` beside the model.
    pub config: Option<PathBuf>,
}

/// Texts side by side where the caller does not say.
pub const DEFAULT_BATCH: usize = 32;

impl Default for BertOptions {
    fn default() -> BertOptions {
        BertOptions {
            access: FileAccess::default(),
            backend: BackendOptions::default(),
            max_tokens: None,
            batch: DEFAULT_BATCH,
            tokenizer: None,
            config: None,
        }
    }
}

/// Told after each batch: texts done, texts in all. `Break` ends it with [`crate::Error::Cancelled`].
pub type TextProgress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;
