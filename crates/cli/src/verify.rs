//! `polaris verify`: whether a quantized or pruned file is what its manifest says.

use std::path::{Path, PathBuf};

use clap::Args;
use models::quantize::Manifest;

use crate::failure::Failure;
use crate::output::{self, shown};

const EXAMPLES: &str = "\
Examples:
  polaris verify model-q4.gguf.manifest.json
  polaris verify model-q4.gguf.manifest.json --json

Checks length and sha256 of the result, and the type, extents and bytes of each of its tensors; length and sha256 of the source, where it is
still there. The files are looked for beside the manifest first. Exit code 1 when something does not agree.";

/// Check a quantized or pruned model against its manifest
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The manifest that `polaris quantize` or `polaris prune` wrote
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// Print one JSON object: files, absent, problems
    #[arg(long)]
    json: bool,
}

/// A path out of the manifest, for a terminal.
fn file(path: &Path) -> String {
    shown(&path.display().to_string())
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let manifest = Manifest::read(&arguments.manifest)?;
    let folder = arguments.manifest.parent().unwrap_or(Path::new(""));
    let verified = manifest.verify(folder)?;
    let told = if arguments.json {
        output::write_json(&verified)
    } else {
        let mut text = String::new();
        for path in &verified.files {
            let wrong = verified.problems.iter().any(|problem| problem.path == *path);
            text.push_str(&format!("{}: {}\n", file(path), if wrong { "differs" } else { "as the manifest says" }));
        }
        for path in &verified.absent {
            text.push_str(&format!("{}: not there, not checked\n", file(path)));
        }
        output::write(&text)
    };
    // That nobody reads it any more makes no file whole.
    match verified.problems.first() {
        None => told,
        Some(problem) => Err(Failure::Runtime(format!("{}: {}", file(&problem.path), shown(&problem.reason)))),
    }
}
