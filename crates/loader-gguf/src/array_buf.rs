//! Building values to write.

use crate::MAX_NESTING;
use crate::error::Fault;
use crate::value::{Array, Value, ValueType};

/// An array under construction, for [`GgufWriter::set`](crate::GgufWriter::set).
///
/// ```
/// use loader_gguf::{ArrayBuf, Value};
///
/// let tokens: ArrayBuf = ["<s>", "</s>", "hello"].into_iter().collect();
/// assert_eq!(tokens.as_array().len(), 3);
/// let scores: ArrayBuf = [0.0_f32, -1.0, -2.5].into_iter().collect();
/// assert_eq!(scores.as_array().iter().last(), Some(Value::F32(-2.5)));
/// ```
#[derive(Clone, Debug)]
pub struct ArrayBuf {
    element: ValueType,
    len: usize,
    bytes: Vec<u8>,
}

impl ArrayBuf {
    /// An empty array of elements of a type.
    #[must_use]
    pub const fn new(element: ValueType) -> ArrayBuf {
        ArrayBuf { element, len: 0, bytes: Vec::new() }
    }

    /// Appends an element.
    ///
    /// # Errors
    /// [`Fault::MixedArray`] when it is of another type than the array.
    pub fn push<'v>(&mut self, value: impl Into<Value<'v>>) -> Result<(), Fault> {
        let value = value.into();
        let found = value.value_type();
        if found != self.element {
            return Err(Fault::MixedArray { expected: self.element, found });
        }
        encode(value, &mut self.bytes);
        self.len += 1;
        Ok(())
    }

    /// The array as a reader sees it.
    #[must_use]
    pub fn as_array(&self) -> Array<'_> {
        Array { element: self.element, len: self.len, bytes: &self.bytes }
    }
}

impl<'a> From<&'a ArrayBuf> for Value<'a> {
    fn from(array: &'a ArrayBuf) -> Value<'a> {
        Value::Array(array.as_array())
    }
}

impl<'a> From<Array<'a>> for Value<'a> {
    fn from(array: Array<'a>) -> Value<'a> {
        Value::Array(array)
    }
}

macro_rules! conversions {
    ($($t:ty => $variant:ident),*) => { $(
        impl From<$t> for Value<'_> {
            fn from(value: $t) -> Self {
                Value::$variant(value)
            }
        }

        impl FromIterator<$t> for ArrayBuf {
            fn from_iter<I: IntoIterator<Item = $t>>(values: I) -> ArrayBuf {
                let mut array = ArrayBuf::new(ValueType::$variant);
                for value in values {
                    encode(Value::$variant(value), &mut array.bytes);
                    array.len += 1;
                }
                array
            }
        }
    )* };
}
conversions!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool, u64 => U64,
             i64 => I64, f64 => F64);

macro_rules! strings {
    ($($t:ty),*) => { $(
        impl<'a> From<&'a $t> for Value<'a> {
            fn from(text: &'a $t) -> Value<'a> {
                Value::String(text.as_ref())
            }
        }

        impl<'a> FromIterator<&'a $t> for ArrayBuf {
            fn from_iter<I: IntoIterator<Item = &'a $t>>(texts: I) -> ArrayBuf {
                let mut array = ArrayBuf::new(ValueType::String);
                for text in texts {
                    encode(Value::from(text), &mut array.bytes);
                    array.len += 1;
                }
                array
            }
        }
    )* };
}
strings!(str, String, [u8], Vec<u8>);

/// Appends a value as a file stores it (its type not included).
pub(crate) fn encode(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(v)),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::String(bytes) => {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(bytes);
        }
        Value::Array(array) => {
            out.extend(array.element.number().to_le_bytes());
            out.extend((array.len as u64).to_le_bytes());
            out.extend(array.bytes);
        }
    }
}

/// Refuses arrays that a reader would find too deep.
pub(crate) fn check_nesting(value: Value<'_>) -> Result<(), Fault> {
    fn depth(array: Array<'_>, above: usize) -> Result<(), Fault> {
        if above >= MAX_NESTING {
            return Err(Fault::Nesting);
        }
        if array.element != ValueType::Array {
            return Ok(());
        }
        // Elements of an array that is too deep do not decode: the cursor stops at the same limit.
        let mut seen = 0;
        for element in array.iter().filter_map(|value| value.as_array()) {
            depth(element, above + 1)?;
            seen += 1;
        }
        if seen == array.len() { Ok(()) } else { Err(Fault::Nesting) }
    }
    value.as_array().map_or(Ok(()), |array| depth(array, 0))
}
