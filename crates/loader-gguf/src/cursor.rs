//! Reading little-endian fields from bytes that may end anywhere.

use crate::error::Fault;
use crate::value::{Array, Value, ValueType};
use crate::{MAX_NAME_LEN, MAX_NESTING};

/// A fault and the byte at which the faulty field begins.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) offset: usize,
    pub(crate) fault: Fault,
}

/// A position in bytes. Nothing is read that was not checked to be there, and nothing is allocated.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// The position: bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The next `len` bytes.
    fn take(&mut self, len: u64, field: &'static str) -> Result<&'a [u8], Stop> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len)) {
            Some((taken, _)) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(Stop {
                offset: self.at,
                fault: Fault::EndOfFile { field, needed: len, remaining: rest.len() as u64 },
            }),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Stop> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.first_chunk::<N>() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(Stop {
                offset: self.at,
                fault: Fault::EndOfFile { field, needed: N as u64, remaining: rest.len() as u64 },
            }),
        }
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Stop> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Stop> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Refuses a count, read at `offset`, of things that cannot be in what is left.
    pub(crate) fn check_count(&self, offset: usize, what: &'static str, count: u64, min: usize) -> Result<(), Stop> {
        let remaining = self.remaining() as u64;
        match count.checked_mul(min as u64) {
            Some(bytes) if bytes <= remaining => Ok(()),
            _ => Err(Stop { offset, fault: Fault::Count { what, count, remaining } }),
        }
    }

    /// A key or tensor name: UTF-8 of bounded length, not empty.
    pub(crate) fn name(&mut self) -> Result<&'a str, Stop> {
        let offset = self.at;
        let stop = |fault| Stop { offset, fault };
        let length = self.u64("length of a name")?;
        if length == 0 {
            return Err(stop(Fault::EmptyName));
        }
        if length > MAX_NAME_LEN as u64 {
            return Err(stop(Fault::NameLength { length }));
        }
        let bytes = self.take(length, "name")?;
        std::str::from_utf8(bytes).map_err(|_| stop(Fault::NameNotUtf8))
    }

    /// The number of a value type.
    pub(crate) fn value_type(&mut self) -> Result<ValueType, Stop> {
        let offset = self.at;
        ValueType::from_number(self.u32("value type")?).map_err(|fault| Stop { offset, fault })
    }

    /// A value, checked to its end.
    pub(crate) fn value(&mut self, value_type: ValueType) -> Result<Value<'a>, Stop> {
        self.nested_value(value_type, 0)
    }

    /// A value inside `depth` arrays.
    fn nested_value(&mut self, value_type: ValueType, depth: usize) -> Result<Value<'a>, Stop> {
        Ok(match value_type {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array("u8 value")?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array("i8 value")?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array("u16 value")?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array("i16 value")?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array("u32 value")?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array("i32 value")?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array("f32 value")?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array("u64 value")?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array("i64 value")?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array("f64 value")?)),
            ValueType::Bool => {
                let offset = self.at;
                match self.array("bool value")? {
                    [0] => Value::Bool(false),
                    [1] => Value::Bool(true),
                    [byte] => return Err(Stop { offset, fault: Fault::Bool { byte } }),
                }
            }
            ValueType::String => {
                let length = self.u64("length of a string")?;
                Value::String(self.take(length, "string")?)
            }
            ValueType::Array => Value::Array(self.nested_array(depth)?),
        })
    }

    fn nested_array(&mut self, depth: usize) -> Result<Array<'a>, Stop> {
        if depth >= MAX_NESTING {
            return Err(Stop { offset: self.at, fault: Fault::Nesting });
        }
        let element = self.value_type()?;
        let offset = self.at;
        let count = self.u64("length of an array")?;
        self.check_count(offset, "array elements", count, element.min_bytes())?;
        let overflow = || Stop { offset, fault: Fault::Count { what: "array elements", count, remaining: 0 } };
        let len = usize::try_from(count).map_err(|_| overflow())?;
        let start = self.at;
        if element.is_fixed() {
            let bytes = self.take(count * element.min_bytes() as u64, "array")?;
            if element == ValueType::Bool
                && let Some((index, byte)) = bytes.iter().copied().enumerate().find(|(_, byte)| *byte > 1)
            {
                return Err(Stop { offset: start + index, fault: Fault::Bool { byte } });
            }
            return Ok(Array { element, len, bytes });
        }
        for _ in 0..len {
            self.nested_value(element, depth + 1)?;
        }
        let bytes = self.bytes.get(start..self.at).unwrap_or_default();
        Ok(Array { element, len, bytes })
    }
}
