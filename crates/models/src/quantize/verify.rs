//! Whether files are what a manifest says.

use std::path::{Path, PathBuf};

use core_tensor::FileAccess;
use loader_gguf::Gguf;
use serde::Serialize;

use super::graph::{Initializer, initializers};
use super::{FileRecord, Manifest};
use crate::Error;

/// How a file and its manifest disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// In what.
    pub reason: String,
}

/// What [`Manifest::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Files that were compared.
    pub files: Vec<PathBuf>,
    /// Sources that are no longer where they were; that is no problem of the result.
    pub absent: Vec<PathBuf>,
    /// All that does not agree.
    pub problems: Vec<Problem>,
}

impl Manifest {
    /// Compares the files with what is written here. `folder` is the manifest's: a result that lies beside it is found
    /// wherever the folder has moved.
    ///
    /// # Errors
    /// When a file that is there cannot be read; files that disagree or are no longer there are no errors but findings.
    pub fn verify(&self, folder: &Path) -> Result<Verified, Error> {
        let mut verified = Verified { files: Vec::new(), absent: Vec::new(), problems: Vec::new() };
        match find(&self.result.path, folder) {
            Some(path) => {
                verified.compare(&self.result, &path)?;
                for record in &self.beside {
                    match find(&record.path, folder) {
                        Some(path) => verified.compare(record, &path)?,
                        None => verified.problem(&record.path, "the file is not there".into()),
                    }
                }
                if verified.problems.is_empty() {
                    self.compare_tensors(&path, &mut verified);
                }
            }
            None => verified.problem(&self.result.path, "the file is not there".into()),
        }
        for source in &self.source {
            match find(&source.path, folder) {
                Some(path) => verified.compare(source, &path)?,
                None => verified.absent.push(source.path.clone()),
            }
        }
        Ok(verified)
    }

    fn compare_tensors(&self, path: &Path, verified: &mut Verified) {
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("onnx")) {
            return match initializers(path) {
                Ok(found) => self.compare_initializers(path, &found, verified),
                Err(error) => verified.problem(path, error.to_string()),
            };
        }
        let model = match Gguf::open(path, FileAccess::Map) {
            Ok(model) => model,
            Err(error) => return verified.problem(path, error.to_string()),
        };
        if model.tensors().len() != self.tensors.len() {
            let reason = format!("it has {} tensors, the manifest {}", model.tensors().len(), self.tensors.len());
            return verified.problem(path, reason);
        }
        for (record, info) in self.tensors.iter().zip(model.tensors()) {
            let dtype = info.dtype().map(|dtype| dtype.to_string()).unwrap_or_default();
            let same = record.name == info.name() && record.shape == info.shape() && record.to == dtype;
            if !same || record.bytes != info.byte_len() as u64 {
                let reason = format!(
                    "tensor '{}' is {dtype} {:?} of {} bytes; the manifest has '{}', {} {:?} of {}",
                    info.name(),
                    info.shape(),
                    info.byte_len(),
                    record.name,
                    record.to,
                    record.shape,
                    record.bytes
                );
                verified.problem(path, reason);
            }
        }
    }
}

impl Manifest {
    fn compare_initializers(&self, path: &Path, found: &[Initializer], verified: &mut Verified) {
        if found.len() != self.tensors.len() {
            let reason = format!("it has {} tensors, the manifest {}", found.len(), self.tensors.len());
            return verified.problem(path, reason);
        }
        for (record, tensor) in self.tensors.iter().zip(found) {
            if record.name != tensor.name || record.shape != tensor.shape || record.bytes != tensor.bytes {
                let reason = format!(
                    "tensor '{}' is {:?} of {} bytes; the manifest has '{}', {:?} of {}",
                    tensor.name, tensor.shape, tensor.bytes, record.name, record.shape, record.bytes
                );
                verified.problem(path, reason);
            }
        }
    }
}

/// A file beside the manifest, or where it was.
fn find(path: &Path, folder: &Path) -> Option<PathBuf> {
    let beside = folder.join(path.file_name()?);
    [beside, path.to_owned()].into_iter().find(|path| path.is_file())
}

impl Verified {
    fn problem(&mut self, path: &Path, reason: String) {
        self.problems.push(Problem { path: path.to_owned(), reason });
    }

    fn compare(&mut self, record: &FileRecord, path: &Path) -> Result<(), Error> {
        let found = FileRecord::of(path, record.sha256.is_some(), &|| false)?;
        self.files.push(path.to_owned());
        if found.bytes != record.bytes {
            self.problem(path, format!("it has {} bytes, the manifest says {}", found.bytes, record.bytes));
        } else if found.sha256 != record.sha256 {
            let text = |sha256: &Option<String>| sha256.clone().unwrap_or_default();
            let reason = format!("its sha256 is {}, the manifest says {}", text(&found.sha256), text(&record.sha256));
            self.problem(path, reason);
        }
        Ok(())
    }
}
