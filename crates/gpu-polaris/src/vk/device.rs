//! An opened device.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use core_tensor::BackendError;
use vulkano::command_buffer::CommandBuffer;
use vulkano::command_buffer::allocator::{StandardCommandBufferAllocator, StandardCommandBufferAllocatorCreateInfo};
use vulkano::descriptor_set::allocator::StandardDescriptorSetAllocator;
use vulkano::device::{Device, DeviceCreateInfo, Queue, QueueCreateInfo};
use vulkano::pipeline::cache::PipelineCache;
use vulkano::sync::fence::Fence;
use vulkano::{VulkanError as Code, VulkanObject};

use super::fault::{Fault, Faults};
use super::instance::{self, DeviceKind, FoundDevice, VulkanError, chain};
use super::pipeline::{self, Pipeline, PipelineKey};

/// How a device is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GpuOptions {
    /// Which device, counted from 0 in the loader's order; the best one if not given.
    pub device: Option<usize>,
    /// Folder for compiled pipelines; none are kept if not given.
    pub pipeline_cache: Option<PathBuf>,
    /// Limits lower than the device's own, for tests: largest range of a storage buffer, bytes.
    pub max_range: Option<u64>,
    /// Largest single allocation, bytes, if lower than the device's own.
    pub max_allocation: Option<u64>,
    /// Bytes of device memory to use at most, if fewer than there are.
    pub max_memory: Option<u64>,
    /// How long a submission may take; half a minute on a card, ten on a software driver if not given.
    pub timeout: Option<Duration>,
}

impl GpuOptions {
    /// These options with a device.
    #[must_use]
    pub fn with_device(mut self, device: Option<usize>) -> GpuOptions {
        self.device = device;
        self
    }

    /// These options with a folder for compiled pipelines.
    #[must_use]
    pub fn with_pipeline_cache(mut self, folder: Option<PathBuf>) -> GpuOptions {
        self.pipeline_cache = folder;
        self
    }

    /// These options with a largest range of a storage buffer.
    #[must_use]
    pub fn with_max_range(mut self, bytes: u64) -> GpuOptions {
        self.max_range = Some(bytes);
        self
    }

    /// These options with a largest allocation.
    #[must_use]
    pub fn with_max_allocation(mut self, bytes: u64) -> GpuOptions {
        self.max_allocation = Some(bytes);
        self
    }

    /// These options with a bound on device memory.
    #[must_use]
    pub fn with_max_memory(mut self, bytes: u64) -> GpuOptions {
        self.max_memory = Some(bytes);
        self
    }
}

/// What a device can do, as far as planning needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lanes of a subgroup.
    pub subgroup_size: u32,
    /// Largest range of a storage buffer, bytes.
    pub max_range: u64,
    /// Largest single allocation, bytes.
    pub max_allocation: u64,
    /// Alignment of a storage buffer's offset, bytes.
    pub offset_alignment: u64,
    /// Largest number of workgroups along an axis.
    pub max_groups: u32,
    /// Bytes of shared memory of a workgroup.
    pub shared_memory: u32,
    /// Device memory that may be used, bytes.
    pub memory: u64,
}

/// Alignment of every tensor in a buffer, at least.
const MIN_ALIGNMENT: u64 = 256;

/// An opened device with its queue, its pipelines and the account of its memory.
pub struct Gpu {
    pub(super) device: Arc<Device>,
    pub(super) queue: Arc<Queue>,
    pub(super) commands: Arc<StandardCommandBufferAllocator>,
    pub(super) sets: Arc<StandardDescriptorSetAllocator>,
    pub(super) pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    pub(super) cache: Option<Arc<PipelineCache>>,
    pub(super) cache_file: Option<PathBuf>,
    /// Pipelines made since the cache was last written.
    pub(super) cache_dirty: AtomicBool,
    pub(super) faults: Faults,
    pub(super) allocated: Arc<AtomicU64>,
    pub(super) limits: Limits,
    timeout: Duration,
    name: String,
    driver: String,
    kind: DeviceKind,
    lost: AtomicBool,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("name", &self.name).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens a device: the one that is asked for, or the best that can be used.
    ///
    /// # Errors
    /// When there is no loader, no driver, no such device, or it lacks what kernels need.
    pub fn open(options: &GpuOptions) -> Result<Gpu, VulkanError> {
        let found = instance::devices()?;
        let chosen = choose(&found, options.device)?;
        let physical = chosen.physical.clone();
        let create = |what: &'static str| move |reason: String| VulkanError::Create { what, reason };
        let family = instance::queue_family(&physical)
            .ok_or_else(|| VulkanError::Refused { name: chosen.name.clone(), reason: "it has no queue that computes".into() })?;
        let info = DeviceCreateInfo {
            enabled_features: instance::required_features(),
            queue_create_infos: vec![QueueCreateInfo { queue_family_index: family, ..QueueCreateInfo::default() }],
            ..DeviceCreateInfo::default()
        };
        let (device, mut queues) = Device::new(physical.clone(), info).map_err(|e| create("the device")(chain(&e)))?;
        let queue = queues.next().ok_or_else(|| create("the device")("it gives no queue".into()))?;
        let properties = physical.properties();
        let heap = super::memory::weight_heap(&physical).ok_or_else(|| VulkanError::Refused {
            name: chosen.name.clone(),
            reason: "it has no memory of its own".into(),
        })?;
        let heap_bytes = physical.memory_properties().memory_heaps[heap as usize].size;
        let own = |limit: u64, asked: Option<u64>| asked.map_or(limit, |asked| asked.min(limit));
        let max_allocation = properties.max_memory_allocation_size.unwrap_or(1 << 30);
        let max_buffer = properties.max_buffer_size.unwrap_or(max_allocation);
        let limits = Limits {
            subgroup_size: properties.subgroup_size.unwrap_or(1),
            max_range: own(u64::from(properties.max_storage_buffer_range), options.max_range),
            max_allocation: own(max_allocation.min(max_buffer), options.max_allocation),
            offset_alignment: properties.min_storage_buffer_offset_alignment.as_devicesize().max(MIN_ALIGNMENT),
            max_groups: properties.max_compute_work_group_count.into_iter().min().unwrap_or(65_535),
            shared_memory: properties.max_compute_shared_memory_size.min(32 << 10),
            memory: own(heap_bytes, options.max_memory),
        };
        let software = chosen.kind == DeviceKind::Software;
        let cache_file = options.pipeline_cache.as_deref().map(|folder| pipeline::cache_file(folder, &physical));
        let cache = cache_file.as_deref().and_then(|file| pipeline::open_cache(&device, file));
        let buffers = StandardCommandBufferAllocatorCreateInfo::default();
        Ok(Gpu {
            commands: Arc::new(StandardCommandBufferAllocator::new(device.clone(), buffers)),
            sets: Arc::new(StandardDescriptorSetAllocator::new(device.clone(), Default::default())),
            device,
            queue,
            pipelines: Mutex::default(),
            cache,
            cache_file,
            cache_dirty: AtomicBool::new(false),
            faults: Faults::default(),
            allocated: Arc::default(),
            limits,
            timeout: options.timeout.unwrap_or(Duration::from_secs(if software { 600 } else { 30 })),
            name: chosen.name.clone(),
            driver: chosen.driver.clone(),
            kind: chosen.kind,
            lost: AtomicBool::new(false),
        })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver's name and version.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The kind of device.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// What planning needs to know.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes of device memory that this process has allocated through this device.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Bytes of device memory that are free, as far as this process knows.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.limits.memory.saturating_sub(self.allocated())
    }

    /// Multiply-adds that one submission may hold: well below what drivers allow in time.
    pub(crate) fn submission_budget(&self) -> f64 {
        // A quarter of a second at a tenth of an RX 580's rate; software drivers have no limit in time.
        if self.kind == DeviceKind::Software { f64::INFINITY } else { 8e10 }
    }

    /// Plants a fault for a test: `after` operations of its kind succeed before it.
    pub fn plant(&self, fault: Fault, after: usize) {
        self.faults.plant(fault, after);
    }

    /// Submits recorded commands one after the other, each a submission of its own; the fence tells when all have ended.
    ///
    /// # Errors
    /// When the device is lost: after that, nothing is submitted to it any more.
    pub(crate) fn submit<'a>(
        &self,
        buffers: impl Iterator<Item = &'a CommandBuffer>,
        fence: &Fence,
    ) -> Result<(), BackendError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(self.failed("it was lost before; open it again"));
        }
        if self.faults.meet(&[Fault::DeviceLost]).is_some() {
            return Err(self.lose("the device is lost (a fault of its driver, or a reset)"));
        }
        let mut buffers = buffers.peekable();
        while let Some(buffer) = buffers.next() {
            let handles = [buffer.handle()];
            let info = [ash::vk::SubmitInfo::default().command_buffers(&handles)];
            let signal = if buffers.peek().is_some() { ash::vk::Fence::null() } else { fence.handle() };
            // SAFETY: the command buffer was recorded for this queue's family and is not pending: whoever submits waits before it submits again or
            // lets go of what is recorded, under the lock of its owner. The fence is unsignaled.
            let result = self.queue.with(|_| unsafe {
                (self.device.fns().v1_0.queue_submit)(self.queue.handle(), 1, info.as_ptr(), signal)
            });
            result.result().map_err(|code| self.code(Code::from(code), "submitting"))?;
        }
        Ok(())
    }

    /// Waits for a submission and makes its fence ready for the next.
    ///
    /// # Errors
    /// When the device is lost, or does not end in time.
    pub(crate) fn wait(&self, fence: &Fence) -> Result<(), BackendError> {
        if self.faults.meet(&[Fault::Timeout]).is_some() {
            // What was submitted goes on; it must end before its memory goes.
            let _ = fence.wait(None);
            return Err(self.lose(&self.late()));
        }
        match fence.wait(Some(self.timeout)) {
            Ok(()) => {}
            Err(Code::Timeout) => return Err(self.lose(&self.late())),
            Err(code) => return Err(self.code(code, "waiting")),
        }
        // SAFETY: the fence was waited for, no submission uses it.
        unsafe { fence.reset() }.map_err(|e| self.failed(&chain(&e)))
    }

    /// Submits and waits.
    ///
    /// # Errors
    /// As both.
    pub(crate) fn run(&self, recorded: &super::Recorded) -> Result<(), BackendError> {
        self.submit(recorded.buffers.iter(), &recorded.fence)?;
        self.wait(&recorded.fence)
    }

    fn late(&self) -> String {
        format!("a submission did not end within {} s", self.timeout.as_secs())
    }

    fn code(&self, code: Code, doing: &str) -> BackendError {
        match code {
            Code::DeviceLost => self.lose("the device is lost (a fault of its driver, or a reset)"),
            code => self.failed(&format!("{doing}: {code}")),
        }
    }

    fn lose(&self, reason: &str) -> BackendError {
        self.lost.store(true, Ordering::Relaxed);
        self.failed(reason)
    }

    pub(super) fn failed(&self, reason: &str) -> BackendError {
        BackendError::Device(format!("{}: {reason}", self.name))
    }

    /// Writes the pipeline cache, if new pipelines were made. A failure is no error: the pipelines are then compiled again the next time.
    pub fn save_pipelines(&self) {
        if let (Some(cache), Some(file)) = (&self.cache, &self.cache_file)
            && self.cache_dirty.swap(false, Ordering::Relaxed)
            && let Err(error) = pipeline::save_cache(cache, file)
        {
            tracing::debug!(%error, file = %file.display(), "the pipeline cache was not written");
        }
    }

    pub(super) fn lock_pipelines(&self) -> std::sync::MutexGuard<'_, HashMap<PipelineKey, Arc<Pipeline>>> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.save_pipelines();
    }
}

/// The device that is asked for, or the best that can be used.
fn choose(found: &[FoundDevice], asked: Option<usize>) -> Result<&FoundDevice, VulkanError> {
    if let Some(asked) = asked {
        let device = found.get(asked).ok_or(VulkanError::NoSuchDevice { asked, found: found.len() })?;
        return match &device.refusal {
            Some(reason) => Err(VulkanError::Refused { name: device.name.clone(), reason: reason.clone() }),
            None => Ok(device),
        };
    }
    found.iter().filter(|device| device.refusal.is_none()).min_by_key(|device| device.kind).ok_or_else(|| {
        let refusals = found.iter().map(|d| format!("{}: {}", d.name, d.refusal.as_deref().unwrap_or("")));
        let refusals: Vec<String> = refusals.collect();
        VulkanError::NoDevice(if refusals.is_empty() { "the drivers list none".into() } else { refusals.join("; ") })
    })
}
