//! Writes, or with `--check` compares, the code that is made from schemas and committed.
//!
//! Schemas are read and compiled by Rust crates alone: there is no `protoc` anywhere.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, process};

/// One schema language file (or several that belong together) and the file made from it.
struct Schema {
    /// Folder of the schema, from the root of the workspace; includes are relative to it.
    folder: &'static str,
    /// Protobuf files in it.
    files: &'static [&'static str],
    /// The protobuf package that they declare.
    package: &'static str,
    /// The file to write, in the same folder.
    output: &'static str,
}

const SCHEMAS: &[Schema] = &[Schema {
    folder: "crates/loader-onnx/src/proto",
    files: &["onnx/onnx-ml.proto", "onnx/onnx-data.proto"],
    package: "onnx",
    output: "onnx.generated.rs",
}];

impl Schema {
    /// The Rust text.
    fn generate(&self, root: &Path) -> Result<String, String> {
        let folder = root.join(self.folder);
        let descriptors = protox::compile(self.files, [&folder]).map_err(|error| format!("{error:?}"))?;
        let scratch = env::temp_dir().join(format!("polaris-codegen-{}-{}", process::id(), self.package));
        fs::create_dir_all(&scratch).map_err(|error| format!("cannot create {}: {error}", scratch.display()))?;
        let result = prost_build::Config::new()
            // Bytes stay where they are in the file.
            .bytes(["."])
            .disable_comments(["."])
            .out_dir(&scratch)
            .compile_fds(descriptors)
            .and_then(|()| fs::read_to_string(scratch.join(format!("{}.rs", self.package))));
        let _ = fs::remove_dir_all(&scratch);
        result.map_err(|error| format!("{}: {error}", self.folder))
    }
}

fn run() -> Result<(), String> {
    let check = match env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => return Err(format!("unknown argument {other}")),
    };
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for schema in SCHEMAS {
        let path = root.join(schema.folder).join(schema.output);
        let text = schema.generate(&root)?;
        if !check {
            fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        } else if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            return Err(format!("{} is not what its schema gives; run `cargo xtask codegen`", schema.output));
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
