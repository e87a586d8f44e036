//! Codes of blocks replaced, their scales kept.

use core_tensor::block::{
    BlockIq4Nl, BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1,
    BlockQ5K, BlockQ6K, BlockTq1_0, BlockTq2_0, PackedBlock,
};

use super::k_quants::{four_bits, one_bit, q6_bits, two_bits};
use super::legacy::{fifth_bits, nibbles};
use super::ternary::threes;

/// A block whose weights have one code each, apart from the scales.
pub(crate) trait Codes<const LEN: usize>: PackedBlock<LEN> {
    /// Codes run from 0 to below this.
    const COUNT: u8;

    /// Gives every weight its code.
    fn set_codes(&mut self, q: &[u8; LEN]);

    /// What each code stands for at each place.
    fn ladder(mut self, values: &mut Vec<[f32; LEN]>) {
        values.resize(usize::from(Self::COUNT), [0.0; LEN]);
        for (code, values) in values.iter_mut().enumerate() {
            self.set_codes(&[code as u8; LEN]);
            self.decode(values);
        }
    }
}

macro_rules! codes {
    ($($block:ty, $len:literal, $count:literal: |$this:ident, $q:ident| $set:expr;)*) => {$(
        impl Codes<$len> for $block {
            const COUNT: u8 = $count;

            fn set_codes(&mut self, $q: &[u8; $len]) {
                let $this = self;
                $set
            }
        }
    )*};
}

codes! {
    BlockQ4_0, 32, 16: |block, q| block.qs = nibbles(q);
    BlockQ4_1, 32, 16: |block, q| block.qs = nibbles(q);
    BlockQ5_0, 32, 32: |block, q| (block.qh, block.qs) = (fifth_bits(q), nibbles(q));
    BlockQ5_1, 32, 32: |block, q| (block.qh, block.qs) = (fifth_bits(q), nibbles(q));
    BlockIq4Nl, 32, 16: |block, q| block.qs = nibbles(q);
    BlockMxfp4, 32, 16: |block, q| block.qs = nibbles(q);
    BlockQ2K, 256, 4: |block, q| block.qs = two_bits(q);
    BlockQ3K, 256, 8: |block, q| (block.hmask, block.qs) = (one_bit(q, 2), two_bits(q));
    BlockQ4K, 256, 16: |block, q| block.qs = four_bits(q);
    BlockQ5K, 256, 32: |block, q| (block.qh, block.qs) = (one_bit(q, 4), four_bits(q));
    BlockQ6K, 256, 64: |block, q| (block.ql, block.qh) = q6_bits(q);
    BlockIq4Xs, 256, 16: |block, q| {
        let (runs, _) = q.as_chunks::<32>();
        for (bytes, run) in block.qs.chunks_exact_mut(16).zip(runs) {
            bytes.copy_from_slice(&nibbles(run));
        }
    };
    BlockTq1_0, 256, 3: |block, q| (block.qs, block.qh) = threes(q);
    BlockTq2_0, 256, 3: |block, q| block.qs = two_bits(q);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Encoder;

    /// Blocks of a wave, taken apart into values and put together from the nearest codes.
    fn assert_rebuilt<B: Encoder + Codes<LEN>, const LEN: usize>() {
        let weights: Vec<f32> = (0..256).map(|i| (i as f32 * 0.613).sin() * 0.2 + 0.03).collect();
        let mut blocks = vec![B::zeroed(); 256 / LEN];
        B::encode::<false>(&weights, |_| &[], &mut blocks);
        for block in blocks {
            let mut ladder = Vec::new();
            block.ladder(&mut ladder);
            assert_eq!(ladder.len(), usize::from(B::COUNT));
            let mut values = [0.0; LEN];
            block.decode(&mut values);
            let q: [u8; LEN] = std::array::from_fn(|j| {
                let code = ladder.iter().position(|step| step[j] == values[j]);
                code.expect("what a block has is one of the values that its codes stand for") as u8
            });
            assert!(q.iter().any(|code| *code != q[0]), "{}: all codes are the same", B::FORMAT);
            let mut rebuilt = block;
            rebuilt.set_codes(&q);
            let mut again = [0.0; LEN];
            rebuilt.decode(&mut again);
            assert_eq!(again, values, "{}", B::FORMAT);
        }
    }

    #[test]
    fn blocks_are_rebuilt_from_their_codes() {
        assert_rebuilt::<BlockQ4_0, _>();
        assert_rebuilt::<BlockQ4_1, _>();
        assert_rebuilt::<BlockQ5_0, _>();
        assert_rebuilt::<BlockQ5_1, _>();
        assert_rebuilt::<BlockIq4Nl, _>();
        assert_rebuilt::<BlockMxfp4, _>();
        assert_rebuilt::<BlockQ2K, _>();
        assert_rebuilt::<BlockQ3K, _>();
        assert_rebuilt::<BlockQ4K, _>();
        assert_rebuilt::<BlockQ5K, _>();
        assert_rebuilt::<BlockQ6K, _>();
        assert_rebuilt::<BlockIq4Xs, _>();
        assert_rebuilt::<BlockTq1_0, _>();
        assert_rebuilt::<BlockTq2_0, _>();
    }
}
