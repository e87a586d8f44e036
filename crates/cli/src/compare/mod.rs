//! `polaris compare`: how far two models, or one on two devices, are apart, and whether that is too far.

mod gate;
mod graphs;
mod language;

use std::path::{Path, PathBuf};

use clap::Args;
use models::backends::Device;
use models::llama::KvDType;

use crate::failure::Failure;
use crate::graph::{GraphCompute, Inputs};
use crate::model;
use gate::Thresholds;

const EXAMPLES: &str = "\
Examples:
  polaris compare model.onnx model-int8.onnx --input random --min-cosine 0.999
  polaris compare model.onnx --device cpu --other-device vulkan --input x=x.npy
  polaris compare model.onnx --device cpu --other-device reference --input random --json
  polaris compare model-f16.gguf model-q4.gguf --data text.txt --max-kl 0.02 --max-ppl-ratio 1.03
  polaris compare model-f16.gguf model-q4.gguf --data text.txt --activations f32 --chunks 20 --json

Graphs: outputs are compared in their order. The cosine is that of all elements as one vector; SQNR is the ratio of A's power to that
of the difference, in decibels (infinite when they are equal).
Language models (GGUF): both predict the text, cut into chunks as llama-perplexity does it; of each token's distribution the KL divergence
of B's from A's is taken. Speeds are those of prompts of --speed-prompt tokens and of as many decoded as --speed-decode says.
A threshold that is missed ends the command with exit code 3.";

/// Compare two models, or one on two devices: errors, perplexity, KL divergence, speed, size
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Model file (.onnx), or language model (.gguf)
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The model to compare it with [default: A]
    #[arg(value_name = "B")]
    b: Option<PathBuf>,
    #[command(flatten)]
    inputs: Inputs,
    /// What runs B [default: as --device]
    #[arg(long, value_name = "DEVICE", help_heading = "Computing")]
    other_device: Option<Device>,
    /// Graphs: runs that the latency is measured with [default: 5]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    #[command(flatten)]
    language: LanguageModels,
    #[command(flatten)]
    thresholds: Thresholds,
    /// Print one JSON object: outputs and latency of both; or comparison, a, b; and thresholds
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: GraphCompute,
}

/// What only language models have.
#[derive(Debug, Args)]
#[command(next_help_heading = "Language models")]
struct LanguageModels {
    /// The text that both predict, '-' for standard input
    #[arg(long, value_name = "TEXT")]
    data: Option<PathBuf>,
    /// Tokens of a chunk; the second half of each is compared [default: 512]
    #[arg(long, visible_alias = "context", value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    ctx: Option<u32>,
    /// Compare the first N chunks only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Element type of the KV cache [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = model::kv_dtype())]
    kv_dtype: Option<KvDType>,
    /// Tokens of the prompt that the speed is measured with; 0 leaves it out [default: 256]
    #[arg(long, value_name = "N")]
    speed_prompt: Option<u32>,
    /// Tokens that are decoded to measure the speed; 0 leaves it out [default: 32]
    #[arg(long, value_name = "N")]
    speed_decode: Option<u32>,
}

impl LanguageModels {
    /// An option that is given.
    fn given(&self) -> Option<&'static str> {
        let given = [
            ("--ctx", self.ctx.is_some()),
            ("--chunks", self.chunks.is_some()),
            ("--kv-dtype", self.kv_dtype.is_some()),
            ("--speed-prompt", self.speed_prompt.is_some()),
            ("--speed-decode", self.speed_decode.is_some()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    fn context(&self) -> u32 {
        self.ctx.unwrap_or(512)
    }

    fn prompt(&self) -> u32 {
        self.speed_prompt.unwrap_or(256)
    }

    fn decoded(&self) -> u32 {
        self.speed_decode.unwrap_or(32)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.b.is_none() && arguments.other_device.is_none() {
        return Err(Failure::Usage("give a second model, or --other-device".into()));
    }
    let language = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let b = arguments.b.as_deref().unwrap_or(&arguments.a);
    match (language(&arguments.a), language(b)) {
        (true, true) => {
            let runs = arguments.runs.map(|_| "--runs");
            let unoptimized = arguments.compute.unoptimized().then_some("--no-optimize");
            if let Some(name) = arguments.inputs.given().or(runs).or(unoptimized) {
                return Err(Failure::Usage(format!("{name} is for graphs; language models (.gguf) take --data")));
            }
            language::run(arguments, b)
        }
        (false, false) => {
            if arguments.language.data.is_some() {
                return Err(Failure::Usage("--data is for language models (.gguf); graphs take --input".into()));
            }
            if let Some(name) = arguments.thresholds.of_language_models().or_else(|| arguments.language.given()) {
                return Err(Failure::Usage(format!("{name} is for language models (.gguf)")));
            }
            graphs::run(arguments)
        }
        _ => Err(Failure::Usage("a language model (.gguf) cannot be compared with a graph".into())),
    }
}
