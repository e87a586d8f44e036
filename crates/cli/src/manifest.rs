//! What `quantize` and `prune` write beside a result, and what both tell of it.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use core_tensor::PartialFile;
use models::quantize::Manifest;

use crate::failure::Failure;
use crate::output::{bytes, shown};

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
