//! The packed layouts of block formats, and how kernels read them.
//!
//! Sixteen rows form a group. Along k a group is a sequence of records, each with [`Packing::BLOCKS`] blocks of 32
//! weights of all sixteen rows, so that a kernel walks through memory in one direction. In a record everything is stored
//! per lane (= row of the group): sixteen f16 scales lie side by side, and a 64-byte vector of weights has four consecutive
//! weights (a *quad*) of each of the sixteen rows:
//!
//! * 8-bit weights: vector `j` of a block holds quad `j` (weights `4 j .. 4 j + 4`), one byte each, 128 added.
//! * 4-bit weights (and the low four bits of wider ones): vector `j` holds quad `j` in its low nibbles and quad `j + 4` in
//!   its high ones.
//! * the fifth bits of 5-bit weights: one 32-bit word per lane and block, whose bit `8 i + j` belongs to weight `4 j + i`.
//! * the fifth and sixth bits of 6-bit weights: one 32-bit word per lane and half block, whose bits `8 i + 2 j` and
//!   `8 i + 2 j + 1` belong to weight `4 j + i` of the half.
//!
//! So a shift and a mask bring the high bits of a quad to where they are needed.
//!
//! Scales and minima keep the file's precision: f16, and for K-quants 8-bit integers per block (per 16 weights for Q6_K)
//! times an f16 per record.

use crate::simd::Simd;

/// Rows that are interleaved.
pub(super) const GROUP: usize = 16;

/// A packed block format.
pub(super) trait Packing {
    /// Blocks of 32 weights in a record.
    const BLOCKS: usize;
    /// Bytes of a record.
    const BYTES: usize;
    /// Bytes of a record's source in one row of the file.
    const SOURCE_BYTES: usize;
    /// Bits per weight.
    const BITS: u32;
    /// log2 of the zero point; 0 for none.
    const ZERO: u32;
    /// Whether a weight is `scale * q + min` rather than `scale * (q - zero)`.
    const HAS_MIN: bool;
    /// Whether each half of a block has a scale of its own.
    const SCALE_PER_16: bool = false;

    /// The unsigned weights of quads `4 HALF .. 4 HALF + 4` of a block, for the lanes from `lane` on.
    ///
    /// # Safety
    /// `record` is a whole record, `block < BLOCKS`, `HALF < 2`, `lane + LANES <= 16`.
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4];

    /// The scales of a block's half.
    ///
    /// # Safety
    /// As for [`quads`](Self::quads).
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F;

    /// The minima of a block.
    ///
    /// # Safety
    /// As for [`quads`](Self::quads).
    unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, lane: usize) -> S::F {
        let _ = (record, block, lane);
        s.f_splat(0.0)
    }
}

/// Four quads out of nibbles at `p`: the low ones for the first half, the high ones for the second.
///
/// # Safety
/// `p` is readable for 4 vectors 64 bytes apart.
#[inline(always)]
unsafe fn nibbles<S: Simd, const HALF: usize>(s: S, p: *const u8) -> [S::I; 4] {
    let mask = s.i_splat(0x0f0f_0f0f);
    std::array::from_fn(|j| {
        // SAFETY: the caller's.
        let v = unsafe { s.i_load(p.add(64 * j)) };
        s.i_and(if HALF == 0 { v } else { s.i_shr::<4>(v) }, mask)
    })
}

/// The fifth bits of four quads, in place.
///
/// # Safety
/// `p` is readable for one vector.
#[inline(always)]
unsafe fn fifth_bits<S: Simd, const HALF: usize>(s: S, p: *const u8) -> [S::I; 4] {
    let mask = s.i_splat(0x1010_1010);
    // SAFETY: the caller's.
    let v = unsafe { s.i_load(p) };
    let shifted = if HALF == 0 {
        [s.i_shl::<4>(v), s.i_shl::<3>(v), s.i_shl::<2>(v), s.i_shl::<1>(v)]
    } else {
        [v, s.i_shr::<1>(v), s.i_shr::<2>(v), s.i_shr::<3>(v)]
    };
    shifted.map(|v| s.i_and(v, mask))
}

#[inline(always)]
fn join<S: Simd>(s: S, low: [S::I; 4], high: [S::I; 4]) -> [S::I; 4] {
    std::array::from_fn(|j| s.i_or(low[j], high[j]))
}

/// A format whose blocks of 32 stand alone: two blocks make a record.
macro_rules! simple {
    ($(#[$doc:meta])* $name:ident: bits $bits:literal, zero $zero:literal, min $min:literal, source $source:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            /// Offset of the minima, after the scales.
            const MINS: usize = 64;
            /// Offset of the fifth bits.
            pub(super) const HIGH: usize = Self::MINS + if $min { 64 } else { 0 };
            /// Offset of the weights.
            pub(super) const LOW: usize = Self::HIGH + if $bits == 5 { 128 } else { 0 };
        }

        impl Packing for $name {
            const BLOCKS: usize = 2;
            const BYTES: usize = Self::LOW + if $bits == 8 { 1024 } else { 512 };
            const SOURCE_BYTES: usize = 2 * $source;
            const BITS: u32 = $bits;
            const ZERO: u32 = $zero;
            const HAS_MIN: bool = $min;

            #[inline(always)]
            unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
                // SAFETY: the offsets are those of the layout.
                unsafe {
                    let p = record.add(Self::LOW + 4 * lane);
                    if $bits == 8 {
                        let p = p.add(512 * block + 256 * HALF);
                        return std::array::from_fn(|j| s.i_load(p.add(64 * j)));
                    }
                    let low = nibbles::<S, HALF>(s, p.add(256 * block));
                    if $bits == 4 {
                        return low;
                    }
                    join(s, low, fifth_bits::<S, HALF>(s, record.add(Self::HIGH + 64 * block + 4 * lane)))
                }
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe { s.f_load_f16(record.add(32 * block + 2 * lane)) }
            }

            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe { s.f_load_f16(record.add(Self::MINS + 32 * block + 2 * lane)) }
            }
        }
    };
}

simple!(
    /// `[2][16]` f16 scales, nibbles.
    Q4_0: bits 4, zero 3, min false, source 18
);
simple!(
    /// `[2][16]` f16 scales, `[2][16]` f16 minima, nibbles.
    Q4_1: bits 4, zero 0, min true, source 20
);
simple!(
    /// `[2][16]` f16 scales, `[2][16]` u32 of fifth bits, nibbles.
    Q5_0: bits 5, zero 4, min false, source 22
);
simple!(
    /// `[2][16]` f16 scales, `[2][16]` f16 minima, `[2][16]` u32 of fifth bits, nibbles.
    Q5_1: bits 5, zero 0, min true, source 24
);
simple!(
    /// `[2][16]` f16 scales, bytes.
    Q8_0: bits 8, zero 7, min false, source 34
);

/// A K-quant with minima: one super-block of 256 makes a record.
macro_rules! with_block_minima {
    ($(#[$doc:meta])* $name:ident: bits $bits:literal, source $source:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            /// Offset of the integer scales, after the f16 factors of scales and (negated) minima.
            pub(super) const SCALES: usize = 64;
            /// Offset of the integer minima.
            pub(super) const MINS: usize = Self::SCALES + 128;
            /// Offset of the fifth bits.
            pub(super) const HIGH: usize = Self::MINS + 128;
            /// Offset of the weights.
            pub(super) const LOW: usize = Self::HIGH + if $bits == 5 { 512 } else { 0 };
        }

        impl Packing for $name {
            const BLOCKS: usize = 8;
            const BYTES: usize = Self::LOW + 2048;
            const SOURCE_BYTES: usize = $source;
            const BITS: u32 = $bits;
            const ZERO: u32 = 0;
            const HAS_MIN: bool = true;

            #[inline(always)]
            unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
                // SAFETY: the offsets are those of the layout.
                unsafe {
                    let low = nibbles::<S, HALF>(s, record.add(Self::LOW + 256 * block + 4 * lane));
                    if $bits == 4 {
                        return low;
                    }
                    join(s, low, fifth_bits::<S, HALF>(s, record.add(Self::HIGH + 64 * block + 4 * lane)))
                }
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe {
                    let integer = s.f_from_i(s.i_load_u8(record.add(Self::SCALES + 16 * block + lane)));
                    s.f_mul(s.f_load_f16(record.add(2 * lane)), integer)
                }
            }

            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe {
                    let integer = s.f_from_i(s.i_load_u8(record.add(Self::MINS + 16 * block + lane)));
                    s.f_mul(s.f_load_f16(record.add(32 + 2 * lane)), integer)
                }
            }
        }
    };
}

with_block_minima!(
    /// `[16]` f16 factors of scales, `[16]` negated f16 factors of minima, `[8][16]` u8 scales, `[8][16]` u8 minima, nibbles.
    Q4K: bits 4, source 144
);
with_block_minima!(
    /// As [`Q4K`], with `[8][16]` u32 of fifth bits before the nibbles.
    Q5K: bits 5, source 176
);

/// `[16]` f16 factors, 32 bytes unused, `[16][16]` i8 scales, `[8][2][16]` u32 of fifth and sixth bits,
/// nibbles.
pub(super) struct Q6K;

impl Q6K {
    /// Offset of the integer scales.
    pub(super) const SCALES: usize = 64;
    /// Offset of the fifth and sixth bits.
    pub(super) const HIGH: usize = Self::SCALES + 256;
    /// Offset of the nibbles.
    pub(super) const LOW: usize = Self::HIGH + 1024;
}

impl Packing for Q6K {
    const BLOCKS: usize = 8;
    const BYTES: usize = Self::LOW + 2048;
    const SOURCE_BYTES: usize = 210;
    const BITS: u32 = 6;
    const ZERO: u32 = 5;
    const HAS_MIN: bool = false;
    const SCALE_PER_16: bool = true;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the offsets are those of the layout.
        unsafe {
            let low = nibbles::<S, HALF>(s, record.add(Self::LOW + 256 * block + 4 * lane));
            let v = s.i_load(record.add(Self::HIGH + 128 * block + 64 * HALF + 4 * lane));
            let mask = s.i_splat(0x3030_3030);
            let high = [s.i_shl::<4>(v), s.i_shl::<2>(v), v, s.i_shr::<2>(v)].map(|v| s.i_and(v, mask));
            join(s, low, high)
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe {
            let integer = s.f_from_i(s.i_load_i8(record.add(Self::SCALES + 32 * block + 16 * half + lane)));
            s.f_mul(s.f_load_f16(record.add(2 * lane)), integer)
        }
    }
}

/// Signed bytes with one f32 scale per row, as quantized models store linear layers: `[16]` f32 scales, then as [`Q8_0`] two blocks of bytes.
pub(super) struct I8;

impl I8 {
    /// Offset of the weights, after the scales.
    pub(super) const LOW: usize = 64;
}

impl Packing for I8 {
    const BLOCKS: usize = 2;
    const BYTES: usize = Self::LOW + 1024;
    const SOURCE_BYTES: usize = 64;
    const BITS: u32 = 8;
    const ZERO: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        let p = record.wrapping_add(Self::LOW + 4 * lane + 512 * block + 256 * HALF);
        // SAFETY: the offsets are those of the layout.
        std::array::from_fn(|j| unsafe { s.i_load(p.add(64 * j)) })
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, _: usize, _: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe { s.f_load(record.add(4 * lane).cast()) }
    }
}

/// Calls a macro's arm with the packing type of a block format, or answers `$none`.
macro_rules! with_packing {
    ($dtype:expr, $P:ident => $e:expr, _ => $none:expr) => {{
        use core_tensor::{BlockFormat, DType};
        macro_rules! arm {
            ($name:ident) => {{
                type $P = crate::matmul::formats::$name;
                $e
            }};
        }
        match $dtype {
            DType::I8 => arm!(I8),
            DType::Block(BlockFormat::Q4_0) => arm!(Q4_0),
            DType::Block(BlockFormat::Q4_1) => arm!(Q4_1),
            DType::Block(BlockFormat::Q5_0) => arm!(Q5_0),
            DType::Block(BlockFormat::Q5_1) => arm!(Q5_1),
            DType::Block(BlockFormat::Q8_0) => arm!(Q8_0),
            DType::Block(BlockFormat::Q4_K) => arm!(Q4K),
            DType::Block(BlockFormat::Q5_K) => arm!(Q5K),
            DType::Block(BlockFormat::Q6_K) => arm!(Q6K),
            _ => $none,
        }
    }};
}
pub(super) use with_packing;
