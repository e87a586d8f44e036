//! Recording: a list of commands becomes command buffers that are submitted again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use core_tensor::BackendError;
use vulkano::buffer::Subbuffer;
use vulkano::command_buffer::{
    BufferCopy, CommandBuffer, CommandBufferBeginInfo, CommandBufferLevel, CommandBufferUsage, CopyBufferInfo,
    DispatchIndirectCommand, RecordingCommandBuffer,
};
use vulkano::descriptor_set::{DescriptorSet, WriteDescriptorSet};
use vulkano::device::Queue;
use vulkano::pipeline::{Pipeline as _, PipelineBindPoint};
use vulkano::sync::fence::{Fence, FenceCreateInfo};
use vulkano::sync::{AccessFlags, DependencyInfo, MemoryBarrier, PipelineStages};

use super::device::Gpu;
use super::fault::Fault;
use super::instance::chain;
use super::memory::Region;
use super::pipeline::Pipeline;

/// Words of push constants that a kernel may have: what every device takes.
pub(crate) const PUSH_WORDS: usize = 32;

/// The least that dropping waits for a submission whose end was not seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// One command.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Runs a kernel.
    Dispatch {
        pipeline: Arc<Pipeline>,
        /// Bindings 0, 1, ... of set 0.
        regions: Vec<Region>,
        push: Vec<u32>,
        groups: Groups,
    },
    /// Copies bytes.
    Copy { from: Region, to: Region },
    /// Makes bytes zero.
    Clear(Region),
    /// All writes before are seen by all that follows.
    Barrier,
    /// Ends a submission; what follows goes into the next.
    Split,
}

/// How many workgroups.
#[derive(Clone, Debug)]
pub(crate) enum Groups {
    Fixed([u32; 3]),
    /// Three words in a buffer.
    Indirect(Region),
}

/// Command buffers with all that they use.
pub(crate) struct Recorded {
    /// Nothing only while it is dropped.
    parts: Option<Parts>,
    /// Whether it was submitted and its end was not seen.
    pending: AtomicBool,
    /// How long dropping waits for a submission whose end was not seen.
    patience: Duration,
}

struct Parts {
    buffers: Vec<CommandBuffer>,
    fence: Fence,
    /// What the command buffers refer to: raw ones keep nothing alive.
    sets: Vec<Arc<DescriptorSet>>,
    pipelines: Vec<Arc<Pipeline>>,
    regions: Vec<Region>,
    /// The device is destroyed after all of these, and its queue before it.
    _queue: Arc<Queue>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pending = self.pending.load(Ordering::Relaxed);
        f.debug_struct("Recorded")
            .field("buffers", &self.buffers().len())
            .field("pending", &pending)
            .finish_non_exhaustive()
    }
}

impl Recorded {
    /// The command buffers, each a submission of its own.
    pub(super) fn buffers(&self) -> &[CommandBuffer] {
        self.parts.as_ref().map_or(&[], |parts| &parts.buffers)
    }

    /// Signaled when the last one has ended.
    pub(super) fn fence(&self) -> Option<&Fence> {
        self.parts.as_ref().map(|parts| &parts.fence)
    }

    /// Takes note that it is about to be submitted; false if it is pending already.
    pub(super) fn begin(&self) -> bool {
        !self.pending.swap(true, Ordering::Acquire)
    }

    /// Takes note that the device does not use it.
    pub(super) fn ended(&self) {
        self.pending.store(false, Ordering::Release);
    }

    /// Whether the device may be using it.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        if !self.is_pending() {
            return;
        }
        // A device that is lost uses nothing any more. One that still computes needs all this: better lost to the process than pulled from
        // under it. Its driver resets it sooner or later.
        match parts.fence.wait(Some(self.patience)) {
            Ok(()) | Err(vulkano::VulkanError::DeviceLost) => {}
            Err(error) => {
                tracing::warn!(%error, "a submission does not end: its memory is given up");
                std::mem::forget(parts);
            }
        }
    }
}

/// A barrier over all memory between computing, copying, indirect commands and the host.
fn barrier() -> DependencyInfo {
    let written = AccessFlags::SHADER_WRITE | AccessFlags::TRANSFER_WRITE;
    let read = AccessFlags::SHADER_READ
        | AccessFlags::SHADER_WRITE
        | AccessFlags::TRANSFER_READ
        | AccessFlags::TRANSFER_WRITE
        | AccessFlags::INDIRECT_COMMAND_READ;
    let stages = PipelineStages::COMPUTE_SHADER | PipelineStages::ALL_TRANSFER;
    let barrier = MemoryBarrier {
        src_stages: stages,
        src_access: written,
        dst_stages: stages | PipelineStages::DRAW_INDIRECT,
        dst_access: read,
        ..MemoryBarrier::default()
    };
    DependencyInfo { memory_barriers: [barrier].into_iter().collect(), ..DependencyInfo::default() }
}

/// What the device wrote, for the host and for later submissions: a fence alone does not make it visible to those.
fn at_the_end() -> DependencyInfo {
    let mut info = barrier();
    for barrier in &mut info.memory_barriers {
        barrier.dst_stages |= PipelineStages::HOST;
        barrier.dst_access |= AccessFlags::HOST_READ;
    }
    info
}

/// Records commands, to be submitted any number of times, one submission at a time.
///
/// # Errors
/// When a command breaks a limit of the device, or the driver has no memory for them.
pub(crate) fn record(gpu: &Gpu, commands: &[Command]) -> Result<Recorded, BackendError> {
    let failed = |what: &str, e: &dyn std::error::Error| gpu.failed(&format!("recording {what}: {}", chain(e)));
    let begin = || {
        let info =
            CommandBufferBeginInfo { usage: CommandBufferUsage::MultipleSubmit, ..CommandBufferBeginInfo::default() };
        let family = gpu.queue.queue_family_index();
        RecordingCommandBuffer::new(gpu.commands.clone(), family, CommandBufferLevel::Primary, info)
            .map_err(|e| failed("the beginning", &e))
    };
    gpu.check()?;
    if gpu.faults.meet(&[Fault::OutOfMemory]).is_some() {
        return Err(BackendError::NoMemory { what: "recorded commands", bytes: size_of_val(commands) });
    }
    let mut recorded = Parts {
        buffers: Vec::new(),
        fence: Fence::new(gpu.device.clone(), FenceCreateInfo::default()).map_err(|e| failed("a fence", &e))?,
        sets: Vec::new(),
        pipelines: Vec::new(),
        regions: Vec::new(),
        _queue: gpu.queue.clone(),
    };
    let (barrier, at_the_end) = (barrier(), at_the_end());
    let mut builder = begin()?;
    for command in commands {
        match command {
            Command::Dispatch { pipeline, regions, push, groups } => {
                let layout = pipeline.pipeline.layout();
                let set_layout = layout.set_layouts().first().ok_or_else(|| gpu.failed("a shader binds nothing"))?;
                let bound = |(binding, _): &(usize, &Region)| set_layout.bindings().contains_key(&(*binding as u32));
                let writes = regions.iter().enumerate().filter(bound);
                let writes: Vec<_> =
                    writes.map(|(i, region)| WriteDescriptorSet::buffer(i as u32, region.bytes.clone())).collect();
                if writes.len() != set_layout.bindings().len() {
                    return Err(gpu.failed("a shader's binding was left out"));
                }
                for region in regions {
                    let offset = region.bytes.offset()
                        % gpu.device.physical_device().properties().min_storage_buffer_offset_alignment.as_devicesize();
                    if region.len() > gpu.limits.max_range || offset != 0 {
                        let (len, max) = (region.len(), gpu.limits.max_range);
                        return Err(
                            gpu.failed(&format!("a binding of {len} bytes (at most {max}) at a remainder of {offset}"))
                        );
                    }
                }
                let set = DescriptorSet::new(gpu.sets.clone(), set_layout.clone(), writes, []);
                let set = set.map_err(|e| failed("a descriptor set", &e))?;
                let mut words = [0u32; PUSH_WORDS];
                let Some(target) = words.get_mut(..push.len()) else {
                    return Err(gpu.failed("too many push constants"));
                };
                target.copy_from_slice(push);
                // SAFETY: pipeline, set and regions are kept alive beside the command buffer; the set fits the pipeline's layout, whose
                // every binding is written; the planner keeps every access of the kernel inside its regions; conflicting commands
                // have a barrier between them.
                unsafe {
                    builder.bind_pipeline_compute(&pipeline.pipeline).map_err(|e| failed("a pipeline", &e))?;
                    builder
                        .bind_descriptor_sets(PipelineBindPoint::Compute, layout, 0, &[set.as_raw()], &[])
                        .map_err(|e| failed("a descriptor set", &e))?;
                    if let Some(range) = layout.push_constant_ranges().first() {
                        push_constants(&mut builder, layout, range.size as usize / 4, &words)
                            .map_err(|e| failed("push constants", &*e))?;
                    }
                    match groups {
                        Groups::Fixed(groups) => builder.dispatch(*groups).map_err(|e| failed("a dispatch", &e))?,
                        Groups::Indirect(region) => {
                            let words: Subbuffer<[DispatchIndirectCommand]> =
                                region.bytes.clone().slice(0..12).reinterpret();
                            recorded.regions.push(region.clone());
                            builder.dispatch_indirect(&words).map_err(|e| failed("a dispatch", &e))?
                        }
                    };
                }
                recorded.regions.extend_from_slice(regions);
                recorded.sets.push(set);
                recorded.pipelines.push(pipeline.clone());
            }
            Command::Copy { from, to } => {
                let size = from.len().min(to.len());
                let info = CopyBufferInfo {
                    regions: [BufferCopy { size, ..BufferCopy::default() }].into_iter().collect(),
                    ..CopyBufferInfo::buffers(from.bytes.clone(), to.bytes.clone())
                };
                // SAFETY: both regions are kept alive, lie inside their buffers and do not overlap; conflicts have barriers.
                unsafe { builder.copy_buffer(&info) }.map_err(|e| failed("a copy", &e))?;
                recorded.regions.extend([from.clone(), to.clone()]);
            }
            Command::Clear(region) => {
                let words: Subbuffer<[u32]> = region.bytes.clone().reinterpret();
                // SAFETY: the region is kept alive; conflicts have barriers.
                unsafe { builder.fill_buffer(&words, 0) }.map_err(|e| failed("a fill", &e))?;
                recorded.regions.push(region.clone());
            }
            // Left out for a test of the validation layer.
            Command::Barrier if gpu.faults.meet(&[Fault::MissingBarrier]).is_some() => {}
            Command::Barrier => {
                // SAFETY: a memory barrier refers to nothing.
                unsafe { builder.pipeline_barrier(&barrier) }.map_err(|e| failed("a barrier", &e))?;
            }
            Command::Split => {
                // SAFETY: as above; the command buffer is whole.
                let buffer = unsafe {
                    builder.pipeline_barrier(&barrier).map_err(|e| failed("a barrier", &e))?;
                    builder.end()
                };
                recorded.buffers.push(buffer.map_err(|e| failed("the end", &e))?);
                builder = begin()?;
            }
        }
    }
    // SAFETY: as above.
    let buffer = unsafe {
        builder.pipeline_barrier(&at_the_end).map_err(|e| failed("a barrier", &e))?;
        builder.end()
    };
    recorded.buffers.push(buffer.map_err(|e| failed("the end", &e))?);
    Ok(Recorded { parts: Some(recorded), pending: AtomicBool::new(false), patience: gpu.timeout().max(PATIENCE) })
}

/// Pushes as many words as the layout has.
///
/// # Safety
/// As vulkano's `push_constants`.
unsafe fn push_constants(
    builder: &mut RecordingCommandBuffer,
    layout: &vulkano::pipeline::PipelineLayout,
    count: usize,
    words: &[u32; PUSH_WORDS],
) -> Result<(), Box<vulkano::ValidationError>> {
    for (i, word) in words.iter().enumerate().take(count) {
        // SAFETY: the caller's; the word lies inside the layout's range.
        unsafe { builder.push_constants(layout, i as u32 * 4, word)? };
    }
    Ok(())
}
