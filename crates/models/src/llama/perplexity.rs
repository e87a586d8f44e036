//! Perplexity, by llama.cpp's procedure.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use super::Llama;
use super::chunks::{Chunks, Picked};
use crate::Error;

/// How perplexity is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks at most; `None` takes all of the text.
    pub chunks: Option<usize>,
    /// Which they are.
    pub picked: Picked,
}

impl Default for PerplexityOptions {
    fn default() -> PerplexityOptions {
        PerplexityOptions { context: 512, chunks: None, picked: Picked::First }
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

/// Sums of what was scored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Score {
    pub(super) count: usize,
    /// Negative log-likelihoods.
    sum: f64,
    squares: f64,
}

impl Score {
    pub(super) fn add(&mut self, nll: f64) {
        self.count += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    pub(super) fn perplexity(&self) -> f64 {
        (self.sum / self.count.max(1) as f64).exp()
    }

    /// Of the perplexity, from the variance of the likelihoods.
    pub(super) fn standard_error(&self) -> f64 {
        if self.count < 2 {
            return 0.0;
        }
        let count = self.count as f64;
        let mean = self.sum / count;
        let variance = (self.squares / count - mean * mean).max(0.0);
        (variance / (count - 1.0)).sqrt() * self.perplexity()
    }
}

/// By the chunks of a text ([`Chunks`]).
pub(super) fn measure(
    model: &Llama,
    text: &str,
    options: &PerplexityOptions,
    on_chunk: &mut dyn FnMut(usize, usize, f64) -> ControlFlow<()>,
) -> Result<Perplexity, Error> {
    let start = Instant::now();
    let chunks = Chunks::new(model, text, options)?;
    let mut sequences = model.sequences(1)?;
    let mut score = Score::default();
    let mut running = Vec::with_capacity(chunks.count);
    for number in 0..chunks.count {
        sequences.truncate(0, 0)?;
        let mut scored = chunks.scored(number).iter();
        sequences.evaluate(&chunks.rows(number), &mut |logits| {
            if let Some(token) = scored.next() {
                score.add(negative_log_likelihood(logits, *token as usize));
            }
            Ok(())
        })?;
        running.push(score.perplexity());
        if on_chunk(number + 1, chunks.count, score.perplexity()).is_break() {
            break;
        }
    }
    Ok(Perplexity {
        perplexity: score.perplexity(),
        standard_error: score.standard_error(),
        context: chunks.context,
        chunks: running.len(),
        tokens_scored: score.count,
        tokens: chunks.tokens(),
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
            score.add(negative_log_likelihood(&[0.5; 8], token));
        }
        assert!((score.perplexity() - 8.0).abs() < 1e-6);
        assert!(score.standard_error() < 1e-3);
    }
}
