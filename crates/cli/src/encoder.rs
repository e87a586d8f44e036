//! Options of the commands that run encoders, and opening one.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use core_tensor::FileAccess;
use models::bert::{BertOptions, DEFAULT_BATCH, TextTokenizer};
use models::llama::LoadProgress;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::graph::GraphDevice;
use crate::interrupt::Interrupt;
use crate::model::LoadBar;
use crate::output;

/// The model and what computes it.
#[derive(Debug, Args)]
pub(crate) struct EncoderArguments {
    /// Model file (.safetensors, .onnx) or the folder that it lies in
    ///
    /// tokenizer.json and config.json are found beside it.
    #[arg(short, long, value_name = "PATH")]
    model: PathBuf,
    /// Tokenizer to use instead of the tokenizer.json beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a text at most, longer ones are cut [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    max_tokens: Option<u32>,
    /// Read the file instead of mapping it into memory
    #[arg(long)]
    no_mmap: bool,
    #[command(flatten)]
    device: GraphDevice,
    /// Texts that are evaluated side by side at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH as u16, value_parser = clap::value_parser!(u16).range(1..=4096), help_heading = "Computing")]
    batch: u16,
}

impl EncoderArguments {
    fn options(&self) -> BertOptions {
        BertOptions {
            access: if self.no_mmap { FileAccess::Read } else { FileAccess::Map },
            backend: self.device.backend(),
            max_tokens: self.max_tokens.map(|tokens| tokens as usize),
            batch: self.batch.into(),
            tokenizer: self.tokenizer.clone(),
            config: None,
        }
    }

    /// Opens a model with a progress bar, if that takes a while and somebody looks.
    pub(crate) fn open<T>(
        &self,
        interrupt: &Interrupt,
        open: impl FnOnce(&PathBuf, &BertOptions, &mut LoadProgress<'_>) -> Result<T, models::Error>,
    ) -> Result<T, Failure> {
        let _busy = interrupt.busy();
        let mut bar = LoadBar::new("loading");
        let model = open(&self.model, &self.options(), &mut |done, total| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.clear();
        Ok(model?)
    }
}

/// The texts, from the command line or from a file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "input")]
pub(crate) struct Texts {
    /// The texts, each in quotation marks
    #[arg(short, long, visible_alias = "text", value_name = "TEXT", num_args = 1..)]
    prompt: Vec<String>,
    /// Take the texts from a file, one on each line; '-' for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Texts {
    pub(crate) fn read(&self) -> Result<Vec<String>, Failure> {
        match &self.file {
            Some(path) => Ok(read_text(path)?.lines().map(str::to_owned).collect()),
            None => Ok(self.prompt.clone()),
        }
    }
}

/// Whether to go on after a batch of texts.
pub(crate) fn go_on(interrupt: &Interrupt) -> ControlFlow<()> {
    if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Says how many texts were too long.
pub(crate) fn note_truncated(count: usize, tokenizer: &TextTokenizer) {
    if count > 0 {
        let texts = if count == 1 { "1 text was".to_owned() } else { format!("{count} texts were") };
        output::note(&format!("{texts} cut to {} tokens", tokenizer.max_tokens()));
    }
}
