//! What the channels of a value were: how large, and around what.

/// Rows of a value that are kept as examples.
const EXAMPLES: usize = 256;

/// Magnitudes and means of a value's channels, and some of its rows.
///
/// A channel is an index of one extent of the value: the last one of what products are given, the second of images. Where it is the last one, rows may be
/// kept as examples, at equal distances: 256 at most, and half of them at least where there are so many.
#[derive(Clone, Debug)]
pub struct ChannelObserver {
    axis: usize,
    most: Vec<f32>,
    magnitudes: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Elements of each channel.
    count: u64,
    /// Whether rows are kept.
    keeps: bool,
    examples: Vec<f32>,
    /// Rows from one example to the next.
    distance: u64,
    rows: u64,
}

impl ChannelObserver {
    /// For so many channels along an extent; with examples or without.
    #[must_use]
    pub fn new(axis: usize, channels: usize, examples: bool) -> ChannelObserver {
        ChannelObserver {
            axis,
            most: vec![0.0; channels],
            magnitudes: vec![0.0; channels],
            sums: vec![0.0; channels],
            squares: vec![0.0; channels],
            count: 0,
            keeps: examples,
            examples: Vec::new(),
            distance: 1,
            rows: 0,
        }
    }

    /// Bytes that one holds.
    pub(super) fn bytes(channels: usize, examples: bool) -> u64 {
        // The largest ones, three sums, and rows of f32.
        let each = 4 + 3 * 8 + if examples { EXAMPLES as u64 * 4 } else { 0 };
        (channels as u64).saturating_mul(each)
    }

    /// Looks at more elements. Rows with elements that are infinite or no numbers are left out, and so is what has another number of channels.
    pub fn observe(&mut self, shape: &[usize], values: &[f32]) {
        let channels = self.most.len();
        if shape.get(self.axis) != Some(&channels) || channels == 0 {
            return;
        }
        let run: usize = shape[self.axis + 1..].iter().product();
        for part in values.chunks_exact((channels * run).max(1)) {
            if !part.iter().all(|x| x.is_finite()) {
                continue;
            }
            for (channel, part) in part.chunks_exact(run.max(1)).enumerate() {
                for x in part {
                    self.most[channel] = self.most[channel].max(x.abs());
                    self.magnitudes[channel] += f64::from(x.abs());
                    self.sums[channel] += f64::from(*x);
                    self.squares[channel] += f64::from(*x) * f64::from(*x);
                }
            }
            self.count += run as u64;
            if run == 1 && self.keeps {
                self.example(part);
            }
        }
    }

    fn example(&mut self, row: &[f32]) {
        let channels = self.most.len();
        if self.rows.is_multiple_of(self.distance) {
            if self.examples.len() == EXAMPLES * channels {
                // Every second one stays.
                let kept = self.examples.chunks_exact(channels).step_by(2).flatten().copied().collect();
                self.examples = kept;
                self.distance *= 2;
            }
            if self.rows.is_multiple_of(self.distance) {
                self.examples.extend_from_slice(row);
            }
        }
        self.rows += 1;
    }

    /// Elements that were seen of each channel.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest magnitude of each channel.
    #[must_use]
    pub fn most(&self) -> &[f32] {
        &self.most
    }

    /// The mean magnitude of each channel.
    #[must_use]
    pub fn magnitudes(&self) -> Vec<f32> {
        self.mean(&self.magnitudes)
    }

    /// The mean square of each channel.
    #[must_use]
    pub fn squares(&self) -> Vec<f32> {
        self.mean(&self.squares)
    }

    /// The mean of each channel.
    #[must_use]
    pub fn means(&self) -> Vec<f32> {
        self.mean(&self.sums)
    }

    fn mean(&self, sums: &[f64]) -> Vec<f32> {
        sums.iter().map(|sum| (sum / self.count.max(1) as f64) as f32).collect()
    }

    /// Rows as they were, side by side.
    #[must_use]
    pub fn examples(&self) -> &[f32] {
        &self.examples
    }
}
