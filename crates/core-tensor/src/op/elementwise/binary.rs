//! Functions of two and three operands.

use super::super::numbers::Numbers;
use super::super::{Evaluation, Inference, OpError, Operator, broadcast};
use super::broadcast_index;
use crate::{DType, ValueType};

/// An element-wise function of two operands of one dtype, broadcast as in NumPy. Output: the same dtype, `bool` for comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`; integers wrap around.
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`; integers towards zero, an error where b is 0.
    Div,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// `a^b`
    Pow,
    /// `a - floor(a / b) * b`: the sign of b (ONNX Mod, fmod = 0).
    Mod,
    /// The remainder with the sign of a (ONNX Mod, fmod = 1).
    Fmod,
    /// `a` where `a >= 0`, else `a * b` (ONNX PRelu).
    PRelu,
    /// `a == b`
    Equal,
    /// `a < b`
    Less,
    /// `a <= b`
    LessOrEqual,
    /// `a > b`
    Greater,
    /// `a >= b`
    GreaterOrEqual,
    /// Logical and, of bool.
    And,
    /// Logical or, of bool.
    Or,
    /// Logical exclusive or, of bool.
    Xor,
    /// Bits of integers.
    BitwiseAnd,
    /// Bits of integers.
    BitwiseOr,
    /// Bits of integers.
    BitwiseXor,
    /// `a << b` of unsigned integers.
    ShiftLeft,
    /// `a >> b` of unsigned integers.
    ShiftRight,
}

impl Binary {
    /// The function on f32 (1 for true, 0 for false; functions of bits give NaN).
    #[must_use]
    pub fn apply(self, a: f32, b: f32) -> f32 {
        let truth = |x: bool| if x { 1.0 } else { 0.0 };
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::Pow => a.powf(b),
            Binary::Mod => a - (a / b).floor() * b,
            Binary::Fmod => a % b,
            Binary::PRelu => {
                if a < 0.0 {
                    a * b
                } else {
                    a
                }
            }
            Binary::Equal => truth(a == b),
            Binary::Less => truth(a < b),
            Binary::LessOrEqual => truth(a <= b),
            Binary::Greater => truth(a > b),
            Binary::GreaterOrEqual => truth(a >= b),
            Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::BitwiseAnd
            | Binary::BitwiseOr
            | Binary::BitwiseXor
            | Binary::ShiftLeft
            | Binary::ShiftRight => f32::NAN,
        }
    }

    fn apply_f64(self, a: f64, b: f64) -> f64 {
        let truth = |x: bool| f64::from(u8::from(x));
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::Pow => a.powf(b),
            Binary::Mod => a - (a / b).floor() * b,
            Binary::Fmod => a % b,
            Binary::PRelu => {
                if a < 0.0 {
                    a * b
                } else {
                    a
                }
            }
            Binary::Equal => truth(a == b),
            Binary::Less => truth(a < b),
            Binary::LessOrEqual => truth(a <= b),
            Binary::Greater => truth(a > b),
            Binary::GreaterOrEqual => truth(a >= b),
            other => f64::from(other.apply(a as f32, b as f32)),
        }
    }

    fn apply_int(self, a: i128, b: i128) -> Result<i128, OpError> {
        let zero = || OpError::Shape("an integer is divided by zero".into());
        let shift = |b: i128| u32::try_from(b).ok().filter(|b| *b < 64);
        Ok(match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a.wrapping_mul(b),
            Binary::Div => a.checked_div(b).ok_or_else(zero)?,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::Pow => {
                if b < 0 {
                    (a as f64).powf(b as f64) as i128
                } else {
                    u32::try_from(b).map_or(0, |b| a.wrapping_pow(b))
                }
            }
            Binary::Mod => {
                let rest = a.checked_rem(b).ok_or_else(zero)?;
                if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
            }
            Binary::Fmod => a.checked_rem(b).ok_or_else(zero)?,
            Binary::PRelu => {
                if a < 0 {
                    a * b
                } else {
                    a
                }
            }
            Binary::Equal => i128::from(a == b),
            Binary::Less => i128::from(a < b),
            Binary::LessOrEqual => i128::from(a <= b),
            Binary::Greater => i128::from(a > b),
            Binary::GreaterOrEqual => i128::from(a >= b),
            Binary::And | Binary::BitwiseAnd => a & b,
            Binary::Or | Binary::BitwiseOr => a | b,
            Binary::Xor | Binary::BitwiseXor => a ^ b,
            Binary::ShiftLeft => shift(b).map_or(0, |b| a << b),
            Binary::ShiftRight => shift(b).map_or(0, |b| a >> b),
        })
    }

    /// Whether the result is `bool` for operands of any dtype.
    #[must_use]
    pub fn is_comparison(self) -> bool {
        matches!(self, Binary::Equal | Binary::Less | Binary::LessOrEqual | Binary::Greater | Binary::GreaterOrEqual)
    }

    /// Arithmetic on f32.
    pub const ALL: [Binary; 7] =
        [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max, Binary::Pow];
}

impl Operator for Binary {
    fn name(&self) -> &'static str {
        match self {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Min => "Min",
            Binary::Max => "Max",
            Binary::Pow => "Pow",
            Binary::Mod => "Mod",
            Binary::Fmod => "Fmod",
            Binary::PRelu => "PRelu",
            Binary::Equal => "Equal",
            Binary::Less => "Less",
            Binary::LessOrEqual => "LessOrEqual",
            Binary::Greater => "Greater",
            Binary::GreaterOrEqual => "GreaterOrEqual",
            Binary::And => "And",
            Binary::Or => "Or",
            Binary::Xor => "Xor",
            Binary::BitwiseAnd => "BitwiseAnd",
            Binary::BitwiseOr => "BitwiseOr",
            Binary::BitwiseXor => "BitwiseXor",
            Binary::ShiftLeft => "ShiftLeft",
            Binary::ShiftRight => "ShiftRight",
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (dtype, a) = cx.tensor(0)?;
        let (fits, expected) = match self {
            Binary::And | Binary::Or | Binary::Xor => (dtype == DType::Bool, "bool"),
            Binary::BitwiseAnd | Binary::BitwiseOr | Binary::BitwiseXor => (dtype.is_int(), "an integer"),
            Binary::ShiftLeft | Binary::ShiftRight => (dtype.is_int(), "an integer"),
            Binary::Equal => (!dtype.is_block(), "a plain dtype"),
            _ => (dtype.is_float() || dtype.is_int(), "a float or an integer"),
        };
        if !fits {
            return Err(OpError::DType { input: 0, expected, found: dtype.to_string() });
        }
        let b = cx.typed(1, &[dtype], "of the first input's dtype")?;
        let dtype = if self.is_comparison() { DType::Bool } else { dtype };
        Ok(vec![ValueType::Tensor { dtype, shape: broadcast(a, b)? }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (a, b) = (cx.tensor(0)?, cx.tensor(1)?);
        let (a_shape, b_shape) = (a.shape().to_vec(), b.shape().to_vec());
        let count: usize = shape.iter().product();
        let at = |i: usize| (broadcast_index(i, &shape, &a_shape), broadcast_index(i, &shape, &b_shape));
        let result = match (Numbers::load(a)?, Numbers::load(b)?) {
            (Numbers::F32(a), Numbers::F32(b)) => {
                Numbers::F32((0..count).map(at).map(|(i, j)| self.apply(a[i], b[j])).collect())
            }
            (Numbers::F64(a), Numbers::F64(b)) => {
                Numbers::F64((0..count).map(at).map(|(i, j)| self.apply_f64(a[i], b[j])).collect())
            }
            (Numbers::Int(a), Numbers::Int(b)) => {
                Numbers::Int((0..count).map(at).map(|(i, j)| self.apply_int(a[i], b[j])).collect::<Result<_, _>>()?)
            }
            _ => return Err(OpError::Shape("operands of two kinds".into())),
        };
        cx.put_numbers(0, &result)
    }
}

/// `condition ? a : b`, broadcast as in NumPy (ONNX Where).
///
/// Inputs: condition bool; a and b of one plain dtype. Output: of their dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where;

impl Operator for Where {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=3, "3")?;
        let condition = cx.typed(0, &[DType::Bool], "bool")?;
        let (dtype, a) = cx.tensor(1)?;
        if dtype.packing().0 != 1 {
            return Err(OpError::DType { input: 1, expected: "a plain dtype", found: dtype.to_string() });
        }
        let b = cx.typed(2, &[dtype], "of the second input's dtype")?;
        Ok(vec![ValueType::Tensor { dtype, shape: broadcast(condition, &broadcast(a, b)?)? }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (condition, a, b) = (cx.tensor(0)?.clone(), cx.tensor(1)?.clone(), cx.tensor(2)?.clone());
        let size = a.dtype().packing().1;
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(count * size);
        for i in 0..count {
            let take = condition.bytes()[broadcast_index(i, &shape, condition.shape())] != 0;
            let from = if take { &a } else { &b };
            let at = broadcast_index(i, &shape, from.shape()) * size;
            bytes.extend_from_slice(&from.bytes()[at..at + size]);
        }
        cx.put_bytes(0, &bytes)
    }
}
