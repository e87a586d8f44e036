//! Host tensors: dtype, shape and bytes that are owned or lie in a mapped file.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::storage::AlignedBytes;
use crate::{DType, FileBytes, block};

/// Why a tensor could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The extents multiply past what the machine can address.
    #[error("a tensor of shape {shape:?} and dtype {dtype} has too many bytes")]
    TooLarge {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The dtype asked for.
        dtype: DType,
    },
    /// The last extent is no multiple of the dtype's block.
    #[error("rows of {row} elements are no whole blocks of {dtype} ({block} weights each)")]
    Blocks {
        /// Elements per row.
        row: usize,
        /// The dtype.
        dtype: DType,
        /// Weights per block.
        block: usize,
    },
    /// The bytes given are not as many as shape and dtype say.
    #[error("shape {shape:?} of {dtype} takes {expected} bytes, {found} given")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// The dtype.
        dtype: DType,
        /// Bytes that shape and dtype take.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// There is no memory.
    #[error("no memory for {bytes} bytes")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The elements are of another type than asked for.
    #[error("the tensor is {found}, {expected} was asked for")]
    WrongDType {
        /// What was asked for.
        expected: DType,
        /// What the tensor is.
        found: DType,
    },
    /// The dtype cannot be converted.
    #[error("{from} cannot be converted to {to}")]
    Conversion {
        /// From.
        from: DType,
        /// To.
        to: DType,
    },
    /// Blocks could not be decoded.
    #[error(transparent)]
    Block(#[from] block::BlockError),
}

/// The bytes that shape and dtype take: `rows * row_bytes`, checked.
///
/// # Errors
/// When the size overflows or the rows are no whole blocks.
pub fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, TensorError> {
    let (row, rows) = match shape.split_last() {
        // i4 and u4 scalars take a byte.
        None => (dtype.packing().0, &[][..]),
        Some((row, rows)) => (*row, rows),
    };
    let too_large = || TensorError::TooLarge { shape: shape.to_vec(), dtype };
    let (len, _) = dtype.packing();
    if !row.is_multiple_of(len) {
        return Err(TensorError::Blocks { row, dtype, block: len });
    }
    let row_bytes = dtype.row_bytes(row).ok_or_else(too_large)?;
    // Extents of 0 do not excuse the others: what runs over parts of a shape multiplies these.
    let whole = rows.iter().try_fold(row_bytes.max(1), |bytes, extent| bytes.checked_mul((*extent).max(1)));
    whole.filter(|bytes| *bytes <= isize::MAX as usize).ok_or_else(too_large)?;
    Ok(rows.iter().fold(row_bytes, |bytes, extent| bytes * extent))
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<AlignedBytes>),
    File { file: Arc<FileBytes>, range: Range<usize> },
}

/// A tensor on the host: row-major, the last extent contiguous. Cloning shares the bytes.
///
/// Bytes that lie in a file need not be aligned: use [`Tensor::bytes`] or [`Tensor::to_vec`], which never assume it.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
}

/// Element types that have a [`DType`].
pub trait Element: bytemuck::Pod {
    /// The dtype.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements!(f64 => F64, f32 => F32, half::f16 => F16, half::bf16 => BF16, i64 => I64, i32 => I32, i16 => I16, i8 => I8,
          u64 => U64, u32 => U32, u16 => U16, u8 => U8);

impl Tensor {
    /// A tensor of zero bytes.
    ///
    /// # Errors
    /// When the size overflows, rows are no whole blocks or there is no memory.
    pub fn zeroed(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let bytes = byte_len(dtype, shape)?;
        let own = AlignedBytes::zeroed(bytes).ok_or(TensorError::NoMemory { bytes })?;
        Ok(Tensor { dtype, shape: shape.to_vec(), storage: Storage::Owned(Arc::new(own)) })
    }

    /// A tensor over a copy of raw bytes (little-endian, as stored).
    ///
    /// # Errors
    /// When the byte count is not what shape and dtype take, or there is no memory.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, TensorError> {
        let mut tensor = Tensor::zeroed(dtype, shape)?;
        tensor.check_len(bytes.len())?;
        if let Some(own) = tensor.bytes_mut() {
            own.copy_from_slice(bytes);
        }
        Ok(tensor)
    }

    /// A tensor over a copy of elements.
    ///
    /// # Errors
    /// When the element count is not the shape's, or there is no memory.
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(T::DTYPE, shape, bytemuck::cast_slice(elements))
    }

    /// A tensor over a range of a file's bytes; nothing is copied.
    ///
    /// # Errors
    /// When the range is not inside the file or not as long as shape and dtype say.
    pub fn from_file(
        dtype: DType,
        shape: &[usize],
        file: Arc<FileBytes>,
        range: Range<usize>,
    ) -> Result<Tensor, TensorError> {
        let found = file.get(range.clone()).map_or(0, <[u8]>::len);
        let tensor = Tensor { dtype, shape: shape.to_vec(), storage: Storage::File { file, range } };
        tensor.check_len(found)?;
        Ok(tensor)
    }

    fn check_len(&self, found: usize) -> Result<(), TensorError> {
        let expected = byte_len(self.dtype, &self.shape)?;
        if expected == found {
            return Ok(());
        }
        Err(TensorError::Length { shape: self.shape.clone(), dtype: self.dtype, expected, found })
    }

    /// The dtype.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The raw bytes, as stored.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(bytes) => bytes,
            Storage::File { file, range } => &file[range.clone()],
        }
    }

    /// The raw bytes for writing, if this tensor owns them alone.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.storage {
            Storage::Owned(bytes) => Arc::get_mut(bytes).map(|bytes| &mut **bytes),
            Storage::File { .. } => None,
        }
    }

    /// The file and the range that the bytes lie in, if they lie in a file.
    #[must_use]
    pub fn file(&self) -> Option<(&Arc<FileBytes>, Range<usize>)> {
        match &self.storage {
            Storage::Owned(_) => None,
            Storage::File { file, range } => Some((file, range.clone())),
        }
    }

    /// Tells the system that this tensor's bytes will not be read again soon (see [`FileBytes::release`]).
    pub fn release(&self) {
        if let Storage::File { file, range } = &self.storage {
            file.release(range.clone());
        }
    }

    /// The elements in place, if they are of type `T` and lie aligned; a copy of them otherwise.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn elements<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::WrongDType { expected: T::DTYPE, found: self.dtype });
        }
        Ok(match bytemuck::try_cast_slice(self.bytes()) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(self.bytes())),
        })
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// When the elements are of another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        self.elements().map(Cow::into_owned)
    }

    /// The elements as f32, decoded and converted (integers too).
    ///
    /// # Errors
    /// When the dtype has no decoder.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        decode_f32(self.dtype, self.bytes(), self.len())
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// When the new shape takes another number of bytes.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let tensor = Tensor { shape: shape.to_vec(), ..self.clone() };
        tensor.check_len(self.bytes().len())?;
        Ok(tensor)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// Decodes `count` elements of any numeric dtype to f32.
///
/// # Errors
/// When the byte count is wrong or the dtype has no decoder.
pub fn decode_f32(dtype: DType, bytes: &[u8], count: usize) -> Result<Vec<f32>, TensorError> {
    fn each<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
    }
    let expected = byte_len(dtype, &[count])?;
    if expected != bytes.len() {
        return Err(TensorError::Length { shape: vec![count], dtype, expected, found: bytes.len() });
    }
    Ok(match dtype {
        DType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => each(bytes, f32::from_le_bytes),
        DType::F16 => each(bytes, |b| f16(u16::from_le_bytes(b))),
        DType::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        DType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        DType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
        DType::I8 => each(bytes, |b| f32::from(i8::from_le_bytes(b))),
        DType::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
        DType::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
        DType::U16 => each(bytes, |b| f32::from(u16::from_le_bytes(b))),
        DType::U8 | DType::Bool => each(bytes, |b: [u8; 1]| f32::from(b[0])),
        DType::Block(format) => {
            let mut out = vec![0.0; count];
            block::decode(format, bytes, &mut out)?;
            out
        }
        DType::F8E4M3 => each(bytes, |b: [u8; 1]| f8e4m3(b[0])),
        // The upper half of an f16.
        DType::F8E5M2 => each(bytes, |b: [u8; 1]| f16(u16::from(b[0]) << 8)),
        DType::I4 | DType::U4 => {
            return Err(TensorError::Conversion { from: dtype, to: DType::F32 });
        }
    })
}

/// The value of an f16, without branches: loops over it become vectors of any machine, which calls of its instruction for that do not.
#[inline(always)]
fn f16(bits: u16) -> f32 {
    /// What an f32's exponent is more than an f16's.
    const BIAS: u32 = 112 << 23;
    let magnitude = u32::from(bits & 0x7fff);
    let moved = magnitude << 13;
    let largest = if magnitude >= 0x7c00 { BIAS } else { 0 };
    let quiet = if magnitude > 0x7c00 { 1 << 22 } else { 0 };
    let normal = (moved + BIAS + largest) | quiet;
    // With the least normal exponent in front, what is subnormal is a difference.
    let least = BIAS + (1 << 23);
    let subnormal = (f32::from_bits(moved + least) - f32::from_bits(least)).to_bits();
    f32::from_bits(if magnitude < 0x400 { subnormal } else { normal } | u32::from(bits & 0x8000) << 16)
}

/// The value of an 8-bit float with 4 bits of exponent (bias 7) and 3 of mantissa, without infinities (OCP 8-bit floating point
/// specification, E4M3).
fn f8e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match bits & 0x7f {
        0x7f => f32::NAN,
        0..8 => mantissa / 512.0,
        _ => (8.0 + mantissa) * (exponent as f32 - 10.0).exp2(),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_decoded_wherever_it_lies() {
        let all: Vec<half::f16> = (0..=u16::MAX).map(half::f16::from_bits).collect();
        // One byte further on, where no slice of f16 can lie.
        let mut shifted = vec![0u8];
        shifted.extend(all.iter().flat_map(|half| half.to_le_bytes()));
        let decoded = |bytes: &[u8]| decode_f32(DType::F16, bytes, all.len()).unwrap();
        for values in [decoded(bytemuck::cast_slice(&all)), decoded(&shifted[1..])] {
            for (half, value) in all.iter().zip(values) {
                assert!(
                    half.to_f32_const().to_bits() == value.to_bits() || half.is_nan() && value.is_nan(),
                    "{half:?}"
                );
            }
        }
    }
}
