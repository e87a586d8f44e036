//! Matrices of integers.

use half::f16;

/// A matrix of f32, row by row: a row holds the weights of one output.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows: outputs.
    pub rows: usize,
    /// Columns: inputs.
    pub columns: usize,
    /// `[rows, columns]`.
    pub values: Vec<f32>,
}

/// Side of the squares by which matrices are transposed: they fit into the first cache.
const SQUARE: usize = 32;

/// The elements of `[rows, columns]` as `[columns, rows]`.
pub(super) fn transpose<T: Copy + Default>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut out = vec![T::default(); rows * columns];
    transpose_into(values, rows, columns, &mut out, rows);
    out
}

/// The same into a part of something wider: rows of the result begin `stride` elements from each other.
pub(super) fn transpose_into<T: Copy>(values: &[T], rows: usize, columns: usize, out: &mut [T], stride: usize) {
    for top in (0..rows).step_by(SQUARE) {
        for left in (0..columns).step_by(SQUARE) {
            for row in top..(top + SQUARE).min(rows) {
                for column in left..(left + SQUARE).min(columns) {
                    out[column * stride + row] = values[row * columns + column];
                }
            }
        }
    }
}

impl Matrix {
    /// Rows become columns.
    #[must_use]
    pub fn transposed(&self) -> Matrix {
        let values = transpose(&self.values, self.rows, self.columns);
        Matrix { rows: self.columns, columns: self.rows, values }
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

/// The sums of squared differences from what was decoded, and of squares.
pub(super) fn loss(values: &[f32], decoded: impl Fn(usize) -> f32) -> (f64, f64) {
    values.iter().enumerate().fold((0.0, 0.0), |(noise, power), (i, x)| {
        let d = f64::from(x - decoded(i));
        (noise + d * d, power + f64::from(*x) * f64::from(*x))
    })
}

/// Integers of 4 bits from -8 to 7, with a scale for each group of neighbours in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct I4Groups {
    /// `[rows, columns]`, one per byte.
    pub codes: Vec<i8>,
    /// `[rows, ceil(columns / group)]`, numbers that f16 holds.
    pub scales: Vec<f32>,
    /// Columns that share a scale.
    pub group: usize,
    /// Columns.
    pub columns: usize,
}

impl I4Groups {
    /// What an element stands for.
    #[must_use]
    pub fn decoded(&self, row: usize, column: usize) -> f32 {
        let scale = self.scales[row * self.columns.div_ceil(self.group) + column / self.group];
        f32::from(self.codes[row * self.columns + column]) * scale
    }

    /// What the codes stand for, `[rows, columns]`.
    #[must_use]
    pub fn decode(&self) -> Vec<f32> {
        (0..self.codes.len()).map(|i| self.decoded(i / self.columns, i % self.columns)).collect()
    }

    /// The sums of squared differences and of squares.
    #[must_use]
    pub fn loss(&self, matrix: &Matrix) -> (f64, f64) {
        loss(&matrix.values, |i| self.decoded(i / matrix.columns, i % matrix.columns))
    }

    /// As blocks of `Q4_0`: 32 columns each, of which those of a group have the same scale. Columns and group must be multiples of 32.
    #[must_use]
    pub fn blocks(&self) -> Vec<u8> {
        let per_row = self.columns.div_ceil(self.group);
        let mut out = Vec::with_capacity(self.codes.len() / 32 * 18);
        for (i, block) in self.codes.chunks_exact(32).enumerate() {
            let (row, column) = (i * 32 / self.columns, i * 32 % self.columns);
            let scale = self.scales[row * per_row + column / self.group];
            out.extend(f16::from_f32(scale).to_le_bytes());
            let nibble = |code: i8| (code + 8) as u8;
            out.extend((0..16).map(|j| nibble(block[j]) | nibble(block[j + 16]) << 4));
        }
        out
    }
}

/// Rounds to 4 bits in groups: each group's scale is searched for the least squared error, weighted by `importance` (one per column) where given.
#[must_use]
pub fn encode_i4(matrix: &Matrix, group: usize, importance: Option<&[f32]>, threads: usize) -> I4Groups {
    let per_row = matrix.columns.div_ceil(group);
    let mut codes = vec![0i8; matrix.values.len()];
    let mut scales = vec![0.0f32; matrix.rows * per_row];
    let share = matrix.rows.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut(share * matrix.columns.max(1)).zip(scales.chunks_mut(share * per_row.max(1)));
        for ((codes, scales), values) in parts.zip(matrix.values.chunks(share * matrix.columns.max(1))) {
            scope.spawn(move || {
                let rows = values.chunks(matrix.columns).zip(codes.chunks_mut(matrix.columns));
                for ((values, codes), scales) in rows.zip(scales.chunks_mut(per_row)) {
                    let groups = values.chunks(group).zip(codes.chunks_mut(group)).zip(scales.iter_mut());
                    for (i, ((values, codes), scale)) in groups.enumerate() {
                        *scale = scale_i4(values, importance.map(|all| &all[i * group..][..values.len()]));
                        values.iter().zip(codes).for_each(|(x, code)| *code = code_i4(*x, *scale));
                    }
                }
            });
        }
    });
    I4Groups { codes, scales, group, columns: matrix.columns }
}

/// Parts of a group's scale that are tried where outputs decide.
const PARTS: [f32; 9] = [0.7, 0.76, 0.82, 0.87, 0.91, 0.95, 1.0, 1.04, 1.08];

/// The same where each group's scale is the one with which the group's products with the examples (rows of the inputs, side by side) change least, in the squared
/// sum: what a scale cuts is weighed against what it rounds finer (the search of AWQ for clipping; Lin et al., 2023).
#[must_use]
pub fn encode_i4_for(matrix: &Matrix, group: usize, examples: &[f32], threads: usize) -> I4Groups {
    let k = matrix.columns;
    let rows = examples.len() / k.max(1);
    if rows == 0 {
        return encode_i4(matrix, group, None, threads);
    }
    // Of each group the sums of the products of its columns.
    let grams: Vec<Vec<f32>> = (0..k.div_ceil(group))
        .map(|at| {
            let columns = at * group..((at + 1) * group).min(k);
            let width = columns.len();
            let mut gram = vec![0.0f32; width * width];
            for row in examples.chunks_exact(k) {
                let row = &row[columns.clone()];
                for (x, sums) in row.iter().zip(gram.chunks_exact_mut(width)) {
                    sums.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
                }
            }
            gram
        })
        .collect();
    let importance: Vec<f32> = grams
        .iter()
        .flat_map(|gram| {
            let width = gram.len().isqrt();
            (0..width).map(move |i| gram[i * width + i] / rows as f32 + 1e-8)
        })
        .collect();
    let mut made = encode_i4(matrix, group, Some(&importance), threads);
    let per_row = k.div_ceil(group);
    let share = matrix.rows.div_ceil(threads.max(1)).max(1);
    let grams = &grams;
    std::thread::scope(|scope| {
        let parts = made.codes.chunks_mut(share * k).zip(made.scales.chunks_mut(share * per_row));
        for ((codes, scales), values) in parts.zip(matrix.values.chunks(share * k)) {
            scope.spawn(move || {
                let mut differences = Vec::new();
                let rows = values.chunks(k).zip(codes.chunks_mut(k)).zip(scales.chunks_mut(per_row));
                for ((values, codes), scales) in rows {
                    let groups = values.chunks(group).zip(codes.chunks_mut(group)).zip(scales.iter_mut());
                    for (((values, codes), scale), gram) in groups.zip(grams) {
                        let tries = PARTS.iter().map(|part| half(*scale * part));
                        let costs = tries.map(|scale| {
                            differences.clear();
                            differences.extend(values.iter().map(|x| x - f32::from(code_i4(*x, scale)) * scale));
                            (form(&differences, gram), scale)
                        });
                        let costs = costs.filter(|(cost, _)| cost.is_finite());
                        let best = costs.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(*scale, |(_, scale)| scale);
                        *scale = best;
                        values.iter().zip(codes).for_each(|(x, code)| *code = code_i4(*x, best));
                    }
                }
            });
        }
    });
    made
}

/// `dᵀ G d`
fn form(d: &[f32], gram: &[f32]) -> f32 {
    let rows = d.iter().zip(gram.chunks_exact(d.len().max(1)));
    rows.map(|(x, row)| x * row.iter().zip(d).map(|(g, y)| g * y).sum::<f32>()).sum()
}

/// The integer of 4 bits that is nearest.
pub(super) fn code_i4(x: f32, scale: f32) -> i8 {
    if scale == 0.0 { 0 } else { (x / scale).round_ties_even().clamp(-8.0, 7.0) as i8 }
}

/// The nearest number that f16 holds, none of which is infinite.
fn half(scale: f32) -> f32 {
    f16::from_f32(scale.clamp(-65504.0, 65504.0)).to_f32()
}

/// Starts of the search: what the element of the largest magnitude becomes.
const STARTS: [f32; 14] = [-8.6, -8.3, -8.0, -7.7, -7.4, -7.1, -6.8, -6.4, -6.0, 6.2, 6.6, 7.0, 7.3, 7.6];

/// The scale of a group with the least (weighted) squared error among those that the starts lead to; a number that f16 holds.
pub(super) fn scale_i4(values: &[f32], importance: Option<&[f32]>) -> f32 {
    let most = values.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    if most.abs() < 1e-7 {
        return 0.0;
    }
    let weight = |i: usize| importance.map_or(1.0, |all| all[i]);
    let mut best = (f32::INFINITY, half(most / -8.0));
    for start in STARTS {
        let mut scale = most / start;
        // The codes of a scale, and the scale that suits these codes.
        for _ in 0..2 {
            let (mut xq, mut qq) = (0.0f32, 0.0f32);
            for (i, x) in values.iter().enumerate() {
                let q = f32::from(code_i4(*x, scale));
                xq += weight(i) * x * q;
                qq += weight(i) * q * q;
            }
            if qq > 0.0 {
                scale = xq / qq;
            }
        }
        let scale = half(scale);
        let error: f32 = values
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let d = x - f32::from(code_i4(*x, scale)) * scale;
                weight(i) * d * d
            })
            .sum();
        if error < best.0 && scale != 0.0 {
            best = (error, scale);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_stay_numbers() {
        // Weights at the end of what f16 scales reach, and examples whose products are infinite.
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 1.6e4).collect();
        let matrix = Matrix { rows: 1, columns: 64, values };
        for examples in [vec![1.0; 64], vec![1e25; 64]] {
            let made = encode_i4_for(&matrix, 32, &examples, 1);
            assert!(made.scales.iter().all(|scale| scale.is_finite() && *scale != 0.0), "{:?}", made.scales);
            let (noise, power) = made.loss(&matrix);
            assert!(noise < 0.02 * power, "{noise} of {power}");
        }
    }
}
