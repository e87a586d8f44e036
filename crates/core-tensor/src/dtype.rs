//! Element types: plain dtypes and the block formats of quantized weights.

use std::fmt;

/// A block format: `block_len` consecutive weights of a row share a scale and are packed into
/// `block_bytes` bytes.
///
/// Names, sizes and layouts are those of ggml (`ggml-common.h`, `enum ggml_type`); a block format is
/// only ever the dtype of a weight, never of an activation.
#[allow(non_camel_case_types, missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

impl BlockFormat {
    /// Every block format, in the order of ggml's type numbers.
    pub const ALL: [BlockFormat; 25] = {
        use BlockFormat::*;
        [
            Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S,
            IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, TQ1_0, TQ2_0, MXFP4, NVFP4,
        ]
    };

    /// The one table: name, weights per block, bytes per block.
    const fn row(self) -> (&'static str, usize, usize) {
        use BlockFormat::*;
        match self {
            Q4_0 => ("q4_0", 32, 18),
            Q4_1 => ("q4_1", 32, 20),
            Q5_0 => ("q5_0", 32, 22),
            Q5_1 => ("q5_1", 32, 24),
            Q8_0 => ("q8_0", 32, 34),
            Q8_1 => ("q8_1", 32, 36),
            Q2_K => ("q2_k", 256, 84),
            Q3_K => ("q3_k", 256, 110),
            Q4_K => ("q4_k", 256, 144),
            Q5_K => ("q5_k", 256, 176),
            Q6_K => ("q6_k", 256, 210),
            Q8_K => ("q8_k", 256, 292),
            IQ2_XXS => ("iq2_xxs", 256, 66),
            IQ2_XS => ("iq2_xs", 256, 74),
            IQ3_XXS => ("iq3_xxs", 256, 98),
            IQ1_S => ("iq1_s", 256, 50),
            IQ4_NL => ("iq4_nl", 32, 18),
            IQ3_S => ("iq3_s", 256, 110),
            IQ2_S => ("iq2_s", 256, 82),
            IQ4_XS => ("iq4_xs", 256, 136),
            IQ1_M => ("iq1_m", 256, 56),
            TQ1_0 => ("tq1_0", 256, 54),
            TQ2_0 => ("tq2_0", 256, 66),
            MXFP4 => ("mxfp4", 32, 17),
            NVFP4 => ("nvfp4", 64, 36),
        }
    }

    /// The name in lower case, as `to_text` prints it ("q4_k").
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Weights per block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes per block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }
}

/// The element type of a tensor.
#[allow(missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    /// OCP 8-bit float, 4 exponent bits, 3 mantissa bits, finite only.
    F8E4M3,
    /// OCP 8-bit float, 5 exponent bits, 2 mantissa bits.
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    /// Two signed 4-bit integers per byte, low nibble first.
    I4,
    /// Two unsigned 4-bit integers per byte, low nibble first.
    U4,
    /// One byte per element, 0 or 1.
    Bool,
    /// Quantized weights.
    Block(BlockFormat),
}

impl DType {
    /// The name as `to_text` prints it ("f32", "q4_0").
    #[must_use]
    pub const fn name(self) -> &'static str {
        use DType::*;
        match self {
            F64 => "f64",
            F32 => "f32",
            F16 => "f16",
            BF16 => "bf16",
            F8E4M3 => "f8e4m3",
            F8E5M2 => "f8e5m2",
            I64 => "i64",
            I32 => "i32",
            I16 => "i16",
            I8 => "i8",
            U64 => "u64",
            U32 => "u32",
            U16 => "u16",
            U8 => "u8",
            I4 => "i4",
            U4 => "u4",
            Bool => "bool",
            Block(b) => b.name(),
        }
    }

    /// Elements that are packed together, and the bytes they take: `(1, 4)` for f32, `(32, 18)` for Q4_0.
    #[must_use]
    pub const fn packing(self) -> (usize, usize) {
        use DType::*;
        match self {
            F64 | I64 | U64 => (1, 8),
            F32 | I32 | U32 => (1, 4),
            F16 | BF16 | I16 | U16 => (1, 2),
            F8E4M3 | F8E5M2 | I8 | U8 | Bool => (1, 1),
            I4 | U4 => (2, 1),
            Block(b) => (b.block_len(), b.block_bytes()),
        }
    }

    /// Bytes of a row of `n` elements; `None` if `n` is no multiple of the packing or the size overflows.
    #[must_use]
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        let (len, bytes) = self.packing();
        if !n.is_multiple_of(len) {
            return None;
        }
        (n / len).checked_mul(bytes)
    }

    /// Whether this is a block format.
    #[must_use]
    pub const fn is_block(self) -> bool {
        matches!(self, DType::Block(_))
    }

    /// Whether this is a plain integer type (not `bool`).
    #[must_use]
    pub const fn is_int(self) -> bool {
        use DType::*;
        matches!(self, I64 | I32 | I16 | I8 | U64 | U32 | U16 | U8 | I4 | U4)
    }

    /// Whether this is a plain floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F64 | F32 | F16 | BF16 | F8E4M3 | F8E5M2)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
