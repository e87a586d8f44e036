//! Choosing the next token, and knowing when to stop.
//!
//! The rules, their definitions and their order are those of llama.cpp: penalties, top-k, typical,
//! top-p, min-p, temperature, and a draw from what remains. At temperature 0 the most probable
//! token is taken and the rules in between have no say, since none of them ever drops it.
//!
//! ```
//! use models::sampler::{Sampler, SamplerOptions};
//!
//! let mut sampler = Sampler::new(SamplerOptions { temperature: 0.0, ..SamplerOptions::default() })?;
//! assert_eq!(sampler.sample(&[0.5, 2.0, -1.0, 2.0], &[])?, 1);
//! # Ok::<(), models::sampler::SamplerError>(())
//! ```

mod candidates;
mod random;
mod stop;

pub use stop::{StopMatcher, Stopped};

use candidates::Candidates;
use random::Random;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw: below 1 the likely tokens become more likely. 0 takes the
    /// most probable token.
    pub temperature: f32,
    /// Keeps this many tokens of the highest logits; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens until their probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens of the most ordinary information content until their probabilities add up
    /// to more than this; 1 keeps all.
    pub typical_p: f32,
    /// Divides the positive and multiplies the negative logits of recent tokens; 1 leaves them.
    pub repetition_penalty: f32,
    /// Is subtracted from the logits of recent tokens.
    pub presence_penalty: f32,
    /// Is subtracted from the logits of recent tokens for each time that they occur.
    pub frequency_penalty: f32,
    /// How many of the last tokens count as recent; `usize::MAX` for all.
    pub penalty_last_n: usize,
    /// The same seed, options and logits give the same tokens, on every platform.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// llama.cpp's: temperature 0.8, the best 40, top-p 0.95, min-p 0.05, no penalties (over 64
    /// tokens). The seed is 0.
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the most probable token.
    pub fn greedy() -> SamplerOptions {
        SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }
    }

    /// Checks that every option has a meaning.
    ///
    /// # Errors
    /// [`SamplerError::Option`] with the first one that has none.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let not_negative = |value: f32| value.is_finite() && value >= 0.0;
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let checks = [
            ("temperature", self.temperature, not_negative(self.temperature), "a number from 0"),
            ("top-p", self.top_p, share(self.top_p), "a number from 0 to 1"),
            ("min-p", self.min_p, share(self.min_p), "a number from 0 to 1"),
            ("typical-p", self.typical_p, share(self.typical_p), "a number from 0 to 1"),
            (
                "repetition penalty",
                self.repetition_penalty,
                self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0,
                "a number above 0",
            ),
            ("presence penalty", self.presence_penalty, self.presence_penalty.is_finite(), "a number"),
            ("frequency penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "a number"),
        ];
        match checks.into_iter().find(|(_, _, good, _)| !good) {
            None => Ok(()),
            Some((name, value, _, expected)) => Err(SamplerError::Option { name, value, expected }),
        }
    }

    /// Whether what is sampled depends on the `n` highest logits alone.
    #[must_use]
    pub fn needs_at_most(&self, n: usize) -> bool {
        !self.penalizes() && (self.temperature == 0.0 || (1..=n).contains(&self.top_k))
    }

    fn penalizes(&self) -> bool {
        let neutral = self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0;
        !neutral && self.penalty_last_n > 0
    }
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// An option has a value without meaning.
    #[error("{name} is {value}, but must be {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// None of the logits is a number above minus infinity.
    #[error("the model gave no token a chance: none of its {logits} logits is a number above minus infinity")]
    NoCandidate {
        /// How many there are.
        logits: usize,
    },
}

/// Chooses tokens, one after the other. Holds its memory and its random numbers between calls.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: Random,
    candidates: Candidates,
    penalized: Vec<f32>,
    recent: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// [`SamplerError::Option`] if an option has no meaning.
    pub fn new(options: SamplerOptions) -> Result<Sampler, SamplerError> {
        options.validate()?;
        Ok(Sampler {
            random: Random::new(options.seed),
            options,
            candidates: Candidates::default(),
            penalized: Vec::new(),
            recent: Vec::new(),
        })
    }

    /// The options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses a token: an index into `logits`. `history` are all tokens so far, which only
    /// penalties look at. Of equally probable tokens, greedy choice takes the lowest id.
    ///
    /// Logits that are not numbers are never chosen.
    ///
    /// # Errors
    /// [`SamplerError::NoCandidate`] if no logit is a number above minus infinity.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplerError> {
        if self.options.temperature == 0.0 {
            let best = highest(self.penalize(logits, history));
            return best.ok_or(SamplerError::NoCandidate { logits: logits.len() });
        }
        self.narrow_down(logits, history)?;
        let (weights, total) = self.candidates.weights(self.options.temperature);
        let mut left = self.random.unit() * total;
        // Rounding may leave a rest after the last weight: then it is the last that has any.
        let last = weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        let chosen = weights[..last].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        Ok(self.candidates.items()[chosen.unwrap_or(last)].id)
    }

    /// The tokens that [`Sampler::sample`] would choose from, with their probabilities. Draws
    /// nothing.
    ///
    /// # Errors
    /// [`SamplerError::NoCandidate`] if no logit is a number above minus infinity.
    pub fn distribution(&mut self, logits: &[f32], history: &[u32]) -> Result<Vec<(u32, f32)>, SamplerError> {
        if self.options.temperature == 0.0 {
            let best = highest(self.penalize(logits, history));
            let best = best.ok_or(SamplerError::NoCandidate { logits: logits.len() })?;
            return Ok(vec![(best, 1.0)]);
        }
        self.narrow_down(logits, history)?;
        let (weights, total) = self.candidates.weights(self.options.temperature);
        let probabilities: Vec<f32> = weights.iter().map(|weight| (weight / total) as f32).collect();
        let ids = self.candidates.items().iter().map(|candidate| candidate.id);
        Ok(ids.zip(probabilities).collect())
    }

    /// Leaves at least one candidate.
    fn narrow_down(&mut self, logits: &[f32], history: &[u32]) -> Result<(), SamplerError> {
        let mut candidates = std::mem::take(&mut self.candidates);
        let top_k = self.options.top_k;
        candidates.fill(self.penalize(logits, history), top_k);
        candidates.keep_typical(self.options.typical_p);
        candidates.keep_top_p(self.options.top_p);
        candidates.keep_min_p(self.options.min_p);
        self.candidates = candidates;
        match self.candidates.items().is_empty() {
            true => Err(SamplerError::NoCandidate { logits: logits.len() }),
            false => Ok(()),
        }
    }

    /// `logits` with penalties; a copy only where there are any.
    fn penalize<'a>(&'a mut self, logits: &'a [f32], history: &[u32]) -> &'a [f32] {
        let options = &self.options;
        let recent = &history[history.len().saturating_sub(options.penalty_last_n)..];
        if !options.penalizes() || recent.is_empty() {
            return logits;
        }
        self.recent.clear();
        self.recent.extend_from_slice(recent);
        self.recent.sort_unstable();
        self.penalized.clear();
        self.penalized.extend_from_slice(logits);
        for same in self.recent.chunk_by(|a, b| a == b) {
            let Some(logit) = self.penalized.get_mut(same[0] as usize) else {
                continue;
            };
            match *logit > 0.0 {
                true => *logit /= options.repetition_penalty,
                false => *logit *= options.repetition_penalty,
            }
            *logit -= same.len() as f32 * options.frequency_penalty + options.presence_penalty;
        }
        &self.penalized
    }
}

/// The index of the first of the highest logits, if any is a number above minus infinity.
fn highest(logits: &[f32]) -> Option<u32> {
    // Independent lanes, which the compiler turns into vector instructions.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    let highest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let found = logits.iter().position(|logit| *logit == highest && highest > f32::NEG_INFINITY);
    found.and_then(|at| u32::try_from(at).ok())
}

#[cfg(test)]
mod tests;
