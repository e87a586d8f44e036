//! The lowest of many scores, without sorting or copying them.

/// Where a list of scores is cut: all below it go, and so many of those that are equal to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The bits of the score: of numbers from 0 up they sort as the numbers do.
    bits: u32,
    equal: usize,
}

impl Cut {
    /// Takes the `count` lowest of the scores, which are told twice in the same order; none is negative.
    pub(super) fn new<I: Iterator<Item = f32>>(scores: impl Fn() -> I, count: usize) -> Cut {
        // The upper half of the bits first, then the lower half among those that share the upper.
        let mut bins = vec![0usize; 1 << 16];
        scores().for_each(|score| bins[(score.to_bits() >> 16) as usize] += 1);
        let (upper, left) = Cut::bin(&bins, count);
        bins.fill(0);
        scores()
            .map(f32::to_bits)
            .filter(|bits| (bits >> 16) as usize == upper)
            .for_each(|bits| bins[(bits & 0xffff) as usize] += 1);
        let (lower, equal) = Cut::bin(&bins, left);
        Cut { bits: (upper << 16 | lower) as u32, equal }
    }

    /// The bin in which the count is reached, and how many of it are taken.
    fn bin(bins: &[usize], count: usize) -> (usize, usize) {
        let mut left = count;
        for (bin, here) in bins.iter().enumerate() {
            if left <= *here {
                return (bin, left);
            }
            left -= here;
        }
        (bins.len() - 1, left)
    }

    /// The same of scores that are few.
    pub(super) fn of_few(scores: &[f32], count: usize, scratch: &mut Vec<u32>) -> Cut {
        scratch.clear();
        scratch.extend(scores.iter().map(|score| score.to_bits()));
        let Some(last) = count.min(scratch.len()).checked_sub(1) else { return Cut { bits: 0, equal: 0 } };
        let (below, bits, _) = scratch.select_nth_unstable(last);
        let bits = *bits;
        let equal = 1 + below.iter().filter(|other| **other == bits).count();
        Cut { bits, equal }
    }

    /// Whether the next score, in their order, is among the lowest.
    pub(super) fn takes(&mut self, score: f32) -> bool {
        let bits = score.to_bits();
        if bits == self.bits && self.equal > 0 {
            self.equal -= 1;
            return true;
        }
        bits < self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_asked_for_are_the_lowest() {
        let scores: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 500) as f32 * 0.01).collect();
        let mut scratch = Vec::new();
        for count in [0, 1, 2, 3, 499, 500, 999, 1000] {
            let cuts = [Cut::new(|| scores.iter().copied(), count), Cut::of_few(&scores, count, &mut scratch)];
            for mut cut in cuts {
                let taken: Vec<f32> = scores.iter().copied().filter(|score| cut.takes(*score)).collect();
                assert_eq!(taken.len(), count);
                let mut sorted = scores.clone();
                sorted.sort_by(f32::total_cmp);
                let most = taken.iter().copied().fold(0.0, f32::max);
                assert!(count == 0 || most == sorted[count - 1], "{count}");
            }
        }
    }
}
