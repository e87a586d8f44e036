//! Products of bytes where every channel has a window of its own.

use crate::matmul::GROUP_ROWS;
use crate::matmul::integer::{Finish, RowTable};
use crate::simd::{Kernel, Simd};

/// Windows of `n` channels, less their zero points: i32, `[taps][n]` filled up to groups.
#[derive(Debug)]
pub(crate) struct ChannelWindows {
    n: usize,
    taps: usize,
    weights: Vec<i32>,
    sums: Vec<i32>,
}

impl ChannelWindows {
    /// From `weight(channel, tap)`.
    pub(crate) fn pack([n, taps]: [usize; 2], weight: impl Fn(usize, usize) -> i32) -> ChannelWindows {
        let width = n.next_multiple_of(GROUP_ROWS);
        let (mut weights, mut sums) = (vec![0; taps * width], vec![0i32; width]);
        for channel in 0..n {
            for tap in 0..taps {
                let value = weight(channel, tap);
                weights[tap * width + channel] = value;
                sums[channel] = sums[channel].wrapping_add(value);
            }
        }
        ChannelWindows { n, taps, weights, sums }
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.weights.len() + self.sums.len())
    }
}

/// The sums of some groups of channels for rows of a table.
pub(crate) struct ChannelProduct<'a, F> {
    pub(crate) windows: &'a ChannelWindows,
    pub(crate) groups: std::ops::Range<usize>,
    pub(crate) table: &'a RowTable,
    /// The zero point of the activations as unsigned bytes.
    pub(crate) zero: i32,
    pub(crate) finish: F,
}

impl<F: Finish> Kernel for ChannelProduct<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.windows.sums.len();
        let end = self.groups.end * GROUP_ROWS;
        for row in 0..self.table.rows() {
            for first in (self.groups.start * GROUP_ROWS..end.min(self.windows.n)).step_by(S::LANES) {
                // SAFETY: pixels and windows have whole groups of channels, of which the finisher takes those that count.
                unsafe {
                    let sums = s.i_load(self.windows.sums.as_ptr().add(first).cast());
                    let mut acc = s.i_sub(s.i_splat(0), s.i_mul(s.i_splat(self.zero), sums));
                    for tap in 0..self.windows.taps {
                        let a = s.i_load_u8(self.table.pointer(row, tap).add(first));
                        let w = s.i_load(self.windows.weights.as_ptr().add(tap * width + first).cast());
                        acc = s.i_add(acc, s.i_mul(a, w));
                    }
                    self.finish.finish(s, row, first, (self.windows.n - first).min(S::LANES), acc);
                }
            }
        }
    }
}
