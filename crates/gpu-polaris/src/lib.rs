//! The Vulkan backend, written for GCN4 (Radeon RX 400 and 500) and right everywhere.
//!
//! Weights are repacked on their way into device memory, so that a quantized product costs few instructions; programs are recorded once and
//! replayed; shaders are committed as SPIR-V, so that whoever builds the crate needs no shader compiler.
//!
//! ```no_run
//! use core_tensor::Backend;
//! use gpu_polaris::{GpuOptions, VulkanBackend};
//!
//! let backend = VulkanBackend::open(&GpuOptions::default())?;
//! println!("{}", backend.description());
//! # Ok::<(), gpu_polaris::VulkanError>(())
//! ```

mod analysis;
mod backend;
mod barrier;
mod compile;
mod elementwise;
pub mod estimate;
mod filters;
mod layout;
mod matmul;
mod plan;
mod program;
mod reduce;
mod self_test;
mod session;
mod shader;
mod state;
mod step;
pub mod vk;
mod walk;
mod weights;

pub use backend::VulkanBackend;
pub use vk::{DeviceKind, Fault, FoundDevice, Gpu, GpuOptions, Limits, Validation, VulkanError, devices};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
