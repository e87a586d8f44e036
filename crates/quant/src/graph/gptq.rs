//! Rounding that follows what the activations need (Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, 2022).

use super::bytes::{ByteRounding, I8Rows, Levels, row_levels, rows_of};
use super::integers::{I4Groups, Matrix, code_i4, scale_i4};
use crate::gptq::{Feedback, FeedbackError};

/// How much an error of each column counts, around 1.
fn importance(feedback: &Feedback) -> Vec<f32> {
    let all = feedback.importance();
    let mean = all.iter().map(|x| f64::from(*x)).sum::<f64>() / all.len().max(1) as f64;
    all.iter().map(|x| (f64::from(*x) / mean.max(1e-30)) as f32 + 1e-6).collect()
}

fn check(matrix: &Matrix, feedback: &Feedback) -> Result<(), FeedbackError> {
    match feedback.columns() == matrix.columns {
        true => Ok(()),
        false => Err(FeedbackError::Length { columns: matrix.columns, found: feedback.columns().pow(2) }),
    }
}

/// Rounds to 4 bits in groups so that the product with the observed activations changes least: column by column, what a column's rounding changes
/// is made up for by the columns after it.
///
/// Scales are searched for when the first column of a group is reached.
///
/// # Errors
/// When the feedback is that of other columns.
pub fn gptq_i4(matrix: &Matrix, feedback: &Feedback, group: usize, threads: usize) -> Result<I4Groups, FeedbackError> {
    check(matrix, feedback)?;
    let k = matrix.columns;
    let importance = importance(feedback);
    let per_row = k.div_ceil(group);
    let mut codes = vec![0i8; matrix.values.len()];
    let mut scales = vec![0.0f32; matrix.rows * per_row];
    let share = matrix.rows.div_ceil(threads.max(1)).max(1);
    let importance = &importance;
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut(share * k.max(1)).zip(scales.chunks_mut(share * per_row.max(1)));
        for ((codes, scales), values) in parts.zip(matrix.values.chunks(share * k.max(1))) {
            scope.spawn(move || {
                let rows = values.chunks(k).zip(codes.chunks_mut(k)).zip(scales.chunks_mut(per_row));
                for ((values, codes), scales) in rows {
                    round(values, feedback, codes, |i, rest, code| {
                        if i % group == 0 {
                            let end = group.min(k - i);
                            scales[i / group] = scale_i4(&rest[..end], Some(&importance[i..i + end]));
                        }
                        let scale = scales[i / group];
                        *code = code_i4(rest[0], scale);
                        f32::from(*code) * scale
                    });
                }
            });
        }
    });
    Ok(I4Groups { codes, scales, group, columns: k })
}

/// The same with signed bytes. Scales are those that plain rounding would have.
///
/// # Errors
/// When the feedback is that of other columns.
pub fn gptq_i8(matrix: &Matrix, feedback: &Feedback, how: &ByteRounding) -> Result<I8Rows, FeedbackError> {
    check(matrix, feedback)?;
    let k = matrix.columns;
    let levels: Vec<Levels> = row_levels(matrix, how, None, Some(&importance(feedback)));
    let mut codes = vec![0i8; matrix.values.len()];
    let share = matrix.rows.div_ceil(how.threads.max(1)).max(1);
    let all = &levels;
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut(share * k.max(1)).zip(matrix.values.chunks(share * k.max(1)));
        for (part, (codes, values)) in parts.enumerate() {
            scope.spawn(move || {
                for (row, (values, codes)) in values.chunks(k).zip(codes.chunks_mut(k)).enumerate() {
                    let levels = if how.per_tensor { all[0] } else { all[part * share + row] };
                    round(values, feedback, codes, |_, rest, code| {
                        *code = levels.code(rest[0]);
                        levels.value(*code)
                    });
                }
            });
        }
    });
    Ok(rows_of(&levels, codes))
}

/// Rounds a row: `code` is given the number of a column, what has become of it and of those behind it, and the place for its code, and says what that stands for.
fn round(values: &[f32], feedback: &Feedback, codes: &mut [i8], mut code: impl FnMut(usize, &[f32], &mut i8) -> f32) {
    let mut row = values.to_vec();
    for (i, place) in codes.iter_mut().enumerate() {
        let factors = feedback.factors(i);
        let error = (row[i] - code(i, &row[i..], place)) / factors[0];
        row[i..].iter_mut().zip(factors).skip(1).for_each(|(x, f)| *x -= error * f);
    }
}
