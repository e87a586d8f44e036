//! File rows → packed records.

use core_tensor::block::{BlockIq4Xs, BlockQ2K, BlockQ3K, BlockTq1_0, BlockTq2_0};

use super::formats::{
    GROUP, I8, Iq4Nl, Iq4Xs, Mxfp4, Packing, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0, U8,
};

/// A record's source: one pointer per row of the group.
type Rows = [*const u8; GROUP];

/// How a format's records are made.
pub(super) trait Pack: Packing {
    /// Packs one record.
    ///
    /// # Safety
    /// Each of `rows` is readable for [`SOURCE_BYTES`](Packing::SOURCE_BYTES).
    unsafe fn pack(rows: &Rows, out: &mut [u8]);
}

/// Interleaves `16 × n` bytes of each row, from `at` on: 4-byte word `j` of row `r` goes to `64 j + 4 r`.
///
/// # Safety
/// Each row is readable for `at + 16 n` bytes.
#[inline(always)]
unsafe fn interleave(rows: &Rows, at: usize, n: usize, out: &mut [u8]) {
    assert_eq!(out.len(), 256 * n);
    // Row by row as long as it lasts: rows whose distance is a power of two share their place in the cache.
    #[cfg(target_arch = "x86_64")]
    for r in (0..GROUP).step_by(4) {
        for chunk in 0..n {
            use std::arch::x86_64::*;
            // SAFETY: SSE2 is part of the architecture; the rows are readable, and `out` has 256 n bytes.
            unsafe {
                let load = |i: usize| _mm_loadu_si128(rows[r + i].add(at + 16 * chunk).cast());
                let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                let out = out.as_mut_ptr().add(256 * chunk + 4 * r);
                _mm_storeu_si128(out.cast(), _mm_unpacklo_epi64(ab, cd));
                _mm_storeu_si128(out.add(64).cast(), _mm_unpackhi_epi64(ab, cd));
                _mm_storeu_si128(out.add(128).cast(), _mm_unpacklo_epi64(ab_high, cd_high));
                _mm_storeu_si128(out.add(192).cast(), _mm_unpackhi_epi64(ab_high, cd_high));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (r, row) in rows.iter().enumerate() {
        for j in 0..4 * n {
            // SAFETY: the caller's.
            let word = unsafe { row.add(at + 4 * j).cast::<[u8; 4]>().read_unaligned() };
            out[64 * j + 4 * r..][..4].copy_from_slice(&word);
        }
    }
}

/// Copies two bytes at `at` of each row side by side.
///
/// # Safety
/// Each row is readable for `at + 2` bytes.
#[inline(always)]
unsafe fn halves(rows: &Rows, at: usize, out: &mut [u8]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(2)) {
        // SAFETY: the caller's.
        out.copy_from_slice(&unsafe { row.add(at).cast::<[u8; 2]>().read_unaligned() });
    }
}

/// The f16 at `scale` of each row side by side, then those at `min`, negated.
///
/// # Safety
/// Each row is readable for two bytes from either on.
#[inline(always)]
unsafe fn factors_and_minima(rows: &Rows, scale: usize, min: usize, out: &mut [u8]) {
    let (scales, minima) = out.split_at_mut(32);
    // SAFETY: the caller's.
    unsafe {
        halves(rows, scale, scales);
        halves(rows, min, minima);
    }
    minima.chunks_exact_mut(2).for_each(|min| min[1] ^= 0x80);
}

/// Bit `4 j + i` of a word moves to bit `8 i + j`.
#[inline(always)]
fn spread_fifth_bits(word: u32) -> u32 {
    let mut out = 0;
    for i in 0..4 {
        let x = (word >> i) & 0x1111_1111;
        let x = (x | x >> 3) & 0x0303_0303;
        let x = (x | x >> 6) & 0x000f_000f;
        out |= ((x | x >> 12) & 0xff) << (8 * i);
    }
    out
}

macro_rules! simple {
    ($name:ident, $block:literal, min $min:expr, high $high:expr, low $low:literal x $chunks:literal) => {
        impl Pack for $name {
            #[inline(always)]
            unsafe fn pack(rows: &Rows, out: &mut [u8]) {
                assert_eq!(out.len(), Self::BYTES);
                for block in 0..2 {
                    let at = $block * block;
                    let low = 256 * $chunks;
                    let low = Self::LOW + low * block..Self::LOW + low * (block + 1);
                    // SAFETY: a block has its scale at 0 and its other fields at the offsets given, so says the format.
                    unsafe {
                        halves(rows, at, &mut out[32 * block..32 * block + 32]);
                        if let Some(min) = Option::<usize>::from($min) {
                            halves(rows, at + min, &mut out[64 + 32 * block..96 + 32 * block]);
                        }
                        if let Some(high) = Option::<usize>::from($high) {
                            let word = |row: *const u8| row.add(at + high).cast::<[u8; 4]>().read_unaligned();
                            let mut words = [0u32; GROUP];
                            for (to, row) in words.iter_mut().zip(rows) {
                                *to = u32::from_le_bytes(word(*row));
                            }
                            let out = &mut out[Self::HIGH + 64 * block..Self::HIGH + 64 * block + 64];
                            for (word, out) in words.iter().zip(out.chunks_exact_mut(4)) {
                                out.copy_from_slice(&spread_fifth_bits(*word).to_le_bytes());
                            }
                        }
                        interleave(rows, at + $low, $chunks, &mut out[low]);
                    }
                }
            }
        }
    };
}

simple!(Q4_0, 18, min None, high None, low 2 x 1);
simple!(Q4_1, 20, min Some(2), high None, low 4 x 1);
simple!(Q5_0, 22, min None, high Some(2), low 6 x 1);
simple!(Q5_1, 24, min Some(2), high Some(4), low 8 x 1);

impl Pack for Q8_0 {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        for block in 0..2 {
            let at = 34 * block;
            // SAFETY: a block is a scale and 32 bytes.
            unsafe { halves(rows, at, &mut out[32 * block..32 * block + 32]) };
            let out = &mut out[Self::LOW + 512 * block..Self::LOW + 512 * (block + 1)];
            // SAFETY: as above.
            unsafe { interleave(rows, at + 2, 2, out) };
            out.iter_mut().for_each(|b| *b ^= 0x80);
        }
    }
}

macro_rules! bytes {
    ($name:ident, flip $flip:literal) => {
        impl Pack for $name {
            #[inline(always)]
            unsafe fn pack(rows: &Rows, out: &mut [u8]) {
                assert_eq!(out.len(), Self::BYTES);
                let (factors, weights) = out.split_at_mut(Self::LOW);
                let (scales, minima) = factors.split_at_mut(Self::MINS);
                scales.chunks_exact_mut(4).for_each(|scale| scale.copy_from_slice(&1f32.to_le_bytes()));
                minima.fill(0);
                for (block, out) in weights.chunks_exact_mut(512).enumerate() {
                    // SAFETY: 64 bytes in each row.
                    unsafe { interleave(rows, 32 * block, 2, out) };
                    out.iter_mut().for_each(|b| *b ^= $flip);
                }
            }
        }
    };
}

bytes!(I8, flip 0x80);
bytes!(U8, flip 0);

/// Two times 32 nibbles that share 32 bytes (first in the low halves) → two blocks in which byte `i` has weights `i` and
/// `i + 16`.
#[inline(always)]
fn regroup_nibbles(from: &[u8], low: &mut [u8], high: &mut [u8]) {
    let (a, b) = (&from[..16], &from[16..32]);
    let (low, high) = (&mut low[..16], &mut high[..16]);
    for i in 0..16 {
        low[i] = a[i] & 0x0f | b[i] << 4;
        high[i] = a[i] >> 4 | b[i] & 0xf0;
    }
}

/// The eight 6-bit scales and the eight 6-bit minima in the 12 bytes of Q4_K and Q5_K.
#[inline(always)]
fn scales_and_minima(packed: &[u8]) -> [u8; 16] {
    let word = |i: usize| u32::from_le_bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]);
    let (a, b, c) = (word(0), word(1), word(2));
    let words = [
        a & 0x3f3f_3f3f,
        (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030),
        b & 0x3f3f_3f3f,
        ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030),
    ];
    let mut out = [0; 16];
    for (out, word) in out.chunks_exact_mut(4).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Byte `j` of row `r` goes to `16 j + r`.
#[inline(always)]
fn transpose_bytes(rows: &[[u8; 16]; GROUP], out: &mut [u8]) {
    assert_eq!(out.len(), 256);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        // SAFETY: SSE2 is part of the architecture; all pointers are into whole vectors of 16 bytes.
        unsafe {
            let mut v = [_mm_setzero_si128(); 16];
            for (v, row) in v.iter_mut().zip(rows) {
                *v = _mm_loadu_si128(row.as_ptr().cast());
            }
            // Four perfect shuffles of 256 bytes.
            for _ in 0..4 {
                let from = v;
                for i in 0..8 {
                    v[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 8]);
                    v[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 8]);
                }
            }
            for (v, out) in v.into_iter().zip(out.chunks_exact_mut(16)) {
                _mm_storeu_si128(out.as_mut_ptr().cast(), v);
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (r, row) in rows.iter().enumerate() {
        for (j, byte) in row.iter().enumerate() {
            out[16 * j + r] = *byte;
        }
    }
}

/// `N` vectors of bytes, each byte made of `N` fields of `width` bits: field `b` of vector `j` ↔ field `j` of vector `b`.
#[inline(always)]
fn transpose_bits<const N: usize>(vectors: &mut [u8], width: u32) {
    let mut v = [[0u32; GROUP]; N];
    for (v, bytes) in v.as_flattened_mut().iter_mut().zip(vectors.chunks_exact(4)) {
        *v = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // The transposition of a matrix by swapping ever larger blocks across the diagonal.
    let mut step = 1;
    while step < N {
        let shift = width * step as u32;
        let low_fields: u32 = match shift {
            1 => 0x5555_5555,
            2 => 0x3333_3333,
            _ => 0x0f0f_0f0f,
        };
        for j in 0..N {
            if j & step != 0 {
                continue;
            }
            for r in 0..GROUP {
                let (a, b) = (v[j][r], v[j + step][r]);
                let swap = ((a >> shift) ^ b) & low_fields;
                v[j + step][r] = b ^ swap;
                v[j][r] = a ^ (swap << shift);
            }
        }
        step *= 2;
    }
    for (v, out) in v.as_flattened().iter().zip(vectors.chunks_exact_mut(4)) {
        out.copy_from_slice(&v.to_le_bytes());
    }
}

macro_rules! with_block_minima {
    ($name:ident, low $low:literal) => {
        impl Pack for $name {
            #[inline(always)]
            unsafe fn pack(rows: &Rows, out: &mut [u8]) {
                assert_eq!(out.len(), Self::BYTES);
                // SAFETY: a super-block begins with two f16.
                unsafe { factors_and_minima(rows, 0, 2, &mut out[..64]) };
                let mut factors = [[0u8; 16]; GROUP];
                let mut nibbles = [[0u8; 128]; GROUP];
                for (r, row) in rows.iter().enumerate() {
                    // SAFETY: a super-block has this many bytes.
                    let row = unsafe { std::slice::from_raw_parts(*row, Self::SOURCE_BYTES) };
                    factors[r] = scales_and_minima(&row[4..16]);
                    for (from, to) in row[$low..$low + 128].chunks_exact(32).zip(nibbles[r].chunks_exact_mut(32)) {
                        let (first, second) = to.split_at_mut(16);
                        regroup_nibbles(from, first, second);
                    }
                }
                transpose_bytes(&factors, &mut out[Self::SCALES..Self::SCALES + 256]);
                // SAFETY: 128 bytes of nibbles per row.
                unsafe {
                    interleave(&nibbles.each_ref().map(|n| n.as_ptr()), 0, 8, &mut out[Self::LOW..Self::LOW + 2048])
                };
                if Self::BITS == 5 {
                    // In the file, bit b of byte l belongs to weight l of block b; word j of a row becomes that of block j.
                    let high = &mut out[Self::HIGH..Self::HIGH + 512];
                    // SAFETY: the 32 bytes lie in the middle of the super-block.
                    unsafe { interleave(rows, 16, 2, high) };
                    transpose_bits::<8>(high, 1);
                }
            }
        }
    };
}

with_block_minima!(Q4K, low 16);
with_block_minima!(Q5K, low 48);

impl Pack for Q6K {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        // SAFETY: a super-block ends with an f16 at 208.
        unsafe { halves(rows, 208, &mut out[..32]) };
        out[32..64].fill(0);
        let mut factors = [[0u8; 16]; GROUP];
        let mut nibbles = [[0u8; 128]; GROUP];
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: a super-block has this many bytes.
            let row = unsafe { std::slice::from_raw_parts(*row, Self::SOURCE_BYTES) };
            factors[r].copy_from_slice(&row[192..208]);
            // Of each half of 128 weights, blocks 0 and 2 share 32 bytes, and so do 1 and 3.
            for (from, to) in row[..128].chunks_exact(64).zip(nibbles[r].chunks_exact_mut(64)) {
                let (first, second) = to.split_at_mut(32);
                regroup_nibbles(&from[..32], &mut first[..16], &mut second[..16]);
                regroup_nibbles(&from[32..], &mut first[16..], &mut second[16..]);
            }
        }
        transpose_bytes(&factors, &mut out[Self::SCALES..Self::SCALES + 256]);
        // SAFETY: 128 bytes of nibbles per row.
        unsafe { interleave(&nibbles.each_ref().map(|n| n.as_ptr()), 0, 8, &mut out[Self::LOW..Self::LOW + 2048]) };
        // In the file, bits 2 b and 2 b + 1 of byte l of each half (of 128 weights) belong to weight l of the half's block
        // b: after the transposition, word j of 16 bytes is that of block j.
        let mut high = [0u8; 1024];
        // SAFETY: the 64 bytes lie in the middle of the super-block.
        unsafe { interleave(rows, 128, 4, &mut high) };
        for (i, words) in high.chunks_exact_mut(256).enumerate() {
            transpose_bits::<4>(words, 2);
            let (quarter, half) = (i / 2, i % 2);
            for (j, word) in words.chunks_exact(64).enumerate() {
                let at = Self::HIGH + 128 * (4 * quarter + j) + 64 * half;
                out[at..at + 64].copy_from_slice(word);
            }
        }
    }
}

impl Pack for Iq4Nl {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        // SAFETY: the caller's; the layouts are the same, in the file as well.
        unsafe { Q4_0::pack(rows, out) }
    }
}

impl Pack for Mxfp4 {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        out[32..Self::LOW].fill(0);
        let (scales, weights) = out.split_at_mut(Self::LOW);
        for block in 0..2 {
            let at = 17 * block;
            for (row, scale) in rows.iter().zip(&mut scales[16 * block..16 * block + 16]) {
                // SAFETY: a block is a byte of scale and 16 of nibbles.
                *scale = unsafe { row.add(at).read() }.saturating_sub(1);
            }
            // SAFETY: as above.
            unsafe { interleave(rows, at + 1, 1, &mut weights[256 * block..256 * block + 256]) };
        }
    }
}

impl Pack for Iq4Xs {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        // SAFETY: a super-block begins with an f16; two bytes with the high bits of scales and four with the low ones follow, then the nibbles.
        unsafe {
            halves(rows, 0, &mut out[..32]);
            interleave(rows, 8, 8, &mut out[Self::LOW..Self::LOW + 2048]);
        }
        out[32..Self::SCALES].fill(0);
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: a super-block has this many bytes, and needs no alignment.
            let block = unsafe { row.cast::<BlockIq4Xs>().read_unaligned() };
            for (i, scale) in block.scales().into_iter().enumerate() {
                out[Self::SCALES + 16 * i + r] = scale.cast_unsigned();
            }
        }
    }
}

/// Weights of at most three bits of a lane: pairs of bits to `low`, third bits, if there is room for them, to `high`.
#[inline(always)]
fn pack_few_bits(codes: &[u8; 256], lane: usize, low: &mut [u8], high: &mut [u8]) {
    for (block, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        let quad = |j: usize| u32::from_le_bytes([codes[4 * j], codes[4 * j + 1], codes[4 * j + 2], codes[4 * j + 3]]);
        for half in 0..2 {
            let word = (0..4).fold(0, |word, j| word | (quad(4 * half + j) & 0x0303_0303) << (2 * j));
            let at = 128 * block + 64 * half + 4 * lane;
            low[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        if !high.is_empty() {
            let word = (0..8).fold(0, |word, j| word | (quad(j) >> 2 & 0x0101_0101) << j);
            let at = 64 * block + 4 * lane;
            high[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

impl Pack for Q2K {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        // SAFETY: a super-block ends with two f16.
        unsafe { factors_and_minima(rows, 80, 82, &mut out[..64]) };
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: a super-block has this many bytes, and needs no alignment.
            let block = unsafe { row.cast::<BlockQ2K>().read_unaligned() };
            for (i, scale) in block.scales.into_iter().enumerate() {
                out[Self::SCALES + 16 * i + r] = scale;
            }
            pack_few_bits(&block.quants(), r, &mut out[Self::LOW..], &mut []);
        }
    }
}

impl Pack for Q3K {
    #[inline(always)]
    unsafe fn pack(rows: &Rows, out: &mut [u8]) {
        assert_eq!(out.len(), Self::BYTES);
        // SAFETY: a super-block ends with an f16.
        unsafe { halves(rows, 108, &mut out[..32]) };
        out[32..Self::SCALES].fill(0);
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: a super-block has this many bytes, and needs no alignment.
            let block = unsafe { row.cast::<BlockQ3K>().read_unaligned() };
            for (i, scale) in block.scales().into_iter().enumerate() {
                out[Self::SCALES + 16 * i + r] = scale.cast_unsigned();
            }
            let (high, low) = out[Self::HIGH..].split_at_mut(Self::LOW - Self::HIGH);
            pack_few_bits(&block.quants(), r, low, high);
        }
    }
}

macro_rules! ternary {
    ($name:ident, $block:ident, scale $scale:literal) => {
        impl Pack for $name {
            #[inline(always)]
            unsafe fn pack(rows: &Rows, out: &mut [u8]) {
                assert_eq!(out.len(), Self::BYTES);
                // SAFETY: a super-block ends with an f16.
                unsafe { factors_and_minima(rows, $scale, $scale, &mut out[..64]) };
                for (r, row) in rows.iter().enumerate() {
                    // SAFETY: a super-block has this many bytes, and needs no alignment.
                    let block = unsafe { row.cast::<$block>().read_unaligned() };
                    pack_few_bits(&block.digits(), r, &mut out[Self::LOW..], &mut []);
                }
            }
        }
    };
}

ternary!(Tq2_0, BlockTq2_0, scale 64);
ternary!(Tq1_0, BlockTq1_0, scale 52);

/// Packs a group's rows, which are equally long: record by record, the last one filled up with zeros.
pub(super) fn pack_group<P: Pack>(rows: &[&[u8]; GROUP], out: &mut [u8]) {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length));
    for (i, out) in out.chunks_exact_mut(P::BYTES).enumerate() {
        let at = i * P::SOURCE_BYTES;
        if at + P::SOURCE_BYTES <= length {
            let source = rows.map(|r| {
                // The same of the next group, which mostly follows: sixteen streams are more than the processor foresees.
                for line in 0..P::SOURCE_BYTES.div_ceil(64) {
                    prefetch(r.as_ptr().wrapping_add(GROUP * length + at + 64 * line));
                }
                r.as_ptr().wrapping_add(at)
            });
            // SAFETY: the rows go on for this long.
            unsafe { P::pack(&source, out) };
        } else {
            let mut last = [[0u8; 512]; GROUP];
            for (row, last) in rows.iter().zip(&mut last) {
                last[..length - at].copy_from_slice(&row[at..]);
            }
            // SAFETY: 512 bytes are as many as the longest record's source has.
            unsafe { P::pack(&last.each_ref().map(|r| r.as_ptr()), out) };
        }
    }
}

/// Asks for a cache line of the file.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the architecture, and any address may be prefetched.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Interleaves rows of `size`-byte elements (2 or 4), which are equally long: element `k` of row `r` goes to
/// `(16 k + r) × size`.
pub(super) fn pack_plain(rows: &[&[u8]; GROUP], size: usize, out: &mut [u8]) {
    let length = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == length) && out.len() == GROUP * length && length.is_multiple_of(size));
    let whole = length / 16 * 16;
    for at in (0..whole).step_by(64) {
        let n = ((whole - at) / 16).min(4);
        let out = &mut out[GROUP * at..GROUP * (at + 16 * n)];
        let source = rows.map(|r| {
            prefetch(r.as_ptr().wrapping_add(GROUP * length + at));
            r.as_ptr().wrapping_add(at)
        });
        // SAFETY: n times 16 bytes are left in each row.
        unsafe {
            if size == 4 {
                interleave(&source, 0, n, out);
            } else {
                interleave_halves(&source, n, out);
            }
        }
    }
    for at in (whole..length).step_by(size) {
        for (r, row) in rows.iter().enumerate() {
            out[GROUP * at + size * r..][..size].copy_from_slice(&row[at..at + size]);
        }
    }
}

/// Interleaves `16 × n` bytes of each row: 2-byte element `k` of row `r` goes to `32 k + 2 r`.
///
/// # Safety
/// Each row is readable for `16 n` bytes.
#[inline(always)]
unsafe fn interleave_halves(rows: &Rows, n: usize, out: &mut [u8]) {
    assert_eq!(out.len(), 256 * n);
    #[cfg(target_arch = "x86_64")]
    for r in [0, 8] {
        for chunk in 0..n {
            use std::arch::x86_64::*;
            // SAFETY: SSE2 is part of the architecture; the rows are readable, and `out` has 256 n bytes.
            unsafe {
                let mut v = [_mm_setzero_si128(); 8];
                for (v, row) in v.iter_mut().zip(&rows[r..r + 8]) {
                    *v = _mm_loadu_si128(row.add(16 * chunk).cast());
                }
                let pairs = |i: usize, j: usize| (_mm_unpacklo_epi16(v[i], v[j]), _mm_unpackhi_epi16(v[i], v[j]));
                let (a, b, c, d) = (pairs(0, 1), pairs(2, 3), pairs(4, 5), pairs(6, 7));
                let fours = |x, y| (_mm_unpacklo_epi32(x, y), _mm_unpackhi_epi32(x, y));
                let (ab0, ab1) = (fours(a.0, b.0), fours(a.1, b.1));
                let (cd0, cd1) = (fours(c.0, d.0), fours(c.1, d.1));
                let columns = [(ab0.0, cd0.0), (ab0.1, cd0.1), (ab1.0, cd1.0), (ab1.1, cd1.1)];
                for (i, (x, y)) in columns.into_iter().enumerate() {
                    let out = out.as_mut_ptr().add(256 * chunk + 64 * i + 2 * r);
                    _mm_storeu_si128(out.cast(), _mm_unpacklo_epi64(x, y));
                    _mm_storeu_si128(out.add(32).cast(), _mm_unpackhi_epi64(x, y));
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (r, row) in rows.iter().enumerate() {
        for k in 0..8 * n {
            // SAFETY: the caller's.
            let element = unsafe { row.add(2 * k).cast::<[u8; 2]>().read_unaligned() };
            out[32 * k + 2 * r..][..2].copy_from_slice(&element);
        }
    }
}
