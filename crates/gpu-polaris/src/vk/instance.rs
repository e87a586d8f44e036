//! The Vulkan loader, and which devices it finds.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vulkano::device::physical::{PhysicalDevice, PhysicalDeviceType};
use vulkano::device::{DeviceFeatures, QueueFlags};
use vulkano::instance::{Instance, InstanceCreateFlags, InstanceCreateInfo};
use vulkano::memory::MemoryHeapFlags;
use vulkano::{Version, VulkanLibrary};

/// Why there is no Vulkan device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VulkanError {
    /// The loader is not installed.
    #[error("no Vulkan loader (libvulkan.so.1, from the package libvulkan1): {0}")]
    Loader(String),
    /// The loader finds no driver.
    #[error("no Vulkan driver is installed (on Linux: mesa-vulkan-drivers): {0}")]
    Driver(String),
    /// There are devices, and none that can be used.
    #[error("no Vulkan device can be used: {0}")]
    NoDevice(String),
    /// A device was asked for that is not there.
    #[error("there is no Vulkan device {asked}; there are {found}")]
    NoSuchDevice {
        /// Its number.
        asked: usize,
        /// How many there are.
        found: usize,
    },
    /// A device was asked for that lacks something.
    #[error("Vulkan device {name:?} cannot be used: {reason}")]
    Refused {
        /// The device's name.
        name: String,
        /// What it lacks.
        reason: String,
    },
    /// The validation layer was asked for and is not there.
    #[error("no Vulkan validation layer (on Debian: apt-get install vulkan-validationlayers): {0}")]
    Validation(String),
    /// The driver refused to make something.
    #[error("{what}: {reason}")]
    Create {
        /// What was to be made.
        what: &'static str,
        /// What the driver says.
        reason: String,
    },
}

/// What kind of device it is, in the order in which they are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A graphics card by AMD: what the kernels are written for.
    DiscreteAmd,
    /// Another graphics card.
    Discrete,
    /// Graphics inside the processor.
    Integrated,
    /// A virtual machine's.
    Virtual,
    /// A driver that computes on the processor (lavapipe).
    Software,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::DiscreteAmd | DeviceKind::Discrete => "discrete",
            DeviceKind::Integrated => "integrated",
            DeviceKind::Virtual => "virtual",
            DeviceKind::Software => "software",
        })
    }
}

/// A Vulkan device that the loader lists.
#[derive(Clone)]
pub struct FoundDevice {
    /// Its name.
    pub name: String,
    /// The driver's name and version.
    pub driver: String,
    /// The kind.
    pub kind: DeviceKind,
    /// Bytes of its own memory.
    pub memory: u64,
    /// The Vulkan version, `1.3.230`.
    pub api: String,
    /// Lanes of a subgroup.
    pub subgroup_size: u32,
    /// Why it cannot be used, if it cannot.
    pub refusal: Option<String>,
    pub(super) physical: Arc<PhysicalDevice>,
}

impl fmt::Debug for FoundDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FoundDevice").field("name", &self.name).field("refusal", &self.refusal).finish_non_exhaustive()
    }
}

/// What every kernel needs.
pub(super) fn required_features() -> DeviceFeatures {
    DeviceFeatures {
        storage_buffer16_bit_access: true,
        shader_int16: true,
        shader_int64: true,
        ..DeviceFeatures::empty()
    }
}

/// A feature's name, and whether it is there.
type Feature = (&'static str, fn(&DeviceFeatures) -> bool);

const FEATURE_NAMES: [Feature; 3] = [
    ("storageBuffer16BitAccess", |f| f.storage_buffer16_bit_access),
    ("shaderInt16", |f| f.shader_int16),
    ("shaderInt64", |f| f.shader_int64),
];

/// How an instance is made.
pub(super) fn create_info() -> InstanceCreateInfo {
    InstanceCreateInfo {
        flags: InstanceCreateFlags::ENUMERATE_PORTABILITY,
        max_api_version: Some(Version::V1_3),
        application_name: Some("polaris".into()),
        ..InstanceCreateInfo::default()
    }
}

/// The one instance of the process: drivers are loaded once.
fn instance() -> Result<Arc<Instance>, VulkanError> {
    static SHARED: Mutex<Option<Arc<Instance>>> = Mutex::new(None);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(instance) = &*shared {
        return Ok(instance.clone());
    }
    let library = VulkanLibrary::new().map_err(|e| VulkanError::Loader(chain(&e)))?;
    let instance = Instance::new(library, create_info()).map_err(|e| VulkanError::Driver(chain(&e)))?;
    *shared = Some(instance.clone());
    Ok(instance)
}

/// Every device that the loader lists, in its order: the number in `vulkan:1` counts them from 0.
///
/// # Errors
/// When there is no loader or no driver.
pub fn devices() -> Result<Vec<FoundDevice>, VulkanError> {
    found(&instance()?)
}

/// Every device that an instance lists.
pub(super) fn found(instance: &Arc<Instance>) -> Result<Vec<FoundDevice>, VulkanError> {
    let found = instance.enumerate_physical_devices().map_err(|e| VulkanError::Driver(chain(&e)))?;
    Ok(found.map(describe).collect())
}

fn describe(physical: Arc<PhysicalDevice>) -> FoundDevice {
    let properties = physical.properties();
    let kind = match (properties.device_type, properties.vendor_id) {
        (PhysicalDeviceType::DiscreteGpu, 0x1002) => DeviceKind::DiscreteAmd,
        (PhysicalDeviceType::DiscreteGpu, _) => DeviceKind::Discrete,
        (PhysicalDeviceType::IntegratedGpu, _) => DeviceKind::Integrated,
        (PhysicalDeviceType::Cpu, _) => DeviceKind::Software,
        _ => DeviceKind::Virtual,
    };
    let heaps = &physical.memory_properties().memory_heaps;
    let local = heaps.iter().filter(|heap| heap.flags.intersects(MemoryHeapFlags::DEVICE_LOCAL));
    let driver = [properties.driver_name.as_deref(), properties.driver_info.as_deref()];
    FoundDevice {
        name: properties.device_name.clone(),
        driver: driver.into_iter().flatten().collect::<Vec<_>>().join(" "),
        kind,
        memory: local.map(|heap| heap.size).max().unwrap_or(0),
        api: physical.api_version().to_string(),
        subgroup_size: properties.subgroup_size.unwrap_or(0),
        refusal: refusal(&physical),
        physical: physical.clone(),
    }
}

/// What a device lacks.
fn refusal(physical: &PhysicalDevice) -> Option<String> {
    let version = physical.api_version();
    if version < Version::V1_2 {
        return Some(format!("it offers Vulkan {version}; 1.2 is needed"));
    }
    let features = physical.supported_features();
    let missing: Vec<&str> =
        FEATURE_NAMES.into_iter().filter(|(_, has)| !has(features)).map(|(name, _)| name).collect();
    if !missing.is_empty() {
        return Some(format!("it lacks {}", missing.join(", ")));
    }
    let properties = physical.properties();
    let operations = properties.subgroup_supported_operations.unwrap_or_default();
    let needed = vulkano::device::physical::SubgroupFeatures::BASIC
        | vulkano::device::physical::SubgroupFeatures::ARITHMETIC
        | vulkano::device::physical::SubgroupFeatures::BALLOT;
    if !operations.contains(needed) {
        return Some(format!("its subgroups do not do {:?}", needed - operations));
    }
    // A slice of 64 threads must not be smaller than a subgroup: what is uniform in it would not be.
    if properties.subgroup_size.is_none_or(|size| size > 64) {
        return Some(format!("its subgroups have {:?} lanes", properties.subgroup_size));
    }
    if properties.max_compute_shared_memory_size < 32 << 10 {
        return Some(format!(
            "its workgroups share {} bytes; 32768 are needed",
            properties.max_compute_shared_memory_size
        ));
    }
    if properties.max_compute_work_group_invocations < 256 {
        return Some(format!(
            "its workgroups have {} threads; 256 are needed",
            properties.max_compute_work_group_invocations
        ));
    }
    queue_family(physical).is_none().then(|| "it has no queue that computes".into())
}

/// A queue family for computing alone if there is one (the asynchronous compute engines of GCN), else any that computes.
pub(super) fn queue_family(physical: &PhysicalDevice) -> Option<u32> {
    let families = physical.queue_family_properties();
    let computes = |flags: QueueFlags| flags.contains(QueueFlags::COMPUTE);
    families
        .iter()
        .position(|family| computes(family.queue_flags) && !family.queue_flags.contains(QueueFlags::GRAPHICS))
        .or_else(|| families.iter().position(|family| computes(family.queue_flags)))
        .and_then(|index| u32::try_from(index).ok())
}

/// An error and what it came from: vulkano's own texts say only that there was one.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut parts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        parts.push(source.to_string());
        next = source.source();
    }
    // What wraps a code of Vulkan says no more than that it does.
    if parts.len() > 1 {
        parts.retain(|part| part != "a non-validation error occurred");
    }
    parts.join(": ")
}
