//! A model: its metadata and tensors, in one file or several.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{FileAccess, FileBytes, Tensor, WeightSource};

use crate::error::{GgufError, SplitFault};
use crate::shard::{Shard, TensorInfo};
use crate::split;
use crate::summary::Summary;
use crate::value::{Array, Elements, FromValue, Value, ValueType};

/// The version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Version {
    /// 64-bit lengths (2023).
    V2 = 2,
    /// The same for little-endian machines; written since late 2023.
    V3 = 3,
}

impl Version {
    /// The version of a number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Version> {
        match number {
            2 => Some(Version::V2),
            3 => Some(Version::V3),
            _ => None,
        }
    }

    /// The number in a file.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// An opened model.
///
/// Strings, arrays and tensors stay where they are in the file. All that a file says was checked when it was opened: what is
/// in here can be read without surprise. Metadata is that of the first file of a split model.
#[derive(Debug)]
pub struct Gguf {
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    index: HashMap<Arc<str>, usize>,
}

impl Gguf {
    /// Opens a model. Of a split model (`name-00001-of-00003.gguf`) any file may be given; all are opened.
    ///
    /// # Errors
    /// When a file cannot be opened, is malformed, or does not fit the others of a split model.
    pub fn open(path: impl AsRef<Path>, access: FileAccess) -> Result<Gguf, GgufError> {
        let file = split::open_file(path.as_ref(), access)?;
        Gguf::from_shards(split::open_all(file, access)?)
    }

    /// Reads a model from bytes in memory; `name` stands for the path in messages.
    ///
    /// # Errors
    /// When the bytes are malformed, are one file of several, or there is no memory for a copy.
    pub fn from_slice(name: &str, bytes: &[u8]) -> Result<Gguf, GgufError> {
        Gguf::from_file(FileBytes::from_slice(name, bytes)?)
    }

    /// Reads a model from a file that is open already.
    ///
    /// # Errors
    /// When the bytes are malformed or are one file of several.
    pub fn from_file(file: Arc<FileBytes>) -> Result<Gguf, GgufError> {
        let shard = Shard::parse(file, 0)?;
        match split::count(&shard)? {
            0 | 1 => Gguf::from_shards(vec![shard]),
            count => Err(GgufError::split(shard.path(), SplitFault::InMemory { count })),
        }
    }

    fn from_shards(mut shards: Vec<Shard>) -> Result<Gguf, GgufError> {
        let total = shards.iter().map(|shard| shard.tensors.len()).sum();
        let mut tensors: Vec<TensorInfo> = Vec::with_capacity(total);
        let mut index = HashMap::with_capacity(total);
        for shard in &mut shards {
            tensors.append(&mut shard.tensors);
        }
        for (place, info) in tensors.iter().enumerate() {
            if let Some(first) = index.insert(info.name.clone(), place) {
                let path = |at: usize| tensors.get(at).and_then(|t| shards.get(t.shard)).map(Shard::path);
                let other = path(first).unwrap_or(Path::new("")).to_owned();
                let fault = SplitFault::DuplicateTensor { name: info.name().to_owned(), other };
                return Err(GgufError::split(path(place).unwrap_or(Path::new("")), fault));
            }
        }
        Ok(Gguf { shards, tensors, index })
    }

    fn first(&self) -> Option<&Shard> {
        self.shards.first()
    }

    /// The path of the (first) file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.first().map_or(Path::new(""), Shard::path)
    }

    /// The files, in the order of a split model; one if it is not split.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Arc<FileBytes>> {
        self.shards.iter().map(|shard| &shard.file)
    }

    /// The version of the (first) file.
    #[must_use]
    pub fn version(&self) -> Version {
        self.first().map_or(Version::V3, |shard| shard.version)
    }

    /// The alignment of tensor data in the (first) file.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.first().map_or(crate::DEFAULT_ALIGNMENT, |shard| shard.alignment)
    }

    /// Where the data section of the (first) file begins.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.first().map_or(0, |shard| shard.data_start)
    }

    /// All metadata, in the file's order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.first().into_iter().flat_map(Shard::metadata)
    }

    /// All keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata().map(|(key, _)| key)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        Some(self.first()?.get(key)?.0)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of a key that need not be there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when the key is there and its value does not fit `T`.
    pub fn optional<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match T::from_value(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong_type(key, T::EXPECTED, value.describe())),
            },
        }
    }

    /// The value of a key that must be there. Integers of every width are converted where they fit; floats take integers, too.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], or [`GgufError::WrongType`] when the value does not fit `T`.
    pub fn value<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.optional(key)?.ok_or_else(|| self.missing(key, T::EXPECTED))
    }

    /// A string.
    ///
    /// # Errors
    /// As [`Gguf::value`]; also when the string is not UTF-8.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.value(key)
    }

    /// An integer.
    ///
    /// # Errors
    /// As [`Gguf::value`].
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.value(key)
    }

    /// An integer.
    ///
    /// # Errors
    /// As [`Gguf::value`].
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.value(key)
    }

    /// A number.
    ///
    /// # Errors
    /// As [`Gguf::value`].
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.value(key)
    }

    /// A bool.
    ///
    /// # Errors
    /// As [`Gguf::value`].
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.value(key)
    }

    /// The texts of an array of strings, decoded as they are iterated. A text that is not UTF-8 comes as an error;
    /// [`Gguf::byte_strings`] takes those, too.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], or [`GgufError::WrongType`] when the value is no array of strings.
    pub fn strings<'a>(&'a self, key: &'a str) -> Result<Strings<'a>, GgufError> {
        Ok(Strings { bytes: self.byte_strings(key)?, gguf: self, key })
    }

    /// The bytes of an array of strings.
    ///
    /// # Errors
    /// As [`Gguf::strings`].
    pub fn byte_strings(&self, key: &str) -> Result<ByteStrings<'_>, GgufError> {
        const EXPECTED: &str = "an array of strings";
        let value = self.get(key).ok_or_else(|| self.missing(key, EXPECTED))?;
        match value.as_array() {
            // An empty array may carry any element type: some writers have none to go by.
            Some(array) if array.element == ValueType::String || array.is_empty() => Ok(ByteStrings(array.iter())),
            _ => Err(self.wrong_type(key, EXPECTED, value.describe())),
        }
    }

    /// An array of numbers or bools. Elements are converted as [`Gguf::value`] does.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], or [`GgufError::WrongType`] when the value is no array or an element does not fit `T`.
    pub fn array<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Vec<T>, GgufError> {
        let array = self.value::<Array<'a>>(key)?;
        self.convert(key, array)
    }

    fn convert<'a, T: FromValue<'a>>(&'a self, key: &str, array: Array<'a>) -> Result<Vec<T>, GgufError> {
        let element = |(index, value): (usize, Value<'a>)| {
            T::from_value(value)
                .ok_or_else(|| self.wrong_type(key, T::EXPECTED, format!("{} as element {index}", value.describe())))
        };
        array.iter().enumerate().map(element).collect()
    }

    /// An array of numbers as f32.
    ///
    /// # Errors
    /// As [`Gguf::array`].
    pub fn f32s(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        self.array(key)
    }

    /// An array of integers as i32.
    ///
    /// # Errors
    /// As [`Gguf::array`].
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.array(key)
    }

    /// An array of integers as u32.
    ///
    /// # Errors
    /// As [`Gguf::array`].
    pub fn u32s(&self, key: &str) -> Result<Vec<u32>, GgufError> {
        self.array(key)
    }

    /// One value per layer: an array of at least `layers` elements, or a single value that holds for all of them
    /// (`head_count_kv` and `feed_forward_length` come both ways).
    ///
    /// # Errors
    /// As [`Gguf::array`]; also when the array is too short.
    pub fn per_layer<'a, T: FromValue<'a> + Clone>(&'a self, key: &str, layers: usize) -> Result<Vec<T>, GgufError> {
        let Some(Value::Array(array)) = self.get(key) else {
            return Ok(vec![self.value::<T>(key)?; layers]);
        };
        if array.len() < layers {
            let found = format!("{}, for {layers} layers", Value::Array(array).describe());
            return Err(self.wrong_type(key, T::EXPECTED, found));
        }
        let mut values = self.convert(key, array)?;
        values.truncate(layers);
        Ok(values)
    }

    fn missing(&self, key: &str, expected: &'static str) -> GgufError {
        GgufError::MissingKey { path: self.path().to_owned(), key: key.to_owned(), expected }
    }

    fn wrong_type(&self, key: &str, expected: &'static str, found: String) -> GgufError {
        let offset = self.first().and_then(|shard| shard.get(key)).map_or(0, |(_, offset)| offset);
        GgufError::WrongType { path: self.path().to_owned(), offset, key: key.to_owned(), expected, found }
    }

    /// All tensors, in the files' order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The number of parameters: elements of all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|info| info.elements() as u64).sum()
    }

    /// A description for people: all keys, all tensors, totals per type.
    #[must_use]
    pub fn summary(&self) -> Summary<'_> {
        Summary::new(self)
    }

    /// What the file says of a tensor.
    #[must_use]
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.index.get(name)?)
    }

    /// A tensor; its bytes stay in the file.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`], or [`GgufError::UnsupportedType`] for types that core-tensor has no dtype for.
    pub fn tensor(&self, name: &str) -> Result<Tensor, GgufError> {
        let missing = || GgufError::MissingTensor { path: self.path().to_owned(), name: name.to_owned() };
        let info = self.tensor_info(name).ok_or_else(missing)?;
        let file = &self.shards.get(info.shard).ok_or_else(missing)?.file;
        let path = || file.path().to_owned();
        let Some(dtype) = info.dtype() else {
            return Err(GgufError::UnsupportedType { path: path(), name: name.to_owned(), ggml_type: info.ggml_type });
        };
        Tensor::from_file(dtype, info.shape(), file.clone(), info.range()).map_err(|source| GgufError::Tensor {
            path: path(),
            name: name.to_owned(),
            source,
        })
    }
}

impl WeightSource for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(TensorInfo::name).collect()
    }

    fn tensor(&self, name: &str) -> Option<Tensor> {
        Gguf::tensor(self, name).ok()
    }

    fn origin(&self) -> String {
        self.path().display().to_string()
    }
}

/// The texts of an array of strings; see [`Gguf::strings`].
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    bytes: ByteStrings<'a>,
    gguf: &'a Gguf,
    key: &'a str,
}

impl<'a> Iterator for Strings<'a> {
    type Item = Result<&'a str, GgufError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.bytes.next()?;
        Some(std::str::from_utf8(bytes).map_err(|_| {
            let found = format!("\"{}\" with {} more strings to come", bytes.escape_ascii(), self.bytes.len());
            self.gguf.wrong_type(self.key, "UTF-8 strings", found)
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.bytes.size_hint()
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The bytes of an array of strings; see [`Gguf::byte_strings`].
#[derive(Clone, Debug)]
pub struct ByteStrings<'a>(Elements<'a>);

impl<'a> Iterator for ByteStrings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self.0.next()? {
            Value::String(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for ByteStrings<'_> {}
