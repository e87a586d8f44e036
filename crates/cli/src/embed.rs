//! `polaris embed`: texts to vectors.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use core_tensor::Tensor;
use models::bert::{EmbedOptions, Embeddings, Pooling, TextEmbedder};
use serde::Serialize;

use crate::encoder::{EncoderArguments, Texts, go_on, note_truncated};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::{npy, output};

const EXAMPLES: &str = "\
Examples:
  polaris embed -m all-MiniLM-L6-v2 -p 'The cat sits on the mat.' 'A feline is resting on a rug.' --json
  polaris embed -m model.onnx --file sentences.txt --npy sentences.npy
  polaris embed -m model.safetensors -p 'query: why is the sky blue' --pooling cls --no-normalize
  cut -f2 table.tsv | polaris embed -m all-MiniLM-L6-v2 --file - --npy column.npy

Without --json or --npy: one vector on each line, its numbers separated by spaces.
Pooling and normalization are what the model's own files say (modules.json, 1_Pooling/config.json), else the mean, normalized.";

/// Turn texts into embeddings with BERT and its kin: MiniLM, RoBERTa, XLM-R, DistilBERT
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    encoder: EncoderArguments,
    #[command(flatten)]
    texts: Texts,
    /// Print one JSON object: embeddings (one array per text), dimensions, tokens, truncated, pooling, normalized, timings
    #[arg(long)]
    json: bool,
    /// Write the embeddings to an .npy file, float32 [texts, dimensions]
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    npy: Option<PathBuf>,
    /// How the vectors of a text's tokens become one
    #[arg(long, value_name = "KIND", value_parser = pooling())]
    pooling: Option<Pooling>,
    /// Leave the vectors as long as they are
    #[arg(long)]
    no_normalize: bool,
    /// Bring the vectors to length 1, whatever the model's files say
    #[arg(long, conflicts_with = "no_normalize")]
    normalize: bool,
}

fn pooling() -> impl TypedValueParser<Value = Pooling> {
    let names = PossibleValuesParser::new(Pooling::ALL.iter().map(|(name, _)| *name));
    names.try_map(|name| {
        Pooling::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or("no such kind")
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    embeddings: &'a [Vec<f32>],
    dimensions: usize,
    tokens: &'a [usize],
    /// Numbers of the texts that were cut.
    truncated: &'a [usize],
    /// Nothing if the graph pools itself.
    pooling: Option<Pooling>,
    normalized: bool,
    timings: Timings,
}

#[derive(Serialize)]
struct Timings {
    load_seconds: f64,
    embed_seconds: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let texts = arguments.texts.read()?;
    let normalize = arguments.normalize || !arguments.no_normalize;
    let options = EmbedOptions {
        pooling: arguments.pooling,
        normalize: (arguments.normalize || arguments.no_normalize).then_some(normalize),
    };
    let embedder = arguments
        .encoder
        .open(&interrupt, |path, encoder, progress| TextEmbedder::open(path, encoder, &options, progress))?;
    let _busy = interrupt.busy();
    let start = Instant::now();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = embedder.embed(&texts, &mut |_, _| go_on(&interrupt))?;
    let embed_seconds = start.elapsed().as_secs_f64();
    let encoder = embedder.encoder();
    if arguments.json {
        return output::write_json(&Answer {
            dimensions: dimensions(&found),
            embeddings: &found.vectors,
            tokens: &found.tokens,
            truncated: &found.truncated,
            pooling: embedder.pooling(),
            normalized: embedder.normalizes(),
            timings: Timings { load_seconds: encoder.load_seconds(), embed_seconds },
        });
    }
    match &arguments.npy {
        Some(path) => {
            let shape = [found.vectors.len(), dimensions(&found)];
            let tensor = Tensor::from_slice(&shape, &found.vectors.concat()).map_err(models::Error::from)?;
            npy::write(path, &tensor)?;
        }
        None => output::write(&lines(&found.vectors))?,
    }
    note_truncated(found.truncated.len(), encoder.tokenizer());
    output::note(&format!(
        "loaded in {:.0} ms on {}\n{} texts, {} tokens in {:.0} ms",
        encoder.load_seconds() * 1e3,
        encoder.device(),
        texts.len(),
        found.tokens.iter().sum::<usize>(),
        embed_seconds * 1e3,
    ));
    Ok(())
}

fn dimensions(found: &Embeddings) -> usize {
    found.vectors.first().map_or(0, Vec::len)
}

fn lines(vectors: &[Vec<f32>]) -> String {
    let mut text = String::new();
    for vector in vectors {
        for (place, number) in vector.iter().enumerate() {
            let _ = write!(text, "{}{number}", if place == 0 { "" } else { " " });
        }
        text.push('\n');
    }
    text
}
