//! 16-bit float weights × activations, both as 14-bit integers with a scale per 32: two multiply-adds per lane and
//! instruction where f32 arithmetic has one.
//!
//! The integers are made on the way, for sixteen outputs and a slice of k at a time; the panel they form stays in the cache
//! while all rows of activations pass over it.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{ActivationView, BLOCK, I16_BLOCK_BYTES, I16_TOP};
use super::float::PanelSource;
use super::formats::GROUP;
use super::output::Output;
use crate::simd::{Kernel, Simd};

/// Longest slice of k.
const PANEL_BLOCKS: usize = 20;

/// Bytes of a block in the panel: 16 f32 scales, then 16 vectors of two consecutive weights of each of sixteen outputs.
const BLOCK_BYTES: usize = 64 + 64 * BLOCK / 2;

/// Integer weights, on a cache line.
#[repr(align(64))]
struct Panel([MaybeUninit<u8>; PANEL_BLOCKS * BLOCK_BYTES]);

pub(super) struct Int16<'a, P> {
    pub(super) weights: *const u8,
    pub(super) group_bytes: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) groups: Range<usize>,
    pub(super) activations: ActivationView<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: Output<'a>,
    pub(super) source: PhantomData<P>,
}

impl<P: PanelSource> Kernel for Int16<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut panel = Panel([MaybeUninit::uninit(); PANEL_BLOCKS * BLOCK_BYTES]);
        let panel = panel.0.as_mut_ptr().cast::<u8>();
        let blocks = self.k.div_ceil(BLOCK);
        // Slices of nearly equal length.
        let slices = blocks.div_ceil(PANEL_BLOCKS).max(1);
        for i in 0..slices {
            let slice = blocks * i / slices..blocks * (i + 1) / slices;
            for group in self.groups.clone() {
                let weights = self.weights.wrapping_add(group * self.group_bytes);
                // SAFETY: the group has the weights, the panel the room; `matmul` checked the shapes.
                unsafe {
                    for (i, block) in slice.clone().enumerate() {
                        self.fill(s, weights, block, panel.add(i * BLOCK_BYTES));
                    }
                    self.all_rows(s, group, slice.clone(), panel);
                }
            }
        }
    }
}

impl<P: PanelSource> Int16<'_, P> {
    /// Makes integers of 32 weights of a group.
    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, s: S, group: *const u8, block: usize, out: *mut u8) {
        let count = (self.k - block * BLOCK).min(BLOCK);
        let source = group.wrapping_add(block * BLOCK * GROUP * P::PLAIN_BYTES);
        let magnitude = s.i_splat(0x7fff_ffff);
        let mut lane = 0;
        while lane < GROUP {
            let mut floats = [s.f_splat(0.0); BLOCK];
            let mut top = s.i_splat(0);
            for (k, float) in floats.iter_mut().enumerate().take(count) {
                // SAFETY: the group has this weight.
                *float = unsafe { P::load(s, source.add((k * GROUP + lane) * P::PLAIN_BYTES)) };
                top = s.i_max(top, s.i_and(s.f_to_bits(*float), magnitude));
            }
            // NaN stays NaN: the second operand wins.
            let top = s.f_max(s.f_splat(1e-30), s.f_from_bits(top));
            let inverse = s.f_div(s.f_splat(I16_TOP), top);
            // SAFETY: the block has room for scales and sixteen vectors of pairs.
            unsafe {
                s.f_store(out.add(4 * lane).cast(), s.f_mul(top, s.f_splat(1.0 / I16_TOP)));
                let low_half = s.i_splat(0xffff);
                for (j, pair) in floats.chunks_exact(2).enumerate() {
                    let first = s.i_round(s.f_mul(pair[0], inverse));
                    let second = s.i_round(s.f_mul(pair[1], inverse));
                    let pair = s.i_or(s.i_and(first, low_half), s.i_shl::<16>(second));
                    s.i_store(out.add(64 + 64 * j + 4 * lane), pair);
                }
            }
            lane += S::LANES;
        }
    }

    #[inline(always)]
    unsafe fn all_rows<S: Simd>(&self, s: S, group: usize, slice: Range<usize>, panel: *const u8) {
        let mut row = self.rows.start;
        // SAFETY: the caller's; a last tile is filled up to four rows.
        unsafe {
            if S::LANES == 16 {
                while row + 8 < self.rows.end {
                    self.tile::<S, 12>(s, group, slice.clone(), panel, row);
                    row += 12;
                }
                if row + 4 < self.rows.end {
                    self.tile::<S, 8>(s, group, slice.clone(), panel, row);
                    row += 8;
                }
            }
            while row < self.rows.end {
                self.tile::<S, 4>(s, group, slice.clone(), panel, row);
                row += 4;
            }
        }
    }

    /// Sixteen outputs of `NC` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const NC: usize>(
        &self,
        s: S,
        group: usize,
        slice: Range<usize>,
        panel: *const u8,
        row: usize,
    ) {
        const W: usize = 4;
        let tile_bytes = self.activations.layout().tile_bytes();
        let mut lane = 0;
        while lane < GROUP {
            let mut y = [s.f_splat(0.0); NC];
            let mut a = self.activations.tile(row).wrapping_add(slice.start * W * I16_BLOCK_BYTES);
            let mut w = panel;
            for _ in slice.clone() {
                // SAFETY: the panel and the tiles have a block for each of the slice.
                unsafe {
                    let mut acc = [s.i_splat(0); NC];
                    let vectors = w.add(64 + 4 * lane);
                    for j in 0..BLOCK / 2 {
                        let values: [*const u8; NC] =
                            std::array::from_fn(|c| a.wrapping_add(c / W * tile_bytes + c % W * 2 * BLOCK + 4 * j));
                        s.dot_pairs::<NC>(&mut acc, s.i_load(vectors.add(64 * j)), values);
                    }
                    let scale = s.f_load(w.add(4 * lane).cast());
                    for c in 0..NC {
                        let field = a.wrapping_add(c / W * tile_bytes + W * 2 * BLOCK + c % W * 4);
                        y[c] = s.f_fma(s.f_from_i(acc[c]), s.f_mul(scale, s.f_broadcast(field.cast())), y[c]);
                    }
                    a = a.wrapping_add(W * I16_BLOCK_BYTES);
                    w = w.add(BLOCK_BYTES);
                }
            }
            let mut out = self.out;
            if slice.start > 0 {
                out.accumulate = true;
                out.bias = None;
            }
            let first = group * GROUP + lane;
            let column = (group - self.groups.start) * GROUP + lane;
            let count = self.n.saturating_sub(first).min(S::LANES);
            for (c, y) in y.into_iter().enumerate() {
                if row + c < self.rows.end {
                    // SAFETY: `matmul`'s caller gave an output of this shape.
                    unsafe { out.store(s, row + c - self.rows.start, column, first, count, y) };
                }
            }
            lane += S::LANES;
        }
    }
}
