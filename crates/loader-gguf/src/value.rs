//! Metadata values: what a key can hold, read in place.

use std::fmt;

use crate::cursor::Cursor;
use crate::error::Fault;

/// The type of a metadata value (`enum gguf_metadata_value_type`).
#[allow(missing_docs)] // the names say it
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// Every type, at the index that is its number in a file.
    pub const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The type of a number.
    ///
    /// # Errors
    /// [`Fault::UnknownValueType`].
    pub fn from_number(number: u32) -> Result<ValueType, Fault> {
        let found = usize::try_from(number).ok().and_then(|index| ValueType::ALL.get(index));
        found.copied().ok_or(Fault::UnknownValueType { number })
    }

    /// The number in a file.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The name in Rust's words ("u32", "string", "array").
    #[must_use]
    pub const fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }

    /// Bytes that a value takes at least: all of them for numbers and bools, the length of a string, type and length of an array.
    pub(crate) const fn min_bytes(self) -> usize {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 | String => 8,
            Array => 12,
        }
    }

    /// Whether every value takes [`ValueType::min_bytes`].
    pub(crate) const fn is_fixed(self) -> bool {
        !matches!(self, ValueType::String | ValueType::Array)
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value. Strings and arrays point into the file.
#[allow(missing_docs)] // the names say it
#[derive(Clone, Copy, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// The bytes of a string. The format asks for UTF-8; files with other bytes exist, so that it is checked where text is asked for.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The type.
    #[must_use]
    pub const fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of any integer type.
    #[must_use]
    pub const fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v as i128,
            Value::I8(v) => v as i128,
            Value::U16(v) => v as i128,
            Value::I16(v) => v as i128,
            Value::U32(v) => v as i128,
            Value::I32(v) => v as i128,
            Value::U64(v) => v as i128,
            Value::I64(v) => v as i128,
            _ => return None,
        })
    }

    /// The value of any float or integer type, rounded to f64 where it must be.
    #[must_use]
    pub const fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v as f64),
            Value::F64(v) => Some(v),
            _ => match self.as_integer() {
                Some(v) => Some(v as f64),
                None => None,
            },
        }
    }

    /// The text of a string; `None` for other types and for bytes that are not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The array.
    #[must_use]
    pub const fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// Shows the value in one line, without its type: strings escaped and cut after `limit` characters, of arrays the first
    /// four elements.
    pub fn show(self, limit: usize) -> impl fmt::Display + use<'a> {
        Shown { value: self, limit }
    }

    /// Type and, where it is short, value: for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Value::Array(array) => format!("an array of {} {}", array.len(), array.value_type()),
            Value::String(bytes) if std::str::from_utf8(bytes).is_err() => "a string that is not UTF-8".to_owned(),
            Value::String(_) => format!("a string: {}", Shown { value: *self, limit: 40 }),
            other => format!("{} {}", other.value_type(), Shown { value: *other, limit: 40 }),
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.value_type(), Shown { value: *self, limit: 60 })
    }
}

/// See [`Value::show`].
struct Shown<'a> {
    value: Value<'a>,
    limit: usize,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v:?}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v:?}"),
            Value::String(bytes) => {
                // A character takes at most four bytes: no more of a long string than is shown is looked at.
                let head = bytes.get(..self.limit.saturating_mul(4)).unwrap_or(bytes);
                let text = String::from_utf8_lossy(head);
                let shown: String = text.chars().take(self.limit).collect();
                let cut = shown.len() < text.len() || head.len() < bytes.len();
                write!(f, "\"{}\"{}", shown.escape_debug(), if cut { "…" } else { "" })
            }
            Value::Array(array) => {
                const FIRST: usize = 4;
                f.write_str("[")?;
                for (index, value) in array.iter().take(FIRST).enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", Shown { value, limit: 20.min(self.limit) })?;
                }
                f.write_str(if array.len() > FIRST { ", …]" } else { "]" })
            }
        }
    }
}

/// An array of a file's metadata: an element type, a length, and encoded elements that are decoded as they are iterated.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(crate) element: ValueType,
    pub(crate) len: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The type of the elements.
    #[must_use]
    pub const fn value_type(&self) -> ValueType {
        self.element
    }

    /// The number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, in order.
    #[must_use]
    pub fn iter(&self) -> Elements<'a> {
        Elements { cursor: Cursor::new(self.bytes), element: self.element, left: self.len }
    }

    /// The elements as a file stores them.
    #[must_use]
    pub const fn encoded(&self) -> &'a [u8] {
        self.bytes
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} {}", self.len, self.element, Shown { value: Value::Array(*self), limit: 20 })
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = Elements<'a>;

    fn into_iter(self) -> Elements<'a> {
        self.iter()
    }
}

/// The elements of an [`Array`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    cursor: Cursor<'a>,
    element: ValueType,
    left: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // The bytes were checked when the file was opened, so that this cannot fail.
        self.cursor.value(self.element).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}

/// A Rust type that metadata values can be read as; see [`Gguf::value`](crate::Gguf::value).
pub trait FromValue<'a>: Sized {
    /// What is expected, for messages.
    const EXPECTED: &'static str;

    /// The value, if it is of a fitting type and inside the range.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        /// From every integer type, if the value fits.
        impl FromValue<'_> for $t {
            const EXPECTED: &'static str = stringify!($t);

            fn from_value(value: Value<'_>) -> Option<$t> {
                value.as_integer()?.try_into().ok()
            }
        }
    )* };
}
integers!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

/// From every float and integer type, rounded to the nearest f32.
impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "f32";

    fn from_value(value: Value<'_>) -> Option<f32> {
        match value {
            Value::F32(v) => Some(v), // the bits of a NaN, too
            other => other.as_f64().map(|v| v as f32),
        }
    }
}

/// From every float and integer type, rounded to the nearest f64.
impl FromValue<'_> for f64 {
    const EXPECTED: &'static str = "f64";

    fn from_value(value: Value<'_>) -> Option<f64> {
        value.as_f64()
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "bool";

    fn from_value(value: Value<'_>) -> Option<bool> {
        match value {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "string";

    fn from_value(value: Value<'a>) -> Option<&'a str> {
        value.as_str()
    }
}

/// From strings, whatever bytes they hold.
impl<'a> FromValue<'a> for &'a [u8] {
    const EXPECTED: &'static str = "string";

    fn from_value(value: Value<'a>) -> Option<&'a [u8]> {
        match value {
            Value::String(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const EXPECTED: &'static str = "array";

    fn from_value(value: Value<'a>) -> Option<Array<'a>> {
        value.as_array()
    }
}
