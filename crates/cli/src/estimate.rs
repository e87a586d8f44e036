//! `polaris estimate`: how fast a model will run on a card, and whether it fits, without the card.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use core_tensor::{BackendError, FileAccess};
use gpu_polaris::estimate::{Bound, Card, Check, Estimator, Kernel, Prediction, Quantity, figures_from, validate};
use loader_gguf::Gguf;
use models::llama::{self, KvDType, LlamaConfig, MAX_ROWS};
use serde::Serialize;

use crate::failure::Failure;
use crate::model;
use crate::output::{self, bytes};

const EXAMPLES: &str = "\
Examples:
  polaris estimate -m model.gguf
  polaris estimate -m model.gguf --device rx570 --memory 8 --context 8192 -v
  polaris estimate -m model.gguf --json | jq '.contexts[0].decode.tokens_per_second'
  polaris estimate --validate

No card, no driver and no weights are needed: nothing but the file's header is read. The figures are predictions; docs/ESTIMATE.md says how they
come about, and --validate how far the same arithmetic is off for llama.cpp, whose speed on two of these cards is known.";

/// Predict a model's speed and memory on a Radeon RX 470 to 590, without the card
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// GGUF file; of a model split over several files, any of them
    #[arg(short, long, value_name = "FILE", required_unless_present = "validate")]
    model: Option<PathBuf>,
    /// The card: rx470, rx480, rx570, rx580, rx580-2048sp or rx590
    #[arg(long, value_name = "CARD", default_value = "rx580", value_parser = card)]
    device: Card,
    /// The card's memory in GiB, where it is not that of the usual board
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u16).range(1..=64))]
    memory: Option<u16>,
    /// Positions of a sequence [default: several, up to what the model was trained with]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Element type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = model::kv_dtype())]
    kv_dtype: KvDType,
    /// Show each kernel's share
    #[arg(short, long)]
    verbose: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show how far the same arithmetic is off for llama.cpp, against what users measured
    #[arg(long, conflicts_with_all = ["model", "context", "memory", "verbose"])]
    validate: bool,
}

fn card(name: &str) -> Result<Card, String> {
    Card::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = Card::all().iter().map(|card| card.name).collect();
        format!("there are {}", known.join(", "))
    })
}

/// Context lengths that are shown, as far as the model was trained for them.
const CONTEXTS: [usize; 5] = [512, 2048, 4096, 8192, 32_768];

#[derive(Debug, Serialize)]
struct Estimate {
    model: String,
    device: Device,
    /// The compiler whose instructions were counted.
    figures_from: &'static str,
    contexts: Vec<Context>,
    /// Shaders without figures, for which a default stands.
    without_figures: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: &'static str,
    title: &'static str,
    compute_units: u32,
    base_mhz: f64,
    boost_mhz: f64,
    gigabytes_per_second: f64,
    memory_bytes: u64,
    /// What weights, states and intermediate results may take.
    usable_bytes: u64,
}

/// One context length.
#[derive(Debug, Serialize)]
pub(crate) struct Context {
    context: usize,
    weights_bytes: u64,
    pub(crate) states_bytes: u64,
    pub(crate) working_bytes: u64,
    total_bytes: u64,
    fits: bool,
    /// The last token of a full context.
    decode: Speed,
    /// A prompt from the beginning.
    prefill: Speed,
}

#[derive(Debug, Serialize)]
struct Speed {
    tokens: usize,
    tokens_per_second: f64,
    /// At the card's base clock.
    low: f64,
    /// At the card's boost clock.
    high: f64,
    seconds: f64,
    overhead_seconds: f64,
    dispatches: usize,
    barriers: usize,
    memory_traffic_bytes: u64,
    kernels: Vec<KernelShare>,
}

#[derive(Debug, Serialize)]
struct KernelShare {
    shader: String,
    dispatches: usize,
    seconds: f64,
    memory_traffic_bytes: u64,
    bound: &'static str,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.validate {
        let checks = validate();
        return match arguments.json {
            true => output::write_json(&checks.iter().map(Compared::new).collect::<Vec<_>>()),
            false => output::write(&comparison(&checks)),
        };
    }
    let Some(path) = &arguments.model else { return Err(Failure::Usage("--model is missing".into())) };
    let card = match arguments.memory {
        Some(gib) => arguments.device.with_memory(u64::from(gib) << 30),
        None => arguments.device,
    };
    let gguf = Gguf::open(path, FileAccess::Map)?;
    let config = LlamaConfig::from_gguf(&gguf)?;
    let contexts = match arguments.context {
        Some(context) => vec![context as usize],
        None => {
            let shorter = CONTEXTS.into_iter().filter(|context| *context < config.trained_context);
            shorter.chain([config.trained_context]).collect()
        }
    };
    let mut without_figures = Vec::new();
    let mut rows = Vec::new();
    for context in contexts {
        let (row, missing) = predict(card, &config, &gguf, arguments.kv_dtype, context)?;
        rows.push(row);
        without_figures.extend(missing);
    }
    without_figures.sort();
    without_figures.dedup();
    let estimate = Estimate {
        model: path.display().to_string(),
        device: Device {
            name: card.name,
            title: card.title,
            compute_units: card.compute_units,
            base_mhz: card.base_mhz,
            boost_mhz: card.boost_mhz,
            gigabytes_per_second: card.bandwidth,
            memory_bytes: card.memory,
            usable_bytes: card.usable(),
        },
        figures_from: figures_from(),
        contexts: rows,
        without_figures,
    };
    match arguments.json {
        true => output::write_json(&estimate),
        false => output::write(&as_text(&estimate, arguments.verbose)),
    }
}

/// One context length: speed and memory, and the shaders that have no figures.
pub(crate) fn predict(
    card: Card,
    config: &LlamaConfig,
    gguf: &Gguf,
    kv_dtype: KvDType,
    context: usize,
) -> Result<(Context, Vec<String>), Failure> {
    let failed = |error: BackendError| Failure::Runtime(format!("a context of {context} on {}: {error}", card.title));
    let graph = llama::build(config, gguf, kv_dtype, context)?;
    let (graph, _) = polaris_optimizer::optimize(graph).map_err(|error| Failure::Runtime(error.to_string()))?;
    let graph = Arc::new(graph);
    let estimator = Estimator::new(card, &graph).map_err(failed)?;
    // All outputs but the first, the logits: only candidates come back from a device.
    let estimator = match graph.outputs().len() {
        0 | 1 => estimator,
        count => estimator.with_outputs(&(1..count).collect::<Vec<_>>()),
    };
    let prompt = MAX_ROWS.min(context);
    let (one, many) = (llama::bounds(context, 1, 1), llama::bounds(context, prompt, 1));
    let decode = estimator.step(&one, 1, context - 1).map_err(failed)?;
    let prefill = estimator.step(&many, prompt, 0).map_err(failed)?;
    let memory = estimator.memory(&many, &[&decode, &prefill]).map_err(failed)?;
    let missing = decode.missing.iter().chain(&prefill.missing).cloned().collect();
    let row = Context {
        context,
        weights_bytes: memory.weights,
        states_bytes: memory.states,
        working_bytes: memory.working,
        total_bytes: memory.total(),
        fits: memory.total() <= card.usable(),
        decode: Speed::new(&decode, 1),
        prefill: Speed::new(&prefill, prompt),
    };
    Ok((row, missing))
}

impl Speed {
    fn new(step: &Prediction, tokens: usize) -> Speed {
        let speed = |seconds: f64| tokens as f64 / seconds;
        Speed {
            tokens,
            tokens_per_second: speed(step.seconds),
            low: speed(step.range.1),
            high: speed(step.range.0),
            seconds: step.seconds,
            overhead_seconds: step.overhead,
            dispatches: step.dispatches,
            barriers: step.barriers,
            memory_traffic_bytes: step.bytes as u64,
            kernels: step.kernels.iter().map(KernelShare::new).collect(),
        }
    }

    fn shown(&self) -> String {
        format!("{:.1} ({:.1} to {:.1})", self.tokens_per_second, self.low, self.high)
    }
}

impl KernelShare {
    fn new(kernel: &Kernel) -> KernelShare {
        KernelShare {
            shader: kernel.shader.clone(),
            dispatches: kernel.dispatches,
            seconds: kernel.seconds,
            memory_traffic_bytes: kernel.bytes as u64,
            bound: match kernel.bound {
                Bound::Memory => "memory",
                Bound::Vector => "vector units",
                Bound::Latency => "latency",
            },
        }
    }
}

fn as_text(estimate: &Estimate, verbose: bool) -> String {
    let Device { title, compute_units, base_mhz, boost_mhz, gigabytes_per_second, usable_bytes, .. } = &estimate.device;
    let mut text = format!(
        "{title}: {compute_units} compute units at {base_mhz:.0} to {boost_mhz:.0} MHz, {gigabytes_per_second:.0} GB/s, {} to use\n\n",
        bytes(*usable_bytes)
    );
    let _ = writeln!(
        text,
        "{:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {:<4}  {:<24}  prefill",
        "context", "weights", "KV cache", "working", "total", "fits", "decode, tokens/s"
    );
    for row in &estimate.contexts {
        let [weights, states, working, total] =
            [row.weights_bytes, row.states_bytes, row.working_bytes, row.total_bytes].map(bytes);
        let fits = if row.fits { "yes" } else { "no" };
        let (decode, prefill) = (row.decode.shown(), row.prefill.shown());
        let _ = writeln!(
            text,
            "{:>8}  {weights:>9}  {states:>9}  {working:>9}  {total:>9}  {fits:<4}  {decode:<24}  {prefill}",
            row.context
        );
    }
    text.push_str(
        "\nPredicted, not measured; in parentheses from the card's base clock to its boost clock. Decode: the last token of a full context.\n\
         Prefill: a prompt of 512 tokens, or of the context. `polaris estimate --validate` shows how far this may be off.\n",
    );
    if !estimate.without_figures.is_empty() {
        let _ = writeln!(text, "Without figures, a default stands for: {}", estimate.without_figures.join(", "));
    }
    if verbose {
        for row in &estimate.contexts {
            kernels(&mut text, &format!("a token at context {}", row.context), &row.decode);
        }
        if let Some(row) = estimate.contexts.last() {
            kernels(&mut text, &format!("a prompt of {} tokens", row.prefill.tokens), &row.prefill);
        }
    }
    text
}

fn kernels(text: &mut String, what: &str, speed: &Speed) {
    let _ = writeln!(
        text,
        "\n{what}: {:.2} ms, of them {:.2} ms for starting {} dispatches with {} barriers",
        speed.seconds * 1e3,
        speed.overhead_seconds * 1e3,
        speed.dispatches,
        speed.barriers
    );
    for kernel in &speed.kernels {
        let _ = writeln!(
            text,
            "  {:<28}  {:>5}  {:>10.3} ms  {:>10}  {}",
            kernel.shader,
            kernel.dispatches,
            kernel.seconds * 1e3,
            bytes(kernel.memory_traffic_bytes),
            kernel.bound
        );
    }
}

/// A comparison as JSON.
#[derive(Debug, Serialize)]
struct Compared {
    card: &'static str,
    what: &'static str,
    unit: &'static str,
    measured: f64,
    predicted: f64,
    low: f64,
    high: f64,
    error: f64,
    fitted: bool,
}

impl Compared {
    fn new(check: &Check) -> Compared {
        let unit = match check.quantity {
            Quantity::Decode => "decode, tokens/s",
            Quantity::Prefill => "prefill 512, tokens/s",
            Quantity::Kernel => "µs",
        };
        let Check { card, what, measured, predicted, range: (low, high), fitted, .. } = *check;
        Compared { card, what, unit, measured, predicted, low, high, error: check.error(), fitted }
    }
}

fn comparison(checks: &[Check]) -> String {
    let mut text = "llama.cpp, its shaders' instructions put into the same arithmetic\n\n".to_owned();
    for check in checks.iter().map(Compared::new) {
        let range =
            if check.low < check.high { format!("({:.1} to {:.1})", check.low, check.high) } else { String::new() };
        let fitted = if check.fitted { "  fitted to this" } else { "" };
        let _ = writeln!(
            text,
            "{:<14} {:<30} {:<22} measured {:>8.1}  predicted {:>8.1} {range:<18} {:>+6.1} %{fitted}",
            check.card,
            check.what,
            check.unit,
            check.measured,
            check.predicted,
            check.error * 100.0
        );
    }
    text.push_str(
        "\nIn parentheses from the card's base clock to its boost clock; the clocks that users' cards held in models are not known.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_are_not_known_are_answered_with_those_that_are() {
        assert_eq!(card("RX 480").map(|card| card.name), Ok("rx480"));
        assert!(card("gtx1080").is_err_and(|message| message.contains("rx470, rx480")));
    }

    #[test]
    fn the_comparison_says_which_measurements_constants_were_fitted_to() {
        let text = comparison(&validate());
        assert_eq!(text.matches("fitted to this").count(), 2, "{text}");
        assert_eq!(text.matches("prefill 512").count(), 2, "{text}");
    }
}
