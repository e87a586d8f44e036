//! Products of weights and activations: `y[r][o] = Σ_k x[r][k] · w[o][k]`, for one row of activations (decode) and many
//! (prefill), on every instruction-set level.
//!
//! # How to use it
//!
//! 1. **Pack the weights once.** [`PackedMatrixBuilder::new`] allocates; [`pack_groups`](PackedMatrixBuilder::pack_groups)
//!    takes any range of *groups* (16 consecutive outputs) from file bytes, from several threads at the same time;
//!    [`finish`](PackedMatrixBuilder::finish) gives a [`PackedMatrix`], good for every level and every number of rows.
//! 2. **Pack the activations** of a step: [`ActivationLayout::new`] says how many bytes they need,
//!    [`ActivationLayout::pack_rows`] fills them (row ranges may go to different threads). Which kind? [`ActivationKind::Q8`]
//!    is the fast path where [`PackedMatrix::accepts`] it (all quantized formats with a packed form),
//!    [`ActivationKind::I16`] for 16-bit floats; `F32` is exact, and every matrix accepts it. See
//!    [`PackedMatrix::fastest_kind`].
//! 3. **Multiply**: [`PackedMatrix::matmul`] is single-threaded and computes any range of groups × any range of rows; the
//!    caller's threads take disjoint group ranges (good for decode and prefill alike) and each writes its own columns.
//!    [`Output`] says where to, and adds a bias or accumulates into what is there.
//!
//! To fuse (SwiGLU), ask both matrices for the same few groups into two scratch tiles (`row_stride` = 16 × groups), combine
//! them, and write the result: a call costs some tens of nanoseconds.
//!
//! ```
//! use core_tensor::{BlockFormat, DType};
//! use cpu_kernels::matmul::{ActivationKind, Activations, Output, PackedMatrixBuilder};
//! use cpu_kernels::simd::Level;
//!
//! // Two rows of 64 weights, all 1: blocks of 32 with f16 scale 1 and 8-bit values 1.
//! let block: Vec<u8> = [vec![0x00, 0x3c], vec![1; 32]].concat();
//! let rows = block.repeat(4);
//! let builder = PackedMatrixBuilder::new(DType::Block(BlockFormat::Q8_0), 2, 64)?;
//! builder.pack_groups(0..1, &rows)?;
//! let weights = builder.finish()?;
//!
//! let level = Level::best();
//! let x = Activations::pack(level, ActivationKind::Q8, 1, 64, &[0.5; 64]);
//! let mut y = [0.0f32; 2];
//! // SAFETY: one row of two outputs.
//! unsafe { weights.matmul(level, 0..1, &x.view(), 0..1, Output::new(y.as_mut_ptr(), 2)) };
//! assert!((y[0] - 32.0).abs() < 1e-4 && y[0] == y[1]);
//! # Ok::<(), cpu_kernels::matmul::PackError>(())
//! ```

mod activations;
mod buffer;
mod float;
mod formats;
mod int16;
mod int8;
pub(crate) mod integer;
mod output;
mod pack;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use core_tensor::{BlockFormat, DType, block};

pub use activations::{ActivationKind, ActivationLayout, ActivationView, Activations};
pub use output::Output;

use crate::simd::Level;
use activations::Form;
use buffer::Buffer;
use formats::{GROUP, Packing, with_packing};

/// Outputs (rows of the weight matrix) in a group, the unit of packing and of work.
pub const GROUP_ROWS: usize = GROUP;

/// Why weights could not be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// No kernel multiplies by weights of this type.
    #[error("no matrix product with weights of type {0}")]
    Unsupported(DType),
    /// A row is no whole number of blocks, or the matrix exceeds the address space.
    #[error("{n} x {k} weights of type {dtype} make no matrix")]
    Shape {
        /// Type of the weights.
        dtype: DType,
        /// Outputs.
        n: usize,
        /// Weights per output.
        k: usize,
    },
    /// The bytes handed in are not those of the groups named.
    #[error("groups {start}..{end} need {expected} bytes, not {found}")]
    Length {
        /// First group.
        start: usize,
        /// After the last group.
        end: usize,
        /// Bytes their rows have.
        expected: usize,
        /// Bytes handed in.
        found: usize,
    },
    /// There is no memory for the packed weights.
    #[error("no memory for {bytes} bytes of weights")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A group was packed twice, or does not exist.
    #[error("group {0} was packed before or does not exist")]
    Group(usize),
    /// A group has not been packed.
    #[error("group {0} was not packed")]
    Missing(usize),
}

/// A weight matrix of `n` outputs × `k` weights in the kernels' layout: sixteen outputs interleaved, with the bits per
/// weight that the file has (see [`bytes`](Self::bytes)). Where a block format has no packed layout the rows are kept as
/// they are and decoded on the fly.
#[derive(Debug)]
pub struct PackedMatrix {
    dtype: DType,
    n: usize,
    k: usize,
    group_bytes: usize,
    data: Buffer,
}

/// A [`PackedMatrix`] in the making; shared by the threads that fill it.
#[derive(Debug)]
pub struct PackedMatrixBuilder {
    matrix: PackedMatrix,
    /// Bytes of a row in the file.
    row_bytes: usize,
    /// Which groups have been claimed by a `pack_groups`.
    claimed: Box<[AtomicBool]>,
    /// A row of zeros, for the outputs that fill up the last group.
    zeros: Box<[u8]>,
}

/// Bytes of a packed matrix: so many for each group.
fn packed_bytes(dtype: DType, n: usize, k: usize) -> Result<usize, PackError> {
    let shape = PackError::Shape { dtype, n, k };
    let row_bytes = dtype.row_bytes(k).ok_or(shape.clone())?;
    let group_bytes = with_packing!(dtype,
        P => k.div_ceil(32 * P::BLOCKS).checked_mul(P::BYTES),
        _ => match dtype {
            DType::F32 | DType::F16 | DType::BF16 => row_bytes.checked_mul(GROUP),
            DType::Block(format) if decodes(format) => row_bytes.checked_mul(GROUP),
            _ => return Err(PackError::Unsupported(dtype)),
        }
    );
    let bytes = group_bytes.and_then(|bytes| bytes.checked_mul(n.div_ceil(GROUP)));
    // Weights without extent take no bytes, but their groups are counted.
    bytes.filter(|bytes| *bytes <= isize::MAX as usize / 2 && (*bytes > 0 || n <= 1 << 24)).ok_or(shape)
}

impl PackedMatrixBuilder {
    /// Room for `n` outputs of `k` weights each.
    ///
    /// # Errors
    /// For a type that no kernel computes with, for a shape that is no whole number of blocks or too large, and when there
    /// is no memory.
    pub fn new(dtype: DType, n: usize, k: usize) -> Result<Self, PackError> {
        let bytes = packed_bytes(dtype, n, k)?;
        let data = Buffer::new(bytes).ok_or(PackError::NoMemory { bytes })?;
        Self::with_buffer(dtype, n, k, data)
    }

    /// Room for several matrices (type, outputs, weights per output), one after the other in memory: as a whole they lie in
    /// huge pages where each alone would not fill one.
    ///
    /// # Errors
    /// As [`new`](Self::new), with the index of the matrix at fault.
    pub fn several(matrices: &[(DType, usize, usize)]) -> Result<Vec<Self>, (usize, PackError)> {
        let sizes =
            matrices.iter().enumerate().map(|(i, (dtype, n, k))| packed_bytes(*dtype, *n, *k).map_err(|e| (i, e)));
        let sizes = sizes.collect::<Result<Vec<usize>, _>>()?;
        let bytes = sizes.iter().fold(0usize, |sum, size| sum.saturating_add(*size));
        let buffers = Buffer::several(&sizes).ok_or((0, PackError::NoMemory { bytes }))?;
        let builder = |(i, ((dtype, n, k), data)): (usize, (&(DType, usize, usize), Buffer))| {
            Self::with_buffer(*dtype, *n, *k, data).map_err(|error| (i, error))
        };
        matrices.iter().zip(buffers).enumerate().map(builder).collect()
    }

    fn with_buffer(dtype: DType, n: usize, k: usize, data: Buffer) -> Result<Self, PackError> {
        let shape = PackError::Shape { dtype, n, k };
        let row_bytes = dtype.row_bytes(k).ok_or(shape)?;
        let groups = n.div_ceil(GROUP);
        let group_bytes = data.len().checked_div(groups).unwrap_or(0);
        let zeros = if n.is_multiple_of(GROUP) { 0 } else { row_bytes };
        Ok(Self {
            matrix: PackedMatrix { dtype, n, k, group_bytes, data },
            row_bytes,
            claimed: (0..groups).map(|_| AtomicBool::new(false)).collect(),
            zeros: vec![0; zeros].into(),
        })
    }

    /// Groups of sixteen outputs.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.matrix.groups()
    }

    /// Bytes of one output's weights in the file.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Packs some groups: `rows` are the file's bytes of their outputs, one after the other, of any alignment. The last
    /// group of the matrix may be short. Different groups may be packed by different threads at the same time.
    ///
    /// # Errors
    /// If `rows` has not the right length, or a group was packed before.
    pub fn pack_groups(&self, groups: Range<usize>, rows: &[u8]) -> Result<(), PackError> {
        let outputs = groups.start.saturating_mul(GROUP)..groups.end.saturating_mul(GROUP).min(self.matrix.n);
        let expected = outputs.len().saturating_mul(self.row_bytes);
        if rows.len() != expected {
            let Range { start, end } = groups;
            return Err(PackError::Length { start, end, expected, found: rows.len() });
        }
        for (i, group) in groups.enumerate() {
            let claim = self.claimed.get(group).ok_or(PackError::Group(group))?;
            if claim.swap(true, Ordering::AcqRel) {
                return Err(PackError::Group(group));
            }
            let at = self.matrix.group_bytes * group;
            // SAFETY: the group lies in the buffer, and the flag gives it to us alone.
            let out = unsafe {
                std::slice::from_raw_parts_mut(self.matrix.data.as_mut_ptr().add(at), self.matrix.group_bytes)
            };
            let source: [&[u8]; GROUP] = std::array::from_fn(|r| {
                let at = (i * GROUP + r) * self.row_bytes;
                if at < rows.len() { &rows[at..at + self.row_bytes] } else { &self.zeros[..] }
            });
            self.pack_group(&source, out);
        }
        Ok(())
    }

    fn pack_group(&self, rows: &[&[u8]; GROUP], out: &mut [u8]) {
        if self.row_bytes == 0 {
            return;
        }
        with_packing!(self.matrix.dtype,
            P => pack::pack_group::<P>(rows, out),
            _ => match self.matrix.dtype {
                DType::Block(_) => out.chunks_exact_mut(self.row_bytes).zip(rows).for_each(|(o, r)| o.copy_from_slice(r)),
                dtype => pack::pack_plain(rows, dtype.packing().1, out),
            }
        );
    }

    /// The matrix, once all groups have been packed.
    ///
    /// # Errors
    /// If one has not.
    pub fn finish(mut self) -> Result<PackedMatrix, PackError> {
        match self.claimed.iter_mut().position(|c| !*c.get_mut()) {
            Some(group) => Err(PackError::Missing(group)),
            None => Ok(self.matrix),
        }
    }
}

/// Products with columns that a caller has packed as f32: `[k][16]` for each group of sixteen, `n` columns in all.
///
/// # Safety
/// The panels are whole; `out.y` as for [`PackedMatrix::matmul`], and without a bias.
pub(crate) unsafe fn multiply_panels(
    level: Level,
    panels: *const f32,
    n: usize,
    activations: &ActivationView<'_>,
    out: Output<'_>,
) {
    let layout = *activations.layout();
    let (k, rows) = (layout.k(), 0..layout.rows());
    level.run(float::Float {
        source: float::PlainF32,
        weights: panels.cast(),
        group_bytes: 4 * GROUP * k,
        n,
        k,
        groups: 0..n.div_ceil(GROUP),
        activations: *activations,
        rows,
        out,
    });
}

/// Whether `core_tensor` decodes a format.
fn decodes(format: BlockFormat) -> bool {
    let mut out = vec![0.0; format.block_len()];
    block::decode(format, &vec![0; format.block_bytes()], &mut out).is_ok()
}

impl PackedMatrix {
    /// Packs a whole matrix on the calling thread: `rows` are the file's bytes, row after row.
    ///
    /// # Errors
    /// As [`PackedMatrixBuilder`].
    pub fn pack(dtype: DType, n: usize, k: usize, rows: &[u8]) -> Result<Self, PackError> {
        let builder = PackedMatrixBuilder::new(dtype, n, k)?;
        builder.pack_groups(0..builder.groups(), rows)?;
        builder.finish()
    }

    /// The same matrix of signed bytes (which are worth what they are until then) with a factor for each output.
    ///
    /// # Errors
    /// If the weights are of another type, or there is not one factor per output.
    pub fn with_scales(self, scales: &[f32]) -> Result<PackedMatrix, PackError> {
        self.check_factors(DType::I8, scales)?;
        self.write_factors(<formats::I8 as Packing>::BYTES, 0, scales);
        Ok(self)
    }

    /// The same matrix of unsigned bytes with a factor and a zero point for each output: a byte is worth `scale · (byte − zero)`, and not, as until
    /// then, what it is less 128.
    ///
    /// # Errors
    /// If the weights are of another type, or there are not as many factors and zero points as outputs.
    pub fn with_zero_points(self, scales: &[f32], zeros: &[u8]) -> Result<PackedMatrix, PackError> {
        self.check_factors(DType::U8, scales)?;
        self.check_factors(DType::U8, zeros)?;
        let minima: Vec<f32> =
            scales.iter().zip(zeros).map(|(scale, zero)| scale * f32::from(128 - i16::from(*zero))).collect();
        self.write_factors(<formats::U8 as Packing>::BYTES, 0, scales);
        self.write_factors(<formats::U8 as Packing>::BYTES, formats::U8::MINS, &minima);
        Ok(self)
    }

    fn check_factors<T>(&self, dtype: DType, factors: &[T]) -> Result<(), PackError> {
        if self.dtype != dtype || factors.len() != self.n {
            return Err(PackError::Shape { dtype: self.dtype, n: factors.len(), k: self.k });
        }
        Ok(())
    }

    /// Writes sixteen factors into each record of `bytes` bytes, `at` bytes from its beginning, which the layout has there.
    fn write_factors(&self, bytes: usize, at: usize, factors: &[f32]) {
        for (group, factors) in factors.chunks(GROUP).enumerate() {
            for record in (0..self.group_bytes).step_by(bytes) {
                // SAFETY: a record has room for sixteen factors there, and nobody else has the matrix.
                unsafe {
                    let out = self.data.as_mut_ptr().add(group * self.group_bytes + record + at);
                    std::ptr::copy_nonoverlapping(factors.as_ptr().cast(), out, 4 * factors.len());
                }
            }
        }
    }

    /// Type of the weights, as in the file.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Outputs (rows of the matrix as stored).
    #[must_use]
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Weights per output.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Groups of sixteen outputs.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.n.div_ceil(GROUP)
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether [`matmul`](Self::matmul) takes activations of this kind: `F32` always, `Q8` for quantized weights that
    /// have a packed layout, `I16` for F16 and BF16 weights.
    #[must_use]
    pub fn accepts(&self, kind: ActivationKind) -> bool {
        match kind {
            ActivationKind::F32 => true,
            ActivationKind::I16 => matches!(self.dtype, DType::F16 | DType::BF16),
            ActivationKind::Q8 => with_packing!(self.dtype, P => P::BLOCKS > 0, _ => false),
        }
    }

    /// The fastest kind of activations that the matrix accepts.
    #[must_use]
    pub fn fastest_kind(&self) -> ActivationKind {
        let kinds = [ActivationKind::Q8, ActivationKind::I16];
        kinds.into_iter().find(|kind| self.accepts(*kind)).unwrap_or(ActivationKind::F32)
    }

    /// Computes outputs `16 groups.start .. 16 groups.end` (less what lies beyond `n`) of `rows`.
    ///
    /// # Panics
    /// If the activations are of a kind the matrix does not accept or of another `k`; if `rows` or `groups` lie outside, or
    /// `rows` starts within a [tile](ActivationLayout::tile_rows); if a bias has not `n` elements.
    ///
    /// # Safety
    /// `out.y` is valid for writes (and reads, when accumulating) of each of these outputs of each of the rows, and no other
    /// thread touches them meanwhile.
    pub unsafe fn matmul(
        &self,
        level: Level,
        groups: Range<usize>,
        activations: &ActivationView<'_>,
        rows: Range<usize>,
        out: Output<'_>,
    ) {
        let layout = *activations.layout();
        assert!(self.accepts(layout.kind()), "{:?} activations for {} weights", layout.kind(), self.dtype);
        assert_eq!(layout.k(), self.k, "activations and weights differ in k");
        assert!(rows.end <= layout.rows() && rows.start.is_multiple_of(layout.tile_rows()), "rows {rows:?}");
        assert!(groups.end <= self.groups(), "groups {groups:?} of {}", self.groups());
        assert!(out.bias.is_none_or(|b| b.len() == self.n), "a bias has one element per output");
        if rows.is_empty() || groups.is_empty() {
            return;
        }
        let (weights, group_bytes, n, k, activations) =
            (self.data.as_ptr(), self.group_bytes, self.n, self.k, *activations);
        macro_rules! float {
            ($source:expr) => {
                level.run(float::Float { source: $source, weights, group_bytes, n, k, groups, activations, rows, out })
            };
        }
        macro_rules! int16 {
            ($source:ty) => {
                level.run(int16::Int16::<$source> {
                    weights,
                    group_bytes,
                    n,
                    k,
                    groups,
                    activations,
                    rows,
                    out,
                    source: PhantomData,
                })
            };
        }
        match layout.form() {
            Form::I16 => match self.dtype {
                DType::F16 => int16!(float::PlainF16),
                DType::BF16 => int16!(float::PlainBF16),
                _ => {}
            },
            Form::Q8 => with_packing!(self.dtype,
                P => level.run(int8::Int8::<P> { weights, group_bytes, n, groups, activations, rows, out, packing: PhantomData }),
                _ => {}
            ),
            Form::F32 => with_packing!(self.dtype,
                P => float!(float::Packed::<P>(PhantomData)),
                _ => match self.dtype {
                    DType::F32 => float!(float::PlainF32),
                    DType::F16 => float!(float::PlainF16),
                    DType::BF16 => float!(float::PlainBF16),
                    DType::Block(format) => float!(float::AsStored { format, row_bytes: group_bytes / GROUP }),
                    _ => {}
                }
            ),
        }
    }
}

#[cfg(test)]
mod tests;
