//! `polaris optimize`: what the optimizer makes of a graph, and why it does not make more of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use core_tensor::{Bindings, Dim, FileAccess, Graph};
use models::backends::{self, Activations, BackendOptions, Device};
use models::graph_file::{self, GraphOptions};
use polaris_optimizer::{OptimizeOptions, Report, built_in_rules, optimize_with_options};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, bytes, shown};

const EXAMPLES: &str = "\
Examples:
  polaris optimize model.onnx --explain
  polaris optimize model.onnx -o optimized.onnx
  polaris optimize model.onnx -x batch=1 -x sequence=128 --plan
  polaris optimize model.onnx --without attention --graph
  polaris optimize --rules

Every command that runs a graph optimizes it by itself: this one shows what happens, and writes the result for other programs.";

/// Show which rules change a graph, which nearly do and why not; write the result as ONNX
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Model file (.onnx)
    #[arg(value_name = "FILE", required_unless_present = "rules")]
    file: Option<PathBuf>,
    /// Write the optimized graph as an ONNX model
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tell which rules fired, which nearly did, and why not
    #[arg(short, long)]
    explain: bool,
    /// Print the optimized graph
    #[arg(short, long)]
    graph: bool,
    /// Compile for the processor and print its steps and where they keep their values
    #[arg(long)]
    plan: bool,
    /// A number for an extent that the file leaves open: `--extent batch=1`
    ///
    /// The memory is planned with these, and with 1 for batches and 128 for others that are open.
    #[arg(short = 'x', long = "extent", value_name = "NAME=N", value_parser = extent)]
    extents: Vec<(String, usize)>,
    /// Leave out a rule; may be given more than once (--rules lists them)
    #[arg(long, value_name = "RULE")]
    without: Vec<String>,
    /// Kilobytes by which a computed constant may exceed what it is computed from
    #[arg(long, value_name = "KB", default_value_t = 64)]
    growth: usize,
    /// Leave out round trips through half precision that the file asks for
    #[arg(long)]
    drop_half_rounding: bool,
    /// Print one JSON object with everything
    #[arg(long, conflicts_with_all = ["explain", "graph"])]
    json: bool,
    /// List all rules
    #[arg(long, conflicts_with_all = ["output", "explain", "graph", "plan", "json"])]
    rules: bool,
}

fn extent(text: &str) -> Result<(String, usize), String> {
    let (name, number) = text.rsplit_once('=').ok_or("NAME=N is expected")?;
    let number = number.parse().map_err(|_| format!("{number:?} is no extent"))?;
    Ok((name.to_owned(), number))
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Outcome {
    model: String,
    #[serde(flatten)]
    report: Report,
    operators_before: BTreeMap<&'static str, usize>,
    operators_after: BTreeMap<&'static str, usize>,
    /// Extents that the memory is planned with.
    extents: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_before: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_after: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
}

/// Bytes that a graph needs besides the file.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    weight_bytes: u64,
    arena_bytes: u64,
}

/// A program of the processor's backend.
#[derive(Debug, Serialize)]
struct Plan {
    weight_bytes: u64,
    arena_bytes: usize,
    buffers: usize,
    unshared_bytes: usize,
    #[serde(skip)]
    text: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.rules {
        return output::write(&rules());
    }
    let Some(path) = &arguments.file else { return Err(Failure::Usage("FILE is missing".into())) };
    let known: Vec<&str> = built_in_rules().iter().flat_map(|(_, rules)| rules).map(|rule| rule.name()).collect();
    if let Some(unknown) = arguments.without.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::Usage(format!("--without {unknown}: there is no such rule (--rules lists them)")));
    }
    let mut extents = Bindings::new();
    arguments.extents.iter().for_each(|(name, n)| extents.set(name, *n));
    let file = graph_file::open(path, &GraphOptions { access: FileAccess::Map, extents: extents.clone() })?;
    let options = OptimizeOptions {
        without: arguments.without.iter().cloned().collect(),
        growth: arguments.growth.saturating_mul(1024),
        drop_half_rounding: arguments.drop_half_rounding,
        ..OptimizeOptions::default()
    };
    let before = file.graph;
    complete(&before, &mut extents);
    let (operators_before, memory_before) = (operators(&before), memory(&before, &extents));
    let failed = |error: polaris_optimizer::OptimizerError| Failure::Runtime(format!("{}: {error}", path.display()));
    let (after, report) = optimize_with_options(before, &options).map_err(failed)?;
    if let Some(output) = &arguments.output {
        write(&after, output)?;
    }
    let plan = if arguments.plan { Some(plan(&after, &extents)?) } else { None };
    let result = Outcome {
        model: path.display().to_string(),
        report,
        operators_before,
        operators_after: operators(&after),
        extents: extents.iter().map(|(name, n)| (name.to_owned(), n)).collect(),
        memory_before,
        memory_after: memory(&after, &extents),
        plan,
        output: arguments.output.clone(),
    };
    if arguments.json {
        return output::write_json(&result);
    }
    let mut text = summary(&result);
    if arguments.explain {
        text.push('\n');
        text.push_str(&explained(&result.report));
    }
    if let Some(plan) = &result.plan {
        text.push_str("\nprogram on the processor\n");
        text.push_str(&lines(&plan.text));
    }
    if arguments.graph {
        text.push('\n');
        text.push_str(&lines(&after.to_text()));
    }
    output::write(&text)
}

/// Writes the graph. What it replaces, which may be the file that it came from, stays readable for whoever has it open.
fn write(graph: &Graph, path: &Path) -> Result<(), Failure> {
    loader_onnx::export::write(graph, path).map_err(|error| Failure::Runtime(error.to_string()))
}

/// Text whose lines may hold names from a file.
fn lines(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{}", shown(line));
        all
    })
}

/// All rules by pass.
fn rules() -> String {
    let mut text = String::new();
    for (pass, rules) in built_in_rules() {
        let _ = writeln!(text, "{}", pass.name());
        for rule in rules {
            let _ = writeln!(text, "  {:<26} {}", rule.name(), rule.doc());
        }
    }
    text
}

/// Gives extents that are open a number.
fn complete(graph: &Graph, extents: &mut Bindings) {
    for id in graph.inputs() {
        let Some((_, shape)) = graph.tensor_type(*id) else { continue };
        let mut open = Vec::new();
        shape.iter().for_each(|dim: &Dim| dim.symbols(&mut |symbol| open.push(symbol.clone())));
        for symbol in open {
            if extents.get(&symbol).is_none() {
                extents.set(&symbol, if symbol.to_lowercase().contains("batch") { 1 } else { 128 });
            }
        }
    }
}

fn operators(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut count = BTreeMap::new();
    for node in graph.nodes() {
        *count.entry(node.op.name()).or_insert(0) += 1;
    }
    count
}

/// What the graph needs by the common plan; nothing, where extents are known only when it runs.
fn memory(graph: &Graph, extents: &Bindings) -> Option<Memory> {
    let estimate = polaris_runtime::estimate(graph, 1, extents).ok()?;
    Some(Memory { weight_bytes: estimate.weights, arena_bytes: estimate.arena })
}

/// Compiles for the processor.
fn plan(graph: &Graph, extents: &Bindings) -> Result<Plan, Failure> {
    let options = BackendOptions { device: Device::Cpu, threads: None, activations: Activations::F32, profile: false };
    let opened = backends::open(&options)?;
    let backend =
        opened.backends.first().ok_or_else(|| Failure::Runtime("there is no backend for the processor".into()))?;
    let refused = graph.nodes().iter().find_map(|node| backend.supports(graph, node).err().map(|why| (node, why)));
    if let Some((node, why)) = refused {
        let reason = format!("node {:?} ({}) is run by the host: {why}", shown(&node.name), node.op.name());
        return Err(Failure::Runtime(format!(
            "the graph is more than one program: {reason}; polaris run --profile shows it"
        )));
    }
    let failed = |error: core_tensor::BackendError| Failure::Runtime(error.to_string());
    let graph = Arc::new(graph.clone());
    let weights = backend.load_weights(&graph, &mut |_, _| ControlFlow::Continue(())).map_err(failed)?;
    let program = backend.compile(&graph, &weights, extents).map_err(failed)?;
    let plan = program.plan();
    Ok(Plan {
        weight_bytes: weights.byte_len(),
        arena_bytes: plan.arena_bytes,
        buffers: plan.buffers.len(),
        unshared_bytes: plan.unshared_bytes(),
        text: format!("{}\n{plan}", program.to_text()),
    })
}

fn summary(result: &Outcome) -> String {
    let mut text = format!("{}\n", shown(&result.model));
    let report = &result.report;
    let _ = writeln!(text, "nodes     {:>10} -> {}", report.nodes_before, report.nodes_after);
    let (before, after) = (bytes(report.weight_bytes_before), bytes(report.weight_bytes_after));
    let _ = writeln!(text, "weights   {before:>10} -> {after}");
    if let (Some(before), Some(after)) = (result.memory_before, result.memory_after) {
        let extents: Vec<String> = result.extents.iter().map(|(name, n)| format!("{}={n}", shown(name))).collect();
        let at = if extents.is_empty() { String::new() } else { format!(" ({})", extents.join(", ")) };
        let _ = writeln!(text, "memory    {:>10} -> {}{at}", bytes(before.arena_bytes), bytes(after.arena_bytes));
    } else {
        text.push_str("memory    known when it runs: extents depend on data\n");
    }
    if let Some(plan) = &result.plan {
        let _ = writeln!(
            text,
            "processor {:>10} of memory, {} of weights ({} buffers, {} side by side)",
            bytes(plan.arena_bytes as u64),
            bytes(plan.weight_bytes),
            plan.buffers,
            bytes(plan.unshared_bytes as u64)
        );
    }
    let names: std::collections::BTreeSet<_> =
        result.operators_before.keys().chain(result.operators_after.keys()).copied().collect();
    text.push_str("operators\n");
    for name in names {
        let count = |all: &BTreeMap<&'static str, usize>| all.get(name).copied().unwrap_or(0);
        let (before, after) = (count(&result.operators_before), count(&result.operators_after));
        let changed = if before == after { String::new() } else { format!(" -> {after}") };
        let _ = writeln!(text, "  {name:<22} {before:>5}{changed}");
    }
    if let Some(path) = &result.output {
        let _ = writeln!(text, "written to {}", path.display());
    }
    text
}

/// Rules that fired and those that nearly did; node names come from the file.
fn explained(report: &Report) -> String {
    lines(&report.explain())
}
