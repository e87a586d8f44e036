//! Weights in the backend's layout.

use std::any::Any;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::op::Op;
use core_tensor::{BackendError, DType, Graph, Progress, Tensor, ValueId, Weight, WeightError, Weights};

use crate::matmul::{GROUP_ROWS, PackedMatrix, PackedMatrixBuilder};
use crate::threads::ThreadPool;

/// A model's weights: matrices packed for the kernels, everything else as f32 or as stored.
pub(crate) struct CpuWeights {
    graph: Arc<Graph>,
    pub(crate) matrices: HashMap<ValueId, PackedMatrix>,
    /// Weights that kernels read element by element.
    pub(crate) plain: HashMap<ValueId, Tensor>,
    /// Tables that rows are gathered from, as stored.
    pub(crate) tables: HashMap<ValueId, Arc<Weight>>,
    bytes: u64,
}

impl Weights for CpuWeights {
    fn byte_len(&self) -> u64 {
        self.bytes
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How a graph uses a weight.
#[derive(Clone, Copy, Default)]
struct Uses {
    matrix: bool,
    transposed_matrix: bool,
    table: bool,
    plain: bool,
}

fn uses(graph: &Graph) -> HashMap<ValueId, Uses> {
    let mut all: HashMap<ValueId, Uses> = HashMap::new();
    for node in graph.nodes() {
        for (i, input) in node.inputs.iter().enumerate() {
            let Some(id) = input.filter(|id| graph.weight_of(*id).is_some()) else { continue };
            let uses = all.entry(id).or_default();
            match (&node.op, i) {
                (Op::MatMul(op), 1) if op.transpose_b => uses.matrix = true,
                (Op::MatMul(_), 1) => uses.transposed_matrix = true,
                (Op::Gather(_), 0) => uses.table = true,
                _ => uses.plain = true,
            }
        }
    }
    for output in graph.outputs() {
        if graph.weight_of(*output).is_some() {
            all.entry(*output).or_default().plain = true;
        }
    }
    all
}

/// Rows that one thread packs at a time: enough to amortize the hand-out, few enough that the source pages can be dropped behind it.
const PACK_BYTES: usize = 1 << 20;

/// Groups of one matrix, to be packed by whichever thread is free.
struct Job<'a> {
    name: &'a str,
    weight: &'a Weight,
    builder: &'a PackedMatrixBuilder,
    groups: std::ops::Range<usize>,
}

impl CpuWeights {
    pub(crate) fn is_of(&self, graph: &Arc<Graph>) -> bool {
        Arc::ptr_eq(&self.graph, graph)
    }

    pub(crate) fn load(
        graph: &Arc<Graph>,
        pool: &ThreadPool,
        progress: &mut Progress<'_>,
    ) -> Result<CpuWeights, BackendError> {
        let mut loaded = CpuWeights {
            graph: graph.clone(),
            matrices: HashMap::new(),
            plain: HashMap::new(),
            tables: HashMap::new(),
            bytes: 0,
        };
        let name = |id: ValueId| graph.value(id).name.clone();
        let uses = uses(graph);
        let mut packing: Vec<(ValueId, Arc<Weight>, PackedMatrixBuilder)> = Vec::new();
        for (id, weight) in graph.weights() {
            let Some(uses) = uses.get(&id) else { continue };
            if uses.plain {
                let tensor = plain(weight).map_err(|source| BackendError::Weight { name: name(id), source })?;
                loaded.bytes += tensor.bytes().len() as u64;
                loaded.plain.insert(id, tensor);
            }
            if uses.table {
                loaded.tables.insert(id, weight.clone());
            }
            let matrix = match (uses.matrix, uses.transposed_matrix) {
                (false, false) => continue,
                (true, false) => weight.clone(),
                (false, true) => {
                    transposed(weight).map_err(|source| BackendError::Weight { name: name(id), source })?
                }
                (true, true) => return Err(unsupported(graph, id, "it is used transposed and as it is")),
            };
            let builder = PackedMatrixBuilder::new(matrix.dtype(), matrix.row_count(), matrix.row_len())
                .map_err(|e| unsupported(graph, id, &e.to_string()))?;
            packing.push((id, matrix, builder));
        }
        pack(graph, &packing, pool, progress)?;
        for (id, _, builder) in packing {
            let matrix = builder.finish().map_err(|e| unsupported(graph, id, &e.to_string()))?;
            loaded.bytes += matrix.bytes() as u64;
            loaded.matrices.insert(id, matrix);
        }
        Ok(loaded)
    }
}

fn unsupported(graph: &Graph, id: ValueId, reason: &str) -> BackendError {
    BackendError::Unsupported { node: graph.value(id).name.clone(), op: "weight", reason: reason.to_owned() }
}

/// The elements as kernels read them: f32, or integers as they are.
fn plain(weight: &Weight) -> Result<Tensor, WeightError> {
    let tensor = weight.to_tensor()?;
    let keep = matches!(tensor.dtype(), DType::I32 | DType::F16 | DType::BF16);
    if keep || tensor.dtype() == DType::F32 {
        // Kernels read it in place, so it must lie aligned: a copy does.
        return Ok(Tensor::from_bytes(tensor.dtype(), tensor.shape(), tensor.bytes())?);
    }
    Ok(Tensor::from_slice(tensor.shape(), &tensor.to_f32()?)?)
}

/// `[k, n]` floats as `[n, k]` f32.
fn transposed(weight: &Weight) -> Result<Arc<Weight>, WeightError> {
    let (k, n) = (weight.row_count(), weight.row_len());
    let source = weight.rows_f32(0..k)?;
    let values: Vec<f32> = (0..n * k).map(|i| source[i % k * n + i / k]).collect();
    Ok(Weight::stored(Tensor::from_slice(&[n, k], &values)?))
}

/// Packs all matrices on all threads, streaming: each thread takes some rows, packs them and lets their source pages go.
fn pack(
    graph: &Graph,
    matrices: &[(ValueId, Arc<Weight>, PackedMatrixBuilder)],
    pool: &ThreadPool,
    progress: &mut Progress<'_>,
) -> Result<(), BackendError> {
    let mut jobs = Vec::new();
    let mut total = 0;
    for (id, weight, builder) in matrices {
        let group_bytes = (weight.row_bytes() * GROUP_ROWS).max(1);
        let step = (PACK_BYTES / group_bytes).max(1);
        for start in (0..builder.groups()).step_by(step) {
            let groups = start..(start + step).min(builder.groups());
            jobs.push(Job { name: &graph.value(*id).name, weight, builder, groups });
        }
        total += weight.byte_len() as u64;
    }
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<BackendError>> = Mutex::new(None);
    let progress = Mutex::new(progress);
    let cancelled = AtomicBool::new(false);
    pool.run(&|worker| {
        while !stop.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let rows = job.groups.start * GROUP_ROWS..(job.groups.end * GROUP_ROWS).min(job.weight.row_count());
            let packed = job.weight.rows(rows.clone()).map_err(|source| BackendError::Weight {
                name: job.name.to_owned(),
                source,
            });
            let packed = packed.and_then(|bytes| {
                job.builder.pack_groups(job.groups.clone(), &bytes).map_err(|e| BackendError::Unsupported {
                    node: job.name.to_owned(),
                    op: "weight",
                    reason: e.to_string(),
                })
            });
            if let Err(error) = packed {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                stop.store(true, Ordering::Relaxed);
            }
            job.weight.release_rows(rows.clone());
            let bytes = (rows.len() * job.weight.row_bytes()) as u64;
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            // Only the caller's thread reports: the callback need not be Send in spirit, and prints from one place.
            if worker.index == 0 {
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                if (*progress)(done, total) == ControlFlow::Break(()) {
                    cancelled.store(true, Ordering::Relaxed);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    });
    if cancelled.load(Ordering::Relaxed) {
        return Err(BackendError::Cancelled);
    }
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
