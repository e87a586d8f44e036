//! `cargo xtask codegen`: the code that is made from schemas and committed.

use crate::arguments::Arguments;
use crate::command;

pub(crate) const USAGE: &str = "cargo xtask codegen [--check]

Makes the Rust code of file formats from their schemas, both of which are committed: protobuf for crates/loader-onnx.
The compilers are Rust crates, pinned; no protoc is needed.

  --check  write nothing, and fail where a file is not what its schema gives";

/// The subcommand.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    let check = arguments.flag(&["--check"]);
    arguments.end()?;
    let mut cargo = command::cargo();
    cargo.args(["run", "--quiet", "--package", "xtask-codegen", "--features", "compiler", "--"]);
    if check {
        cargo.arg("--check");
    }
    command::run(&mut cargo)
}
