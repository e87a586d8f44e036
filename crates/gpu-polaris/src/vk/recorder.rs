//! Recording: a list of commands becomes command buffers that are submitted again and again.

use std::sync::Arc;

use core_tensor::BackendError;
use vulkano::buffer::Subbuffer;
use vulkano::command_buffer::{
    BufferCopy, CommandBuffer, CommandBufferBeginInfo, CommandBufferLevel, CommandBufferUsage, CopyBufferInfo,
    DispatchIndirectCommand, RecordingCommandBuffer,
};
use vulkano::descriptor_set::{DescriptorSet, WriteDescriptorSet};
use vulkano::pipeline::{Pipeline as _, PipelineBindPoint};
use vulkano::sync::fence::{Fence, FenceCreateInfo};
use vulkano::sync::{AccessFlags, DependencyInfo, MemoryBarrier, PipelineStages};

use super::device::Gpu;
use super::instance::chain;
use super::memory::Region;
use super::pipeline::Pipeline;

/// Bytes of push constants that a kernel may have.
pub(crate) const PUSH_WORDS: usize = 24;

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
    pub(crate) buffers: Vec<CommandBuffer>,
    pub(crate) fence: Fence,
    /// What the command buffers refer to: raw ones keep nothing alive.
    _sets: Vec<Arc<DescriptorSet>>,
    _pipelines: Vec<Arc<Pipeline>>,
    _regions: Vec<Region>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorded").field("buffers", &self.buffers.len()).finish_non_exhaustive()
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

/// What the device wrote, for the host.
fn to_host() -> DependencyInfo {
    let barrier = MemoryBarrier {
        src_stages: PipelineStages::COMPUTE_SHADER | PipelineStages::ALL_TRANSFER,
        src_access: AccessFlags::SHADER_WRITE | AccessFlags::TRANSFER_WRITE,
        dst_stages: PipelineStages::HOST,
        dst_access: AccessFlags::HOST_READ,
        ..MemoryBarrier::default()
    };
    DependencyInfo { memory_barriers: [barrier].into_iter().collect(), ..DependencyInfo::default() }
}

/// Records commands, to be submitted any number of times, one submission at a time.
///
/// # Errors
/// When a command breaks a limit of the device, or the driver has no memory for them.
pub(crate) fn record(gpu: &Gpu, commands: &[Command]) -> Result<Recorded, BackendError> {
    let failed = |what: &str, e: &dyn std::error::Error| gpu.failed(&format!("recording {what}: {}", chain(e)));
    let begin = || {
        let info = CommandBufferBeginInfo { usage: CommandBufferUsage::MultipleSubmit, ..CommandBufferBeginInfo::default() };
        let family = gpu.queue.queue_family_index();
        RecordingCommandBuffer::new(gpu.commands.clone(), family, CommandBufferLevel::Primary, info)
            .map_err(|e| failed("the beginning", &e))
    };
    let mut recorded = Recorded {
        buffers: Vec::new(),
        fence: Fence::new(gpu.device.clone(), FenceCreateInfo::default()).map_err(|e| failed("a fence", &e))?,
        _sets: Vec::new(),
        _pipelines: Vec::new(),
        _regions: Vec::new(),
    };
    let (barrier, to_host) = (barrier(), to_host());
    let mut builder = begin()?;
    for command in commands {
        match command {
            Command::Dispatch { pipeline, regions, push, groups } => {
                let layout = pipeline.pipeline.layout();
                let set_layout = layout.set_layouts().first().ok_or_else(|| gpu.failed("a shader binds nothing"))?;
                let bound = |(binding, _): &(usize, &Region)| set_layout.bindings().contains_key(&(*binding as u32));
                let writes = regions.iter().enumerate().filter(bound);
                let writes: Vec<_> =
                    writes.map(|(i, region)| WriteDescriptorSet::buffer(i as u32, region.0.clone())).collect();
                if writes.len() != set_layout.bindings().len() {
                    return Err(gpu.failed("a shader's binding was left out"));
                }
                for region in regions {
                    let offset = region.0.offset() % gpu.device.physical_device().properties().min_storage_buffer_offset_alignment.as_devicesize();
                    if region.len() > gpu.limits.max_range || offset != 0 {
                        let (len, max) = (region.len(), gpu.limits.max_range);
                        return Err(gpu.failed(&format!("a binding of {len} bytes (at most {max}) at a remainder of {offset}")));
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
                        push_constants(&mut builder, layout, range.size as usize / 4, &words).map_err(|e| failed("push constants", &*e))?;
                    }
                    match groups {
                        Groups::Fixed(groups) => builder.dispatch(*groups).map_err(|e| failed("a dispatch", &e))?,
                        Groups::Indirect(region) => {
                            let words: Subbuffer<[DispatchIndirectCommand]> = region.0.clone().slice(0..12).reinterpret();
                            recorded._regions.push(region.clone());
                            builder.dispatch_indirect(&words).map_err(|e| failed("a dispatch", &e))?
                        }
                    };
                }
                recorded._sets.push(set);
                recorded._pipelines.push(pipeline.clone());
            }
            Command::Copy { from, to } => {
                let size = from.len().min(to.len());
                let info = CopyBufferInfo {
                    regions: [BufferCopy { size, ..BufferCopy::default() }].into_iter().collect(),
                    ..CopyBufferInfo::buffers(from.0.clone(), to.0.clone())
                };
                // SAFETY: both regions are kept alive, lie inside their buffers and do not overlap; conflicts have barriers.
                unsafe { builder.copy_buffer(&info) }.map_err(|e| failed("a copy", &e))?;
                recorded._regions.extend([from.clone(), to.clone()]);
            }
            Command::Clear(region) => {
                let words: Subbuffer<[u32]> = region.0.clone().reinterpret();
                // SAFETY: the region is kept alive; conflicts have barriers.
                unsafe { builder.fill_buffer(&words, 0) }.map_err(|e| failed("a fill", &e))?;
                recorded._regions.push(region.clone());
            }
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
        builder.pipeline_barrier(&to_host).map_err(|e| failed("a barrier", &e))?;
        builder.end()
    };
    recorded.buffers.push(buffer.map_err(|e| failed("the end", &e))?);
    Ok(recorded)
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
