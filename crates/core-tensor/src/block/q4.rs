//! Q4_0 and Q4_1: 32 weights of four bits.
//!
//! In both, byte `j` of `qs` holds weight `j` in its low and weight `j + 16` in its high nibble.

use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Q4_0, 18 bytes, 4.5 bits per weight: `w = d · (q − 8)`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// The scale.
    pub d: F16Le,
    /// The quants `q` in 0..=15, two per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockQ4_0 {
    const FORMAT: BlockFormat = BlockFormat::Q4_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        let (low, high) = out.split_at_mut(16);
        for ((y0, y1), &q) in low.iter_mut().zip(high).zip(&self.qs) {
            *y0 = f32::from((q & 15) as i8 - 8) * d;
            *y1 = f32::from((q >> 4) as i8 - 8) * d;
        }
    }
}

/// Q4_1, 20 bytes, 5 bits per weight: `w = d · q + m`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// The scale.
    pub d: F16Le,
    /// The minimum.
    pub m: F16Le,
    /// The quants `q` in 0..=15, two per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockQ4_1 {
    const FORMAT: BlockFormat = BlockFormat::Q4_1;

    fn decode(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        let (low, high) = out.split_at_mut(16);
        for ((y0, y1), &q) in low.iter_mut().zip(high).zip(&self.qs) {
            *y0 = f32::from(q & 15) * d + m;
            *y1 = f32::from(q >> 4) * d + m;
        }
    }
}
