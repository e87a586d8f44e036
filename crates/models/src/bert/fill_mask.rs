//! The tokens that belong into the gaps of a text.

use std::path::Path;

use serde::Serialize;

use super::encoder::Encoder;
use super::graph::name;
use super::labels::Scores;
use super::options::{BertOptions, TextProgress};
use super::tokens::Text;
use crate::Error;
use crate::llama::LoadProgress;

/// A masked language model.
#[derive(Debug)]
pub struct FillMask {
    encoder: Encoder,
    mask: (u32, String),
}

/// A token for a gap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fill {
    /// The token's id.
    pub token: u32,
    /// The token as text.
    pub text: String,
    /// Its probability.
    pub score: f32,
    /// The whole text with it, as the tokenizer writes it.
    pub sequence: String,
}

impl FillMask {
    /// Opens a model (see [`Encoder::open`]).
    ///
    /// # Errors
    /// As [`Encoder::open`]; also when the model has no logits for its vocabulary, or no token for a gap.
    pub fn open(
        path: impl AsRef<Path>,
        options: &BertOptions,
        progress: &mut LoadProgress<'_>,
    ) -> Result<FillMask, Error> {
        // The logits of a batch would take much memory, and texts come one by one.
        let options = BertOptions { batch: 1, ..options.clone() };
        FillMask::new(Encoder::open(path, &options, progress)?)
    }

    /// Fills gaps with an encoder that is open already.
    ///
    /// # Errors
    /// When the encoder has no logits for its vocabulary, or its tokenizer no token for a gap.
    pub fn new(encoder: Encoder) -> Result<FillMask, Error> {
        if encoder.output(&[name::LOGITS]).is_none_or(|output| output.rank != 3) {
            return Err(encoder.lacks("logits [batch, tokens, vocabulary]"));
        }
        let mask = encoder.tokenizer().mask().map(|(id, name)| (id, name.to_owned()));
        let mask = mask.ok_or_else(|| super::files::unusable(encoder.tokenizer().path(), "no mask token".into()))?;
        Ok(FillMask { encoder, mask })
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// How a gap is written in a text: `[MASK]` or `<mask>`.
    #[must_use]
    pub fn mask(&self) -> &str {
        &self.mask.1
    }

    /// The `top` most probable tokens for each gap of a text, each gap for itself.
    ///
    /// # Errors
    /// [`Error::NoMask`] when there is no gap (or it was cut off); when the tokenizer or the backend fails, or `progress` breaks.
    pub fn fill(&self, text: &str, top: usize, progress: &mut TextProgress<'_>) -> Result<Vec<Vec<Fill>>, Error> {
        let tokens = self.encoder.tokenize(&[Text::from(text)])?;
        let output = self.encoder.output(&[name::LOGITS]).ok_or_else(|| self.encoder.lacks(name::LOGITS))?;
        let ids = tokens.first().map(|tokens| tokens.ids.clone()).unwrap_or_default();
        let gaps: Vec<usize> = ids.iter().enumerate().filter(|(_, id)| **id == self.mask.0).map(|(at, _)| at).collect();
        if gaps.is_empty() {
            let truncated = tokens.iter().any(|tokens| tokens.truncated);
            return Err(Error::NoMask { mask: self.mask.1.clone(), truncated });
        }
        let mut fills = Vec::with_capacity(gaps.len());
        self.encoder.run(&tokens, output, progress, &mut |_, logits, width| {
            for gap in &gaps {
                let Some(row) = logits.get(gap * width..(gap + 1) * width) else { continue };
                fills.push(self.best(row, &ids, *gap, top)?);
            }
            Ok(())
        })?;
        Ok(fills)
    }

    fn best(&self, logits: &[f32], ids: &[u32], gap: usize, top: usize) -> Result<Vec<Fill>, Error> {
        let mut scores = logits.to_vec();
        Scores::Softmax.apply(&mut scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let top = top.min(order.len());
        let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        if top > 0 && top < order.len() {
            order.select_nth_unstable_by(top - 1, better);
        }
        order.truncate(top);
        order.sort_by(better);
        order
            .into_iter()
            .map(|token| {
                let id = token as u32;
                let mut filled = ids.to_vec();
                filled[gap] = id;
                let tokenizer = self.encoder.tokenizer();
                Ok(Fill {
                    token: id,
                    text: tokenizer.decode(&[id])?,
                    score: scores[token],
                    sequence: tokenizer.decode(&filled)?,
                })
            })
            .collect()
    }
}
