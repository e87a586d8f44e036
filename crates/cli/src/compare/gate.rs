//! Thresholds that a comparison must keep, so that it can stand before a release.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use crate::failure::Failure;

/// What B may lose. Where one is missed, the command ends with exit code 3.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Thresholds {
    /// Language models: the largest mean KL divergence, in nats
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) max_kl: Option<f64>,
    /// Language models: the largest ratio of B's perplexity to A's
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) max_ppl_ratio: Option<f64>,
    /// Language models: the least share of tokens that both find the most probable (0.95)
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) min_top1: Option<f64>,
    /// The least cosine similarity of an output, or of the logits
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) min_cosine: Option<f64>,
    /// The least ratio of power to noise of an output, or of the logits, in decibels
    #[arg(long, value_name = "DB", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) min_sqnr: Option<f64>,
    /// The largest difference of two elements of an output, or of two logits
    #[arg(long, value_name = "X", help_heading = "Thresholds (exit code 3 where one is missed)")]
    pub(super) max_error: Option<f64>,
}

impl Thresholds {
    /// One that only language models have, if it is given.
    pub(super) fn of_language_models(&self) -> Option<&'static str> {
        let given = [("--max-kl", self.max_kl), ("--max-ppl-ratio", self.max_ppl_ratio), ("--min-top1", self.min_top1)];
        given.into_iter().find_map(|(name, value)| value.map(|_| name))
    }
}

/// A threshold and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Judged {
    what: &'static str,
    /// "<=" or ">=".
    bound: &'static str,
    threshold: f64,
    /// What was found; none where it is no number.
    found: Option<f64>,
    kept: bool,
}

/// The thresholds that were given, judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Gate {
    thresholds: Vec<Judged>,
}

impl Gate {
    pub(super) fn at_most(&mut self, what: &'static str, found: Option<f64>, threshold: Option<f64>) {
        self.judge(what, "<=", found, threshold, |found, threshold| found.is_finite() && found <= threshold);
    }

    pub(super) fn at_least(&mut self, what: &'static str, found: Option<f64>, threshold: Option<f64>) {
        self.judge(what, ">=", found, threshold, |found, threshold| found >= threshold);
    }

    /// What is no number keeps no threshold; neither does what was not there to be measured.
    fn judge(
        &mut self,
        what: &'static str,
        bound: &'static str,
        found: Option<f64>,
        threshold: Option<f64>,
        keeps: fn(f64, f64) -> bool,
    ) {
        if let Some(threshold) = threshold {
            let kept = found.is_some_and(|found| keeps(found, threshold));
            let found = found.filter(|found| found.is_finite());
            self.thresholds.push(Judged { what, bound, threshold, found, kept });
        }
    }

    /// A line for each threshold.
    pub(super) fn as_text(&self) -> String {
        let mut text = String::new();
        for judged in &self.thresholds {
            let Judged { what, bound, threshold, found, kept } = judged;
            let found = found.map_or("-".to_owned(), |found| format!("{found:.6}"));
            let verdict = if *kept { "met" } else { "MISSED" };
            let _ = writeln!(text, "threshold {what} {bound} {threshold}: {found}, {verdict}");
        }
        text
    }

    /// # Errors
    /// [`Failure::Threshold`] when one is not kept.
    pub(super) fn result(&self) -> Result<(), Failure> {
        let lost: Vec<&str> = self.thresholds.iter().filter(|judged| !judged.kept).map(|judged| judged.what).collect();
        match lost.is_empty() {
            true => Ok(()),
            false => Err(Failure::Threshold(format!("beyond the threshold: {}", lost.join(", ")))),
        }
    }
}

/// The larger; what is no number is larger than all.
pub(super) fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The lesser; what is no number is less than all.
pub(super) fn least(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_kept_up_to_its_value_and_not_by_what_is_no_number() {
        let mut gate = Gate::default();
        gate.at_most("kl", Some(0.02), Some(0.02));
        gate.at_least("cosine", Some(0.5), None);
        assert!(gate.result().is_ok());
        assert!(gate.as_text().contains("threshold kl <= 0.02: 0.020000, met"));
        gate.at_least("cosine", Some(0.98), Some(0.99));
        gate.at_most("error", Some(f64::NAN), Some(1.0));
        gate.at_most("nothing", None, Some(1.0));
        gate.at_most("infinite", Some(f64::INFINITY), Some(f64::INFINITY));
        let failure = gate.result().unwrap_err();
        assert_eq!(failure.exit_code(), 3);
        assert_eq!(failure.message(), Some("beyond the threshold: cosine, error, nothing, infinite"));
    }

    #[test]
    fn the_worst_of_several_is_what_is_no_number() {
        assert!(largest(f64::NAN, 1.0).is_nan() && least(1.0, f64::NAN).is_nan());
        assert_eq!((largest(1.0, 2.0), least(1.0, 2.0)), (2.0, 1.0));
    }
}
