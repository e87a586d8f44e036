//! The types of graphs on MiniLM: what each costs of the embeddings, how large and how fast the result is.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cache::Scratch;
use crate::command;
use crate::fetch;

use super::super::measure;
use super::super::report::Machine;
use super::{Options, TEXT, file_bytes, write_calibration};

/// Types and options, as the command has them. What needs data is calibrated on another text than that which is embedded.
const ROWS: [(&str, &[&str]); 18] = [
    ("int8", &["calibrate"]),
    ("int8", &["calibrate", "--smooth"]),
    ("int8", &["calibrate", "--calibration=mse"]),
    ("int8-dynamic", &[]),
    ("int8-dynamic", &["--per-tensor"]),
    ("int8-dynamic", &["calibrate", "--smooth"]),
    ("int8-weights", &[]),
    ("int8-weights", &["--asymmetric"]),
    ("int8-weights", &["calibrate", "--gptq"]),
    ("int8-weights", &["calibrate", "--awq"]),
    ("int8-weights", &["calibrate", "--reconstruct"]),
    ("int4-g32", &[]),
    ("int4-g32", &["calibrate", "--gptq"]),
    ("int4-g32", &["calibrate", "--awq"]),
    ("int4-g32", &["calibrate", "--awq", "--reconstruct"]),
    ("int4-g64", &[]),
    ("int4-g128", &[]),
    ("int4-g128", &["calibrate", "--gptq"]),
];

/// Lines of the text that are embedded, at equal distances.
const LINES: usize = 64;
/// The name of MiniLM in the cache.
const MODEL: &str = "all-minilm-l6-v2";
/// INT4 shall be so much smaller than f32.
const SMALLER: f64 = 0.85;
/// INT8 with float activations shall change embeddings by no more than this, relative to their length.
const CHANGED: f64 = 0.0065;

/// What was measured of a file.
#[derive(Clone, Debug, Default)]
struct Row {
    name: String,
    bytes: u64,
    /// Of the original with embeddings of its own.
    original_bytes: u64,
    /// The mean and the least similarity of embeddings.
    cosine: (f64, f64),
    /// The length of the difference relative to that of the original's embeddings.
    changed: f64,
    /// Seconds for all lines, the fastest of the runs: the original's, and its own.
    seconds: (f64, f64),
    /// Seconds that quantizing took.
    quantizing: f64,
}

/// Embeddings and the seconds that they took.
struct Embedded {
    vectors: Vec<Vec<f64>>,
    seconds: f64,
}

/// Measures all types and tells of them.
pub(super) fn main(options: &Options, polaris: &Path, scratch: &Scratch) -> Result<(), String> {
    let weights = fetch::model(MODEL)?;
    let folder = weights.parent().ok_or("MiniLM has no folder")?.to_owned();
    let made = scratch.path().join("minilm");
    fs::create_dir_all(&made).map_err(|error| format!("{}: {error}", made.display()))?;
    copy_beside(&folder, &made)?;
    let lines = scratch.path().join("lines.txt");
    let text = command::repository().join(TEXT);
    let text = fs::read_to_string(&text).map_err(|error| format!("{}: {error}", text.display()))?;
    fs::write(&lines, sample(&text)).map_err(|error| format!("{}: {error}", lines.display()))?;
    let calibration = scratch.path().join("calibration.txt");
    write_calibration(&calibration)?;
    let bench = Bench { options, polaris, lines, calibration, output: made.join("model.onnx"), folder };
    let original = bench.embedded(&bench.folder)?;
    let mut rows = Vec::new();
    for (ty, more) in ROWS {
        eprintln!("{ty} {}", more.join(" "));
        rows.push(bench.row(ty, more, &original, file_bytes(&weights)?)?);
    }
    print!("{}", as_text(&Machine::here(options.threads), &rows));
    if let Some(path) = &options.json {
        let text: String = rows.iter().map(|row| format!("{}\n", row.to_json())).collect();
        fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    polaris: &'a Path,
    lines: PathBuf,
    calibration: PathBuf,
    output: PathBuf,
    folder: PathBuf,
}

impl Bench<'_> {
    fn row(&self, ty: &str, more: &[&str], original: &Embedded, original_bytes: u64) -> Result<Row, String> {
        let mut quantize = std::process::Command::new(self.polaris);
        quantize.args(["quantize", "--no-manifest", "--threads", &self.options.threads.to_string(), "--type", ty]);
        for option in more {
            match *option {
                "calibrate" => quantize.arg("--calibrate").arg(&self.calibration),
                option => quantize.arg(option),
            };
        }
        let run = measure::run(quantize.arg(&self.folder).arg(&self.output))?;
        let found = self.embedded(&self.output)?;
        let shown: Vec<&str> = more.iter().copied().filter(|option| *option != "calibrate").collect();
        let (cosine, changed) = compared(&original.vectors, &found.vectors)?;
        Ok(Row {
            name: [&[ty][..], &shown].concat().join(" "),
            bytes: file_bytes(&self.output)?,
            original_bytes,
            cosine,
            changed,
            seconds: (original.seconds, found.seconds),
            quantizing: run.total.as_secs_f64(),
        })
    }

    /// The embeddings of all lines, by the fastest of the runs.
    fn embedded(&self, model: &Path) -> Result<Embedded, String> {
        let mut best: Option<Embedded> = None;
        for _ in 0..self.options.runs {
            let mut embed = std::process::Command::new(self.polaris);
            embed.args(["embed", "--device", "cpu", "--json", "--threads", &self.options.threads.to_string(), "-m"]);
            let told = command::output(embed.arg(model).arg("--file").arg(&self.lines))?;
            let value: Value = serde_json::from_str(&told).map_err(|error| format!("polaris embed: {error}"))?;
            let found = embeddings(&value).ok_or_else(|| format!("polaris embed told something else: {told}"))?;
            if best.as_ref().is_none_or(|best| found.seconds < best.seconds) {
                best = Some(found);
            }
        }
        best.ok_or_else(|| "no runs".to_owned())
    }
}

/// What `polaris embed --json` tells.
fn embeddings(value: &Value) -> Option<Embedded> {
    let vectors = value["embeddings"].as_array()?.iter();
    let vectors: Option<Vec<Vec<f64>>> =
        vectors.map(|vector| vector.as_array()?.iter().map(Value::as_f64).collect()).collect();
    Some(Embedded { vectors: vectors?, seconds: value["timings"]["embed_seconds"].as_f64()? })
}

/// Every so manieth line, so that there are few.
fn sample(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| line.len() > 20).collect();
    lines.iter().step_by(lines.len().div_ceil(LINES).max(1)).flat_map(|line| [*line, "\n"]).collect()
}

/// The files beside the weights: tokenizer, configuration, pooling.
fn copy_beside(from: &Path, to: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", from.display());
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            fs::create_dir_all(to.join(name)).map_err(failed)?;
            copy_beside(&path, &to.join(name))?;
        } else if path.extension().is_some_and(|ending| ending == "json") {
            fs::copy(&path, to.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}

/// The mean and the least cosine, and the relative length of the difference of all.
fn compared(a: &[Vec<f64>], b: &[Vec<f64>]) -> Result<((f64, f64), f64), String> {
    if a.len() != b.len() || a.is_empty() || a.iter().zip(b).any(|(a, b)| a.len() != b.len()) {
        return Err("the embeddings are of different sizes".to_owned());
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosines: Vec<f64> = a.iter().zip(b).map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let least = cosines.iter().copied().fold(f64::INFINITY, f64::min);
    let noise: f64 = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b)).map(|(a, b)| (a - b).powi(2)).sum();
    let power: f64 = a.iter().map(|a| dot(a, a)).sum();
    Ok(((mean, least), (noise / power).sqrt()))
}

impl Row {
    fn smaller(&self) -> f64 {
        1.0 - self.bytes as f64 / self.original_bytes.max(1) as f64
    }

    /// What is to be reached, and whether it is.
    fn goal(&self) -> Option<(String, bool)> {
        if self.name.starts_with("int4") {
            return Some((format!("{} % smaller", SMALLER * 100.0), self.smaller() >= SMALLER));
        }
        let weights = self.name.starts_with("int8-weights");
        weights.then(|| (format!("changed < {} %", CHANGED * 100.0), self.changed < CHANGED))
    }

    fn to_json(&self) -> Value {
        let goal = self.goal();
        json!({"kind": "graph", "type": self.name, "bytes": self.bytes, "smaller": self.smaller(),
            "cosine_mean": self.cosine.0, "cosine_least": self.cosine.1, "relative_l2": self.changed,
            "seconds_original": self.seconds.0, "seconds": self.seconds.1, "seconds_quantizing": self.quantizing,
            "goal": goal.as_ref().map(|goal| &goal.0), "met": goal.as_ref().map(|goal| goal.1)})
    }
}

fn as_text(machine: &Machine, rows: &[Row]) -> String {
    let mut out = format!(
        "{}, {} threads; MiniLM from safetensors (f32), {LINES} lines embedded\n\n{:<30} {:>8} {:>8} | {:>9} {:>9} {:>8} | {:>15} | {:>8}\n",
        machine.processor,
        machine.threads,
        "type",
        "size, MB",
        "smaller",
        "cosine",
        "least",
        "L2, %",
        "of f32's time",
        "quantize"
    );
    for row in rows {
        let goal =
            row.goal().map_or(String::new(), |(what, met)| format!("  {what}: {}", if met { "met" } else { "MISSED" }));
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{:<30} {:>8.2} {:>7.1}% | {:>9.6} {:>9.6} {:>8.3} | {:>14.2}x | {:>6.1} s{goal}",
            row.name,
            row.bytes as f64 / 1e6,
            row.smaller() * 100.0,
            row.cosine.0,
            row.cosine.1,
            row.changed * 100.0,
            row.seconds.1 / row.seconds.0,
            row.quantizing,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_are_compared_by_angle_and_length() {
        let a = vec![vec![1.0, 0.0], vec![0.0, 2.0]];
        let ((mean, least), changed) = compared(&a, &a).unwrap();
        assert_eq!((mean, least, changed), (1.0, 1.0, 0.0));
        let ((mean, least), changed) = compared(&a, &[vec![0.0, 1.0], vec![0.0, 2.0]]).unwrap();
        assert_eq!((mean, least), (0.5, 0.0));
        assert!((changed - (2.0f64 / 5.0).sqrt()).abs() < 1e-12);
        assert!(compared(&a, &a[..1]).is_err());
        assert!(compared(&[], &[]).is_err());
    }

    #[test]
    fn goals_are_of_4_bits_by_size_and_of_float_activations_by_change() {
        let row = |name: &str, bytes, changed| Row {
            name: name.into(),
            bytes,
            original_bytes: 1000,
            changed,
            ..Row::default()
        };
        assert_eq!(row("int4-g64", 150, 1.0).goal().map(|goal| goal.1), Some(true));
        assert_eq!(row("int4-g64", 151, 0.0).goal().map(|goal| goal.1), Some(false));
        assert_eq!(row("int8-weights", 250, 0.006).goal().map(|goal| goal.1), Some(true));
        assert_eq!(row("int8-dynamic", 250, 0.006).goal(), None);
        let text = as_text(&Machine { processor: "P".into(), threads: 2 }, &[row("int4-g64", 151, 0.5)]);
        assert!(text.contains("84.9%") && text.contains("MISSED"), "{text}");
    }

    #[test]
    fn lines_are_taken_from_all_of_the_text() {
        let text: String = (0..200).map(|i| format!("this is the line with the number {i}\nshort\n")).collect();
        let found = sample(&text);
        assert_eq!((found.lines().count(), found.lines().nth(1)), (50, Some("this is the line with the number 4")));
    }
}
