//! `cargo xtask bench quant --prune`: what pruning costs, and what it saves.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::command;

use super::{Bench, CALIBRATION, TEXT, file_bytes};

/// Chunks of [`CALIBRATION`], of 512 tokens.
const CHUNKS: &str = "16";

/// A way to prune.
struct Way {
    name: &'static str,
    arguments: &'static [&'static str],
    calibrated: bool,
}

const WAYS: [Way; 11] = [
    Way { name: "magnitude 50%", arguments: &["--sparsity", "50%"], calibrated: false },
    Way { name: "wanda 50%", arguments: &["--sparsity", "50%", "--method", "wanda"], calibrated: true },
    Way { name: "sparsegpt 50%", arguments: &["--sparsity", "50%"], calibrated: true },
    Way { name: "wanda 2:4", arguments: &["--sparsity", "2:4", "--method", "wanda"], calibrated: true },
    Way { name: "sparsegpt 2:4", arguments: &["--sparsity", "2:4"], calibrated: true },
    Way {
        name: "neurons 25%, nothing made up",
        arguments: &["--neurons", "25%", "--no-reconstruct"],
        calibrated: true,
    },
    Way { name: "neurons 25%", arguments: &["--neurons", "25%"], calibrated: true },
    Way { name: "neurons 25%, 3 steps", arguments: &["--neurons", "25%", "--steps", "3"], calibrated: true },
    Way { name: "a third of the query heads", arguments: &["--query-heads", "33%"], calibrated: true },
    Way { name: "a third of the groups of heads", arguments: &["--heads", "33%"], calibrated: true },
    Way { name: "neurons 50%", arguments: &["--neurons", "50%"], calibrated: true },
];

/// What `polaris compare` tells of the source and of a pruned file.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    name: String,
    /// The share of the weights that are zeros or no longer there.
    gone: f64,
    bytes: u64,
    seconds: f64,
    perplexity: f64,
    divergence: f64,
    prefill: f64,
    decode: f64,
    /// The source's in the same run.
    dense_prefill: f64,
    dense_decode: f64,
}

impl Row {
    fn of(name: &str, pruned: &Value, compared: &Value) -> Option<Row> {
        let comparison = &compared["comparison"];
        let speed = |file: &str, phase: &str| compared[file][phase]["tokens_per_second"].as_f64();
        let report = &pruned["pruned"];
        let (left, all) = (report["nonzero_after"].as_f64()?, report["parameters_before"].as_f64()?);
        Some(Row {
            name: name.to_owned(),
            gone: 1.0 - left / all,
            bytes: compared["b"]["file_bytes"].as_u64()?,
            seconds: pruned["seconds"].as_f64()?,
            perplexity: comparison["perplexity"].as_f64()?,
            divergence: comparison["divergence"]["mean"].as_f64()?,
            prefill: speed("b", "prefill")?,
            decode: speed("b", "decode")?,
            dense_prefill: speed("a", "prefill")?,
            dense_decode: speed("a", "decode")?,
        })
    }
}

/// Prunes in every way, compares each result with the source, and prints the table as it grows.
pub(super) fn run(bench: &Bench) -> Result<(), String> {
    let source_bytes = file_bytes(&bench.source)?;
    println!(
        "SmolLM2-135M from F16; {} chunks of 512 tokens, f32 activations, {} threads",
        bench.options.chunks, bench.options.threads
    );
    println!("calibrated on {CHUNKS} chunks of {}", CALIBRATION.join(", "));
    print!("{}", heading());
    let mut lines = String::new();
    for way in &WAYS {
        eprintln!("{}", way.name);
        let row = bench.pruned(way)?;
        print!("{}", line(&row, source_bytes));
        let _ = writeln!(lines, "{}", to_json(&row));
    }
    if let Some(path) = &bench.options.json {
        fs::write(path, lines).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

impl Bench {
    fn pruned(&self, way: &Way) -> Result<Row, String> {
        let output: PathBuf = self.scratch.path().join("pruned.gguf");
        let mut prune = self.polaris("prune", &["--no-manifest", "--json"]);
        prune.args(way.arguments);
        if way.calibrated {
            prune.args(["--chunks", CHUNKS, "--calibrate"]).arg(&self.calibration);
        }
        let told = command::output(prune.arg(&self.source).arg(&output))?;
        let pruned: Value = serde_json::from_str(&told).map_err(|error| format!("polaris prune: {error}"))?;
        let compared = self.compared(&output, &command::repository().join(TEXT), true)?;
        Row::of(way.name, &pruned, &compared).ok_or_else(|| format!("{}: the command told something else", way.name))
    }
}

fn heading() -> String {
    format!(
        "\n{:<31} {:>7} {:>8} {:>6} | {:>10} {:>8} | {:>15} {:>15} | {:>7}\n",
        "pruned", "gone", "size, MB", "ratio", "perplexity", "KL", "prefill : dense", "decode : dense", "seconds"
    )
}

fn line(row: &Row, source_bytes: u64) -> String {
    format!(
        "{:<31} {:>6.1}% {:>8.1} {:>6.2} | {:>10.2} {:>8.4} | {:>15} {:>15} | {:>7.0}\n",
        row.name,
        100.0 * row.gone,
        row.bytes as f64 / 1e6,
        source_bytes as f64 / row.bytes.max(1) as f64,
        row.perplexity,
        row.divergence,
        format!("{:.0} : {:.0}", row.prefill, row.dense_prefill),
        format!("{:.1} : {:.1}", row.decode, row.dense_decode),
        row.seconds
    )
}

fn to_json(row: &Row) -> Value {
    json!({"kind": "pruned", "way": row.name, "gone": row.gone, "bytes": row.bytes, "seconds": row.seconds,
        "perplexity": row.perplexity, "kl": row.divergence, "prefill": row.prefill, "decode": row.decode,
        "dense_prefill": row.dense_prefill, "dense_decode": row.dense_decode})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_that_the_commands_tell() {
        let speed = |n: f64| json!({"tokens_per_second": n});
        let compared = json!({"comparison": {"perplexity": 20.0, "divergence": {"mean": 0.5}},
            "a": {"prefill": speed(1.0), "decode": speed(2.0)},
            "b": {"file_bytes": 50, "prefill": speed(3.0), "decode": speed(4.0)}});
        let pruned = json!({"pruned": {"nonzero_after": 75, "parameters_before": 100}, "seconds": 9.0});
        let row = Row::of("x", &pruned, &compared).unwrap();
        assert_eq!((row.gone, row.bytes, row.dense_decode, row.decode), (0.25, 50, 2.0, 4.0));
        let line = line(&row, 100);
        assert!(line.contains("2.00 |") && line.contains("3 : 1") && line.contains("25.0%"), "{line}");
        assert_eq!(Row::of("x", &json!({}), &compared), None);
    }
}
