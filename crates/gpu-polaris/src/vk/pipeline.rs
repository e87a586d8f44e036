//! Pipelines, and their cache on disk.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use core_tensor::{BackendError, PartialFile};
use vulkano::device::Device;
use vulkano::device::physical::PhysicalDevice;
use vulkano::pipeline::cache::{PipelineCache, PipelineCacheCreateInfo};
use vulkano::pipeline::compute::ComputePipelineCreateInfo;
use vulkano::pipeline::layout::PipelineDescriptorSetLayoutCreateInfo;
use vulkano::pipeline::{ComputePipeline, PipelineLayout, PipelineShaderStageCreateInfo};
use vulkano::shader::{ShaderModule, ShaderModuleCreateInfo, SpecializationConstant};

use super::device::Gpu;
use super::instance::chain;
use crate::shader;

/// A shader with the values of its specialization constants.
pub(crate) type PipelineKey = (String, Vec<(u32, u32)>);

/// A compiled shader.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(super) pipeline: Arc<ComputePipeline>,
}

impl Gpu {
    /// The pipeline of a committed shader with these specialization constants; compiled if it is the first time.
    ///
    /// # Errors
    /// When there is no such shader, or the driver refuses it.
    pub(crate) fn pipeline(&self, name: &str, constants: &[(u32, u32)]) -> Result<Arc<Pipeline>, BackendError> {
        let key = (name.to_owned(), constants.to_vec());
        if let Some(pipeline) = self.lock_pipelines().get(&key) {
            return Ok(pipeline.clone());
        }
        self.check()?;
        let pipeline = Arc::new(self.compile(name, constants)?);
        self.cache_dirty.store(true, Ordering::Relaxed);
        Ok(self.lock_pipelines().entry(key).or_insert(pipeline).clone())
    }

    fn compile(&self, name: &str, constants: &[(u32, u32)]) -> Result<Pipeline, BackendError> {
        let words = shader::words(name).ok_or_else(|| self.failed(&format!("there is no shader {name:?}")))?;
        let failed = |e: &dyn std::error::Error| self.failed(&format!("shader {name}: {}", chain(e)));
        // SAFETY: the words are those of the crate's own SPIR-V: compiled from GLSL, checked by spirv-val, committed with their hashes.
        let module = unsafe { ShaderModule::new(self.device.clone(), ShaderModuleCreateInfo::new(&words)) };
        let module = module.map_err(|e| failed(&e))?;
        let known = module.specialization_constants();
        let values = constants.iter().filter(|(id, _)| known.contains_key(id));
        let values = values.map(|(id, value)| (*id, SpecializationConstant::U32(*value))).collect();
        let module = module.specialize(values).map_err(|e| failed(&e))?;
        let entry = module.entry_point("main").ok_or_else(|| self.failed(&format!("shader {name} has no main")))?;
        let stage = PipelineShaderStageCreateInfo::new(entry);
        let layout = PipelineDescriptorSetLayoutCreateInfo::from_stages([&stage])
            .into_pipeline_layout_create_info(self.device.clone())
            .map_err(|e| failed(&e.error))?;
        let layout = PipelineLayout::new(self.device.clone(), layout).map_err(|e| failed(&e))?;
        let info = ComputePipelineCreateInfo::stage_layout(stage, layout);
        let pipeline = ComputePipeline::new(self.device.clone(), self.cache.clone(), info).map_err(|e| failed(&e))?;
        Ok(Pipeline { pipeline })
    }
}

/// First bytes of a cache file.
const MAGIC: &[u8; 8] = b"PLRSPC01";

/// The file for one device and driver: another driver's blobs are of no use.
pub(super) fn cache_file(folder: &Path, physical: &PhysicalDevice) -> PathBuf {
    let properties = physical.properties();
    let id = [properties.vendor_id, properties.device_id, properties.driver_version];
    let uuid: String = properties.pipeline_cache_uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{:04x}-{:04x}-{:x}-{uuid}.pipelines", id[0], id[1], id[2]))
}

/// FNV-1a, 64 bits: against files that were cut or went bad, not against malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The blob in a cache file, if it is whole.
fn blob(bytes: &[u8]) -> Option<&[u8]> {
    let (magic, rest) = bytes.split_at_checked(8)?;
    let (sum, data) = rest.split_at_checked(8)?;
    let sum = u64::from_le_bytes(sum.try_into().ok()?);
    (magic == MAGIC && sum == checksum(data)).then_some(data)
}

/// Whether a blob begins as one of this device and driver does (`VkPipelineCacheHeaderVersionOne`): vendor, device and the driver's identity.
fn is_of(data: &[u8], vendor: u32, device: u32, uuid: &[u8; 16]) -> bool {
    let word = |i: usize| data.get(4 * i..4 * i + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    word(0).is_some_and(|len| len >= 32)
        && [word(1), word(2), word(3)] == [Some(1), Some(vendor), Some(device)]
        && data.get(16..32) == Some(uuid)
}

/// The cache of a file, empty if there is none, it is not whole, or another driver wrote it.
pub(super) fn open_cache(device: &Arc<Device>, file: &Path) -> Option<Arc<PipelineCache>> {
    let bytes = std::fs::read(file).unwrap_or_default();
    let properties = device.physical_device().properties();
    let ours = |data: &&[u8]| is_of(data, properties.vendor_id, properties.device_id, &properties.pipeline_cache_uuid);
    let data = blob(&bytes).filter(ours).map(<[u8]>::to_vec).unwrap_or_default();
    if data.is_empty() && !bytes.is_empty() {
        tracing::debug!(file = %file.display(), "the pipeline cache is damaged or foreign and made anew");
    }
    let info = PipelineCacheCreateInfo { initial_data: data, ..PipelineCacheCreateInfo::default() };
    // SAFETY: the data are what a cache of this very device and driver gave, and their checksum is right.
    unsafe { PipelineCache::new(device.clone(), info) }.ok()
}

/// Writes a cache to its file. Others who write at the same time do no harm.
pub(super) fn save_cache(cache: &PipelineCache, file: &Path) -> Result<(), String> {
    let data = cache.get_data().map_err(|e| e.to_string())?;
    let folder = file.parent().ok_or("it has no folder")?;
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&checksum(&data).to_le_bytes());
    bytes.extend_from_slice(&data);
    let written = PartialFile::create(file).and_then(|mut partial| {
        partial.write_all(&bytes)?;
        partial.finish()
    });
    written.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_cache_files_are_used() {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&checksum(b"data").to_le_bytes());
        file.extend_from_slice(b"data");
        assert_eq!(blob(&file), Some(&b"data"[..]));
        for i in 0..file.len() {
            assert_eq!(blob(&file[..i]), None, "cut at {i}");
            let mut wrong = file.clone();
            wrong[i] ^= 1;
            assert_eq!(blob(&wrong), None, "byte {i} changed");
        }
    }

    #[test]
    fn blobs_of_other_devices_and_drivers_are_told_by_their_headers() {
        let mut data = [32u32, 1, 0x1002, 0x67df].map(u32::to_le_bytes).concat();
        data.extend_from_slice(&[7; 16]);
        data.extend_from_slice(b"pipelines");
        assert!(is_of(&data, 0x1002, 0x67df, &[7; 16]));
        assert!(!is_of(&data, 0x1002, 0x67df, &[8; 16]), "another driver");
        assert!(!is_of(&data, 0x1002, 0x67ef, &[7; 16]), "another device");
        assert!(!is_of(&data, 0x10de, 0x67df, &[7; 16]), "another vendor");
        for i in 0..32 {
            assert!(!is_of(&data[..i], 0x1002, 0x67df, &[7; 16]), "cut at {i}");
        }
    }
}
