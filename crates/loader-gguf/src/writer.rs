//! Writing GGUF files.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use core_tensor::{PartialFile, Tensor};

use crate::array_buf::{check_nesting, encode};
use crate::behind::write_behind;
use crate::error::{Fault, GgufError, Subject};
use crate::shard::alignment;
use crate::value::Value;
use crate::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgmlType, Gguf, MAX_NAME_LEN, Version};

type Stream<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'a>;

enum Data<'a> {
    Bytes(&'a [u8]),
    Tensor(Tensor),
    Stream(Stream<'a>),
}

struct Pending<'a> {
    name: String,
    length: u64,
    /// From the start of the data section.
    offset: u64,
    data: Data<'a>,
}

/// Builds a GGUF file: metadata and tensors in the order in which they are added.
///
/// Tensor data is given as bytes, as a [`Tensor`] (which may lie in a mapped file), or as a closure that writes it when
/// its turn comes, so that a model never has to be in memory as a whole. The same rules hold as for reading: what is
/// written can be read again.
pub struct GgufWriter<'a> {
    version: Version,
    alignment: u64,
    keys: HashSet<String>,
    /// Encoded metadata entries.
    metadata: Vec<u8>,
    names: HashSet<String>,
    /// Encoded tensor table without the offsets: name, extents, type; one per tensor.
    table: Vec<Vec<u8>>,
    tensors: Vec<Pending<'a>>,
}

impl Default for GgufWriter<'_> {
    fn default() -> Self {
        GgufWriter::new()
    }
}

impl<'a> GgufWriter<'a> {
    /// An empty file of version 3.
    #[must_use]
    pub fn new() -> GgufWriter<'a> {
        GgufWriter::with_version(Version::V3)
    }

    /// An empty file of another version.
    #[must_use]
    pub fn with_version(version: Version) -> GgufWriter<'a> {
        GgufWriter {
            version,
            alignment: DEFAULT_ALIGNMENT,
            keys: HashSet::new(),
            metadata: Vec::new(),
            names: HashSet::new(),
            table: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Adds a metadata entry. The key `general.alignment` (a power of two) sets the alignment of the file.
    ///
    /// # Errors
    /// [`GgufError::Invalid`] when the key is empty, too long or there already, arrays are nested too deep, or the alignment
    /// is no power of two.
    pub fn set<'v>(&mut self, key: &str, value: impl Into<Value<'v>>) -> Result<&mut Self, GgufError> {
        let value = value.into();
        self.check_entry(key, value)
            .map_err(|fault| GgufError::Invalid { subject: Subject::Key(key.to_owned()), fault: Box::new(fault) })?;
        self.keys.insert(key.to_owned());
        encode(Value::String(key.as_bytes()), &mut self.metadata);
        self.metadata.extend(value.value_type().number().to_le_bytes());
        encode(value, &mut self.metadata);
        Ok(self)
    }

    fn check_entry(&mut self, key: &str, value: Value<'_>) -> Result<(), Fault> {
        check_name(key)?;
        if self.keys.contains(key) {
            return Err(Fault::DuplicateKey);
        }
        check_nesting(value)?;
        if key == ALIGNMENT_KEY {
            // ggml reads no other type.
            if !matches!(value, Value::U32(_)) {
                return Err(Fault::AlignmentType { found: value.value_type() });
            }
            self.alignment = alignment(value)?;
        }
        Ok(())
    }

    /// Adds all metadata of a model, in its order, but for the keys that are there already: set what is to change first.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn copy_metadata(&mut self, model: &Gguf) -> Result<&mut Self, GgufError> {
        for (key, value) in model.metadata() {
            if !self.keys.contains(key) {
                self.set(key, value)?;
            }
        }
        Ok(self)
    }

    /// Adds a tensor whose bytes are at hand; `shape` is outermost extent first (`[out, in]`).
    ///
    /// # Errors
    /// [`GgufError::Invalid`] when the name is empty, too long or there already, or type and shape do not fit each other;
    /// [`GgufError::DataLength`] when the bytes are not as many as type and shape take.
    pub fn bytes(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        shape: &[usize],
        bytes: &'a [u8],
    ) -> Result<&mut Self, GgufError> {
        self.add(name, ggml_type, shape, Some(bytes.len() as u64), Data::Bytes(bytes))
    }

    /// Adds a tensor; its bytes are written as they are.
    ///
    /// # Errors
    /// As [`GgufWriter::bytes`]; [`Fault::NoGgmlType`] for dtypes that ggml does not have.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<&mut Self, GgufError> {
        let no_type = || GgufError::Invalid {
            subject: Subject::Tensor(name.to_owned()),
            fault: Box::new(Fault::NoGgmlType { dtype: tensor.dtype() }),
        };
        let ggml_type = GgmlType::from_dtype(tensor.dtype()).ok_or_else(no_type)?;
        let given = Some(tensor.bytes().len() as u64);
        self.add(name, ggml_type, tensor.shape(), given, Data::Tensor(tensor.clone()))
    }

    /// Adds a tensor that `write` writes when its turn comes. It must write exactly the bytes that type and shape take.
    ///
    /// # Errors
    /// As [`GgufWriter::bytes`], the length excepted, which shows in [`GgufWriter::write`].
    pub fn stream(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        shape: &[usize],
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'a,
    ) -> Result<&mut Self, GgufError> {
        self.add(name, ggml_type, shape, None, Data::Stream(Box::new(write)))
    }

    fn add(
        &mut self,
        name: &str,
        ggml_type: GgmlType,
        shape: &[usize],
        given: Option<u64>,
        data: Data<'a>,
    ) -> Result<&mut Self, GgufError> {
        let shape: Vec<u64> = shape.iter().map(|extent| *extent as u64).collect();
        let length = check_name(name)
            .and_then(|()| if self.names.contains(name) { Err(Fault::DuplicateTensor) } else { Ok(()) })
            .and_then(|()| ggml_type.byte_len(&shape))
            .map_err(|fault| GgufError::Invalid {
                subject: Subject::Tensor(name.to_owned()),
                fault: Box::new(fault),
            })?;
        if let Some(found) = given
            && found != length
        {
            return Err(GgufError::DataLength { name: name.to_owned(), expected: length, found });
        }
        self.names.insert(name.to_owned());
        let mut entry = Vec::new();
        encode(Value::from(name), &mut entry);
        entry.extend((shape.len() as u32).to_le_bytes());
        for extent in shape.iter().rev() {
            entry.extend(extent.to_le_bytes());
        }
        entry.extend(ggml_type.number().to_le_bytes());
        self.table.push(entry);
        self.tensors.push(Pending { name: name.to_owned(), length, offset: 0, data });
        Ok(self)
    }

    /// Lays out the data section and encodes everything that stands before it, its padding included.
    fn head(&mut self) -> Result<Vec<u8>, GgufError> {
        let mut offset = 0_u64;
        for tensor in &mut self.tensors {
            tensor.offset = offset;
            let end = offset.checked_add(tensor.length).and_then(|end| end.checked_next_multiple_of(self.alignment));
            offset = end.ok_or_else(|| GgufError::Invalid {
                subject: Subject::Tensor(tensor.name.clone()),
                fault: Box::new(Fault::FileTooLarge),
            })?;
        }
        let mut head = b"GGUF".to_vec();
        head.extend(self.version.number().to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.keys.len() as u64).to_le_bytes());
        head.append(&mut self.metadata);
        for (entry, tensor) in self.table.iter().zip(&self.tensors) {
            head.extend(entry);
            head.extend(tensor.offset.to_le_bytes());
        }
        if self.tensors.is_empty() {
            return Ok(head); // no data section, nothing to align
        }
        // The alignment is at most 16 MiB.
        head.resize(head.len().next_multiple_of(self.alignment as usize), 0);
        Ok(head)
    }

    /// Writes the file: to a temporary file beside it first, which then takes its place, so that a reader never sees half a
    /// file and the file that is being read from may be replaced. A thread writes while the next bytes are made.
    ///
    /// # Errors
    /// [`GgufError::Write`] when the system refuses (the temporary file is removed), [`GgufError::DataLength`] when a
    /// stream writes more or less than it should.
    pub fn write(self, path: impl AsRef<Path>) -> Result<(), GgufError> {
        let path = path.as_ref();
        let failed = |source| GgufError::Write { path: path.to_owned(), source };
        let mut partial = PartialFile::create(path).map_err(failed)?;
        write_behind(&mut partial, |out| self.write_named(path, out), failed)?;
        partial.finish().map_err(failed)
    }

    /// Writes the file's bytes to `out`, in order.
    ///
    /// # Errors
    /// As [`GgufWriter::write`].
    pub fn write_to(self, out: &mut dyn Write) -> Result<(), GgufError> {
        self.write_named(Path::new("output"), out)
    }

    fn write_named(mut self, path: &Path, out: &mut dyn Write) -> Result<(), GgufError> {
        let failed = |source| GgufError::Write { path: path.to_owned(), source };
        let head = self.head()?;
        out.write_all(&head).map_err(failed)?;
        for tensor in self.tensors {
            let mut exact = Exact { out: &mut *out, left: tensor.length, overrun: false };
            let result = match tensor.data {
                Data::Bytes(bytes) => exact.write_all(bytes),
                Data::Tensor(stored) => {
                    let result = exact.write_all(stored.bytes());
                    // Else the pages of a mapped source would add up to the whole model.
                    stored.release();
                    result
                }
                Data::Stream(write) => write(&mut exact),
            };
            let Exact { left, overrun, .. } = exact;
            if overrun || (result.is_ok() && left > 0) {
                let expected = tensor.length;
                let found = if overrun { expected.saturating_add(1) } else { expected - left };
                return Err(GgufError::DataLength { name: tensor.name, expected, found });
            }
            result.map_err(failed)?;
            let padding = tensor.length.next_multiple_of(self.alignment) - tensor.length;
            pad(out, padding).map_err(failed)?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Fault> {
    match name.len() {
        0 => Err(Fault::EmptyName),
        length if length > MAX_NAME_LEN => Err(Fault::NameLength { length: length as u64 }),
        _ => Ok(()),
    }
}

/// Writes zero bytes.
fn pad(out: &mut dyn Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), count), out).map(drop)
}

/// Lets a tensor's bytes through and no more.
struct Exact<'w> {
    out: &'w mut dyn Write,
    left: u64,
    overrun: bool,
}

impl Write for Exact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.overrun = true;
            return Err(io::Error::other("more bytes than the tensor takes"));
        }
        let written = self.out.write(bytes)?;
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
