//! Weights: lazy expressions over stored tensors.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::{DType, Tensor, TensorError};

/// Why a weight expression is no weight.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The parts of a concatenation differ in dtype or in their rows.
    #[error("weights of {left} {left_shape:?} and {right} {right_shape:?} cannot be joined along their rows")]
    Concat {
        /// Dtype of the first part.
        left: DType,
        /// Shape of the first part.
        left_shape: Vec<usize>,
        /// Dtype of the part that differs.
        right: DType,
        /// Shape of the part that differs.
        right_shape: Vec<usize>,
    },
    /// The slice is not inside the weight.
    #[error("rows {start}..{end} are not in a weight of {rows} rows")]
    Slice {
        /// First row.
        start: usize,
        /// One past the last row.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The permutation is no permutation of the rows.
    #[error("the order of {found} rows given is no permutation of the weight's {rows} rows")]
    Permutation {
        /// Length of the order.
        found: usize,
        /// Rows there are.
        rows: usize,
    },
    /// There is not one factor for each index of an extent.
    #[error("{found} factors for extent {axis} of {shape:?}")]
    Factors {
        /// Factors given.
        found: usize,
        /// The extent.
        axis: usize,
        /// The weight's shape.
        shape: Vec<usize>,
    },
    /// A tensor could not be made or read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

#[derive(Debug)]
enum Expr {
    Stored(Tensor),
    SliceRows { of: Arc<Weight>, start: usize },
    ConcatRows(Vec<Arc<Weight>>),
    PermuteRows { of: Arc<Weight>, order: Vec<usize> },
    Scale { of: Arc<Weight>, factor: f32 },
    ScaleAlong { of: Arc<Weight>, axis: usize, factors: Arc<[f32]> },
    Cast(Arc<Weight>),
}

/// A weight: a tensor as it is stored in a file, or a lazy expression over such tensors.
///
/// It is evaluated once, row by row ([`Weight::rows`]), while it streams into a backend's layout, so that joined projections,
/// permuted rows and folded scales cost no second copy. A *row* is a run along the last extent; block formats stay
/// as stored, unless the expression computes ([`Weight::scale`] and [`Weight::cast`] give plain floats).
#[derive(Debug)]
pub struct Weight {
    dtype: DType,
    shape: Vec<usize>,
    expr: Expr,
}

impl Weight {
    /// A stored tensor.
    #[must_use]
    pub fn stored(tensor: Tensor) -> Arc<Weight> {
        Arc::new(Weight { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), expr: Expr::Stored(tensor) })
    }

    /// The rows `range` of a weight of two extents.
    ///
    /// # Errors
    /// When the range is not inside the weight.
    pub fn slice_rows(self: &Arc<Weight>, range: Range<usize>) -> Result<Arc<Weight>, WeightError> {
        let rows = self.row_count();
        if range.start > range.end || range.end > rows {
            return Err(WeightError::Slice { start: range.start, end: range.end, rows });
        }
        let shape = vec![range.len(), self.row_len()];
        Ok(Arc::new(Weight {
            dtype: self.dtype,
            shape,
            expr: Expr::SliceRows { of: self.clone(), start: range.start },
        }))
    }

    /// Weights of two extents below each other (joined projections).
    ///
    /// # Errors
    /// When there are none, or they differ in dtype or in the length of their rows.
    pub fn concat_rows(parts: &[Arc<Weight>]) -> Result<Arc<Weight>, WeightError> {
        let Some(first) = parts.first() else {
            return Err(WeightError::Slice { start: 0, end: 0, rows: 0 });
        };
        let mut rows = 0;
        for part in parts {
            if part.dtype != first.dtype || part.row_len() != first.row_len() {
                return Err(WeightError::Concat {
                    left: first.dtype,
                    left_shape: first.shape.clone(),
                    right: part.dtype,
                    right_shape: part.shape.clone(),
                });
            }
            rows += part.row_count();
        }
        let shape = vec![rows, first.row_len()];
        Ok(Arc::new(Weight { dtype: first.dtype, shape, expr: Expr::ConcatRows(parts.to_vec()) }))
    }

    /// The same rows in another order: row `i` of the result is row `order[i]` (RoPE layouts).
    ///
    /// # Errors
    /// When `order` is no permutation of the rows.
    pub fn permute_rows(self: &Arc<Weight>, order: Vec<usize>) -> Result<Arc<Weight>, WeightError> {
        let rows = self.row_count();
        let mut seen = vec![false; rows];
        let whole = order.len() == rows
            && order.iter().all(|row| seen.get_mut(*row).is_some_and(|seen| !std::mem::replace(seen, true)));
        if !whole {
            return Err(WeightError::Permutation { found: order.len(), rows });
        }
        Ok(Arc::new(Weight {
            dtype: self.dtype,
            shape: self.shape.clone(),
            expr: Expr::PermuteRows { of: self.clone(), order },
        }))
    }

    /// Every element times a factor, as f32.
    #[must_use]
    pub fn scale(self: &Arc<Weight>, factor: f32) -> Arc<Weight> {
        Arc::new(Weight {
            dtype: DType::F32,
            shape: self.shape.clone(),
            expr: Expr::Scale { of: self.clone(), factor },
        })
    }

    /// Every element times the factor of its index in an extent, as f32.
    ///
    /// # Errors
    /// When there is no such extent, or it has another number of elements than there are factors.
    pub fn scale_along(self: &Arc<Weight>, axis: usize, factors: Arc<[f32]>) -> Result<Arc<Weight>, WeightError> {
        if self.shape.get(axis) != Some(&factors.len()) {
            return Err(WeightError::Factors { found: factors.len(), axis, shape: self.shape.clone() });
        }
        let expr = Expr::ScaleAlong { of: self.clone(), axis, factors };
        Ok(Arc::new(Weight { dtype: DType::F32, shape: self.shape.clone(), expr }))
    }

    /// The same numbers as f32 or f16.
    ///
    /// # Errors
    /// When the target is another dtype.
    pub fn cast(self: &Arc<Weight>, to: DType) -> Result<Arc<Weight>, WeightError> {
        if self.dtype == to {
            return Ok(self.clone());
        }
        if !matches!(to, DType::F32 | DType::F16) {
            return Err(TensorError::Conversion { from: self.dtype, to }.into());
        }
        Ok(Arc::new(Weight { dtype: to, shape: self.shape.clone(), expr: Expr::Cast(self.clone()) }))
    }

    /// The dtype of the result.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape of the result.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements per row (the last extent; 1 for a scalar).
    #[must_use]
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows (the product of all extents but the last).
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rows)| rows.iter().product())
    }

    /// Bytes per row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.row_len()).unwrap_or(0)
    }

    /// Bytes of all rows.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.row_bytes() * self.row_count()
    }

    /// The bytes of some rows: borrowed where they are stored as asked for, computed otherwise.
    ///
    /// # Errors
    /// When the rows are not in the weight, or a conversion is not possible.
    pub fn rows(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>, WeightError> {
        let rows = self.row_count();
        if range.start > range.end || range.end > rows {
            return Err(WeightError::Slice { start: range.start, end: range.end, rows });
        }
        let row_bytes = self.row_bytes();
        Ok(match &self.expr {
            Expr::Stored(tensor) => Cow::Borrowed(&tensor.bytes()[range.start * row_bytes..range.end * row_bytes]),
            Expr::SliceRows { of, start } => of.rows(start + range.start..start + range.end)?,
            Expr::ConcatRows(parts) => concat(parts, range, row_bytes)?,
            Expr::PermuteRows { of, order } => {
                let mut out = Vec::with_capacity(range.len() * row_bytes);
                for row in &order[range] {
                    out.extend_from_slice(&of.rows(*row..row + 1)?);
                }
                Cow::Owned(out)
            }
            Expr::Scale { of, factor } => {
                let mut values = of.rows_f32(range)?;
                values.iter_mut().for_each(|value| *value *= factor);
                Cow::Owned(bytemuck::cast_slice(&values).to_vec())
            }
            Expr::ScaleAlong { of, axis, factors } => {
                let first = range.start * self.row_len();
                let mut values = of.rows_f32(range)?;
                // Runs of neighbours that share a factor.
                let run: usize = self.shape[axis + 1..].iter().product();
                values.iter_mut().enumerate().for_each(|(i, x)| *x *= factors[(first + i) / run % factors.len()]);
                Cow::Owned(bytemuck::cast_slice(&values).to_vec())
            }
            Expr::Cast(of) => {
                let values = of.rows_f32(range)?;
                Cow::Owned(if self.dtype == DType::F16 {
                    values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
                } else {
                    bytemuck::cast_slice(&values).to_vec()
                })
            }
        })
    }

    /// Some rows as f32.
    ///
    /// # Errors
    /// As [`Weight::rows`], or when the dtype has no decoder.
    pub fn rows_f32(&self, range: Range<usize>) -> Result<Vec<f32>, WeightError> {
        let count = range.len() * self.row_len();
        Ok(crate::decode_f32(self.dtype, &self.rows(range)?, count)?)
    }

    /// The whole weight as a tensor; stored tensors are not copied.
    ///
    /// # Errors
    /// As [`Weight::rows`].
    pub fn to_tensor(&self) -> Result<Tensor, WeightError> {
        if let Expr::Stored(tensor) = &self.expr {
            return Ok(tensor.clone());
        }
        Ok(Tensor::from_bytes(self.dtype, &self.shape, &self.rows(0..self.row_count())?)?)
    }

    /// The stored tensors under this expression.
    pub fn stored_tensors(&self, f: &mut impl FnMut(&Tensor)) {
        match &self.expr {
            Expr::Stored(tensor) => f(tensor),
            Expr::ConcatRows(parts) => parts.iter().for_each(|part| part.stored_tensors(f)),
            Expr::SliceRows { of, .. }
            | Expr::PermuteRows { of, .. }
            | Expr::Scale { of, .. }
            | Expr::ScaleAlong { of, .. }
            | Expr::Cast(of) => of.stored_tensors(f),
        }
    }

    /// Tells the system that the source bytes of some rows will not be read again soon.
    pub fn release_rows(&self, range: Range<usize>) {
        match &self.expr {
            Expr::Stored(tensor) => {
                if let Some((file, bytes)) = tensor.file() {
                    let row_bytes = self.row_bytes();
                    file.release(bytes.start + range.start * row_bytes..bytes.start + range.end * row_bytes);
                }
            }
            Expr::SliceRows { of, start } => of.release_rows(start + range.start..start + range.end),
            Expr::Scale { of, .. } | Expr::ScaleAlong { of, .. } | Expr::Cast(of) => of.release_rows(range),
            Expr::ConcatRows(_) | Expr::PermuteRows { .. } => {
                if range.end == self.row_count() {
                    self.stored_tensors(&mut Tensor::release);
                }
            }
        }
    }
}

/// Rows of a concatenation; borrowed where they lie in one part.
fn concat(parts: &[Arc<Weight>], range: Range<usize>, row_bytes: usize) -> Result<Cow<'_, [u8]>, WeightError> {
    let mut out = Vec::new();
    let mut first = 0;
    for part in parts {
        let rows = part.row_count();
        let start = range.start.clamp(first, first + rows) - first;
        let end = range.end.clamp(first, first + rows) - first;
        if end - start == range.len() {
            return part.rows(start..end);
        }
        if start < end {
            out.reserve(range.len() * row_bytes - out.len());
            out.extend_from_slice(&part.rows(start..end)?);
        }
        first += rows;
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(start: f32, rows: usize) -> Arc<Weight> {
        let values: Vec<f32> = (0..rows * 2).map(|i| start + i as f32).collect();
        Weight::stored(Tensor::from_slice(&[rows, 2], &values).unwrap())
    }

    #[test]
    fn expressions_give_the_rows_that_they_name() {
        let joined = Weight::concat_rows(&[rows(0.0, 2), rows(10.0, 3)]).unwrap();
        assert_eq!(joined.shape(), [5, 2]);
        assert_eq!(joined.rows_f32(1..4).unwrap(), [2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
        assert!(matches!(joined.rows(2..5).unwrap(), Cow::Borrowed(_)));
        let slice = joined.slice_rows(1..3).unwrap().scale(2.0);
        assert_eq!(slice.rows_f32(0..2).unwrap(), [4.0, 6.0, 20.0, 22.0]);
        let permuted = rows(0.0, 3).permute_rows(vec![2, 0, 1]).unwrap().cast(DType::F16).unwrap();
        assert_eq!(permuted.to_tensor().unwrap().to_f32().unwrap(), [4.0, 5.0, 0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn factors_go_along_their_extent_whichever_rows_are_asked_for() {
        let weight = Weight::stored(Tensor::from_slice(&[2, 3, 2], &[1.0f32; 12]).unwrap());
        let scaled = |axis: usize, factors: &[f32]| weight.scale_along(axis, factors.into()).unwrap();
        assert_eq!(scaled(0, &[2.0, 3.0]).rows_f32(2..4).unwrap(), [2.0, 2.0, 3.0, 3.0]);
        assert_eq!(scaled(1, &[2.0, 3.0, 4.0]).rows_f32(1..4).unwrap(), [3.0, 3.0, 4.0, 4.0, 2.0, 2.0]);
        assert_eq!(scaled(2, &[2.0, 3.0]).rows_f32(5..6).unwrap(), [2.0, 3.0]);
        assert!(matches!(weight.scale_along(1, [1.0; 2].into()), Err(WeightError::Factors { .. })));
        assert!(weight.scale_along(3, [1.0; 2].into()).is_err());
    }

    #[test]
    fn wrong_expressions_are_refused() {
        let weight = rows(0.0, 3);
        assert!(weight.slice_rows(2..4).is_err());
        assert!(weight.permute_rows(vec![0, 0, 1]).is_err());
        assert!(weight.rows(1..4).is_err());
        let halves = weight.cast(DType::F16).unwrap();
        assert!(matches!(Weight::concat_rows(&[weight, halves]), Err(WeightError::Concat { .. })));
    }
}
