//! Two language models: what they predict, how fast they are, and what they take.

use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use core_tensor::FileAccess;
use models::backends::{Activations, BackendOptions, Device};
use models::llama::{Comparison, KvDType, Llama, LlamaOptions, PerplexityOptions, compare};
use serde::Serialize;

use super::Arguments;
use super::gate::{Gate, Thresholds};
use crate::bench::{self, Bench, Phase};
use crate::failure::Failure;
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::model::LoadBar;
use crate::output::{self, bytes, shown};

#[derive(Debug, Serialize)]
struct Report {
    comparison: Comparison,
    a: Model,
    b: Model,
    #[serde(flatten)]
    gate: Gate,
}

/// What a model takes, and how fast it is with the activations that commands use (q8).
#[derive(Debug, Serialize)]
struct Model {
    path: String,
    file_bytes: u64,
    device: String,
    prefill: Phase,
    decode: Phase,
    /// Weights, KV cache and working memory.
    memory_bytes: u64,
    /// The most memory that the process had while it ran this model alone; none where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

pub(super) fn run(arguments: &Arguments, b: &Path) -> Result<(), Failure> {
    let Some(data) = &arguments.language.data else {
        return Err(Failure::Usage("language models are compared on a text: give --data".into()));
    };
    let interrupt = Interrupt::install()?;
    let text = read_text(data)?;
    let _busy = interrupt.busy();
    let (a_device, b_device) = (None, arguments.other_device);
    let comparison = {
        let reference = open(arguments, &arguments.a, a_device, None, &interrupt)?;
        let model = open(arguments, b, b_device, None, &interrupt)?;
        let options = PerplexityOptions {
            context: arguments.language.context() as usize,
            chunks: arguments.language.chunks.map(|chunks| chunks as usize),
            ..PerplexityOptions::default()
        };
        compare(&reference, &model, &text, &options, &mut |done, total, sums| {
            output::note(&format!("chunk {done} of {total}: KL divergence {:.5}", sums.mean_divergence()));
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?
    };
    if interrupt.requested() {
        return Err(Failure::Interrupted);
    }
    let a = speed(arguments, &arguments.a, a_device, &interrupt)?;
    let b = speed(arguments, b, b_device, &interrupt)?;
    let gate = judge(&arguments.thresholds, &comparison);
    let report = Report { comparison, a, b, gate };
    let told = match arguments.json {
        true => output::write_json(&report),
        false => output::write(&as_text(&report)),
    };
    // That nobody reads it any more keeps no threshold.
    report.gate.result().and(told)
}

fn open(
    arguments: &Arguments,
    path: &Path,
    device: Option<Device>,
    activations: Option<Activations>,
    interrupt: &Interrupt,
) -> Result<Llama, Failure> {
    let backend = arguments.compute.backend();
    let positions = arguments.language.context().max(arguments.language.prompt()).max(arguments.language.decoded());
    let options = LlamaOptions {
        access: arguments.compute.access(),
        backend: BackendOptions {
            device: device.unwrap_or(backend.device),
            activations: activations.unwrap_or(backend.activations),
            ..backend
        },
        kv_dtype: arguments.language.kv_dtype.unwrap_or(KvDType::F16),
        context: Some(positions as usize),
        slots: 1,
    };
    let mut bar = LoadBar::new("loading");
    let model = Llama::open(path, &options, &mut |done, total| {
        bar.set(done, total);
        if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    Ok(model?)
}

/// The model alone in memory, run as the other commands run it.
fn speed(arguments: &Arguments, path: &Path, device: Option<Device>, interrupt: &Interrupt) -> Result<Model, Failure> {
    let peak_is_reset = reset_peak();
    let gguf = loader_gguf::Gguf::open(path, FileAccess::Map)?;
    let file_bytes = gguf.shards().map(|file| fs::metadata(file.path()).map_or(0, |data| data.len())).sum();
    drop(gguf);
    let model = open(arguments, path, device, Some(Activations::Q8), interrupt)?;
    let bench = Bench::new(&model, interrupt, 3);
    Ok(Model {
        path: path.display().to_string(),
        file_bytes,
        device: model.device(),
        prefill: bench.prefill(arguments.language.prompt() as usize)?,
        decode: bench.decode(arguments.language.decoded() as usize)?,
        memory_bytes: model.memory().estimate.total(),
        peak_memory_bytes: if peak_is_reset { bench::peak_memory() } else { None },
    })
}

/// Begins to count the peak of the memory anew, where the system can (Linux).
fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn judge(thresholds: &Thresholds, found: &Comparison) -> Gate {
    let mut gate = Gate::default();
    gate.at_most("kl", Some(found.divergence.mean), thresholds.max_kl);
    gate.at_most("perplexity_ratio", Some(found.perplexity_ratio), thresholds.max_ppl_ratio);
    gate.at_least("top1", Some(found.same_top), thresholds.min_top1);
    gate.at_least("cosine", Some(found.logits_cosine), thresholds.min_cosine);
    gate.at_least("sqnr_decibels", Some(found.logits_sqnr_decibels.unwrap_or(f64::INFINITY)), thresholds.min_sqnr);
    gate.at_most("max_error", Some(found.logits_maximum_error), thresholds.max_error);
    gate
}

fn as_text(report: &Report) -> String {
    let c = &report.comparison;
    let d = &c.divergence;
    let mut text = String::new();
    let sqnr = c.logits_sqnr_decibels.map_or("equal".to_owned(), |sqnr| format!("{sqnr:.2} dB"));
    let _ = writeln!(
        text,
        "{} tokens\nperplexity A   {:.4} ± {:.4}\nperplexity B   {:.4} ± {:.4}, {:.4} ± {:.4} times A's\n\
         KL divergence  mean {:.5} ± {:.5}, median {:.5}, 90 % {:.5}, 99 % {:.5}, max {:.5}\n\
         top token      the same for {:.2} % of the tokens\nΔp             rms {:.3} %, mean {:+.3} %\n\
         logits         cosine {:.7}, SQNR {sqnr}, largest error {:.4}\n",
        c.tokens,
        c.reference_perplexity,
        c.reference_standard_error,
        c.perplexity,
        c.standard_error,
        c.perplexity_ratio,
        c.perplexity_ratio_error,
        d.mean,
        d.standard_error,
        d.median,
        d.percentile_90,
        d.percentile_99,
        d.maximum,
        c.same_top * 100.0,
        c.delta_p_rms * 100.0,
        c.delta_p_mean * 100.0,
        c.logits_cosine,
        c.logits_maximum_error,
    );
    let _ = writeln!(text, "          size  prefill tokens/s  decode tokens/s    memory      peak");
    for (name, model) in [("A", &report.a), ("B", &report.b)] {
        let _ = writeln!(
            text,
            "{name} {:>12} {:>17} {:>16} {:>9} {:>9}  {}",
            bytes(model.file_bytes),
            rate(&model.prefill),
            rate(&model.decode),
            bytes(model.memory_bytes),
            model.peak_memory_bytes.map_or("-".to_owned(), bytes),
            shown(&model.path)
        );
    }
    let ratio = |a: f64, b: f64| if a > 0.0 && b > 0.0 { format!("{:.3}", b / a) } else { "-".to_owned() };
    let _ = writeln!(
        text,
        "B / A {:>8} {:>17} {:>16} {:>9}",
        ratio(report.a.file_bytes as f64, report.b.file_bytes as f64),
        ratio(report.a.prefill.tokens_per_second, report.b.prefill.tokens_per_second),
        ratio(report.a.decode.tokens_per_second, report.b.decode.tokens_per_second),
        ratio(report.a.memory_bytes as f64, report.b.memory_bytes as f64),
    );
    text + &report.gate.as_text()
}

fn rate(phase: &Phase) -> String {
    if phase.samples.is_empty() { "-".to_owned() } else { format!("{:.1}", phase.tokens_per_second) }
}
