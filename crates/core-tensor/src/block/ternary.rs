//! TQ1_0 and TQ2_0: 256 weights that are −d, 0 or d.

use super::k_quants::pairs_of_bits;
use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// TQ1_0, 54 bytes, 1.6875 bits per weight: `w = d · (q − 1)`, five base-3 digits per byte.
///
/// A byte is the fixed-point fraction `⌈256/243 · Σ digit_n · 3^(4 − n)⌉`: multiplied by `3^n`, modulo 256,
/// it has digit `n` as the whole part of three 256ths of it, so that no division is needed.
///
/// Digits 0 to 4 of `qs[..32]` are weights 0..160 (digit `n` of byte `m` is weight `32·n + m`), those of
/// `qs[32..]` weights 160..240 (`160 + 16·n + m`), digits 0 to 3 of `qh` weights 240..256 (`240 + 4·n + m`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq1_0 {
    /// Five weights per byte.
    pub qs: [u8; 48],
    /// Four weights per byte.
    pub qh: [u8; 4],
    /// The scale.
    pub d: F16Le,
}

impl BlockTq1_0 {
    /// The digits `q` of all weights, in 0..=2.
    #[must_use]
    pub fn digits(&self) -> [u8; 256] {
        let mut out = [0; 256];
        let (first, rest) = out.split_at_mut(160);
        let (second, third) = rest.split_at_mut(80);
        let (long, short) = self.qs.split_at(32);
        for (bytes, weights) in [(long, first), (short, second), (&self.qh[..], third)] {
            let mut power = 1u8;
            for digits in weights.chunks_exact_mut(bytes.len()) {
                for (digit, &q) in digits.iter_mut().zip(bytes) {
                    *digit = ((u16::from(q.wrapping_mul(power)) * 3) >> 8) as u8;
                }
                power = power.wrapping_mul(3);
            }
        }
        out
    }
}

impl PackedBlock<256> for BlockTq1_0 {
    const FORMAT: BlockFormat = BlockFormat::TQ1_0;

    fn decode(&self, out: &mut [f32; 256]) {
        decode(&self.digits(), self.d, out);
    }
}

/// TQ2_0, 66 bytes, 2.0625 bits per weight: `w = d · (q − 1)`, two bits each.
///
/// Weight `128·h + 32·k + l` (`k` < 4, `l` < 32) is bits `2·k ..` of `qs[32·h + l]`. The code 3, which no
/// encoder writes, stands for 2.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq2_0 {
    /// The quants `q`, four per byte.
    pub qs: [u8; 64],
    /// The scale.
    pub d: F16Le,
}

impl BlockTq2_0 {
    /// The digits `q` of all weights, in 0..=3.
    #[inline]
    #[must_use]
    pub fn digits(&self) -> [u8; 256] {
        pairs_of_bits(&self.qs)
    }
}

impl PackedBlock<256> for BlockTq2_0 {
    const FORMAT: BlockFormat = BlockFormat::TQ2_0;

    fn decode(&self, out: &mut [f32; 256]) {
        decode(&self.digits(), self.d, out);
    }
}

fn decode(digits: &[u8; 256], d: F16Le, out: &mut [f32; 256]) {
    let d = d.to_f32();
    for (y, &q) in out.iter_mut().zip(digits) {
        *y = f32::from(q as i8 - 1) * d;
    }
}
