//! A model: its tensors, in one file or several.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use core_tensor::{FileAccess, FileBytes, Tensor, WeightSource};

use crate::error::TorchError;
use crate::header::{Header, TensorInfo};
use crate::index::Index;

/// The file of a model in one file.
const SINGLE: &str = "model.safetensors";
/// What the name of an index ends with.
const INDEX: &str = ".safetensors.index.json";

/// An opened model. All that its headers say was checked when it was opened; tensors stay where they are in the file.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    files: Vec<Arc<FileBytes>>,
    metadata: Vec<(String, String)>,
    tensors: Vec<TensorInfo>,
    names: HashMap<Arc<str>, usize>,
}

impl SafeTensors {
    /// Opens a model: a file, the index of a sharded model, one of its shards, or a folder with `model.safetensors` or its index.
    ///
    /// # Errors
    /// When a file cannot be opened, is malformed, or does not fit the index.
    pub fn open(path: impl AsRef<Path>, access: FileAccess) -> Result<SafeTensors, TorchError> {
        let path = path.as_ref();
        if path.is_dir() {
            let single = path.join(SINGLE);
            if single.is_file() {
                return SafeTensors::from_file(FileBytes::open(&single, access)?);
            }
            let index = path.join(format!("model{INDEX}"));
            if !index.is_file() {
                return Err(TorchError::NoModel { path: path.to_owned() });
            }
            return SafeTensors::open_index(&index, access);
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return SafeTensors::open_index(path, access);
        }
        match index_of(path).filter(|index| index.is_file()) {
            Some(index) => SafeTensors::open_index(&index, access),
            None => SafeTensors::from_file(FileBytes::open(path, access)?),
        }
    }

    /// Reads a model from bytes in memory; `name` stands for the path in messages.
    ///
    /// # Errors
    /// When the bytes are malformed, or there is no memory for a copy.
    pub fn from_slice(name: &str, bytes: &[u8]) -> Result<SafeTensors, TorchError> {
        SafeTensors::from_file(FileBytes::from_slice(name, bytes)?)
    }

    /// Reads a model from a file that is open already.
    ///
    /// # Errors
    /// When the bytes are malformed.
    pub fn from_file(file: Arc<FileBytes>) -> Result<SafeTensors, TorchError> {
        let path = file.path().to_owned();
        SafeTensors::from_headers(path, vec![Header::parse(file, 0)?])
    }

    fn open_index(path: &Path, access: FileAccess) -> Result<SafeTensors, TorchError> {
        let index = Index::open(path, access)?;
        let mut headers = Vec::with_capacity(index.files.len());
        for (number, name) in index.files.iter().enumerate() {
            headers.push(Header::parse(FileBytes::open(&path.with_file_name(name), access)?, number)?);
        }
        let model = SafeTensors::from_headers(path.to_owned(), headers)?;
        for (tensor, number, place) in &index.tensors {
            if model.tensor_info(tensor).is_none_or(|info| info.shard != *number) {
                return Err(index.not_in_shard(tensor, *number, *place).into());
            }
        }
        Ok(model)
    }

    fn from_headers(path: PathBuf, headers: Vec<Header>) -> Result<SafeTensors, TorchError> {
        let mut model = SafeTensors {
            path,
            files: Vec::with_capacity(headers.len()),
            metadata: Vec::new(),
            tensors: Vec::new(),
            names: HashMap::new(),
        };
        for header in headers {
            for info in header.tensors {
                if let Some(first) = model.names.insert(info.name.clone(), model.tensors.len()) {
                    let first = model.tensors.get(first).map_or(0, |info| info.shard);
                    return Err(TorchError::DuplicateTensor {
                        path: header.file.path().to_owned(),
                        name: info.name().to_owned(),
                        other: model.files.get(first).map(|file| file.path().to_owned()).unwrap_or_default(),
                    });
                }
                model.tensors.push(info);
            }
            for (key, value) in header.metadata {
                if !model.metadata.iter().any(|(known, _)| *known == key) {
                    model.metadata.push((key, value));
                }
            }
            model.files.push(header.file);
        }
        Ok(model)
    }

    /// The path of the file, or of the index of a sharded model.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> &[Arc<FileBytes>] {
        &self.files
    }

    /// The value of a key of `__metadata__`; of a sharded model, the first file's that has it.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// All of `__metadata__`.
    pub fn all_metadata(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// All tensors, in the order of their data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The number of parameters: elements of all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().fold(0_u64, |count, info| count.saturating_add(info.elements() as u64))
    }

    /// What the file says of a tensor.
    #[must_use]
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.names.get(name)?)
    }

    /// A tensor; its bytes stay in the file.
    ///
    /// # Errors
    /// [`TorchError::MissingTensor`], or [`TorchError::UnsupportedType`] for types that core-tensor has no dtype for.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TorchError> {
        let missing = || TorchError::MissingTensor { path: self.path.clone(), name: name.to_owned() };
        let info = self.tensor_info(name).ok_or_else(missing)?;
        let file = self.files.get(info.shard).ok_or_else(missing)?;
        let path = || file.path().to_owned();
        let Some(dtype) = info.torch_type.dtype() else {
            return Err(TorchError::UnsupportedType {
                path: path(),
                name: name.to_owned(),
                torch_type: info.torch_type,
            });
        };
        Tensor::from_file(dtype, &info.shape, file.clone(), info.range.clone()).map_err(|source| TorchError::Tensor {
            path: path(),
            name: name.to_owned(),
            source,
        })
    }
}

impl WeightSource for SafeTensors {
    fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(TensorInfo::name).collect()
    }

    fn tensor(&self, name: &str) -> Option<Tensor> {
        SafeTensors::tensor(self, name).ok()
    }

    fn origin(&self) -> String {
        self.path.display().to_string()
    }
}

/// The index that a shard's name (`model-00001-of-00002.safetensors`) points to.
fn index_of(shard: &Path) -> Option<PathBuf> {
    let stem = shard.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(count)).then(|| shard.with_file_name(format!("{base}{INDEX}")))
}
