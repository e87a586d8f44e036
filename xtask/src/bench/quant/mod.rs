//! `cargo xtask bench quant`: what every type costs, beside llama-quantize's result for the same type.

mod graphs;
mod prune;
mod report;
mod rescaled;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::arguments::Arguments;
use crate::cache::{self, Scratch};
use crate::command;
use crate::fetch;

use super::llama_cpp::{self, LlamaCpp};
use super::measure::{self, Load};
use super::report::Machine;
use super::{QUIET, enough_cores, polaris};
use report::{Quality, Report, Row};

/// The types of language models, from the largest on.
const TYPES: [&str; 18] = [
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "TQ2_0", "TQ1_0",
];
/// What `--quick` measures.
const QUICK: [&str; 4] = ["Q8_0", "Q4_K_M", "Q4_0", "IQ4_NL"];
/// Types that a mixed model of the same size has to beat.
const MIXED: [&str; 2] = ["Q4_K_S", "Q3_K_M"];

/// What of F32's size a calibrated model takes.
const CALIBRATED: f64 = 0.15;

/// What is predicted; public domain.
const TEXT: &str = "tests/fixtures/us-constitution.txt";
/// What models are calibrated on, one text behind the other: none that is predicted.
const CALIBRATION: [&str; 5] =
    ["LICENSE-APACHE", "README.md", "docs/ARCHITECTURE.md", "CONTRIBUTING.md", "crates/quant/README.md"];

/// What to measure, and how.
#[derive(Debug)]
struct Options {
    against: bool,
    types: Vec<String>,
    mixed: bool,
    prune: bool,
    /// MiniLM as a graph instead of a language model.
    graphs: bool,
    /// The model as it is, whose weights lie on the grid of `Q4_1`.
    as_is: bool,
    chunks: usize,
    /// How often each program quantizes; the fastest counts.
    runs: usize,
    threads: usize,
    json: Option<PathBuf>,
    polaris: Option<PathBuf>,
}

impl Options {
    fn parse(mut arguments: Arguments) -> Result<Self, String> {
        let against = arguments.peer("llama-quantize")?;
        let quick = arguments.flag(&["--quick"]);
        let mixed = arguments.flag(&["--mixed"]);
        let prune = arguments.flag(&["--prune"]);
        let graphs = arguments.flag(&["--graphs"]);
        let as_is = arguments.flag(&["--as-is"]);
        let types = match arguments.value(&["--types"])? {
            Some(list) => list.split(',').map(known).collect::<Result<_, _>>()?,
            None if quick => QUICK.map(str::to_owned).to_vec(),
            None => TYPES.map(str::to_owned).to_vec(),
        };
        let options = Self {
            against,
            types,
            mixed,
            prune,
            graphs,
            as_is,
            chunks: arguments.count(&["--chunks"])?.unwrap_or(if quick { 4 } else { 20 }),
            runs: arguments.count(&["--pairs"])?.unwrap_or(if quick { 2 } else { 3 }),
            threads: arguments.count(&["--threads", "-t"])?.unwrap_or(2),
            json: arguments.value(&["--json"])?.map(PathBuf::from),
            polaris: arguments.value(&["--polaris"])?.map(PathBuf::from),
        };
        arguments.end()?;
        let of_types = options.mixed || options.as_is;
        if (options.graphs && (options.against || options.prune || of_types)) || (options.prune && of_types) {
            return Err(
                "--graphs and --prune measure something else: neither goes with the other, --mixed or --as-is".into()
            );
        }
        Ok(options)
    }
}

fn known(name: &str) -> Result<String, String> {
    match TYPES.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("no type {name}; there is {}", TYPES.join(", "))),
    }
}

/// The programs, the files that all rows share, and where results lie.
struct Bench {
    options: Options,
    polaris: PathBuf,
    peer: Option<LlamaCpp>,
    source: PathBuf,
    importances: PathBuf,
    /// The texts of [`CALIBRATION`].
    calibration: PathBuf,
    /// The same and the first half of [`TEXT`], and the other half.
    halves: [PathBuf; 2],
    scratch: Scratch,
}

/// The benchmark.
pub(super) fn main(arguments: Arguments) -> Result<(), String> {
    let options = Options::parse(arguments)?;
    enough_cores(options.threads)?;
    let polaris = polaris(options.polaris.as_deref())?;
    if options.graphs {
        let scratch = Scratch::beside(&cache::directory()?.join("bench"))?;
        return graphs::main(&options, &polaris, &scratch);
    }
    let peer = if options.against { Some(llama_cpp::build()?) } else { None };
    let folder = cache::directory()?.join("bench");
    let scratch = Scratch::beside(&folder)?;
    let file = |name: &str| scratch.path().join(name);
    let (source, importances, calibration) = (file("F16.gguf"), file("imatrix.gguf"), file("calibration.txt"));
    let halves = [file("calibrated.txt"), file("held-out.txt")];
    let bench = Bench { options, polaris, peer, source, importances, calibration, halves, scratch };
    bench.prepare()?;
    if bench.options.prune {
        return prune::run(&bench);
    }

    let options = &bench.options;
    let mut report = Report {
        machine: Machine::here(options.threads),
        chunks: options.chunks,
        peer: options.against,
        as_is: options.as_is,
        source_bytes: file_bytes(&bench.source)?,
        rows: Vec::new(),
    };
    for kind in &options.types {
        for weighted in [false, true] {
            eprintln!("{kind}{}", if weighted { " with importances" } else { "" });
            report.rows.push(bench.row(kind, weighted)?);
        }
    }
    if options.mixed {
        for kind in MIXED {
            report.rows.push(bench.mixed(kind)?);
        }
        report.rows.push(bench.calibrated()?);
    }
    print!("{}", report.to_text());
    if let Some(path) = &options.json {
        fs::write(path, report.to_json_lines()).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

impl Bench {
    /// The command with arguments of which the last may still want its value.
    fn polaris(&self, name: &str, arguments: &[&str]) -> Command {
        let mut polaris = Command::new(&self.polaris);
        polaris.args([name, "--threads", &self.options.threads.to_string()]).args(arguments);
        polaris
    }

    /// The model in 16 bits, and its importances.
    fn prepare(&self) -> Result<(), String> {
        write_calibration(&self.calibration)?;
        let mut model = fetch::model(fetch::SMALL_MODEL)?;
        // What is pruned does not become finer by it.
        if !self.options.as_is && !self.options.prune {
            let rescaled = self.scratch.path().join("F32.gguf");
            rescaled::write(&model, &rescaled)?;
            model = rescaled;
        }
        let mut convert = self.polaris("quantize", &["--type", "F16", "--allow-requantize", "--no-manifest"]);
        command::output(convert.arg(&model).arg(&self.source))?;
        let mut collect = self.polaris("imatrix", &["--device", "cpu", "--activations", "f32", "-m"]);
        collect.arg(&self.source).arg("-f").arg(&self.calibration);
        command::output(collect.arg("-o").arg(&self.importances)).map(drop)
    }

    /// A type, by both programs by turns.
    fn row(&self, kind: &str, weighted: bool) -> Result<Row, String> {
        let mut row = Row { kind: kind.to_owned(), weighted, ..Row::default() };
        let (ours, theirs) = (self.scratch.path().join("polaris.gguf"), self.scratch.path().join("llama.cpp.gguf"));
        for _ in 0..self.options.runs {
            measure::wait_for_quiet(QUIET);
            let load = Load::start();
            let mut quantize = self.polaris("quantize", &["--type", kind, "--no-manifest"]);
            if weighted {
                quantize.arg("--imatrix").arg(&self.importances);
            }
            row.ours.seconds.push(measure::run(quantize.arg(&self.source).arg(&ours))?.total.as_secs_f64());
            if let Some(peer) = &self.peer {
                let mut quantize = peer.command("llama-quantize");
                if weighted {
                    quantize.arg("--imatrix").arg(&self.importances);
                }
                quantize.arg(&self.source).arg(&theirs).arg(kind).arg(self.options.threads.to_string());
                row.theirs.seconds.push(measure::run(&mut quantize)?.total.as_secs_f64());
            }
            row.noisy += usize::from(load.foreign_share().is_some_and(|share| share > QUIET));
        }
        row.ours.quality = Some(self.quality(&ours, true)?);
        if self.peer.is_some() {
            row.theirs.quality = Some(self.quality(&theirs, false)?);
        }
        Ok(row)
    }

    /// A mixed model no larger than one of a type, and that.
    fn mixed(&self, kind: &str) -> Result<Row, String> {
        let (ours, theirs) = (self.scratch.path().join("mixed.gguf"), self.scratch.path().join("uniform.gguf"));
        let mut uniform = self.polaris("quantize", &["--type", kind, "--no-manifest", "--imatrix"]);
        let mut row = Row { kind: format!("mixed@{kind}"), weighted: true, ..Row::default() };
        let run = measure::run(uniform.arg(&self.importances).arg(&self.source).arg(&theirs))?;
        row.theirs.seconds.push(run.total.as_secs_f64());
        let size = file_bytes(&theirs)?.to_string();
        let mut mixed =
            self.polaris("quantize", &["--type", "mixed", "--target-size", &size, "--no-manifest", "--imatrix"]);
        // What importances are collected on is what errors are measured on; never what is predicted in the end.
        mixed.arg(&self.importances).arg("--data").arg(&self.calibration);
        row.ours.seconds.push(measure::run(mixed.arg(&self.source).arg(&ours))?.total.as_secs_f64());
        row.ours.quality = Some(self.quality(&ours, true)?);
        row.theirs.quality = Some(self.quality(&theirs, false)?);
        Ok(row)
    }

    /// A mixed model of [`CALIBRATED`] of F32's size, rounded by GPTQ, of a text of the kind that it is calibrated on.
    fn calibrated(&self) -> Result<Row, String> {
        let [known, held_out] = &self.halves;
        let text = command::repository().join(TEXT);
        let whole = fs::read_to_string(&text).map_err(|error| format!("{}: {error}", text.display()))?;
        let middle = whole.len() / 2 + whole[whole.len() / 2..].find('\n').map_or(0, |at| at + 1);
        let mut calibration = fs::read_to_string(&self.calibration).map_err(|error| error.to_string())?;
        calibration.push_str(&whole[..middle]);
        fs::write(known, calibration).map_err(|error| format!("{}: {error}", known.display()))?;
        fs::write(held_out, &whole[middle..]).map_err(|error| format!("{}: {error}", held_out.display()))?;

        let (ours, importances) = (self.scratch.path().join("calibrated.gguf"), self.scratch.path().join("known.gguf"));
        let mut collect = self.polaris("imatrix", &["--device", "cpu", "--activations", "f32", "-m"]);
        command::output(collect.arg(&self.source).arg("-f").arg(known).arg("-o").arg(&importances))?;
        let size = ((2 * file_bytes(&self.source)?) as f64 * CALIBRATED) as u64;
        let mut quantize = self.polaris("quantize", &["--type", "mixed", "--no-manifest", "--gptq", "--target-size"]);
        quantize.arg(size.to_string()).arg("--imatrix").arg(&importances);
        quantize.args(["--probe-parts", "--probe-chunks", "6", "--data"]).arg(known).arg("--calibrate").arg(known);
        let mut row = Row { kind: report::CALIBRATED.to_owned(), weighted: true, ..Row::default() };
        row.ours.seconds.push(measure::run(quantize.arg(&self.source).arg(&ours))?.total.as_secs_f64());
        let value = self.compared(&ours, held_out, true)?;
        row.ours.quality =
            Some(Quality::of(&value).ok_or_else(|| format!("polaris compare told something else: {value}"))?);
        Ok(row)
    }

    /// By one program for both files, so that nothing but the weights is compared.
    fn quality(&self, model: &Path, speed: bool) -> Result<Quality, String> {
        let value = self.compared(model, &command::repository().join(TEXT), speed)?;
        Quality::of(&value).ok_or_else(|| format!("polaris compare told something else: {value}"))
    }

    /// What `polaris compare` tells of the source and a model.
    fn compared(&self, model: &Path, text: &Path, speed: bool) -> Result<Value, String> {
        let mut compare = self.polaris("compare", &["--device", "cpu", "--activations", "f32", "--json", "--data"]);
        compare.arg(text).args(["--chunks", &self.options.chunks.to_string()]);
        if !speed {
            compare.args(["--speed-prompt", "0", "--speed-decode", "0"]);
        }
        let told = command::output(compare.arg(&self.source).arg(model))?;
        serde_json::from_str(&told).map_err(|error| format!("polaris compare: {error}"))
    }
}

/// The texts of [`CALIBRATION`] as one file.
fn write_calibration(path: &Path) -> Result<(), String> {
    let mut all = String::new();
    for name in CALIBRATION {
        let read = fs::read_to_string(command::repository().join(name));
        all.push_str(&read.map_err(|error| format!("{name}: {error}"))?);
    }
    fs::write(path, all).map_err(|error| format!("{}: {error}", path.display()))
}

fn file_bytes(path: &Path) -> Result<u64, String> {
    let data = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(Arguments::new(text.split_whitespace().map(str::to_owned)))
    }

    #[test]
    fn options_have_defaults_and_quick_measures_less() {
        let all = parse("").unwrap();
        assert_eq!((all.types.len(), all.chunks, all.runs, all.against, all.mixed), (18, 20, 3, false, false));
        assert!(parse("--prune").unwrap().prune && !all.prune);
        let quick = parse("--quick --against llama-quantize --mixed").unwrap();
        assert_eq!((quick.types.len(), quick.chunks, quick.runs, quick.against, quick.mixed), (4, 4, 2, true, true));
        assert_eq!(parse("--types Q4_0,Q2_K").unwrap().types, ["Q4_0", "Q2_K"]);
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (text, expected) in [
            ("--types Q9", "no type Q9"),
            ("--against gptq", "no peer gptq"),
            ("--fast", "unknown option --fast"),
            ("--prune --mixed", "--graphs and --prune"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_texts_are_in_the_repository() {
        for path in [TEXT].into_iter().chain(CALIBRATION) {
            assert!(command::repository().join(path).is_file(), "{path}");
        }
    }
}
