//! Rounding that makes up for its own errors.
//!
//! Where inputs of a matrix go up and down together, what the rounding of one column does to the outputs can be undone by the columns
//! that are still to be rounded (Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022). [`Feedback`] has what the inputs say of that.
//! [`encode`] rounds to block formats: a block's scales are searched for when its turn comes, among weights that have made up for all
//! blocks before it.

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockTq1_0, BlockTq2_0,
};
use core_tensor::{BlockFormat, DType};

use crate::block::{self, Codes, EncodeError, Encoder};
use crate::dot::dot;
use crate::graph::Hessian;
use crate::widest::widest;

/// Rows that are rounded side by side: what is read of the factor serves all of them, and as many blocks of 32 are searched at once.
const ROWS: usize = 8;
/// Columns that a block's errors are passed on to at a time, so that the rows' part stays in the cache.
const COLUMNS: usize = 256;

/// Why there is no [`Feedback`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FeedbackError {
    /// The products are not those of so many columns.
    #[error("{found} products of {columns} columns")]
    Length {
        /// The columns.
        columns: usize,
        /// The products given.
        found: usize,
    },
    /// There are no inputs, or they are no finite numbers.
    #[error("the products of column {column} with itself sum up to {value}")]
    NotFinite {
        /// The column.
        column: usize,
        /// The sum.
        value: f64,
    },
    /// The damped products are not positive definite.
    #[error("with damping {damping}, column {column} can be made from others")]
    Singular {
        /// The damping.
        damping: f64,
        /// The column.
        column: usize,
    },
}

/// How the inputs of a matrix go together: what a change of one column does to the outputs, and which change of the columns behind it undoes most of it.
#[derive(Clone, Debug)]
pub struct Feedback {
    columns: usize,
    /// The upper triangular `U` with `Uᵀ U` the inverse of the products.
    factor: Vec<f32>,
    /// Mean squares of the columns.
    importance: Vec<f32>,
}

impl Feedback {
    /// From the sums of the products of the inputs' columns with each other, `[columns, columns]`.
    ///
    /// `damping` times the mean of the diagonal is added to the diagonal: the smaller, the more a rounding trusts the inputs it was
    /// made with; 0.01 is usual. Takes `columns³` steps.
    ///
    /// # Errors
    /// When the length is wrong, a number is not finite, or the damped matrix is not positive definite.
    pub fn new(products: &[f32], columns: usize, damping: f64) -> Result<Feedback, FeedbackError> {
        let k = columns;
        if products.len() != k.saturating_mul(k) {
            return Err(FeedbackError::Length { columns, found: products.len() });
        }
        let diagonal: Vec<f64> = (0..k).map(|i| f64::from(products[i * k + i])).collect();
        Feedback::damped(products.iter().map(|value| f64::from(*value)).collect(), diagonal, damping)
    }

    /// From the lower triangle of the products of observed rows.
    ///
    /// # Errors
    /// As [`Feedback::new`].
    pub fn of(hessian: &Hessian, damping: f64) -> Result<Feedback, FeedbackError> {
        let diagonal: Vec<f64> = (0..hessian.columns).map(|i| hessian.product(i, i)).collect();
        Feedback::damped(hessian.products.clone(), diagonal, damping)
    }

    fn damped(mut damped: Vec<f64>, diagonal: Vec<f64>, damping: f64) -> Result<Feedback, FeedbackError> {
        let k = diagonal.len();
        if let Some(column) = diagonal.iter().position(|value| !value.is_finite() || *value < 0.0) {
            return Err(FeedbackError::NotFinite { column, value: diagonal[column] });
        }
        let mean = diagonal.iter().sum::<f64>() / k.max(1) as f64;
        for (i, value) in diagonal.iter().enumerate() {
            // A column whose inputs are always 0 constrains nothing.
            damped[i * k + i] = if *value == 0.0 { mean.max(1.0) } else { value + damping * mean };
        }
        let factor = inverse_factor(damped, k).map_err(|column| FeedbackError::Singular { damping, column })?;
        Ok(Feedback { columns: k, factor, importance: diagonal.iter().map(|value| *value as f32).collect() })
    }

    /// The number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Row `column` of the factor, from the diagonal on.
    pub(crate) fn factors(&self, column: usize) -> &[f32] {
        &self.factor[column * self.columns + column..(column + 1) * self.columns]
    }

    /// How much an error of each column counts by itself: what [`block::encode`] takes as importances.
    #[must_use]
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// The upper triangular factor of the inverse, `[columns, columns]`.
    pub(crate) fn factor(&self) -> &[f32] {
        &self.factor
    }
}

/// Rows or columns that are worked on at once, so that the others are read seldom.
const BLOCK: usize = 16;

/// The upper triangular `U` with `Uᵀ·U` the inverse of a symmetric positive definite matrix, of which the lower triangle is given; the column where it is
/// not positive definite.
pub(crate) fn inverse_factor(mut a: Vec<f64>, k: usize) -> Result<Vec<f32>, usize> {
    // U is the transposed inverse of R, where the matrix is R·Rᵀ with R upper triangular; R comes from the last column backwards.
    // With rows and columns reversed, R is the ordinary lower Cholesky factor.
    let at = |i: usize, j: usize| (k - 1 - i) * k + (k - 1 - j);
    let mut l = vec![0.0f64; k * k];
    for i in 0..k {
        for j in 0..=i {
            // Reversed, the lower triangle of one is the upper of the other: mirror it.
            l[i * k + j] = a[at(j, i)];
        }
    }
    for first in (0..k).step_by(BLOCK) {
        let last = (first + BLOCK).min(k);
        let (done, rest) = l.split_at_mut(first * k);
        // Rows of a block need nothing of each other up to the block's own columns: each earlier row is read once for all of them.
        for (j, other) in done.chunks_exact(k).enumerate() {
            for row in rest[..(last - first) * k].chunks_exact_mut(k) {
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
        }
        for i in first..last {
            let (before, row) = rest.split_at_mut((i - first) * k);
            let row = &mut row[..k];
            for (j, other) in (first..i).zip(before.chunks_exact(k)) {
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let square = row[i] - dot(&row[..i], &row[..i]);
            if square.is_nan() || square <= 0.0 {
                return Err(k - 1 - i);
            }
            row[i] = square.sqrt();
        }
    }
    // The inverse of the lower factor, column by column, kept transposed: row j holds column j.
    a.fill(0.0);
    for first in (0..k).step_by(BLOCK) {
        let last = (first + BLOCK).min(k);
        for i in first..k {
            let row = &l[i * k..][..=i];
            for j in first..last.min(i + 1) {
                let inverse = &mut a[j * k..][..k];
                let one = if i == j { 1.0 } else { 0.0 };
                inverse[i] = (one - dot(&row[j..i], &inverse[j..i])) / row[i];
            }
        }
    }
    let mut u = vec![0.0f32; k * k];
    for i in 0..k {
        for j in i..k {
            // inverse(R)ᵀ is lower; R = P·L·P, so inverse(R) = P·inverse(L)·P, which is upper triangular.
            let (r, c) = (k - 1 - i, k - 1 - j);
            u[i * k + j] = a[c * k + r] as f32;
        }
    }
    Ok(u)
}

/// Whether [`encode`] makes up for errors in this dtype; the others are so fine that it would not show.
#[must_use]
pub fn has_feedback(dtype: DType) -> bool {
    matches!(dtype, DType::Block(format) if format != BlockFormat::Q8_0) && block::ENCODED.contains(&dtype)
}

/// Encodes rows of weights so that the products with the inputs of `feedback` change least. Dtypes of eight and more bits are encoded as by
/// [`block::encode`].
///
/// What a row becomes depends on no other row.
///
/// # Errors
/// As [`block::encode`].
pub fn encode(dtype: DType, values: &[f32], feedback: &Feedback, out: &mut [u8]) -> Result<(), EncodeError> {
    let columns = feedback.columns;
    if !has_feedback(dtype) {
        let importance = dtype.is_block().then_some(&feedback.importance[..]);
        return block::encode(dtype, values, columns, importance, out);
    }
    let row_bytes = block::check(dtype, values.len(), columns, out.len())?;
    block::check_finite(values, columns, 0)?;
    let mut batch = vec![0.0; ROWS * columns];
    for (values, out) in values.chunks(ROWS * columns).zip(out.chunks_mut(ROWS * row_bytes)) {
        let batch = &mut batch[..values.len()];
        batch.copy_from_slice(values);
        encode_in_place(dtype, batch, feedback, out)?;
    }
    Ok(())
}

/// As [`encode`] on several threads, for types that [`has_feedback`] names; `values` become what was rounded in the end: each weight with what it made up for.
///
/// # Errors
/// As [`encode`], and [`EncodeError::Unsupported`] for other types.
pub fn compensate(
    dtype: DType,
    values: &mut [f32],
    feedback: &Feedback,
    threads: usize,
    out: &mut [u8],
) -> Result<(), EncodeError> {
    let columns = feedback.columns;
    if !has_feedback(dtype) {
        return Err(EncodeError::Unsupported(dtype));
    }
    let row_bytes = block::check(dtype, values.len(), columns, out.len())?;
    block::check_finite(values, columns, 0)?;
    let share = (values.len() / columns.max(1)).div_ceil(threads.clamp(1, 1024)).max(1);
    std::thread::scope(|scope| {
        let parts = values.chunks_mut(share * columns.max(1)).zip(out.chunks_mut((share * row_bytes).max(1)));
        let workers: Vec<_> =
            parts.map(|(values, out)| scope.spawn(|| encode_in_place(dtype, values, feedback, out))).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Encodes whole rows of numbers, which become what was rounded.
fn encode_in_place(dtype: DType, values: &mut [f32], feedback: &Feedback, out: &mut [u8]) -> Result<(), EncodeError> {
    let importance = block::normalized(&feedback.importance, feedback.columns)?;
    use BlockFormat as B;
    let DType::Block(format) = dtype else { return Err(EncodeError::Unsupported(dtype)) };
    match format {
        B::Q4_0 => rows::<BlockQ4_0, 32>(values, feedback, &importance, out),
        B::Q4_1 => rows::<BlockQ4_1, 32>(values, feedback, &importance, out),
        B::Q5_0 => rows::<BlockQ5_0, 32>(values, feedback, &importance, out),
        B::Q5_1 => rows::<BlockQ5_1, 32>(values, feedback, &importance, out),
        B::Q2_K => rows::<BlockQ2K, 256>(values, feedback, &importance, out),
        B::Q3_K => rows::<BlockQ3K, 256>(values, feedback, &importance, out),
        B::Q4_K => rows::<BlockQ4K, 256>(values, feedback, &importance, out),
        B::Q5_K => rows::<BlockQ5K, 256>(values, feedback, &importance, out),
        B::Q6_K => rows::<BlockQ6K, 256>(values, feedback, &importance, out),
        B::IQ4_NL => rows::<BlockIq4Nl, 32>(values, feedback, &importance, out),
        B::IQ4_XS => rows::<BlockIq4Xs, 256>(values, feedback, &importance, out),
        B::TQ1_0 => rows::<BlockTq1_0, 256>(values, feedback, &importance, out),
        B::TQ2_0 => rows::<BlockTq2_0, 256>(values, feedback, &importance, out),
        B::MXFP4 => rows::<BlockMxfp4, 32>(values, feedback, &importance, out),
        _ => return Err(EncodeError::Unsupported(dtype)),
    }
    Ok(())
}

fn rows<B: Encoder + Codes<LEN>, const LEN: usize>(
    values: &mut [f32],
    feedback: &Feedback,
    importance: &[f32],
    out: &mut [u8],
) {
    let k = feedback.columns;
    let out: &mut [B] = bytemuck::cast_slice_mut(out);
    for (values, out) in values.chunks_mut(ROWS * k).zip(out.chunks_mut(ROWS * (k / LEN))) {
        widest(
            #[inline(always)]
            || round::<B, LEN>(values, feedback, importance, out),
        );
    }
}

/// Rounds a few rows, block by block.
#[inline(always)]
fn round<B: Encoder + Codes<LEN>, const LEN: usize>(
    rows: &mut [f32],
    feedback: &Feedback,
    importance: &[f32],
    out: &mut [B],
) {
    let k = feedback.columns;
    let count = rows.len() / k;
    let mut ladder = Vec::new();
    let mut errors = vec![[0.0f32; LEN]; count];
    for at in 0..k / LEN {
        let start = at * LEN;
        let end = start + LEN;
        let blocks = scales::<B, LEN>(rows, k, start, importance);
        for (r, block) in blocks.into_iter().take(count).enumerate() {
            let mut block = block;
            block.ladder(&mut ladder);
            let row = &mut rows[r * k + start..][..LEN];
            let mut q = [0; LEN];
            for j in 0..LEN {
                let (mut value, mut least) = (0.0, f32::INFINITY);
                for (code, values) in ladder.iter().enumerate() {
                    let distance = (values[j] - row[j]).abs();
                    if distance < least {
                        (value, least, q[j]) = (values[j], distance, code as u8);
                    }
                }
                let factors = &feedback.factor[(start + j) * k + start..][..LEN];
                let error = (row[j] - value) / factors[j];
                errors[r][j] = error;
                for (x, f) in row[j + 1..].iter_mut().zip(&factors[j + 1..]) {
                    *x -= error * f;
                }
            }
            block.set_codes(&q);
            out[r * (k / LEN) + at] = block;
        }
        for from in (end..k).step_by(COLUMNS) {
            let len = COLUMNS.min(k - from);
            for (row, errors) in rows.chunks_exact_mut(k).zip(&errors) {
                let row = &mut row[from..][..len];
                for (j, four) in errors.as_chunks::<4>().0.iter().enumerate() {
                    let factors = |i: usize| &feedback.factor[(start + 4 * j + i) * k + from..][..len];
                    let (a, b, c, d) = (factors(0), factors(1), factors(2), factors(3));
                    for (i, x) in row.iter_mut().enumerate() {
                        *x -= four[0] * a[i] + four[1] * b[i] + four[2] * c[i] + four[3] * d[i];
                    }
                }
            }
        }
    }
}

/// The blocks of up to eight rows at a column as their encoder makes them.
#[inline(always)]
fn scales<B: Encoder + Codes<LEN>, const LEN: usize>(
    rows: &[f32],
    k: usize,
    start: usize,
    importance: &[f32],
) -> [B; ROWS] {
    let mut blocks = [B::zeroed(); ROWS];
    if LEN == 256 {
        for (block, row) in blocks.iter_mut().zip(rows.chunks_exact(k)) {
            let at = |offset: usize| &importance[start + offset..];
            B::encode::<true>(&row[start..][..LEN], at, std::slice::from_mut(block));
        }
    } else {
        let mut values = [0.0; 256];
        for (values, row) in values.chunks_exact_mut(LEN).zip(rows.chunks_exact(k)) {
            values.copy_from_slice(&row[start..][..LEN]);
        }
        B::encode::<true>(&values, |_| &importance[start..], &mut blocks);
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    /// Inputs of which neighbours go together, `[rows, k]`, and the sums of their products.
    fn inputs(rows: usize, k: usize) -> (Vec<f32>, Vec<f32>) {
        let mut next = random(7);
        let mut x = vec![0.0; rows * k];
        for row in x.chunks_exact_mut(k) {
            let mut last = 0.0;
            for (i, x) in row.iter_mut().enumerate() {
                last = 0.8 * last + next() * if i % 7 == 0 { 4.0 } else { 1.0 };
                *x = last;
            }
        }
        let mut products = vec![0.0; k * k];
        for row in x.chunks_exact(k) {
            for i in 0..k {
                for j in 0..k {
                    products[i * k + j] += row[i] * row[j];
                }
            }
        }
        (x, products)
    }

    /// The squared error of the outputs.
    fn output_error(x: &[f32], k: usize, weights: &[f32], decoded: &[f32]) -> f64 {
        let mut sum = 0.0;
        for x in x.chunks_exact(k) {
            for (w, q) in weights.chunks_exact(k).zip(decoded.chunks_exact(k)) {
                let difference: f32 = x.iter().zip(w.iter().zip(q)).map(|(x, (w, q))| x * (w - q)).sum();
                sum += f64::from(difference).powi(2);
            }
        }
        sum
    }

    #[test]
    fn outputs_change_less_than_by_rounding_each_weight_for_itself() {
        let (k, rows) = (512, 11);
        let (x, products) = inputs(700, k);
        let feedback = Feedback::new(&products, k, 0.01).unwrap();
        let mut next = random(3);
        let weights: Vec<f32> = (0..rows * k).map(|_| next() * next()).collect();
        for dtype in block::ENCODED.into_iter().filter(|dtype| has_feedback(*dtype)) {
            let mut bytes = vec![0; dtype.row_bytes(k).unwrap() * rows];
            let mut error = |encode: &dyn Fn(&mut [u8])| {
                encode(&mut bytes);
                let decoded = core_tensor::decode_f32(dtype, &bytes, weights.len()).unwrap();
                output_error(&x, k, &weights, &decoded)
            };
            let alone = error(&|out| block::encode(dtype, &weights, k, Some(feedback.importance()), out).unwrap());
            let together = error(&|out| encode(dtype, &weights, &feedback, out).unwrap());
            assert!(together < 0.6 * alone, "{dtype}: {together} with feedback, {alone} without");
        }
    }

    #[test]
    fn a_row_becomes_the_same_alone_and_among_others() {
        let k = 256;
        let (_, products) = inputs(400, k);
        let feedback = Feedback::new(&products, k, 0.01).unwrap();
        let mut next = random(5);
        let weights: Vec<f32> = (0..10 * k).map(|_| next()).collect();
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_K] {
            let dtype = DType::Block(format);
            let bytes = dtype.row_bytes(k).unwrap();
            let mut all = vec![0; 10 * bytes];
            encode(dtype, &weights, &feedback, &mut all).unwrap();
            for (row, expected) in weights.chunks_exact(k).zip(all.chunks_exact(bytes)) {
                let mut alone = vec![0; bytes];
                encode(dtype, row, &feedback, &mut alone).unwrap();
                assert_eq!(alone, expected, "{dtype}");
            }
        }
    }

    #[test]
    fn the_factor_squared_is_the_inverse() {
        let k = 40;
        let (_, products) = inputs(90, k);
        let products: Vec<f64> = products.into_iter().map(f64::from).collect();
        let u = inverse_factor(products.clone(), k).unwrap();
        for i in 0..k {
            for j in 0..k {
                // (Uᵀ U) A is 1.
                let inverse =
                    |a: usize, b: usize| (0..k).map(|r| f64::from(u[r * k + a]) * f64::from(u[r * k + b])).sum();
                let found: f64 = (0..k)
                    .map(|m| {
                        let v: f64 = inverse(i, m);
                        v * products[m * k + j]
                    })
                    .sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((found - expected).abs() < 1e-3, "{i}, {j}: {found}");
            }
            assert!(u[i * k..][..i].iter().all(|below| *below == 0.0));
        }
    }

    #[test]
    fn inputs_that_say_nothing_are_refused() {
        assert_eq!(Feedback::new(&[1.0; 3], 2, 0.01).unwrap_err(), FeedbackError::Length { columns: 2, found: 3 });
        let error = Feedback::new(&[1.0, 1.0, 1.0, 1.0], 2, 0.0).unwrap_err();
        assert!(matches!(error, FeedbackError::Singular { .. }), "{error}");
        let error = Feedback::new(&[f32::NAN, 0.0, 0.0, 1.0], 2, 0.01).unwrap_err();
        assert!(matches!(error, FeedbackError::NotFinite { column: 0, .. }), "{error}");
    }
}
