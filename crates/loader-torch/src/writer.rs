//! Writing a file.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use core_tensor::{PartialFile, Tensor};
use serde_json::{Map, Value, json};

use crate::TorchType;
use crate::error::{Fault, TorchError};
use crate::header::METADATA;

/// The header is padded to this many bytes, so that the data is aligned.
const ALIGNMENT: usize = 8;

/// Builds a safetensors file: metadata and tensors in the order in which they are added.
#[derive(Debug, Default)]
pub struct SafeTensorsWriter {
    metadata: Map<String, Value>,
    names: HashSet<String>,
    tensors: Vec<(String, TorchType, Tensor)>,
}

impl SafeTensorsWriter {
    /// An empty file.
    #[must_use]
    pub fn new() -> SafeTensorsWriter {
        SafeTensorsWriter::default()
    }

    /// Sets a key of `__metadata__`.
    pub fn metadata(&mut self, key: &str, value: &str) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a tensor; its bytes are written as they are.
    ///
    /// # Errors
    /// [`TorchError::Invalid`] when the name is taken or kept for the metadata, or the format has no such type.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<&mut Self, TorchError> {
        let invalid = |fault| Err(TorchError::Invalid { name: name.to_owned(), fault });
        let Some(torch_type) = TorchType::from_dtype(tensor.dtype()) else {
            return invalid(Fault::NoType { dtype: tensor.dtype() });
        };
        if name == METADATA {
            return invalid(Fault::ReservedName);
        }
        if !self.names.insert(name.to_owned()) {
            return invalid(Fault::DuplicateTensor);
        }
        self.tensors.push((name.to_owned(), torch_type, tensor.clone()));
        Ok(self)
    }

    fn header(&self) -> Vec<u8> {
        let mut entries = Map::new();
        if !self.metadata.is_empty() {
            entries.insert(METADATA.into(), Value::Object(self.metadata.clone()));
        }
        let mut begin = 0_usize;
        for (name, torch_type, tensor) in &self.tensors {
            let end = begin.saturating_add(tensor.bytes().len());
            let entry = json!({ "dtype": torch_type.name(), "shape": tensor.shape(), "data_offsets": [begin, end] });
            entries.insert(name.clone(), entry);
            begin = end;
        }
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
        header
    }

    /// Writes the file: to a temporary file beside it first, which then takes its place, so that a reader never sees half a
    /// file and the file that is being read from may be replaced.
    ///
    /// # Errors
    /// [`TorchError::Write`] when the system refuses; the temporary file is then removed.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), TorchError> {
        let path = path.as_ref();
        let failed = |source| TorchError::Write { path: path.to_owned(), source };
        let mut partial = PartialFile::create(path).map_err(failed)?;
        let mut out = BufWriter::new(&mut partial);
        self.write_to(&mut out).and_then(|()| out.flush()).map_err(failed)?;
        drop(out);
        partial.finish().map_err(failed)
    }

    /// Writes the file's bytes to `out`, in order.
    ///
    /// # Errors
    /// When `out` refuses.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let header = self.header();
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, _, tensor) in &self.tensors {
            out.write_all(tensor.bytes())?;
            // Else the pages of a mapped source would add up to the whole model.
            tensor.release();
        }
        Ok(())
    }
}
