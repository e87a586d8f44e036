//! Perplexity, by llama.cpp's procedure.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use super::{Llama, Row};
use crate::Error;
use crate::tokenizer::EncodeOptions;

/// How perplexity is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most; `None` takes all of the text.
    pub chunks: Option<usize>,
}

impl Default for PerplexityOptions {
    fn default() -> PerplexityOptions {
        PerplexityOptions { context: 512, chunks: None }
    }
}

/// A measured perplexity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks evaluated.
    pub chunks: usize,
    /// Tokens whose likelihood was counted.
    pub tokens_scored: usize,
    /// Tokens of the whole text.
    pub tokens: usize,
    /// The running estimate after each chunk.
    pub running: Vec<f64>,
    /// Seconds for all of it.
    pub seconds: f64,
}

/// The shortest chunk that scores a token.
const SHORTEST: usize = 4;

/// Sums of what was scored.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    count: usize,
    /// Negative log-likelihoods.
    sum: f64,
    squares: f64,
}

impl Score {
    fn add(&mut self, logits: &[f32], token: u32) {
        let nll = negative_log_likelihood(logits, token as usize);
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.count.max(1) as f64).exp()
    }

    /// Of the perplexity, from the variance of the likelihoods.
    fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let count = self.count as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        (variance / (count - 1.0)).sqrt() * self.perplexity()
    }
}

/// The text is cut into chunks of `context` tokens, each evaluated on its own and begun with the token that begins a text (in the place of
/// its first token) if the model wants one. Of each chunk the second half is scored: the tokens after position `context / 2`, each by the
/// logits before it. What remains behind the last whole chunk is left out.
///
/// Special tokens in the text are plain text, and a last newline is dropped, as llama.cpp does with a file.
pub(super) fn measure(
    model: &Llama,
    text: &str,
    options: &PerplexityOptions,
    on_chunk: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
) -> Result<Perplexity, Error> {
    let start = Instant::now();
    let context = options.context;
    if context < SHORTEST || context > model.context() {
        let reason = format!("chunks of {context} tokens; between {SHORTEST} and {} are possible", model.context());
        return Err(Error::Option { name: "context", reason });
    }
    if options.chunks == Some(0) {
        return Err(Error::Option { name: "chunks", reason: "there must be at least 1".into() });
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    let tokens = model.tokenize(text, EncodeOptions { add_special: true, parse_special: false });
    if tokens.len() / 2 < context {
        return Err(Error::TextTooShort { tokens: tokens.len(), needed: context.saturating_mul(2), context });
    }
    let chunks = (tokens.len() / context).min(options.chunks.unwrap_or(usize::MAX));
    let bos = if model.tokenizer().adds_bos() { model.tokenizer().bos() } else { None };
    let first = context / 2;
    let mut sequences = model.sequences(1)?;
    let mut score = Score::default();
    let mut running = Vec::with_capacity(chunks);
    for (number, chunk) in tokens.chunks_exact(context).take(chunks).enumerate() {
        sequences.truncate(0, 0)?;
        let row = |(position, token): (usize, &u32)| Row {
            slot: 0,
            token: if position == 0 { bos.unwrap_or(*token) } else { *token },
            logits: (first..context - 1).contains(&position),
        };
        let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
        let mut scored = chunk[first + 1..].iter();
        sequences.evaluate(&rows, &mut |logits| {
            if let Some(token) = scored.next() {
                score.add(logits, *token);
            }
            Ok(())
        })?;
        running.push(score.perplexity());
        if on_chunk(number + 1, chunks, score.perplexity()).is_break() {
            break;
        }
    }
    Ok(Perplexity {
        perplexity: score.perplexity(),
        standard_error: score.standard_error(),
        context,
        chunks: running.len(),
        tokens_scored: score.count,
        tokens: tokens.len(),
        running,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// `-ln softmax(logits)[token]`, summed in f64.
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit));
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    let logit = logits.get(token).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - f64::from(logit - max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likelihood_is_that_of_a_softmax() {
        let nll = negative_log_likelihood(&[1.0, 2.0, 3.0], 1);
        let sum = 1f64.exp() + 2f64.exp() + 3f64.exp();
        assert!((nll - (sum.ln() - 2.0)).abs() < 1e-6);
    }

    #[test]
    fn a_uniform_model_has_the_perplexity_of_its_vocabulary_and_no_error() {
        let mut score = Score::default();
        for token in 0..8 {
            score.add(&[0.5; 8], token);
        }
        assert!((score.perplexity() - 8.0).abs() < 1e-6);
        assert!(score.standard_error() < 1e-3);
    }
}
