//! Tensors, a slab of rows at a time.

use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use core_tensor::{DType, Tensor, decode_f32};
use loader_gguf::Gguf;
use polaris_quant::block::encode;
use polaris_quant::differences;
use polaris_quant::gptq::{self, Feedback};

use super::{Planned, QuantizeProgress, TensorRecord};
use crate::Error;

/// Weights of a slab: what is in memory at once, as f32 and encoded.
const SLAB: usize = 4 << 20;
/// Weights that a thread takes through all its steps at once, so that they stay in its cache.
const PIECE: usize = 16 << 10;

/// One run over a model: what its tensors share.
pub(crate) struct Job<'a> {
    threads: usize,
    total: u64,
    progress: Mutex<(u64, &'a mut QuantizeProgress<'a>)>,
    stopped: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// What an encoded tensor lost: sums over its weights.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    noise: f64,
    power: f64,
}

/// Rows as they were and as they became, of which the first has the number `first`.
struct Rows<'a> {
    values: &'a [f32],
    decoded: &'a [f32],
    columns: usize,
    first: usize,
}

impl Loss {
    /// Fails where a weight became infinite or no number: scales of blocks have a range.
    fn add(&mut self, rows: &Rows<'_>, dtype: DType) -> Result<(), String> {
        let (noise, power) = differences(rows.values, rows.decoded);
        if !noise.is_finite()
            && let Some(at) = rows.decoded.iter().position(|value| !value.is_finite())
        {
            let (row, column) = (rows.first + at / rows.columns, at % rows.columns);
            return Err(format!(
                "weight {column} of row {row} becomes {}: it was {}, and the weights around it are too large for {dtype}",
                rows.decoded[at],
                rows.values.get(at).copied().unwrap_or(0.0)
            ));
        }
        self.noise += noise;
        self.power += power;
        Ok(())
    }
}

impl<'a> Job<'a> {
    pub(crate) fn new<'p: 'a>(threads: usize, total: u64, progress: &'a mut QuantizeProgress<'p>) -> Job<'a> {
        Job {
            threads: threads.clamp(1, 1024),
            total,
            progress: Mutex::new((0, progress)),
            stopped: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Whether everything is to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What a tensor failed with.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.lock().ok()?.take()
    }

    /// Notes why a tensor cannot be written, for which an error of writing stands.
    pub(crate) fn fail(&self, error: Error) -> io::Error {
        self.stop();
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert(error);
        }
        io::Error::other("a tensor cannot be made")
    }

    /// Tells of bytes that are done (0 asks whether to go on).
    pub(crate) fn advance(&self, bytes: usize, name: &str) -> io::Result<()> {
        let Ok(mut progress) = self.progress.lock() else { return Ok(()) };
        progress.0 += bytes as u64;
        let done = progress.0;
        match (progress.1)(done, self.total, name) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(self.fail(Error::Cancelled)),
        }
    }

    /// Writes a tensor in the type that is planned for it.
    pub(crate) fn tensor(
        &self,
        model: &Gguf,
        planned: &Planned,
        importance: Option<&[f32]>,
        feedback: Option<&Feedback>,
        out: &mut dyn Write,
    ) -> io::Result<TensorRecord> {
        let fault = |reason: String| {
            self.fail(Error::Tensor { path: model.path().to_owned(), name: planned.name.clone(), reason })
        };
        let tensor = model.tensor(&planned.name).map_err(|error| self.fail(error.into()))?;
        let columns = planned.shape.last().copied().unwrap_or(1);
        let rows = tensor.len() / columns.max(1);
        let (Some(from), Some(to)) = (planned.from.row_bytes(columns), planned.to.row_bytes(columns)) else {
            return Err(fault(format!("rows of {columns} weights are no whole blocks")));
        };
        // Importances differ from matrix to matrix: a slab ends where a matrix ends.
        let matrix = planned.shape.iter().rev().nth(1).copied().unwrap_or(1).max(1);
        let step = (SLAB / columns.max(1)).clamp(1, rows.max(1));
        if let Some(feedback) = feedback.filter(|feedback| feedback.columns() != columns) {
            return Err(fault(format!("its inputs have {} columns, it has {columns}", feedback.columns())));
        }
        let mut loss = Loss::default();
        let mut encoded = Vec::new();
        let mut row = 0;
        while row < rows {
            let mut end = (row + step).min(rows);
            if importance.is_some() {
                end = end.min((row / matrix + 1) * matrix);
            }
            let source = row * from..end * from;
            let bytes = tensor.bytes().get(source.clone()).ok_or_else(|| fault("its bytes end early".into()))?;
            if planned.from == planned.to {
                out.write_all(bytes)?;
            } else {
                let importance = importance.and_then(|all| all.get(row / matrix * columns..)?.get(..columns));
                encoded.resize((end - row) * to, 0);
                let slab = Slab { from: planned.from, to: planned.to, columns, importance, feedback };
                let found = self.slab(&slab, row, bytes, &mut encoded).map_err(&fault)?;
                loss.noise += found.noise;
                loss.power += found.power;
                out.write_all(&encoded)?;
            }
            release(&tensor, source);
            self.advance((end - row) * from, &planned.name)?;
            row = end;
        }
        Ok(TensorRecord::new(planned, loss.noise, loss.power))
    }

    /// Writes a tensor that was trained, and compares it with what it was.
    pub(super) fn trained(
        &self,
        model: &Gguf,
        planned: &Planned,
        trained: &Tensor,
        out: &mut dyn Write,
    ) -> io::Result<TensorRecord> {
        let fault = |reason: String| {
            self.fail(Error::Tensor { path: model.path().to_owned(), name: planned.name.clone(), reason })
        };
        let tensor = model.tensor(&planned.name).map_err(|error| self.fail(error.into()))?;
        if trained.dtype() != planned.to || trained.shape() != planned.shape {
            return Err(fault(format!("{} {:?} was trained, it is not", trained.dtype(), trained.shape())));
        }
        let columns = planned.shape.last().copied().unwrap_or(1).max(1);
        let (Some(from), Some(to)) = (planned.from.row_bytes(columns), planned.to.row_bytes(columns)) else {
            return Err(fault(format!("rows of {columns} weights are no whole blocks")));
        };
        let step = (PIECE / columns).max(1);
        let mut loss = Loss::default();
        for (i, (bytes, made)) in tensor.bytes().chunks(step * from).zip(trained.bytes().chunks(step * to)).enumerate()
        {
            let count = bytes.len() / from.max(1) * columns;
            let values = decode_f32(planned.from, bytes, count).map_err(|error| fault(error.to_string()))?;
            let decoded = decode_f32(planned.to, made, count).map_err(|error| fault(error.to_string()))?;
            let rows = Rows { values: &values, decoded: &decoded, columns, first: i * step };
            loss.add(&rows, planned.to).map_err(&fault)?;
            out.write_all(made)?;
        }
        release(&tensor, 0..tensor.bytes().len());
        self.advance(tensor.bytes().len(), &planned.name)?;
        Ok(TensorRecord::new(planned, loss.noise, loss.power))
    }

    /// Encodes a slab, of which the first row has the number `first`, on all threads.
    fn slab(&self, slab: &Slab<'_>, first: usize, bytes: &[u8], out: &mut [u8]) -> Result<Loss, String> {
        let (from, to) = slab.row_bytes();
        let rows = bytes.len() / from.max(1);
        let share = rows.div_ceil(self.threads).max(1);
        let parts = bytes.chunks(share * from).zip(out.chunks_mut(share * to)).enumerate();
        let losses: Vec<Result<Loss, String>> = std::thread::scope(|scope| {
            let workers: Vec<_> = parts
                .map(|(i, (bytes, out))| {
                    scope.spawn(move || slab.rows(first + i * share, bytes, out, &|| self.stopped()))
                })
                .collect();
            let joined = workers.into_iter().map(|worker| worker.join());
            joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        losses.into_iter().try_fold(Loss::default(), |sum, loss| {
            let loss = loss?;
            Ok(Loss { noise: sum.noise + loss.noise, power: sum.power + loss.power })
        })
    }
}

/// How the rows of a slab are encoded.
struct Slab<'a> {
    from: DType,
    to: DType,
    columns: usize,
    importance: Option<&'a [f32]>,
    feedback: Option<&'a Feedback>,
}

impl Slab<'_> {
    fn row_bytes(&self) -> (usize, usize) {
        let bytes = |dtype: DType| dtype.row_bytes(self.columns).unwrap_or(0);
        (bytes(self.from), bytes(self.to))
    }

    /// One thread's rows, of which the first has the number `first`.
    fn rows(&self, first: usize, bytes: &[u8], out: &mut [u8], stopped: &dyn Fn() -> bool) -> Result<Loss, String> {
        let (from, to) = self.row_bytes();
        // Rows that make up for their errors are rounded several at a time.
        let least = if self.feedback.is_some() { 8 } else { 1 };
        let step = (PIECE / self.columns.max(1)).max(least);
        let mut loss = Loss::default();
        for (i, (bytes, out)) in bytes.chunks(step * from).zip(out.chunks_mut(step * to)).enumerate() {
            if stopped() {
                break;
            }
            let count = bytes.len() / from.max(1) * self.columns;
            let values = decode_f32(self.from, bytes, count).map_err(|error| error.to_string())?;
            let encoded = match self.feedback {
                Some(feedback) => gptq::encode(self.to, &values, feedback, out),
                None => encode(self.to, &values, self.columns, self.importance, out),
            };
            let first = first + i * step;
            encoded.map_err(|error| error.behind_rows(first).to_string())?;
            let decoded = decode_f32(self.to, out, count).map_err(|error| error.to_string())?;
            loss.add(&Rows { values: &values, decoded: &decoded, columns: self.columns, first }, self.to)?;
        }
        Ok(loss)
    }
}

/// Lets go of a part of a mapped tensor's pages: all together they would be the whole model.
pub(crate) fn release(tensor: &Tensor, part: Range<usize>) {
    if let Some((file, range)) = tensor.file() {
        file.release(range.start + part.start..range.start + part.end);
    }
}
