//! The tensor types of ggml: numbers, names, sizes.

use std::fmt;

use core_tensor::{BlockFormat, DType};

use crate::error::Fault;

/// The element type of a tensor as a GGUF file numbers it (`enum ggml_type` of `ggml.h`, as of ggml 0.25).
#[allow(non_camel_case_types, missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GgmlType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// What a type is made of: a dtype of core-tensor, or a block whose size alone is known.
enum Layout {
    Known(DType),
    Sized { block_len: usize, block_bytes: usize },
}

/// Type numbers that ggml once had; their files must be converted again.
const REMOVED: [(u32, &str); 8] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

impl GgmlType {
    /// Every type, in the order of the numbers.
    pub const ALL: [GgmlType; 35] = {
        use GgmlType::*;
        [
            F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS,
            IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0,
            Q2_0,
        ]
    };

    /// The one table: name and layout.
    const fn row(self) -> (&'static str, Layout) {
        use BlockFormat as B;
        use Layout::{Known, Sized};
        const fn block(format: BlockFormat) -> Layout {
            Known(DType::Block(format))
        }
        match self {
            GgmlType::F32 => ("F32", Known(DType::F32)),
            GgmlType::F16 => ("F16", Known(DType::F16)),
            GgmlType::Q4_0 => ("Q4_0", block(B::Q4_0)),
            GgmlType::Q4_1 => ("Q4_1", block(B::Q4_1)),
            GgmlType::Q5_0 => ("Q5_0", block(B::Q5_0)),
            GgmlType::Q5_1 => ("Q5_1", block(B::Q5_1)),
            GgmlType::Q8_0 => ("Q8_0", block(B::Q8_0)),
            GgmlType::Q8_1 => ("Q8_1", block(B::Q8_1)),
            GgmlType::Q2_K => ("Q2_K", block(B::Q2_K)),
            GgmlType::Q3_K => ("Q3_K", block(B::Q3_K)),
            GgmlType::Q4_K => ("Q4_K", block(B::Q4_K)),
            GgmlType::Q5_K => ("Q5_K", block(B::Q5_K)),
            GgmlType::Q6_K => ("Q6_K", block(B::Q6_K)),
            GgmlType::Q8_K => ("Q8_K", block(B::Q8_K)),
            GgmlType::IQ2_XXS => ("IQ2_XXS", block(B::IQ2_XXS)),
            GgmlType::IQ2_XS => ("IQ2_XS", block(B::IQ2_XS)),
            GgmlType::IQ3_XXS => ("IQ3_XXS", block(B::IQ3_XXS)),
            GgmlType::IQ1_S => ("IQ1_S", block(B::IQ1_S)),
            GgmlType::IQ4_NL => ("IQ4_NL", block(B::IQ4_NL)),
            GgmlType::IQ3_S => ("IQ3_S", block(B::IQ3_S)),
            GgmlType::IQ2_S => ("IQ2_S", block(B::IQ2_S)),
            GgmlType::IQ4_XS => ("IQ4_XS", block(B::IQ4_XS)),
            GgmlType::I8 => ("I8", Known(DType::I8)),
            GgmlType::I16 => ("I16", Known(DType::I16)),
            GgmlType::I32 => ("I32", Known(DType::I32)),
            GgmlType::I64 => ("I64", Known(DType::I64)),
            GgmlType::F64 => ("F64", Known(DType::F64)),
            GgmlType::IQ1_M => ("IQ1_M", block(B::IQ1_M)),
            GgmlType::BF16 => ("BF16", Known(DType::BF16)),
            GgmlType::TQ1_0 => ("TQ1_0", block(B::TQ1_0)),
            GgmlType::TQ2_0 => ("TQ2_0", block(B::TQ2_0)),
            GgmlType::MXFP4 => ("MXFP4", block(B::MXFP4)),
            GgmlType::NVFP4 => ("NVFP4", block(B::NVFP4)),
            GgmlType::Q1_0 => ("Q1_0", Sized { block_len: 128, block_bytes: 18 }),
            GgmlType::Q2_0 => ("Q2_0", Sized { block_len: 64, block_bytes: 18 }),
        }
    }

    /// The number in a file.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The type of a number.
    ///
    /// # Errors
    /// [`Fault::RemovedType`] for the numbers that ggml gave up, [`Fault::UnknownType`] for all others that it does not list.
    pub fn from_number(number: u32) -> Result<GgmlType, Fault> {
        if let Ok(index) = GgmlType::ALL.binary_search_by_key(&number, |t| t.number())
            && let Some(found) = GgmlType::ALL.get(index)
        {
            return Ok(*found);
        }
        match REMOVED.iter().find(|(removed, _)| *removed == number) {
            Some((_, name)) => Err(Fault::RemovedType { number, name }),
            None => Err(Fault::UnknownType { number }),
        }
    }

    /// The type that stores a dtype; `None` for those that ggml does not have (unsigned integers, 8-bit floats, bool).
    #[must_use]
    pub fn from_dtype(dtype: DType) -> Option<GgmlType> {
        GgmlType::ALL.into_iter().find(|t| t.dtype() == Some(dtype))
    }

    /// The dtype of core-tensor; `None` where it has none yet (such a tensor is listed, but cannot be read).
    #[must_use]
    pub const fn dtype(self) -> Option<DType> {
        match self.row().1 {
            Layout::Known(dtype) => Some(dtype),
            Layout::Sized { .. } => None,
        }
    }

    /// The name as ggml's tools print it ("Q4_K").
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Elements per block (1 for plain types).
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.packing().0
    }

    /// Bytes per block (per element for plain types).
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        self.packing().1
    }

    const fn packing(self) -> (usize, usize) {
        match self.row().1 {
            Layout::Known(dtype) => dtype.packing(),
            Layout::Sized { block_len, block_bytes } => (block_len, block_bytes),
        }
    }

    /// Bytes of a tensor of this type; `shape` is outermost extent first, and an empty shape is one element.
    ///
    /// # Errors
    /// [`Fault::TooManyDims`], [`Fault::ZeroExtent`], [`Fault::PartialBlock`] or [`Fault::TooLarge`].
    pub fn byte_len(self, shape: &[u64]) -> Result<u64, Fault> {
        if shape.len() > crate::MAX_DIMS {
            return Err(Fault::TooManyDims { dims: shape.len() as u64 });
        }
        if let Some(axis) = shape.iter().position(|extent| *extent == 0) {
            return Err(Fault::ZeroExtent { axis });
        }
        let (block_len, block_bytes) = (self.block_len() as u64, self.block_bytes() as u64);
        let (row, rows) = match shape.split_last() {
            None => (1, &[][..]),
            Some((row, rows)) => (*row, rows),
        };
        if !row.is_multiple_of(block_len) {
            return Err(Fault::PartialBlock { row, block_len, ggml_type: self });
        }
        // The element count must be addressable as well: that of a block type can be larger than its byte count.
        let elements = rows.iter().try_fold(row, |n, extent| n.checked_mul(*extent));
        elements
            .filter(|n| i64::try_from(*n).is_ok() && usize::try_from(*n).is_ok())
            .and_then(|n| (n / block_len).checked_mul(block_bytes))
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or_else(|| Fault::TooLarge { shape: shape.to_vec(), ggml_type: self })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
