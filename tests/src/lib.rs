//! Tests across crates, and what those of them share that run the command on real models.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The folder of the models that `cargo xtask fetch` gets: `$POLARIS_MODELS`, or where that command puts them.
///
/// # Panics
/// When no variable says where that is.
#[must_use]
pub fn models_folder() -> PathBuf {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable("POLARIS_MODELS") {
        return folder;
    }
    let cache = variable("POLARIS_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("polaris")))
        .or_else(|| variable("LOCALAPPDATA").filter(|_| cfg!(windows)).map(|path| path.join("polaris")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache/polaris")));
    cache.expect("POLARIS_MODELS, POLARIS_CACHE or HOME is set").join("models")
}

/// A model of that folder.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn model(name: &str) -> PathBuf {
    let path = models_folder().join(name);
    assert!(path.exists(), "{} is not there: run `cargo xtask fetch`", path.display());
    path
}

/// The binary `polaris`: `$POLARIS_BIN`, or a release build made here.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| env::var_os("POLARIS_BIN").map_or_else(build, PathBuf::from))
}

/// Builds the release binary, which takes no time if nothing changed, and asks cargo where it is.
fn build() -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit());
    cargo.args(["build", "--release", "--package", "polaris-infer", "--message-format=json-render-diagnostics"]);
    let built = cargo.output().expect("cargo runs");
    assert!(built.status.success(), "the binary cannot be built: {}", built.status);
    let messages = String::from_utf8_lossy(&built.stdout);
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let executable = message["executable"].as_str()?;
        (message["target"]["name"] == "polaris").then(|| executable.into())
    });
    executable.expect("cargo tells where the binary is")
}
