//! Block-quantized weights × 8-bit activations.

use std::ops::Range;

use super::activations::{ActivationView, BLOCK, Q8_BLOCK_BYTES};
use super::formats::{GROUP, Packing};
use super::output::Output;
use crate::simd::{Kernel, Simd};

/// How far ahead of the weights in use to prefetch when there are few rows, in bytes.
const PREFETCH: usize = 4096;

/// Rows of activations that stay in the second-level cache while all groups pass over them, in bytes.
const CHUNK_BYTES: usize = 512 << 10;

pub(super) struct Int8<'a, P> {
    pub(super) weights: *const u8,
    pub(super) group_bytes: usize,
    pub(super) n: usize,
    pub(super) groups: Range<usize>,
    pub(super) activations: ActivationView<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: Output<'a>,
    pub(super) packing: std::marker::PhantomData<P>,
}

impl<P: Packing> Kernel for Int8<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile_rows = self.activations.layout().tile_rows();
        if tile_rows == 1 {
            // SAFETY: `matmul` checked the shapes; one to three rows are tiles of their own.
            unsafe {
                match self.rows.len() {
                    0 => {}
                    1 => self.all_groups::<S, 1, 1>(s, self.rows.start),
                    2 => self.all_groups::<S, 1, 2>(s, self.rows.start),
                    _ => self.all_groups::<S, 1, 3>(s, self.rows.start),
                }
            }
            return;
        }
        let row_bytes = self.activations.layout().tile_bytes() / tile_rows;
        let chunk = (CHUNK_BYTES / row_bytes.max(1) / 12 * 12).max(12);
        let mut start = self.rows.start;
        while start < self.rows.end {
            let end = (start + chunk).min(self.rows.end);
            for group in self.groups.clone() {
                let mut row = start;
                // SAFETY: `matmul` checked the shapes; a last tile is filled up to four rows.
                unsafe {
                    if S::LANES == 16 {
                        while row + 8 < end {
                            self.group::<S, 4, 12>(s, group, row, end);
                            row += 12;
                        }
                        if row + 4 < end {
                            self.group::<S, 4, 8>(s, group, row, end);
                            row += 8;
                        }
                    }
                    while row < end {
                        self.group::<S, 4, 4>(s, group, row, end);
                        row += 4;
                    }
                }
            }
            start = end;
        }
    }
}

impl<P: Packing> Int8<'_, P> {
    #[inline(always)]
    unsafe fn all_groups<S: Simd, const W: usize, const NC: usize>(&self, s: S, row: usize) {
        // What the loop below asks for comes after this.
        let weights = self.weights.wrapping_add(self.groups.start * self.group_bytes);
        for line in 0..PREFETCH.min(self.groups.len() * self.group_bytes).div_ceil(64) {
            s.prefetch(weights.wrapping_add(64 * line));
        }
        for group in self.groups.clone() {
            // SAFETY: the caller's.
            unsafe { self.group::<S, W, NC>(s, group, row, row + NC) };
        }
    }

    /// All of `k` for sixteen outputs of `NC` rows from `row` on, of which those before `end` are stored.
    #[inline(always)]
    unsafe fn group<S: Simd, const W: usize, const NC: usize>(&self, s: S, group: usize, row: usize, end: usize) {
        let weights = self.weights.wrapping_add(group * self.group_bytes);
        let tile = self.activations.tile(row);
        let mut lane = 0;
        while lane < GROUP {
            // SAFETY: the group and the tiles lie within the buffers, says the caller.
            let y = unsafe { self.columns::<S, W, NC>(s, weights, tile, lane) };
            for (c, y) in y.into_iter().enumerate() {
                if row + c < end {
                    let (at, o) = (row + c - self.rows.start, (group - self.groups.start) * GROUP + lane);
                    let first = group * GROUP + lane;
                    // SAFETY: `matmul`'s caller gave an output of this shape.
                    unsafe { self.out.store(s, at, o, first, self.n.saturating_sub(first).min(S::LANES), y) };
                }
            }
            lane += S::LANES;
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, const W: usize, const NC: usize>(
        &self,
        s: S,
        weights: *const u8,
        tile: *const u8,
        lane: usize,
    ) -> [S::F; NC] {
        let tile_bytes = self.activations.layout().tile_bytes();
        let mut y = [s.f_splat(0.0); NC];
        let (mut record, end) = (weights, weights.wrapping_add(self.group_bytes));
        let mut block_at = tile;
        while record < end {
            for block in 0..P::BLOCKS {
                if NC < 4 && lane == 0 {
                    // A block's share of a record ahead: in one burst, the requests would queue.
                    let share = P::BYTES / P::BLOCKS;
                    for line in 0..share.div_ceil(64) {
                        s.prefetch(record.wrapping_add(PREFETCH + share * block + 64 * line));
                    }
                }
                // Column c is row c % W of tile c / W.
                let values: [*const u8; NC] =
                    std::array::from_fn(|c| block_at.wrapping_add(c / W * tile_bytes + c % W * BLOCK));
                let fields: [*const u8; NC] =
                    std::array::from_fn(|c| block_at.wrapping_add(c / W * tile_bytes + W * BLOCK + c % W * 4));
                // SAFETY: the record is whole; the activations have a block for each of the weights.
                unsafe { self.block::<S, W, NC>(s, record, block, lane, values, fields, &mut y) };
                block_at = block_at.wrapping_add(W * Q8_BLOCK_BYTES);
            }
            record = record.wrapping_add(P::BYTES);
        }
        y
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the state of one step of the loop above
    unsafe fn block<S: Simd, const W: usize, const NC: usize>(
        &self,
        s: S,
        record: *const u8,
        block: usize,
        lane: usize,
        values: [*const u8; NC],
        fields: [*const u8; NC],
        y: &mut [S::F; NC],
    ) {
        // SAFETY: the caller's; the fields are those of `ActivationLayout`.
        unsafe {
            let scale_of = |c: usize| s.f_broadcast(fields[c].cast());
            let scaled_sum_of = |c: usize| s.f_broadcast(fields[c].add(4 * W).cast());
            // −zero × sum of the activations: what the unsigned weights have too much.
            let start = |c: usize, field: usize| {
                let centred = P::BITS == 8 && S::BYTES_ARE_CENTRED;
                if P::ZERO == 0 || centred {
                    return s.i_splat(0);
                }
                let sum = s.i_broadcast(fields[c].add(4 * W * field));
                match P::ZERO {
                    2 => s.i_shl::<2>(sum),
                    3 => s.i_shl::<3>(sum),
                    4 => s.i_shl::<4>(sum),
                    5 => s.i_shl::<5>(sum),
                    _ => s.i_shl::<7>(sum),
                }
            };
            if P::SCALE_PER_16 {
                for half in 0..2 {
                    let mut acc: [S::I; NC] = std::array::from_fn(|c| start(c, 3 + half));
                    let quads = match half {
                        0 => P::quads::<S, 0>(s, record, block, lane),
                        _ => P::quads::<S, 1>(s, record, block, lane),
                    };
                    s.dot4_for::<P, NC>(&mut acc, quads, values.map(|a| a.add(16 * half)));
                    let scale = P::scale(s, record, block, half, lane);
                    for c in 0..NC {
                        y[c] = s.f_fma(s.f_from_i(acc[c]), s.f_mul(scale, scale_of(c)), y[c]);
                    }
                    if P::MIN_PER_16 {
                        let min = s.f_sub(s.f_splat(0.0), P::min(s, record, block, half, lane));
                        for c in 0..NC {
                            // The sums are negated.
                            let sum = s.f_from_i(s.i_broadcast(fields[c].add(4 * W * (3 + half))));
                            y[c] = s.f_fma(sum, s.f_mul(min, scale_of(c)), y[c]);
                        }
                    }
                }
                return;
            }
            let mut acc: [S::I; NC] = std::array::from_fn(|c| start(c, 2));
            s.dot4_for::<P, NC>(&mut acc, P::quads::<S, 0>(s, record, block, lane), values);
            s.dot4_for::<P, NC>(&mut acc, P::quads::<S, 1>(s, record, block, lane), values.map(|a| a.add(16)));
            let scale = P::scale(s, record, block, 0, lane);
            for c in 0..NC {
                y[c] = s.f_fma(s.f_from_i(acc[c]), s.f_mul(scale, scale_of(c)), y[c]);
            }
            if P::HAS_MIN {
                let min = P::min(s, record, block, 0, lane);
                for c in 0..NC {
                    y[c] = s.f_fma(min, scaled_sum_of(c), y[c]);
                }
            }
        }
    }
}

/// [`Simd::dot4`] with the number of bits of a format.
trait Dot4For: Simd {
    unsafe fn dot4_for<P: Packing, const NC: usize>(self, acc: &mut [Self::I; NC], w: [Self::I; 4], a: [*const u8; NC]);
}

impl<S: Simd> Dot4For for S {
    #[inline(always)]
    unsafe fn dot4_for<P: Packing, const NC: usize>(self, acc: &mut [S::I; NC], w: [S::I; 4], a: [*const u8; NC]) {
        // SAFETY: the caller's.
        unsafe {
            match P::BITS {
                2..=4 => self.dot4::<4, NC>(acc, w, a),
                5 => self.dot4::<5, NC>(acc, w, a),
                6 => self.dot4::<6, NC>(acc, w, a),
                _ => self.dot4::<8, NC>(acc, w, a),
            }
        }
    }
}
