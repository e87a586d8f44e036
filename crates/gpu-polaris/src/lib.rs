//! The Vulkan backend, written for GCN4.
