//! The format's element types.

use std::fmt;

use core_tensor::DType;

/// An element type of a safetensors file.
#[allow(missing_docs)] // the names are the format's own
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TorchType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl TorchType {
    /// The one table: type, name in the file, bits per element, dtype.
    const TABLE: [(TorchType, &'static str, u64, Option<DType>); 22] = {
        use TorchType::*;
        [
            (BOOL, "BOOL", 8, Some(DType::Bool)),
            (F4, "F4", 4, None),
            (F6_E2M3, "F6_E2M3", 6, None),
            (F6_E3M2, "F6_E3M2", 6, None),
            (U8, "U8", 8, Some(DType::U8)),
            (I8, "I8", 8, Some(DType::I8)),
            (F8_E5M2, "F8_E5M2", 8, Some(DType::F8E5M2)),
            (F8_E4M3, "F8_E4M3", 8, Some(DType::F8E4M3)),
            (F8_E8M0, "F8_E8M0", 8, None),
            (F8_E4M3FNUZ, "F8_E4M3FNUZ", 8, None),
            (F8_E5M2FNUZ, "F8_E5M2FNUZ", 8, None),
            (I16, "I16", 16, Some(DType::I16)),
            (U16, "U16", 16, Some(DType::U16)),
            (F16, "F16", 16, Some(DType::F16)),
            (BF16, "BF16", 16, Some(DType::BF16)),
            (I32, "I32", 32, Some(DType::I32)),
            (U32, "U32", 32, Some(DType::U32)),
            (F32, "F32", 32, Some(DType::F32)),
            (C64, "C64", 64, None),
            (F64, "F64", 64, Some(DType::F64)),
            (I64, "I64", 64, Some(DType::I64)),
            (U64, "U64", 64, Some(DType::U64)),
        ]
    };

    const fn row(self) -> (TorchType, &'static str, u64, Option<DType>) {
        TorchType::TABLE[self as usize]
    }

    /// The type of a name in a file.
    #[must_use]
    pub fn from_name(name: &str) -> Option<TorchType> {
        TorchType::TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The type that stores a dtype; `None` for what the format does not have (block formats, packed integers).
    #[must_use]
    pub fn from_dtype(dtype: DType) -> Option<TorchType> {
        TorchType::TABLE.iter().find(|row| row.3 == Some(dtype)).map(|row| row.0)
    }

    /// The name in a file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Bits of an element.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.row().2
    }

    /// The dtype to compute with, if `core-tensor` has it.
    #[must_use]
    pub const fn dtype(self) -> Option<DType> {
        self.row().3
    }

    /// Bytes of a tensor; `None` if they are no whole bytes or too many to address.
    #[must_use]
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let bits = shape.iter().try_fold(self.bits(), |bits, extent| bits.checked_mul(*extent as u64))?;
        let bytes = bits.is_multiple_of(8).then_some(bits / 8)?;
        usize::try_from(bytes).ok().filter(|bytes| *bytes <= isize::MAX as usize)
    }
}

impl fmt::Display for TorchType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_types() {
        for (number, (torch_type, name, ..)) in TorchType::TABLE.into_iter().enumerate() {
            assert_eq!(torch_type as usize, number);
            assert_eq!(TorchType::from_name(name), Some(torch_type));
        }
    }

    #[test]
    fn sizes_agree_with_those_of_the_dtypes_and_overflow_is_no_size() {
        for (torch_type, _, bits, dtype) in TorchType::TABLE {
            if let Some(dtype) = dtype {
                assert_eq!(dtype.packing(), (1, bits as usize / 8));
                assert_eq!(TorchType::from_dtype(dtype), Some(torch_type));
            }
        }
        assert_eq!(TorchType::F4.byte_len(&[3]), None);
        assert_eq!(TorchType::F32.byte_len(&[]), Some(4));
        assert_eq!(TorchType::F32.byte_len(&[1 << 40, 1 << 40]), None);
        assert_eq!(TorchType::F32.byte_len(&[0, 1 << 40, 1 << 10]), Some(0));
    }
}
