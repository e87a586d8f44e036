//! File rows → packed records.

use super::formats::{GROUP, Packing, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

/// How a format's records are made.
pub(super) trait Pack: Packing {
    /// Packs one record: `rows[r]` is [`SOURCE_BYTES`](Packing::SOURCE_BYTES) of row `r`, `out` is
    /// [`BYTES`](Packing::BYTES) long.
    fn pack(rows: &[&[u8]; GROUP], out: &mut [u8]);
}

/// Interleaves `16 × n` bytes of each row: 4-byte word `j` of row `r` goes to `64 j + 4 r`.
#[inline(always)]
fn interleave(row: impl Fn(usize) -> *const u8, n: usize, out: &mut [u8]) {
    assert_eq!(out.len(), 256 * n);
    for chunk in 0..n {
        #[cfg(target_arch = "x86_64")]
        for r in (0..GROUP).step_by(4) {
            use std::arch::x86_64::*;
            // SAFETY: SSE2 is part of the architecture; each row has 16 n bytes and `out` 256 n.
            unsafe {
                let load = |i: usize| _mm_loadu_si128(row(r + i).add(16 * chunk).cast());
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
        #[cfg(not(target_arch = "x86_64"))]
        for r in 0..GROUP {
            for j in 0..4 {
                // SAFETY: each row has 16 n bytes.
                let word = unsafe { row(r).add(16 * chunk + 4 * j).cast::<[u8; 4]>().read_unaligned() };
                out[256 * chunk + 64 * j + 4 * r..][..4].copy_from_slice(&word);
            }
        }
    }
}

/// Copies two bytes at `at` of each row side by side.
#[inline(always)]
fn halves(rows: &[&[u8]; GROUP], at: usize, out: &mut [u8]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(2)) {
        out.copy_from_slice(&row[at..at + 2]);
    }
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
            fn pack(rows: &[&[u8]; GROUP], out: &mut [u8]) {
                assert!(rows.iter().all(|r| r.len() == Self::SOURCE_BYTES) && out.len() == Self::BYTES);
                for block in 0..2 {
                    let at = $block * block;
                    halves(rows, at, &mut out[32 * block..32 * block + 32]);
                    if let Some(min) = Option::<usize>::from($min) {
                        halves(rows, at + min, &mut out[64 + 32 * block..96 + 32 * block]);
                    }
                    if let Some(high) = Option::<usize>::from($high) {
                        let high = at + high;
                        let words: [u32; GROUP] = std::array::from_fn(|r| {
                            let b = &rows[r][high..high + 4];
                            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
                        });
                        let out = &mut out[Self::HIGH + 64 * block..Self::HIGH + 64 * block + 64];
                        for (word, out) in words.into_iter().zip(out.chunks_exact_mut(4)) {
                            out.copy_from_slice(&spread_fifth_bits(word).to_le_bytes());
                        }
                    }
                    let bytes = 256 * $chunks;
                    let out = &mut out[Self::LOW + bytes * block..Self::LOW + bytes * (block + 1)];
                    interleave(|r| rows[r].as_ptr().wrapping_add(at + $low), $chunks, out);
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
    fn pack(rows: &[&[u8]; GROUP], out: &mut [u8]) {
        assert!(rows.iter().all(|r| r.len() == Self::SOURCE_BYTES) && out.len() == Self::BYTES);
        for block in 0..2 {
            let at = 34 * block;
            halves(rows, at, &mut out[32 * block..32 * block + 32]);
            let out = &mut out[Self::LOW + 512 * block..Self::LOW + 512 * (block + 1)];
            interleave(|r| rows[r].as_ptr().wrapping_add(at + 2), 2, out);
            out.iter_mut().for_each(|b| *b ^= 0x80);
        }
    }
}

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

/// The 6-bit scale and minimum of block `j` out of the 12 bytes of Q4_K and Q5_K.
#[inline(always)]
fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 0x0f | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4)
    }
}

/// `N` vectors of bytes, each byte made of `N` fields of `width` bits: field `b` of vector `j` ↔ field `j` of vector `b`.
#[inline(always)]
fn transpose_bits<const N: usize>(vectors: &mut [u8], width: u32) {
    let mut v: [[u32; GROUP]; N] = std::array::from_fn(|j| {
        std::array::from_fn(|r| {
            let at = 64 * j + 4 * r;
            u32::from_le_bytes([vectors[at], vectors[at + 1], vectors[at + 2], vectors[at + 3]])
        })
    });
    // The transposition of a matrix by swapping ever larger blocks across the diagonal.
    let mut step = 1;
    while step < N {
        let shift = width * step as u32;
        let low_fields = (0..8).filter(|bit| bit / shift % 2 == 0).fold(0u32, |mask, bit| mask | 0x0101_0101 << bit);
        for j in (0..N).filter(|j| j & step == 0) {
            for r in 0..GROUP {
                let (a, b) = (v[j][r], v[j + step][r]);
                let swap = ((a >> shift) ^ b) & low_fields;
                v[j + step][r] = b ^ swap;
                v[j][r] = a ^ swap << shift;
            }
        }
        step *= 2;
    }
    for (v, out) in v.iter().flatten().zip(vectors.chunks_exact_mut(4)) {
        out.copy_from_slice(&v.to_le_bytes());
    }
}

macro_rules! with_block_minima {
    ($name:ident, low $low:literal) => {
        impl Pack for $name {
            #[inline(always)]
            fn pack(rows: &[&[u8]; GROUP], out: &mut [u8]) {
                assert!(rows.iter().all(|r| r.len() == Self::SOURCE_BYTES) && out.len() == Self::BYTES);
                halves(rows, 0, &mut out[..32]);
                halves(rows, 2, &mut out[32..64]);
                out[32..64].chunks_exact_mut(2).for_each(|min| min[1] ^= 0x80);
                let mut nibbles = [[0u8; 128]; GROUP];
                for (r, row) in rows.iter().enumerate() {
                    for j in 0..8 {
                        let (scale, min) = scale_and_min(&row[4..16], j);
                        out[Self::SCALES + 16 * j + r] = scale;
                        out[Self::MINS + 16 * j + r] = min;
                    }
                    for (from, to) in row[$low..$low + 128].chunks_exact(32).zip(nibbles[r].chunks_exact_mut(32)) {
                        let (first, second) = to.split_at_mut(16);
                        regroup_nibbles(from, first, second);
                    }
                }
                interleave(|r| nibbles[r].as_ptr(), 8, &mut out[Self::LOW..Self::LOW + 2048]);
                if Self::BITS == 5 {
                    // In the file, bit b of byte l belongs to weight l of block b; word j of a row becomes that of block j.
                    let high = &mut out[Self::HIGH..Self::HIGH + 512];
                    interleave(|r| rows[r].as_ptr().wrapping_add(16), 2, high);
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
    fn pack(rows: &[&[u8]; GROUP], out: &mut [u8]) {
        assert!(rows.iter().all(|r| r.len() == Self::SOURCE_BYTES) && out.len() == Self::BYTES);
        halves(rows, 208, &mut out[..32]);
        out[32..64].fill(0);
        let mut nibbles = [[0u8; 128]; GROUP];
        for (r, row) in rows.iter().enumerate() {
            for (j, scale) in row[192..208].iter().enumerate() {
                out[Self::SCALES + 16 * j + r] = *scale;
            }
            // Of each half of 128 weights, blocks 0 and 2 share 32 bytes, and so do 1 and 3.
            for (from, to) in row[..128].chunks_exact(64).zip(nibbles[r].chunks_exact_mut(64)) {
                let (first, second) = to.split_at_mut(32);
                regroup_nibbles(&from[..32], &mut first[..16], &mut second[..16]);
                regroup_nibbles(&from[32..], &mut first[16..], &mut second[16..]);
            }
        }
        interleave(|r| nibbles[r].as_ptr(), 8, &mut out[Self::LOW..Self::LOW + 2048]);
        // In the file, bits 2 b and 2 b + 1 of byte l of each half (of 128 weights) belong to weight l of the half's block
        // b: after the transposition, word j of 16 bytes is that of block j.
        let mut high = [0u8; 1024];
        interleave(|r| rows[r].as_ptr().wrapping_add(128), 4, &mut high);
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

/// Packs a group's rows: record by record, the last one filled up with zeros.
pub(super) fn pack_group<P: Pack>(rows: &[&[u8]; GROUP], out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(P::BYTES).enumerate() {
        let at = i * P::SOURCE_BYTES;
        if rows[0].len() - at >= P::SOURCE_BYTES {
            P::pack(&rows.map(|r| &r[at..at + P::SOURCE_BYTES]), out);
        } else {
            let mut last = [[0u8; 512]; GROUP];
            for (row, last) in rows.iter().zip(&mut last) {
                last[..row.len() - at].copy_from_slice(&row[at..]);
            }
            P::pack(&last.each_ref().map(|r| &r[..P::SOURCE_BYTES]), out);
        }
    }
}

/// Interleaves rows of `size`-byte elements: element `k` of row `r` goes to `(16 k + r) × size`.
pub(super) fn pack_plain(rows: &[&[u8]; GROUP], size: usize, out: &mut [u8]) {
    match size {
        2 => interleave_elements::<2>(rows, out),
        _ => interleave_elements::<4>(rows, out),
    }
}

fn interleave_elements<const SIZE: usize>(rows: &[&[u8]; GROUP], out: &mut [u8]) {
    // Sixteen elements of sixteen rows at a time: whole cache lines on both sides.
    let count = rows[0].len() / SIZE;
    for start in (0..count).step_by(16) {
        let end = (start + 16).min(count);
        for (r, row) in rows.iter().enumerate() {
            let from = row[SIZE * start..SIZE * end].chunks_exact(SIZE);
            for (i, element) in from.enumerate() {
                out[((start + i) * GROUP + r) * SIZE..][..SIZE].copy_from_slice(element);
            }
        }
    }
}
