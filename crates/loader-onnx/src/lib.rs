//! Imports ONNX models.

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
