//! `polaris prune`: weights, neurons, heads and channels taken out of a model.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use core_tensor::{Bindings, FileAccess};
use loader_gguf::Gguf;
use models::prune::{
    CalibrationText, Extents, GraphPruneOptions, GraphWhat, Method, NamePattern, PruneOptions, PrunePlan, PruneReport,
    StructurePruning, WeightPruning, What, plan, prune, prune_graph,
};
use models::quantize::graph::{GraphModel, MOST_TEXTS};
use models::quantize::{Manifest, QuantizeOptions, read_importances};
use polaris_quant::Mixture;
use polaris_quant::prune::Pattern;
use serde_json::json;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::graph::extent;
use crate::interrupt::Interrupt;
use crate::manifest::{manifest_path, size_line, write_whole};
use crate::model::LoadBar;
use crate::output::{self, bytes, shown};
use crate::quantize::is_graph;
use crate::quantize_graph::calibration;

const EXAMPLES: &str = "\
Examples:
  polaris prune model-f16.gguf smaller.gguf --neurons 25% --calibrate text.txt
  polaris prune model-f16.gguf smaller.gguf --heads 25% --calibrate text.txt --type Q8_0
  polaris prune model-f16.gguf sparse.gguf --sparsity 50% --calibrate text.txt
  polaris prune model-f16.gguf sparse.gguf --sparsity 2:4 --method wanda --imatrix imatrix.gguf
  polaris prune model-f16.gguf sparse.gguf --sparsity 60% --calibrate text.txt --steps 4
  polaris prune model-f16.gguf smaller.gguf --neurons 25% --dry-run
  polaris prune model.onnx smaller.onnx --channels 25% --calibrate folder-of-npy
  polaris prune all-MiniLM-L6-v2 smaller.onnx --neurons 25% --calibrate text.txt

Neurons and heads are cut out: the file is smaller and there is less to compute, here and in llama.cpp. --sparsity puts zeros in the matrices of the layers: the file is as
large as before, and nothing runs faster that has no kernels for zeros; it is what other tools and formats start from. N:M leaves N of each M neighbours.
Weights that go are chosen by magnitude, by magnitude times inputs (wanda: needs --imatrix or --calibrate) or by what their going costs once the others have made
up for it (sparsegpt: needs --calibrate). With --calibrate, what is left of a cut matrix makes up for what is gone as well as the inputs seen allow.
Of graphs, channels and neurons go wherever nothing but products, convolutions and what works on each channel by itself makes and reads them.
The result appears when it is complete, with OUT.manifest.json (see `polaris verify`) and charts beside it.";

/// Take weights, neurons, attention heads or channels out of a model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// GGUF file of a language model (of one split over several files, any of them), ONNX file, or an encoder's safetensors or folder
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Weights that become zeros: a share (50%, 0.5), or N:M, where N of each M neighbours in a row remain (2:4)
    #[arg(long, value_name = "SHARE|N:M", conflicts_with_all = ["neurons", "heads", "query_heads", "channels"], help_heading = "What goes")]
    sparsity: Option<Pattern>,
    /// The share of the neurons of each feed-forward network
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "What goes")]
    neurons: Option<f64>,
    /// The share of each layer's heads of keys and values, which go with all query heads that they serve
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "query_heads", help_heading = "What goes")]
    heads: Option<f64>,
    /// The share of the query heads that each head of keys and values serves
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "What goes")]
    query_heads: Option<f64>,
    /// The share of the channels between convolutions (graphs)
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "What goes")]
    channels: Option<f64>,
    /// Neurons and channels that remain are a multiple of this, as formats with blocks demand (256 for Q4_K and its kin) [default: 32; channels: 8]
    #[arg(long, value_name = "N", conflicts_with = "sparsity", value_parser = clap::value_parser!(u32).range(1..), help_heading = "What goes")]
    multiple: Option<u32>,
    /// Tensors whose name a regular expression is found in keep all their weights (--sparsity)
    #[arg(long, value_name = "PATTERN", value_parser = NamePattern::parse, help_heading = "What goes")]
    skip: Vec<NamePattern>,
    /// How weights are chosen [default: sparsegpt with --calibrate, wanda with --imatrix, else magnitude]
    #[arg(long, value_name = "METHOD", value_parser = method(), requires = "sparsity", help_heading = "How")]
    method: Option<Method>,
    /// A text that runs through the model: the inputs of its matrices choose, and what is left makes up for what is gone
    ///
    /// Graphs take what `polaris quantize` takes: a text for encoders, a folder of .npy files, or random:N.
    #[arg(long, value_name = "DATA", help_heading = "How")]
    calibrate: Option<String>,
    /// Tokens of a chunk of the text [default: 512]
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = clap::value_parser!(u32).range(1..), help_heading = "How")]
    calibration_context: Option<u32>,
    /// Chunks of the text at most [default: 128]
    #[arg(long, value_name = "N", requires = "calibrate", value_parser = clap::value_parser!(u32).range(1..), help_heading = "How")]
    chunks: Option<u32>,
    /// Importances of columns (`polaris imatrix`, or llama.cpp's): they choose, also beside --calibrate
    #[arg(long, value_name = "FILE", help_heading = "How")]
    imatrix: Option<PathBuf>,
    /// Prune in so many steps, each with the text run through what the one before left
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), help_heading = "How")]
    steps: u32,
    /// Weights chosen by magnitude or wanda: the others make up for them
    #[arg(long, requires = "calibrate", conflicts_with = "no_reconstruct", help_heading = "How")]
    reconstruct: bool,
    /// What is left of cut matrices stays as it is
    #[arg(long, help_heading = "How")]
    no_reconstruct: bool,
    /// What is added to the diagonal of the inputs' products, relative to its mean: the smaller, the more is trusted to the text
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = "How")]
    damping: f64,
    /// A number for an extent that a graph leaves open: `--extent batch=1`
    #[arg(short = 'x', long = "extent", value_name = "NAME=N", value_parser = extent, help_heading = "How")]
    extents: Vec<(String, usize)>,
    /// Quantize the result: Q8_0, Q4_K_M and so on, as `polaris quantize` does
    #[arg(long = "type", value_name = "TYPE")]
    target: Option<Mixture>,
    /// Quantize tensors again that are quantized already, which loses more than quantizing the original
    #[arg(long, requires = "target")]
    allow_requantize: bool,
    /// Threads [default: all that the process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Read the file instead of mapping it into memory
    #[arg(long)]
    no_mmap: bool,
    /// Write no manifest and no charts, and compute no sha256
    #[arg(long)]
    no_manifest: bool,
    /// Tell what would become of each tensor and how large the file would be, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A part of a whole: 0.25 or 25%.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(Pattern::Share(share)) => Ok(share),
        _ => Err(format!("{text:?} is no share between 0 and 1; 25% and 0.25 are")),
    }
}

fn method() -> impl TypedValueParser<Value = Method> {
    let names = PossibleValuesParser::new(Method::ALL.map(|(name, _)| name));
    names
        .try_map(|name| Method::ALL.iter().find(|(n, _)| *n == name).map(|(_, method)| *method).ok_or("no such method"))
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    if is_graph(&arguments.input) {
        return graph(arguments, &interrupt);
    }
    if arguments.channels.is_some() || !arguments.extents.is_empty() {
        let name = if arguments.channels.is_some() { "--channels" } else { "--extent" };
        return Err(Failure::Usage(format!("{name} is for graphs, and {} is none", arguments.input.display())));
    }
    let options = options(arguments)?;
    let _busy = interrupt.busy();
    if arguments.dry_run {
        let model = Gguf::open(&arguments.input, options.access)?;
        return show_plan(&plan(&model, &options)?, arguments.json);
    }
    let chunks = Arc::new(|done: usize, total: usize| output::note(&format!("chunk {done} of {total}")));
    let mut bar = LoadBar::new("pruning");
    let manifest = prune(
        &arguments.input,
        &arguments.output,
        &options,
        &(chunks as models::prune::Chunks),
        &mut |done, total, _| {
            bar.set(done, total);
            if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    );
    bar.clear();
    finish(&manifest?, arguments)
}

/// How weights are chosen: as was asked for, or by what there is to choose by.
fn weight_pruning(arguments: &Arguments, pattern: Pattern) -> Result<WeightPruning, Failure> {
    let method = arguments.method.unwrap_or(match (&arguments.calibrate, &arguments.imatrix) {
        (Some(_), _) => Method::SparseGpt,
        (_, Some(_)) => Method::Wanda,
        _ => Method::Magnitude,
    });
    if method == Method::SparseGpt && arguments.no_reconstruct {
        let reason = "--no-reconstruct: sparsegpt is what makes up for weights that go; wanda is not";
        return Err(Failure::Usage(reason.into()));
    }
    Ok(WeightPruning { pattern, method, reconstruct: arguments.reconstruct })
}

/// A graph.
fn graph(arguments: &Arguments, interrupt: &Interrupt) -> Result<(), Failure> {
    let other = [
        ("--heads", arguments.heads.is_some()),
        ("--query-heads", arguments.query_heads.is_some()),
        ("--imatrix", arguments.imatrix.is_some()),
        ("--calibration-context", arguments.calibration_context.is_some()),
        ("--chunks", arguments.chunks.is_some()),
        ("--type", arguments.target.is_some()),
        ("--dry-run", arguments.dry_run),
    ];
    if let Some((name, _)) = other.into_iter().find(|(_, given)| *given) {
        return Err(Failure::Usage(format!("{name} is for GGUF files, and {} is a graph", arguments.input.display())));
    }
    if !arguments.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
        return Err(Failure::Usage("graphs are written as ONNX: OUT must end in .onnx".into()));
    }
    let what = match (arguments.sparsity, arguments.channels, arguments.neurons) {
        (Some(pattern), ..) => GraphWhat::Weights(weight_pruning(arguments, pattern)?),
        (None, None, None) => {
            let reason = "nothing is to go: give --channels, --neurons or --sparsity";
            return Err(Failure::Usage(reason.into()));
        }
        (None, channels, neurons) => GraphWhat::Structure {
            channels: channels.unwrap_or(0.0),
            neurons: neurons.unwrap_or(0.0),
            multiple: arguments.multiple.unwrap_or(if channels.is_some() { 8 } else { 32 }) as usize,
            reconstruct: arguments.calibrate.is_some() && !arguments.no_reconstruct,
        },
    };
    let _busy = interrupt.busy();
    let mut bindings = Bindings::new();
    arguments.extents.iter().for_each(|(name, n)| bindings.set(name, *n));
    let access = if arguments.no_mmap { FileAccess::Read } else { FileAccess::Map };
    let model = GraphModel::open(&arguments.input, access, &bindings)?;
    let data =
        arguments.calibrate.as_deref().map(|data| calibration(data, &model, &bindings, MOST_TEXTS)).transpose()?;
    let mut options = GraphPruneOptions::new(what);
    options.steps = arguments.steps as usize;
    options.damping = arguments.damping;
    options.skip.clone_from(&arguments.skip);
    options.hash = !arguments.no_manifest;
    if let Some(threads) = arguments.threads {
        options.threads = usize::from(threads);
    }
    let mut bar = LoadBar::new("pruning");
    let manifest = prune_graph(&model, &arguments.output, &options, data.as_ref(), &mut |done, total, _| {
        bar.set(done, total);
        if interrupt.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    finish(&manifest?, arguments)
}

fn options(arguments: &Arguments) -> Result<PruneOptions, Failure> {
    let calibrated = arguments.calibrate.is_some();
    let what = match arguments.sparsity {
        Some(pattern) => What::Weights(weight_pruning(arguments, pattern)?),
        None => {
            let some = |share: Option<f64>| share.unwrap_or(0.0);
            let (neurons, heads) = (some(arguments.neurons), some(arguments.heads));
            let query_heads = some(arguments.query_heads);
            if neurons == 0.0 && heads == 0.0 && query_heads == 0.0 {
                let reason = "nothing is to go: give --neurons, --heads, --query-heads or --sparsity";
                return Err(Failure::Usage(reason.into()));
            }
            if !arguments.skip.is_empty() {
                return Err(Failure::Usage("--skip is for --sparsity: layers are cut alike".into()));
            }
            let reconstruct = calibrated && !arguments.no_reconstruct;
            let multiple = arguments.multiple.unwrap_or(32) as usize;
            What::Structure(StructurePruning { neurons, heads, query_heads, multiple, reconstruct })
        }
    };
    let mut options = PruneOptions::new(what);
    if let Some(threads) = arguments.threads {
        options.threads = usize::from(threads);
    }
    if arguments.no_mmap {
        options.access = FileAccess::Read;
    }
    options.steps = arguments.steps as usize;
    options.damping = arguments.damping;
    options.skip.clone_from(&arguments.skip);
    options.hash = !arguments.no_manifest;
    if let Some(path) = &arguments.imatrix {
        options.importances = Some((read_importances(path)?, path.display().to_string()));
    }
    if let Some(path) = &arguments.calibrate {
        let mut text = CalibrationText::new(read_text(Path::new(path))?, path.clone());
        text.context = arguments.calibration_context.map_or(text.context, |tokens| tokens as usize);
        text.chunks = arguments.chunks.map(|chunks| chunks as usize).or(text.chunks);
        options.calibration = Some(text);
    }
    if let Some(mixture) = arguments.target {
        let mut quantize = QuantizeOptions::new(mixture);
        (quantize.threads, quantize.access) = (options.threads, options.access);
        quantize.hash = false;
        quantize.allow_requantize = arguments.allow_requantize;
        options.quantize = Some(quantize);
    }
    Ok(options)
}

/// Writes the manifest and the charts, and tells what became of the model.
fn finish(manifest: &Manifest, arguments: &Arguments) -> Result<(), Failure> {
    let path = (!arguments.no_manifest).then(|| manifest_path(&arguments.output));
    let mut charts = Vec::new();
    if let Some(path) = &path {
        write_whole(path, &manifest.to_json())?;
        if let Some(report) = &manifest.pruned {
            charts = write_charts(report, &arguments.output)?;
        }
    }
    if arguments.json {
        let mut value = json!(manifest);
        value["manifest"] = json!(path);
        value["charts"] = json!(charts);
        return output::write_json(&value);
    }
    output::write(&as_text(manifest))
}

/// The charts beside the result; their paths.
fn write_charts(report: &PruneReport, result: &Path) -> Result<Vec<PathBuf>, Failure> {
    let charts = [("sparsity", Some(report.sparsity_chart())), ("error", report.error_chart())];
    let mut paths = Vec::new();
    for (name, chart) in charts {
        let Some(chart) = chart else { continue };
        let mut path = OsString::from(result);
        path.push(format!(".{name}.svg"));
        write_whole(Path::new(&path), &chart.to_svg())?;
        paths.push(PathBuf::from(path));
    }
    Ok(paths)
}

fn as_text(manifest: &Manifest) -> String {
    let mut text = String::new();
    if let Some(report) = &manifest.pruned {
        text.push_str("   gone    weights    outputs  tensor\n");
        for tensor in report.tensors() {
            let error = |error: f64| format!("{:.2} %", 100.0 * error);
            let _ = writeln!(
                text,
                "{:>6.1}% {:>10} {:>10}  {}{}",
                100.0 * tensor.gone,
                error(tensor.weight_error),
                tensor.output_error.map_or("-".to_owned(), error),
                shown(&tensor.name),
                if tensor.before == tensor.after {
                    String::new()
                } else {
                    format!(" {:?} -> {:?}", tensor.before, tensor.after)
                }
            );
        }
        text.push_str(&layers(&report.layers_before, &report.layers_after));
        let count = output::count;
        let _ = writeln!(
            text,
            "{} -> {} weights, {} of them no zeros: {:.1} % are gone",
            count(report.parameters_before),
            count(report.parameters_after),
            count(report.nonzero_after),
            100.0 * report.gone()
        );
    }
    text + &size_line(manifest)
}

/// What each layer had and has; once where all layers are alike.
fn layers(before: &[Extents], after: &[Extents]) -> String {
    let mut text = String::new();
    let alike = before.iter().zip(after).all(|pair| before.first().zip(after.first()) == Some(pair));
    for (layer, (before, after)) in before.iter().zip(after).enumerate().take(if alike { 1 } else { before.len() }) {
        let of = if alike { "each layer".to_owned() } else { format!("layer {layer}") };
        let _ = writeln!(
            text,
            "{of}: {} -> {} neurons, {} -> {} query heads, {} -> {} heads of keys and values",
            before.neurons, after.neurons, before.heads, after.heads, before.kv_heads, after.kv_heads
        );
    }
    text
}

fn show_plan(plan: &PrunePlan, as_json: bool) -> Result<(), Failure> {
    let total: u64 = plan.tensors.iter().map(models::prune::PrunedShape::bytes).sum();
    if as_json {
        let tensor = |tensor: &models::prune::PrunedShape| {
            let planned = &tensor.planned;
            json!({"name": planned.name, "before": tensor.before, "after": planned.shape, "from": planned.from.to_string(),
                "to": tensor.to.to_string(), "bytes": tensor.bytes(), "changes": tensor.changes()})
        };
        let tensors: Vec<_> = plan.tensors.iter().map(tensor).collect();
        return output::write_json(
            &json!({"bytes": total, "tensors": tensors, "layers_before": plan.before, "layers_after": plan.after}),
        );
    }
    let mut text = String::new();
    for tensor in plan.tensors.iter().filter(|tensor| tensor.changes() || tensor.to != tensor.planned.from) {
        let planned = &tensor.planned;
        let what = if !tensor.changes() {
            format!("was {}", planned.from)
        } else if tensor.before == planned.shape {
            "weights become zeros".to_owned()
        } else {
            format!("-> {:?}", planned.shape)
        };
        let (name, size) = (shown(&planned.name), bytes(tensor.bytes()));
        let _ = writeln!(text, "{:>6} {size:>10}  {name} {:?} {what}", tensor.to.to_string(), tensor.before);
    }
    if plan.before != plan.after {
        text.push_str(&layers(&plan.before, &plan.after));
    }
    let _ = writeln!(text, "{} of tensors", bytes(total));
    output::write(&text)
}
