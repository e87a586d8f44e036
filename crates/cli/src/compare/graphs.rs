//! Two graphs: their outputs on the same inputs.

use std::fmt::Write as _;

use core_tensor::Tensor;
use serde::Serialize;

use super::Arguments;
use super::gate::{Gate, Thresholds, largest, least};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{self, shown};
use crate::run::{Latency, measure, output_names};

#[derive(Debug, Serialize)]
struct Report {
    outputs: Vec<Difference>,
    a: Latency,
    b: Latency,
    #[serde(flatten)]
    gate: Gate,
}

/// How far an output is apart.
#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    name: String,
    shape: Vec<usize>,
    /// Largest difference.
    maximum: f64,
    /// Mean difference.
    mean: f64,
    /// Cosine similarity; 1 where both are all zeros.
    cosine: f64,
    /// Decibels; none where the outputs are equal.
    sqnr_decibels: Option<f64>,
    /// Elements of which just one is finite, or which are different infinities or NaN.
    not_finite: usize,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let _busy = interrupt.busy();
    let compute = &arguments.compute;
    let extents = arguments.inputs.extents();
    let a = compute.open(&arguments.a, &extents)?;
    let b = compute.open(arguments.b.as_ref().unwrap_or(&arguments.a), &extents)?;
    let inputs = arguments.inputs.tensors(&a.graph)?;
    let names = output_names(&a.graph);
    let others = output_names(&b.graph).len();
    if names.len() != others || a.graph.inputs().len() != b.graph.inputs().len() {
        return Err(Failure::Runtime(format!(
            "A has {} inputs and {} outputs, B {} and {others}",
            a.graph.inputs().len(),
            names.len(),
            b.graph.inputs().len()
        )));
    }
    let first = compute.load(a.graph, None, false, &interrupt)?;
    let second = compute.load(b.graph, arguments.other_device, false, &interrupt)?;
    let mut results = Vec::new();
    for executable in [&first, &second] {
        let mut outputs = executable.run(&inputs).map_err(models::Error::from)?;
        let latency = measure(executable, &inputs, arguments.runs.unwrap_or(5) as usize, &interrupt, &mut outputs)?;
        results.push((outputs, latency));
    }
    let (Some((b_outputs, b)), Some((a_outputs, a))) = (results.pop(), results.pop()) else { return Ok(()) };
    let mut outputs = Vec::new();
    for ((name, x), y) in names.iter().zip(&a_outputs).zip(&b_outputs) {
        outputs.push(difference(name, x, y)?);
    }
    let gate = judge(&arguments.thresholds, &outputs);
    let report = Report { outputs, a, b, gate };
    let told = match arguments.json {
        true => output::write_json(&report),
        false => output::write(&as_text(&report)),
    };
    // That nobody reads it any more keeps no threshold.
    report.gate.result().and(told)
}

/// The worst of all outputs against each threshold that was given.
fn judge(thresholds: &Thresholds, outputs: &[Difference]) -> Gate {
    let worst = |figure: fn(&Difference) -> f64, worse: fn(f64, f64) -> f64| {
        // An output of which only one side is a number is beyond every threshold.
        outputs.iter().map(|d| if d.not_finite > 0 { f64::NAN } else { figure(d) }).reduce(worse)
    };
    let mut gate = Gate::default();
    gate.at_most("max_error", worst(|d| d.maximum, largest), thresholds.max_error);
    gate.at_least("cosine", worst(|d| d.cosine, least), thresholds.min_cosine);
    gate.at_least("sqnr_decibels", worst(|d| d.sqnr_decibels.unwrap_or(f64::INFINITY), least), thresholds.min_sqnr);
    gate
}

fn difference(name: &str, a: &Tensor, b: &Tensor) -> Result<Difference, Failure> {
    if a.shape() != b.shape() {
        let (a, b) = (a.shape(), b.shape());
        return Err(Failure::Runtime(format!("output {name:?} is {a:?} in A and {b:?} in B")));
    }
    let convert = |error: core_tensor::TensorError| Failure::Runtime(format!("output {name:?}: {error}"));
    let (x, y) = (a.to_f32().map_err(convert)?, b.to_f32().map_err(convert)?);
    let (mut maximum, mut sum, mut noise, mut xx, mut yy, mut xy, mut not_finite) =
        (0.0f64, 0.0, 0.0, 0.0, 0.0, 0.0, 0);
    for (x, y) in x.iter().zip(&y) {
        if !x.is_finite() || !y.is_finite() {
            not_finite += usize::from(!(x == y || x.is_nan() && y.is_nan()));
            continue;
        }
        let (x, y) = (f64::from(*x), f64::from(*y));
        let d = (x - y).abs();
        maximum = maximum.max(d);
        sum += d;
        noise += d * d;
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    let cosine = match (xx, yy) {
        (0.0, 0.0) => 1.0,
        _ if xx == 0.0 || yy == 0.0 => 0.0,
        _ => xy / (xx.sqrt() * yy.sqrt()),
    };
    Ok(Difference {
        name: name.to_owned(),
        shape: a.shape().to_vec(),
        maximum,
        mean: sum / x.len().max(1) as f64,
        cosine,
        sqnr_decibels: (noise > 0.0).then(|| 10.0 * (xx / noise).log10()),
        not_finite,
    })
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "   max error   mean error       cosine   SQNR dB  output");
    for output in &report.outputs {
        let sqnr = output.sqnr_decibels.map_or("equal".to_owned(), |sqnr| format!("{sqnr:.2}"));
        let extents: Vec<String> = output.shape.iter().map(usize::to_string).collect();
        let wrong = match output.not_finite {
            0 => String::new(),
            count => format!(", {count} infinite or no number in just one"),
        };
        let _ = writeln!(
            text,
            "{:12.6e} {:12.6e} {:12.9} {sqnr:>9}  {}[{}]{wrong}",
            output.maximum,
            output.mean,
            output.cosine,
            shown(&output.name),
            extents.join(", ")
        );
    }
    let (a, b) = (&report.a, &report.b);
    let _ = writeln!(
        text,
        "latency {:.3} ms and {:.3} ms (medians of {}): B takes {:.3} times A's",
        a.median_milliseconds,
        b.median_milliseconds,
        a.runs,
        b.median_milliseconds / a.median_milliseconds.max(1e-9)
    );
    text + &report.gate.as_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_measured() {
        let tensor = |values: &[f32]| Tensor::from_slice(&[values.len()], values).unwrap();
        let a = tensor(&[3.0, 4.0, f32::NAN]);
        let equal = difference("y", &a, &a).unwrap();
        assert_eq!((equal.maximum, equal.cosine, equal.sqnr_decibels, equal.not_finite), (0.0, 1.0, None, 0));
        let other = difference("y", &a, &tensor(&[3.0, 3.5, 1.0])).unwrap();
        assert_eq!((other.maximum, other.not_finite), (0.5, 1));
        assert!((other.sqnr_decibels.unwrap() - 20.0).abs() < 1e-9);
        assert!(difference("y", &a, &tensor(&[1.0])).is_err());
    }
}
