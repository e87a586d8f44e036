//! Texts to vectors.

use std::path::Path;

use serde::Serialize;

use super::encoder::Encoder;
use super::graph::name;
use super::options::{BertOptions, TextProgress};
use super::pooling::{Pooling, normalize};
use super::tokens::Text;
use crate::Error;
use crate::llama::LoadProgress;

/// What becomes of the hidden states; `None` takes what the model's files say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How the vectors of a text's tokens become one; the mean where no file says.
    pub pooling: Option<Pooling>,
    /// Whether vectors are brought to length 1; they are where no file says.
    pub normalize: Option<bool>,
}

/// A sentence embedder: MiniLM and other encoders of sentence-transformers, or any other model of the family.
///
/// Of a graph with an output `sentence_embedding` this is taken as it is; else the hidden states are pooled here.
#[derive(Debug)]
pub struct TextEmbedder {
    encoder: Encoder,
    /// Number of the output, and how it is pooled; `None`: it is pooled already.
    pooling: Option<Pooling>,
    normalize: bool,
}

/// The vectors of texts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Embeddings {
    /// One vector per text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each text, with those that were added.
    pub tokens: Vec<usize>,
    /// Texts that were too long and were cut, by their numbers.
    pub truncated: Vec<usize>,
}

const POOLED: [&str; 1] = [name::SENTENCE_EMBEDDING];
const HIDDEN: [&str; 2] = [name::LAST_HIDDEN_STATE, name::TOKEN_EMBEDDINGS];

impl TextEmbedder {
    /// Opens a model (see [`Encoder::open`]).
    ///
    /// # Errors
    /// As [`Encoder::open`]; also when the model has no hidden states to give.
    pub fn open(
        path: impl AsRef<Path>,
        options: &BertOptions,
        embed: &EmbedOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<TextEmbedder, Error> {
        TextEmbedder::new(Encoder::open(path, options, progress)?, embed)
    }

    /// An embedder of an encoder that is open already.
    ///
    /// # Errors
    /// When the encoder has no hidden states to give.
    pub fn new(encoder: Encoder, embed: &EmbedOptions) -> Result<TextEmbedder, Error> {
        let modules = encoder.modules();
        let pooled = encoder.output(&POOLED).is_some_and(|output| output.rank == 2);
        let hidden = encoder.output(&HIDDEN).is_some_and(|output| output.rank == 3);
        let pooling = match (pooled, hidden) {
            (true, false) if embed.pooling.is_some() => return Err(encoder.lacks(HIDDEN[0])),
            // Who asks for another pooling gets it where the hidden states are there, too.
            (true, _) if embed.pooling.is_none() => None,
            (_, true) => Some(embed.pooling.or(modules.pooling).unwrap_or_default()),
            _ => return Err(encoder.lacks(&format!("{} or {}", HIDDEN[0], POOLED[0]))),
        };
        let normalize = embed.normalize.or(modules.normalize).unwrap_or(true);
        Ok(TextEmbedder { encoder, pooling, normalize })
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// How tokens are pooled; `None` if the graph does that itself.
    #[must_use]
    pub fn pooling(&self) -> Option<Pooling> {
        self.pooling
    }

    /// Whether vectors are brought to length 1.
    #[must_use]
    pub fn normalizes(&self) -> bool {
        self.normalize
    }

    /// The vectors of texts, evaluated in batches of similar length.
    ///
    /// # Errors
    /// When the tokenizer or the backend fails, or `progress` breaks.
    pub fn embed<'a, T: Copy + Into<Text<'a>>>(
        &self,
        texts: &[T],
        progress: &mut TextProgress<'_>,
    ) -> Result<Embeddings, Error> {
        let texts: Vec<Text<'_>> = texts.iter().map(|text| (*text).into()).collect();
        let tokens = self.encoder.tokenize(&texts)?;
        let names: &[&str] = if self.pooling.is_some() { &HIDDEN } else { &POOLED };
        let output = self.encoder.output(names).ok_or_else(|| self.encoder.lacks(names[0]))?;
        let mut vectors = vec![Vec::new(); texts.len()];
        self.encoder.run(&tokens, output, progress, &mut |text, values, width| {
            let mut vector = self.pooling.map_or_else(|| values.to_vec(), |pooling| pooling.pool(values, width));
            if self.normalize {
                normalize(&mut vector);
            }
            if let Some(place) = vectors.get_mut(text) {
                *place = vector;
            }
            Ok(())
        })?;
        Ok(Embeddings {
            vectors,
            truncated: tokens.iter().enumerate().filter(|(_, tokens)| tokens.truncated).map(|(text, _)| text).collect(),
            tokens: tokens.iter().map(|tokens| tokens.ids.len()).collect(),
        })
    }
}
