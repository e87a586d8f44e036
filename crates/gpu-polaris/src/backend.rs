//! The backend.

use std::sync::Arc;

use core_tensor::{Backend, BackendError, Bindings, DeviceMemory, Graph, Node, Program, Progress, Session, Weights};

use crate::compile;
use crate::self_test;
use crate::session::GpuSession;
use crate::vk::{Gpu, GpuOptions, VulkanError};
use crate::weights::GpuWeights;

/// A Vulkan device as a backend.
#[derive(Clone, Debug)]
pub struct VulkanBackend {
    gpu: Arc<Gpu>,
    guards: bool,
}

impl VulkanBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// When there is no loader, no driver, no such device, or it lacks what kernels need.
    pub fn open(options: &GpuOptions) -> Result<VulkanBackend, VulkanError> {
        Ok(VulkanBackend { gpu: Arc::new(Gpu::open(options)?), guards: false })
    }

    /// The same with guard bytes around every intermediate result, looked at after each run: a kernel that writes outside of its output is
    /// an error. For tests: nothing shares memory then.
    #[must_use]
    pub fn with_guards(mut self) -> VulkanBackend {
        self.guards = true;
        self
    }

    /// Compares a handful of operators with the reference: some drivers compute garbage.
    ///
    /// # Errors
    /// When the device fails, or its results are wrong.
    pub fn self_test(&self) -> Result<(), BackendError> {
        self_test::run(self)
    }

    /// The same, once for each device and driver: that it passed is noted beside the pipeline cache. Without one it runs every time.
    ///
    /// # Errors
    /// As [`VulkanBackend::self_test`].
    pub fn self_test_once(&self) -> Result<(), BackendError> {
        if self.gpu.is_tested() {
            return Ok(());
        }
        self.self_test()?;
        self.gpu.set_tested();
        Ok(())
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Backend for VulkanBackend {
    fn name(&self) -> &str {
        "vulkan"
    }

    fn description(&self) -> String {
        format!("Vulkan, {} ({})", self.gpu.name(), self.gpu.driver())
    }

    fn memory(&self) -> DeviceMemory {
        let limits = self.gpu.limits();
        DeviceMemory { name: self.description(), bytes: limits.memory, max_allocation: limits.max_allocation }
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        compile::supports(graph, node)
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(GpuWeights::load(&self.gpu, graph, progress)?))
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        Ok(Arc::new(compile::compile(&self.gpu, graph, weights, bounds, self.guards)?))
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(GpuSession::new(&self.gpu, graph, slots, bounds)?))
    }
}
