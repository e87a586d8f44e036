//! `cargo xtask bench onnx`: latency and memory of ONNX models, beside ONNX Runtime in the same run.

mod models;
mod programs;
mod python;
mod report;

use std::fs;
use std::path::PathBuf;

use crate::arguments::Arguments;
use crate::cache::{self, Scratch};

use super::measure::{self, Load};
use super::report::Machine;
use super::{QUIET, enough_cores, polaris};
use models::{BenchModel, Prepared};
use programs::{Programs, Sample, Variant};
use python::Python;
use report::{Comparison, Report};

/// What to measure, and how often.
#[derive(Debug)]
struct Options {
    against: bool,
    pairs: usize,
    /// How long each process shall measure.
    seconds: f64,
    threads: usize,
    models: Vec<&'static BenchModel>,
    json: Option<PathBuf>,
    polaris: Option<PathBuf>,
}

impl Options {
    fn parse(mut arguments: Arguments) -> Result<Self, String> {
        let against = arguments.peer("onnxruntime")?;
        let quick = arguments.flag(&["--quick"]);
        let options = Self {
            against,
            pairs: arguments.count(&["--pairs"])?.unwrap_or(if quick { 3 } else { 5 }),
            seconds: if quick { 0.4 } else { 1.0 },
            threads: arguments.count(&["--threads", "-t"])?.unwrap_or(2),
            models: models::named(arguments.value(&["--models"])?.as_deref())?,
            json: arguments.value(&["--json"])?.map(PathBuf::from),
            polaris: arguments.value(&["--polaris"])?.map(PathBuf::from),
        };
        arguments.end()?;
        Ok(options)
    }

    /// The programs that run a model.
    fn variants(&self, model: &BenchModel) -> Vec<Variant> {
        let mut variants = vec![Variant::Polaris];
        if self.against {
            variants.insert(0, Variant::OnnxRuntime);
        }
        if model.int8 {
            variants.push(Variant::PolarisQ8);
        }
        variants.push(Variant::PolarisUnoptimized);
        variants
    }
}

/// The benchmark.
pub(super) fn main(arguments: Arguments) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    enough_cores(options.threads)?;
    let python = Python::provide()?;
    let programs = Programs { python, polaris: polaris(options.polaris.as_deref())?, threads: options.threads };
    let folder = cache::directory()?.join("bench");
    let scratch = Scratch::beside(&folder)?;
    let mut report = Report {
        machine: Machine::here(options.threads),
        pairs: options.pairs,
        peer: options.against.then(|| python::ONNX_RUNTIME.replace("onnxruntime==", "ONNX Runtime ")),
        comparisons: Vec::new(),
    };
    for model in &options.models {
        let prepared = model.prepare(&programs.python, &scratch.path().join("inputs").join(model.name))?;
        let comparison = compare(model, &prepared, &options, &programs, &scratch)?;
        eprint!("{}", comparison.to_text());
        report.comparisons.push(comparison);
    }
    print!("{}", report.to_text());
    if let Some(path) = &options.json {
        fs::write(path, report.to_json_lines()).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    match report.comparisons.iter().filter(|comparison| comparison.failed()).count() {
        0 => Ok(()),
        failed => Err(format!("{failed} of {} models do not run in every way", report.comparisons.len())),
    }
}

/// A run that takes longer is not repeated.
const SLOW_SECONDS: f64 = 10.0;

/// A program that takes part in the pairs of runs.
#[derive(Clone, Copy, Debug)]
struct Contestant {
    variant: Variant,
    runs: usize,
}

/// Lets every program run the model once, to see that it can, what comes out and how long it takes; then all by turns, until there are enough
/// quiet pairs of runs or twice as many as were asked for; of these the quietest count. What is left out is chosen by what others did, never by the
/// result.
fn compare(
    model: &'static BenchModel,
    prepared: &Prepared,
    options: &Options,
    programs: &Programs,
    scratch: &Scratch,
) -> Result<Comparison, String> {
    let mut comparison = Comparison::new(model);
    let mut contestants = try_out(model, prepared, options, programs, scratch, &mut comparison)?;
    let mut pairs: Vec<Pair> = Vec::new();
    let quiet =
        |pairs: &[Pair]| pairs.iter().filter(|pair| pair.foreign_share.is_none_or(|share| share <= QUIET)).count();
    // A peer alone tells nothing.
    let ours = contestants.iter().any(|contestant| contestant.variant != Variant::OnnxRuntime);
    while ours && quiet(&pairs) < options.pairs && pairs.len() < 2 * options.pairs {
        measure::wait_for_quiet(QUIET);
        let load = Load::start();
        let mut samples = Vec::new();
        for contestant in &contestants {
            samples.push((contestant.variant, programs.run(contestant.variant, prepared, contestant.runs, None)?));
        }
        let foreign_share = load.foreign_share();
        let share = foreign_share.map_or(String::new(), |share| format!(", others took {:.0} %", share * 100.0));
        eprintln!("{}: pair {}{share}", model.name, pairs.len() + 1);
        pairs.push(Pair { foreign_share, samples });
        // Every second pair is run in the other order, so that a machine that becomes faster or slower favours none.
        contestants.reverse();
    }
    pairs.sort_by(|a, b| a.foreign_share.unwrap_or(0.0).total_cmp(&b.foreign_share.unwrap_or(0.0)));
    pairs.truncate(options.pairs);
    comparison.noisy_pairs = pairs.len() - quiet(&pairs);
    for (variant, sample) in pairs.into_iter().flat_map(|pair| pair.samples) {
        comparison.add(variant, sample);
    }
    Ok(comparison)
}

/// One process of each program, and how much others disturbed them.
#[derive(Debug)]
struct Pair {
    /// `None` where the system does not tell.
    foreign_share: Option<f64>,
    samples: Vec<(Variant, Sample)>,
}

/// The programs that can run the model, each with a number of runs that fills its time. What fails, and what is too slow to be repeated, is added to
/// the comparison at once; the peer must not fail.
fn try_out(
    model: &BenchModel,
    prepared: &Prepared,
    options: &Options,
    programs: &Programs,
    scratch: &Scratch,
    comparison: &mut Comparison,
) -> Result<Vec<Contestant>, String> {
    let mut contestants = Vec::new();
    let mut expected = None;
    for variant in options.variants(model) {
        let folder = scratch.path().join("outputs").join(model.name).join(variant.name().replace(' ', "_"));
        let sample = match programs.run(variant, prepared, 1, Some(&folder)) {
            Ok(sample) => sample,
            Err(error) if variant == Variant::OnnxRuntime => return Err(error),
            Err(error) => {
                eprintln!("{}: {error}", model.name);
                comparison.add_failure(variant, error);
                continue;
            }
        };
        if let Some(expected) = &expected {
            match programs.difference(&sample, expected) {
                Ok(difference) => comparison.add_difference(variant, difference),
                Err(error) => comparison.add_failure(variant, error),
            }
        }
        let seconds = sample.seconds;
        if variant == Variant::OnnxRuntime {
            expected = Some(sample);
        } else if seconds > SLOW_SECONDS {
            eprintln!("{}: {} takes {seconds:.1} s and is not run again", model.name, variant.name());
            comparison.add(variant, sample);
            continue;
        }
        contestants.push(Contestant { variant, runs: runs_within(options.seconds, seconds) });
    }
    Ok(contestants)
}

/// How many runs of this length fill the time: enough for a median, and not so many that short ones take all day to print.
fn runs_within(time: f64, run: f64) -> usize {
    (time / run.max(1e-6)).clamp(3.0, 1000.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(Arguments::new(text.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn options_have_defaults_and_quick_makes_fewer_and_shorter_runs() {
        let options = parse("").unwrap();
        assert!(!options.against);
        assert_eq!((options.pairs, options.threads, options.models.len()), (5, 2, models::ALL.len()));
        let quick = parse("--against onnxruntime --quick --models minilm-int8 -t 1 --json f --polaris p").unwrap();
        assert!(quick.against && quick.seconds < options.seconds);
        assert_eq!((quick.pairs, quick.threads, quick.models.len()), (3, 1, 2));
        assert_eq!((quick.json, quick.polaris), (Some("f".into()), Some("p".into())));
    }

    #[test]
    fn wrong_options_are_named() {
        for (text, expected) in [
            ("--against llama.cpp", "no peer llama.cpp"),
            ("--models x", "no model x"),
            ("--fast", "unknown option --fast"),
            ("more", "unexpected argument more"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_models_of_8_bit_weights_run_with_8_bit_activations() {
        let options = parse("--against onnxruntime --models bert-base,minilm-int8-b1").unwrap();
        let plain = [Variant::OnnxRuntime, Variant::Polaris, Variant::PolarisUnoptimized];
        assert_eq!(options.variants(options.models[0]), plain);
        assert!(options.variants(options.models[1]).contains(&Variant::PolarisQ8));
        assert!(!parse("").unwrap().variants(options.models[0]).contains(&Variant::OnnxRuntime));
    }

    #[test]
    fn the_usage_names_every_model() {
        for model in models::ALL {
            assert!(super::super::USAGE.contains(model.name), "{}", model.name);
        }
    }

    #[test]
    fn short_runs_are_repeated_more_often_than_long_ones() {
        assert_eq!(runs_within(1.0, 0.1), 10);
        assert_eq!(runs_within(1.0, 5.0), 3);
        assert_eq!(runs_within(1.0, 0.0), 1000);
    }
}
