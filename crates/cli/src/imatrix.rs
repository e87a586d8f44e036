//! `polaris imatrix`: which columns of a model's matrices matter.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use loader_gguf::Gguf;
use models::llama::{CalibrationOptions, LlamaOptions, Picked, importances};
use models::quantize::{check_output, sources, write_importances};
use serde_json::json;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::model::{Compute, LoadBar, ModelFile};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  polaris imatrix -m model-f16.gguf -f calibration.txt -o imatrix.gguf
  polaris imatrix -m model-f16.gguf -f calibration.txt -o imatrix.gguf --chunks 100
  polaris quantize model-f16.gguf model-q4.gguf --type Q4_K_M --imatrix imatrix.gguf

Runs the text through the model and sums the squares of what meets each column of each matrix; with them, `polaris quantize` and llama.cpp's
llama-quantize spend a type's accuracy where it counts. The file is llama.cpp's. Ctrl-C ends it early, keeps what is there and gives exit code 130.";

/// Collect the importance of a model's columns from a text, for `quantize --imatrix`
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// The text, '-' for standard input
    #[arg(short = 'f', long = "file", value_name = "TEXT")]
    text: PathBuf,
    /// The file to write (GGUF)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens of a chunk
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Run the first N chunks only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Print one JSON object: tensors, chunks, tokens, seconds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    check_output(&arguments.output, &sources(&Gguf::open(&arguments.file.model, arguments.file.access())?))?;
    let text = read_text(&arguments.text)?;
    let options = LlamaOptions {
        access: arguments.file.access(),
        backend: arguments.compute.backend(),
        kv_dtype: arguments.compute.kv_dtype,
        context: None,
        slots: 1,
    };
    let collect = CalibrationOptions {
        context: arguments.context as usize,
        chunks: arguments.chunks.map(|chunks| chunks as usize),
        picked: Picked::First,
        dataset: arguments.text.display().to_string(),
    };
    let _busy = interrupt.busy();
    let start = Instant::now();
    let mut bar = LoadBar::new("loading");
    let stop = || if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let found = importances(
        &arguments.file.model,
        &options,
        &text,
        &collect,
        &mut |done, total| {
            bar.set(done, total);
            if done >= total {
                bar.clear();
            }
            stop()
        },
        &mut |done, total| {
            output::note(&format!("chunk {done} of {total}"));
            stop()
        },
    )?;
    write_importances(&found, &arguments.output)?;
    let (tensors, chunks, seconds) = (found.entries.len(), found.chunks, start.elapsed().as_secs_f64());
    let tokens = chunks * found.chunk_size;
    let told = match arguments.json {
        true => output::write_json(&json!({
            "output": arguments.output, "tensors": tensors, "chunks": chunks, "tokens": tokens, "seconds": seconds,
        })),
        false => output::write(&format!(
            "{tensors} tensors, {chunks} chunks of {} tokens, {seconds:.1} s: {}\n",
            found.chunk_size,
            arguments.output.display()
        )),
    };
    // What is there is kept, but it is not what was asked for.
    if interrupt.requested() { Err(Failure::Interrupted) } else { told }
}
