//! The compiler of the card without the card: RADV's null device, in a process of its own.
//!
//! The device has no memory and no queue that works: it compiles pipelines, and nothing else. It crashes when it is taken down,
//! so the process ends without doing that. Parent and child speak JSON, one line for each pipeline.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use ash::{Device, Entry, Instance, khr, vk};
use serde_json::{Value, json};

use super::rows::Row;

/// The argument that makes this program the child.
pub(super) const CHILD: &str = "--null-device";

/// The card that is compiled for.
const FAMILY: &str = "polaris10";

/// AMD's number among the vendors.
const AMD: u32 = 0x1002;

/// The bytes of push constants that every device has.
const PUSH_CONSTANTS: u32 = 128;

/// What the driver says of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compiled {
    /// Its statistics, by the driver's names.
    pub(super) statistics: BTreeMap<String, f64>,
    /// The machine code.
    pub(super) assembly: String,
}

/// What the driver's process answered.
#[derive(Debug)]
pub(super) struct Answers {
    /// The driver, with its version.
    pub(super) driver: String,
    /// For each row, in order.
    pub(super) pipelines: Vec<Compiled>,
}

/// Compiles every row in a child process.
pub(super) fn compile(rows: &[Row], spirv: &Path) -> Result<Answers, String> {
    let program = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let icd = icd()?;
    let mut command = Command::new(program);
    command.args(["gcn4", CHILD]).env("RADV_FORCE_FAMILY", FAMILY);
    // Older loaders read the one, newer the other.
    command.env("VK_ICD_FILENAMES", &icd).env("VK_DRIVER_FILES", &icd);
    command.env("MESA_SHADER_CACHE_DISABLE", "true").env("MESA_GLSL_CACHE_DISABLE", "true");
    // What would change the code, or put a layer between.
    for name in ["RADV_DEBUG", "RADV_PERFTEST", "ACO_DEBUG", "VK_INSTANCE_LAYERS", "VK_LOADER_LAYERS_ENABLE"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot start the null device's process: {error}"))?;

    let jobs: String = rows.iter().map(|row| job(row, spirv)).collect();
    // A child that ended early is reported below, by what it answered.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(jobs.as_bytes());
    }
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            lines.push(line.map_err(|error| format!("cannot read the null device's answers: {error}"))?);
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let answers = read_answers(rows, &lines)?;
    match answers {
        Some(answers) => Ok(answers),
        None => {
            let done = lines.len().saturating_sub(1);
            let at = rows.get(done).map_or("the end", |row| &row.name);
            Err(format!("the null device's process ended ({status}) at {at}, after {done} of {} pipelines", rows.len()))
        }
    }
}

fn job(row: &Row, spirv: &Path) -> String {
    let file = spirv.join(format!("{}.spv", row.variant));
    let job = json!({"name": row.name, "file": file, "constants": row.constants});
    format!("{job}\n")
}

/// The answers, or nothing if some are missing.
fn read_answers(rows: &[Row], lines: &[String]) -> Result<Option<Answers>, String> {
    let mut driver = None;
    let mut pipelines = Vec::with_capacity(rows.len());
    for line in lines {
        let line: Value =
            serde_json::from_str(line).map_err(|error| format!("the null device answered {line}: {error}"))?;
        if let Some(error) = line["error"].as_str() {
            return Err(error.to_owned());
        }
        if let Some(name) = line["driver"].as_str() {
            driver = Some(name.to_owned());
        } else {
            let statistics = line["statistics"].as_object().into_iter().flatten();
            let statistics = statistics.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
            let assembly = line["assembly"].as_str().unwrap_or_default().to_owned();
            pipelines.push(Compiled { statistics, assembly });
        }
    }
    let complete = pipelines.len() == rows.len();
    Ok(driver.filter(|_| complete).map(|driver| Answers { driver, pipelines }))
}

/// The description of AMD's driver for this machine's loader.
fn icd() -> Result<PathBuf, String> {
    crate::vulkan::driver("radeon_icd").ok_or_else(|| {
        "Mesa's Vulkan driver for AMD is missing: no radeon_icd*.json in any vulkan/icd.d\n\
         install the package mesa-vulkan-drivers (Debian, Ubuntu: sudo apt-get install -y mesa-vulkan-drivers; \
         Fedora: sudo dnf install -y mesa-vulkan-drivers; Arch: sudo pacman -S vulkan-radeon); no card is needed"
            .to_owned()
    })
}

/// The child: reads jobs, compiles, answers, and ends the process.
pub(super) fn child() -> ! {
    let mut out = io::stdout().lock();
    let failed = serve(&mut out).err();
    if let Some(error) = &failed {
        let _ = writeln!(out, "{}", json!({"error": error}));
    }
    let _ = out.flush();
    // Without taking the device down, which the null device does not survive.
    process::exit(i32::from(failed.is_some()))
}

fn serve(out: &mut impl Write) -> Result<(), String> {
    let unwritable = |error: io::Error| format!("cannot answer: {error}");
    let mut jobs = String::new();
    io::stdin().read_to_string(&mut jobs).map_err(|error| format!("cannot read the jobs: {error}"))?;
    let compiler = NullDevice::open()?;
    writeln!(out, "{}", json!({"driver": compiler.driver})).map_err(unwritable)?;
    for line in jobs.lines() {
        let job: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
        let name = job["name"].as_str().unwrap_or_default();
        let failed = |error: String| format!("{name}: {error}");
        let file = job["file"].as_str().unwrap_or_default();
        let bytes = fs::read(file).map_err(|error| failed(format!("{file}: {error}")))?;
        let number = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
        let constants = job["constants"].as_array().into_iter().flatten();
        let constants: Vec<(u32, u32)> =
            constants.filter_map(|pair| Some((number(&pair[0])?, number(&pair[1])?))).collect();
        let compiled = compiler.compile(&bytes, &constants).map_err(failed)?;
        let answer = json!({"statistics": compiled.statistics, "assembly": compiled.assembly});
        writeln!(out, "{answer}").map_err(unwritable)?;
        out.flush().map_err(unwritable)?;
    }
    Ok(())
}

/// The opened device. It is never destroyed.
struct NullDevice {
    _entry: Entry,
    _instance: Instance,
    device: Device,
    executables: khr::pipeline_executable_properties::Device,
    driver: String,
}

impl NullDevice {
    fn open() -> Result<Self, String> {
        let failed = |what: &'static str| move |error: vk::Result| format!("{what}: {error}");
        // SAFETY: the loader is a library made to be loaded; nothing of it is used after the process ends.
        let entry = unsafe { Entry::load() }.map_err(|error| {
            format!("there is no Vulkan loader (Debian: sudo apt-get install -y libvulkan1): {error}")
        })?;
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let create = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: the structures are complete and outlive the call.
        let instance = unsafe { entry.create_instance(&create, None) }.map_err(failed("vkCreateInstance"))?;
        // SAFETY: the instance is alive.
        let devices = unsafe { instance.enumerate_physical_devices() }.map_err(failed("vkEnumeratePhysicalDevices"))?;
        let mut seen = Vec::new();
        for physical in devices {
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            // SAFETY: the device is one of the instance's, and the chain consists of structures of Vulkan 1.2.
            unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
            let properties = properties.properties;
            let name = text(properties.device_name_as_c_str());
            if properties.vendor_id == AMD && name.to_lowercase().contains(FAMILY) {
                let driver = text(driver.driver_info_as_c_str());
                let (device, executables) = open_device(&instance, physical)?;
                return Ok(Self { _entry: entry, _instance: instance, device, executables, driver });
            }
            seen.push(name);
        }
        Err(format!("the driver has no null device of {FAMILY}, but {seen:?}"))
    }

    /// Compiles one pipeline and asks what came out.
    fn compile(&self, bytes: &[u8], constants: &[(u32, u32)]) -> Result<Compiled, String> {
        let failed = |what: &'static str| move |error: vk::Result| format!("{what}: {error}");
        let device = &self.device;
        let words = words(bytes)?;
        let interface = Interface::of(&words)?;
        if let Some((id, _)) = constants.iter().find(|(id, _)| !interface.constants.contains(id)) {
            return Err(format!("there is no specialization constant {id}"));
        }
        let entries: Vec<vk::SpecializationMapEntry> = constants
            .iter()
            .zip(0u32..)
            .map(|((id, _), index)| vk::SpecializationMapEntry::default().constant_id(*id).offset(4 * index).size(4))
            .collect();
        let data: Vec<u8> = constants.iter().flat_map(|(_, value)| value.to_ne_bytes()).collect();
        let specialization = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let bindings: Vec<vk::DescriptorSetLayoutBinding<'_>> = interface
            .bindings
            .iter()
            .map(|&binding| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(binding)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        let module = vk::ShaderModuleCreateInfo::default().code(&words);
        let push = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(PUSH_CONSTANTS)];
        // SAFETY: every structure outlives its call; the SPIR-V passed spirv-val when it was made; the layout has every
        // binding that the module names; what is created is destroyed once, and is not used after.
        unsafe {
            let set = device.create_descriptor_set_layout(&set, None).map_err(failed("vkCreateDescriptorSetLayout"))?;
            let sets = [set];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&push);
            let layout = device.create_pipeline_layout(&layout, None).map_err(failed("vkCreatePipelineLayout"))?;
            let module = device.create_shader_module(&module, None).map_err(failed("vkCreateShaderModule"))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main")
                .specialization_info(&specialization);
            let create = vk::ComputePipelineCreateInfo::default()
                .flags(
                    vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                        | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
                )
                .stage(stage)
                .layout(layout);
            let pipelines = device
                .create_compute_pipelines(vk::PipelineCache::null(), &[create], None)
                .map_err(|(_, error)| format!("vkCreateComputePipelines: {error}"))?;
            let compiled = pipelines.first().ok_or("no pipeline came back".to_owned()).and_then(|&pipeline| {
                let compiled = self.describe(pipeline).map_err(failed("the pipeline's statistics"));
                device.destroy_pipeline(pipeline, None);
                compiled
            });
            device.destroy_shader_module(module, None);
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(set, None);
            compiled
        }
    }

    /// What the driver tells of a pipeline.
    ///
    /// # Safety
    ///
    /// The pipeline must be alive, made by this device, and have been created with both capture flags.
    unsafe fn describe(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: as this function's own contract says; a compute pipeline has one executable, number 0.
        let (statistics, assembly) =
            unsafe { (self.executables.get_pipeline_executable_statistics(&info)?, self.assembly(&info)?) };
        let statistics = statistics.iter().map(|statistic| {
            // SAFETY: the format says which member of the union was written.
            let value = unsafe {
                match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64 as f64,
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64 as f64,
                    vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => statistic.value.f64,
                    _ => f64::from(statistic.value.b32),
                }
            };
            (text(statistic.name_as_c_str()), value)
        });
        Ok(Compiled { statistics: statistics.collect(), assembly })
    }

    /// The text that the driver calls "Assembly".
    ///
    /// # Safety
    ///
    /// As for [`NullDevice::describe`].
    unsafe fn assembly(&self, info: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String, vk::Result> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.executables.device();
        let mut count = 0;
        // SAFETY: without a place for them, only the number of the representations is written.
        unsafe { get(device, info, &mut count, std::ptr::null_mut()) }.result()?;
        let mut all = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
        // SAFETY: there is room for as many as the driver counted; without a place for the texts, only their sizes are written.
        unsafe { get(device, info, &mut count, all.as_mut_ptr()) }.result()?;
        let mut texts: Vec<Vec<u8>> = all.iter().map(|one| vec![0; one.data_size]).collect();
        for (one, text) in all.iter_mut().zip(&mut texts) {
            one.p_data = text.as_mut_ptr().cast();
        }
        // SAFETY: as above, and each text has a place of the size that the driver told.
        unsafe { get(device, info, &mut count, all.as_mut_ptr()) }.result()?;
        let assembly = all.iter().zip(&texts).find(|(one, _)| text(one.name_as_c_str()) == "Assembly");
        let bytes = assembly.map(|(_, text)| text.split(|byte| *byte == 0).next().unwrap_or_default());
        Ok(String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned())
    }
}

/// Opens a device with all features but those that add checks to the code.
fn open_device(
    instance: &Instance,
    physical: vk::PhysicalDevice,
) -> Result<(Device, khr::pipeline_executable_properties::Device), String> {
    let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
    let mut vulkan11 = vk::PhysicalDeviceVulkan11Features::default();
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features = vk::PhysicalDeviceFeatures2::default()
        .push_next(&mut executable)
        .push_next(&mut vulkan11)
        .push_next(&mut vulkan12);
    // SAFETY: the device is one of the instance's; the driver knows the structures of Vulkan 1.2 and skips those it does not.
    unsafe { instance.get_physical_device_features2(physical, &mut features) };
    features.features.robust_buffer_access = vk::FALSE;
    let priorities = [1.0];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
    let extensions = [khr::pipeline_executable_properties::NAME.as_ptr()];
    let create = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&extensions)
        .push_next(&mut features);
    // SAFETY: the structures outlive the call, and only features that the device has are asked for.
    let device = unsafe { instance.create_device(physical, &create, None) }
        .map_err(|error| format!("vkCreateDevice: {error}"))?;
    let executables = khr::pipeline_executable_properties::Device::new(instance, &device);
    Ok((device, executables))
}

fn text(name: Result<&CStr, std::ffi::FromBytesUntilNulError>) -> String {
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A SPIR-V file's words.
fn words(bytes: &[u8]) -> Result<Vec<u32>, String> {
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let magic = words.first() == Some(&0x0723_0203);
    if magic && bytes.len().is_multiple_of(4) { Ok(words) } else { Err("it is no SPIR-V file".into()) }
}

/// What a module expects from outside.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interface {
    /// The bindings of descriptor set 0.
    bindings: Vec<u32>,
    /// The identities of the specialization constants.
    constants: Vec<u32>,
}

impl Interface {
    /// Reads the decorations of a module.
    fn of(words: &[u32]) -> Result<Self, String> {
        const OP_DECORATE: u32 = 71;
        const SPEC_ID: u32 = 1;
        const BINDING: u32 = 33;
        let mut interface = Self::default();
        let mut rest = words.get(5..).ok_or("the module is cut off")?;
        while let Some(first) = rest.first() {
            let length = (first >> 16) as usize;
            let instruction = rest.get(..length).filter(|instruction| !instruction.is_empty());
            let instruction = instruction.ok_or("the module is cut off")?;
            match *instruction {
                [_, _, SPEC_ID, id] if first & 0xffff == OP_DECORATE => interface.constants.push(id),
                [_, _, BINDING, binding] if first & 0xffff == OP_DECORATE => interface.bindings.push(binding),
                _ => {}
            }
            rest = &rest[length..];
        }
        // One buffer may be declared with several types.
        interface.bindings.sort_unstable();
        interface.bindings.dedup();
        Ok(interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_and_specialization_constants_are_read_from_the_decorations() {
        let decorate = |kind: u32, value: u32| [4 << 16 | 71, 9, kind, value];
        let mut module = vec![0x0723_0203, 0x0001_0500, 0, 10, 0];
        for (kind, value) in [(33, 2), (34, 0), (33, 0), (33, 2), (1, 7)] {
            module.extend(decorate(kind, value));
        }
        let expected = Interface { bindings: vec![0, 2], constants: vec![7] };
        assert_eq!(Interface::of(&module), Ok(expected));
        module.push(2 << 16);
        assert!(Interface::of(&module).is_err());
        assert!(words(b"not SPIR-V").is_err());
    }

    #[test]
    fn an_answer_that_is_missing_is_noticed() {
        let row = Row { name: "a".into(), variant: "a".into(), constants: Vec::new(), unit: None, goals: Vec::new() };
        let driver = "{\"driver\": \"Mesa 1\"}".to_owned();
        let answer = "{\"statistics\": {\"VGPRs\": 8}, \"assembly\": \"BB0:\"}".to_owned();
        let read = |lines: &[String]| read_answers(std::slice::from_ref(&row), lines);
        assert!(read(std::slice::from_ref(&driver)).unwrap().is_none());
        let answers = read(&[driver, answer]).unwrap().unwrap();
        assert_eq!((&*answers.driver, answers.pipelines[0].statistics["VGPRs"]), ("Mesa 1", 8.0));
        assert_eq!(read(&["{\"error\": \"x\"}".to_owned()]).unwrap_err(), "x");
    }
}
