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
//! * 2-bit weights (and the low two bits of 3-bit ones): vector `h` of a block holds the quads of half `h`, quad `4 h + j`
//!   in the bits from `2 j` on of each byte; the third bits are kept as the fifth bits of 5-bit weights are.
//!
//! So a shift and a mask bring the high bits of a quad to where they are needed.
//!
//! Nibbles that index a table become its bytes by one instruction that looks up sixteen.
//!
//! Scales and minima keep the file's precision: f16, and for K-quants integers per block (per 16 weights for Q2_K, Q3_K and
//! Q6_K) times an f16 per record; of MXFP4 the exponents of f32.

use core_tensor::block::{E2M1_DOUBLED, IQ4_VALUES};

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
    /// Bits of what [`quads`](Self::quads) answers.
    const BITS: u32;
    /// log2 of the zero point; 0 for none.
    const ZERO: u32;
    /// Whether a weight is `scale * q + min` rather than `scale * (q - zero)`.
    const HAS_MIN: bool;
    /// Whether each half of a block has a scale of its own.
    const SCALE_PER_16: bool = false;
    /// Whether each half of a block has a minimum of its own, too.
    const MIN_PER_16: bool = false;

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

    /// The minima of a block's half.
    ///
    /// # Safety
    /// As for [`quads`](Self::quads).
    unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        let _ = (record, block, half, lane);
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

/// f16 factors of records times integers of blocks.
///
/// # Safety
/// `factors` is readable for as many f16 as a vector has lanes.
#[inline(always)]
unsafe fn product<S: Simd>(s: S, factors: *const u8, integers: S::I) -> S::F {
    // SAFETY: the caller's.
    s.f_mul(unsafe { s.f_load_f16(factors) }, s.f_from_i(integers))
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
            unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
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
                unsafe { product(s, record.add(2 * lane), s.i_load_u8(record.add(Self::SCALES + 16 * block + lane))) }
            }

            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe { product(s, record.add(32 + 2 * lane), s.i_load_u8(record.add(Self::MINS + 16 * block + lane))) }
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
            product(s, record.add(2 * lane), s.i_load_i8(record.add(Self::SCALES + 32 * block + 16 * half + lane)))
        }
    }
}

/// The bytes that a table's values are in a product: 128 added.
const fn centred(values: [i8; 16]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = values[i].cast_unsigned() ^ 0x80;
        i += 1;
    }
    bytes
}

/// Four quads of a table's bytes. (A closure in `map` would not always be inlined.)
#[inline(always)]
fn look_up<S: Simd>(s: S, table: &[u8; 16], [a, b, c, d]: [S::I; 4]) -> [S::I; 4] {
    [s.i_lookup(table, a), s.i_lookup(table, b), s.i_lookup(table, c), s.i_lookup(table, d)]
}

/// `[2][16]` f16 scales, nibbles that index [`IQ4_VALUES`]: the layout of [`Q4_0`].
pub(super) struct Iq4Nl;

impl Packing for Iq4Nl {
    const BLOCKS: usize = 2;
    const BYTES: usize = Q4_0::BYTES;
    const SOURCE_BYTES: usize = 2 * 18;
    const BITS: u32 = 8;
    const ZERO: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the caller's; the layouts are the same.
        look_up(s, &const { centred(IQ4_VALUES) }, unsafe { Q4_0::quads::<S, HALF>(s, record, block, lane) })
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        // SAFETY: the caller's; the layouts are the same.
        unsafe { Q4_0::scale(s, record, block, half, lane) }
    }
}

/// `[2][16]` exponents of f32 scales (those below the smallest normal number are 0), 32 bytes unused, nibbles that index [`E2M1_DOUBLED`].
pub(super) struct Mxfp4;

impl Mxfp4 {
    /// Offset of the nibbles.
    pub(super) const LOW: usize = 64;
}

impl Packing for Mxfp4 {
    const BLOCKS: usize = 2;
    const BYTES: usize = Self::LOW + 512;
    const SOURCE_BYTES: usize = 2 * 17;
    const BITS: u32 = 8;
    const ZERO: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the offsets are those of the layout.
        let quads = unsafe { nibbles::<S, HALF>(s, record.add(Self::LOW + 256 * block + 4 * lane)) };
        look_up(s, &const { centred(E2M1_DOUBLED) }, quads)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe { s.f_from_bits(s.i_shl::<23>(s.i_load_u8(record.add(16 * block + lane)))) }
    }
}

/// `[16]` f16 factors, 32 bytes unused, `[8][16]` i8 scales, nibbles that index [`IQ4_VALUES`].
pub(super) struct Iq4Xs;

impl Iq4Xs {
    /// Offset of the integer scales.
    pub(super) const SCALES: usize = 64;
    /// Offset of the nibbles.
    pub(super) const LOW: usize = Self::SCALES + 128;
}

impl Packing for Iq4Xs {
    const BLOCKS: usize = 8;
    const BYTES: usize = Self::LOW + 2048;
    const SOURCE_BYTES: usize = 136;
    const BITS: u32 = 8;
    const ZERO: u32 = 7;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the offsets are those of the layout.
        let quads = unsafe { nibbles::<S, HALF>(s, record.add(Self::LOW + 256 * block + 4 * lane)) };
        look_up(s, &const { centred(IQ4_VALUES) }, quads)
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, _: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe { product(s, record.add(2 * lane), s.i_load_i8(record.add(Self::SCALES + 16 * block + lane))) }
    }
}

/// Four quads out of one vector, two bits each.
///
/// # Safety
/// `p` is readable for one vector.
#[inline(always)]
unsafe fn pairs_of_bits<S: Simd>(s: S, p: *const u8) -> [S::I; 4] {
    let mask = s.i_splat(0x0303_0303);
    // SAFETY: the caller's.
    let v = unsafe { s.i_load(p) };
    [v, s.i_shr::<2>(v), s.i_shr::<4>(v), s.i_shr::<6>(v)].map(|v| s.i_and(v, mask))
}

/// `[16]` f16 factors of scales, `[16]` negated f16 factors of minima, `[16][16]` bytes with a scale in the low nibble and a minimum in
/// the high one, pairs of bits.
pub(super) struct Q2K;

impl Q2K {
    /// Offset of the integer scales and minima.
    pub(super) const SCALES: usize = 64;
    /// Offset of the weights.
    pub(super) const LOW: usize = Self::SCALES + 256;
}

impl Packing for Q2K {
    const BLOCKS: usize = 8;
    const BYTES: usize = Self::LOW + 1024;
    const SOURCE_BYTES: usize = 84;
    const BITS: u32 = 2;
    const ZERO: u32 = 0;
    const HAS_MIN: bool = true;
    const SCALE_PER_16: bool = true;
    const MIN_PER_16: bool = true;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the offsets are those of the layout.
        unsafe { pairs_of_bits(s, record.add(Self::LOW + 128 * block + 64 * HALF + 4 * lane)) }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe {
            let both = s.i_load_u8(record.add(Self::SCALES + 32 * block + 16 * half + lane));
            product(s, record.add(2 * lane), s.i_and(both, s.i_splat(15)))
        }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        // SAFETY: the offsets are those of the layout.
        unsafe {
            let both = s.i_load_u8(record.add(Self::SCALES + 32 * block + 16 * half + lane));
            product(s, record.add(32 + 2 * lane), s.i_shr::<4>(both))
        }
    }
}

/// `[16]` f16 factors, 32 bytes unused, `[16][16]` i8 scales, `[8][16]` u32 of third bits, pairs of bits.
pub(super) struct Q3K;

impl Q3K {
    /// Offset of the integer scales.
    pub(super) const SCALES: usize = Q6K::SCALES;
    /// Offset of the third bits.
    pub(super) const HIGH: usize = Self::SCALES + 256;
    /// Offset of the low bits.
    pub(super) const LOW: usize = Self::HIGH + 512;
}

impl Packing for Q3K {
    const BLOCKS: usize = 8;
    const BYTES: usize = Self::LOW + 1024;
    const SOURCE_BYTES: usize = 110;
    const BITS: u32 = 3;
    const ZERO: u32 = 2;
    const HAS_MIN: bool = false;
    const SCALE_PER_16: bool = true;

    #[inline(always)]
    unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
        // SAFETY: the offsets are those of the layout.
        unsafe {
            let low = pairs_of_bits(s, record.add(Self::LOW + 128 * block + 64 * HALF + 4 * lane));
            let v = s.i_load(record.add(Self::HIGH + 64 * block + 4 * lane));
            let mask = s.i_splat(0x0404_0404);
            let high = if HALF == 0 {
                [s.i_shl::<2>(v), s.i_shl::<1>(v), v, s.i_shr::<1>(v)]
            } else {
                [s.i_shr::<2>(v), s.i_shr::<3>(v), s.i_shr::<4>(v), s.i_shr::<5>(v)]
            };
            join(s, low, high.map(|v| s.i_and(v, mask)))
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, record: *const u8, block: usize, half: usize, lane: usize) -> S::F {
        // SAFETY: the caller's; the layouts begin alike.
        unsafe { Q6K::scale(s, record, block, half, lane) }
    }
}

/// Weights that are 0, 1 or 2 less 1, in either of two formats.
macro_rules! ternary {
    ($(#[$doc:meta])* $name:ident: source $source:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            /// Offset of the weights.
            pub(super) const LOW: usize = 64;
        }

        impl Packing for $name {
            const BLOCKS: usize = 8;
            const BYTES: usize = Self::LOW + 1024;
            const SOURCE_BYTES: usize = $source;
            const BITS: u32 = 2;
            const ZERO: u32 = 0;
            const HAS_MIN: bool = true;

            #[inline(always)]
            unsafe fn quads<S: Simd, const HALF: usize>(s: S, record: *const u8, block: usize, lane: usize) -> [S::I; 4] {
                // SAFETY: the offsets are those of the layout.
                unsafe { pairs_of_bits(s, record.add(Self::LOW + 128 * block + 64 * HALF + 4 * lane)) }
            }

            #[inline(always)]
            unsafe fn scale<S: Simd>(s: S, record: *const u8, _: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe { s.f_load_f16(record.add(2 * lane)) }
            }

            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, record: *const u8, _: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout.
                unsafe { s.f_load_f16(record.add(32 + 2 * lane)) }
            }
        }
    };
}

ternary!(
    /// `[16]` f16 scales, `[16]` the same negated, pairs of bits.
    Tq1_0: source 54
);
ternary!(
    /// As [`Tq1_0`].
    Tq2_0: source 66
);

/// Bytes, 128 of which is 0, with f32 factors of rows.
macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident: min $min:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            /// Offset of the minima, after the scales.
            pub(super) const MINS: usize = 64;
            /// Offset of the weights.
            pub(super) const LOW: usize = Self::MINS + if $min { 64 } else { 0 };
        }

        impl Packing for $name {
            const BLOCKS: usize = 2;
            const BYTES: usize = Self::LOW + 1024;
            const SOURCE_BYTES: usize = 64;
            const BITS: u32 = 8;
            const ZERO: u32 = 7;
            const HAS_MIN: bool = $min;

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

            #[inline(always)]
            unsafe fn min<S: Simd>(s: S, record: *const u8, _: usize, _: usize, lane: usize) -> S::F {
                // SAFETY: the offsets are those of the layout, which has minima where they are asked for.
                unsafe { s.f_load(record.add(Self::MINS + 4 * lane).cast()) }
            }
        }
    };
}

bytes!(
    /// Signed bytes with one f32 scale per row, as quantized models store linear layers: `[16]` f32 scales, then as [`Q8_0`] two blocks of bytes.
    I8: min false
);
bytes!(
    /// Unsigned bytes with a scale and a zero point per row: as [`I8`], with `[16]` f32 that are added to weights behind the scales.
    U8: min true
);

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
            DType::U8 => arm!(U8),
            DType::Block(BlockFormat::Q4_0) => arm!(Q4_0),
            DType::Block(BlockFormat::Q4_1) => arm!(Q4_1),
            DType::Block(BlockFormat::Q5_0) => arm!(Q5_0),
            DType::Block(BlockFormat::Q5_1) => arm!(Q5_1),
            DType::Block(BlockFormat::Q8_0) => arm!(Q8_0),
            DType::Block(BlockFormat::Q4_K) => arm!(Q4K),
            DType::Block(BlockFormat::Q5_K) => arm!(Q5K),
            DType::Block(BlockFormat::Q6_K) => arm!(Q6K),
            DType::Block(BlockFormat::Q2_K) => arm!(Q2K),
            DType::Block(BlockFormat::Q3_K) => arm!(Q3K),
            DType::Block(BlockFormat::IQ4_NL) => arm!(Iq4Nl),
            DType::Block(BlockFormat::IQ4_XS) => arm!(Iq4Xs),
            DType::Block(BlockFormat::MXFP4) => arm!(Mxfp4),
            DType::Block(BlockFormat::TQ1_0) => arm!(Tq1_0),
            DType::Block(BlockFormat::TQ2_0) => arm!(Tq2_0),
            _ => $none,
        }
    }};
}
pub(super) use with_packing;
