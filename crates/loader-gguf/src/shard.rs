//! One file: header, metadata, tensor table. Everything is checked here, once; later reads cannot fail.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{DType, FileBytes};

use crate::cursor::{Cursor, Stop};
use crate::error::{Fault, GgufError, Malformed, Subject};
use crate::value::{Array, Value, ValueType};
use crate::{DEFAULT_ALIGNMENT, GgmlType, MAX_ALIGNMENT, MAX_DIMS, Version};

/// Bytes of the smallest metadata entry: length, one character, type, one byte of value.
const MIN_ENTRY: usize = 8 + 1 + 4 + 1;
/// Bytes of the smallest tensor entry: length, one character, number of extents (none), type, offset.
const MIN_TENSOR: usize = 8 + 1 + 4 + 4 + 8;

/// A metadata entry: key, and where its value lies.
#[derive(Debug)]
struct Entry {
    key: Arc<str>,
    value_type: ValueType,
    /// For arrays the element type and the number of elements; `bytes` are the elements then.
    array: Option<(ValueType, usize)>,
    bytes: Range<usize>,
}

/// A tensor of a file: name, type, shape and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(crate) name: Arc<str>,
    pub(crate) ggml_type: GgmlType,
    dims: u8,
    extents: [usize; MAX_DIMS],
    pub(crate) range: Range<usize>,
    pub(crate) shard: usize,
}

impl TensorInfo {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The extents, outermost first: a linear layer is `[out, in]`. (Files store them innermost first.)
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.extents.get(..usize::from(self.dims)).unwrap_or_default()
    }

    /// The element type as the file numbers it.
    #[must_use]
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// The element type in core-tensor's words, if it has the type.
    #[must_use]
    pub fn dtype(&self) -> Option<DType> {
        self.ggml_type.dtype()
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// The number of bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }

    /// Where the bytes lie, from the start of the file (not of the data section).
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The file that the tensor lies in: an index into [`Gguf::shards`](crate::Gguf::shards), 0 unless the model is split.
    #[must_use]
    pub fn shard(&self) -> usize {
        self.shard
    }
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) file: Arc<FileBytes>,
    pub(crate) version: Version,
    pub(crate) alignment: u64,
    pub(crate) data_start: u64,
    pub(crate) tensors: Vec<TensorInfo>,
    entries: Vec<Entry>,
    index: HashMap<Arc<str>, usize>,
}

/// A tensor entry as it stands in the table, before the data section's place is known.
struct Listed {
    info: TensorInfo,
    length: u64,
    offset: u64,
    /// Where in the file the offset stands, for errors.
    offset_field: usize,
}

impl Shard {
    /// Parses a file; `number` is its place among the files of a split model.
    pub(crate) fn parse(file: Arc<FileBytes>, number: usize) -> Result<Shard, GgufError> {
        let mut subject = Subject::Header;
        match Shard::parse_bytes(&file, number, &mut subject) {
            Ok(shard) => Ok(shard),
            Err(Stop { offset, fault }) => {
                let (path, offset) = (file.path().to_owned(), offset as u64);
                Err(Box::new(Malformed { path, offset, subject, fault }).into())
            }
        }
    }

    fn parse_bytes(file: &Arc<FileBytes>, number: usize, subject: &mut Subject) -> Result<Shard, Stop> {
        let mut cursor = Cursor::new(file);
        let (version, tensor_count, entry_count) = header(&mut cursor, file)?;

        let mut shard = Shard {
            file: file.clone(),
            version,
            alignment: DEFAULT_ALIGNMENT,
            data_start: 0,
            tensors: Vec::new(),
            entries: Vec::new(),
            index: HashMap::new(),
        };
        for index in 0..entry_count {
            *subject = Subject::Entry(index);
            shard.read_entry(&mut cursor, subject)?;
        }

        let mut listed: Vec<Listed> = Vec::new();
        let mut names = HashSet::new();
        for index in 0..tensor_count {
            *subject = Subject::TensorNumber(index);
            let at = cursor.at();
            let tensor = read_tensor(&mut cursor, number, subject)?;
            if !names.insert(tensor.info.name.clone()) {
                return Err(Stop { offset: at, fault: Fault::DuplicateTensor });
            }
            listed.push(tensor);
        }
        drop(names);

        shard.data_start = (cursor.at() as u64).next_multiple_of(shard.alignment);
        shard.tensors.reserve_exact(listed.len());
        for tensor in listed {
            *subject = Subject::Tensor(tensor.info.name.to_string());
            let info = shard.place(tensor)?;
            shard.tensors.push(info);
        }
        shard.refuse_overlaps(subject)?;
        Ok(shard)
    }

    fn read_entry(&mut self, cursor: &mut Cursor<'_>, subject: &mut Subject) -> Result<(), Stop> {
        let at = cursor.at();
        let key: Arc<str> = cursor.name()?.into();
        *subject = Subject::Key(key.to_string());
        if self.index.insert(key.clone(), self.entries.len()).is_some() {
            return Err(Stop { offset: at, fault: Fault::DuplicateKey });
        }
        let value_type = cursor.value_type()?;
        let start = cursor.at();
        let value = cursor.value(value_type)?;
        let end = cursor.at();
        if &*key == crate::ALIGNMENT_KEY {
            self.alignment = alignment(value).map_err(|fault| Stop { offset: start, fault })?;
        }
        let entry = match value.as_array() {
            Some(array) => Entry {
                key,
                value_type,
                array: Some((array.element, array.len)),
                bytes: end.saturating_sub(array.bytes.len())..end,
            },
            None => Entry { key, value_type, array: None, bytes: start..end },
        };
        self.entries.push(entry);
        Ok(())
    }

    /// Finds a tensor's place in the file.
    fn place(&self, tensor: Listed) -> Result<TensorInfo, Stop> {
        let Listed { mut info, length, offset, offset_field } = tensor;
        let stop = |fault| Stop { offset: offset_field, fault };
        if !offset.is_multiple_of(self.alignment) {
            return Err(stop(Fault::Unaligned { offset, alignment: self.alignment }));
        }
        let file_len = self.file.len();
        let start = self.data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(length)).filter(|end| *end <= file_len as u64);
        let range = start.zip(end).and_then(|(start, end)| Some(start.try_into().ok()?..end.try_into().ok()?));
        let Some(range) = range else {
            let (data_start, file_len) = (self.data_start, file_len as u64);
            return Err(stop(Fault::OutOfFile { offset, length, data_start, file_len }));
        };
        info.range = range;
        Ok(info)
    }

    fn refuse_overlaps(&self, subject: &mut Subject) -> Result<(), Stop> {
        let mut order: Vec<&TensorInfo> = self.tensors.iter().collect();
        order.sort_by_key(|info| info.range.start);
        for pair in order.windows(2) {
            if let [before, after] = pair
                && after.range.start < before.range.end
            {
                *subject = Subject::Tensor(after.name.to_string());
                return Err(Stop {
                    offset: after.range.start,
                    fault: Fault::Overlap { other: before.name.to_string() },
                });
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The keys and values in the file's order.
    pub(crate) fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|entry| (&*entry.key, self.value_of(entry)))
    }

    /// The value of a key, and where it begins.
    pub(crate) fn get(&self, key: &str) -> Option<(Value<'_>, u64)> {
        let entry = self.entries.get(*self.index.get(key)?)?;
        Some((self.value_of(entry), entry.bytes.start as u64))
    }

    fn value_of(&self, entry: &Entry) -> Value<'_> {
        let bytes = self.file.get(entry.bytes.clone()).unwrap_or_default();
        match entry.array {
            Some((element, len)) => Value::Array(Array { element, len, bytes }),
            // Decoded once already when the file was opened, so that the empty string never comes of this.
            None => Cursor::new(bytes).value(entry.value_type).unwrap_or(Value::String(&[])),
        }
    }
}

/// Reads magic, version and the two counts (tensors, metadata entries).
fn header(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Result<(Version, u64, u64), Stop> {
    let found = cursor.array::<4>("magic")?;
    if found != *b"GGUF" {
        let fault =
            if found == *b"FUGG" { Fault::BigEndian } else { Fault::Magic { found, guess: guess_format(bytes) } };
        return Err(Stop { offset: 0, fault });
    }
    let offset = cursor.at();
    let number = cursor.u32("version")?;
    let version = Version::from_number(number).ok_or_else(|| {
        let big_endian = Version::from_number(number.swap_bytes()).is_some() || number.swap_bytes() == 1;
        let fault = if big_endian { Fault::BigEndian } else { Fault::Version { found: number } };
        Stop { offset, fault }
    })?;
    let (tensors_at, tensors) = (cursor.at(), cursor.u64("number of tensors")?);
    let (entries_at, entries) = (cursor.at(), cursor.u64("number of metadata entries")?);
    cursor.check_count(tensors_at, "tensors", tensors, MIN_TENSOR)?;
    cursor.check_count(entries_at, "metadata entries", entries, MIN_ENTRY)?;
    Ok((version, tensors, entries))
}

/// What a file that is no GGUF seems to be: people hand over what they downloaded.
fn guess_format(bytes: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 8] = [
        (b"lmgg", "GGML, the format before GGUF: convert the model again"),
        (b"fmgg", "GGMF, the format before GGUF: convert the model again"),
        (b"tjgg", "GGJT, the format before GGUF: convert the model again"),
        (b"PK\x03\x04", "a zip archive, as PyTorch writes"),
        (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself"),
        (b"<!DOCTYPE", "a web page: the download went wrong"),
        (b"<html", "a web page: the download went wrong"),
        (b"\x89HDF", "HDF5"),
    ];
    if let Some((_, name)) = KNOWN.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Some(name);
    }
    (bytes.get(8) == Some(&b'{')).then_some("safetensors")
}

/// The alignment that a file asks for.
pub(crate) fn alignment(value: Value<'_>) -> Result<u64, Fault> {
    let Some(number) = value.as_integer() else {
        return Err(Fault::AlignmentType { found: value.value_type() });
    };
    match u64::try_from(number) {
        Ok(value) if value.is_power_of_two() && value <= MAX_ALIGNMENT => Ok(value),
        // A negative number shows as what its bits mean to ggml.
        _ => Err(Fault::Alignment { value: number as u64 }),
    }
}

/// Reads an entry of the tensor table. Its range is filled in later.
fn read_tensor(cursor: &mut Cursor<'_>, shard: usize, subject: &mut Subject) -> Result<Listed, Stop> {
    let name: Arc<str> = cursor.name()?.into();
    *subject = Subject::Tensor(name.to_string());
    let at = cursor.at();
    let dims = cursor.u32("number of dimensions")?;
    let too_many = || Stop { offset: at, fault: Fault::TooManyDims { dims: u64::from(dims) } };
    let mut stored = [0_u64; MAX_DIMS];
    let count = usize::try_from(dims).map_err(|_| too_many())?;
    let shape = stored.get_mut(..count).ok_or_else(too_many)?;
    let shape_at = cursor.at();
    // Stored innermost first.
    for extent in shape.iter_mut().rev() {
        *extent = cursor.u64("extents")?;
    }
    let type_at = cursor.at();
    let number = cursor.u32("tensor type")?;
    let ggml_type = GgmlType::from_number(number).map_err(|fault| Stop { offset: type_at, fault })?;
    let length = ggml_type.byte_len(shape).map_err(|fault| Stop { offset: shape_at, fault })?;
    let offset_field = cursor.at();
    let offset = cursor.u64("tensor offset")?;

    let mut extents = [0; MAX_DIMS];
    for (to, from) in extents.iter_mut().zip(shape.iter()) {
        // `byte_len` has checked that the product of all extents fits.
        *to = usize::try_from(*from).unwrap_or(usize::MAX);
    }
    let info = TensorInfo { name, ggml_type, dims: count as u8, extents, range: 0..0, shard };
    Ok(Listed { info, length, offset, offset_field })
}
