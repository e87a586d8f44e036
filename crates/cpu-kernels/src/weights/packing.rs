//! Matrices into the kernels' layout, streaming.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use core_tensor::{BackendError, DType, Graph, Progress, Tensor, Weight, WeightError};

use super::MatrixId;
use crate::matmul::{GROUP_ROWS, PackedMatrixBuilder};
use crate::threads::ThreadPool;

/// Rows that one thread packs at a time: enough to amortize the hand-out, few enough that the source pages can be dropped behind it.
const PACK_BYTES: usize = 1 << 20;

/// Where the rows of a matrix, one for each output, come from.
pub(super) struct Source {
    weight: Arc<Weight>,
    columns: Option<Columns>,
}

/// A weight `[k, n]` of f32, whose columns are the rows.
struct Columns {
    /// All of it, while threads pack from it. What is stored in a file is not copied.
    whole: Mutex<Option<Tensor>>,
    /// Outputs that are still to be packed.
    left: AtomicUsize,
}

impl Source {
    /// From a weight whose rows they are, or, `transposed`, from one of f32 whose columns they are.
    pub(super) fn new(weight: Arc<Weight>, transposed: bool) -> Source {
        let left = AtomicUsize::new(weight.row_len());
        let columns = transposed.then_some(Columns { whole: Mutex::new(None), left });
        Source { weight, columns }
    }

    /// The dtype, the number of rows, and their length.
    pub(super) fn shape(&self) -> (DType, usize, usize) {
        let (rows, len) = (self.weight.row_count(), self.weight.row_len());
        match self.columns {
            None => (self.weight.dtype(), rows, len),
            Some(_) => (DType::F32, len, rows),
        }
    }

    fn row_bytes(&self) -> usize {
        match self.columns {
            None => self.weight.row_bytes(),
            Some(_) => self.weight.row_count() * 4,
        }
    }

    fn rows(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, WeightError> {
        let Some(columns) = &self.columns else { return self.weight.rows(range) };
        let whole = {
            let mut whole = columns.whole.lock().unwrap_or_else(PoisonError::into_inner);
            match &*whole {
                Some(whole) => whole.clone(),
                None => whole.insert(self.weight.to_tensor()?).clone(),
            }
        };
        Ok(Cow::Owned(transposed(whole.bytes(), self.weight.row_len(), range)))
    }

    /// Lets the pages go that some rows were read from.
    fn release(&self, range: Range<usize>) {
        let Some(columns) = &self.columns else { return self.weight.release_rows(range) };
        // A row is strewn over all pages.
        if columns.left.fetch_sub(range.len(), Ordering::AcqRel) == range.len() {
            *columns.whole.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.weight.release_rows(0..self.weight.row_count());
        }
    }
}

/// Some columns, as rows, of a matrix of four-byte elements with `n` columns.
fn transposed(bytes: &[u8], n: usize, columns: Range<usize>) -> Vec<u8> {
    /// Rows and columns of a square that stays in the cache.
    const SIDE: usize = 16;
    let k = bytes.len() / 4 / n.max(1);
    let mut out = vec![0; columns.len() * k * 4];
    for first in (0..k).step_by(SIDE) {
        for start in columns.clone().step_by(SIDE) {
            for i in first..(first + SIDE).min(k) {
                for column in start..(start + SIDE).min(columns.end) {
                    let (from, to) = ((i * n + column) * 4, ((column - columns.start) * k + i) * 4);
                    out[to..to + 4].copy_from_slice(&bytes[from..from + 4]);
                }
            }
        }
    }
    out
}

/// Groups of one matrix, to be packed by whichever thread is free.
struct Job<'a> {
    name: &'a str,
    source: &'a Source,
    builder: &'a PackedMatrixBuilder,
    groups: Range<usize>,
}

/// Packs all matrices on all threads, streaming: each thread takes some rows, packs them and lets their source pages go.
pub(super) fn pack(
    graph: &Graph,
    matrices: &[(MatrixId, Source, PackedMatrixBuilder)],
    pool: &ThreadPool,
    progress: &mut Progress<'_>,
) -> Result<(), BackendError> {
    let mut jobs = Vec::new();
    let mut total = 0;
    for (id, source, builder) in matrices {
        let group_bytes = (source.row_bytes() * GROUP_ROWS).max(1);
        let step = (PACK_BYTES / group_bytes).max(1);
        for start in (0..builder.groups()).step_by(step) {
            let groups = start..(start + step).min(builder.groups());
            jobs.push(Job { name: &graph.value(id.weight).name, source, builder, groups });
        }
        total += source.weight.byte_len() as u64;
    }
    let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<BackendError>> = Mutex::new(None);
    let progress = Mutex::new(progress);
    let cancelled = AtomicBool::new(false);
    pool.run(&|worker| {
        while !stop.load(Ordering::Relaxed) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let rows = job.groups.start * GROUP_ROWS..(job.groups.end * GROUP_ROWS).min(job.source.shape().1);
            let packed = job
                .source
                .rows(rows.clone())
                .map_err(|source| BackendError::Weight { name: job.name.to_owned(), source });
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
            job.source.release(rows.clone());
            let bytes = (rows.len() * job.source.row_bytes()) as u64;
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
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // What was read ahead of a thread, in pages that another had let go.
    for (_, source, _) in matrices {
        source.weight.release_rows(0..source.weight.row_count());
    }
    // The other threads may have done it all.
    let progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    if cancelled.load(Ordering::Relaxed) || progress(total, total) == ControlFlow::Break(()) {
        return Err(BackendError::Cancelled);
    }
    Ok(())
}
