//! `polaris doctor`: what this machine has, and whether it computes right.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use core_tensor::FileAccess;
use cpu_kernels::simd::Level;
use loader_gguf::Gguf;
use models::backends::{self, BackendOptions};
use models::inspect::{ContextMemory, inspect};
use models::llama::KvDType;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, bytes};
use crate::self_test::{self, Outcome};

const EXAMPLES: &str = "\
Examples:
  polaris doctor
  polaris doctor -m model.gguf
  polaris doctor --device vulkan
  polaris doctor --json | jq .self_test

The exit code is 1 if the self-test fails, or if the model cannot run here.";

/// Check this machine: processor, memory, devices, a quick self-test; whether a model fits
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Also tell whether this model (a GGUF file) can run here
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The device that would run a model: auto, cpu, vulkan, vulkan:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: backends::Device,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    processor: Option<String>,
    architecture: &'static str,
    /// Instruction-set levels that kernels exist for and the processor has, slowest first.
    levels: Vec<&'static str>,
    /// Threads that the process may use.
    threads: usize,
    memory_bytes: Option<u64>,
    available_bytes: Option<u64>,
    devices: Vec<Device>,
    /// Why no graphics device is among them.
    note: Option<String>,
    self_test: Vec<Outcome>,
    model: Option<Fit>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    description: String,
    memory_bytes: Option<u64>,
}

/// Whether a model can run.
#[derive(Debug, Serialize)]
struct Fit {
    path: PathBuf,
    /// Why no pipeline runs it.
    unsupported: Option<String>,
    contexts: Vec<ContextFit>,
}

#[derive(Debug, Serialize)]
struct ContextFit {
    #[serde(flatten)]
    memory: ContextMemory,
    /// Whether the first device has that much.
    fits: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let opened = backends::open(&BackendOptions { device: arguments.device, ..BackendOptions::default() })?;
    let devices: Vec<Device> = opened
        .backends
        .iter()
        .map(|backend| Device {
            name: backend.name().to_owned(),
            description: backend.description(),
            memory_bytes: Some(backend.memory().bytes).filter(|bytes| *bytes != u64::MAX),
        })
        .collect();
    let room = devices.first().and_then(|device| device.memory_bytes).unwrap_or(u64::MAX);
    let model = arguments.model.as_deref().map(|path| fit(path, room)).transpose()?;
    let system = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        architecture: std::env::consts::ARCH,
        levels: Level::available().into_iter().map(Level::name).collect(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: meminfo(&system, "MemTotal"),
        available_bytes: meminfo(&system, "MemAvailable"),
        devices,
        note: opened.note,
        self_test: self_test::run(&opened.backends),
        model,
    };
    match arguments.json {
        true => output::write_json(&findings)?,
        false => output::write(&as_text(&findings))?,
    }
    verdict(&findings)
}

/// Fails if the machine or the model does not do.
fn verdict(findings: &Findings) -> Result<(), Failure> {
    if let Some(failed) = findings.self_test.iter().find(|outcome| !outcome.passed) {
        let Outcome { operator, level, detail, .. } = failed;
        return Err(Failure::Runtime(format!("self-test: {operator} computes wrong results at {level}: {detail}")));
    }
    let Some(model) = &findings.model else {
        return Ok(());
    };
    if let Some(reason) = &model.unsupported {
        return Err(Failure::Runtime(format!("{}: {reason}", model.path.display())));
    }
    if !model.contexts.is_empty() && model.contexts.iter().all(|context| !context.fits) {
        return Err(Failure::Runtime(format!("{}: there is not enough memory at any context", model.path.display())));
    }
    Ok(())
}

fn fit(path: &Path, room: u64) -> Result<Fit, Failure> {
    let inspection = inspect(&Gguf::open(path, FileAccess::Map)?, KvDType::default());
    let fits = |memory: ContextMemory| ContextFit { memory, fits: memory.total <= room };
    Ok(Fit {
        path: path.to_owned(),
        unsupported: inspection.unsupported,
        contexts: inspection.memory.into_iter().map(fits).collect(),
    })
}

/// The processor's name in Linux's `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A line of Linux's `/proc/meminfo`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn as_text(findings: &Findings) -> String {
    let unknown = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), bytes);
    let mut text = format!(
        "polaris       {}\nprocessor     {} ({})\ninstructions  {}\nthreads       {}\nmemory        {}, {} available\n",
        findings.version,
        findings.processor.as_deref().unwrap_or("unknown"),
        findings.architecture,
        findings.levels.join(", "),
        findings.threads,
        unknown(findings.memory_bytes),
        unknown(findings.available_bytes),
    );
    if let Some(note) = &findings.note {
        let _ = writeln!(text, "graphics      none: {note}");
    }
    for device in &findings.devices {
        let Device { name, description, memory_bytes } = device;
        let _ = writeln!(text, "device        {name}: {description}; {}", unknown(*memory_bytes));
    }
    let passed = findings.self_test.iter().filter(|outcome| outcome.passed).count();
    let _ = writeln!(text, "self-test     {passed} of {} passed", findings.self_test.len());
    for outcome in findings.self_test.iter().filter(|outcome| !outcome.passed) {
        let _ = writeln!(text, "  FAILED      {} at {}: {}", outcome.operator, outcome.level, outcome.detail);
    }
    if let Some(model) = &findings.model {
        let _ = writeln!(text, "\n{}", model.path.display());
        if let Some(reason) = &model.unsupported {
            let _ = writeln!(text, "  does not run: {}", output::shown(reason));
        }
        for ContextFit { memory, fits } in &model.contexts {
            let verdict = if *fits { "fits" } else { "does not fit" };
            let _ = writeln!(text, "  context {:>7}: {:>9}  {verdict}", memory.context, bytes(memory.total));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_files_are_read() {
        assert_eq!(processor("processor : 0\nmodel name\t: Some CPU @ 3GHz\n").as_deref(), Some("Some CPU @ 3GHz"));
        assert_eq!(processor(""), None);
        assert_eq!(meminfo("MemTotal:       2048 kB\nMemAvailable:  1 kB\n", "MemTotal"), Some(2048 * 1024));
        assert_eq!(meminfo("MemTotal: x\n", "MemTotal"), None);
    }

    fn findings() -> Findings {
        Findings {
            version: "0",
            processor: None,
            architecture: "x",
            levels: vec!["scalar"],
            threads: 1,
            memory_bytes: None,
            available_bytes: None,
            devices: Vec::new(),
            note: None,
            self_test: Vec::new(),
            model: None,
        }
    }

    #[test]
    fn a_failed_self_test_and_a_model_that_does_not_fit_are_failures() {
        assert!(verdict(&findings()).is_ok());
        let outcome = Outcome { level: "scalar".into(), operator: "Softmax", passed: false, detail: "NMSE 1".into() };
        let failed = Findings { self_test: vec![outcome], ..findings() };
        assert!(verdict(&failed).is_err_and(|failure| failure.message().is_some_and(|m| m.contains("Softmax"))));
        let memory = ContextMemory { context: 512, weights: 1, states: 1, arena: 1, total: 3 };
        let contexts = |fits| vec![ContextFit { memory, fits: false }, ContextFit { memory, fits }];
        for fits in [true, false] {
            let model = Some(Fit { path: "m".into(), unsupported: None, contexts: contexts(fits) });
            assert_eq!(verdict(&Findings { model, ..findings() }).is_ok(), fits);
        }
    }
}
