//! What was measured of each model, the goals, and both as a table and as JSON lines.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::super::report::{Machine, Range};
use super::models::{BenchModel, Family};
use super::programs::{Difference, Sample, Variant};

/// The samples of all programs on one model.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    model: &'static BenchModel,
    /// Of the pairs of runs that count, those in which others used the machine.
    pub(super) noisy_pairs: usize,
    /// For each pair of runs in turn.
    samples: BTreeMap<Variant, Vec<Sample>>,
    /// From the peer's outputs.
    differences: BTreeMap<Variant, Difference>,
    failures: Vec<(Variant, String)>,
}

/// Something to be reached, and whether it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Goal {
    what: &'static str,
    bound: Bound,
    /// Nothing where it could not be measured, which is not met.
    value: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(limit) => value <= limit,
            Bound::Below(limit) => value < limit,
            Bound::AtLeast(limit) => value >= limit,
        }
    }

    fn labels(self) -> (&'static str, f64) {
        match self {
            Bound::AtMost(limit) => ("<=", limit),
            Bound::Below(limit) => ("<", limit),
            Bound::AtLeast(limit) => (">=", limit),
        }
    }
}

impl Goal {
    pub(super) fn met(&self) -> bool {
        self.value.is_some_and(|value| self.bound.holds(value))
    }
}

impl Comparison {
    pub(super) fn new(model: &'static BenchModel) -> Self {
        Self { model, noisy_pairs: 0, samples: BTreeMap::new(), differences: BTreeMap::new(), failures: Vec::new() }
    }

    pub(super) fn add(&mut self, variant: Variant, sample: Sample) {
        self.samples.entry(variant).or_default().push(sample);
    }

    pub(super) fn add_difference(&mut self, variant: Variant, difference: Difference) {
        self.differences.insert(variant, difference);
    }

    pub(super) fn add_failure(&mut self, variant: Variant, error: String) {
        self.failures.push((variant, error));
    }

    pub(super) fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    fn of(&self, variant: Variant) -> &[Sample] {
        self.samples.get(&variant).map_or(&[], Vec::as_slice)
    }

    fn seconds(&self, variant: Variant) -> Vec<f64> {
        self.of(variant).iter().map(|sample| sample.seconds).collect()
    }

    fn memory(&self, variant: Variant) -> Vec<f64> {
        self.of(variant).iter().filter_map(|sample| sample.memory).map(|bytes| bytes as f64).collect()
    }

    /// Of the pairs of runs: the first's part of the second.
    fn ratios(first: &[f64], second: &[f64]) -> Option<Range> {
        let ratios: Vec<f64> = first.iter().zip(second).map(|(first, second)| first / second).collect();
        Range::of(&ratios)
    }

    /// Latency as a part of the peer's.
    fn of_peer(&self, variant: Variant) -> Option<Range> {
        Self::ratios(&self.seconds(variant), &self.seconds(Variant::OnnxRuntime))
    }

    fn memory_of_peer(&self, variant: Variant) -> Option<Range> {
        Self::ratios(&self.memory(variant), &self.memory(Variant::OnnxRuntime))
    }

    /// How many times faster the optimizer makes it.
    fn gain(&self) -> Option<Range> {
        Self::ratios(&self.seconds(Variant::PolarisUnoptimized), &self.seconds(Variant::Polaris))
    }

    /// What is to be reached on this model, beside the peer if there is one.
    fn goals(&self, beside_peer: bool) -> Vec<Goal> {
        let median = |range: Option<Range>| range.map(|range| range.median);
        let goal = |what, bound, value| Goal { what, bound, value };
        let mut goals = Vec::new();
        if beside_peer {
            let limit = if self.model.int8 { 0.8 } else { 0.9 };
            let latency = median(self.of_peer(Variant::Polaris));
            goals.push(goal("latency, of ONNX Runtime's", Bound::AtMost(limit), latency));
            let error = self.differences.get(&Variant::Polaris).map(|difference| difference.relative);
            goals.push(goal("difference of outputs", Bound::AtMost(1e-4), error));
            if self.model.int8 {
                let latency = median(self.of_peer(Variant::PolarisQ8));
                goals.push(goal("latency with 8-bit activations", Bound::AtMost(0.5), latency));
                let cosine = self.differences.get(&Variant::PolarisQ8).map(|difference| difference.cosine);
                goals.push(goal("cosine with 8-bit activations", Bound::AtLeast(0.999), cosine));
            }
            let memory = median(self.memory_of_peer(Variant::Polaris));
            goals.push(goal("peak memory, of ONNX Runtime's", Bound::Below(1.0), memory));
        }
        let gain = match self.model.family {
            Family::Transformer => Some(1.5),
            Family::ConvNet => Some(1.2),
            Family::Other => None,
        };
        if let Some(limit) = gain {
            goals.push(goal("gain by the optimizer", Bound::AtLeast(limit), median(self.gain())));
        }
        goals
    }
}

/// Everything that one call of the benchmark measured.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) pairs: usize,
    /// What the peer is, if there is one.
    pub(super) peer: Option<String>,
    pub(super) comparisons: Vec<Comparison>,
}

impl Report {
    /// The table, with what was compared above it and the goals below.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}, {} threads", self.machine.processor, self.machine.threads)?;
        if let Some(peer) = &self.peer {
            writeln!(out, "polaris against {peer}; its memory is told without the interpreter's")?;
        }
        writeln!(out, "{} processes of each program, by turns; median (lowest-highest)", self.pairs)?;
        for comparison in self.comparisons.iter().filter(|comparison| comparison.noisy_pairs > 0) {
            writeln!(
                out,
                "NOISY: others used the machine in {} of the {} runs with {}: run it again when it is quiet",
                comparison.noisy_pairs, self.pairs, comparison.model.name
            )?;
        }
        writeln!(
            out,
            "\n{:<15} {:<24} {:>22} {:>18} {:>9} {:>10} {:>9}",
            "model", "program", "latency, ms", "of onnxruntime's", "peak, MB", "difference", "cosine"
        )?;
        for comparison in &self.comparisons {
            comparison.write_rows(out)?;
        }
        writeln!(out, "\n{:<15} {:<32} {:>9} {:>9}", "model", "goal", "", "value")?;
        let (mut met, mut all) = (0, 0);
        for comparison in &self.comparisons {
            for goal in comparison.goals(self.peer.is_some()) {
                let (sign, limit) = goal.bound.labels();
                let value = goal.value.map_or("-".to_owned(), shown_value);
                let verdict = if goal.met() { "met" } else { "MISSED" };
                let bound = format!("{sign} {}", shown_value(limit));
                writeln!(out, "{:<15} {:<32} {bound:>9} {value:>9}  {verdict}", comparison.model.name, goal.what)?;
                met += usize::from(goal.met());
                all += 1;
            }
        }
        writeln!(out, "{met} of {all} goals are met")
    }

    /// One JSON object a line: the machine, every program on every model, then every goal. Units are SI: bytes, seconds.
    pub(super) fn to_json_lines(&self) -> String {
        let mut lines = vec![json!({"kind": "run", "processor": self.machine.processor,
            "threads": self.machine.threads, "pairs": self.pairs, "peer": self.peer})];
        for comparison in &self.comparisons {
            comparison.write_json(self.peer.is_some(), &mut lines);
        }
        lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n")
    }
}

/// Small numbers by their power of ten.
fn shown_value(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-2 {
        format!("{value:.0e}")
    } else {
        format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn range_json(samples: &[f64]) -> Value {
    Range::of(samples).map_or(
        Value::Null,
        |range| json!({"median": range.median, "min": range.low, "max": range.high, "samples": samples}),
    )
}

impl Comparison {
    /// The rows of the table, for whoever waits for the others.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_rows(&mut text);
        text
    }

    fn write_rows(&self, out: &mut String) -> std::fmt::Result {
        for variant in self.samples.keys().copied() {
            let latency = Range::of(&self.seconds(variant)).map_or(String::new(), |range| range.shown(1e3));
            let ratio = self.of_peer(variant).filter(|_| variant != Variant::OnnxRuntime);
            let ratio = ratio.map_or(String::new(), |range| range.shown(1.0));
            let memory =
                Range::of(&self.memory(variant)).map_or(String::new(), |range| format!("{:.1}", range.median / 1e6));
            let difference = self.differences.get(&variant);
            let error = difference.map_or(String::new(), |difference| shown_value(difference.relative));
            let cosine = difference.map_or(String::new(), |difference| format!("{:.6}", difference.cosine));
            let line = format!(
                "{:<15} {:<24} {latency:>22} {ratio:>18} {memory:>9} {error:>10} {cosine:>9}",
                self.model.name,
                variant.name()
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        for (variant, error) in &self.failures {
            writeln!(out, "{:<15} {:<24} FAILED: {}", self.model.name, variant.name(), error.replace('\n', "\n    "))?;
        }
        Ok(())
    }

    fn write_json(&self, beside_peer: bool, lines: &mut Vec<Value>) {
        let ratio = |range: Option<Range>| {
            range.map(|range| json!({"median": range.median, "min": range.low, "max": range.high}))
        };
        for (variant, samples) in &self.samples {
            let lowest: Vec<f64> = samples.iter().map(|sample| sample.lowest).collect();
            let difference = self.differences.get(variant);
            lines.push(json!({"kind": "model", "model": self.model.name, "program": variant.name(),
                "noisy_pairs": self.noisy_pairs,
                "latency_seconds": range_json(&self.seconds(*variant)),
                "lowest_latency_seconds": range_json(&lowest),
                "latency_of_onnxruntime": ratio(self.of_peer(*variant)),
                "peak_memory_bytes": range_json(&self.memory(*variant)),
                "max_relative_error": difference.map(|difference| difference.relative),
                "cosine": difference.map(|difference| difference.cosine)}));
        }
        for (variant, error) in &self.failures {
            lines.push(json!({"kind": "failure", "model": self.model.name, "program": variant.name(), "error": error}));
        }
        for goal in self.goals(beside_peer) {
            let (sign, limit) = goal.bound.labels();
            lines.push(json!({"kind": "goal", "model": self.model.name, "goal": goal.what, "bound": sign,
                "limit": limit, "value": goal.value, "met": goal.met()}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::models;
    use super::*;

    fn sample(milliseconds: f64, megabytes: u64) -> Sample {
        let seconds = milliseconds * 1e-3;
        Sample { seconds, lowest: seconds, memory: Some(megabytes * 1_000_000), outputs: Vec::new() }
    }

    fn comparison(name: &str) -> Comparison {
        let mut comparison = Comparison::new(models::named(Some(name)).unwrap()[0]);
        for (variant, samples) in [
            (Variant::OnnxRuntime, [10.0, 20.0, 12.0]),
            (Variant::Polaris, [8.0, 14.0, 6.0]),
            (Variant::PolarisUnoptimized, [16.0, 21.0, 12.0]),
        ] {
            samples.iter().for_each(|ms| {
                comparison.add(variant, sample(*ms, if variant == Variant::Polaris { 90 } else { 100 }))
            });
        }
        comparison.add_difference(Variant::Polaris, Difference { relative: 3e-6, cosine: 1.0 });
        comparison
    }

    fn goal<'a>(goals: &'a [Goal], what: &str) -> &'a Goal {
        goals.iter().find(|goal| goal.what.starts_with(what)).unwrap()
    }

    #[test]
    fn ratios_are_of_pairs_not_of_medians() {
        let comparison = comparison("bert-base");
        assert_eq!(comparison.of_peer(Variant::Polaris).map(|range| range.median), Some(0.7));
        assert_eq!(comparison.gain().map(|range| (range.low, range.median, range.high)), Some((1.5, 2.0, 2.0)));
    }

    #[test]
    fn goals_are_those_of_the_models_kind() {
        let goals = comparison("bert-base").goals(true);
        assert_eq!(goal(&goals, "latency, ").bound, Bound::AtMost(0.9));
        assert_eq!(goal(&goals, "gain").bound, Bound::AtLeast(1.5));
        assert!(goals.iter().all(Goal::met), "{goals:?}");
        let goals = comparison("resnet50").goals(true);
        assert_eq!(goal(&goals, "gain").bound, Bound::AtLeast(1.2));
        let goals = comparison("minilm-int8").goals(true);
        assert_eq!(goal(&goals, "latency, ").bound, Bound::AtMost(0.8));
        assert!(comparison("magika").goals(true).iter().all(|goal| !goal.what.starts_with("gain")));
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let goals = comparison("minilm-int8").goals(true);
        assert_eq!(goal(&goals, "latency with").value, None);
        assert!(!goal(&goals, "latency with").met() && !goal(&goals, "cosine").met());
        let alone = comparison("minilm-int8");
        assert_eq!(alone.goals(false).len(), 1);
    }

    #[test]
    fn equal_memory_is_not_below() {
        let mut comparison = comparison("bert-base");
        comparison
            .samples
            .entry(Variant::Polaris)
            .or_default()
            .iter_mut()
            .for_each(|sample| sample.memory = Some(100_000_000));
        assert!(!goal(&comparison.goals(true), "peak").met());
    }

    #[test]
    fn the_table_and_the_json_lines_say_what_failed_and_which_goals_are_met() {
        let mut failed = Comparison::new(models::named(Some("magika")).unwrap()[0]);
        failed.add_failure(Variant::Polaris, "no operator\nX".into());
        let machine = Machine { processor: "P".into(), threads: 2 };
        let mut comparisons = vec![comparison("bert-base"), failed];
        comparisons[0].noisy_pairs = 1;
        let report = Report { machine, pairs: 3, peer: Some("ONNX Runtime 1".into()), comparisons };
        let text = report.to_text();
        assert!(text.contains("NOISY: others used the machine in 1 of the 3 runs with bert-base"), "{text}");
        assert!(text.contains("8.00 (6.00-14.00)   0.70 (0.50-0.80)      90.0       3e-6  1.000000"), "{text}");
        assert!(
            text.contains("magika          latency, of ONNX Runtime's          <= 0.9         -  MISSED"),
            "{text}"
        );
        assert!(text.contains("FAILED: no operator\n    X"), "{text}");
        assert!(text.contains("4 of 7 goals are met"), "{text}");
        let lines: Vec<Value> =
            report.to_json_lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["kind"], "run");
        let gain = lines.iter().find(|line| line["goal"] == "gain by the optimizer").unwrap();
        assert_eq!((&gain["value"], &gain["met"]), (&json!(2.0), &json!(true)));
        assert!(lines.iter().any(|line| line["kind"] == "failure" && line["model"] == "magika"));
    }
}
