//! `polaris perplexity`: how well a model predicts a text.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use models::llama::PerplexityOptions;
use serde_json::json;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::model::{self, Compute, ModelFile};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  polaris perplexity -m model.gguf -f text.txt
  polaris perplexity -m model.gguf -f text.txt --chunks 6 --activations f32
  polaris perplexity -m model.gguf -f text.txt --json | jq .perplexity

The text is cut into chunks as llama.cpp's llama-perplexity does it, so that figures compare; lower is better.";

/// Measure how well a model predicts a text
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// The text, '-' for standard input
    #[arg(short = 'f', long = "file", value_name = "TEXT")]
    text: PathBuf,
    /// Tokens of a chunk; the second half of each is scored
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    context: u32,
    /// Evaluate the first N chunks only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Print one JSON object: perplexity, standard_error, chunks, running, ...
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let text = read_text(&arguments.text)?;
    let model = model::open(&arguments.file, &arguments.compute, Some(arguments.context), &interrupt)?;
    let options = PerplexityOptions {
        context: arguments.context as usize,
        chunks: arguments.chunks.map(|chunks| chunks as usize),
        ..PerplexityOptions::default()
    };
    let _busy = interrupt.busy();
    let measured = model.perplexity(&text, &options, &mut |done, total, perplexity| {
        output::note(&format!("chunk {done} of {total}: {perplexity:.4}"));
        if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if measured.chunks == 0 {
        // Stopped before there was anything to tell.
        return Err(Failure::Interrupted);
    }
    if arguments.json {
        output::write_json(&json!({
            "perplexity": measured.perplexity,
            "standard_error": measured.standard_error,
            "context": measured.context,
            "chunks": measured.chunks,
            "tokens": measured.tokens,
            "tokens_scored": measured.tokens_scored,
            "running": measured.running,
            "seconds": measured.seconds,
        }))?;
    } else {
        output::write(&format!(
            "perplexity {:.4} ± {:.4} ({} chunks of {}, {} tokens scored, {:.1} s)\n",
            measured.perplexity,
            measured.standard_error,
            measured.chunks,
            measured.context,
            measured.tokens_scored,
            measured.seconds,
        ))?;
    }
    if interrupt.requested() { Err(Failure::Interrupted) } else { Ok(()) }
}
