//! `cargo xtask shaders`: the shaders' SPIR-V from their sources.

use crate::arguments::Arguments;
use crate::{command, tools};

pub(crate) const USAGE: &str = "cargo xtask shaders [--check]

Compiles crates/gpu-polaris/shaders/*.comp to crates/gpu-polaris/spirv, which is committed: only what changed since.
The compiler is pinned; the first run builds it, which takes one or two minutes and needs c++.
Comments in a source say which variants it has (crates/gpu-polaris/tests/variants/mod.rs tells how).

  --check  compile everything anew, write nothing, and fail where a file is missing, superfluous or not what its
           source compiles to; needs spirv-val (Debian: spirv-tools)";

/// The subcommand.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    let check = arguments.flag(&["--check"]);
    arguments.end()?;
    tools::require(&["c++"])?;
    let mut cargo = command::cargo();
    // Not `--release`: the C++ is optimised in every profile, and this one is built by clippy and the tests, too.
    cargo.args(["run", "--quiet", "--package", "xtask-shaders", "--features", "compiler", "--"]);
    if check {
        cargo.arg("--check");
    }
    command::run(&mut cargo)
}
