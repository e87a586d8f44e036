//! Q5_0 and Q5_1: 32 weights of five bits.
//!
//! The low four bits lie as in Q4_0: byte `j` of `qs` holds weight `j` in its low and weight `j + 16`
//! in its high nibble. The fifth bit of weight `j` is bit `j` of `qh`, read as a little-endian u32.

use super::{F16Le, PackedBlock};
use crate::BlockFormat;
use bytemuck::{Pod, Zeroable};

/// Q5_0, 22 bytes, 5.5 bits per weight: `w = d · (q − 16)`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// The scale.
    pub d: F16Le,
    /// The fifth bits: a little-endian u32, bit `j` for weight `j`.
    pub qh: [u8; 4],
    /// The low four bits, two weights per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockQ5_0 {
    const FORMAT: BlockFormat = BlockFormat::Q5_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d.to_f32();
        for_each_quant(&self.qh, &self.qs, out, |q| f32::from(q as i8 - 16) * d);
    }
}

/// Q5_1, 24 bytes, 6 bits per weight: `w = d · q + m`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// The scale.
    pub d: F16Le,
    /// The minimum.
    pub m: F16Le,
    /// The fifth bits: a little-endian u32, bit `j` for weight `j`.
    pub qh: [u8; 4],
    /// The low four bits, two weights per byte: weight `j` low, weight `j + 16` high.
    pub qs: [u8; 16],
}

impl PackedBlock<32> for BlockQ5_1 {
    const FORMAT: BlockFormat = BlockFormat::Q5_1;

    fn decode(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for_each_quant(&self.qh, &self.qs, out, |q| f32::from(q) * d + m);
    }
}

/// Assembles the 32 five-bit quants and stores what `weight` makes of each.
#[inline]
fn for_each_quant(qh: &[u8; 4], qs: &[u8; 16], out: &mut [f32; 32], weight: impl Fn(u8) -> f32) {
    let high_bits = u32::from_le_bytes(*qh);
    let (low, high) = out.split_at_mut(16);
    for (j, ((y0, y1), &q)) in low.iter_mut().zip(high).zip(qs).enumerate() {
        let h = high_bits >> j;
        *y0 = weight(q & 15 | (h as u8 & 1) << 4);
        *y1 = weight(q >> 4 | ((h >> 16) as u8 & 1) << 4);
    }
}
