//! Inputs of a matrix that go: neurons, attention heads, channels.

use super::{Products, PruneError, check};
use crate::gptq::{FeedbackError, inverse_factor};
use crate::widest::widest;

/// What each input of a matrix gives to its outputs: the sum of the squares of its columns' weights, times the mean squares of what meets them, over units of
/// `unit` columns (1 of neurons, the length of its heads' values for a group of heads).
///
/// # Errors
/// When the weights are no whole rows of finite numbers, the columns no whole units, or there is not one mean square for each column.
pub fn unit_scores(weights: &[f32], columns: usize, mean_squares: &[f32], unit: usize) -> Result<Vec<f64>, PruneError> {
    check(weights, columns, None)?;
    if mean_squares.len() != columns {
        return Err(PruneError::Length { what: "mean squares", columns, found: mean_squares.len() });
    }
    if unit == 0 || !columns.is_multiple_of(unit) {
        return Err(PruneError::Groups { columns, group: unit });
    }
    let mut squares = vec![0.0f64; columns];
    for row in weights.chunks_exact(columns) {
        squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
    }
    let scores: Vec<f64> = squares.iter().zip(mean_squares).map(|(w, x)| w * f64::from(*x)).collect();
    Ok(scores.chunks_exact(unit).map(|unit| unit.iter().sum()).collect())
}

/// The numbers of the `keep` highest scores, in order; of equal ones the first.
#[must_use]
pub fn keep_best(scores: &[f64], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(keep);
    order.sort_unstable();
    order
}

/// The columns of a matrix that remain, as they are.
#[must_use]
pub fn select_columns(weights: &[f32], columns: usize, kept: &[usize]) -> Vec<f32> {
    let rows = weights.chunks_exact(columns.max(1));
    rows.flat_map(|row| kept.iter().filter_map(|column| row.get(*column).copied())).collect()
}

/// The columns of a matrix that remain, changed so that the outputs are as near to what they were as these inputs allow, `[rows, kept]`.
///
/// With `H` the products of the inputs, `S` the columns that remain and `R` the others, it is `W[S] + W[R] H[R, S] (H[S, S] + λ)⁻¹`: of all matrices the one
/// with the least squared error of the outputs and of the weights' change, the latter weighing `λ`, which is `damping` times the mean of the diagonal of `H`.
///
/// # Errors
/// When the weights are no whole rows of finite numbers, the products not of its columns, or the damped products not positive definite.
pub fn least_squares(
    weights: &[f32],
    products: &Products,
    kept: &[usize],
    damping: f64,
    threads: usize,
) -> Result<Vec<f32>, PruneError> {
    let k = products.columns();
    check(weights, k, None)?;
    let gone: Vec<usize> = {
        let mut stays = vec![false; k];
        for column in kept {
            let Some(stays) = stays.get_mut(*column) else {
                return Err(PruneError::Length { what: "is the number of a column", columns: k, found: *column });
            };
            *stays = true;
        }
        (0..k).filter(|column| !stays[*column]).collect()
    };
    let s = kept.len();
    let h = products.values();
    let mean = products.squares().iter().map(|square| f64::from(*square)).sum::<f64>() / k as f64;
    let mut damped = vec![0.0f64; s * s];
    for (row, i) in damped.chunks_exact_mut(s.max(1)).zip(kept) {
        row.iter_mut().zip(kept).for_each(|(to, j)| *to = f64::from(h[i * k + j]));
    }
    for i in 0..s {
        let value = &mut damped[i * s + i];
        // An input that is always 0 makes up for nothing.
        *value = if *value == 0.0 { mean.max(1.0) } else { *value + damping * mean };
    }
    let factor =
        inverse_factor(damped, s).map_err(|column| FeedbackError::Singular { damping, column: kept[column] })?;
    // H[R, S]
    let across: Vec<f32> = gone.iter().flat_map(|i| kept.iter().map(move |j| h[i * k + j])).collect();
    let mut out = select_columns(weights, k, kept);
    let rows = weights.len() / k;
    let share = rows.div_ceil(threads.clamp(1, 1024)).max(1);
    std::thread::scope(|scope| {
        for (weights, out) in weights.chunks(share * k).zip(out.chunks_mut((share * s).max(1))) {
            let (gone, across, factor) = (&gone, &across, &factor);
            scope.spawn(move || {
                widest(
                    #[inline(always)]
                    || {
                        for (row, out) in weights.chunks_exact(k).zip(out.chunks_exact_mut(s)) {
                            make_up(row, out, gone, across, factor);
                        }
                    },
                );
            });
        }
    });
    Ok(out)
}

/// Adds to the weights that remain of a row what makes up for the others.
#[inline(always)]
fn make_up(row: &[f32], out: &mut [f32], gone: &[usize], across: &[f32], factor: &[f32]) {
    let s = out.len();
    let mut lost = vec![0.0f32; s];
    for (column, across) in gone.iter().zip(across.chunks_exact(s)) {
        let w = row[*column];
        if w != 0.0 {
            lost.iter_mut().zip(across).for_each(|(sum, h)| *sum += w * h);
        }
    }
    // The inverse is Uᵀ·U, and U is upper triangular: each row of it serves once to make a number of lost·Uᵀ and once to spread it.
    for (i, u) in factor.chunks_exact(s).enumerate() {
        let u = &u[i..];
        let (sums, rest) = (u.as_chunks::<8>().0, u.len() / 8 * 8);
        let mut parts = [0.0f32; 8];
        for (u, x) in sums.iter().zip(lost[i..].as_chunks::<8>().0) {
            for lane in 0..8 {
                parts[lane] += u[lane] * x[lane];
            }
        }
        let tail: f32 = u[rest..].iter().zip(&lost[i + rest..]).map(|(u, x)| u * x).sum();
        let z = parts.iter().sum::<f32>() + tail;
        out[i..].iter_mut().zip(u).for_each(|(w, u)| *w += z * u);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_scored_by_their_columns_and_what_meets_them() {
        let weights = [1.0, 0.0, 3.0, 0.0, /**/ 0.0, 2.0, 0.0, 1.0];
        let scores = unit_scores(&weights, 4, &[1.0, 1.0, 1.0, 100.0], 1).unwrap();
        assert_eq!(scores, [1.0, 4.0, 9.0, 100.0]);
        assert_eq!(unit_scores(&weights, 4, &[1.0, 1.0, 1.0, 100.0], 2).unwrap(), [5.0, 109.0]);
        assert_eq!(keep_best(&scores, 2), [2, 3]);
        assert_eq!(keep_best(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert!(unit_scores(&weights, 4, &[1.0; 4], 3).is_err());
        assert!(unit_scores(&weights, 4, &[1.0; 3], 1).is_err());
    }

    #[test]
    fn inputs_that_others_make_are_not_missed() {
        // Column 2 is column 0 + 2 × column 1 in all inputs.
        let inputs: Vec<[f32; 3]> = (0..50)
            .map(|i| {
                let (a, b) = ((i as f32 * 0.7).sin(), (i as f32 * 1.3).cos());
                [a, b, a + 2.0 * b]
            })
            .collect();
        let mut sums = vec![0.0; 9];
        for x in &inputs {
            for i in 0..3 {
                for j in 0..3 {
                    sums[i * 3 + j] += x[i] * x[j];
                }
            }
        }
        let products = Products::new(sums, 3).unwrap();
        let weights = [1.0, 2.0, 3.0, -1.0, 0.5, 2.0];
        let found = least_squares(&weights, &products, &[0, 1], 1e-7, 2).unwrap();
        for (found, expected) in found.iter().zip([4.0, 8.0, 1.0, 4.5]) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        // With heavy damping nothing moves.
        let found = least_squares(&weights, &products, &[0, 1], 1e9, 1).unwrap();
        assert!(found.iter().zip([1.0, 2.0, -1.0, 0.5]).all(|(found, w)| (found - w).abs() < 1e-5), "{found:?}");
        assert!(least_squares(&weights, &products, &[0, 3], 0.01, 1).is_err());
    }

    #[test]
    fn columns_that_remain_are_told_apart() {
        assert_eq!(select_columns(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, &[0, 2]), [1.0, 3.0, 4.0, 6.0]);
    }
}
