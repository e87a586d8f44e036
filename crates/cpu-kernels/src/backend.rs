//! The backend.

use std::sync::Arc;

use core_tensor::{
    Backend, BackendError, Bindings, DeviceMemory, Graph, HostStates, Node, Program, Progress, Session, Weights,
};

use crate::compile::{self, CompileOptions};
use crate::matmul::ActivationKind;
use crate::program::CpuSession;
use crate::simd::Level;
use crate::threads::ThreadPool;
use crate::weights::CpuWeights;

/// How the CPU backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuOptions {
    /// Threads; 0 for as many as the machine has cores.
    pub threads: usize,
    /// Instruction-set level; the best that the machine has if not given.
    pub level: Option<Level>,
    /// The shortest form that activations may be rounded to; each product takes the fastest form it has within that. `Q8`:
    /// 8 bits with quantized weights, 16 with 16-bit floats. `I16`: the latter only. `F32`: nothing is rounded.
    pub activations: ActivationKind,
    /// The same for weights of 8 bits that the graph itself dequantizes (quantized ONNX models): `F32` unless asked for otherwise, since that is
    /// what such a graph says. `Q8` multiplies them with activations of 8 bits.
    pub dequantized: ActivationKind,
    /// Whether programs with very little work run on one thread, which is done before others have woken.
    pub small_alone: bool,
    /// Times every step of every run; [`Program::to_text`] then shows the sums.
    pub profile: bool,
}

impl Default for CpuOptions {
    fn default() -> CpuOptions {
        CpuOptions {
            threads: 0,
            level: None,
            activations: ActivationKind::Q8,
            dequantized: ActivationKind::F32,
            small_alone: true,
            profile: false,
        }
    }
}

impl CpuOptions {
    /// These options with a number of threads.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> CpuOptions {
        self.threads = threads;
        self
    }

    /// These options with an instruction-set level.
    #[must_use]
    pub fn with_level(mut self, level: Level) -> CpuOptions {
        self.level = Some(level);
        self
    }

    /// These options with small programs on one thread, or on all.
    #[must_use]
    pub fn with_small_alone(mut self, small_alone: bool) -> CpuOptions {
        self.small_alone = small_alone;
        self
    }

    /// These options with steps timed or not.
    #[must_use]
    pub fn with_profile(mut self, profile: bool) -> CpuOptions {
        self.profile = profile;
        self
    }

    /// These options with a kind of activations.
    #[must_use]
    pub fn with_activations(mut self, activations: ActivationKind) -> CpuOptions {
        self.activations = activations;
        self
    }

    /// These options with a kind of activations for weights that the graph itself dequantizes.
    #[must_use]
    pub fn with_dequantized(mut self, dequantized: ActivationKind) -> CpuOptions {
        self.dequantized = dequantized;
        self
    }
}

/// The CPU as a backend.
pub struct CpuBackend {
    pool: Arc<ThreadPool>,
    level: Level,
    activations: ActivationKind,
    dequantized: ActivationKind,
    small_alone: bool,
    profile: bool,
}

impl CpuBackend {
    /// A backend with its own thread pool.
    #[must_use]
    pub fn new(options: CpuOptions) -> CpuBackend {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if options.threads == 0 { cores } else { options.threads };
        CpuBackend {
            pool: Arc::new(ThreadPool::new(threads)),
            level: options.level.unwrap_or_else(Level::best),
            activations: options.activations,
            dequantized: options.dequantized,
            small_alone: options.small_alone,
            profile: options.profile,
        }
    }

    /// Threads that it computes with.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Its instruction-set level.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn description(&self) -> String {
        let activations = match self.activations {
            ActivationKind::Q8 => "8-bit",
            ActivationKind::I16 => "16-bit",
            ActivationKind::F32 => "f32",
        };
        format!("CPU, {} threads, {}, {activations} activations", self.threads(), self.level)
    }

    fn memory(&self) -> DeviceMemory {
        let bytes = crate::system::memory_bytes();
        DeviceMemory { name: self.description(), bytes, max_allocation: bytes }
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), String> {
        compile::supports(graph, node)
    }

    fn load_weights(&self, graph: &Arc<Graph>, progress: &mut Progress<'_>) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(CpuWeights::load(graph, &self.pool, progress)?))
    }

    fn compile(
        &self,
        graph: &Arc<Graph>,
        weights: &Arc<dyn Weights>,
        bounds: &Bindings,
    ) -> Result<Arc<dyn Program>, BackendError> {
        let options = CompileOptions {
            pool: self.pool.clone(),
            level: self.level,
            activations: self.activations,
            dequantized: self.dequantized,
            small_alone: self.small_alone,
            profile: self.profile,
        };
        Ok(Arc::new(compile::compile(graph, weights, bounds, &options)?))
    }

    fn new_session(&self, graph: &Graph, slots: usize, bounds: &Bindings) -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(CpuSession::new(HostStates::new(graph, slots, bounds)?)))
    }
}
