//! Memory: checked allocations, each with one buffer over all of it, freed as a whole.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use core_tensor::BackendError;
use vulkano::buffer::sys::RawBuffer;
use vulkano::buffer::{Buffer, BufferCreateInfo, BufferUsage, Subbuffer};
use vulkano::memory::{DeviceMemory, MemoryAllocateInfo, MemoryMapInfo, ResourceMemory};

use super::device::Gpu;
use super::fault::Fault;
use super::instance::chain;

/// Part of a buffer, as a descriptor names it. It keeps the buffer alive, and counted.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(super) bytes: Subbuffer<[u8]>,
    _counted: Arc<Counted>,
}

impl Region {
    pub(crate) fn len(&self) -> u64 {
        self.bytes.size()
    }
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

impl Counted {
    /// Counts bytes, unless there would be more than `most`.
    fn new(allocated: &Arc<AtomicU64>, bytes: u64, most: u64) -> Option<Counted> {
        let add = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= most);
        allocated.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Counted { allocated: allocated.clone(), bytes })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A buffer over an allocation of its own.
#[derive(Clone, Debug)]
struct Allocation {
    whole: Subbuffer<[u8]>,
    counted: Arc<Counted>,
}

impl Allocation {
    /// A part, for a copy.
    fn exact(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        let end = offset.checked_add(len).filter(|end| *end <= self.whole.size() && len > 0);
        let Some(end) = end else {
            let size = self.whole.size();
            return Err(BackendError::Device(format!("bytes {offset}..+{len} are no part of a buffer of {size}")));
        };
        Ok(Region { bytes: self.whole.clone().slice(offset..end), _counted: self.counted.clone() })
    }

    /// A part, for a descriptor: an empty one takes the least that a descriptor may name.
    fn region(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        self.exact(offset, len.max(16).next_multiple_of(4))
    }
}

/// Whole pieces of 16 bytes, at least one; `None` where that overflows.
fn rounded(bytes: u64) -> Option<u64> {
    bytes.max(16).checked_next_multiple_of(16)
}

/// One allocation in the device's own memory.
#[derive(Debug)]
pub(crate) struct DeviceBuffer(Allocation);

impl DeviceBuffer {
    /// Allocates device memory for `what`; its contents are undefined.
    ///
    /// # Errors
    /// When it is larger than an allocation may be, there is no memory for it, or the device is lost.
    pub(crate) fn new(gpu: &Gpu, what: &'static str, bytes: u64) -> Result<DeviceBuffer, BackendError> {
        gpu.check()?;
        let no_memory = || BackendError::NoDeviceMemory {
            device: gpu.name().to_owned(),
            what,
            bytes,
            free: gpu.free(),
            largest: gpu.limits.max_allocation,
        };
        let rounded = rounded(bytes).filter(|bytes| *bytes <= gpu.limits.max_allocation).ok_or_else(no_memory)?;
        if rounded > gpu.free() || gpu.faults.meet(&[Fault::OutOfMemory]).is_some() {
            return Err(no_memory());
        }
        let counted = Counted::new(&gpu.allocated, rounded, gpu.limits.memory).ok_or_else(no_memory)?;
        let buffer = allocate(gpu, rounded, |bits| gpu.memory_types.weights(bits), false).map_err(|reason| {
            tracing::debug!(%reason, bytes, what, "allocation failed");
            no_memory()
        })?;
        Ok(DeviceBuffer(Allocation { whole: Subbuffer::new(buffer), counted: Arc::new(counted) }))
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.whole.size()
    }

    /// A part, for a copy; not an empty one.
    pub(crate) fn exact(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        self.0.exact(offset, len)
    }

    /// A part, for a descriptor: an empty one takes the least that a descriptor may name.
    pub(crate) fn region(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        self.0.region(offset, len)
    }
}

/// One allocation that host and device see.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    allocation: Allocation,
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
    /// When there is no memory for it, or the device is lost.
    pub(crate) fn new(gpu: &Gpu, what: &'static str, bytes: u64, cached: bool) -> Result<HostBuffer, BackendError> {
        gpu.check()?;
        let no_memory = || BackendError::NoMemory { what, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) };
        let rounded = rounded(bytes).ok_or_else(no_memory)?;
        if gpu.faults.meet(&[Fault::OutOfMemory]).is_some() {
            return Err(no_memory());
        }
        let counted = Counted::new(&gpu.host_allocated, rounded, u64::MAX).ok_or_else(no_memory)?;
        let buffer = allocate(gpu, rounded, |bits| gpu.memory_types.host(bits, cached), true);
        let buffer = buffer.map_err(|reason| {
            tracing::debug!(%reason, bytes, what, "allocation failed");
            no_memory()
        })?;
        let whole = Subbuffer::new(buffer);
        let mapped = whole.mapped_slice().map_err(|e| gpu.failed(&format!("mapping {what}: {e}")))?.cast::<u8>();
        Ok(HostBuffer { allocation: Allocation { whole, counted: Arc::new(counted) }, mapped })
    }

    /// What the device has written, once it has ended.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.bytes_mut()
    }

    /// What the device will read. Not to be called between a submission that uses these bytes and the end of waiting for it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = usize::try_from(self.allocation.whole.size()).unwrap_or(0);
        // SAFETY: the whole buffer is mapped, coherent and lives as long as `self`; no other slice of it is made while this one is borrowed. The
        // device does not touch it meanwhile: sessions and uploaders submit and wait in one call, and where waiting fails, the device
        // counts as lost and `Gpu::check` keeps them from coming here again.
        unsafe { std::slice::from_raw_parts_mut(self.mapped.as_ptr(), len) }
    }

    pub(crate) fn region(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        self.allocation.region(offset, len)
    }

    pub(crate) fn exact(&self, offset: u64, len: u64) -> Result<Region, BackendError> {
        self.allocation.exact(offset, len)
    }
}

fn allocate(gpu: &Gpu, bytes: u64, memory_type: impl Fn(u32) -> Option<u32>, map: bool) -> Result<Arc<Buffer>, String> {
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
