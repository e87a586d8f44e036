//! The backends under test.

use std::sync::LazyLock;

use core_tensor::{Backend, BlockFormat, DType};
use cpu_kernels::matmul::{ActivationKind, PackedMatrix};
use cpu_kernels::simd::Level;
use cpu_kernels::{CpuBackend, CpuOptions};
use gpu_polaris::{GpuOptions, VulkanBackend};

/// A backend, and what to expect of it.
pub(crate) struct Candidate {
    pub(crate) backend: Box<dyn Backend>,
    /// Whether it multiplies weights of a format with activations rounded to 8 bits.
    pub(crate) rounds_activations: fn(BlockFormat) -> bool,
    /// Whether it may refuse a node.
    pub(crate) partial: bool,
}

/// Every backend in every mode: on the CPU each instruction-set level of the machine × 1, 2 and 3 threads × both kinds of activations.
pub(crate) fn candidates() -> &'static [Candidate] {
    static ALL: LazyLock<Vec<Candidate>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for level in Level::available() {
            for threads in [1, 2, 3] {
                for activations in [ActivationKind::F32, ActivationKind::Q8] {
                    let options =
                        CpuOptions::default().with_level(level).with_threads(threads).with_activations(activations);
                    let rounds_activations = match activations {
                        ActivationKind::F32 | ActivationKind::I16 => |_| false,
                        ActivationKind::Q8 => cpu_rounds_activations,
                    };
                    let backend = Box::new(CpuBackend::new(options));
                    all.push(Candidate { backend, rounds_activations, partial: false });
                }
            }
        }
        all.push(Candidate { backend: Box::new(vulkan()), rounds_activations: |_| false, partial: true });
        all
    });
    &ALL
}

/// The candidates that differ in how they schedule, not in how they compute: the best level on 1, 2 and 3 threads.
pub(crate) fn schedulers() -> impl Iterator<Item = &'static Candidate> {
    let per_level = 6;
    let processors = candidates().iter().filter(|candidate| candidate.backend.name() == "cpu");
    processors.clone().skip(processors.count() - per_level).chain(candidates().last())
}

/// The Vulkan device, with guards around every intermediate result. Where there is none, tests fail: continuous integration has Mesa's software
/// driver.
pub(crate) fn vulkan() -> VulkanBackend {
    match VulkanBackend::open(&GpuOptions::default()) {
        Ok(backend) => backend.with_guards(),
        Err(error) => panic!("{error}"),
    }
}

fn cpu_rounds_activations(format: BlockFormat) -> bool {
    PackedMatrix::pack(DType::Block(format), 0, format.block_len(), &[])
        .is_ok_and(|matrix| matrix.accepts(ActivationKind::Q8))
}
