//! Under construction.
#![allow(unreachable_pub)]

pub mod block;
mod dtype;

pub use dtype::{BlockFormat, DType};
