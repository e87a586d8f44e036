//! Memory: checked allocations, each with one buffer over all of it, freed as a whole.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use core_tensor::BackendError;
use vulkano::buffer::sys::RawBuffer;
use vulkano::buffer::{Buffer, BufferCreateInfo, BufferUsage, Subbuffer};
use vulkano::device::physical::PhysicalDevice;
use vulkano::memory::{DeviceMemory, MemoryAllocateInfo, MemoryMapInfo, MemoryPropertyFlags, ResourceMemory};

use super::device::Gpu;
use super::fault::Fault;
use super::instance::chain;

/// Part of a buffer, as a descriptor names it.
#[derive(Clone, Debug)]
pub(crate) struct Region(pub(super) Subbuffer<[u8]>);

impl Region {
    pub(crate) fn len(&self) -> u64 {
        self.0.size()
    }
}

/// The memory type for what the device reads often: its own memory, and not the small part that the host sees where there is another.
fn weight_type(physical: &PhysicalDevice, bits: u32) -> Option<u32> {
    let types = &physical.memory_properties().memory_types;
    let allowed = |index: &usize| bits & (1 << index) != 0;
    let local = |index: &usize| types[*index].property_flags.contains(MemoryPropertyFlags::DEVICE_LOCAL);
    let protected = |index: &usize| {
        types[*index].property_flags.intersects(MemoryPropertyFlags::PROTECTED | MemoryPropertyFlags::DEVICE_COHERENT)
    };
    let heap = |index: &usize| {
        let heap = types[*index].heap_index as usize;
        let visible = types[*index].property_flags.contains(MemoryPropertyFlags::HOST_VISIBLE);
        (physical.memory_properties().memory_heaps[heap].size, !visible)
    };
    let candidates = (0..types.len()).filter(|index| allowed(index) && local(index) && !protected(index));
    candidates.max_by_key(heap).and_then(|index| u32::try_from(index).ok())
}

/// The heap of [`weight_type`].
pub(super) fn weight_heap(physical: &PhysicalDevice) -> Option<u32> {
    let index = weight_type(physical, u32::MAX)?;
    Some(physical.memory_properties().memory_types[index as usize].heap_index)
}

/// A host-visible memory type: cached for what the host reads.
fn host_type(physical: &PhysicalDevice, bits: u32, cached: bool) -> Option<u32> {
    let types = &physical.memory_properties().memory_types;
    let needed = MemoryPropertyFlags::HOST_VISIBLE | MemoryPropertyFlags::HOST_COHERENT;
    let candidates = (0..types.len()).filter(|i| bits & (1 << i) != 0 && types[*i].property_flags.contains(needed));
    let score = |i: &usize| {
        let flags = types[*i].property_flags;
        let local = flags.contains(MemoryPropertyFlags::DEVICE_LOCAL);
        (flags.contains(MemoryPropertyFlags::HOST_CACHED) == cached, !local)
    };
    candidates.max_by_key(score).and_then(|index| u32::try_from(index).ok())
}

fn usage() -> BufferUsage {
    BufferUsage::STORAGE_BUFFER | BufferUsage::INDIRECT_BUFFER | BufferUsage::TRANSFER_SRC | BufferUsage::TRANSFER_DST
}

/// Bytes counted as allocated for as long as this lives.
#[derive(Debug)]
struct Counted {
    allocated: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One allocation in the device's own memory.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    whole: Subbuffer<[u8]>,
    _counted: Counted,
}

impl DeviceBuffer {
    /// Allocates device memory for `what`; its contents are undefined.
    ///
    /// # Errors
    /// When it is larger than an allocation may be, or there is no memory for it.
    pub(crate) fn new(gpu: &Gpu, what: &'static str, bytes: u64) -> Result<DeviceBuffer, BackendError> {
        let bytes = bytes.max(16).next_multiple_of(16);
        let no_memory = || BackendError::NoDeviceMemory {
            device: gpu.name().to_owned(),
            what,
            bytes,
            free: gpu.free(),
            largest: gpu.limits.max_allocation,
        };
        if bytes > gpu.limits.max_allocation || bytes > gpu.free() || gpu.faults.meet(&[Fault::OutOfMemory]).is_some() {
            return Err(no_memory());
        }
        let buffer = allocate(gpu, bytes, |bits| weight_type(gpu.device.physical_device(), bits), false)
            .map_err(|reason| {
                tracing::debug!(%reason, bytes, what, "allocation failed");
                no_memory()
            })?;
        gpu.allocated.fetch_add(bytes, Ordering::Relaxed);
        let counted = Counted { allocated: gpu.allocated.clone(), bytes };
        Ok(DeviceBuffer { whole: Subbuffer::new(buffer), _counted: counted })
    }

    pub(crate) fn len(&self) -> u64 {
        self.whole.size()
    }

    /// A part, for a copy.
    pub(crate) fn exact(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        exact(&self.whole, offset, len)
    }

    /// A part, for a descriptor: an empty one takes the least that a descriptor may name.
    pub(crate) fn region(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        region(&self.whole, offset, len)
    }
}

fn region(whole: &Subbuffer<[u8]>, offset: u64, len: u64) -> Result<Region, BackendError> {
    exact(whole, offset, len.max(16).next_multiple_of(4))
}

fn exact(whole: &Subbuffer<[u8]>, offset: u64, len: u64) -> Result<Region, BackendError> {
    let end = offset.checked_add(len).filter(|end| *end <= whole.size());
    let Some(end) = end else {
        let size = whole.size();
        return Err(BackendError::Device(format!("bytes {offset}..+{len} are outside of a buffer of {size}")));
    };
    Ok(Region(whole.clone().slice(offset..end)))
}

/// One allocation that host and device see.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    whole: Subbuffer<[u8]>,
    mapped: NonNull<u8>,
}

// SAFETY: the mapping belongs to the buffer, and is written and read through `&mut self` only, or by the device while the host does not.
unsafe impl Send for HostBuffer {}
// SAFETY: as above: `&self` gives no access to the bytes.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Allocates memory for `what` that the host reads (`cached`) or only writes. A driver gives it zeroed, or with what this process left in it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn new(gpu: &Gpu, what: &'static str, bytes: u64, cached: bool) -> Result<HostBuffer, BackendError> {
        let bytes = bytes.max(16).next_multiple_of(16);
        let no_memory = || BackendError::NoMemory { what, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) };
        if gpu.faults.meet(&[Fault::OutOfMemory]).is_some() {
            return Err(no_memory());
        }
        let buffer = allocate(gpu, bytes, |bits| host_type(gpu.device.physical_device(), bits, cached), true);
        let buffer = buffer.map_err(|reason| {
            tracing::debug!(%reason, bytes, what, "allocation failed");
            no_memory()
        })?;
        let whole = Subbuffer::new(buffer);
        let mapped = whole.mapped_slice().map_err(|e| gpu.failed(&format!("mapping {what}: {e}")))?.cast::<u8>();
        Ok(HostBuffer { whole, mapped })
    }

    /// What the device has written, once it has ended.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.bytes_mut()
    }

    /// What the device will read.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = usize::try_from(self.whole.size()).unwrap_or(0);
        // SAFETY: the whole buffer is mapped, coherent and lives as long as `self`. Whoever has `&mut self` has waited for
        // the submissions that use it: sessions and uploaders submit and wait in one call.
        unsafe { std::slice::from_raw_parts_mut(self.mapped.as_ptr(), len) }
    }

    pub(crate) fn region(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        region(&self.whole, offset, len)
    }

    pub(crate) fn exact(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        exact(&self.whole, offset, len)
    }
}

fn allocate(
    gpu: &Gpu,
    bytes: u64,
    memory_type: impl Fn(u32) -> Option<u32>,
    map: bool,
) -> Result<Arc<Buffer>, String> {
    let info = BufferCreateInfo { size: bytes, usage: usage(), ..BufferCreateInfo::default() };
    let raw = RawBuffer::new(gpu.device.clone(), info).map_err(|e| chain(&e))?;
    let requirements = raw.memory_requirements();
    let memory_type_index = memory_type(requirements.memory_type_bits).ok_or("no type of memory fits")?;
    let allocation_size = requirements.layout.size();
    let info = MemoryAllocateInfo { allocation_size, memory_type_index, ..MemoryAllocateInfo::default() };
    let mut memory = DeviceMemory::allocate(gpu.device.clone(), info).map_err(|e| chain(&e))?;
    if map {
        let info = MemoryMapInfo { size: allocation_size, ..MemoryMapInfo::default() };
        memory.map(info).map_err(|e| chain(&e))?;
    }
    let bound = raw.bind_memory(ResourceMemory::new_dedicated(memory)).map_err(|(e, ..)| chain(&e))?;
    Ok(Arc::new(bound))
}
