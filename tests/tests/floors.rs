//! The floors of the house: a crate may use only crates on lower floors. Crates of one floor do not know each other.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace and its floor (docs/ARCHITECTURE.md). `None`: outside of the house, may use any.
const FLOORS: [(&str, Option<u32>); 16] = [
    ("core-tensor", Some(0)),
    ("loader-gguf", Some(1)),
    ("loader-onnx", Some(1)),
    ("loader-torch", Some(1)),
    ("polaris-gradient", Some(1)),
    ("polaris-optimizer", Some(1)),
    ("polaris-quant", Some(1)),
    ("cpu-kernels", Some(1)),
    ("gpu-polaris", Some(1)),
    ("polaris-runtime", Some(2)),
    ("polaris-pipelines", Some(3)),
    ("polaris-infer", Some(4)),
    ("xtask", None),
    ("xtask-codegen", None),
    ("xtask-shaders", None),
    ("polaris-tests", None),
];

/// Name → the members of the workspace that a crate uses when it is built. Dev-dependencies do not count: they are not in what is published, and
/// a test may look at the whole house.
fn workspace() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("it has packages");
    let name = |value: &Value| value["name"].as_str().expect("each has a name").to_owned();
    let members: Vec<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let used = package["dependencies"].as_array().expect("a package lists what it uses").iter();
            let used = used.filter(|used| used["kind"] != "dev").map(name).filter(|used| members.contains(used));
            (name(package), used.collect())
        })
        .collect()
}

#[test]
fn every_crate_has_a_floor() {
    let floors: BTreeMap<_, _> = FLOORS.into_iter().collect();
    let members: Vec<String> = workspace().into_keys().collect();
    let listed: Vec<&str> = floors.keys().copied().collect();
    assert_eq!(members, listed, "the table of floors and the workspace differ");
}

#[test]
fn crates_use_only_crates_of_lower_floors() {
    let floors: BTreeMap<_, _> = FLOORS.into_iter().collect();
    let mut edges = 0;
    for (name, used) in workspace() {
        let Some(floor) = floors[&*name] else { continue };
        for other in used {
            let below = floors[&*other];
            assert!(
                below.is_some_and(|below| below < floor),
                "{name} (floor {floor}) uses {other} (floor {below:?}), which is not below it"
            );
            edges += 1;
        }
    }
    assert!(edges > 0, "no crate uses another: the test looks at the wrong manifests");
}

#[test]
fn the_vocabulary_uses_no_threads_no_gpu_and_no_file_format() {
    let manifest = include_str!("../../crates/core-tensor/Cargo.toml");
    let dependencies = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
    let names: Vec<&str> = dependencies
        .expect("core-tensor has dependencies")
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .collect();
    assert_eq!(
        names,
        ["bytemuck", "half", "memmap2", "thiserror"],
        "think twice before core-tensor uses another crate"
    );
}
