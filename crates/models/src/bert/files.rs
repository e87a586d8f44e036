//! The files of a model: weights, and what lies beside them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;

/// Bytes of a configuration file at most.
const CONFIGURATION: u64 = 16 << 20;

/// Weights that a folder may have, the first one that is there is taken.
const WEIGHTS: [&str; 4] = ["model.safetensors", "model.safetensors.index.json", "model.onnx", "onnx/model.onnx"];

/// The format of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Safetensors, or the index of a sharded model.
    SafeTensors,
    /// ONNX.
    Onnx,
}

/// Where the files of a model are.
#[derive(Clone, Debug)]
pub(crate) struct ModelFiles {
    pub(crate) weights: PathBuf,
    pub(crate) format: Format,
    folder: PathBuf,
}

impl ModelFiles {
    /// The files of a model that is named by its weights or by its folder.
    ///
    /// # Errors
    /// When the folder has no weights, or the file is of another format.
    pub(crate) fn find(path: &Path) -> Result<ModelFiles, Error> {
        if !path.exists() {
            return Err(unusable(path, "no such file or folder".into()));
        }
        let weights = if path.is_dir() {
            let found = WEIGHTS.iter().map(|name| path.join(name)).find(|weights| weights.is_file());
            found.ok_or_else(|| unusable(path, format!("a folder without {}", WEIGHTS.join(", "))))?
        } else {
            path.to_owned()
        };
        let format = match weights.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors" | "json") => Format::SafeTensors,
            Some("onnx") => Format::Onnx,
            _ => return Err(unusable(&weights, "neither .safetensors nor .onnx".into())),
        };
        let folder = weights.parent().unwrap_or(Path::new("")).to_owned();
        Ok(ModelFiles { weights, format, folder })
    }

    /// A file beside the weights, if it is there. ONNX files in a folder `onnx` belong to the model in the folder above.
    pub(crate) fn beside(&self, name: &str) -> Option<PathBuf> {
        let above = self.folder.file_name().is_some_and(|name| name == "onnx").then(|| self.folder.join(".."));
        let folders = std::iter::once(self.folder.clone()).chain(above);
        folders.map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// The JSON file of a name beside the weights, if it is there.
    ///
    /// # Errors
    /// When it cannot be read or is no JSON.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Json>, Error> {
        self.beside(name).map(|path| Json::read(&path)).transpose()
    }
}

pub(crate) fn unusable(path: &Path, reason: String) -> Error {
    Error::Unusable { path: path.to_owned(), reason }
}

/// Reads a file that must not be longer than `longest`.
pub(crate) fn read(path: &Path, longest: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(longest + 1).read_to_end(&mut bytes));
    read.map_err(|error| unusable(path, error.to_string()))?;
    if bytes.len() as u64 > longest {
        return Err(unusable(path, format!("longer than {} MiB", longest >> 20)));
    }
    Ok(bytes)
}

/// A JSON file with an object in it.
#[derive(Clone, Debug)]
pub(crate) struct Json {
    pub(crate) path: PathBuf,
    pub(crate) value: Value,
}

impl Json {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Json, Error> {
        let bytes = read(path, CONFIGURATION)?;
        let value = serde_json::from_slice(&bytes).map_err(|error| unusable(path, error.to_string()))?;
        Ok(Json { path: path.to_owned(), value })
    }

    /// An error about a key.
    pub(crate) fn wrong(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::Configuration { path: self.path.clone(), key: key.to_owned(), reason: reason.into() }
    }

    /// What a key holds; `null` is nothing.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// A number between 1 and `most` that must be there.
    pub(crate) fn count(&self, key: &str, most: usize) -> Result<usize, Error> {
        self.optional_count(key, most)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A number between 1 and `most`.
    pub(crate) fn optional_count(&self, key: &str, most: usize) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| (1..=most).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(self.wrong(key, format!("{} (a number between 1 and {most} expected)", short(value)))),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, format!("{} (a text expected)", short(value))))
    }

    /// Whether a key holds `true`.
    pub(crate) fn is_true(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A value for a message.
pub(crate) fn short(value: &Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
