//! `polaris bench`: how fast a model runs here.

use std::fs;
use std::time::Instant;

use clap::Args;
use models::llama::{Llama, MAX_ROWS, Row, Sequences};
use serde::Serialize;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::model::{self, Compute, ModelFile};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  polaris bench -m model.gguf
  polaris bench -m model.gguf -p 2048 -n 0 -t 4
  polaris bench -m model.gguf -r 5 --json | jq .decode.tokens_per_second

Prefill evaluates -p tokens from an empty context, in steps of up to 512, with logits for the last one. Decode evaluates
-n tokens from an empty context, one at a time, with logits for each. Both run once to warm up and then -r times; the
figures are medians. llama.cpp's llama-bench measures the same.";

/// Measure how fast a model runs: prefill and decode, in tokens per second
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prefill: u32,
    /// Tokens to decode; 0 leaves decode out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    decode: u32,
    /// How often each is measured
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Print one JSON object: model, threads, prefill, decode, load_seconds, peak_memory_bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

/// What was measured, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    threads: usize,
    prefill: Phase,
    decode: Phase,
    load_seconds: f64,
    /// The most memory that the process had at once; none where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

/// One kind of work.
#[derive(Debug, Serialize)]
pub(crate) struct Phase {
    tokens: usize,
    /// The median.
    pub(crate) tokens_per_second: f64,
    pub(crate) samples: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (prefill, decode) = (arguments.prefill as usize, arguments.decode as usize);
    if prefill == 0 && decode == 0 {
        return Err(Failure::Usage("-p 0 with -n 0 leaves nothing to measure".into()));
    }
    let interrupt = Interrupt::install()?;
    let context = arguments.prefill.max(arguments.decode);
    let model = model::open(&arguments.file, &arguments.compute, Some(context), &interrupt)?;
    let bench = Bench::new(&model, &interrupt, arguments.repetitions);
    let _busy = interrupt.busy();
    let measured = Measured {
        model: arguments.file.model.display().to_string(),
        threads: threads(&arguments.compute),
        prefill: bench.prefill(prefill)?,
        decode: bench.decode(decode)?,
        load_seconds: model.load_seconds(),
        peak_memory_bytes: peak_memory(),
    };
    if arguments.json {
        return output::write_json(&measured);
    }
    output::write(&as_text(&measured, &model.device()))
}

/// Measures a model's speed.
pub(crate) struct Bench<'a> {
    model: &'a Llama,
    interrupt: &'a Interrupt,
    repetitions: u32,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(model: &'a Llama, interrupt: &'a Interrupt, repetitions: u32) -> Bench<'a> {
        Bench { model, interrupt, repetitions }
    }

    /// A prompt of `count` tokens; nothing where there are none.
    pub(crate) fn prefill(&self, count: usize) -> Result<Phase, Failure> {
        self.phase(count, "prefill", |sequences| self.run_prompt(sequences, count))
    }

    /// `count` tokens one by one; nothing where there are none.
    pub(crate) fn decode(&self, count: usize) -> Result<Phase, Failure> {
        self.phase(count, "decode", |sequences| self.run_steps(sequences, count))
    }

    /// Runs some work of `tokens` tokens once to warm up (pages, caches, clocks), then as often as asked for.
    fn phase(
        &self,
        tokens: usize,
        name: &str,
        work: impl Fn(&mut Sequences<'_>) -> Result<(), Failure>,
    ) -> Result<Phase, Failure> {
        let mut samples = Vec::new();
        if tokens > 0 {
            let mut sequences = self.model.sequences(1)?;
            work(&mut sequences)?;
            for repetition in 1..=self.repetitions {
                sequences.truncate(0, 0).map_err(models::Error::from)?;
                let start = Instant::now();
                work(&mut sequences)?;
                let rate = tokens as f64 / start.elapsed().as_secs_f64();
                output::note(&format!("{name} {repetition} of {}: {rate:.1} tokens/s", self.repetitions));
                samples.push(rate);
            }
        }
        Ok(Phase { tokens, tokens_per_second: median(&samples), samples })
    }

    fn run_prompt(&self, sequences: &mut Sequences<'_>, count: usize) -> Result<(), Failure> {
        let rows: Vec<Row> =
            (0..count).map(|at| Row { slot: 0, token: self.token(at), logits: at + 1 == count }).collect();
        for step in rows.chunks(MAX_ROWS) {
            self.step(sequences, step)?;
        }
        Ok(())
    }

    fn run_steps(&self, sequences: &mut Sequences<'_>, count: usize) -> Result<(), Failure> {
        for at in 0..count {
            self.step(sequences, &[Row { slot: 0, token: self.token(at), logits: true }])?;
        }
        Ok(())
    }

    fn step(&self, sequences: &mut Sequences<'_>, rows: &[Row]) -> Result<(), Failure> {
        if self.interrupt.requested() {
            return Err(Failure::Interrupted);
        }
        // The logits are computed; nobody needs a copy.
        Ok(sequences.evaluate(rows, &mut |_| Ok(()))?)
    }

    /// Some token of the vocabulary, another one at each position (a multiplicative generator; which ones does not matter).
    fn token(&self, at: usize) -> u32 {
        let vocabulary = self.model.tokenizer().vocabulary_size().max(1) as u64;
        ((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33).checked_rem(vocabulary).unwrap_or(0) as u32
    }
}

fn threads(compute: &Compute) -> usize {
    match compute.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The middle of the samples, 0 if there are none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        (_, middle) => sorted[middle],
    }
}

/// The process's peak resident memory, from Linux's `/proc/self/status`.
pub(crate) fn peak_memory() -> Option<u64> {
    peak_from(&fs::read_to_string("/proc/self/status").ok()?)
}

fn peak_from(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn as_text(measured: &Measured, device: &str) -> String {
    let mut text = format!("{}\n{device}\n", measured.model);
    for (name, phase) in [("prefill", &measured.prefill), ("decode", &measured.decode)] {
        if phase.samples.is_empty() {
            continue;
        }
        let low = phase.samples.iter().copied().fold(f64::INFINITY, f64::min);
        let high = phase.samples.iter().copied().fold(0.0, f64::max);
        let (tokens, runs) = (phase.tokens, phase.samples.len());
        text += &format!(
            "{name:<8} {:>8.1} tokens/s  ({low:.1} to {high:.1}, {runs} runs of {tokens} tokens)\n",
            phase.tokens_per_second
        );
    }
    text += &format!("load     {:>8.0} ms\n", measured.load_seconds * 1e3);
    if let Some(peak) = measured.peak_memory_bytes {
        text += &format!("memory   {:>8} at most\n", output::bytes(peak));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }

    #[test]
    fn peak_memory_is_read_in_bytes() {
        assert_eq!(peak_from("Name:\tx\nVmHWM:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_from("Name:\tx\n"), None);
    }
}
