//! `polaris run`: runs any graph.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use core_tensor::{Graph, Tensor};
use polaris_runtime::{Executable, OpTime};
use serde::Serialize;

use crate::failure::Failure;
use crate::graph::{GraphCompute, Inputs};
use crate::interrupt::Interrupt;
use crate::npy;
use crate::output::{self, bytes, shown};

const EXAMPLES: &str = "\
Examples:
  polaris run model.onnx --input random
  polaris run model.onnx --input x=image.npy --output results
  polaris run model.onnx --input random -x batch=8 -x sequence=128 --runs 20
  polaris run model.onnx --input random --profile --device cpu

Each output is written to DIR/NAME.npy, characters that make no file name as _.";

/// Run any model with a graph on inputs from .npy files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Model file (.onnx)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Write the outputs here, each to its own .npy file
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Run so often, and tell the latency; a first run that compiles does not count
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Print what each operator took and how many bytes it reads and writes
    #[arg(long)]
    profile: bool,
    /// Print one JSON object: device, pieces, outputs, latency, profile
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: GraphCompute,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    /// What runs the nodes, in order: a backend or the host, and how many.
    pieces: Vec<PieceReport>,
    weight_bytes: u64,
    arena_bytes: u64,
    load_seconds: f64,
    /// The run that compiles.
    first_run_milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    outputs: Vec<OutputReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<ProfileLine>,
}

#[derive(Debug, Serialize)]
struct PieceReport {
    runs_on: String,
    nodes: usize,
}

/// Milliseconds of the runs after the first.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) runs: usize,
    pub(crate) minimum_milliseconds: f64,
    pub(crate) median_milliseconds: f64,
    pub(crate) maximum_milliseconds: f64,
}

#[derive(Debug, Serialize)]
struct OutputReport {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// Of all elements, as f32; none where there are none.
    minimum: Option<f32>,
    maximum: Option<f32>,
    mean: Option<f64>,
}

#[derive(Debug, Serialize)]
struct ProfileLine {
    backend: String,
    step: String,
    runs: u64,
    microseconds_per_run: f64,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let _busy = interrupt.busy();
    let compute = &arguments.compute;
    let start = Instant::now();
    let file = compute.open(&arguments.file, &arguments.inputs.extents())?;
    let inputs = arguments.inputs.tensors(&file.graph)?;
    let names = output_names(&file.graph);
    let executable = compute.load(file.graph, None, arguments.profile, &interrupt)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut outputs = executable.run(&inputs).map_err(models::Error::from)?;
    let first_run_milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let latency = match arguments.runs {
        Some(runs) => Some(measure(&executable, &inputs, runs as usize, &interrupt, &mut outputs)?),
        None => None,
    };
    let mut reports = Vec::with_capacity(outputs.len());
    if let Some(folder) = &arguments.output {
        fs::create_dir_all(folder).map_err(|error| Failure::file(folder, &error))?;
    }
    let files = file_names(&names);
    for ((name, tensor), file) in names.iter().zip(&outputs).zip(files) {
        let file = arguments.output.as_deref().map(|folder| folder.join(file));
        if let Some(file) = &file {
            npy::write(file, tensor)?;
        }
        reports.push(summary(name, tensor, file.as_deref()));
    }
    let profile = executable.profile();
    let report = Report {
        model: arguments.file.display().to_string(),
        pieces: executable.pieces().into_iter().map(|(runs_on, nodes)| PieceReport { runs_on, nodes }).collect(),
        weight_bytes: executable.weight_bytes(),
        arena_bytes: executable.arena_bytes(),
        load_seconds,
        first_run_milliseconds,
        latency,
        outputs: reports,
        profile: profile.iter().map(line).collect(),
    };
    if arguments.json {
        return output::write_json(&report);
    }
    output::write(&as_text(&report, &executable))
}

/// Runs again and again.
pub(crate) fn measure(
    executable: &Executable,
    inputs: &[Tensor],
    runs: usize,
    interrupt: &Interrupt,
    outputs: &mut Vec<Tensor>,
) -> Result<Latency, Failure> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        if interrupt.requested() {
            return Err(Failure::Interrupted);
        }
        let start = Instant::now();
        *outputs = executable.run(inputs).map_err(models::Error::from)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |i: usize| times.get(i).copied().unwrap_or(0.0);
    Ok(Latency {
        runs,
        minimum_milliseconds: at(0),
        median_milliseconds: at(runs / 2),
        maximum_milliseconds: at(runs.saturating_sub(1)),
    })
}

/// Names of the outputs, as the file has them.
pub(crate) fn output_names(graph: &Graph) -> Vec<String> {
    graph.outputs().iter().map(|id| graph.value(*id).name.clone()).collect()
}

/// A file's name for each output: characters that are unsafe in one become `_`; equal ones are numbered.
fn file_names(names: &[String]) -> Vec<String> {
    let mut used = BTreeSet::new();
    names
        .iter()
        .map(|name| {
            let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
            let mut base: String = name.chars().take(100).map(safe).collect();
            if base.trim_matches('.').is_empty() {
                base = "output".into();
            }
            let mut file = format!("{base}.npy");
            let mut number = 1;
            while !used.insert(file.clone()) {
                number += 1;
                file = format!("{base}-{number}.npy");
            }
            file
        })
        .collect()
}

fn summary(name: &str, tensor: &Tensor, file: Option<&Path>) -> OutputReport {
    let values = tensor.to_f32().unwrap_or_default();
    let some = |value: f32| (!values.is_empty()).then_some(value);
    OutputReport {
        name: name.to_owned(),
        dtype: tensor.dtype().to_string(),
        shape: tensor.shape().to_vec(),
        file: file.map(Path::to_owned),
        minimum: some(values.iter().fold(f32::INFINITY, |m, v| m.min(*v))),
        maximum: some(values.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v))),
        mean: (!values.is_empty()).then(|| values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64),
    }
}

fn line(time: &OpTime) -> ProfileLine {
    let step = &time.step;
    ProfileLine {
        backend: time.backend.clone(),
        step: step.name.clone(),
        runs: step.runs,
        microseconds_per_run: step.nanoseconds as f64 / 1e3 / step.runs.max(1) as f64,
        bytes: step.bytes,
    }
}

fn as_text(report: &Report, executable: &Executable) -> String {
    let mut text = String::new();
    let mut parts: Vec<String> = Vec::new();
    let mut by_place: BTreeMap<&str, usize> = BTreeMap::new();
    for piece in &report.pieces {
        *by_place.entry(&piece.runs_on).or_default() += piece.nodes;
    }
    for (place, nodes) in by_place {
        parts.push(format!("{place} {nodes} nodes"));
    }
    let pieces = report.pieces.len();
    let _ = writeln!(text, "{} in {pieces} piece{}", parts.join(", "), if pieces == 1 { "" } else { "s" });
    for reason in executable.passed_over() {
        let _ = writeln!(text, "  {}", shown(reason));
    }
    let _ = writeln!(text, "weights {}, working memory {}", bytes(report.weight_bytes), bytes(report.arena_bytes));
    match &report.latency {
        Some(latency) => {
            let _ = writeln!(
                text,
                "latency {:.3} ms (median of {}; {:.3} to {:.3})",
                latency.median_milliseconds, latency.runs, latency.minimum_milliseconds, latency.maximum_milliseconds
            );
        }
        None => {
            let _ = writeln!(text, "first run {:.3} ms, with compilation", report.first_run_milliseconds);
        }
    }
    for output in &report.outputs {
        let extents: Vec<String> = output.shape.iter().map(usize::to_string).collect();
        let _ = write!(text, "{}: {}[{}]", shown(&output.name), output.dtype, extents.join(", "));
        if let (Some(minimum), Some(maximum), Some(mean)) = (output.minimum, output.maximum, output.mean) {
            let _ = write!(text, ", {minimum} to {maximum}, mean {mean:.6}");
        }
        if let Some(file) = &output.file {
            let _ = write!(text, " -> {}", file.display());
        }
        text.push('\n');
    }
    if !report.profile.is_empty() {
        text.push_str(&profile_text(&report.profile));
    }
    text
}

fn profile_text(lines: &[ProfileLine]) -> String {
    let mut text = String::from("\n       us/run      share        bytes     GB/s  step\n");
    let total: f64 = lines.iter().map(|line| line.microseconds_per_run).sum();
    let mut kinds: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for line in lines {
        let kind = kinds.entry(line.step.split(' ').next().unwrap_or_default()).or_default();
        kind.0 += line.microseconds_per_run;
        kind.1 += 1;
        let _ = writeln!(
            text,
            "{:13.1} {:9.1}% {:>12} {:8.2}  {} {}",
            line.microseconds_per_run,
            100.0 * line.microseconds_per_run / total.max(1e-9),
            bytes(line.bytes),
            line.bytes as f64 / 1e3 / line.microseconds_per_run.max(1e-3),
            line.backend,
            shown(&line.step)
        );
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let _ = writeln!(text, "\n       us/run      share   steps  by kind");
    for (kind, (time, count)) in kinds {
        let _ = writeln!(text, "{time:13.1} {:9.1}% {count:7}  {kind}", 100.0 * time / total.max(1e-9));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::file_names;

    #[test]
    fn outputs_have_file_names_of_their_own_that_leave_the_folder_alone() {
        let names = ["logits", "a/b", "a:b", "../x", "..", ""].map(str::to_owned);
        let expected = ["logits.npy", "a_b.npy", "a_b-2.npy", ".._x.npy", "output.npy", "output-2.npy"];
        assert_eq!(file_names(&names), expected);
    }
}
