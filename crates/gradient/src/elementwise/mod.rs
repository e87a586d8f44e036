//! Element-wise functions.

mod binary;
mod unary;
