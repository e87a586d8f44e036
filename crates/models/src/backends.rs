//! The backends that are built in: the one file that names them.

use std::sync::Arc;

use core_tensor::Backend;

use crate::Error;

/// Which device runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best one that is built in and present.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The reference interpreter: plain loops, hundreds of times slower than the processor can. For checking results.
    Reference,
}

impl Device {
    /// Every device with the name that commands use.
    pub const ALL: [(&'static str, Device); 3] =
        [("auto", Device::Auto), ("cpu", Device::Cpu), ("reference", Device::Reference)];
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
}

/// The backends for these options, the preferred one first.
///
/// # Errors
/// [`Error::Device`] when the device is not built in or cannot be used.
pub fn open(options: &BackendOptions) -> Result<Vec<Arc<dyn Backend>>, Error> {
    match options.device {
        Device::Auto | Device::Cpu => cpu(options),
        Device::Reference => Ok(vec![Arc::new(reference(options))]),
    }
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
    let cpu = CpuOptions::default().with_threads(options.threads.unwrap_or(0)).with_activations(activations);
    Ok(vec![Arc::new(CpuBackend::new(cpu))])
}

#[cfg(not(feature = "cpu"))]
fn cpu(options: &BackendOptions) -> Result<Vec<Arc<dyn Backend>>, Error> {
    // Without the CPU backend its place is held by the reference.
    Ok(vec![Arc::new(reference(options))])
}
