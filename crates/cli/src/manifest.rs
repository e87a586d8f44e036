//! What `quantize` and `prune` write beside a result, and what is told of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use core_tensor::PartialFile;
use models::quantize::{Manifest, Planned};
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{self, bytes, shown};
use crate::reconstruct;

/// Beside the result: its name and `.manifest.json`.
pub(crate) fn manifest_path(output: &Path) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(".manifest.json");
    name.into()
}

/// Writes a small file so that nobody sees half of it.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let mut file = PartialFile::create(path).map_err(|error| Failure::file(path, &error))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.finish());
    written.map_err(|error| Failure::file(path, &error))
}

/// What the model took and takes, all files together, and how long that took.
pub(crate) fn size_line(manifest: &Manifest) -> String {
    let before: u64 = manifest.source.iter().map(|file| file.bytes).sum();
    let after: u64 = std::iter::once(&manifest.result).chain(&manifest.beside).map(|file| file.bytes).sum();
    let smaller = 100.0 * (1.0 - after as f64 / before.max(1) as f64);
    format!(
        "{} -> {} ({smaller:.1} % smaller) in {:.1} s: {}\n",
        bytes(before),
        bytes(after),
        manifest.seconds,
        shown(&manifest.result.path.display().to_string())
    )
}

/// Tensors of a type.
#[derive(Debug, Default, Serialize)]
struct Sum {
    tensors: usize,
    bytes: u64,
}

/// What would become of each tensor.
pub(crate) fn show_plan(planned: &[Planned], as_json: bool) -> Result<(), Failure> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for tensor in planned {
        let sum = sums.entry(tensor.to.to_string()).or_default();
        sum.tensors += 1;
        sum.bytes += tensor.bytes();
    }
    let total: u64 = sums.values().map(|sum| sum.bytes).sum();
    if as_json {
        let tensor = |t: &Planned| {
            let (from, to) = (t.from.to_string(), t.to.to_string());
            json!({"name": t.name, "shape": t.shape, "from": from, "to": to, "bytes": t.bytes()})
        };
        let tensors: Vec<_> = planned.iter().map(tensor).collect();
        return output::write_json(&json!({"bytes": total, "types": sums, "tensors": tensors}));
    }
    let mut text = String::new();
    for tensor in planned {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let (from, to) = (tensor.from.to_string(), tensor.to.to_string());
        let _ = writeln!(
            text,
            "{from:>6} -> {to:<6} {:>9}  {} [{}]",
            bytes(tensor.bytes()),
            shown(&tensor.name),
            shape.join(", ")
        );
    }
    for (name, sum) in &sums {
        let _ = writeln!(text, "{name:>6}: {} tensors, {}", sum.tensors, bytes(sum.bytes));
    }
    let _ = writeln!(text, "{} of tensors", bytes(total));
    output::write(&text)
}

/// What became of a model that was quantized.
pub(crate) fn as_text(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for tensor in &manifest.tensors {
        let sum = sums.entry(&tensor.to).or_default();
        sum.tensors += 1;
        sum.bytes += tensor.bytes;
    }
    for (name, sum) in &sums {
        let _ = writeln!(text, "{name:>6}: {} tensors, {}", sum.tensors, bytes(sum.bytes));
    }
    text += &manifest.reconstruction.as_ref().map_or(String::new(), reconstruct::as_text);
    if let Some(worst) = manifest.worst().filter(|worst| worst.relative_error > 0.0) {
        let (name, error) = (&worst.name, worst.relative_error * 100.0);
        let _ = writeln!(text, "the largest error of a tensor is {error:.2} % ({}, {})", shown(name), worst.to);
    }
    text + &size_line(manifest)
}
