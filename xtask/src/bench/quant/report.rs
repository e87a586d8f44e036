//! What was measured of each type, the goals, and both as a table and as JSON lines.

use std::fmt::Write;

use serde_json::{Value, json};

use super::super::report::Machine;

/// A file, by one program.
#[derive(Clone, Debug, Default)]
pub(super) struct Made {
    /// What each run took.
    pub(super) seconds: Vec<f64>,
    pub(super) quality: Option<Quality>,
}

/// What `polaris compare` tells of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Quality {
    bytes: u64,
    perplexity: f64,
    /// By the original's.
    perplexity_ratio: f64,
    divergence: f64,
    same_top: f64,
    /// Tokens a second; 0 where it was not measured.
    prefill: f64,
    decode: f64,
}

impl Quality {
    pub(super) fn of(value: &Value) -> Option<Quality> {
        let comparison = &value["comparison"];
        let b = &value["b"];
        Some(Quality {
            bytes: b["file_bytes"].as_u64()?,
            perplexity: comparison["perplexity"].as_f64()?,
            perplexity_ratio: comparison["perplexity_ratio"].as_f64()?,
            divergence: comparison["divergence"]["mean"].as_f64()?,
            same_top: comparison["same_top"].as_f64()?,
            prefill: b["prefill"]["tokens_per_second"].as_f64()?,
            decode: b["decode"]["tokens_per_second"].as_f64()?,
        })
    }

    fn to_json(&self) -> Value {
        json!({"bytes": self.bytes, "perplexity": self.perplexity, "perplexity_ratio": self.perplexity_ratio,
            "kl": self.divergence, "same_top": self.same_top, "prefill": self.prefill, "decode": self.decode})
    }
}

impl Made {
    /// What else the machine does only slows down.
    fn fastest(&self) -> Option<f64> {
        self.seconds.iter().copied().reduce(f64::min)
    }
}

/// The kind of the model of 15 % of F32's size, of whose kind of text it has seen some.
pub(super) const CALIBRATED: &str = "mixed, calibrated";

/// A type, with importances or without.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// "Q4_K_M", "mixed@Q4_K_S" for a mixed model no larger than that, or [`CALIBRATED`].
    pub(super) kind: String,
    pub(super) weighted: bool,
    /// Runs in which others used the machine.
    pub(super) noisy: usize,
    pub(super) ours: Made,
    /// llama-quantize's; of a mixed model the uniform type's.
    pub(super) theirs: Made,
}

/// Something to be reached, and whether it is.
#[derive(Clone, Debug, PartialEq)]
struct Goal {
    what: &'static str,
    /// Whether the value is to be this at least; else at most.
    at_least: bool,
    limit: f64,
    /// Nothing where it could not be measured, which is not met.
    value: Option<f64>,
}

impl Goal {
    fn met(&self) -> bool {
        self.value.is_some_and(|value| if self.at_least { value >= self.limit } else { value <= self.limit })
    }

    fn sign(&self) -> &'static str {
        if self.at_least { ">=" } else { "<=" }
    }
}

impl Row {
    fn name(&self) -> String {
        format!("{}{}", self.kind, if self.weighted { "+imatrix" } else { "" })
    }

    fn is_calibrated(&self) -> bool {
        self.kind == CALIBRATED
    }

    fn is_mixed(&self) -> bool {
        self.kind.starts_with("mixed@")
    }

    /// Ours by theirs.
    fn ratio(&self, figure: fn(&Quality) -> f64) -> Option<f64> {
        Some(figure(self.ours.quality.as_ref()?) / figure(self.theirs.quality.as_ref()?))
    }

    fn goals(&self, beside_peer: bool) -> Vec<Goal> {
        let mut goals = Vec::new();
        if self.is_calibrated() {
            let value = self.ours.quality.as_ref().map(|quality| quality.perplexity_ratio);
            goals.push(Goal { what: "perplexity, of F16's", at_least: false, limit: 1.03, value });
        } else if self.is_mixed() {
            let value = self.ratio(|quality| quality.perplexity);
            goals.push(Goal { what: "perplexity, of the uniform type's", at_least: false, limit: 1.0, value });
            let value = self.ratio(|quality| quality.bytes as f64);
            goals.push(Goal { what: "size, of the uniform type's", at_least: false, limit: 1.0, value });
        } else if beside_peer {
            let value = self.ratio(|quality| quality.perplexity);
            goals.push(Goal { what: "perplexity, of llama-quantize's", at_least: false, limit: 1.0, value });
            let speed = self.theirs.fastest().zip(self.ours.fastest()).map(|(theirs, ours)| theirs / ours);
            goals.push(Goal { what: "speed, of llama-quantize's", at_least: true, limit: 1.5, value: speed });
        }
        goals
    }
}

/// Everything that one call of the benchmark measured.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) chunks: usize,
    /// Whether llama-quantize was measured, too.
    pub(super) peer: bool,
    /// Whether the original lies on the grid of `Q4_1`, as the only free file does.
    pub(super) as_is: bool,
    /// Of the original, in 16 bits.
    pub(super) source_bytes: u64,
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// The table, with what was compared above it and the goals below.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}, {} threads; SmolLM2-135M", self.machine.processor, self.machine.threads)?;
        let from =
            if self.as_is { "of the Q4_1 that there is" } else { "of the Q4_1 that there is, channels rescaled" };
        writeln!(out, "from F16 ({from}); {} chunks of 512 tokens, f32 activations", self.chunks)?;
        for row in self.rows.iter().filter(|row| row.noisy > 0) {
            writeln!(out, "NOISY: others used the machine while {} was quantized", row.name())?;
        }
        writeln!(
            out,
            "\n{:<18} {:>8} {:>9} | {:>19} | {:>19} | {:>15} | {:>8} {:>8}",
            "type", "size, MB", "of F32's", "perplexity", "KL divergence", "seconds", "prefill", "decode"
        )?;
        for row in &self.rows {
            let Some(ours) = &row.ours.quality else { continue };
            let pair = |ours: String, theirs: Option<String>| format!("{ours} : {}", theirs.unwrap_or("-".into()));
            let theirs = row.theirs.quality.as_ref();
            let seconds = |made: &Made| made.fastest().map(|seconds| format!("{seconds:.2}"));
            writeln!(
                out,
                "{:<18} {:>8.1} {:>8.1}% | {:>19} | {:>19} | {:>15} | {:>8.1} {:>8.1}",
                row.name(),
                ours.bytes as f64 / 1e6,
                100.0 * ours.bytes as f64 / (2 * self.source_bytes) as f64,
                pair(format!("{:.4}", ours.perplexity), theirs.map(|quality| format!("{:.4}", quality.perplexity))),
                pair(format!("{:.5}", ours.divergence), theirs.map(|quality| format!("{:.5}", quality.divergence))),
                pair(seconds(&row.ours).unwrap_or_default(), seconds(&row.theirs)),
                ours.prefill,
                ours.decode
            )?;
        }
        writeln!(out, "\n{:<18} {:<36} {:>9} {:>9}", "type", "goal", "", "value")?;
        let (mut met, mut all) = (0, 0);
        for row in &self.rows {
            for goal in row.goals(self.peer) {
                let value = goal.value.map_or("-".to_owned(), |value| format!("{value:.4}"));
                let verdict = if goal.met() { "met" } else { "MISSED" };
                let bound = format!("{} {}", goal.sign(), goal.limit);
                writeln!(out, "{:<18} {:<36} {bound:>9} {value:>9}  {verdict}", row.name(), goal.what)?;
                met += usize::from(goal.met());
                all += 1;
            }
        }
        writeln!(out, "{met} of {all} goals are met")
    }

    /// A line for the run, then one for each file and each goal.
    pub(super) fn to_json_lines(&self) -> String {
        let mut lines =
            vec![json!({"kind": "run", "processor": self.machine.processor, "threads": self.machine.threads,
            "chunks": self.chunks, "as_is": self.as_is, "source_bytes": self.source_bytes})];
        for row in &self.rows {
            for (program, made) in [("polaris", &row.ours), ("llama-quantize", &row.theirs)] {
                let program = if row.is_mixed() && program != "polaris" { "uniform" } else { program };
                if let Some(quality) = &made.quality {
                    lines.push(json!({"kind": "type", "type": row.kind, "imatrix": row.weighted, "program": program,
                        "seconds": made.seconds, "quality": quality.to_json(), "noisy": row.noisy}));
                }
            }
            for goal in row.goals(self.peer) {
                lines.push(json!({"kind": "goal", "type": row.name(), "goal": goal.what, "bound": goal.sign(),
                    "limit": goal.limit, "value": goal.value, "met": goal.met()}));
            }
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(perplexity: f64, bytes: u64, seconds: &[f64]) -> Made {
        let quality = Quality { bytes, perplexity, divergence: 0.1, ..Quality::default() };
        Made { seconds: seconds.to_vec(), quality: Some(quality) }
    }

    fn report(rows: Vec<Row>) -> Report {
        let machine = Machine { processor: "P".into(), threads: 2 };
        Report { machine, chunks: 20, peer: true, as_is: false, source_bytes: 200, rows }
    }

    #[test]
    fn goals_are_judged_by_the_fastest_runs_and_the_perplexities() {
        let row = Row {
            kind: "Q4_0".into(),
            ours: made(9.0, 50, &[2.0, 1.0]),
            theirs: made(9.1, 50, &[1.6, 1.4]),
            ..Row::default()
        };
        let goals = row.goals(true);
        assert!(goals[0].met() && !goals[1].met(), "{goals:?}");
        assert_eq!(goals[1].value, Some(1.4));
        assert!(row.goals(false).is_empty());
        let text = report(vec![row]).to_text();
        assert!(text.contains("9.0000 : 9.1000") && text.contains("1.00 : 1.40"), "{text}");
        assert!(text.contains("12.5%") && text.contains("1 of 2 goals are met"), "{text}");
    }

    #[test]
    fn a_mixed_model_has_to_be_better_and_no_larger_than_the_uniform_type() {
        let row = Row {
            kind: "mixed@Q4_K_S".into(),
            ours: made(9.0, 51, &[1.0]),
            theirs: made(9.1, 50, &[1.0]),
            ..Row::default()
        };
        let met: Vec<bool> = row.goals(false).iter().map(Goal::met).collect();
        assert_eq!(met, [true, false]);
        let lines = report(vec![row]).to_json_lines();
        assert!(lines.contains("\"uniform\"") && !lines.contains("llama-quantize"), "{lines}");
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let row = Row { kind: "Q4_0".into(), ours: made(9.0, 50, &[1.0]), ..Row::default() };
        assert!(row.goals(true).iter().all(|goal| !goal.met()));
    }

    #[test]
    fn figures_are_those_that_the_command_tells() {
        let phase = json!({"tokens_per_second": 3.0});
        let value = json!({"comparison": {"perplexity": 9.0, "perplexity_ratio": 1.1, "divergence": {"mean": 0.5}, "same_top": 0.9},
            "b": {"file_bytes": 7, "prefill": phase, "decode": phase}});
        let quality = Quality::of(&value).unwrap();
        assert_eq!((quality.bytes, quality.divergence, quality.decode), (7, 0.5, 3.0));
        assert_eq!(Quality::of(&json!({})), None);
    }
}
