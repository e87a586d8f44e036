//! Stands in for the sampler's options until the sampler is there.

/// How the next token is chosen.
#[derive(Clone, Debug)]
pub struct SamplerOptions {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps that many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens of that share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens that are less likely than this share of the most likely one's; 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling; 1 keeps all.
    pub typical_p: f32,
    /// Divides logits of tokens that came up; 1 leaves them.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens that came up.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token came up.
    pub frequency_penalty: f32,
    /// Tokens that penalties look back on.
    pub penalty_window: usize,
    /// The random sequence; `None` takes another one each time.
    pub seed: Option<u64>,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: None,
        }
    }
}
