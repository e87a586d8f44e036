//! The header of one file.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use core_tensor::FileBytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Fault, Malformed};
use crate::{MAX_DIMS, MAX_HEADER, TorchType};

/// Bytes of the length field.
const LENGTH: usize = 8;
/// The key that is no tensor.
pub(crate) const METADATA: &str = "__metadata__";

/// What a file says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(crate) name: Arc<str>,
    pub(crate) torch_type: TorchType,
    pub(crate) shape: Vec<usize>,
    /// Bytes in the file.
    pub(crate) range: Range<usize>,
    /// Which file of a sharded model.
    pub(crate) shard: usize,
}

impl TensorInfo {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type.
    #[must_use]
    pub fn torch_type(&self) -> TorchType {
        self.torch_type
    }

    /// The extents, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // No overflow: the bytes were counted when the file was opened, unless there are none.
        self.shape.iter().fold(1, |count: usize, extent| count.saturating_mul(*extent))
    }

    /// Where the bytes lie in their file.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The number of bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }
}

/// One file, checked.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) file: Arc<FileBytes>,
    pub(crate) metadata: Vec<(String, String)>,
    /// In the order of their data.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// A JSON object whose keys may be anything, its values as they are written.
pub(crate) struct Entries<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    entries.push((key, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A string that is borrowed where it has no escapes (a plain `Cow` never is).
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// A tensor's entry.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// JSON text inside a file, for the places of faults.
pub(crate) struct Json<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
    /// Where the text begins in the file.
    pub(crate) start: usize,
}

impl<'a> Json<'a> {
    pub(crate) fn fault(&self, at: usize, tensor: Option<&str>, fault: Fault) -> Box<Malformed> {
        let offset = (self.start + at) as u64;
        Box::new(Malformed { path: self.path.to_owned(), offset, tensor: tensor.map(str::to_owned), fault })
    }

    /// Where a part of the text begins in it.
    pub(crate) fn place(&self, part: &str) -> usize {
        part.as_ptr().addr().saturating_sub(self.text.as_ptr().addr())
    }

    /// Parses a part of the text.
    pub(crate) fn parse<T: Deserialize<'a>>(&self, part: &'a str, tensor: Option<&str>) -> Result<T, Box<Malformed>> {
        serde_json::from_str(part).map_err(|error| {
            // serde_json counts lines and columns from 1.
            let before = part.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
            let at = self.place(part) + before + error.column().saturating_sub(1);
            let text = error.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned();
            self.fault(at, tensor, Fault::Json { reason })
        })
    }
}

impl Header {
    /// Reads and checks a file's header.
    pub(crate) fn parse(file: Arc<FileBytes>, shard: usize) -> Result<Header, Box<Malformed>> {
        let path = file.path().to_owned();
        let fault = |offset: usize, fault| {
            Box::new(Malformed { path: path.clone(), offset: offset as u64, tensor: None, fault })
        };
        let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
            return Err(fault(0, Fault::TooShort { length: file.len() as u64 }));
        };
        let length = u64::from_le_bytes(*length);
        if length > rest.len() as u64 {
            return Err(fault(0, Fault::HeaderLength { length, remaining: rest.len() as u64 }));
        }
        if length > MAX_HEADER {
            return Err(fault(0, Fault::HeaderTooLarge { length }));
        }
        let header = rest.get(..length as usize).unwrap_or_default();
        if header.first() != Some(&b'{') {
            return Err(fault(LENGTH, Fault::Magic { found: header.iter().take(4).copied().collect() }));
        }
        let text = std::str::from_utf8(header).map_err(|error| {
            fault(LENGTH + error.valid_up_to(), Fault::Json { reason: "the header is not UTF-8".into() })
        })?;
        let json = Json { path: &path, text, start: LENGTH };
        let (metadata, mut tensors) = entries(&json, shard)?;
        tensors.sort_unstable_by_key(|(info, _)| (info.range.start, info.range.end));
        check_cover(&json, &tensors, rest.len() - header.len())?;
        let start = LENGTH + header.len();
        let tensors = tensors
            .into_iter()
            .map(|(info, _)| TensorInfo { range: info.range.start + start..info.range.end + start, ..info })
            .collect();
        Ok(Header { file: file.clone(), metadata, tensors })
    }
}

/// Metadata, and tensors with the place of their entries; ranges are relative to the data.
type Parsed = (Vec<(String, String)>, Vec<(TensorInfo, usize)>);

fn entries(json: &Json<'_>, shard: usize) -> Result<Parsed, Box<Malformed>> {
    let Entries(entries) = json.parse(json.text, None)?;
    let mut metadata = Vec::new();
    let mut tensors = Vec::with_capacity(entries.len());
    let mut names: HashSet<&str> = HashSet::with_capacity(entries.len());
    for (name, value) in &entries {
        let value = value.get();
        let place = json.place(value);
        if !names.insert(name) {
            return Err(json.fault(place, Some(name), Fault::DuplicateTensor));
        }
        if name == METADATA {
            let Entries(pairs) = json.parse(value, None)?;
            for (key, text) in pairs {
                let Key(text) = json.parse(text.get(), None)?;
                metadata.push((key.into_owned(), text.into_owned()));
            }
        } else {
            tensors.push((tensor(json, name, value, shard)?, place));
        }
    }
    Ok((metadata, tensors))
}

fn tensor<'a>(json: &Json<'a>, name: &str, value: &'a str, shard: usize) -> Result<TensorInfo, Box<Malformed>> {
    let entry: Entry<'_> = json.parse(value, Some(name))?;
    let fault = |fault| Err(json.fault(json.place(value), Some(name), fault));
    let Some(torch_type) = TorchType::from_name(&entry.dtype) else {
        return fault(Fault::UnknownType { found: entry.dtype.chars().take(32).collect() });
    };
    let Entry { shape, data_offsets: [begin, end], .. } = entry;
    if shape.len() > MAX_DIMS {
        return fault(Fault::TooManyDims { dims: shape.len() });
    }
    let Some(expected) = torch_type.byte_len(&shape) else {
        return fault(Fault::Size { shape, torch_type });
    };
    if end.checked_sub(begin) != Some(expected) {
        return fault(Fault::Length { shape, torch_type, expected, begin, end });
    }
    Ok(TensorInfo { name: name.into(), torch_type, shape, range: begin..end, shard })
}

/// Checks that tensors, in order, cover the data.
fn check_cover(json: &Json<'_>, tensors: &[(TensorInfo, usize)], data: usize) -> Result<(), Box<Malformed>> {
    let mut end = 0;
    let mut other: &str = "";
    for (info, place) in tensors {
        let fault = |fault| Err(json.fault(*place, Some(&info.name), fault));
        if info.range.end > data {
            return fault(Fault::OutOfFile { end: info.range.end, data });
        }
        if info.range.start < end {
            return fault(Fault::Overlap { other: other.to_owned() });
        }
        if info.range.start > end {
            return fault(Fault::Gap { begin: info.range.start, end });
        }
        (end, other) = (info.range.end, &info.name);
    }
    if end < data {
        return Err(json.fault(json.text.len() + end, None, Fault::Trailing { extra: data - end }));
    }
    Ok(())
}
