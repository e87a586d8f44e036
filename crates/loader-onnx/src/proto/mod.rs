//! ONNX's protobuf messages, made from `onnx/*.proto` (of onnx 1.19.1, Apache-2.0) by `cargo xtask codegen`.
//!
//! They say what a file says, unchecked. Bytes fields are ranges of the file, not copies.

#![allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub)]

#[rustfmt::skip]
#[path = "onnx.generated.rs"]
mod generated;

pub use generated::*;
