//! Encoders: rows of f32 to the bytes of a dtype.
//!
//! [`encode`] takes whole rows and makes what [`core_tensor::block::decode`] reads: every block format that llama.cpp writes
//! without tables of its own, and f32, f16 and bf16. Scales are searched for the least squared error of what the file
//! holds, rounded scales included; with importances (one per column: the mean square of the activation that meets the
//! column), for the least weighted squared error. Without them Q4_0, IQ4_NL and IQ4_XS weigh each weight by its square, and Q5_0
//! takes the scale that keeps the largest weight of each block: where less squared error made language models worse. The result does not depend on the machine or on the number of threads.

mod grid;
mod k_quants;
mod lanes;
mod legacy;
mod recode;
mod search;
mod super_block;
mod ternary;

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockQ8_0, BlockTq1_0, BlockTq2_0, PackedBlock,
};
use core_tensor::{BlockFormat, DType};
use half::slice::HalfFloatSliceExt;

use crate::widest::widest;

pub(crate) use recode::Codes;

/// The dtypes that [`encode`] writes.
pub const ENCODED: [DType; 18] = {
    use BlockFormat as B;
    use DType::Block;
    [
        DType::F32,
        DType::F16,
        DType::BF16,
        Block(B::Q4_0),
        Block(B::Q4_1),
        Block(B::Q5_0),
        Block(B::Q5_1),
        Block(B::Q8_0),
        Block(B::Q2_K),
        Block(B::Q3_K),
        Block(B::Q4_K),
        Block(B::Q5_K),
        Block(B::Q6_K),
        Block(B::IQ4_NL),
        Block(B::IQ4_XS),
        Block(B::TQ1_0),
        Block(B::TQ2_0),
        Block(B::MXFP4),
    ]
};

/// Why weights could not be encoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// There is no encoder for the dtype.
    #[error("{0} has no encoder")]
    Unsupported(DType),
    /// A row is no whole number of blocks.
    #[error("rows of {columns} weights are no whole blocks of {dtype}")]
    PartialBlock {
        /// The dtype.
        dtype: DType,
        /// Weights of a row.
        columns: usize,
    },
    /// Weights, bytes and columns do not fit each other.
    #[error("{values} weights in rows of {columns} are not {bytes} bytes of {dtype}")]
    Length {
        /// The dtype.
        dtype: DType,
        /// Weights given.
        values: usize,
        /// Weights of a row.
        columns: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// There is not one importance for each column.
    #[error("{importances} importances for {columns} columns")]
    Importances {
        /// Importances given.
        importances: usize,
        /// Weights of a row.
        columns: usize,
    },
    /// A weight is infinite or no number.
    #[error("weight {column} of row {row} is {value}")]
    NotFinite {
        /// The row, from 0 on.
        row: usize,
        /// The column, from 0 on.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is beyond what the dtype can hold.
    #[error("weight {column} of row {row} is {value}, which is too large for {dtype}")]
    OutOfRange {
        /// The row, from 0 on.
        row: usize,
        /// The column, from 0 on.
        column: usize,
        /// The weight.
        value: f32,
        /// The dtype.
        dtype: DType,
    },
    /// An importance is negative, infinite or no number.
    #[error("the importance of column {column} is {value}")]
    BadImportance {
        /// The column, from 0 on.
        column: usize,
        /// The importance.
        value: f32,
    },
}

impl EncodeError {
    /// The error as it is where the rows are some of more, of which `first` come before them.
    #[must_use]
    pub fn behind_rows(mut self, first: usize) -> EncodeError {
        if let EncodeError::NotFinite { row, .. } | EncodeError::OutOfRange { row, .. } = &mut self {
            *row += first;
        }
        self
    }
}

/// A block that knows how to be made.
pub(crate) trait Encoder: bytemuck::Pod {
    /// Encodes as many blocks as `out` has from `values`, at most 256 weights. `importance(at)` begins with the importances
    /// of the sub-block that begins at `values[at]`; it is asked only where `W`.
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]);
}

/// Encodes rows of `columns` weights each, one after the other, into `out`.
///
/// `importance` has one number per column, for all rows the same: how much an error of the column's weights counts
/// (only ratios matter; columns that count nothing are taken for columns that count very little).
///
/// ```
/// use core_tensor::{BlockFormat, DType};
/// let mut bytes = [0; 34];
/// polaris_quant::block::encode(DType::Block(BlockFormat::Q8_0), &[0.5; 32], 32, None, &mut bytes)?;
/// assert_eq!(bytes[2..], [127; 32]);
/// # Ok::<(), polaris_quant::block::EncodeError>(())
/// ```
///
/// # Errors
/// When the dtype has no encoder, a row is no whole number of blocks, lengths do not fit, a number is not finite, or one is too large for 16 bits.
pub fn encode(
    dtype: DType,
    values: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    encode_with_threads(dtype, values, columns, importance, 1, out)
}

/// As [`encode`], on several threads.
///
/// # Errors
/// As [`encode`].
pub fn encode_with_threads(
    dtype: DType,
    values: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    threads: usize,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    let row_bytes = check(dtype, values.len(), columns, out.len())?;
    let importance = importance.map(|importance| normalized(importance, columns)).transpose()?;
    let importance = importance.as_deref();
    let rows = values.len() / columns.max(1);
    let share = rows.div_ceil(threads.clamp(1, 1024)).max(1);
    if share >= rows {
        return encode_rows(dtype, values, columns, importance, 0, out);
    }
    std::thread::scope(|scope| {
        let parts = values.chunks(share * columns).zip(out.chunks_mut(share * row_bytes));
        let workers: Vec<_> = parts
            .enumerate()
            .map(|(i, (values, out))| {
                scope.spawn(move || encode_rows(dtype, values, columns, importance, i * share, out))
            })
            .collect();
        // The first error in the order of the rows, whichever thread was first.
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// The bytes of a row, when all lengths fit.
pub(crate) fn check(dtype: DType, values: usize, columns: usize, bytes: usize) -> Result<usize, EncodeError> {
    if !ENCODED.contains(&dtype) {
        return Err(EncodeError::Unsupported(dtype));
    }
    let row_bytes = dtype.row_bytes(columns).ok_or(EncodeError::PartialBlock { dtype, columns })?;
    let fits = match columns {
        0 => values == 0 && bytes == 0,
        _ => values.is_multiple_of(columns) && (values / columns).checked_mul(row_bytes) == Some(bytes),
    };
    if fits { Ok(row_bytes) } else { Err(EncodeError::Length { dtype, values, columns, bytes }) }
}

/// Importances with a mean of one, and a floor: no column counts for nothing at all.
pub(crate) fn normalized(importance: &[f32], columns: usize) -> Result<Vec<f32>, EncodeError> {
    if importance.len() != columns {
        return Err(EncodeError::Importances { importances: importance.len(), columns });
    }
    if let Some(column) = importance.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
        return Err(EncodeError::BadImportance { column, value: importance[column] });
    }
    let mean = importance.iter().map(|value| f64::from(*value)).sum::<f64>() / columns.max(1) as f64;
    Ok(match mean > 0.0 {
        true => importance.iter().map(|value| (f64::from(*value) / mean).max(1e-6) as f32).collect(),
        false => vec![1.0; columns],
    })
}

/// Fails where a weight of rows, of which the first has the number `first_row`, is no finite number.
pub(crate) fn check_finite(values: &[f32], columns: usize, first_row: usize) -> Result<(), EncodeError> {
    // Many at once: a loop that may end at each is no loop for vectors.
    let all = |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
    let Some(part) = values.chunks(1024).position(|part| !all(part)) else { return Ok(()) };
    let Some(at) = values.iter().skip(1024 * part).position(|value| !value.is_finite()) else { return Ok(()) };
    let at = 1024 * part + at;
    let (row, column) = (first_row + at / columns, at % columns);
    Err(EncodeError::NotFinite { row, column, value: values[at] })
}

/// Encodes whole rows, of which the first has the number `first_row` in messages.
fn encode_rows(
    dtype: DType,
    values: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    first_row: usize,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    check_finite(values, columns, first_row)?;
    let beyond = |at: usize| EncodeError::OutOfRange {
        row: first_row + at / columns.max(1),
        column: at % columns.max(1),
        value: values[at],
        dtype,
    };
    use BlockFormat as B;
    match dtype {
        DType::F32 => {
            for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        DType::F16 => {
            narrow::<half::f16>(values, out, |bits| (bits.is_finite(), bits.to_le_bytes())).map_err(beyond)?
        }
        DType::BF16 => {
            narrow::<half::bf16>(values, out, |bits| (bits.is_finite(), bits.to_le_bytes())).map_err(beyond)?
        }
        DType::Block(format) => match format {
            B::Q4_0 => blocks::<BlockQ4_0, 32>(values, columns, importance, out),
            B::Q4_1 => blocks::<BlockQ4_1, 32>(values, columns, importance, out),
            B::Q5_0 => blocks::<BlockQ5_0, 32>(values, columns, importance, out),
            B::Q5_1 => blocks::<BlockQ5_1, 32>(values, columns, importance, out),
            B::Q8_0 => blocks::<BlockQ8_0, 32>(values, columns, importance, out),
            B::Q2_K => blocks::<BlockQ2K, 256>(values, columns, importance, out),
            B::Q3_K => blocks::<BlockQ3K, 256>(values, columns, importance, out),
            B::Q4_K => blocks::<BlockQ4K, 256>(values, columns, importance, out),
            B::Q5_K => blocks::<BlockQ5K, 256>(values, columns, importance, out),
            B::Q6_K => blocks::<BlockQ6K, 256>(values, columns, importance, out),
            B::IQ4_NL => blocks::<BlockIq4Nl, 32>(values, columns, importance, out),
            B::IQ4_XS => blocks::<BlockIq4Xs, 256>(values, columns, importance, out),
            B::TQ1_0 => blocks::<BlockTq1_0, 256>(values, columns, importance, out),
            B::TQ2_0 => blocks::<BlockTq2_0, 256>(values, columns, importance, out),
            B::MXFP4 => blocks::<BlockMxfp4, 32>(values, columns, importance, out),
            _ => return Err(EncodeError::Unsupported(dtype)),
        },
        _ => return Err(EncodeError::Unsupported(dtype)),
    }
    Ok(())
}

/// To 16 bits, nearest, ties to even. Fails with the place of a weight that becomes infinite.
fn narrow<T: Copy + Default>(
    values: &[f32],
    out: &mut [u8],
    bytes_of: impl Fn(T) -> (bool, [u8; 2]),
) -> Result<(), usize>
where
    [T]: HalfFloatSliceExt,
{
    let mut narrow = [T::default(); 256];
    for (i, (out, values)) in out.chunks_mut(512).zip(values.chunks(256)).enumerate() {
        let narrow = &mut narrow[..values.len()];
        narrow.convert_from_f32_slice(values);
        let mut all = true;
        for (bytes, bits) in out.chunks_exact_mut(2).zip(&*narrow) {
            let (finite, two) = bytes_of(*bits);
            all &= finite;
            bytes.copy_from_slice(&two);
        }
        if !all {
            let at = narrow.iter().position(|bits| !bytes_of(*bits).0);
            return Err(256 * i + at.unwrap_or(0));
        }
    }
    Ok(())
}

/// Encodes blocks of `LEN` weights with the widest vectors of this machine.
fn blocks<B: Encoder + PackedBlock<LEN>, const LEN: usize>(
    values: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    let out: &mut [B] = bytemuck::cast_slice_mut(out);
    match importance {
        Some(importance) => widest(
            #[inline(always)]
            || {
                each::<B, LEN>(
                    values,
                    out,
                    #[inline(always)]
                    |start, values, out| {
                        let at = |offset: usize| &importance[(start + offset) % columns..];
                        B::encode::<true>(values, at, out);
                    },
                );
            },
        ),
        None => widest(
            #[inline(always)]
            || {
                each::<B, LEN>(
                    values,
                    out,
                    #[inline(always)]
                    |_, values, out| B::encode::<false>(values, |_| &[], out),
                );
            },
        ),
    }
}

/// Calls `encode` for every 256 weights (and for what is left over), with where they begin.
#[inline(always)]
fn each<B, const LEN: usize>(values: &[f32], out: &mut [B], encode: impl Fn(usize, &[f32], &mut [B])) {
    for (i, (values, out)) in values.chunks(256).zip(out.chunks_mut(256 / LEN)).enumerate() {
        encode(256 * i, values, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_same_bits<B: Encoder + PackedBlock<LEN>, const LEN: usize>(weights: &[f32], importance: &[f32]) {
        let mut wide = vec![0; weights.len() / LEN * size_of::<B>()];
        blocks::<B, LEN>(weights, weights.len(), Some(importance), &mut wide);
        let mut plain = vec![0; wide.len()];
        each::<B, LEN>(weights, bytemuck::cast_slice_mut(&mut plain), |start, values, out| {
            B::encode::<true>(values, |offset| &importance[start + offset..], out);
        });
        assert_eq!(wide, plain, "{}", B::FORMAT);
    }

    #[test]
    fn vectors_of_any_width_give_the_same_bits() {
        let weights: Vec<f32> = (0..768).map(|i| (i as f32 * 0.613).sin() * 0.2 + 0.03).collect();
        let importance: Vec<f32> = (0..768).map(|i| 0.3 + (i % 11) as f32).collect();
        assert_same_bits::<BlockQ4_0, _>(&weights, &importance);
        assert_same_bits::<BlockQ4_1, _>(&weights, &importance);
        assert_same_bits::<BlockQ8_0, _>(&weights, &importance);
        assert_same_bits::<BlockQ2K, _>(&weights, &importance);
        assert_same_bits::<BlockQ3K, _>(&weights, &importance);
        assert_same_bits::<BlockQ4K, _>(&weights, &importance);
        assert_same_bits::<BlockQ6K, _>(&weights, &importance);
        assert_same_bits::<BlockIq4Xs, _>(&weights, &importance);
        assert_same_bits::<BlockTq2_0, _>(&weights, &importance);
        assert_same_bits::<BlockMxfp4, _>(&weights, &importance);
    }
}
