//! How far the predictions of two models are apart: what quantization costs, token by token.
//!
//! Perplexity alone hides much: an error may help on one token and hurt on another. The Kullback-Leibler divergence of each
//! token's distribution from the reference's does not cancel out, and few tokens suffice for it.

use std::ops::ControlFlow;

use serde::Serialize;

use super::chunks::Chunks;
use super::perplexity::Score;
use super::{Llama, PerplexityOptions};
use crate::Error;

/// How far a model's predictions are from a reference's.
///
/// "Δp" is the difference (model less reference) of the probabilities of the text's own next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Tokens whose predictions were compared.
    pub tokens: usize,
    /// The reference's perplexity.
    pub reference_perplexity: f64,
    /// Its standard error.
    pub reference_standard_error: f64,
    /// The model's perplexity.
    pub perplexity: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// The model's perplexity by the reference's.
    pub perplexity_ratio: f64,
    /// The standard error of that, from token by token differences.
    pub perplexity_ratio_error: f64,
    /// Kullback-Leibler divergence of the model's distribution from the reference's, in nats.
    pub divergence: Divergence,
    /// Share of tokens that both find the most probable.
    pub same_top: f64,
    /// Root of the mean square of Δp.
    pub delta_p_rms: f64,
    /// Mean of Δp.
    pub delta_p_mean: f64,
    /// Cosine similarity of all logits as one vector.
    pub logits_cosine: f64,
    /// Power of the reference's logits to that of the difference, in decibels; none where there is no difference, and NaN where a
    /// difference is no number.
    pub logits_sqnr_decibels: Option<f64>,
    /// The largest difference of two logits; NaN where one is no number.
    pub logits_maximum_error: f64,
}

/// Divergences over tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// Mean.
    pub mean: f64,
    /// The mean's standard error.
    pub standard_error: f64,
    /// Half of the tokens have less.
    pub median: f64,
    /// Nine of ten have less.
    pub percentile_90: f64,
    /// 99 of a hundred have less.
    pub percentile_99: f64,
    /// The largest.
    pub maximum: f64,
}

/// Sums over tokens, for [`Comparison`].
#[derive(Clone, Debug, Default)]
pub struct ComparisonSums {
    reference: Score,
    model: Score,
    /// Differences of the likelihoods, and their squares.
    difference: f64,
    difference_squares: f64,
    divergences: Vec<f64>,
    same_top: usize,
    delta_p: f64,
    delta_p_squares: f64,
    /// Sums over logits: of the products, and of the squares of the difference.
    xx: f64,
    yy: f64,
    xy: f64,
    noise: f64,
    maximum: f64,
}

/// A distribution in logarithms: what is taken off a logit.
#[derive(Clone, Copy, Debug)]
struct Normalizer {
    max: f32,
    log_sum: f64,
    top: usize,
}

impl Normalizer {
    fn of(logits: &[f32]) -> Normalizer {
        let (mut top, mut max) = (0, f32::NEG_INFINITY);
        for (i, logit) in logits.iter().enumerate() {
            if *logit > max {
                (top, max) = (i, *logit);
            }
        }
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
        Normalizer { max, log_sum: sum.ln(), top }
    }

    /// Whether this is a distribution: among logits that are infinite or no numbers there is none.
    fn is_one(&self) -> bool {
        self.log_sum.is_finite()
    }

    /// The logarithm of a probability.
    fn log_p(&self, logit: f32) -> f64 {
        f64::from(logit - self.max) - self.log_sum
    }
}

impl ComparisonSums {
    /// A token: the reference's logits and the model's, as many as the vocabulary has, and what came next in the text.
    ///
    /// # Panics
    /// When there are not as many logits of one as of the other, or the token is not among them.
    pub fn add(&mut self, reference: &[f32], model: &[f32], token: u32) {
        assert_eq!(reference.len(), model.len(), "two vocabularies");
        let (p, q) = (Normalizer::of(reference), Normalizer::of(model));
        let (mut divergence, mut xx, mut yy, mut xy, mut noise, mut maximum) =
            (0.0, 0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f32);
        for (reference, model) in reference.chunks(256).zip(model.chunks(256)) {
            let (mut sums, mut most) = ([0.0f32; 4], 0.0f32);
            for (x, y) in reference.iter().zip(model) {
                sums[0] += x * x;
                sums[1] += y * y;
                sums[2] += x * y;
                sums[3] += (x - y) * (x - y);
                most = most.max((x - y).abs());
                // What never comes costs nothing, even where the model's probability is 0.
                let share = f64::from((x - p.max).exp());
                divergence += if share == 0.0 { 0.0 } else { share * (p.log_p(*x) - q.log_p(*y)) };
            }
            xx += f64::from(sums[0]);
            yy += f64::from(sums[1]);
            xy += f64::from(sums[2]);
            noise += f64::from(sums[3]);
            maximum = maximum.max(most);
        }
        self.xx += xx;
        self.yy += yy;
        self.xy += xy;
        self.noise += noise;
        // A maximum skips what is no number; a sum does not.
        let maximum = if noise.is_nan() { f64::NAN } else { f64::from(maximum) };
        self.maximum = if self.maximum.is_nan() || maximum.is_nan() { f64::NAN } else { self.maximum.max(maximum) };
        let divergence = divergence / p.log_sum.exp();
        // Rounding may leave a little less than nothing; predictions that are no numbers are infinitely far from all others.
        self.divergences.push(if divergence.is_nan() { f64::INFINITY } else { divergence.max(0.0) });
        self.same_top += usize::from(p.is_one() && q.is_one() && p.top == q.top);
        let (log_p, log_q) = (p.log_p(reference[token as usize]), q.log_p(model[token as usize]));
        self.reference.add(-log_p);
        self.model.add(-log_q);
        self.difference += log_p - log_q;
        self.difference_squares += (log_p - log_q) * (log_p - log_q);
        let delta = log_q.exp() - log_p.exp();
        self.delta_p += delta;
        self.delta_p_squares += delta * delta;
    }

    /// What the tokens up to now give.
    #[must_use]
    pub fn finish(&self) -> Comparison {
        let count = self.divergences.len();
        let n = count.max(1) as f64;
        let ratio = (self.difference / n).exp();
        Comparison {
            tokens: count,
            reference_perplexity: self.reference.perplexity(),
            reference_standard_error: self.reference.standard_error(),
            perplexity: self.model.perplexity(),
            standard_error: self.model.standard_error(),
            perplexity_ratio: ratio,
            perplexity_ratio_error: ratio * error_of_mean(self.difference, self.difference_squares, n),
            divergence: self.divergence(n),
            same_top: self.same_top as f64 / n,
            delta_p_rms: (self.delta_p_squares / n).sqrt(),
            delta_p_mean: self.delta_p / n,
            logits_cosine: match self.xx * self.yy {
                0.0 => f64::from(u8::from(self.xx == self.yy)),
                product => self.xy / product.sqrt(),
            },
            logits_sqnr_decibels: (self.noise != 0.0).then(|| 10.0 * (self.xx / self.noise).log10()),
            logits_maximum_error: self.maximum,
        }
    }

    /// The mean divergence up to now, in nats.
    #[must_use]
    pub fn mean_divergence(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.divergences.len().max(1) as f64
    }

    fn divergence(&self, n: f64) -> Divergence {
        let mut sorted = self.divergences.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            // Between the two neighbours, as statistics packages have it.
            let place = share * (sorted.len().max(1) - 1) as f64;
            let (low, part) = (place.floor() as usize, place.fract());
            let value = |i: usize| sorted.get(i).or(sorted.last()).copied().unwrap_or(0.0);
            let (from, to) = (value(low), value(low + 1));
            // Between infinities lies no number.
            if part == 0.0 || from == to { from } else { from + part * (to - from) }
        };
        let (sum, squares) = sorted.iter().fold((0.0, 0.0), |(sum, squares), d| (sum + d, squares + d * d));
        Divergence {
            mean: sum / n,
            standard_error: error_of_mean(sum, squares, n),
            median: at(0.5),
            percentile_90: at(0.9),
            percentile_99: at(0.99),
            maximum: at(1.0),
        }
    }
}

/// The standard error of a mean, from sums over `n`.
fn error_of_mean(sum: f64, squares: f64, n: f64) -> f64 {
    let mean = sum / n;
    if !mean.is_finite() {
        return f64::NAN;
    }
    ((squares / n - mean * mean).max(0.0) / (n - 1.0).max(1.0)).sqrt()
}

/// Compares a model's predictions with a reference's on a text, chunk by chunk as perplexity is measured. Both must have the
/// same vocabulary. `on_chunk` gets the chunks done, those in all, and what was found so far; `Break` stops there.
///
/// # Errors
/// When the vocabularies differ, the text has fewer than two chunks of tokens, the chunks do not fit a context, or a backend
/// fails.
pub fn compare(
    reference: &Llama,
    model: &Llama,
    text: &str,
    options: &PerplexityOptions,
    on_chunk: &mut dyn FnMut(usize, usize, &ComparisonSums) -> ControlFlow<()>,
) -> Result<Comparison, Error> {
    let chunks = Chunks::new(reference, text, options)?;
    let others = Chunks::new(model, text, options)?;
    let (width, other) = (reference.config().vocabulary, model.config().vocabulary);
    if width != other || !chunks.same_tokens(&others) {
        let reason = format!("the models have different vocabularies ({width} and {other} tokens)");
        return Err(Error::Option { name: "model", reason });
    }
    let (mut first, mut second) = (reference.sequences(1)?, model.sequences(1)?);
    let mut sums = ComparisonSums::default();
    let mut logits = Vec::new();
    for number in 0..chunks.count {
        let rows = chunks.rows(number);
        first.truncate(0, 0)?;
        second.truncate(0, 0)?;
        logits.clear();
        first.evaluate(&rows, &mut |row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        let mut known = logits.chunks_exact(width).zip(chunks.scored(number));
        second.evaluate(&rows, &mut |row| {
            if let Some((reference, token)) = known.next() {
                sums.add(reference, row, *token);
            }
            Ok(())
        })?;
        if on_chunk(number + 1, chunks.count, &sums).is_break() {
            break;
        }
    }
    Ok(sums.finish())
}

/// A reference's predictions on a text, kept to compare many models with.
#[derive(Clone, Debug)]
pub struct Reference {
    chunks: Chunks,
    width: usize,
    /// `[chunks][scored][vocabulary]`.
    logits: Vec<Vec<f32>>,
}

impl Reference {
    /// Evaluates the text. All logits that are scored stay in memory: half of the tokens times the vocabulary.
    ///
    /// # Errors
    /// When the text has fewer than two chunks of tokens, the chunks do not fit the context, or the backend fails.
    pub fn of(model: &Llama, text: &str, options: &PerplexityOptions) -> Result<Reference, Error> {
        let chunks = Chunks::new(model, text, options)?;
        let mut sequences = model.sequences(1)?;
        let mut all = Vec::with_capacity(chunks.count);
        for number in 0..chunks.count {
            let mut logits = Vec::new();
            sequences.truncate(0, 0)?;
            sequences.evaluate(&chunks.rows(number), &mut |row| {
                logits.extend_from_slice(row);
                Ok(())
            })?;
            all.push(logits);
        }
        Ok(Reference { chunks, width: model.config().vocabulary, logits: all })
    }

    /// Whether all predictions are numbers.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.logits.iter().flatten().all(|logit| logit.is_finite())
    }

    /// Compares a model with the same vocabulary.
    ///
    /// # Errors
    /// When the vocabulary is another, the chunks do not fit the context, or the backend fails.
    pub fn compare(&self, model: &Llama) -> Result<Comparison, Error> {
        if model.config().vocabulary != self.width || model.context() < self.chunks.context {
            let reason = "it has another vocabulary, or a shorter context".to_owned();
            return Err(Error::Option { name: "model", reason });
        }
        let mut sequences = model.sequences(1)?;
        let mut sums = ComparisonSums::default();
        for (number, logits) in self.logits.iter().enumerate() {
            let mut known = logits.chunks_exact(self.width).zip(self.chunks.scored(number));
            sequences.truncate(0, 0)?;
            sequences.evaluate(&self.chunks.rows(number), &mut |row| {
                if let Some((reference, token)) = known.next() {
                    sums.add(reference, row, *token);
                }
                Ok(())
            })?;
        }
        Ok(sums.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_predictions_are_no_distance_apart() {
        let mut sums = ComparisonSums::default();
        sums.add(&[1.0, 3.0, 2.0], &[1.0, 3.0, 2.0], 2);
        sums.add(&[0.5, -1.0, 2.0], &[0.5, -1.0, 2.0], 0);
        let found = sums.finish();
        assert_eq!((found.tokens, found.same_top, found.perplexity_ratio), (2, 1.0, 1.0));
        assert_eq!((found.divergence.maximum, found.delta_p_rms, found.logits_sqnr_decibels), (0.0, 0.0, None));
        assert!((found.logits_cosine - 1.0).abs() < 1e-12);
    }

    #[test]
    fn distances_are_those_of_the_definitions() {
        // Distributions (1/4, 3/4) and (1/2, 1/2), and the first in the other order.
        let three = 3f32.ln();
        let mut sums = ComparisonSums::default();
        sums.add(&[0.0, three], &[5.0, 5.0], 1);
        sums.add(&[three, 0.0], &[three + 1.0, 1.0], 1);
        let found = sums.finish();
        let kl = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((found.divergence.mean - kl / 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.divergence.median - kl / 2.0).abs() < 1e-6 && (found.divergence.maximum - kl).abs() < 1e-6);
        assert!((found.delta_p_mean + 0.125).abs() < 1e-6 && (found.delta_p_rms - 0.25 / 2f64.sqrt()).abs() < 1e-6);
        // exp of the mean of ln 3/4 − ln 1/2 and 0.
        assert!((found.perplexity_ratio - 1.5f64.sqrt()).abs() < 1e-6, "{found:?}");
        assert!((found.logits_maximum_error - 5.0).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_no_numbers_are_infinitely_far_away() {
        for wrong in [f32::NAN, f32::INFINITY] {
            for broken in [[1.0, wrong, 2.0], [wrong; 3]] {
                let mut sums = ComparisonSums::default();
                sums.add(&[1.0, 3.0, 2.0], &[1.0, 3.0, 2.0], 2);
                sums.add(&[1.0, 3.0, 2.0], &broken, 1);
                sums.add(&[1.0, 3.0, 2.0], &[1.0, 3.0, 2.0], 2);
                let found = sums.finish();
                assert_eq!((found.divergence.mean, found.divergence.maximum), (f64::INFINITY, f64::INFINITY));
                assert_eq!((found.divergence.median, sums.mean_divergence()), (0.0, f64::INFINITY));
                assert!(found.divergence.standard_error.is_nan() && found.perplexity.is_nan(), "{found:?}");
                assert!(!found.logits_maximum_error.is_finite() && found.logits_cosine.is_nan(), "{found:?}");
                assert!(found.logits_sqnr_decibels.is_some_and(|sqnr| !sqnr.is_finite()), "{found:?}");
                assert!((found.same_top - 2.0 / 3.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn tokens_that_both_rule_out_cost_nothing() {
        let mut sums = ComparisonSums::default();
        sums.add(&[0.0, 0.0, f32::NEG_INFINITY], &[0.0, 0.0, f32::NEG_INFINITY], 0);
        assert_eq!(sums.finish().divergence.mean, 0.0);
    }

    #[test]
    fn percentiles_lie_between_their_neighbours() {
        let sums =
            ComparisonSums { divergences: (0..=100).rev().map(f64::from).collect(), ..ComparisonSums::default() };
        let found = sums.divergence(101.0);
        assert_eq!((found.mean, found.median, found.percentile_90, found.percentile_99), (50.0, 50.0, 90.0, 99.0));
        assert_eq!(sums.mean_divergence(), 50.0);
    }
}
