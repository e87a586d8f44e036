//! Perplexity, by llama.cpp's procedure.

use serde::Serialize;

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
