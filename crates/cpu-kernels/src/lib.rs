//! Under construction.

pub mod matmul;
pub mod simd;
