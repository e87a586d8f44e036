//! The programs that are compared: how each is called, and what it answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::super::measure;
use super::models::Prepared;
use super::python::Python;
use crate::command;

/// A program with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Variant {
    OnnxRuntime,
    Polaris,
    /// Activations that meet 8-bit weights are rounded to 8 bits.
    PolarisQ8,
    /// The graph as it is in the file.
    PolarisUnoptimized,
}

impl Variant {
    pub(super) fn name(self) -> &'static str {
        match self {
            Variant::OnnxRuntime => "onnxruntime",
            Variant::Polaris => "polaris",
            Variant::PolarisQ8 => "polaris --activations q8",
            Variant::PolarisUnoptimized => "polaris --no-optimize",
        }
    }
}

/// What one process told about its runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Median and lowest of the runs.
    pub(super) seconds: f64,
    pub(super) lowest: f64,
    /// Peak of what is resident, mapped files included; for ONNX Runtime without the interpreter and numpy.
    pub(super) memory: Option<u64>,
    /// Names and .npy files, if they were asked for.
    pub(super) outputs: Vec<(String, PathBuf)>,
}

/// How far outputs are from the peer's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Difference {
    /// Largest difference as a part of the largest magnitude.
    pub(super) relative: f64,
    /// Of what is taken as an embedding: averages over the sequence.
    pub(super) cosine: f64,
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) python: Python,
    pub(super) polaris: PathBuf,
    pub(super) threads: usize,
}

impl Programs {
    /// Runs a model so many times in one process, after a warm-up.
    pub(super) fn run(
        &self,
        variant: Variant,
        model: &Prepared,
        runs: usize,
        output: Option<&Path>,
    ) -> Result<Sample, String> {
        let mut command = self.command(variant, &model.file, runs);
        for (name, file) in &model.inputs {
            command.arg("--input").arg(format!("{name}={}", file.display()));
        }
        if let Some(folder) = output {
            command.arg("--output").arg(folder);
        }
        let run = measure::run(&mut command)?;
        let parse = if variant == Variant::OnnxRuntime { parse_onnx_runtime } else { parse_polaris };
        let (sample, baseline) = parse(&run.stdout)?;
        Ok(Sample { memory: run.memory.resident.map(|peak| peak.saturating_sub(baseline)), ..sample })
    }

    fn command(&self, variant: Variant, file: &Path, runs: usize) -> Command {
        let (threads, runs) = (self.threads.to_string(), runs.to_string());
        if variant == Variant::OnnxRuntime {
            let mut peer = self.python.script("onnxruntime_latency.py");
            peer.arg(file).args([&threads, &runs]);
            return peer;
        }
        let mut polaris = Command::new(&self.polaris);
        polaris.arg("run").arg(file).args(["--device", "cpu", "--json", "-t", &threads, "--runs", &runs]);
        match variant {
            Variant::PolarisQ8 => polaris.args(["--activations", "q8"]),
            Variant::PolarisUnoptimized => polaris.arg("--no-optimize"),
            _ => &mut polaris,
        };
        polaris
    }

    /// Compares outputs, matched by name, with those expected.
    pub(super) fn difference(&self, actual: &Sample, expected: &Sample) -> Result<Difference, String> {
        let mut compare = self.python.script("compare.py");
        for (name, file) in &expected.outputs {
            let found = actual.outputs.iter().find(|(other, _)| other == name);
            let (_, other) = found.ok_or_else(|| format!("there is no output {name}"))?;
            compare.arg(other).arg(file);
        }
        parse_difference(&command::output(&mut compare)?)
    }
}

fn json(program: &str, text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{program} printed no JSON: {error}\n{text}"))
}

fn number(program: &str, answer: &Value, key: &str) -> Result<f64, String> {
    let value = answer[key].as_f64().filter(|value| *value >= 0.0);
    value.ok_or_else(|| format!("{program} gave no number {key}: {answer}"))
}

fn outputs(answer: &Value) -> Vec<(String, PathBuf)> {
    let outputs = answer["outputs"].as_array().into_iter().flatten();
    let named = |output: &Value| Some((output["name"].as_str()?.to_owned(), output["file"].as_str()?.into()));
    outputs.filter_map(named).collect()
}

/// What the script prints, and the memory of the interpreter.
fn parse_onnx_runtime(text: &str) -> Result<(Sample, u64), String> {
    const PROGRAM: &str = "onnxruntime_latency.py";
    let answer = json(PROGRAM, text)?;
    let sample = Sample {
        seconds: number(PROGRAM, &answer, "median_milliseconds")? * 1e-3,
        lowest: number(PROGRAM, &answer, "minimum_milliseconds")? * 1e-3,
        memory: None,
        outputs: outputs(&answer),
    };
    Ok((sample, answer["baseline_bytes"].as_u64().unwrap_or(0)))
}

/// `{"latency": {"median_milliseconds", "minimum_milliseconds", ...}, "outputs": [{"name", "file", ...}], ...}`
fn parse_polaris(text: &str) -> Result<(Sample, u64), String> {
    const PROGRAM: &str = "`polaris run --json`";
    let answer = json(PROGRAM, text)?;
    let latency = &answer["latency"];
    let sample = Sample {
        seconds: number(PROGRAM, latency, "median_milliseconds")? * 1e-3,
        lowest: number(PROGRAM, latency, "minimum_milliseconds")? * 1e-3,
        memory: None,
        outputs: outputs(&answer),
    };
    Ok((sample, 0))
}

fn parse_difference(text: &str) -> Result<Difference, String> {
    let answer = json("compare.py", text)?;
    let relative = number("compare.py", &answer, "max_relative_error")?;
    let cosine = answer["cosine"].as_f64().ok_or_else(|| format!("compare.py gave no cosine: {text}"))?;
    Ok(Difference { relative, cosine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_answer_is_read() {
        let text = r#"{"version": "1.0", "load_seconds": 0.5, "milliseconds": [3.0, 2.0, 4.0], "median_milliseconds": 3.0,
            "minimum_milliseconds": 2.0, "baseline_bytes": 28000000, "outputs": [{"name": "y", "file": "o/0.npy"}]}"#;
        let (sample, baseline) = parse_onnx_runtime(text).unwrap();
        assert_eq!((sample.seconds, sample.lowest, baseline), (0.003, 0.002, 28_000_000));
        assert_eq!(sample.outputs, [("y".to_owned(), PathBuf::from("o/0.npy"))]);
        assert!(parse_onnx_runtime("Traceback").unwrap_err().contains("printed no JSON"));
    }

    #[test]
    fn our_answer_is_read() {
        let text = r#"{"model": "m", "weight_bytes": 1, "first_run_milliseconds": 90.0,
            "latency": {"runs": 5, "minimum_milliseconds": 8.0, "median_milliseconds": 10.0, "maximum_milliseconds": 12.0},
            "outputs": [{"name": "y", "dtype": "f32", "shape": [1], "file": "o/y.npy", "mean": 0.1}, {"name": "z"}]}"#;
        let (sample, baseline) = parse_polaris(text).unwrap();
        assert_eq!((sample.seconds, sample.lowest, baseline), (0.01, 0.008, 0));
        assert_eq!(sample.outputs.len(), 1);
        assert!(parse_polaris(r#"{"latency": null}"#).unwrap_err().contains("no number median_milliseconds"));
    }

    #[test]
    fn a_difference_is_read_and_may_point_the_other_way() {
        let difference = parse_difference(r#"{"max_relative_error": 1e-6, "cosine": -0.5}"#).unwrap();
        assert_eq!(difference, Difference { relative: 1e-6, cosine: -0.5 });
        assert!(parse_difference("{}").is_err());
    }

    #[test]
    fn variants_differ_in_one_option() {
        let programs = Programs { python: Python::at("p".into()), polaris: "polaris".into(), threads: 2 };
        let shown = |variant| command::shown(&programs.command(variant, Path::new("m.onnx"), 5));
        let plain = "polaris run m.onnx --device cpu --json -t 2 --runs 5";
        assert_eq!(shown(Variant::Polaris), plain);
        assert_eq!(shown(Variant::PolarisQ8), format!("{plain} --activations q8"));
        assert_eq!(shown(Variant::PolarisUnoptimized), format!("{plain} --no-optimize"));
        assert!(shown(Variant::OnnxRuntime).ends_with("onnxruntime_latency.py m.onnx 2 5"));
    }
}
