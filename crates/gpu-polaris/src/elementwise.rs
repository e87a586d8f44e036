//! Element-wise functions by the numbers that shaders know them by (`shaders/activation.glsl`, `shaders/functions.glsl`, `shaders/binary.comp`).

use core_tensor::DType;
use core_tensor::op::{Binary, Unary};

/// A function of one operand with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) code: u32,
    pub(crate) p: f32,
    pub(crate) q: f32,
}

impl Function {
    /// The function of f32 that gives f32; `None` where shaders do not know it.
    pub(crate) fn of(op: Unary) -> Option<Function> {
        let (code, p, q) = match op {
            Unary::Neg => (0, 0.0, 0.0),
            Unary::Abs => (1, 0.0, 0.0),
            Unary::Exp => (2, 0.0, 0.0),
            Unary::Log => (3, 0.0, 0.0),
            Unary::Sqrt => (4, 0.0, 0.0),
            Unary::Reciprocal => (5, 0.0, 0.0),
            Unary::Tanh => (6, 0.0, 0.0),
            Unary::Sigmoid => (7, 0.0, 0.0),
            Unary::Relu => (8, 0.0, 0.0),
            Unary::Silu => (9, 0.0, 0.0),
            Unary::Gelu => (10, 0.0, 0.0),
            Unary::GeluTanh => (11, 0.0, 0.0),
            Unary::GeluQuick => (12, 0.0, 0.0),
            Unary::Erf => (13, 0.0, 0.0),
            Unary::Sin => (14, 0.0, 0.0),
            Unary::Cos => (15, 0.0, 0.0),
            Unary::Tan => (16, 0.0, 0.0),
            Unary::Asin => (17, 0.0, 0.0),
            Unary::Acos => (18, 0.0, 0.0),
            Unary::Atan => (19, 0.0, 0.0),
            Unary::Sinh => (20, 0.0, 0.0),
            Unary::Cosh => (21, 0.0, 0.0),
            Unary::Asinh => (22, 0.0, 0.0),
            Unary::Acosh => (23, 0.0, 0.0),
            Unary::Atanh => (24, 0.0, 0.0),
            Unary::Floor => (25, 0.0, 0.0),
            Unary::Ceil => (26, 0.0, 0.0),
            Unary::Round => (27, 0.0, 0.0),
            Unary::Sign => (28, 0.0, 0.0),
            Unary::Softplus => (29, 0.0, 0.0),
            Unary::Softsign => (30, 0.0, 0.0),
            Unary::Mish => (31, 0.0, 0.0),
            Unary::HardSwish => (32, 0.0, 0.0),
            Unary::HardSigmoid { alpha, beta } => (33, alpha.get(), beta.get()),
            Unary::LeakyRelu { alpha } => (34, alpha.get(), 0.0),
            Unary::Elu { alpha } => (35, alpha.get(), 0.0),
            Unary::Celu { alpha } => (36, alpha.get(), 0.0),
            Unary::Selu { alpha, gamma } => (37, alpha.get(), gamma.get()),
            Unary::ThresholdedRelu { alpha } => (38, alpha.get(), 0.0),
            Unary::Shrink { lambd, bias } => (39, lambd.get(), bias.get()),
            Unary::Clip { min, max } => (40, min.get(), max.get()),
            Unary::Swish { alpha } => (41, alpha.get(), 0.0),
            Unary::IsNan | Unary::IsInf { .. } | Unary::Not | Unary::BitwiseNot => return None,
        };
        Some(Function { code, p, q })
    }

    /// Whether kernels that have something else to do apply it on their way.
    pub(crate) fn fuses(self) -> bool {
        matches!(self.code, 0..=12 | 32..=34 | 40 | 41)
    }

    /// Whether it is a few instructions: kernels with many results in a thread have code for each of them.
    pub(crate) fn is_light(self) -> bool {
        matches!(self.code, 0 | 1 | 7 | 8 | 9 | 12 | 32..=34 | 40 | 41)
    }
}

/// The code of a gated activation: one without parameters.
pub(crate) fn gate_code(op: Unary) -> Option<u32> {
    Function::of(op).map(|function| function.code).filter(|code| *code <= 12)
}

/// A function's number in the shaders of two operands.
fn binary_number(op: Binary) -> u32 {
    match op {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Max => 4,
        Binary::Min => 5,
        Binary::Pow => 6,
        Binary::Mod => 7,
        Binary::PRelu => 8,
        Binary::Fmod => 9,
        Binary::BitwiseAnd => 10,
        Binary::BitwiseOr => 11,
        Binary::BitwiseXor => 12,
        Binary::ShiftLeft => 13,
        Binary::ShiftRight => 14,
        Binary::Equal => 16,
        Binary::Less => 17,
        Binary::LessOrEqual => 18,
        Binary::Greater => 19,
        Binary::GreaterOrEqual => 20,
        Binary::And => 21,
        Binary::Or => 22,
        Binary::Xor => 23,
    }
}

/// The variant of `binary.comp` for a dtype, and the function's number; `None` where it does not know them.
pub(crate) fn binary_code(op: Binary, dtype: DType) -> Option<(u32, u32)> {
    let kind = match dtype {
        DType::F32 => 0,
        DType::I32 => 1,
        DType::I64 => 2,
        DType::Bool => 3,
        _ => return None,
    };
    let code = binary_number(op);
    let fits = match kind {
        0 => matches!(code, 0..=8 | 16..=20),
        // Integers are not divided: who divides by zero would have to be told.
        1 | 2 => matches!(code, 0..=2 | 4 | 5 | 16..=20),
        _ => matches!(code, 16 | 21..=23),
    };
    fits.then_some((kind, code))
}

/// What `integers.glsl` knows an integer dtype by: its bytes, plus 16 where it has a sign.
pub(crate) fn integer_kind(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::U8 | DType::Bool => 1,
        DType::U16 => 2,
        DType::U32 => 4,
        DType::U64 => 8,
        DType::I8 => 17,
        DType::I16 => 18,
        DType::I32 => 20,
        DType::I64 => 24,
        _ => return None,
    })
}

/// The dtype and the function as `binary_integer.comp` has them; `None` where it does not know them.
pub(crate) fn integer_code(op: Binary, dtype: DType) -> Option<(u32, u32)> {
    let kind = integer_kind(dtype)?;
    if matches!(op, Binary::And | Binary::Or | Binary::Xor) {
        return None;
    }
    Some((kind, binary_number(op)))
}

/// The same for a function of one operand.
pub(crate) fn integer_function(op: Unary, dtype: DType) -> Option<(u32, u32)> {
    let code = match op {
        Unary::Neg => 32,
        Unary::Abs => 33,
        Unary::Sign => 34,
        Unary::Relu => 35,
        Unary::BitwiseNot => 36,
        _ => return None,
    };
    Some((integer_kind(dtype)?, code))
}

/// A dtype's number in `cast.comp`.
pub(crate) fn cast_code(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::I32 => 3,
        DType::I64 => 4,
        DType::U8 => 5,
        DType::I8 => 6,
        DType::Bool => 7,
        DType::U32 => 8,
        DType::U16 => 10,
        DType::I16 => 11,
        _ => return None,
    })
}

/// The number in `cast.comp` of a function that gives bool, and the dtype that it takes.
pub(crate) fn truth_code(op: Unary) -> Option<(DType, u32)> {
    Some(match op {
        Unary::Not => (DType::Bool, 9),
        Unary::IsNan => (DType::F32, 12),
        Unary::IsInf { negative, positive } => {
            (DType::F32, 13 + (u32::from(positive) << 1) + (u32::from(negative) << 2))
        }
        _ => return None,
    })
}
