//! `cargo xtask bench`: speed, start-up time and memory, beside a peer in the same run.

mod bandwidth;
mod llama_cpp;
mod measure;
mod models;
mod onnx;
mod peers;
mod quant;
mod random_llama;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::arguments::Arguments;
use crate::command;

use bandwidth::Bandwidth;
use measure::Load;
use models::BenchModel;
use peers::{LlamaCppBench, Polaris, Program, Speed, Start};
use report::{Comparison, Machine, Report};

pub(crate) const USAGE: &str = "cargo xtask bench llm [--against llama.cpp] [--quick] [OPTIONS]
cargo xtask bench gpu [--against llama.cpp] [--quick] [--device N] [OPTIONS]
cargo xtask bench onnx [--against onnxruntime] [--quick] [OPTIONS]
cargo xtask bench quant [--against llama-quantize] [--quick] [--mixed] [--as-is] [OPTIONS]
cargo xtask bench quant --prune|--graphs [OPTIONS]

gpu measures both programs on the same Vulkan device (by its number in `polaris devices`; 0), nothing moved to
the processor: smollm2-q4_0 and smollm2-q8_0, on a software device with 64 and 16 tokens.

  --against llama.cpp  measure llama.cpp, too, alternating with Polaris; it is built once, in the cache
  --quick              3 pairs of runs instead of 5, and one repetition in each instead of 2
  --pairs N            so many pairs of runs; when others use the machine, up to twice as many, and the
                       quietest count
  --models A,B         only these: smollm2-q4_1, smollm2-q4_0, smollm2-q8_0, smollm2-f16,
                       tinyllama-q4_0, tinyllama-q4_k (random weights in the shape of TinyLlama-1.1B)
  -t, --threads N      threads of both programs (2)
  --json FILE          also write the results as JSON lines
  --polaris FILE       this binary, not a fresh release build

Measured are prefill and decode (tokens/s; 512 and 128 tokens, for 1.1B 128 and 32), the time from
the start of the process to the first token of the answer, and the peak memory of these runs.

onnx measures the latency and the peak memory of ONNX models on the processor, with and without the optimizer,
and how far the outputs are from the peer's; its goals are printed below the table. Models, which are fetched or
made once, in the cache, together with pinned Python packages: minilm-f32-b1, minilm-f32-b8, minilm-opset13,
minilm-int8-b1, minilm-int8-b8 (MiniLM, 1 or 8 texts of 128 tokens; int8 also with --activations q8), bert-base,
resnet50, resnet50-bn, mobilenetv2, mobilenetv2-bn (random weights; bn: batch normalizations are not folded),
silero-vad, silero-vad-16k, magika, ocr-det, ocr-rec, ocr-cls. --quick measures 0.4 instead of 1 second in each of
3 instead of 5 processes.

quant measures what every type costs on SmolLM2-135M: size, perplexity, KL divergence, speed, and the time that it takes to quantize, with
importances and without; beside llama-quantize its result for the same type, and the goals. --types Q4_0,Q4_K_M: only these; --chunks N: chunks of
512 tokens (20; --quick 4); --mixed: also mixed models no larger than Q4_K_S and Q3_K_M, which takes minutes.
The model's channels are rescaled first, which leaves its function alone and takes its weights off the grid of Q4_1, which its only free file has;
--as-is: not so.
--prune: instead, what pruning costs and saves in every way there is: size, perplexity, KL divergence, speed beside the whole model's.
--graphs: the types of graphs on MiniLM instead: size, similarity and change of embeddings, latency, time.";

/// What to measure, and how often.
#[derive(Debug)]
struct Options {
    against: bool,
    pairs: usize,
    repetitions: usize,
    threads: usize,
    models: Vec<&'static BenchModel>,
    json: Option<PathBuf>,
    polaris: Option<PathBuf>,
    /// The Vulkan device.
    vulkan: Option<usize>,
}

/// What a graphics device is measured with.
const GPU_MODELS: &str = "smollm2-q4_0,smollm2-q8_0";

impl Options {
    fn parse(gpu: bool, mut arguments: Arguments) -> Result<Self, String> {
        let against = arguments.peer("llama.cpp")?;
        let quick = arguments.flag(&["--quick"]);
        let device = if gpu { arguments.number(&["--device"])? } else { None };
        let models = arguments.value(&["--models"])?.or_else(|| gpu.then(|| GPU_MODELS.to_owned()));
        let options = Self {
            against,
            pairs: arguments.count(&["--pairs"])?.unwrap_or(if quick { 3 } else { 5 }),
            repetitions: if quick { 1 } else { 2 },
            threads: arguments.count(&["--threads", "-t"])?.unwrap_or(2),
            models: models::named(models.as_deref())?,
            json: arguments.value(&["--json"])?.map(PathBuf::from),
            polaris: arguments.value(&["--polaris"])?.map(PathBuf::from),
            vulkan: gpu.then_some(device.unwrap_or(0)),
        };
        arguments.end()?;
        Ok(options)
    }
}

/// The subcommand.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    match arguments.subcommand().as_deref() {
        Some("llm") => language_models(&Options::parse(false, arguments)?),
        Some("gpu") => language_models(&Options::parse(true, arguments)?),
        Some("onnx") => onnx::main(arguments),
        Some("quant") => quant::main(arguments),
        Some(other) => Err(format!("no benchmark {other}; there are llm, gpu, onnx and quant")),
        None => Err(format!("which benchmark? Usage: {USAGE}")),
    }
}

/// More threads than cores would wait for each other.
fn enough_cores(threads: usize) -> Result<(), String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if threads > cores {
        return Err(format!("{threads} threads on {cores} cores would measure nothing"));
    }
    Ok(())
}

/// The binary that is given, or a fresh one.
fn polaris(given: Option<&Path>) -> Result<PathBuf, String> {
    match given {
        Some(path) => std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display())),
        None => command::build_polaris(),
    }
}

fn language_models(options: &Options) -> Result<(), String> {
    enough_cores(options.threads)?;
    let binary = polaris(options.polaris.as_deref())?;
    let polaris = Polaris { binary, threads: options.threads, vulkan: options.vulkan };
    // Requantizing needs llama.cpp's tool, whether it is measured or not.
    let llama_cpp = if options.against || options.models.iter().any(|model| model.needs_llama_cpp()) {
        Some(llama_cpp::build()?)
    } else {
        None
    };
    let peer = match &llama_cpp {
        Some(llama_cpp) if options.against => {
            let vulkan = options.vulkan;
            let programs = if vulkan.is_some() { llama_cpp::build_vulkan()? } else { llama_cpp.clone() };
            Some(LlamaCppBench { programs, threads: options.threads, vulkan })
        }
        _ => None,
    };

    let mut files = Vec::new();
    for model in &options.models {
        files.push(model.prepare(llama_cpp.as_ref())?);
    }

    let mut report = Report {
        machine: Machine::here(options.threads),
        pairs: options.pairs,
        repetitions: options.repetitions,
        bandwidth: Bandwidth::default(),
        comparisons: Vec::new(),
    };
    for (model, file) in options.models.iter().zip(&files) {
        measure::wait_for_quiet(QUIET);
        // Beside each model, since what a shared machine's memory gives changes with what others do.
        report.bandwidth.add(bandwidth::probe(options.threads)?);
        let comparison = compare(model, file, options, &polaris, peer.as_ref())?;
        report.comparisons.push(comparison);
    }

    print!("{}", report.to_text());
    if let Some(path) = &options.json {
        fs::write(path, report.to_json_lines()).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Share of the processors that others may take in a pair of runs that counts as quiet.
const QUIET: f64 = 0.05;

/// One run of each program, and how much others disturbed it.
#[derive(Debug)]
struct Pair {
    /// `None` where the system does not tell.
    foreign_share: Option<f64>,
    results: Vec<(&'static str, Speed, Start)>,
}

/// Runs the programs by turns on one model, until there are enough quiet pairs of runs or twice as many pairs as were
/// asked for; of these the quietest count. What is left out is chosen by what others did, never by the result.
fn compare(
    model: &BenchModel,
    file: &Path,
    options: &Options,
    polaris: &Polaris,
    peer: Option<&LlamaCppBench>,
) -> Result<Comparison, String> {
    let mut programs: Vec<&dyn Program> = vec![polaris];
    programs.extend(peer.map(|peer| peer as &dyn Program));
    let mut pairs: Vec<Pair> = Vec::new();
    let quiet =
        |pairs: &[Pair]| pairs.iter().filter(|pair| pair.foreign_share.is_none_or(|share| share <= QUIET)).count();
    while quiet(&pairs) < options.pairs && pairs.len() < 2 * options.pairs {
        measure::wait_for_quiet(QUIET);
        let pair = run_pair(model, file, options, &programs)?;
        let share = pair.foreign_share.map_or(String::new(), |share| format!(", others took {:.0} %", share * 100.0));
        eprintln!("{}: pair {}{share}", model.name, pairs.len() + 1);
        pairs.push(pair);
        // Every second pair is run in the other order, so that a machine that becomes faster or slower favours neither.
        programs.reverse();
    }
    pairs.sort_by(|a, b| a.foreign_share.unwrap_or(0.0).total_cmp(&b.foreign_share.unwrap_or(0.0)));
    pairs.truncate(options.pairs);

    let mut comparison = Comparison::new(model.name, file)?;
    comparison.noisy_pairs = pairs.len() - quiet(&pairs);
    for (name, speed, start) in pairs.iter().flat_map(|pair| &pair.results) {
        comparison.add_speed(name, speed);
        // Not measured on graphics devices.
        if options.vulkan.is_none() {
            comparison.add_start(name, start);
        }
    }
    Ok(comparison)
}

fn run_pair(model: &BenchModel, file: &Path, options: &Options, programs: &[&dyn Program]) -> Result<Pair, String> {
    let load = Load::start();
    let mut results = Vec::new();
    // A software driver takes seconds for what a card does in a blink.
    let (prefill, decode) = if options.vulkan.is_some() { (64, 16) } else { (model.prefill, model.decode) };
    for program in programs {
        let speed = program.speed(file, prefill, decode, options.repetitions)?;
        results.push((program.name(), speed, Start::default()));
    }
    for (program, (_, _, start)) in programs.iter().zip(&mut results).filter(|_| options.vulkan.is_none()) {
        *start = program.first_token(file)?;
    }
    Ok(Pair { foreign_share: load.foreign_share(), results })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Arguments {
        Arguments::new(text.split_whitespace().map(str::to_owned))
    }

    fn parse(text: &str) -> Result<Options, String> {
        let mut arguments = arguments(text);
        let gpu = arguments.subcommand().as_deref() == Some("gpu");
        Options::parse(gpu, arguments)
    }

    #[test]
    fn options_have_defaults_and_quick_makes_fewer_runs() {
        let options = parse("llm").unwrap();
        assert!(!options.against);
        assert_eq!((options.pairs, options.repetitions, options.threads), (5, 2, 2));
        assert_eq!(options.models.len(), models::ALL.len());
        let quick = parse("llm --against llama.cpp --quick --models smollm2-f16,tinyllama-q4_k").unwrap();
        assert!(quick.against);
        assert_eq!((quick.pairs, quick.repetitions), (3, 1));
        let names: Vec<_> = quick.models.iter().map(|model| model.name).collect();
        assert_eq!(names, ["smollm2-f16", "tinyllama-q4_k"]);
    }

    #[test]
    fn graphics_devices_have_models_and_a_device_of_their_own() {
        let gpu = parse("gpu --against llama.cpp --device 1").unwrap();
        assert_eq!(gpu.vulkan, Some(1));
        let names: Vec<_> = gpu.models.iter().map(|model| model.name).collect();
        assert_eq!(names, ["smollm2-q4_0", "smollm2-q8_0"]);
        assert_eq!(parse("gpu").unwrap().vulkan, Some(0));
        assert_eq!(parse("llm").unwrap().vulkan, None);
    }

    #[test]
    fn wrong_options_are_named() {
        assert!(main(arguments("")).unwrap_err().contains("which benchmark?"));
        assert!(main(arguments("vision")).unwrap_err().contains("no benchmark vision"));
        for (text, expected) in [
            ("gpu --device x", "--device"),
            ("llm --against mlx", "no peer mlx"),
            ("llm --models x", "no model x"),
            ("llm --fast", "unknown option --fast"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_usage_names_every_model() {
        for model in models::ALL {
            assert!(USAGE.contains(model.name), "{}", model.name);
        }
    }
}
