//! Python with the packages of the benchmark's scripts, each pinned, in a folder of the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{self, Scratch};
use crate::command;
use crate::package;
use crate::tools::{self, PYTHON};

pub(super) const ONNX_RUNTIME: &str = "onnxruntime==1.31.1";

/// What the scripts import, and what that needs.
const PACKAGES: &[&str] = &[
    ONNX_RUNTIME,
    "flatbuffers==25.12.19",
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "onnx==1.19.1",
    "packaging==26.3",
    "protobuf==7.36.2",
    "typing_extensions==4.16.0",
];

/// The interpreter of the system, with the packages beside it.
#[derive(Clone, Debug)]
pub(super) struct Python {
    packages: PathBuf,
}

impl Python {
    /// With packages in this folder.
    #[cfg(test)]
    pub(super) fn at(packages: PathBuf) -> Self {
        Self { packages }
    }

    /// Installs the packages unless they are there.
    pub(super) fn provide() -> Result<Self, String> {
        tools::require(&[PYTHON, "pip"])?;
        let root = cache::directory()?.join("python");
        // Wheels are for one version of Python.
        let version = command::output(Command::new(PYTHON).arg("--version"))?;
        let folder = root.join(folder_name(version.trim()));
        if !folder.exists() {
            eprintln!("fetching {} with pip", PACKAGES.join(", "));
            fs::create_dir_all(&root).map_err(|error| format!("cannot create {}: {error}", root.display()))?;
            let scratch = Scratch::beside(&root)?;
            let partial = scratch.path().join("packages");
            let mut pip = Command::new(PYTHON);
            pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]);
            pip.args(["--only-binary", ":all:"]).arg("--target").arg(&partial).args(PACKAGES);
            command::output(&mut pip)?;
            cache::install(&partial, &folder)?;
        }
        Ok(Self { packages: folder })
    }

    /// A command that runs one of the scripts that lie beside this file.
    pub(super) fn script(&self, name: &str) -> Command {
        let mut python = Command::new(PYTHON);
        python.env("PYTHONPATH", &self.packages).env("PYTHONDONTWRITEBYTECODE", "1").arg(script_path(name));
        python
    }
}

/// Ten hexadecimal digits that change when the script does.
pub(super) fn script_version(name: &str) -> Result<String, String> {
    let mut digits = package::sha256(&script_path(name))?;
    digits.truncate(10);
    Ok(digits)
}

fn script_path(name: &str) -> PathBuf {
    command::repository().join(Path::new("xtask/src/bench/onnx")).join(name)
}

/// `python-3.11.7-onnxruntime-1.31.1` and so on: the name says all versions but those of small packages, of which it has a checksum.
fn folder_name(version: &str) -> String {
    // FNV-1a (Fowler, Noll, Vo).
    let hash = PACKAGES
        .join(" ")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let name = format!("{version}-{ONNX_RUNTIME}-{:08x}", hash >> 32);
    name.to_lowercase().replace("==", "-").replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned() {
        assert!(
            PACKAGES.iter().all(|package| package.split_once("==").is_some_and(|(_, version)| !version.is_empty()))
        );
    }

    #[test]
    fn the_folder_is_that_of_one_version_of_python() {
        let name = folder_name("Python 3.11.7");
        assert!(name.starts_with("python-3.11.7-onnxruntime-1."), "{name}");
        assert_ne!(name, folder_name("Python 3.12.0"));
    }

    #[test]
    fn the_scripts_are_there() {
        for name in ["generate.py", "inputs.py", "onnxruntime_latency.py", "compare.py"] {
            assert_eq!(script_version(name).unwrap().len(), 10, "{name}");
        }
    }
}
