//! The figures of a benchmark: medians, ranges, ratios, as a table and as JSON lines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use core_tensor::FileAccess;
use loader_gguf::Gguf;
use serde_json::{Value, json};

use super::bandwidth::Bandwidth;
use super::measure::Memory;
use super::peers::{self, LLAMA_CPP, POLARIS, Speed, Start};

/// A quantity that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    Prefill,
    Decode,
    FirstToken,
    PeakSpeedRun,
    PeakFirstTokenRun,
    AnonymousFirstTokenRun,
}

impl Measure {
    /// Name in the table and in the JSON lines, and unit.
    fn labels(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Measure::Prefill => ("prefill", "prefill_tokens_per_second", "tokens/s"),
            Measure::Decode => ("decode", "decode_tokens_per_second", "tokens/s"),
            Measure::FirstToken => ("first token", "first_token_seconds", "ms"),
            Measure::PeakSpeedRun => ("peak memory, bench", "bench_peak_memory_bytes", "MB"),
            Measure::PeakFirstTokenRun => ("peak memory, start", "first_token_peak_memory_bytes", "MB"),
            Measure::AnonymousFirstTokenRun => ("  without file pages", "first_token_peak_anonymous_bytes", "MB"),
        }
    }

    /// From the unit of the samples to that of the table.
    fn scale(self) -> f64 {
        match self {
            Measure::Prefill | Measure::Decode => 1.0,
            Measure::FirstToken => 1e3,
            Measure::PeakSpeedRun | Measure::PeakFirstTokenRun | Measure::AnonymousFirstTokenRun => 1e-6,
        }
    }

    /// How many times better Polaris is: faster, sooner, smaller.
    fn ratio(self, polaris: f64, peer: f64) -> f64 {
        match self {
            Measure::Prefill | Measure::Decode => polaris / peer,
            _ => peer / polaris,
        }
    }
}

/// Median, lowest and highest of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Range {
    /// `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return None,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self { median, low: sorted[0], high: sorted[sorted.len() - 1] })
    }

    /// Median, lowest and highest in a unit that is `1 / scale` of the samples'.
    pub(crate) fn shown(self, scale: f64) -> String {
        let digits = if self.median * scale < 10.0 { 2 } else { 1 };
        let [median, low, high] = [self.median, self.low, self.high].map(|value| value * scale);
        format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
    }
}

/// The samples of both programs on one model.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    model: String,
    file_bytes: u64,
    /// Bytes of weights that generating a token reads.
    bytes_per_token: u64,
    /// Of the pairs of runs that count, those in which others used the machine.
    pub(crate) noisy_pairs: usize,
    /// For each pair of runs in turn, the run's median.
    samples: BTreeMap<(Measure, &'static str), Vec<f64>>,
}

impl Comparison {
    pub(crate) fn new(model: &str, file: &Path) -> Result<Self, String> {
        let describe = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let file_bytes = fs::metadata(file).map_err(|error| describe(&error))?.len();
        let gguf = Gguf::open(file, FileAccess::Map).map_err(|error| describe(&error))?;
        let total: usize = gguf.tensors().iter().map(|tensor| tensor.byte_len()).sum();
        // A token reads one row of the embedding, unless it is the output matrix, too.
        let embedding = gguf.tensor_info("token_embd.weight").filter(|_| gguf.tensor_info("output.weight").is_some());
        let unread = embedding.map_or(0, |tensor| tensor.byte_len());
        let bytes_per_token = (total - unread) as u64;
        Ok(Self { model: model.to_owned(), file_bytes, bytes_per_token, noisy_pairs: 0, samples: BTreeMap::new() })
    }

    fn add(&mut self, measure: Measure, program: &'static str, sample: Option<f64>) {
        if let Some(sample) = sample {
            self.samples.entry((measure, program)).or_default().push(sample);
        }
    }

    fn add_memory(&mut self, measure: Measure, program: &'static str, bytes: Option<u64>) {
        self.add(measure, program, bytes.map(|bytes| bytes as f64));
    }

    pub(crate) fn add_speed(&mut self, program: &'static str, speed: &Speed) {
        let median = |samples| Range::of(samples).map(|range| range.median);
        self.add(Measure::Prefill, program, median(&speed.prefill));
        self.add(Measure::Decode, program, median(&speed.decode));
        self.add_memory(Measure::PeakSpeedRun, program, speed.memory.resident);
    }

    pub(crate) fn add_start(&mut self, program: &'static str, start: &Start) {
        let Memory { resident, anonymous } = start.memory;
        self.add(Measure::FirstToken, program, Some(start.seconds));
        self.add_memory(Measure::PeakFirstTokenRun, program, resident);
        self.add_memory(Measure::AnonymousFirstTokenRun, program, anonymous);
    }

    fn of(&self, measure: Measure, program: &'static str) -> &[f64] {
        self.samples.get(&(measure, program)).map_or(&[], Vec::as_slice)
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measures: Vec<Measure> = self.samples.keys().map(|(measure, _)| *measure).collect();
        measures.dedup();
        measures
    }

    /// The ratio of each pair of runs.
    fn ratios(&self, measure: Measure) -> Option<Range> {
        let pairs = self.of(measure, POLARIS).iter().zip(self.of(measure, LLAMA_CPP));
        let ratios: Vec<f64> = pairs.map(|(polaris, peer)| measure.ratio(*polaris, *peer)).collect();
        Range::of(&ratios)
    }
}

/// Where it was measured.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) threads: usize,
}

impl Machine {
    pub(crate) fn here(threads: usize) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = name.map_or(std::env::consts::ARCH, |(_, name)| name).to_owned();
        Self { processor, threads }
    }
}

/// Everything that one call of the benchmark measured.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) pairs: usize,
    pub(crate) repetitions: usize,
    pub(crate) bandwidth: Bandwidth,
    pub(crate) comparisons: Vec<Comparison>,
}

impl Report {
    fn has_peer(&self) -> bool {
        self.comparisons.iter().any(|comparison| comparison.samples.keys().any(|(_, name)| *name == LLAMA_CPP))
    }

    /// The table, with what was compared and how often above it.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}, {} threads", self.machine.processor, self.machine.threads)?;
        if self.has_peer() {
            writeln!(out, "polaris against {}", peers::llama_cpp_description())?;
        }
        writeln!(
            out,
            "{} runs of each program, by turns, with {} after a warm-up in each; median (lowest-highest)",
            self.pairs,
            if self.repetitions == 1 { "1 repetition".to_owned() } else { format!("{} repetitions", self.repetitions) }
        )?;
        let bandwidth = Range::of(&self.bandwidth.samples);
        if let Some(range) = bandwidth {
            writeln!(out, "memory reads {} GB/s ({} MiB)", range.shown(1.0), self.bandwidth.bytes >> 20)?;
        }
        for comparison in self.comparisons.iter().filter(|comparison| comparison.noisy_pairs > 0) {
            writeln!(
                out,
                "NOISY: others used the machine in {} of the {} runs with {}: run it again when it is quiet",
                comparison.noisy_pairs, self.pairs, comparison.model
            )?;
        }
        writeln!(
            out,
            "\n{:<15} {:<20} {:<9} {:>24} {:>24}  polaris is better by",
            "model", "measure", "unit", POLARIS, LLAMA_CPP
        )?;
        for comparison in &self.comparisons {
            for measure in comparison.measures() {
                let shown = |program| {
                    let range = Range::of(comparison.of(measure, program));
                    range.map_or("-".to_owned(), |range| range.shown(measure.scale()))
                };
                let ratio = comparison.ratios(measure).map_or(String::new(), |range| format!("x {}", range.shown(1.0)));
                let (name, _, unit) = measure.labels();
                let line = format!(
                    "{:<15} {name:<20} {unit:<9} {:>24} {:>24}  {ratio}",
                    comparison.model,
                    shown(POLARIS),
                    shown(LLAMA_CPP)
                );
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        writeln!(out, "\nweights read by decode:")?;
        for comparison in &self.comparisons {
            write!(out, "{:<15} {:.1} MB a token:", comparison.model, comparison.bytes_per_token as f64 / 1e6)?;
            for program in [POLARIS, LLAMA_CPP] {
                if let Some(decode) = Range::of(comparison.of(Measure::Decode, program)) {
                    let rate = decode.median * comparison.bytes_per_token as f64 / 1e9;
                    write!(out, "  {program} {rate:.1} GB/s")?;
                    if let Some(bandwidth) = bandwidth {
                        write!(out, " ({:.0} % of what memory gives)", 100.0 * rate / bandwidth.median)?;
                    }
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// One JSON object a line: the machine, the bandwidth, then every measure of every model. Units are SI: bytes,
    /// seconds, tokens per second.
    pub(crate) fn to_json_lines(&self) -> String {
        let range = |samples: &[f64]| {
            Range::of(samples).map_or(
                Value::Null,
                |range| json!({"median": range.median, "min": range.low, "max": range.high, "samples": samples}),
            )
        };
        let mut lines = vec![
            json!({"kind": "run", "processor": self.machine.processor, "threads": self.machine.threads,
                "pairs": self.pairs, "repetitions": self.repetitions,
                "peer": self.has_peer().then(peers::llama_cpp_description)}),
            json!({"kind": "bandwidth", "bytes": self.bandwidth.bytes,
                "gigabytes_per_second": range(&self.bandwidth.samples)}),
        ];
        for comparison in &self.comparisons {
            for measure in comparison.measures() {
                let ratio = comparison.ratios(measure);
                lines.push(json!({"kind": "measure", "model": comparison.model, "measure": measure.labels().1,
                    "file_bytes": comparison.file_bytes, "weight_bytes_per_token": comparison.bytes_per_token,
                    "noisy_pairs": comparison.noisy_pairs,
                    "polaris": range(comparison.of(measure, POLARIS)),
                    "peer": range(comparison.of(measure, LLAMA_CPP)),
                    "better_by": ratio.map(|r| json!({"median": r.median, "min": r.low, "max": r.high}))}));
            }
        }
        lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut comparison = Comparison {
            model: "m".into(),
            file_bytes: 2_000_000,
            bytes_per_token: 1_000_000_000,
            noisy_pairs: 0,
            samples: BTreeMap::new(),
        };
        comparison.noisy_pairs = 1;
        let speeds = [
            (POLARIS, 20.0, 3_000_000),
            (LLAMA_CPP, 10.0, 6_000_000),
            (POLARIS, 24.0, 3_000_000),
            (LLAMA_CPP, 8.0, 6_000_000),
        ];
        for (program, decode, bytes) in speeds {
            let memory = Memory { resident: Some(bytes), anonymous: None };
            comparison.add_speed(program, &Speed { prefill: vec![1.0], decode: vec![decode], memory });
            comparison.add_start(program, &Start { seconds: 1.0 / decode, memory });
        }
        Report {
            machine: Machine { processor: "P".into(), threads: 2 },
            pairs: 2,
            repetitions: 1,
            bandwidth: Bandwidth { bytes: 1 << 30, samples: vec![40.0, 44.0, 42.0] },
            comparisons: vec![comparison],
        }
    }

    #[test]
    fn ranges_have_the_median_of_even_and_odd_counts() {
        assert_eq!(Range::of(&[]), None);
        assert_eq!(Range::of(&[3.0, 1.0, 2.0]), Some(Range { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Range::of(&[4.0, 1.0]).map(|range| range.median), Some(2.5));
    }

    #[test]
    fn ratios_are_of_pairs_and_above_one_when_polaris_is_better() {
        let report = report();
        let comparison = &report.comparisons[0];
        assert_eq!(comparison.ratios(Measure::Decode), Some(Range { median: 2.5, low: 2.0, high: 3.0 }));
        assert_eq!(comparison.ratios(Measure::FirstToken).map(|range| range.low), Some(2.0));
        assert_eq!(comparison.ratios(Measure::PeakSpeedRun).map(|range| range.high), Some(2.0));
        assert_eq!(comparison.ratios(Measure::AnonymousFirstTokenRun), None);
    }

    #[test]
    fn the_table_says_what_was_compared_and_that_the_machine_was_noisy() {
        let text = report().to_text();
        assert!(text.contains("2 runs of each program, by turns"), "{text}");
        assert!(text.contains("NOISY: others used the machine in 1 of the 2 runs with m"), "{text}");
        assert!(text.contains("22.0 (20.0-24.0)"), "{text}");
        assert!(text.contains("x 2.50 (2.00-3.00)"), "{text}");
        assert!(text.contains("polaris 22.0 GB/s (52 % of what memory gives)"), "{text}");
    }

    #[test]
    fn every_json_line_is_an_object_with_its_kind() {
        let text = report().to_json_lines();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["kind"], "run");
        assert_eq!(lines[1]["gigabytes_per_second"]["median"], 42.0);
        let decode = lines.iter().find(|line| line["measure"] == "decode_tokens_per_second").unwrap();
        assert_eq!(decode["better_by"]["median"], 2.5);
        assert_eq!(decode["polaris"]["samples"], json!([20.0, 24.0]));
    }
}
