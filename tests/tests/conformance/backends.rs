//! The backends under test.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use core_tensor::{
    Backend, BackendError, Bindings, BlockFormat, DType, DeviceMemory, Graph, MemoryPlan, Node, Program, Progress,
    Session, Tensor, Weights,
};
use cpu_kernels::matmul::{ActivationKind, PackedMatrix};
use cpu_kernels::simd::Level;
use cpu_kernels::{CpuBackend, CpuOptions};
use gpu_polaris::{DeviceKind, GpuOptions, Validation, VulkanBackend};

/// A backend, and what to expect of it.
pub(crate) struct Candidate {
    pub(crate) backend: Box<dyn Backend>,
    /// Whether it multiplies weights of a format with activations rounded to 8 bits.
    pub(crate) rounds_activations: fn(BlockFormat) -> bool,
    /// Whether it may refuse a node.
    pub(crate) partial: bool,
    /// Whether it may give zero instead of a subnormal number.
    pub(crate) flushes_subnormals: bool,
}

/// What `POLARIS_CONFORMANCE` asks for: `vulkan`, to test that backend alone, or `thorough`, for every case on every backend.
fn conformance() -> Option<String> {
    let wanted = std::env::var("POLARIS_CONFORMANCE").ok()?;
    assert!(["vulkan", "thorough"].contains(&&*wanted), "POLARIS_CONFORMANCE is vulkan or thorough, not {wanted}");
    Some(wanted)
}

/// Whether `POLARIS_CONFORMANCE=vulkan` leaves the Vulkan device alone: the rest of the suite says the same at every width of subgroups.
pub(crate) fn only_vulkan() -> bool {
    conformance().as_deref() == Some("vulkan")
}

/// All candidates for every fourth case that `cases` counts, and those of the processor for the others. A device compiles shaders anew for
/// every size of heads, which takes Mesa's software driver seconds; `POLARIS_CONFORMANCE=thorough` takes the time.
pub(crate) fn sampled(cases: &AtomicUsize) -> impl Iterator<Item = &'static Candidate> {
    let case = cases.fetch_add(1, Ordering::Relaxed);
    let thorough = conformance().as_deref() == Some("thorough") || case.is_multiple_of(4);
    candidates().iter().filter(move |candidate| thorough || !candidate.partial)
}

/// Every backend in every mode: on the CPU each instruction-set level of the machine × 1, 2 and 3 threads × both kinds of activations.
pub(crate) fn candidates() -> &'static [Candidate] {
    static ALL: LazyLock<Vec<Candidate>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for level in Level::available().into_iter().filter(|_| !only_vulkan()) {
            for threads in [1, 2, 3] {
                for activations in [ActivationKind::F32, ActivationKind::Q8] {
                    let options = CpuOptions::default()
                        .with_small_alone(false)
                        .with_level(level)
                        .with_threads(threads)
                        .with_activations(activations);
                    let rounds_activations = match activations {
                        ActivationKind::F32 | ActivationKind::I16 => |_| false,
                        ActivationKind::Q8 => cpu_rounds_activations,
                    };
                    let backend = Box::new(CpuBackend::new(options));
                    all.push(Candidate { backend, rounds_activations, partial: false, flushes_subnormals: false });
                }
            }
        }
        all.push(Candidate {
            backend: Box::new(vulkan()),
            rounds_activations: |_| false,
            partial: true,
            flushes_subnormals: true,
        });
        all
    });
    &ALL
}

/// The candidates that differ in how they schedule, not in how they compute: the best level on 1, 2 and 3 threads.
pub(crate) fn schedulers() -> impl Iterator<Item = &'static Candidate> {
    let per_level = 6;
    let processors = candidates().iter().filter(|candidate| candidate.backend.name() == "cpu");
    processors.clone().skip(processors.count().saturating_sub(per_level)).chain(candidates().last())
}

/// The Vulkan device, with guards around every intermediate result and the validation layer watching. Where there is none, tests fail:
/// continuous integration has Mesa's software driver.
pub(crate) fn vulkan() -> Watched {
    match VulkanBackend::open(&GpuOptions::default().with_validation()) {
        Ok(backend) => {
            let validation = backend.gpu().validation().expect("it was asked for").clone();
            Watched { backend: backend.with_guards(), validation }
        }
        Err(error) => panic!("{error}"),
    }
}

/// The Vulkan device, under the validation layer: a test in which that finds anything fails.
pub(crate) struct Watched {
    pub(crate) backend: VulkanBackend,
    validation: Arc<Validation>,
}

struct WatchedProgram {
    program: Arc<dyn Program>,
    validation: Arc<Validation>,
}

/// Fails when the layer has said anything so far, in this test or in one beside it.
fn assert_silent(validation: &Validation) {
    let messages = validation.messages();
    assert!(messages.is_empty(), "the validation layer says:\n{}", messages.join("\n"));
}

impl Backend for Watched {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn description(&self) -> String {
        self.backend.description()
    }

    fn memory(&self) -> DeviceMemory {
        self.backend.memory()
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        self.backend.supports(graph, node)
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        self.backend.load_weights(graph, progress)
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        let program = self.backend.compile(graph, weights, bounds)?;
        Ok(Arc::new(WatchedProgram { program, validation: self.validation.clone() }))
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        self.backend.new_session(graph, slots, bounds)
    }
}

impl Program for WatchedProgram {
    fn run(&self, session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, BackendError> {
        let outputs = self.program.run(session, inputs);
        assert_silent(&self.validation);
        outputs
    }

    fn plan(&self) -> &MemoryPlan {
        self.program.plan()
    }

    fn to_text(&self) -> String {
        self.program.to_text()
    }
}

/// On a software driver the width of its vectors decides the size of subgroups: kernels have to be right at any.
#[test]
fn subgroups_are_as_wide_as_the_software_drivers_vectors() {
    let vulkan = vulkan();
    let gpu = vulkan.backend.gpu();
    let found = gpu.limits().subgroup_size;
    match std::env::var("LP_NATIVE_VECTOR_WIDTH") {
        Ok(bits) if gpu.kind() == DeviceKind::Software => {
            assert_eq!(found, bits.parse::<u32>().expect("a number of bits") / 32);
        }
        _ => assert!(found.is_power_of_two() && found >= 4, "{found}"),
    }
}

fn cpu_rounds_activations(format: BlockFormat) -> bool {
    PackedMatrix::pack(DType::Block(format), 0, format.block_len(), &[])
        .is_ok_and(|matrix| matrix.accepts(ActivationKind::Q8))
}
