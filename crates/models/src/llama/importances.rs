//! Importances: sums of squares of the activations that meet each matrix, while a text runs through the model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use loader_gguf::Gguf;
use polaris_quant::{Importance, Importances};

use super::graph::build_tapped;
use super::pipeline::{LoadProgress, positions};
use super::{Llama, LlamaConfig, LlamaOptions, Row};
use crate::tokenizer::EncodeOptions;
use crate::{Error, backends};

/// How importances are collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportanceOptions {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most; `None` takes all of the text.
    pub chunks: Option<usize>,
    /// What the result calls the text (a path).
    pub dataset: String,
}

/// Runs a text through a model and sums the squares of what meets the matrices of its layers, as llama.cpp's llama-imatrix
/// does: chunks of `context` tokens, each begun with the token that begins a text if the model wants one; what remains
/// behind the last whole chunk is left out. The output matrix is not among them.
///
/// `progress` is told of the loading, `on_chunk` after each chunk how many are done and how many there are; `Break` stops
/// there, and what was collected until then comes back.
///
/// # Errors
/// As [`Llama::open`]; when the text has less than a chunk of tokens or the backend fails.
pub fn importances(
    path: &Path,
    options: &LlamaOptions,
    text: &str,
    collect: &ImportanceOptions,
    progress: &mut LoadProgress<'_>,
    on_chunk: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Importances, Error> {
    let context = collect.context;
    let options = LlamaOptions { context: Some(context), slots: 1, ..*options };
    let gguf = Gguf::open(path, options.access)?;
    let config = LlamaConfig::from_gguf(&gguf)?;
    let (graph, taps) = build_tapped(&config, &gguf, options.kv_dtype, positions(&config, &options)?)?;
    let opened = backends::open(&options.backend)?;
    let model = Llama::with_graph(&gguf, config, graph, &opened.backends, &options, progress)?;
    let tokens = model.tokenize(text, EncodeOptions { add_special: true, parse_special: false });
    let chunks = (tokens.len() / context).min(collect.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        return Err(Error::TextTooShort { tokens: tokens.len(), needed: context, context });
    }
    let bos = if model.tokenizer().adds_bos() { model.tokenizer().bos() } else { None };
    let outputs: Vec<usize> = taps.iter().map(|tap| tap.output).collect();
    let mut sums: Vec<Vec<f64>> = vec![Vec::new(); taps.len()];
    let mut sequences = model.sequences(1)?;
    let mut done = 0;
    for chunk in tokens.chunks_exact(context).take(chunks) {
        sequences.truncate(0, 0)?;
        let row = |(position, token): (usize, &u32)| Row {
            slot: 0,
            token: if position == 0 { bos.unwrap_or(*token) } else { *token },
            // Else the last layer would see some rows only.
            logits: true,
        };
        let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
        sequences.outputs(&rows, &outputs, &mut |step| {
            for (sums, more) in sums.iter_mut().zip(step) {
                let more = more.elements::<f32>()?;
                sums.resize(more.len(), 0.0);
                sums.iter_mut().zip(more.iter()).for_each(|(sum, more)| *sum += f64::from(*more));
            }
            Ok(())
        })?;
        done += 1;
        if on_chunk(done, chunks).is_break() {
            break;
        }
    }
    let mut entries = BTreeMap::new();
    for (tap, sums) in taps.into_iter().zip(sums) {
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        for name in tap.names {
            entries.insert(name, Importance { sums: sums.clone(), counts: vec![(done * context) as f32] });
        }
    }
    Ok(Importances {
        entries,
        datasets: vec![collect.dataset.clone()],
        chunks: done as u32,
        chunk_size: context as u32,
    })
}
