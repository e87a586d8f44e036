//! The test cases that the `onnx` package ships, for the conformance tests of the importer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::cache::{self, Scratch};
use crate::command;
use crate::package::{Archive, Package};
use crate::tools::PYTHON;

/// What `cargo xtask fetch` calls them.
pub(crate) const NAME: &str = "onnx-cases";
pub(crate) const ABOUT: &str =
    "the test cases that onnx 1.19.1 ships (18 MB): conformance of the ONNX importer (Apache-2.0)";
/// The folder in the cache.
const FOLDER: &str = "onnx-1.19.1-cases";
/// What is taken of `onnx/backend/test/data`.
const PARTS: [&str; 3] = ["node", "pytorch-converted", "pytorch-operator"];
/// Of all files' paths and contents: wheels of all systems hold the same ones.
const SHA256: &str = "c5353cc12e1fd4d4d95b53fb2090581c48782ae5689792e0b4966abe62805ded";

/// Unpacks files of a wheel, argv: archive, destination, folders.
const UNPACK: &str = "
import os, sys, zipfile
archive, destination, *parts = sys.argv[1:]
root = os.path.realpath(destination)
prefix = 'onnx/backend/test/data/'
with zipfile.ZipFile(archive) as source:
    for entry in source.infolist():
        name = entry.filename
        if entry.is_dir() or not name.startswith(tuple(prefix + part + '/' for part in parts)):
            continue
        path = os.path.realpath(os.path.join(root, name[len(prefix):]))
        if not path.startswith(root + os.sep):
            sys.exit('a path leads out of the archive: ' + name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as out:
            out.write(source.read(entry))
";

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() { files(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// The sha256 of a folder: of each file, in the order of their paths, the path, a zero byte, the length and the contents.
fn sha256(folder: &Path) -> Result<String, String> {
    let mut found = Vec::new();
    files(folder, &mut found)?;
    let mut named = Vec::with_capacity(found.len());
    for path in found {
        let inner = path.strip_prefix(folder).map_err(|error| error.to_string())?;
        let parts: Vec<String> =
            inner.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        named.push((parts.join("/"), path));
    }
    named.sort();
    let mut hash = Sha256::new();
    for (name, path) in named {
        let contents = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update((contents.len() as u64).to_le_bytes());
        hash.update(contents);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn check(folder: &Path) -> Result<(), String> {
    let actual = sha256(folder)?;
    if actual == SHA256 {
        return Ok(());
    }
    Err(format!("{} has the sha256 {actual}, not {SHA256}: files are damaged or missing", folder.display()))
}

/// Fetches the cases unless they are there, and returns their folder.
pub(crate) fn fetch() -> Result<PathBuf, String> {
    let models = cache::models()?;
    let path = models.join(FOLDER);
    if path.exists() {
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(reason) => {
                eprintln!("{reason}; fetching them again");
                fs::remove_dir_all(&path).map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
            }
        }
    }
    fs::create_dir_all(&models).map_err(|error| format!("cannot create {}: {error}", models.display()))?;
    let scratch = Scratch::beside(&models)?;
    let package = Package { name: "onnx".into(), version: "1.19.1".into(), archive: Archive::Wheel };
    let archive = package.download(&scratch.path().join("package"))?;
    let unpacked = scratch.path().join(FOLDER);
    fs::create_dir_all(&unpacked).map_err(|error| format!("cannot create {}: {error}", unpacked.display()))?;
    let mut python = Command::new(PYTHON);
    command::output(python.args(["-c", UNPACK]).arg(&archive).arg(&unpacked).args(PARTS))?;
    check(&unpacked)?;
    fs::rename(&unpacked, &path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    Ok(path)
}
