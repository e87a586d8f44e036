//! The test cases that the `onnx` package ships, imported and run: by the reference interpreter, on the CPU, as imported and optimized, and on
//! a Vulkan device.
//!
//! They lie where `cargo xtask fetch onnx-cases` puts them. `skipped.txt` lists those that do not pass, with a reason each; it can only
//! shrink: a case of it that passes fails the test.

mod case;

use std::collections::BTreeMap;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use case::Runner;
use core_tensor::Backend;
use cpu_kernels::{CpuBackend, CpuOptions};
use gpu_polaris::{GpuOptions, VulkanBackend};

const SKIPPED: &str = include_str!("skipped.txt");

fn cases_folder() -> PathBuf {
    polaris_tests::model("onnx-1.19.1-cases")
}

/// Case → why it does not pass. A line is a name and a reason; a name that ends in `*` stands for all that begin so.
fn skipped() -> Vec<(&'static str, &'static str)> {
    let lines = SKIPPED.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"))).collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// Runs all cases of some folders; fails where the list of those that do not pass is not exactly what `skipped.txt` says.
/// How many of those that pass ran on the first backend wholly.
fn run(parts: &'static [&'static str], runner: Runner) -> usize {
    // Builds without optimization have large frames.
    let deep = std::thread::Builder::new().stack_size(64 << 20).spawn(move || run_here(parts, &runner));
    deep.expect("a thread starts").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run_here(parts: &[&str], runner: &Runner) -> usize {
    let only = env::var("ONNX_CASE").ok();
    let optimized = matches!(runner, Runner::Backends(_, true));
    let mut skipped = skipped();
    skipped.retain(|(_, reason)| optimized || !reason.starts_with("optimized:"));
    let mut used = vec![false; skipped.len()];
    let (mut passed, mut wholly, mut wrong) = (0, 0, Vec::new());
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for part in parts {
        let folder = cases_folder().join(part);
        let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
            .expect("the folder is read")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        cases.sort();
        for path in cases {
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            if !path.join("model.onnx").exists() || only.as_ref().is_some_and(|part| !name.contains(part.as_str())) {
                continue;
            }
            let listed = skipped.iter().position(|(pattern, _)| matches(pattern, &name));
            let result = catch_unwind(AssertUnwindSafe(|| case::run(&path, runner).map_err(|error| error.to_string())));
            let result = result.unwrap_or_else(|_| Err("it panics".into()));
            match (listed, result) {
                (None, Ok((on_backend, elsewhere))) => {
                    passed += 1;
                    wholly += usize::from(on_backend > 0 && elsewhere == 0);
                }
                (Some(at), Ok(_)) => {
                    wrong.push(format!("{name} passes: take it off skipped.txt ({})", skipped[at].0));
                    used[at] = true;
                }
                (None, Err(error)) => wrong.push(format!("{name}: {error}")),
                (Some(at), Err(_)) => {
                    used[at] = true;
                    *reasons.entry(skipped[at].1).or_default() += 1;
                }
            }
        }
    }
    println!("{passed} passed, {wholly} wholly on the backend");
    for (reason, count) in reasons {
        println!("{count} do not: {reason}");
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    if only.is_none() && parts.contains(&"node") {
        let unused: Vec<&str> =
            skipped.iter().zip(&used).filter(|(_, used)| !**used).map(|((pattern, _), _)| *pattern).collect();
        assert!(unused.is_empty(), "skipped.txt names what is no case: {unused:?}");
    }
    wholly
}

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(CpuOptions::default().with_threads(2)))
}

static ALL: [&str; 3] = ["node", "pytorch-converted", "pytorch-operator"];

#[test]
fn the_reference_interpreter_gives_what_onnx_expects() {
    run(&ALL, Runner::Interpreter);
}

#[test]
fn the_cpu_gives_what_onnx_expects() {
    run(&ALL, Runner::Backends(vec![cpu()], false));
}

/// What a device has no kernel for, the processor runs: the number of cases that need it can only shrink.
#[test]
fn a_vulkan_device_gives_what_onnx_expects() {
    const WHOLLY: usize = 1372;
    let vulkan = VulkanBackend::open(&GpuOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let wholly = run(&ALL, Runner::Backends(vec![Arc::new(vulkan), cpu()], false));
    assert!(env::var_os("ONNX_CASE").is_some() || wholly >= WHOLLY, "{wholly} cases run on the device, not {WHOLLY}");
}

#[test]
fn optimized_graphs_give_what_onnx_expects() {
    run(&ALL, Runner::Backends(vec![cpu()], true));
}
