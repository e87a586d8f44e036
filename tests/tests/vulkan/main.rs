//! The Vulkan backend where no kernel is at fault: the validation layer, failing devices, small limits, the pipeline cache.
//!
//! Kernels are tested by the conformance suite. Any Vulkan device will do; without one, tests fail.

#[path = "../conformance/decoder.rs"]
mod decoder;
#[allow(dead_code)]
#[path = "../conformance/random.rs"]
mod random;

mod faults;
mod limits;
mod model;
mod pace;
mod pipeline_cache;
mod self_test;
mod validation;
