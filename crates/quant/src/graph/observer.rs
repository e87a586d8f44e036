//! What is remembered of the activations that calibration shows.

use core_tensor::DType;

/// The least and the largest of what a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub low: f32,
    /// The largest.
    pub high: f32,
}

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeMethod {
    /// All that was seen.
    MinMax,
    /// All but the outermost: this share of the elements lies inside (99.99 %: 0.9999), half of the rest at each end.
    Percentile(f64),
    /// The part of the range whose quantized distribution diverges least from what was seen (Kullback-Leibler; Migacz, 8-bit inference with TensorRT, 2017);
    /// by the squared error where too few elements (below 65,536) were seen to tell.
    Entropy,
    /// The part of the range with the least squared error.
    Mse,
}

/// Bins of a histogram: half of them for negative numbers.
const BINS: usize = 4096;

/// Elements from which on a histogram is a distribution and not an accident.
const ENOUGH: u64 = 16 * BINS as u64;

/// Parts of the range that the searches try.
const TRIES: usize = 100;

/// Levels of 8 bits.
const LEVELS: usize = 256;

/// The distribution of a value: its extremes, and how many elements lie where.
///
/// Bins are equal and lie symmetrically around 0. When an element lies outside of all, each two become one and the range doubles, so that
/// any number of tensors is seen in one pass. Elements that are infinite or no number are left out.
#[derive(Clone, Debug)]
pub struct RangeObserver {
    bins: Vec<u64>,
    /// Where the bins end.
    limit: f32,
    low: f32,
    high: f32,
    count: u64,
}

impl Default for RangeObserver {
    fn default() -> RangeObserver {
        RangeObserver { bins: vec![0; BINS], limit: 0.0, low: f32::INFINITY, high: f32::NEG_INFINITY, count: 0 }
    }
}

impl RangeObserver {
    /// Bytes that one holds.
    pub(super) const BYTES: u64 = BINS as u64 * 8;

    /// Looks at more elements.
    pub fn observe(&mut self, values: &[f32]) {
        let most = values.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs()));
        if self.limit == 0.0 {
            self.limit = most;
        }
        while most > self.limit && self.limit > 0.0 {
            self.widen();
        }
        let scale = if self.limit > 0.0 { (BINS / 2) as f32 / self.limit } else { 0.0 };
        for x in values.iter().filter(|x| x.is_finite()) {
            self.low = self.low.min(*x);
            self.high = self.high.max(*x);
            let bin = (x * scale + (BINS / 2) as f32).max(0.0) as usize;
            self.bins[bin.min(BINS - 1)] += 1;
            self.count += 1;
        }
    }

    /// Doubles the range.
    fn widen(&mut self) {
        self.limit *= 2.0;
        let mut bins = vec![0; BINS];
        for (i, count) in self.bins.iter().enumerate() {
            bins[BINS / 4 + i / 2] += count;
        }
        self.bins = bins;
    }

    /// Elements that were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The range by a method; `None` where nothing was seen.
    #[must_use]
    pub fn range(&self, method: RangeMethod) -> Option<Range> {
        let whole = (self.count > 0).then_some(Range { low: self.low, high: self.high })?;
        if self.limit == 0.0 {
            return Some(whole);
        }
        Some(match method {
            RangeMethod::MinMax => whole,
            RangeMethod::Percentile(share) => self.percentile(whole, share),
            RangeMethod::Entropy if self.count >= ENOUGH => self.least(whole, |range| self.divergence(range)),
            RangeMethod::Entropy | RangeMethod::Mse => self.least(whole, |range| self.squared_error(range)),
        })
    }

    /// The middle of a bin.
    fn middle(&self, bin: usize) -> f32 {
        (bin as f32 + 0.5 - (BINS / 2) as f32) * self.limit / (BINS / 2) as f32
    }

    fn percentile(&self, whole: Range, share: f64) -> Range {
        let outside = ((1.0 - share.clamp(0.0, 1.0)) / 2.0 * self.count as f64) as u64;
        let width = self.limit / (BINS / 2) as f32;
        // The bin in which so many elements have been passed.
        let find = |bins: &mut dyn Iterator<Item = usize>| {
            let mut sum = 0;
            for bin in bins {
                sum += self.bins[bin];
                if sum > outside {
                    return Some(self.middle(bin));
                }
            }
            None
        };
        let low = find(&mut (0..BINS)).unwrap_or(whole.low) - width / 2.0;
        let high = find(&mut (0..BINS).rev()).unwrap_or(whole.high) + width / 2.0;
        Range { low: low.max(whole.low), high: high.min(whole.high) }
    }

    /// The part of a range with the least cost: the upper end and then the lower one is moved, twice.
    fn least(&self, whole: Range, cost: impl Fn(Range) -> f64) -> Range {
        let mut best = whole;
        for upper in [true, false, true, false] {
            let from = best;
            let tries = (1..=TRIES).rev().map(|i| {
                let part = i as f32 / TRIES as f32;
                if upper { Range { high: whole.high * part, ..from } } else { Range { low: whole.low * part, ..from } }
            });
            let costs = tries.map(|range| (cost(range), range));
            best = costs.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(from, |(_, range)| range);
        }
        best
    }

    fn squared_error(&self, range: Range) -> f64 {
        let scale = ActivationScale::asymmetric(range);
        let seen = self.bins.iter().enumerate().filter(|(_, count)| **count > 0);
        seen.map(|(bin, count)| {
            let x = self.middle(bin);
            let d = f64::from(x - scale.rounded(x));
            d * d * *count as f64
        })
        .sum()
    }

    /// How far the distribution within a range, outliers counted to its ends, is from the same with as many levels as 8 bits have.
    fn divergence(&self, range: Range) -> f64 {
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let at = |x: f32| ((x / self.limit + 1.0) * (BINS / 2) as f32).clamp(0.0, (BINS - 1) as f32) as usize;
        let (first, last) = (at(low), at(high));
        let mut reference: Vec<f64> = self.bins[first..=last].iter().map(|count| *count as f64).collect();
        let inside = reference.clone();
        let below: u64 = self.bins[..first].iter().sum();
        let above: u64 = self.bins[last + 1..].iter().sum();
        if let Some(end) = reference.first_mut() {
            *end += below as f64;
        }
        if let Some(end) = reference.last_mut() {
            *end += above as f64;
        }
        // Each level stands for the bins around it, as many as are not empty.
        let mut levelled = vec![0.0; inside.len()];
        for level in 0..LEVELS {
            let bounds = level * inside.len() / LEVELS..(level + 1) * inside.len() / LEVELS;
            let filled = inside[bounds.clone()].iter().filter(|count| **count > 0.0).count();
            let mean = inside[bounds.clone()].iter().sum::<f64>() / filled.max(1) as f64;
            for i in bounds {
                levelled[i] = if inside[i] > 0.0 { mean } else { 0.0 };
            }
        }
        let (p, q) = (reference.iter().sum::<f64>(), levelled.iter().sum::<f64>());
        // What the one has and the other lacks counts as something very rare.
        const RARE: f64 = 1e-9;
        let pairs = reference.iter().zip(&levelled).filter(|(x, _)| **x > 0.0);
        pairs.map(|(x, y)| x / p * ((x / p) / (y / q.max(RARE)).max(RARE)).ln()).sum()
    }
}

/// How the integers of activations stand for numbers: `(code - zero) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationScale {
    /// The step.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
    /// u8 or i8.
    pub dtype: DType,
}

/// The least scale: what is all zeros has no range to divide.
const LEAST: f32 = 1e-12;

impl ActivationScale {
    /// u8 with a zero point. The range is widened to hold 0, which has a code of its own.
    #[must_use]
    pub fn asymmetric(range: Range) -> ActivationScale {
        let (low, high) = (range.low.min(0.0), range.high.max(0.0));
        let scale = ((high - low) / 255.0).max(LEAST);
        let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i32;
        ActivationScale { scale, zero, dtype: DType::U8 }
    }

    /// i8 around 0.
    #[must_use]
    pub fn symmetric(range: Range) -> ActivationScale {
        let scale = (range.low.abs().max(range.high.abs()) / 127.0).max(LEAST);
        ActivationScale { scale, zero: 0, dtype: DType::I8 }
    }

    /// What a number becomes.
    #[must_use]
    pub fn rounded(&self, x: f32) -> f32 {
        let (least, most) = if self.dtype == DType::U8 { (0, 255) } else { (-128, 127) };
        let code = ((x / self.scale).round_ties_even() as i32).saturating_add(self.zero).clamp(least, most);
        (code - self.zero) as f32 * self.scale
    }
}

/// Rows that a Hessian takes at once.
const ROWS: usize = 32;

/// Sums of products of what meets a weight: `Xᵀ·X` over all rows that were seen, and the sums of each column.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Columns: inputs of the weight.
    pub columns: usize,
    /// `[columns, columns]`, symmetric.
    pub products: Vec<f64>,
    /// `[columns]`.
    pub sums: Vec<f64>,
    /// Rows that were seen.
    pub rows: u64,
}

impl Hessian {
    /// Of rows of this length: takes the square of it times 8 bytes.
    #[must_use]
    pub fn new(columns: usize) -> Hessian {
        Hessian { columns, products: vec![0.0; columns * columns], sums: vec![0.0; columns], rows: 0 }
    }

    /// The same; none where there is no memory for it.
    #[must_use]
    pub fn fitting(columns: usize) -> Option<Hessian> {
        // Zeros that nobody has written take no memory yet: half of them stay so.
        let mut room: Vec<f64> = Vec::new();
        room.try_reserve_exact(columns.checked_mul(columns)?).ok()?;
        drop(room);
        Some(Hessian::new(columns))
    }

    /// Looks at more rows, side by side; those with infinite elements are left out.
    pub fn observe(&mut self, values: &[f32]) {
        let rows = values.chunks_exact(self.columns.max(1)).filter(|row| row.iter().all(|x| x.is_finite()));
        let rows: Vec<&[f32]> = rows.collect();
        // Few rows at once: they stay in the cache while the sums pass by.
        for rows in rows.chunks(ROWS) {
            for i in 0..self.columns {
                // The lower triangle; the rest is its mirror image.
                let products = &mut self.products[i * self.columns..][..=i];
                for row in rows {
                    let x = f64::from(row[i]);
                    self.sums[i] += x;
                    products.iter_mut().zip(*row).for_each(|(sum, y)| *sum += x * f64::from(*y));
                }
            }
            self.rows += rows.len() as u64;
        }
    }

    /// One of the sums of products.
    #[must_use]
    pub fn product(&self, i: usize, j: usize) -> f64 {
        self.products[i.max(j) * self.columns + i.min(j)]
    }

    /// The mean of each column.
    #[must_use]
    pub fn means(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }
}
