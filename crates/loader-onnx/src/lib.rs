//! Imports ONNX models into [`core_tensor::Graph`].
//!
#![doc = include_str!("../README.md")]
//!
//! # How it works
//!
//! [`OnnxModel::open`] maps the file and reads its message; bytes of tensors stay where they are. [`OnnxModel::graph`] goes over the nodes once. Each is
//! looked up by domain, name and opset in a table, one file per family of operators, and lowered: its inputs are values of the graph, constants, or
//! integers that follow from extents. The latter two become values of the graph only where something uses them as such. Graphs within nodes are lowered
//! in the same way, as levels of their own that capture what they use.

#![forbid(unsafe_code)]

mod data;
mod error;
pub mod export;
mod external;
mod function;
mod lower;
mod model;
mod ops;
pub mod proto;
mod tensor;
mod value_info;

pub use core_tensor::FileAccess;
pub use data::Data;
pub use error::{Fault, NodePlace, OnnxError, Subject, UnsupportedOperator};
pub use lower::ImportOptions;
pub use model::{MAX_OPSET, MIN_OPSET, OnnxModel};
pub use tensor::TensorData;
pub use value_info::{Extent, OnnxType, ValueInfo};
