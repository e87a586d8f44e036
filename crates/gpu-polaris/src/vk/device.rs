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
use super::memory_types::MemoryTypes;
use super::pipeline::{self, Pipeline, PipelineKey};
use super::recorder::Recorded;
use super::validation::{self, Validation};

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
    /// How long a submission may take; half a minute on a card, ten minutes on a software driver if not given.
    pub timeout: Option<Duration>,
    /// How long one submission should take at most: longer work is cut. A quarter of a second on a card if not given; on a software driver, which
    /// nobody watches, as long as it takes.
    pub submission_time: Option<Duration>,
    /// Whether the Khronos validation layer watches, with its synchronization validation: for tests.
    pub validation: bool,
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

    /// These options with a time that a submission may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> GpuOptions {
        self.timeout = Some(timeout);
        self
    }

    /// These options with a time that one submission should take at most.
    #[must_use]
    pub fn with_submission_time(mut self, time: Duration) -> GpuOptions {
        self.submission_time = Some(time);
        self
    }

    /// These options with the validation layer, whose messages [`Gpu::validation`] gives.
    #[must_use]
    pub fn with_validation(mut self) -> GpuOptions {
        self.validation = true;
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

/// What a lost device is reported with.
const LOST: &str = "the device is lost (a fault of its driver, or a reset); open it again";

/// Multiply-adds of a submission before anything was measured: a quarter of a second at a tenth of an RX 580's rate.
const SUBMISSION_WORK: f64 = 8e10;

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
    pub(super) host_allocated: Arc<AtomicU64>,
    pub(super) memory_types: MemoryTypes,
    /// The heap that weights lie in.
    heap: usize,
    validation: Option<Arc<Validation>>,
    pub(super) limits: Limits,
    timeout: Duration,
    /// How long one submission should take at most, if that matters.
    submission_time: Option<Duration>,
    /// Multiply-adds that one submission may hold, as bits of an f64: a guess until something was measured.
    submission_work: AtomicU64,
    submissions: AtomicU64,
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
        let (found, validation) = if options.validation {
            let (instance, validation) = validation::instance()?;
            (instance::found(&instance)?, Some(Arc::new(validation)))
        } else {
            (instance::devices()?, None)
        };
        let chosen = choose(&found, options.device)?;
        let physical = chosen.physical.clone();
        let create = |what: &'static str| move |reason: String| VulkanError::Create { what, reason };
        let family = instance::queue_family(&physical).ok_or_else(|| VulkanError::Refused {
            name: chosen.name.clone(),
            reason: "it has no queue that computes".into(),
        })?;
        let info = DeviceCreateInfo {
            enabled_features: instance::required_features(),
            queue_create_infos: vec![QueueCreateInfo { queue_family_index: family, ..QueueCreateInfo::default() }],
            ..DeviceCreateInfo::default()
        };
        let (device, mut queues) = Device::new(physical.clone(), info).map_err(|e| create("the device")(chain(&e)))?;
        let queue = queues.next().ok_or_else(|| create("the device")("it gives no queue".into()))?;
        let properties = physical.properties();
        let memory_types = MemoryTypes::of(&physical);
        let heap = memory_types.weights(u32::MAX).and_then(|index| memory_types.heap(index));
        let heap = heap.ok_or_else(|| VulkanError::Refused {
            name: chosen.name.clone(),
            reason: "it has no memory of its own".into(),
        })?;
        let heap_bytes = memory_types.heaps.get(heap).copied().unwrap_or(0);
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
            host_allocated: Arc::default(),
            memory_types,
            heap,
            validation,
            limits,
            timeout: options.timeout.unwrap_or(Duration::from_secs(if software { 600 } else { 30 })),
            submission_time: options.submission_time.or((!software).then_some(Duration::from_millis(250))),
            submission_work: AtomicU64::new(if software { f64::INFINITY } else { SUBMISSION_WORK }.to_bits()),
            submissions: AtomicU64::new(0),
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

    /// Bytes of memory shared with the host that this process has allocated through this device.
    #[must_use]
    pub fn host_allocated(&self) -> u64 {
        self.host_allocated.load(Ordering::Relaxed)
    }

    /// Bytes of device memory that are free: of what may be used, and, where the driver tells, of what other programs leave.
    #[must_use]
    pub fn free(&self) -> u64 {
        let own = self.limits.memory.saturating_sub(self.allocated());
        self.budget().map_or(own, |budget| own.min(budget))
    }

    /// What the driver says that this process may still allocate from the heap of weights.
    fn budget(&self) -> Option<u64> {
        let physical = self.device.physical_device();
        if !physical.supported_extensions().ext_memory_budget {
            return None;
        }
        let mut budget = ash::vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = ash::vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        let query = physical.instance().fns().v1_1.get_physical_device_memory_properties2;
        // SAFETY: the device is alive, offers Vulkan 1.2 and the extension; both structures are whole.
        unsafe { query(physical.handle(), &mut properties) };
        let (budget, usage) = (budget.heap_budget.get(self.heap)?, budget.heap_usage.get(self.heap)?);
        (*budget > 0).then(|| budget.saturating_sub(*usage))
    }

    /// Whether the device was lost: everything fails from then on, until it is opened again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// What the validation layer says, if the device was opened with it.
    #[must_use]
    pub fn validation(&self) -> Option<&Arc<Validation>> {
        self.validation.as_ref()
    }

    /// The messages of the validation layer so far; none without it.
    #[must_use]
    pub fn validation_messages(&self) -> Vec<String> {
        self.validation.as_ref().map(|validation| validation.messages()).unwrap_or_default()
    }

    /// Tells whether the device still exists, also when this is gone: what leaks keeps it alive.
    #[doc(hidden)]
    pub fn watch(&self) -> impl Fn() -> bool + use<> {
        let device = Arc::downgrade(&self.device);
        move || device.strong_count() > 0
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the device may be used.
    ///
    /// # Errors
    /// When it was lost.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        if self.is_lost() { Err(self.failed("the device was lost before; open it again")) } else { Ok(()) }
    }

    /// Multiply-adds that one submission may hold, so that no driver's timeout is hit.
    pub(crate) fn submission_work(&self) -> f64 {
        f64::from_bits(self.submission_work.load(Ordering::Relaxed))
    }

    /// Learns from a run of `work` multiply-adds, whose largest submission had `largest`. True if that submission took too long: what is recorded
    /// from now on is cut smaller.
    pub(crate) fn learn_pace(&self, work: f64, largest: f64, elapsed: Duration) -> bool {
        let Some(time) = self.submission_time.filter(|_| work > 0.0) else { return false };
        let rate = work / elapsed.as_secs_f64().max(1e-6);
        if largest <= rate * time.as_secs_f64() {
            return false;
        }
        // Another thread's measurement may be stored instead: it was made on the same device.
        self.submission_work.store((rate * time.as_secs_f64()).to_bits(), Ordering::Relaxed);
        true
    }

    /// How many submissions were made.
    #[must_use]
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    /// Plants a fault for a test: `after` operations of its kind succeed before it.
    pub fn plant(&self, fault: Fault, after: usize) {
        self.faults.plant(fault, after);
    }

    /// Submits recorded commands one after the other, each a submission of its own. Their end is to be waited for.
    ///
    /// # Errors
    /// When the device is lost: after that, nothing is submitted to it any more.
    pub(crate) fn submit(&self, recorded: &Recorded) -> Result<(), BackendError> {
        self.check()?;
        if self.faults.meet(&[Fault::DeviceLost]).is_some() {
            return Err(self.lose(LOST));
        }
        let fence = recorded.fence().ok_or_else(|| self.failed("nothing is recorded"))?;
        if !recorded.begin() {
            return Err(self.failed("recorded commands were submitted again before they ended"));
        }
        let buffers = recorded.buffers();
        for (i, buffer) in buffers.iter().enumerate() {
            let signal = if i + 1 < buffers.len() { None } else { Some(fence) };
            if let Err(code) = self.submit_one(Some(buffer), signal) {
                // Nothing of a submission that fails is executed; what was submitted before it is.
                let quiet = i == 0 || self.submit_one(None, Some(fence)).and_then(|()| self.await_fence(fence)).is_ok();
                if quiet {
                    recorded.ended();
                } else {
                    self.lost.store(true, Ordering::Release);
                }
                return Err(self.code(code, "submitting"));
            }
        }
        Ok(())
    }

    /// One submission: of a command buffer that is not pending, or of none, to learn when all before have ended.
    fn submit_one(&self, buffer: Option<&CommandBuffer>, fence: Option<&Fence>) -> Result<(), Code> {
        self.submissions.fetch_add(1, Ordering::Relaxed);
        let handles = [buffer.map_or(ash::vk::CommandBuffer::null(), VulkanObject::handle)];
        let count = usize::from(buffer.is_some());
        let info = [ash::vk::SubmitInfo::default().command_buffers(&handles[..count])];
        let fence = fence.map_or(ash::vk::Fence::null(), VulkanObject::handle);
        // SAFETY: the command buffer was recorded for this queue's family and is not pending; `Recorded` keeps it and all that it uses alive
        // until its end was seen. The fence is unsignaled and no other submission uses it. The queue is locked.
        let result = self
            .queue
            .with(|_| unsafe { (self.device.fns().v1_0.queue_submit)(self.queue.handle(), 1, info.as_ptr(), fence) });
        result.result().map_err(Code::from)
    }

    /// Waits for a fence and makes it ready for the next submission.
    fn await_fence(&self, fence: &Fence) -> Result<(), Code> {
        fence.wait(Some(self.timeout))?;
        // SAFETY: it was waited for: no submission uses it.
        unsafe { fence.reset() }.map_err(|error| match error {
            vulkano::Validated::Error(code) => code,
            vulkano::Validated::ValidationError(_) => Code::ValidationFailed,
        })
    }

    /// Waits for the end of what was submitted.
    ///
    /// # Errors
    /// When the device is lost, or does not end in time, by which it counts as lost.
    pub(crate) fn wait(&self, recorded: &Recorded) -> Result<(), BackendError> {
        let Some(fence) = recorded.fence().filter(|_| recorded.is_pending()) else { return Ok(()) };
        if self.faults.meet(&[Fault::Timeout]).is_some() {
            // The submission is left to itself, as one that is late.
            return Err(self.lose(&self.late()));
        }
        match self.await_fence(fence) {
            Ok(()) => recorded.ended(),
            Err(Code::Timeout) => return Err(self.lose(&self.late())),
            Err(Code::DeviceLost) => {
                recorded.ended();
                return Err(self.lose(LOST));
            }
            // Whether it has ended is not known.
            Err(code) => return Err(self.lose(&format!("waiting: {code}"))),
        }
        Ok(())
    }

    /// Submits and waits.
    ///
    /// # Errors
    /// As both.
    pub(crate) fn run(&self, recorded: &Recorded) -> Result<(), BackendError> {
        self.submit(recorded)?;
        self.wait(recorded)
    }

    fn late(&self) -> String {
        format!("a submission did not end within {:?}; the device counts as lost, open it again", self.timeout)
    }

    fn code(&self, code: Code, doing: &str) -> BackendError {
        match code {
            Code::DeviceLost => self.lose(LOST),
            code => self.failed(&format!("{doing}: {code}")),
        }
    }

    fn lose(&self, reason: &str) -> BackendError {
        self.lost.store(true, Ordering::Release);
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

    /// Where it is noted that this device and driver passed their self-test.
    fn tested_file(&self) -> Option<PathBuf> {
        self.cache_file.as_ref().map(|file| file.with_extension("tested"))
    }

    /// Whether this device and driver passed their self-test before.
    pub(crate) fn is_tested(&self) -> bool {
        self.tested_file().is_some_and(|file| file.exists())
    }

    /// Notes that they did. A failure is no error: the test then runs again.
    pub(crate) fn set_tested(&self) {
        if let Some(file) = self.tested_file()
            && let Err(error) =
                file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&file, ""))
        {
            tracing::debug!(%error, file = %file.display(), "that the device passed its self-test was not noted");
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
