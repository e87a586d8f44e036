//! The order of chunks.

/// A linear congruential generator (Knuth's MMIX): the same on every machine.
pub(in crate::quantize) struct Random(u64);

impl Random {
    pub(in crate::quantize) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub(in crate::quantize) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) as usize) % n.max(1)
    }
}
