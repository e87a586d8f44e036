//! A loaded model: its weights on a backend, its programs, its sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::{Backend, Bindings, Graph, MemoryEstimate, Program, Progress, Tensor, Weights};
use polaris_optimizer::Report;

use crate::memory::estimate;
use crate::partition::refusals;
use crate::{RuntimeError, Session};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Symbols whose value changes from step to step, each with the upper bounds that programs are compiled for, ascending.
    pub buckets: Vec<(String, Vec<usize>)>,
    /// Values of the symbols that stay as they are.
    pub fixed: Bindings,
    /// Extents that the memory check counts with where they are not the largest buckets.
    pub estimated: Bindings,
    /// Sequences that the memory check counts with.
    pub slots: usize,
    /// Whether the optimizer's passes run; without them the graph is compiled as it is.
    pub optimize: bool,
}

/// Upper bounds of the rows of a step: a single token, and batches of growing size.
pub const ROW_BUCKETS: [usize; 5] = [1, 8, 32, 128, 512];

impl Default for ModelOptions {
    /// The symbol `tokens` bucketed at [`ROW_BUCKETS`]; one slot.
    fn default() -> ModelOptions {
        ModelOptions {
            buckets: vec![("tokens".into(), ROW_BUCKETS.to_vec())],
            fixed: Bindings::new(),
            estimated: Bindings::new(),
            slots: 1,
            optimize: true,
        }
    }
}

/// A model: weights in a backend's layout and a cache of compiled programs that share them.
pub struct Model {
    graph: Arc<Graph>,
    backend: Arc<dyn Backend>,
    weights: Arc<dyn Weights>,
    options: ModelOptions,
    report: MemoryReport,
    passes: Report,
    passed_over: Vec<String>,
    /// The graph with some of its outputs.
    partial: Mutex<BTreeMap<Vec<usize>, Arc<Graph>>>,
    /// By the bounds of the bucketed symbols, in the options' order, and the outputs.
    programs: Mutex<BTreeMap<ProgramKey, Arc<dyn Program>>>,
}

/// Bounds of the bucketed symbols, and numbers of outputs.
type ProgramKey = (Vec<usize>, Vec<usize>);

/// A backend with what a model will take there.
type Choice = (Arc<dyn Backend>, MemoryReport);

/// What a model takes and where, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// What was told before anything was allocated.
    pub estimate: MemoryEstimate,
    /// The backend's name.
    pub backend: String,
    /// The backend's memory.
    pub device: core_tensor::DeviceMemory,
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let MemoryEstimate { weights, states, arena } = self.estimate;
        write!(
            f,
            "{} on {}: weights {}, states {}, arena {}",
            mib(self.estimate.total()),
            self.backend,
            mib(weights),
            mib(states),
            mib(arena)
        )?;
        if self.device.bytes != u64::MAX {
            write!(f, "; {} available", mib(self.device.bytes))?;
        }
        Ok(())
    }
}

impl Model {
    /// Optimizes a graph, chooses its backend, checks that it fits, and loads its weights. `progress` is told bytes done and bytes in all,
    /// and may cancel.
    ///
    /// # Errors
    /// When the graph is wrong, no backend runs all of it, it does not fit, or a weight cannot be loaded.
    pub fn load(
        backends: &[Arc<dyn Backend>],
        graph: Graph,
        options: ModelOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Model, RuntimeError> {
        let (graph, passes) =
            if options.optimize { polaris_optimizer::optimize(graph)? } else { (graph, Report::default()) };
        let mut bounds = options.fixed.clone();
        for (symbol, buckets) in &options.buckets {
            bounds.set(symbol, buckets.last().copied().unwrap_or(1));
        }
        for (symbol, extent) in options.estimated.iter() {
            bounds.set(symbol, extent);
        }
        let estimate = estimate(&graph, options.slots, &bounds)?;
        let ((backend, report), passed_over) = choose(&graph, backends, estimate)?;
        tracing::debug!(graph = graph.name(), %report, %passes, "loading");
        let graph = Arc::new(graph);
        let weights = backend.load_weights(&graph, progress).map_err(|e| failed(&*backend, e))?;
        Ok(Model {
            graph,
            backend,
            weights,
            options,
            report,
            passes,
            passed_over,
            partial: Mutex::default(),
            programs: Mutex::default(),
        })
    }

    /// The graph after the passes.
    #[must_use]
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The backend that runs it.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// What was told about memory before loading.
    #[must_use]
    pub fn memory(&self) -> &MemoryReport {
        &self.report
    }

    /// Why backends that stood before the one that runs it were passed over.
    #[must_use]
    pub fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// What the passes did.
    #[must_use]
    pub fn passes(&self) -> &Report {
        &self.passes
    }

    /// Bytes of the weights in the backend's layout.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.weights.byte_len()
    }

    /// Makes the states of `slots` sequences; `fixed` overrides or completes the options' values (such as `context`).
    ///
    /// # Errors
    /// When a capacity has no value or there is no memory.
    pub fn session(&self, slots: usize, fixed: &Bindings) -> Result<Session, RuntimeError> {
        let mut bounds = self.options.fixed.clone();
        for (symbol, value) in fixed.iter() {
            bounds.set(symbol, value);
        }
        let states = self.backend.new_session(&self.graph, slots, &bounds).map_err(|e| failed(&*self.backend, e))?;
        Ok(Session { states })
    }

    /// Runs one step: inputs and outputs in the graph's order. The program is compiled when its bucket is first met.
    ///
    /// # Errors
    /// When inputs do not fit the graph, the step is larger than the largest bucket, or the backend fails.
    pub fn step(&self, session: &mut Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, RuntimeError> {
        let all: Vec<usize> = (0..self.graph.outputs().len()).collect();
        self.step_for(session, inputs, &all)
    }

    /// The same for some of the outputs, by their numbers; what only others need is not computed.
    ///
    /// # Errors
    /// As [`Model::step`].
    pub fn step_for(
        &self,
        session: &mut Session,
        inputs: &[Tensor],
        outputs: &[usize],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let program = self.program_for(&self.graph.bind_inputs(inputs)?, outputs)?;
        program.run(&mut *session.states, inputs).map_err(|e| failed(&*self.backend, e))
    }

    /// The program for these extents, compiled if it is the first time.
    ///
    /// # Errors
    /// When an extent is larger than its largest bucket, or the backend cannot compile.
    pub fn program(&self, extents: &Bindings) -> Result<Arc<dyn Program>, RuntimeError> {
        let all: Vec<usize> = (0..self.graph.outputs().len()).collect();
        self.program_for(extents, &all)
    }

    fn program_for(&self, extents: &Bindings, outputs: &[usize]) -> Result<Arc<dyn Program>, RuntimeError> {
        let mut bounds = self.options.fixed.clone();
        let mut key = Vec::with_capacity(self.options.buckets.len());
        for (symbol, buckets) in &self.options.buckets {
            let found = extents.get(symbol).unwrap_or(0);
            let Some(bound) = buckets.iter().copied().find(|bound| *bound >= found) else {
                let bound = buckets.last().copied().unwrap_or(0);
                return Err(RuntimeError::Bucket { symbol: symbol.clone(), found, bound });
            };
            bounds.set(symbol, bound);
            key.push(bound);
        }
        // A panic while compiling leaves the cache as it was: a poisoned lock does no harm.
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (key, outputs.to_vec());
        if let Some(program) = programs.get(&key) {
            return Ok(program.clone());
        }
        let graph = self.graph_for(outputs);
        let compiled = self.backend.compile(&graph, &self.weights, &bounds);
        let program = compiled.map_err(|e| failed(&*self.backend, e))?;
        tracing::debug!(graph = self.graph.name(), ?key, arena = program.plan().arena_bytes, "compiled");
        programs.insert(key, program.clone());
        Ok(program)
    }

    /// The graph with some of its outputs, made once.
    fn graph_for(&self, outputs: &[usize]) -> Arc<Graph> {
        if outputs.iter().copied().eq(0..self.graph.outputs().len()) {
            return self.graph.clone();
        }
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        partial.entry(outputs.to_vec()).or_insert_with(|| self.graph.with_outputs(outputs)).clone()
    }

    /// Bounds of the programs that are compiled, in the order of the options' buckets.
    #[must_use]
    pub fn compiled(&self) -> Vec<Vec<usize>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).keys().map(|(bounds, _)| bounds.clone()).collect()
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("graph", &self.graph.name())
            .field("backend", &self.backend.name())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The first backend that supports every node and has room for the model; what it will take there; why others were passed over.
fn choose(
    graph: &Graph,
    backends: &[Arc<dyn Backend>],
    estimate: MemoryEstimate,
) -> Result<(Choice, Vec<String>), RuntimeError> {
    let mut passed_over = Vec::new();
    let mut last = RuntimeError::NoBackend;
    for backend in backends {
        let refused = refusals(graph, &**backend);
        if !refused.is_empty() {
            passed_over.extend(refused);
            last = RuntimeError::Unsupported { graph: graph.name().to_owned(), refusals: passed_over.clone() };
            continue;
        }
        let report = MemoryReport { estimate, backend: backend.name().to_owned(), device: backend.memory() };
        if report.estimate.fits(&report.device) {
            return Ok(((backend.clone(), report), passed_over));
        }
        last = no_memory(graph, &report);
        passed_over.push(last.to_string());
    }
    Err(last)
}

fn failed(backend: &dyn Backend, source: core_tensor::BackendError) -> RuntimeError {
    RuntimeError::Backend { backend: backend.name().to_owned(), source }
}

fn no_memory(graph: &Graph, report: &MemoryReport) -> RuntimeError {
    RuntimeError::NoMemory {
        what: graph.name().to_owned(),
        needed: report.estimate.total(),
        weights: report.estimate.weights,
        states: report.estimate.states,
        arena: report.estimate.arena,
        device: report.device.name.clone(),
        available: report.device.bytes,
    }
}
