//! Element-wise functions by the numbers that shaders know them by (`shaders/activation.glsl`, `shaders/binary.comp`).

use core_tensor::op::{Binary, Unary};

/// `None` where shaders do not know the function.
pub(crate) fn unary_code(op: Unary) -> Option<u32> {
    Some(match op {
        Unary::Neg => 0,
        Unary::Abs => 1,
        Unary::Exp => 2,
        Unary::Log => 3,
        Unary::Sqrt => 4,
        Unary::Reciprocal => 5,
        Unary::Tanh => 6,
        Unary::Sigmoid => 7,
        Unary::Relu => 8,
        Unary::Silu => 9,
        Unary::Gelu => 10,
        Unary::GeluTanh => 11,
        Unary::GeluQuick => 12,
        _ => return None,
    })
}

/// `None` where shaders do not know the function.
pub(crate) fn binary_code(op: Binary) -> Option<u32> {
    Some(match op {
        Binary::Add => 0,
        Binary::Sub => 1,
        Binary::Mul => 2,
        Binary::Div => 3,
        Binary::Max => 4,
        Binary::Min => 5,
        Binary::Pow => 6,
        _ => return None,
    })
}
