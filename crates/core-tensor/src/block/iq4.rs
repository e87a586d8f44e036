//! IQ4_NL and IQ4_XS: four bits that index sixteen unevenly spaced values.

use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// What the sixteen quants of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl`).
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// IQ4_NL, 18 bytes, 4.5 bits per weight: 32 weights `w = d · IQ4_VALUES[q]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// The scale.
    pub d: F16Le,
    /// The quants, two per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockIq4Nl {
    const FORMAT: BlockFormat = BlockFormat::IQ4_NL;

    fn decode(&self, out: &mut [f32; 32]) {
        look_up(self.d.to_f32(), &self.qs, out);
    }
}

/// IQ4_XS, 136 bytes, 4.25 bits per weight: `w = d · (scale − 32) · IQ4_VALUES[q]`.
///
/// Eight sub-blocks of 32 weights; the quants of each lie in 16 consecutive bytes, as in IQ4_NL.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// The scale of the scales.
    pub d: F16Le,
    /// The high two bits of scale `i` are bits `2·i ..` of this little-endian u16.
    pub scales_h: [u8; 2],
    /// The low four bits of scale `i`: byte `i/2`, low nibble for an even `i`.
    pub scales_l: [u8; 4],
    /// The quants, two per byte.
    pub qs: [u8; 128],
}

impl BlockIq4Xs {
    /// The eight scales, in −32..=31.
    #[inline]
    #[must_use]
    pub fn scales(&self) -> [i8; 8] {
        let high_bits = u16::from_le_bytes(self.scales_h);
        std::array::from_fn(|i| {
            let low = self.scales_l[i / 2] >> (i % 2 * 4) & 15;
            let high = (high_bits >> (i * 2)) as u8 & 3;
            (low | high << 4) as i8 - 32
        })
    }
}

impl PackedBlock<256> for BlockIq4Xs {
    const FORMAT: BlockFormat = BlockFormat::IQ4_XS;

    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let (sub_blocks, _) = out.as_chunks_mut::<32>();
        let (bytes, _) = self.qs.as_chunks::<16>();
        for ((weights, qs), scale) in sub_blocks.iter_mut().zip(bytes).zip(self.scales()) {
            look_up(d * f32::from(scale), qs, weights);
        }
    }
}

/// 32 weights of one scale.
#[inline]
fn look_up(d: f32, qs: &[u8; 16], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((y0, y1), &q) in low.iter_mut().zip(high).zip(qs) {
        *y0 = d * f32::from(IQ4_VALUES[usize::from(q & 15)]);
        *y1 = d * f32::from(IQ4_VALUES[usize::from(q >> 4)]);
    }
}
