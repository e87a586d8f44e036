//! Tensors of a model: bytes that stay in the file where they can, decoded fields elsewhere.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use core_tensor::{DType, FileBytes, Tensor, TensorError, byte_len};

use crate::error::Fault;
use crate::external::ExternalFiles;
use crate::proto::tensor_proto::{DataLocation, DataType};
use crate::proto::{SparseTensorProto, TensorProto};

/// Bytes of a sparse tensor at most, when it is dense.
const MAX_DENSE_BYTES: usize = 1 << 28;

/// What a tensor of a model holds.
#[derive(Clone, Debug)]
pub enum TensorData {
    /// Numbers.
    Tensor(Tensor),
    /// Strings, which are metadata: nothing computes with them.
    Strings {
        /// Extents, outermost first.
        shape: Vec<usize>,
        /// The strings, in rows.
        strings: Vec<Bytes>,
    },
}

/// The dtype of an element type; `None` for strings.
pub(crate) fn dtype(number: i32) -> Result<Option<DType>, Fault> {
    let unsupported = |name| Err(Fault::UnsupportedType { name });
    Ok(Some(match DataType::try_from(number).map_err(|_| Fault::UnknownType { number })? {
        DataType::Undefined => return Err(Fault::UnknownType { number }),
        DataType::Float => DType::F32,
        DataType::Uint8 => DType::U8,
        DataType::Int8 => DType::I8,
        DataType::Uint16 => DType::U16,
        DataType::Int16 => DType::I16,
        DataType::Int32 => DType::I32,
        DataType::Int64 => DType::I64,
        DataType::String => return Ok(None),
        DataType::Bool => DType::Bool,
        DataType::Float16 => DType::F16,
        DataType::Double => DType::F64,
        DataType::Uint32 => DType::U32,
        DataType::Uint64 => DType::U64,
        DataType::Bfloat16 => DType::BF16,
        DataType::Float8e4m3fn => DType::F8E4M3,
        DataType::Float8e5m2 => DType::F8E5M2,
        DataType::Uint4 => DType::U4,
        DataType::Int4 => DType::I4,
        DataType::Complex64 => return unsupported("complex64"),
        DataType::Complex128 => return unsupported("complex128"),
        DataType::Float8e4m3fnuz => return unsupported("float8e4m3fnuz"),
        DataType::Float8e5m2fnuz => return unsupported("float8e5m2fnuz"),
        DataType::Float4e2m1 => return unsupported("float4e2m1"),
        DataType::Float8e8m0 => return unsupported("float8e8m0"),
    }))
}

/// Extents of a tensor whose data are there, as numbers.
pub(crate) fn extents(dims: &[i64]) -> Result<Vec<usize>, Fault> {
    let shape: Vec<usize> = dims
        .iter()
        .map(|extent| usize::try_from(*extent).map_err(|_| Fault::Extent { extent: *extent }))
        .collect::<Result<_, _>>()?;
    let product = shape.iter().try_fold(1usize, |n, extent| n.checked_mul(*extent));
    // Extents of zero hide others that are too large.
    let largest = shape.iter().filter(|extent| **extent != 0).try_fold(1usize, |n, extent| n.checked_mul(*extent));
    if product.is_none() || largest.is_none_or(|n| n > isize::MAX as usize) {
        return Err(Fault::TooLarge { shape: dims.to_vec() });
    }
    Ok(shape)
}

/// Reads tensors of one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorReader<'a> {
    pub(crate) file: &'a Arc<FileBytes>,
    pub(crate) external: &'a ExternalFiles,
}

impl TensorReader<'_> {
    /// A tensor of numbers.
    pub(crate) fn tensor(self, proto: &TensorProto) -> Result<Tensor, Fault> {
        match self.read(proto)? {
            TensorData::Tensor(tensor) => Ok(tensor),
            TensorData::Strings { .. } => Err(Fault::UnsupportedType { name: "string" }),
        }
    }

    /// Whatever the tensor holds.
    pub(crate) fn read(self, proto: &TensorProto) -> Result<TensorData, Fault> {
        let shape = extents(&proto.dims)?;
        let count: usize = shape.iter().product();
        if proto.segment.is_some() {
            return Err(Fault::External("a tensor in segments".into()));
        }
        let Some(dtype) = dtype(proto.data_type())? else {
            check_len("string_data", "elements", count, proto.string_data.len())?;
            return Ok(TensorData::Strings { shape, strings: proto.string_data.clone() });
        };
        // Two nibbles share a byte across rows in ONNX, but not here: such tensors become bytes.
        let odd = dtype.packing().0 == 2 && shape.last().is_none_or(|row| row % 2 == 1);
        let bytes = if dtype.packing().0 == 2 { count.div_ceil(2) } else { byte_len(dtype, &shape)? };
        let tensor = if proto.data_location() == DataLocation::External {
            let (file, range) = self.external_range(proto, bytes)?;
            if odd { unpack(dtype, &shape, &file[range])? } else { Tensor::from_file(dtype, &shape, file, range)? }
        } else if let Some(raw) = &proto.raw_data {
            check_len("raw_data", "bytes", bytes, raw.len())?;
            match self.range_of(raw) {
                _ if odd => unpack(dtype, &shape, raw)?,
                Some(range) if !raw.is_empty() => Tensor::from_file(dtype, &shape, self.file.clone(), range)?,
                _ => Tensor::from_bytes(dtype, &shape, raw)?,
            }
        } else {
            let data = typed(proto, dtype, count)?;
            if odd { unpack(dtype, &shape, &data)? } else { Tensor::from_bytes(dtype, &shape, &data)? }
        };
        Ok(TensorData::Tensor(tensor))
    }

    /// Where in the file the bytes of a message lie.
    fn range_of(self, bytes: &Bytes) -> Option<Range<usize>> {
        let start = (bytes.as_ptr() as usize).checked_sub(self.file.as_ptr() as usize)?;
        let end = start.checked_add(bytes.len())?;
        (end <= self.file.len()).then_some(start..end)
    }

    fn external_range(self, proto: &TensorProto, bytes: usize) -> Result<(Arc<FileBytes>, Range<usize>), Fault> {
        let (mut location, mut offset, mut length) = (None, 0u64, bytes as u64);
        for entry in &proto.external_data {
            let number = || {
                let what =
                    || Fault::External(format!("{} '{}' is no number", entry.key(), entry.value().escape_debug()));
                entry.value().trim().parse::<u64>().map_err(|_| what())
            };
            match entry.key() {
                "location" => location = Some(entry.value()),
                "offset" => offset = number()?,
                "length" => length = number()?,
                // Checksums and what other writers add change nothing about where the data are.
                _ => {}
            }
        }
        let location = location.ok_or_else(|| Fault::External("no location".into()))?;
        if length != bytes as u64 {
            return Err(Fault::Length { field: "external data", unit: "bytes", expected: bytes as u64, found: length });
        }
        let file = self.external.get(location)?;
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(bytes)?));
        match range {
            Some(range) if range.end <= file.len() => Ok((file, range)),
            _ => {
                let len = file.len() as u64;
                Err(Fault::ExternalRange { file: file.path().to_owned(), offset, length, len })
            }
        }
    }

    /// A sparse tensor, made dense.
    pub(crate) fn sparse(self, proto: &SparseTensorProto) -> Result<Tensor, Fault> {
        let wrong = |why: &str| Fault::Sparse(why.into());
        let values = self.tensor(proto.values.as_ref().ok_or(Fault::Missing("values"))?)?;
        let indices = self.tensor(proto.indices.as_ref().ok_or(Fault::Missing("indices"))?)?;
        let shape = extents(&proto.dims)?;
        let [count] = *values.shape() else { return Err(wrong("its values are no vector")) };
        let size = values.dtype().packing().1;
        if values.dtype().packing().0 != 1 {
            return Err(Fault::UnsupportedType { name: "sparse 4-bit integers" });
        }
        if byte_len(values.dtype(), &shape)? > MAX_DENSE_BYTES {
            return Err(wrong("too large to be made dense"));
        }
        let flat = match *indices.shape() {
            [n] if n == count => true,
            [n, rank] if n == count && rank == shape.len() => false,
            _ => return Err(wrong("its indices do not fit its values")),
        };
        let indices = indices.to_vec::<i64>()?;
        let mut dense = Tensor::zeroed(values.dtype(), &shape)?;
        let len = dense.len();
        let out = dense.bytes_mut().ok_or_else(|| wrong("it is shared"))?;
        for (i, value) in values.bytes().chunks_exact(size).enumerate() {
            let at = if flat {
                indices.get(i).copied()
            } else {
                let row = indices.get(i * shape.len()..(i + 1) * shape.len());
                row.and_then(|row| {
                    row.iter().zip(&shape).try_fold(0i64, |at, (index, extent)| {
                        let extent = i64::try_from(*extent).ok()?;
                        (0..extent).contains(index).then(|| at.checked_mul(extent)?.checked_add(*index))?
                    })
                })
            };
            let at = at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < len);
            let at = at.ok_or_else(|| wrong("an index is outside of its extents"))?;
            out[at * size..(at + 1) * size].copy_from_slice(value);
        }
        Ok(dense)
    }
}

fn check_len(field: &'static str, unit: &'static str, expected: usize, found: usize) -> Result<(), Fault> {
    if expected == found {
        return Ok(());
    }
    Err(Fault::Length { field, unit, expected: expected as u64, found: found as u64 })
}

/// The bytes of the typed fields.
fn typed(proto: &TensorProto, dtype: DType, count: usize) -> Result<Vec<u8>, Fault> {
    let fields = [
        ("float_data", proto.float_data.len()),
        ("int32_data", proto.int32_data.len()),
        ("int64_data", proto.int64_data.len()),
        ("double_data", proto.double_data.len()),
        ("uint64_data", proto.uint64_data.len()),
        ("string_data", proto.string_data.len()),
    ];
    let expected = match dtype {
        DType::F32 => "float_data",
        DType::I64 => "int64_data",
        DType::F64 => "double_data",
        DType::U64 | DType::U32 => "uint64_data",
        _ => "int32_data",
    };
    for (field, len) in fields {
        if field == expected {
            let count = if dtype.packing().0 == 2 { count.div_ceil(2) } else { count };
            check_len(field, "elements", count, len)?;
        } else if len > 0 {
            return Err(Fault::Field { dtype: dtype.name(), expected, found: field });
        }
    }
    Ok(match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U32 => {
            let mut out = Vec::with_capacity(proto.uint64_data.len() * 4);
            for (index, x) in proto.uint64_data.iter().enumerate() {
                let wrong = |_| Fault::Element { index, value: *x as i64, dtype: dtype.name() };
                out.extend_from_slice(&u32::try_from(*x).map_err(wrong)?.to_le_bytes());
            }
            out
        }
        _ => int32_bytes(&proto.int32_data, dtype)?,
    })
}

/// Elements that are kept in `int32_data`: narrow integers by value, narrow floats by their bits.
fn int32_bytes(data: &[i32], dtype: DType) -> Result<Vec<u8>, Fault> {
    let size = dtype.packing().1;
    let (low, high) = match dtype {
        DType::I32 => (i32::MIN, i32::MAX),
        DType::I16 => (i32::from(i16::MIN), i32::from(i16::MAX)),
        DType::U16 | DType::F16 | DType::BF16 => (0, 0xffff),
        DType::I8 => (-128, 127),
        DType::Bool => (0, 1),
        // Some writers keep bytes as i8.
        _ => (-128, 255),
    };
    let mut out = Vec::with_capacity(data.len() * size);
    for (index, x) in data.iter().enumerate() {
        if !(low..=high).contains(x) {
            return Err(Fault::Element { index, value: i64::from(*x), dtype: dtype.name() });
        }
        out.extend_from_slice(&x.to_le_bytes()[..size]);
    }
    Ok(out)
}

/// Nibbles as whole bytes.
pub(crate) fn unpack(dtype: DType, shape: &[usize], packed: &[u8]) -> Result<Tensor, TensorError> {
    let count: usize = shape.iter().product();
    let signed = dtype == DType::I4;
    let nibbles = packed.iter().flat_map(|byte| [byte & 15, byte >> 4]).take(count);
    let bytes: Vec<u8> = nibbles.map(|x| if signed && x > 7 { x | 0xf0 } else { x }).collect();
    Tensor::from_bytes(if signed { DType::I8 } else { DType::U8 }, shape, &bytes)
}
