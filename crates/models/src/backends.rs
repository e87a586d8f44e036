//! The backends that are built in: the one file that names them.

use std::fmt;
#[cfg(feature = "vulkan")]
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use core_tensor::Backend;

use crate::Error;

/// Which device runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// A graphics device that Vulkan offers if there is one that can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A Vulkan device, by its number in the loader's list; the best one if not given. Software drivers count.
    Vulkan(Option<usize>),
    /// The reference interpreter: plain loops, hundreds of times slower than the processor can. For checking results.
    Reference,
}

impl Device {
    /// Every device with the name that commands use; `vulkan:1` names one of several.
    pub const ALL: [(&'static str, Device); 4] = [
        ("auto", Device::Auto),
        ("cpu", Device::Cpu),
        ("vulkan", Device::Vulkan(None)),
        ("reference", Device::Reference),
    ];
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Vulkan(None) => f.write_str("vulkan"),
            Device::Vulkan(Some(number)) => write!(f, "vulkan:{number}"),
            Device::Reference => f.write_str("reference"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        if let Some((_, device)) = Device::ALL.into_iter().find(|(name, _)| *name == text) {
            return Ok(device);
        }
        let number = text.strip_prefix("vulkan:").and_then(|number| number.parse().ok());
        number.map(|number| Device::Vulkan(Some(number))).ok_or_else(|| {
            "there are auto, cpu, vulkan, vulkan:N (a number of `polaris devices`) and reference".to_owned()
        })
    }
}

impl serde::Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How activations meet quantized weights on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Rounded to blocks of 8-bit integers, so that products are integer arithmetic: the fast path.
    #[default]
    Q8,
    /// Kept as f32: nearer to the model as it was trained, and slower.
    F32,
}

/// What the backends need to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendOptions {
    /// The device.
    pub device: Device,
    /// Threads of the processor; `None` takes all that the process may use.
    pub threads: Option<usize>,
    /// Activations that meet quantized weights.
    pub activations: Activations,
    /// Whether steps are timed, where the backend can.
    pub profile: bool,
}

impl BackendOptions {
    /// The processor, with activations of f32: what weights are measured and trained with.
    pub(crate) fn exact(threads: usize) -> BackendOptions {
        BackendOptions { device: Device::Cpu, threads: Some(threads), activations: Activations::F32, profile: false }
    }
}

/// Backends to run a model on.
#[derive(Clone)]
pub struct Opened {
    /// The preferred one first.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Why the first choice of `auto`, a graphics device, is not among them.
    pub note: Option<String>,
}

/// The backends for these options.
///
/// # Errors
/// [`Error::Device`] when the device is not built in or cannot be used. With [`Device::Auto`], a missing Vulkan is no error.
pub fn open(options: &BackendOptions) -> Result<Opened, Error> {
    let only = |backends| Opened { backends, note: None };
    match options.device {
        Device::Auto => {
            let cpu = cpu(options)?;
            Ok(match graphics() {
                Ok(gpu) => only([vec![gpu], cpu].concat()),
                Err(note) => Opened { backends: cpu, note },
            })
        }
        Device::Cpu => Ok(only(cpu(options)?)),
        Device::Vulkan(number) => Ok(only(vec![vulkan(options.device, number)?])),
        Device::Reference => Ok(only(vec![Arc::new(reference(options))])),
    }
}

/// Where compiled pipelines are kept: the user's cache folder, if there is one.
#[cfg(feature = "vulkan")]
fn pipeline_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base =
        folder("XDG_CACHE_HOME").or_else(|| folder("LOCALAPPDATA")).or_else(|| Some(folder("HOME")?.join(".cache")));
    base.map(|base| base.join("polaris"))
}

/// The best graphics device. Software drivers are none: the processor's own backend is faster.
#[cfg(feature = "vulkan")]
fn graphics() -> Result<Arc<dyn Backend>, Option<String>> {
    use gpu_polaris::{DeviceKind, GpuOptions, VulkanBackend, VulkanError, devices};

    let tell = |error: VulkanError| Some(error.to_string());
    let found = devices().map_err(tell)?;
    let graphics: Vec<_> = found.iter().enumerate().filter(|(_, device)| device.kind != DeviceKind::Software).collect();
    let usable = graphics.iter().filter(|(_, device)| device.refusal.is_none());
    let Some((number, _)) = usable.min_by_key(|(_, device)| device.kind) else {
        let refusals: Vec<String> = graphics
            .iter()
            .map(|(_, device)| format!("{}: {}", device.name, device.refusal.as_deref().unwrap_or_default()))
            .collect();
        let none = "Vulkan lists no graphics device".to_owned();
        return Err(Some(if refusals.is_empty() { none } else { refusals.join("; ") }));
    };
    let options = GpuOptions::default().with_device(Some(*number)).with_pipeline_cache(pipeline_cache());
    let backend = VulkanBackend::open(&options).map_err(tell)?;
    backend.self_test_once().map_err(|error| Some(error.to_string()))?;
    Ok(Arc::new(backend))
}

#[cfg(not(feature = "vulkan"))]
fn graphics() -> Result<Arc<dyn Backend>, Option<String>> {
    Err(None)
}

#[cfg(feature = "vulkan")]
fn vulkan(device: Device, number: Option<usize>) -> Result<Arc<dyn Backend>, Error> {
    use gpu_polaris::{GpuOptions, VulkanBackend};

    let options = GpuOptions::default().with_device(number).with_pipeline_cache(pipeline_cache());
    let opened = VulkanBackend::open(&options);
    let failed = |reason: String| Error::Device { device: device.to_string(), reason };
    let backend = opened.map_err(|e| failed(e.to_string()))?;
    backend.self_test_once().map_err(|e| failed(e.to_string()))?;
    Ok(Arc::new(backend))
}

#[cfg(not(feature = "vulkan"))]
fn vulkan(device: Device, _: Option<usize>) -> Result<Arc<dyn Backend>, Error> {
    Err(Error::Device { device: device.to_string(), reason: "this build is without Vulkan".into() })
}

fn reference(options: &BackendOptions) -> core_tensor::ReferenceBackend {
    core_tensor::ReferenceBackend::new(options.activations == Activations::Q8)
}

#[cfg(feature = "cpu")]
fn cpu(options: &BackendOptions) -> Result<Vec<Arc<dyn Backend>>, Error> {
    use cpu_kernels::matmul::ActivationKind;
    use cpu_kernels::{CpuBackend, CpuOptions};

    let activations = match options.activations {
        Activations::Q8 => ActivationKind::Q8,
        Activations::F32 => ActivationKind::F32,
    };
    let cpu = CpuOptions::default()
        .with_threads(options.threads.unwrap_or(0))
        .with_activations(activations)
        .with_dequantized(activations)
        .with_profile(options.profile);
    Ok(vec![Arc::new(CpuBackend::new(cpu))])
}

#[cfg(not(feature = "cpu"))]
fn cpu(options: &BackendOptions) -> Result<Vec<Arc<dyn Backend>>, Error> {
    // Without the CPU backend its place is held by the reference.
    Ok(vec![Arc::new(reference(options))])
}
