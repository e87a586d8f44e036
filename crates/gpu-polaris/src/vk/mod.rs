//! The Vulkan layer: all that knows vulkano, and all `unsafe` of the crate.
//!
//! vulkano gives typed devices, memory, pipelines and descriptor sets. Its automatic synchronization and its futures are not used: programs are
//! recorded into raw command buffers with the barriers that `barrier.rs` computed, and submitted here.

mod device;
mod fault;
mod instance;
mod memory;
mod memory_types;
mod pipeline;
mod recorder;
mod upload;
mod validation;

pub use device::{Gpu, GpuOptions, Limits};
pub use fault::Fault;
pub use instance::{DeviceKind, FoundDevice, VulkanError, devices};
pub(crate) use memory::{DeviceBuffer, HostBuffer, Region};
pub(crate) use recorder::{Command, Groups, Recorded, record};
pub(crate) use upload::Uploader;
pub use validation::Validation;
