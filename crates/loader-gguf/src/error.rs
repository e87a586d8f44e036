//! What can be wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use core_tensor::{DType, FileError, TensorError};

use crate::{GgmlType, MAX_ALIGNMENT, MAX_DIMS, MAX_NAME_LEN, MAX_NESTING, ValueType};

/// Everything that reading or writing GGUF can end in. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file's bytes could not be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes are no GGUF file that can be read; says where, and what is wrong.
    #[error(transparent)]
    Malformed(#[from] Box<Malformed>),
    /// The metadata lacks a key.
    #[error("{path}: no metadata key '{key}' ({expected} expected)")]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key asked for.
        key: String,
        /// The type asked for.
        expected: &'static str,
    },
    /// A metadata value is not of the type asked for, or does not fit it.
    #[error("{path}: at byte {offset}: metadata key '{key}': {expected} expected, found {found}")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// Where the value begins.
        offset: u64,
        /// The key asked for.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type that is there, with the value where that is short.
        found: String,
    },
    /// The file has no tensor of that name.
    #[error("{path}: no tensor '{name}'")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The tensor's type is known by number and size only.
    #[error("{path}: tensor '{name}' is of type {ggml_type}, which cannot be computed with yet")]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        ggml_type: GgmlType,
    },
    /// The tensor could not be made.
    #[error("{path}: tensor '{name}': {source}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why.
        source: TensorError,
    },
    /// The shards of a split model do not fit together.
    #[error("{path}: {fault}")]
    Split {
        /// The shard at fault.
        path: PathBuf,
        /// What is wrong.
        fault: SplitFault,
    },
    /// What was to be written breaks a rule of the format.
    #[error("cannot write {subject}: {fault}")]
    Invalid {
        /// The key or tensor.
        subject: Subject,
        /// The rule.
        fault: Box<Fault>,
    },
    /// A tensor's data came to another length than its type and shape take.
    #[error("cannot write tensor '{name}': its type and shape take {expected} bytes, {found} were given")]
    DataLength {
        /// The tensor.
        name: String,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes given; one more than expected if the writing was stopped there.
        found: u64,
    },
    /// The operating system refused to write.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A fault of a file with its place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{path}: at byte {offset}: {subject}: {fault}")]
pub struct Malformed {
    /// The file.
    pub path: PathBuf,
    /// Where in the file the faulty field begins.
    pub offset: u64,
    /// What was being read.
    pub subject: Subject,
    /// What is wrong.
    pub fault: Fault,
}

/// The part of a file that a fault belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// Magic, version and counts.
    Header,
    /// A metadata entry whose key is not known yet, counted from 0.
    Entry(u64),
    /// The metadata entry of this key.
    Key(String),
    /// A tensor whose name is not known yet, counted from 0.
    TensorNumber(u64),
    /// The tensor of this name.
    Tensor(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Header => f.write_str("header"),
            Subject::Entry(index) => write!(f, "metadata entry {index}"),
            Subject::Key(key) => write!(f, "metadata key '{}'", key.escape_debug()),
            Subject::TensorNumber(index) => write!(f, "tensor {index}"),
            Subject::Tensor(name) => write!(f, "tensor '{}'", name.escape_debug()),
        }
    }
}

/// What is wrong with a field of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file begins with other bytes than `GGUF`.
    #[error("not a GGUF file: it begins with \"{}\"{}", found.escape_ascii(), guess.map(|g| format!(" ({g})")).unwrap_or_default())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
        /// What the file seems to be instead.
        guess: Option<&'static str>,
    },
    /// The file is written for big-endian machines.
    #[error("big-endian GGUF files are not supported; convert the model again as little-endian")]
    BigEndian,
    /// The version is neither 2 nor 3.
    #[error("GGUF version {found} is not supported (2 and 3 are){}", if *found == 1 { "; version 1 is of 2023, convert the model again" } else { "" })]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The file ends inside a field.
    #[error("the file ends inside the {field}: {needed} bytes needed, {remaining} left (is the file truncated?)")]
    EndOfFile {
        /// What was being read.
        field: &'static str,
        /// Bytes it takes.
        needed: u64,
        /// Bytes left.
        remaining: u64,
    },
    /// So many things cannot be in the rest of the file.
    #[error("{count} {what} cannot be in the {remaining} bytes that are left (is the file truncated?)")]
    Count {
        /// Things counted.
        what: &'static str,
        /// How many the file claims.
        count: u64,
        /// Bytes left.
        remaining: u64,
    },
    /// A key or tensor name is empty.
    #[error("the name is empty")]
    EmptyName,
    /// A key or tensor name is too long.
    #[error("the name has {length} bytes (at most {MAX_NAME_LEN} are allowed)")]
    NameLength {
        /// Its length in bytes.
        length: u64,
    },
    /// A key or tensor name is not UTF-8.
    #[error("the name is not UTF-8")]
    NameNotUtf8,
    /// No metadata value has this type number.
    #[error("unknown value type {number}")]
    UnknownValueType {
        /// The number.
        number: u32,
    },
    /// A bool is neither 0 nor 1.
    #[error("a bool of value {byte} (0 or 1 expected)")]
    Bool {
        /// The byte.
        byte: u8,
    },
    /// Arrays within arrays within arrays.
    #[error("arrays nested more than {MAX_NESTING} deep")]
    Nesting,
    /// An element of an array has another type than the array.
    #[error("an element of type {found} in an array of {expected}")]
    MixedArray {
        /// The array's element type.
        expected: ValueType,
        /// The type of the element.
        found: ValueType,
    },
    /// The key occurs a second time.
    #[error("the key occurs twice")]
    DuplicateKey,
    /// The tensor name occurs a second time.
    #[error("the tensor name occurs twice")]
    DuplicateTensor,
    /// `general.alignment` is no integer.
    #[error("the alignment is of type {found} (u32 expected)")]
    AlignmentType {
        /// Its type.
        found: ValueType,
    },
    /// `general.alignment` is no power of two, or too large.
    #[error("an alignment of {value} (a power of two up to {MAX_ALIGNMENT} expected)")]
    Alignment {
        /// Its value.
        value: u64,
    },
    /// Too many extents.
    #[error("{dims} dimensions (at most {MAX_DIMS} are allowed)")]
    TooManyDims {
        /// How many.
        dims: u64,
    },
    /// An extent is zero.
    #[error("extent {axis} is zero")]
    ZeroExtent {
        /// Which one, outermost first.
        axis: usize,
    },
    /// The extents multiply past what can be addressed.
    #[error("a {ggml_type} tensor of shape {shape:?} is larger than can be addressed")]
    TooLarge {
        /// The extents, outermost first.
        shape: Vec<u64>,
        /// The type.
        ggml_type: GgmlType,
    },
    /// Rows are no whole blocks.
    #[error("rows of {row} elements are no whole blocks of {ggml_type} ({block_len} elements each)")]
    PartialBlock {
        /// Elements per row.
        row: u64,
        /// Elements per block.
        block_len: u64,
        /// The type.
        ggml_type: GgmlType,
    },
    /// The tensor type was given up by ggml.
    #[error("tensor type {number} ({name}) was removed from ggml; convert the model again")]
    RemovedType {
        /// The number.
        number: u32,
        /// Its former name.
        name: &'static str,
    },
    /// The tensor type is not in ggml's list.
    #[error("unknown tensor type {number}")]
    UnknownType {
        /// The number.
        number: u32,
    },
    /// The tensor's offset is no multiple of the alignment.
    #[error("its data begins at {offset}, which is no multiple of the alignment {alignment}")]
    Unaligned {
        /// The offset, relative to the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// The tensor's data is not inside the file.
    #[error(
        "its {length} bytes at offset {offset} of the data section (which begins at {data_start}) reach past the end of the file, which has {file_len} bytes (is the file truncated?)"
    )]
    OutOfFile {
        /// The offset, relative to the data section.
        offset: u64,
        /// Bytes of the tensor.
        length: u64,
        /// Where the data section begins.
        data_start: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// ggml has no such tensor type; only when writing.
    #[error("GGUF has no tensor type for {dtype}")]
    NoGgmlType {
        /// The dtype.
        dtype: DType,
    },
    /// The data section passes 2^64 bytes; only when writing.
    #[error("the file becomes too large")]
    FileTooLarge,
    /// Two tensors share bytes.
    #[error("its data overlaps that of tensor '{}'", other.escape_debug())]
    Overlap {
        /// The tensor that begins before.
        other: String,
    },
}

/// What is wrong with a model in several files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitFault {
    /// The metadata says that there are several files, the file name does not.
    #[error(
        "one of {count} files of a split model, but not named like 'name-00001-of-{count:05}.gguf', so that the others cannot be found"
    )]
    Name {
        /// The number of files that the metadata says.
        count: u64,
    },
    /// The bytes come from memory: there is no folder to look for the others.
    #[error("one of {count} files of a split model, which cannot be read from memory")]
    InMemory {
        /// The number of files that the metadata says.
        count: u64,
    },
    /// A file is not there.
    #[error("file {number} of {count} of the split model is missing")]
    Missing {
        /// Its number, from 1.
        number: u64,
        /// The number of files.
        count: u64,
    },
    /// `split.count` is not what the file name or the first file says.
    #[error("split.count is {found}, {expected} expected")]
    Count {
        /// What the file name or the first file says.
        expected: u64,
        /// What this file says.
        found: u64,
    },
    /// `split.no` is not what the file name says.
    #[error("split.no is {found} (counted from 0), but the file is named as number {expected}")]
    Number {
        /// From the file name, counted from 0.
        expected: u64,
        /// From the metadata.
        found: u64,
    },
    /// A shard has no `split.no` or `split.count`.
    #[error("a file of a split model without the key '{key}'")]
    NoKey {
        /// The key.
        key: &'static str,
    },
    /// Shards hold more or fewer tensors than promised.
    #[error("the files of the split model hold {found} tensors, split.tensors.count says {expected}")]
    TensorCount {
        /// `split.tensors.count`.
        expected: u64,
        /// Tensors found.
        found: u64,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor '{}' is in '{}', too", name.escape_debug(), other.display())]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The file that has it already.
        other: PathBuf,
    },
}

impl GgufError {
    /// The place and fault, if the file's bytes are at fault.
    #[must_use]
    pub fn malformed(&self) -> Option<&Malformed> {
        match self {
            GgufError::Malformed(malformed) => Some(malformed),
            _ => None,
        }
    }

    pub(crate) fn split(path: &Path, fault: SplitFault) -> GgufError {
        GgufError::Split { path: path.to_owned(), fault }
    }
}
