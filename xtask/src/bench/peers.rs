//! The programs that are compared: how each is called, and what it answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::llama_cpp::{LlamaCpp, VERSION};
use super::measure::{self, Memory, Run};

/// What both programs continue by one token.
const PROMPT: &str = "The sea was calm that morning, and the boats came home one by one, heavy with fish. \
                      On the pier the children counted them aloud, until";

/// Tokens per second of the repetitions in one run, and the run's peak memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speed {
    pub(crate) prefill: Vec<f64>,
    pub(crate) decode: Vec<f64>,
    pub(crate) memory: Memory,
}

/// Seconds from the start of the process to its first token, and the run's peak memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    pub(crate) seconds: f64,
    pub(crate) memory: Memory,
}

impl From<Run> for Start {
    fn from(run: Run) -> Self {
        // A first token without text (an end, half a character) shows only in the end of the process.
        let time = run.first_output.unwrap_or(run.total);
        Self { seconds: time.as_secs_f64(), memory: run.memory }
    }
}

/// A program that runs language models.
pub(crate) trait Program {
    fn name(&self) -> &'static str;

    /// Processes a prompt of `prefill` tokens, then generates `decode` tokens from an empty context, after a warm-up.
    fn speed(&self, model: &Path, prefill: usize, decode: usize, repetitions: usize) -> Result<Speed, String>;

    /// Starts, loads the model and generates one token.
    fn first_token(&self, model: &Path) -> Result<Start, String>;
}

pub(crate) const POLARIS: &str = "polaris";
pub(crate) const LLAMA_CPP: &str = "llama.cpp";

/// The `polaris` binary.
#[derive(Debug)]
pub(crate) struct Polaris {
    pub(crate) binary: PathBuf,
    pub(crate) threads: usize,
    /// The Vulkan device of both programs; the processor if not given.
    pub(crate) vulkan: Option<usize>,
}

impl Polaris {
    fn device(&self) -> String {
        self.vulkan.map_or("cpu".into(), |number| format!("vulkan:{number}"))
    }
}

impl Program for Polaris {
    fn name(&self) -> &'static str {
        POLARIS
    }

    fn speed(&self, model: &Path, prefill: usize, decode: usize, repetitions: usize) -> Result<Speed, String> {
        let mut bench = Command::new(&self.binary);
        bench.arg("bench").arg("-m").arg(model).args(["--json", "-t", &self.threads.to_string()]);
        bench.args(["-p", &prefill.to_string(), "-n", &decode.to_string(), "-r", &repetitions.to_string()]);
        bench.args(["--device", &self.device()]);
        let run = measure::run(&mut bench)?;
        parse_polaris(&run.stdout, prefill, decode).map(|speed| Speed { memory: run.memory, ..speed })
    }

    fn first_token(&self, model: &Path) -> Result<Start, String> {
        let mut generate = Command::new(&self.binary);
        generate.arg("generate").arg("-m").arg(model).args(["-p", PROMPT, "-n", "1", "--temperature", "0"]);
        generate.args(["--threads", &self.threads.to_string(), "--device", &self.device()]);
        measure::run(&mut generate).map(Start::from)
    }
}

/// llama.cpp's `llama-bench` and `llama-completion`.
#[derive(Debug)]
pub(crate) struct LlamaCppBench {
    pub(crate) programs: LlamaCpp,
    pub(crate) threads: usize,
    /// The Vulkan device, for a build with that backend.
    pub(crate) vulkan: Option<usize>,
}

/// What llama.cpp is, for the report.
pub(crate) fn llama_cpp_description() -> String {
    format!("llama.cpp of llama-cpp-python {VERSION}, built for this processor")
}

impl Program for LlamaCppBench {
    fn name(&self) -> &'static str {
        LLAMA_CPP
    }

    fn speed(&self, model: &Path, prefill: usize, decode: usize, repetitions: usize) -> Result<Speed, String> {
        let mut bench = self.programs.command("llama-bench");
        bench.arg("-m").arg(model).args(["-o", "json", "-t", &self.threads.to_string()]);
        bench.args(["-p", &prefill.to_string(), "-n", &decode.to_string(), "-r", &repetitions.to_string()]);
        if let Some(number) = self.vulkan {
            // Named, since software devices are passed over otherwise; all layers on it, none on the processor.
            bench.env("GGML_VK_VISIBLE_DEVICES", number.to_string()).args(["-ngl", "99"]);
        }
        let run = measure::run(&mut bench)?;
        if self.vulkan.is_some() && !run.stdout.contains("Vulkan") {
            return Err("llama-bench did not run on Vulkan".into());
        }
        parse_llama_bench(&run.stdout, prefill, decode).map(|speed| Speed { memory: run.memory, ..speed })
    }

    /// With the options that make it start fastest: no warm-up, no fitting of the context to the device, a context that
    /// is large enough and no larger.
    fn first_token(&self, model: &Path) -> Result<Start, String> {
        let mut completion = self.programs.command("llama-completion");
        completion.arg("-m").arg(model).args(["-p", PROMPT, "-n", "1", "--temp", "0", "-c", "512"]);
        completion.args(["-no-cnv", "--no-display-prompt", "--no-warmup", "-fit", "off"]);
        completion.args(["-t", &self.threads.to_string()]);
        measure::run(&mut completion).map(Start::from)
    }
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    let numbers: Vec<f64> = value.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    (!numbers.is_empty()).then_some(numbers)
}

/// `{"prefill": {"tokens", "samples"}, "decode": {"tokens", "samples"}, ...}`, samples in tokens per second.
fn parse_polaris(text: &str, prefill: usize, decode: usize) -> Result<Speed, String> {
    let answer: Value = serde_json::from_str(text)
        .map_err(|error| format!("`polaris bench --json` printed no JSON: {error}\n{text}"))?;
    let samples = |phase: &str, tokens: usize| {
        let phase = &answer[phase];
        numbers(&phase["samples"])
            .filter(|_| phase["tokens"] == tokens)
            .ok_or_else(|| format!("`polaris bench` gave no samples of {tokens} tokens: {phase}"))
    };
    Ok(Speed { prefill: samples("prefill", prefill)?, decode: samples("decode", decode)?, memory: Memory::default() })
}

/// llama-bench's list of tests, each with `n_prompt`, `n_gen` and `samples_ts` in tokens per second.
fn parse_llama_bench(text: &str, prefill: usize, decode: usize) -> Result<Speed, String> {
    let answer: Value =
        serde_json::from_str(text).map_err(|error| format!("llama-bench printed no JSON: {error}\n{text}"))?;
    let samples = |prompt: usize, generated: usize| {
        let tests = answer.as_array().into_iter().flatten();
        tests
            .filter(|test| test["n_prompt"] == prompt && test["n_gen"] == generated)
            .find_map(|test| numbers(&test["samples_ts"]))
            .ok_or_else(|| format!("llama-bench gave no samples of {prompt} + {generated} tokens"))
    };
    Ok(Speed { prefill: samples(prefill, 0)?, decode: samples(0, decode)?, memory: Memory::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polaris_answer_is_read() {
        let text = r#"{"model": "m", "threads": 2, "load_seconds": 0.1, "peak_memory_bytes": 9,
            "prefill": {"tokens": 512, "tokens_per_second": 2.0, "samples": [1.0, 2.0, 3]},
            "decode": {"tokens": 128, "tokens_per_second": 4.0, "samples": [4.0]}}"#;
        let speed = parse_polaris(text, 512, 128).unwrap();
        assert_eq!(speed.prefill, [1.0, 2.0, 3.0]);
        assert_eq!(speed.decode, [4.0]);
        assert!(parse_polaris(text, 512, 64).unwrap_err().contains("no samples of 64 tokens"));
        assert!(parse_polaris("oops", 512, 128).unwrap_err().contains("no JSON"));
    }

    #[test]
    fn llama_benchs_answer_is_read_whatever_the_order() {
        let text = r#"[{"n_prompt": 0, "n_gen": 128, "samples_ts": [5.5]},
            {"n_prompt": 512, "n_gen": 0, "samples_ts": [7.0, 8.0]}]"#;
        let speed = parse_llama_bench(text, 512, 128).unwrap();
        assert_eq!((speed.prefill, speed.decode), (vec![7.0, 8.0], vec![5.5]));
        assert!(parse_llama_bench("[]", 512, 128).is_err());
    }
}
