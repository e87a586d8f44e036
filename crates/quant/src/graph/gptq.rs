//! Rounding that follows what the activations need (Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022).

use super::integers::{I4Groups, Matrix, code_i4, scale_i4};
use super::observer::Hessian;
use crate::gptq::inverse_factor;

/// Why GPTQ cannot be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GptqError {
    /// The Hessian is that of other inputs.
    #[error("activations of {found} columns were observed, the weight has {expected}")]
    Columns {
        /// The weight's.
        expected: usize,
        /// The Hessian's.
        found: usize,
    },
    /// Nothing was observed.
    #[error("no activations were observed")]
    Empty,
    /// The damped Hessian is not positive definite.
    #[error("the activations are too uniform for this damping ({damping}): column {column}")]
    Singular {
        /// What was added.
        damping: f64,
        /// Where it failed.
        column: usize,
    },
}

/// Rounds to 4 bits in groups so that the product with the observed activations changes least: column by column, what a column's rounding changes
/// is made up for by the columns after it.
///
/// `damping` times the mean of the Hessian's diagonal is added to the diagonal. Scales are searched for when the first column of a group is reached.
///
/// # Errors
/// When the Hessian does not fit the matrix, is empty, or is singular in spite of the damping.
pub fn gptq(
    matrix: &Matrix,
    hessian: &Hessian,
    group: usize,
    damping: f64,
    threads: usize,
) -> Result<I4Groups, GptqError> {
    let k = matrix.columns;
    if hessian.columns != k {
        return Err(GptqError::Columns { expected: k, found: hessian.columns });
    }
    if hessian.rows == 0 {
        return Err(GptqError::Empty);
    }
    let diagonal: Vec<f64> = (0..k).map(|i| hessian.product(i, i)).collect();
    let mean = diagonal.iter().sum::<f64>() / k.max(1) as f64;
    let mut damped = hessian.products.clone();
    for (i, value) in diagonal.iter().enumerate() {
        // A column that is always 0 constrains nothing.
        damped[i * k + i] = if *value == 0.0 { mean.max(1.0) } else { value + damping * mean };
    }
    let factor = inverse_factor(damped, k).map_err(|column| GptqError::Singular { damping, column })?;
    let importance: Vec<f32> = diagonal.iter().map(|value| (value / mean.max(1e-30)) as f32 + 1e-6).collect();
    let per_row = k.div_ceil(group);
    let mut codes = vec![0i8; matrix.values.len()];
    let mut scales = vec![0.0f32; matrix.rows * per_row];
    let share = matrix.rows.div_ceil(threads.max(1)).max(1);
    let (factor, importance) = (&factor, &importance);
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut(share * k.max(1)).zip(scales.chunks_mut(share * per_row.max(1)));
        for ((codes, scales), values) in parts.zip(matrix.values.chunks(share * k.max(1))) {
            scope.spawn(move || {
                let rows = values.chunks(k).zip(codes.chunks_mut(k)).zip(scales.chunks_mut(per_row));
                for ((values, codes), scales) in rows {
                    round_row(values, factor, importance, group, codes, scales);
                }
            });
        }
    });
    Ok(I4Groups { codes, scales, group, columns: k })
}

fn round_row(values: &[f32], factor: &[f32], importance: &[f32], group: usize, codes: &mut [i8], scales: &mut [f32]) {
    let k = values.len();
    let mut row = values.to_vec();
    for i in 0..k {
        if i % group == 0 {
            let end = (i + group).min(k);
            scales[i / group] = scale_i4(&row[i..end], Some(&importance[i..end]));
        }
        let scale = scales[i / group];
        codes[i] = code_i4(row[i], scale);
        let factors = &factor[i * k..][..k];
        let error = (row[i] - f32::from(codes[i]) * scale) / factors[i];
        row[i + 1..].iter_mut().zip(&factors[i + 1..]).for_each(|(x, f)| *x -= error * f);
    }
}
