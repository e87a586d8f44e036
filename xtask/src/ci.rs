//! `cargo xtask ci`: everything that continuous integration checks, in one run.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::arguments::Arguments;
use crate::tools::{self, PYTHON};
use crate::{cache, command, fetch, gcn4, onnx_cases, publish, vulkan};

pub(crate) const USAGE: &str = "cargo xtask ci [STEP..]

Without a step: all of them, in this order:
  fmt      the code is formatted
  clippy   no warning in any target
  fetch    the models of the end-to-end tests, and ONNX's test cases
  doc      the documentation builds without a warning
  package  every crate can be published: its package alone passes `cargo check`
  shaders  the committed SPIR-V is what the sources compile to, and spirv-val takes it
  gcn4     what shaders become on GCN4 keeps to the committed budget
  widths   the Vulkan part of the conformance suite, with subgroups of 4 and 16 (the tests have 8)
  test     unit, integration, documentation and end-to-end tests";

/// What the steps need.
pub(crate) const TOOLS: &[&str] = &[
    "cargo",
    "cc",
    "c++",
    "rustfmt",
    "clippy",
    PYTHON,
    "pip",
    "spirv-val",
    "libvulkan",
    "lavapipe",
    "radv",
    "vk-layer",
];

/// How many tests ran, as cargo's test runner counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tests {
    passed: u64,
    failed: u64,
}

impl Tests {
    /// Adds the counts of a line `test result: ok. 3 passed; 0 failed; ...`; other lines have none.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else {
            return;
        };
        let count = |what: &str| -> u64 {
            let before = counts.split(what).next().unwrap_or_default();
            let number = before.split_whitespace().next_back();
            number.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
    }
}

type Step = fn(&mut Tests) -> Result<(), String>;

/// The steps: what is quick, and what others wait for, comes first; the tests come last, so that
/// their result ends the output.
const STEPS: &[(&str, Step)] = &[
    ("fmt", |_| command::run(cargo().args(["fmt", "--all", "--check"]))),
    ("clippy", clippy),
    ("fetch", |_| {
        let names = [fetch::SMALL_MODEL, "all-minilm-l6-v2", "all-minilm-l6-v2-int8"];
        names.into_iter().try_for_each(|name| fetch::model(name).map(drop))?;
        onnx_cases::fetch().map(drop)
    }),
    ("doc", doc),
    ("package", |_| publish::check(cargo)),
    ("shaders", shaders),
    ("gcn4", |_| gcn4::main(Arguments::new(["--check".to_owned()]))),
    ("widths", widths),
    ("test", test),
];

/// Cargo as continuous integration wants it: what is built once needs no incremental state, and nobody steps through it with a debugger.
fn cargo() -> Command {
    let mut cargo = command::cargo();
    cargo.env("CARGO_INCREMENTAL", "0");
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only").env("CARGO_PROFILE_TEST_DEBUG", "line-tables-only");
    // As in the manifest: what is checked in one workspace serves in another.
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    cargo
}

fn clippy(_: &mut Tests) -> Result<(), String> {
    let clippy = ["clippy", "--workspace", "--all-targets"];
    command::run(cargo().args(clippy).args(["--", "-D", "warnings"]))
}

fn doc(_: &mut Tests) -> Result<(), String> {
    command::run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The shaders' compiler is in no other step: it is C++, and off by default.
fn shaders(tests: &mut Tests) -> Result<(), String> {
    let compiler = ["--package", "xtask-shaders", "--features", "compiler"];
    command::run(cargo().arg("clippy").args(compiler).args(["--all-targets", "--", "-D", "warnings"]))?;
    run_tests(cargo().arg("test").args(compiler), tests)?;
    crate::shaders::main(Arguments::new(["--check".to_owned()]))
}

/// Tests on Mesa's software driver, unless the user has chosen another, with vectors of so many bits: they make its subgroups. It caches what it
/// compiles without regard to that, so that each width has a cache of its own.
fn on_lavapipe(mut tests: Command, bits: u32, chosen: bool) -> Result<Command, String> {
    if !chosen {
        let driver = vulkan::driver(vulkan::SOFTWARE).ok_or_else(|| tools::missing_program("lavapipe"))?;
        tests.envs(vulkan::only(&driver));
    }
    let cache = command::target_directory().join("mesa-shader-cache").join(bits.to_string());
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    tests.env("LP_NATIVE_VECTOR_WIDTH", bits.to_string()).env("MESA_SHADER_CACHE_DIR", cache);
    Ok(tests)
}

/// Kernels may rely on no size of subgroups. The driver's compiler takes most of the time: it need not optimize.
fn widths(tests: &mut Tests) -> Result<(), String> {
    for bits in [128, 512] {
        let mut conformance = on_lavapipe(cargo(), bits, false)?;
        // Of the whole workspace, so that its crates are built with the features that the step after this one builds them with.
        conformance.args(["test", "--workspace", "--test", "conformance", "--"]);
        // What moves or computes single elements, convolutions, and products with weights in all formats, whose lanes meet in none or as in others.
        let apart =
            ["device::images", "device::elements", "device::moves", "elementwise", "shape", "gather", "every_dtype"];
        for apart in apart {
            conformance.args(["--skip", apart]);
        }
        conformance.env("POLARIS_CONFORMANCE", "vulkan").env("GALLIVM_PERF", "nopt");
        run_tests(&mut conformance, tests)?;
    }
    Ok(())
}

/// Tests of single operators, whose shaders take longer to compile than to run: the driver's compiler need not optimize there.
const OPERATORS: [&str; 2] = ["conformance", "onnx_nodes"];

fn test(tests: &mut Tests) -> Result<(), String> {
    let metadata = command::output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let (operators, others): (Vec<String>, Vec<String>) =
        test_targets(&metadata)?.into_iter().partition(|name| OPERATORS.contains(&name.as_str()));
    let named = |names: Vec<String>| names.into_iter().flat_map(|name| ["--test".to_owned(), name]);
    let chosen = vulkan::is_chosen();
    let mut first = on_lavapipe(cargo(), 256, chosen)?;
    let mut second = on_lavapipe(cargo(), 256, chosen)?;
    let mut third = on_lavapipe(cargo(), 256, chosen)?;
    // What it compiles to lies in the same cache under the same names.
    let cache = command::target_directory().join("mesa-shader-cache").join("256-plain");
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    first.env("GALLIVM_PERF", "nopt").env("MESA_SHADER_CACHE_DIR", cache);
    first.args(["test", "--workspace", "--no-fail-fast"]).args(named(operators));
    second.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--examples"]).args(named(others));
    third.args(["test", "--workspace", "--no-fail-fast", "--doc"]);
    // The second makes it before its tests run: a release build would be all crates once more.
    let binary = command::target_directory().join("debug").join(format!("polaris{}", env::consts::EXE_SUFFIX));
    let mut outcome = Ok(());
    for command in [&mut first, &mut second, &mut third] {
        command.env("POLARIS_MODELS", cache::models()?).env("POLARIS_BIN", &binary);
        // Later ones run even so: all that fails is to be seen.
        outcome = outcome.and(run_tests(command, tests));
    }
    outcome
}

/// The names of the workspace's integration tests, each once.
fn test_targets(metadata: &str) -> Result<Vec<String>, String> {
    let metadata: Value = serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let is_test =
        |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
    let names = targets.filter(is_test).filter_map(|target| target["name"].as_str().map(str::to_owned));
    let names: BTreeSet<String> = names.collect();
    match OPERATORS.iter().find(|name| !names.contains(**name)) {
        Some(missing) => Err(format!("the workspace has no test {missing}")),
        None => Ok(names.into_iter().collect()),
    }
}

/// Runs tests, shows what the runner prints and counts.
fn run_tests(test: &mut Command, tests: &mut Tests) -> Result<(), String> {
    test.stdin(Stdio::null()).stdout(Stdio::piped());
    eprintln!("$ {}", command::shown(test));
    let mut here = Tests::default();
    let mut child = test.spawn().map_err(|error| command::not_started(test, &error))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|error| format!("cannot read the tests' output: {error}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            here.add(&line);
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    tests.passed += here.passed;
    tests.failed += here.failed;
    match (status.success(), here) {
        (false, Tests { failed, .. }) => Err(format!("{failed} tests failed ({status})")),
        (true, Tests { passed: 0, .. }) => Err("no test ran".into()),
        (true, _) => Ok(()),
    }
}

/// The subcommand: runs the steps until one fails.
pub(crate) fn main(arguments: Arguments) -> Result<(), String> {
    let names = arguments.names()?;
    let known = |name: &String| STEPS.iter().any(|(step, _)| step == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        return Err(format!("no step {name}; usage: {USAGE}"));
    }
    tools::provide(TOOLS)?;

    let mut tests = Tests::default();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut failure = None;
    for (name, step) in STEPS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("==> {name}");
        let start = Instant::now();
        let result = step(&mut tests);
        let time = start.elapsed();
        times.push((name, time));
        match result {
            Ok(()) => println!("<== {name}: ok, {:.1} s", time.as_secs_f64()),
            Err(reason) => {
                println!("<== {name}: FAILED, {:.1} s", time.as_secs_f64());
                failure = Some(format!("{name}: {reason}"));
                break;
            }
        }
    }

    println!();
    for (index, (name, time)) in times.iter().enumerate() {
        let failed = failure.is_some() && index + 1 == times.len();
        let result = if failed { "FAILED" } else { "ok" };
        println!("{name:<8} {:>7.1} s  {result}", time.as_secs_f64());
    }
    if tests != Tests::default() {
        println!("{} passed, {} failed", tests.passed, tests.failed);
    }
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_result_lines_are_added_up() {
        let mut tests = Tests::default();
        tests.add("running 3 tests");
        tests.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        tests.add("test result: FAILED. 10 passed; 2 failed; 0 ignored; finished in 0.01s");
        let expected = Tests { passed: 13, failed: 2 };
        assert_eq!(tests, expected);
    }

    #[test]
    fn integration_tests_are_listed_once_and_those_of_operators_must_be_there() {
        let target = |name: &str, kind: &str| format!(r#"{{"name": "{name}", "kind": ["{kind}"]}}"#);
        let package = |targets: &[String]| format!(r#"{{"targets": [{}]}}"#, targets.join(","));
        let first = package(&[target("a", "lib"), target("onnx_nodes", "test"), target("conformance", "test")]);
        let second = package(&[target("speed", "bench"), target("cli", "test"), target("onnx_nodes", "test")]);
        let metadata = |packages: &[&str]| format!(r#"{{"packages": [{}]}}"#, packages.join(","));
        assert_eq!(test_targets(&metadata(&[&first, &second])).unwrap(), ["cli", "conformance", "onnx_nodes"]);
        assert_eq!(test_targets(&metadata(&[&second])).unwrap_err(), "the workspace has no test conformance");
        assert!(test_targets("{}").is_err());
    }

    #[test]
    fn the_usage_lists_the_steps_in_their_order() {
        let listed: Vec<&str> = USAGE
            .lines()
            .filter(|line| line.starts_with("  "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let steps: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, steps);
    }
}
