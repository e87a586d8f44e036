//! Matrices of signed bytes.

use super::integers::{Matrix, loss};

/// How a matrix becomes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRounding {
    /// One scale for all rows, and not one for each.
    pub per_tensor: bool,
    /// Whether the range of a row may lie anywhere around 0, which then has a code of its own; else the codes lie around 0.
    pub asymmetric: bool,
    /// Whether a part of the range is searched for with less squared error than the whole, which cuts what lies outside.
    pub clip: bool,
    /// Threads; at least one.
    pub threads: usize,
}

/// Signed bytes, with a scale for each row or one for all.
#[derive(Clone, Debug, PartialEq)]
pub struct I8Rows {
    /// `[rows, columns]`, from -127 to 127, or from -128 where there are zero points.
    pub codes: Vec<i8>,
    /// One for each row, or a single one.
    pub scales: Vec<f32>,
    /// The codes of 0, as many as scales; none where all are 0.
    pub zeros: Vec<i8>,
}

impl I8Rows {
    /// The levels of a row.
    fn levels(&self, row: usize) -> Levels {
        let at = if self.scales.len() == 1 { 0 } else { row };
        let zero = self.zeros.get(at).copied();
        Levels { scale: self.scales[at], zero: zero.unwrap_or(0), asymmetric: zero.is_some() }
    }

    /// What the codes stand for, `[rows, columns]`.
    #[must_use]
    pub fn decode(&self, columns: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(columns.max(1)).enumerate() {
            let levels = self.levels(row);
            out.extend(codes.iter().map(|code| levels.value(*code)));
        }
        out
    }

    /// The sums of squared differences and of squares.
    #[must_use]
    pub fn loss(&self, matrix: &Matrix) -> (f64, f64) {
        let columns = matrix.columns.max(1);
        let rows = matrix.values.chunks(columns).zip(self.codes.chunks(columns));
        rows.enumerate().fold((0.0, 0.0), |(noise, power), (row, (values, codes))| {
            let levels = self.levels(row);
            let (more, squares) = loss(values, |i| levels.value(codes[i]));
            (noise + more, power + squares)
        })
    }
}

/// What the codes of a row stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels {
    pub(super) scale: f32,
    pub(super) zero: i8,
    asymmetric: bool,
}

impl Levels {
    /// Levels over a range that is widened to hold 0.
    fn over(low: f32, high: f32, asymmetric: bool) -> Levels {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let span = if asymmetric { high - low } else { high.max(-low) };
        // Scales of nothing but zeros, and those that would be too small to divide by.
        if span < 1e-30 {
            return Levels { scale: 1.0, zero: 0, asymmetric };
        }
        if !asymmetric {
            return Levels { scale: span / 127.0, zero: 0, asymmetric };
        }
        // Half of each, where the difference itself would be infinite.
        let scale = high / 255.0 - low / 255.0;
        let zero = (-128.0 - low / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
        Levels { scale, zero, asymmetric }
    }

    /// With a scale of this at least.
    fn at_least(self, floor: f32) -> Levels {
        if floor <= self.scale {
            return self;
        }
        let low = (-128.0 - f32::from(self.zero)) * self.scale;
        let zero =
            if self.asymmetric { (-128.0 - low / floor).round_ties_even().clamp(-128.0, 127.0) as i8 } else { 0 };
        Levels { scale: floor, zero, ..self }
    }

    /// The code that is nearest.
    pub(super) fn code(self, x: f32) -> i8 {
        let least = if self.asymmetric { -128.0 } else { -127.0 };
        ((x / self.scale).round_ties_even() + f32::from(self.zero)).clamp(least, 127.0) as i8
    }

    /// What a code stands for.
    pub(super) fn value(self, code: i8) -> f32 {
        (f32::from(code) - f32::from(self.zero)) * self.scale
    }
}

/// Parts of a range that are tried: one less 1/100 of each.
const PARTS: [u8; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 19, 22, 26, 30, 35, 40, 50];

/// The levels of some weights.
pub(super) fn levels(values: &[f32], how: &ByteRounding, importance: Option<&[f32]>) -> Levels {
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    let whole = Levels::over(low, high, how.asymmetric);
    if !how.clip {
        return whole;
    }
    let weight = |i: usize| importance.map_or(1.0, |all| all[i % all.len().max(1)]);
    let error = |levels: Levels| -> f64 {
        let parts = values.iter().enumerate();
        parts
            .map(|(i, x)| {
                let d = x - levels.value(levels.code(*x));
                f64::from(weight(i) * d * d)
            })
            .sum()
    };
    let tries = PARTS.iter().map(|cut| {
        let part = 1.0 - f32::from(*cut) / 100.0;
        let levels = Levels::over(low * part, high * part, how.asymmetric);
        (error(levels), levels)
    });
    tries.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(whole, |(_, levels)| levels)
}

/// The levels of each row, the same for all with `per_tensor`. `floor` is the least scale of each row.
pub(super) fn row_levels(
    matrix: &Matrix,
    how: &ByteRounding,
    floor: Option<&[f32]>,
    importance: Option<&[f32]>,
) -> Vec<Levels> {
    let floor = |row: usize| floor.and_then(|floor| floor.get(row)).copied().unwrap_or(0.0);
    if how.per_tensor {
        let most = (0..matrix.rows).map(floor).fold(0.0, f32::max);
        return vec![levels(&matrix.values, how, importance).at_least(most)];
    }
    let mut all: Vec<Option<Levels>> = vec![None; matrix.rows];
    let share = matrix.rows.div_ceil(how.threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (part, all) in all.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (i, place) in all.iter_mut().enumerate() {
                    let row = part * share + i;
                    *place = Some(levels(matrix.row(row), how, importance).at_least(floor(row)));
                }
            });
        }
    });
    all.into_iter().flatten().collect()
}

/// The bytes of some levels, as `codes` has them.
pub(super) fn rows_of(levels: &[Levels], codes: Vec<i8>) -> I8Rows {
    let zeros = levels.iter().filter(|levels| levels.asymmetric).map(|levels| levels.zero).collect();
    I8Rows { codes, scales: levels.iter().map(|levels| levels.scale).collect(), zeros }
}

/// Rounds to signed bytes, halves to even: the range of a row (or of all) becomes that of the codes, unless `floor` asks for a larger scale of a row. `importance`
/// is how much an error of each column counts in the search for a range.
#[must_use]
pub fn encode_i8(matrix: &Matrix, how: &ByteRounding, floor: Option<&[f32]>, importance: Option<&[f32]>) -> I8Rows {
    let levels = row_levels(matrix, how, floor, importance);
    let columns = matrix.columns.max(1);
    let mut codes = vec![0i8; matrix.values.len()];
    let share = matrix.rows.div_ceil(how.threads.max(1)).max(1);
    let all = &levels;
    std::thread::scope(|scope| {
        let parts = codes.chunks_mut(share * columns).zip(matrix.values.chunks(share * columns));
        for (part, (codes, values)) in parts.enumerate() {
            scope.spawn(move || {
                for (row, (codes, values)) in codes.chunks_mut(columns).zip(values.chunks(columns)).enumerate() {
                    let levels = if how.per_tensor { all[0] } else { all[part * share + row] };
                    codes.iter_mut().zip(values).for_each(|(code, x)| *code = levels.code(*x));
                }
            });
        }
    });
    rows_of(&levels, codes)
}
