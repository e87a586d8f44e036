//! Weights × f32 activations: plain float weights, and every block format decoded on the way.
//!
//! With many rows, the weights of some groups and a slice of k are turned into a *panel* of f32 (`[k][16]` per group) that
//! stays in the cache while all rows pass over it; with few, plain floats are converted in registers. The inner loop is a
//! register tile of `VR` vectors of outputs × `NC` rows.

use std::mem::MaybeUninit;
use std::ops::Range;

use core_tensor::{BlockFormat, block};

use super::activations::ActivationView;
use super::formats::{GROUP, Packing};
use super::output::Output;
use crate::simd::{Kernel, Simd};

/// Slice of k that a panel covers: a multiple of every block length.
const PANEL_K: usize = 512;

/// Groups in a panel.
const PANEL_GROUPS: usize = 2;

/// What panels are made of.
pub(super) trait PanelSource {
    /// Bytes per weight if `[k][16]` elements can be loaded straight into registers, else 0.
    const PLAIN_BYTES: usize = 0;

    /// Whether the packed form already is a panel.
    const IS_PANEL: bool = false;

    /// Loads the weights at `p` (plain sources only).
    ///
    /// # Safety
    /// `p` is readable for `LANES × PLAIN_BYTES` bytes.
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F;

    /// Fills `panel` (`[k.len()][16]`) with the f32 weights of a group.
    ///
    /// # Safety
    /// `group` is a packed group with at least `k.end` weights per row, `panel` has room; `k.start` is a multiple of
    /// [`PANEL_K`].
    unsafe fn fill<S: Simd>(&self, s: S, group: *const u8, k: Range<usize>, panel: *mut f32);
}

/// f32 weights.
pub(super) struct PlainF32;

impl PanelSource for PlainF32 {
    const PLAIN_BYTES: usize = 4;
    const IS_PANEL: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { s.f_load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, _: S, group: *const u8, k: Range<usize>, panel: *mut f32) {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(group.cast::<f32>().add(GROUP * k.start), panel, GROUP * k.len()) }
    }
}

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $load:ident) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl PanelSource for $name {
            const PLAIN_BYTES: usize = 2;

            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { s.$load(p) }
            }

            #[inline(always)]
            unsafe fn fill<S: Simd>(&self, s: S, group: *const u8, k: Range<usize>, panel: *mut f32) {
                let mut at = 0;
                while at < GROUP * k.len() {
                    // SAFETY: the caller's.
                    unsafe { s.f_store(panel.add(at), s.$load(group.add(2 * (GROUP * k.start + at)))) };
                    at += S::LANES;
                }
            }
        }
    };
}

plain!(
    /// IEEE half precision.
    PlainF16,
    f_load_f16
);
plain!(
    /// bfloat16.
    PlainBF16,
    f_load_bf16
);

/// A packed block format.
pub(super) struct Packed<P>(pub(super) std::marker::PhantomData<P>);

impl<P: Packing> PanelSource for Packed<P> {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, _: *const u8) -> S::F {
        s.f_splat(0.0)
    }

    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, s: S, group: *const u8, k: Range<usize>, panel: *mut f32) {
        for (i, at) in k.clone().step_by(32).enumerate() {
            let (record, block) = (group.wrapping_add(at / 32 / P::BLOCKS * P::BYTES), at / 32 % P::BLOCKS);
            let mut lane = 0;
            while lane < GROUP {
                // SAFETY: the record lies within the group; a panel has 32 × 16 weights per block.
                unsafe {
                    let out = panel.add(32 * GROUP * i + lane);
                    let min = P::min(s, record, block, 0, lane);
                    let scale = P::scale(s, record, block, 0, lane);
                    decode_half::<S, P>(s, P::quads::<S, 0>(s, record, block, lane), scale, min, out);
                    let scale = if P::SCALE_PER_16 { P::scale(s, record, block, 1, lane) } else { scale };
                    let min = if P::MIN_PER_16 { P::min(s, record, block, 1, lane) } else { min };
                    let second = out.add(16 * GROUP);
                    decode_half::<S, P>(s, P::quads::<S, 1>(s, record, block, lane), scale, min, second);
                }
                lane += S::LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn decode_half<S: Simd, P: Packing>(s: S, quads: [S::I; 4], scale: S::F, min: S::F, out: *mut f32) {
    let byte = s.i_splat(0xff);
    let zero = s.i_splat(if P::ZERO == 0 { 0 } else { 1 << P::ZERO });
    for (j, q) in quads.into_iter().enumerate() {
        let weights =
            [s.i_and(q, byte), s.i_and(s.i_shr::<8>(q), byte), s.i_and(s.i_shr::<16>(q), byte), s.i_shr::<24>(q)];
        for (i, w) in weights.into_iter().enumerate() {
            let w = s.f_from_i(s.i_sub(w, zero));
            let w = if P::HAS_MIN { s.f_fma(w, scale, min) } else { s.f_mul(w, scale) };
            // SAFETY: the caller's: sixteen rows of sixteen.
            unsafe { s.f_store(out.add(GROUP * (4 * j + i)), w) };
        }
    }
}

/// Rows as in the file, decoded by `core_tensor`: sixteen rows of `row_bytes` make a group.
pub(super) struct AsStored {
    pub(super) format: BlockFormat,
    pub(super) row_bytes: usize,
}

impl PanelSource for AsStored {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, _: *const u8) -> S::F {
        s.f_splat(0.0)
    }

    #[inline(always)]
    unsafe fn fill<S: Simd>(&self, _: S, group: *const u8, k: Range<usize>, panel: *mut f32) {
        let (len, bytes) = (self.format.block_len(), self.format.block_bytes());
        let mut row = [0.0f32; PANEL_K];
        for r in 0..GROUP {
            let at = self.row_bytes * r + k.start / len * bytes;
            // SAFETY: the caller's: the group has these rows, and k is whole blocks.
            let source = unsafe { std::slice::from_raw_parts(group.add(at), k.len() / len * bytes) };
            let row = &mut row[..k.len()];
            if block::decode(self.format, source, row).is_err() {
                row.fill(f32::NAN); // `PackedMatrix` accepts no format that has no decoder
            }
            for (i, w) in row.iter().enumerate() {
                // SAFETY: the caller's: the panel has k.len() rows of sixteen.
                unsafe { panel.add(GROUP * i + r).write(*w) };
            }
        }
    }
}

pub(super) struct Float<'a, P> {
    pub(super) source: P,
    pub(super) weights: *const u8,
    pub(super) group_bytes: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) groups: Range<usize>,
    pub(super) activations: ActivationView<'a>,
    pub(super) rows: Range<usize>,
    pub(super) out: Output<'a>,
}

impl<P: PanelSource> Kernel for Float<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let few = self.activations.layout().tile_rows() == 1;
        // SAFETY: `matmul` checked the shapes.
        if few && P::PLAIN_BYTES > 0 {
            for group in self.groups.clone() {
                // SAFETY: as above.
                unsafe {
                    match self.rows.len() {
                        0 => {}
                        1 => self.plain_rows::<S, 1>(s, group),
                        2 => self.plain_rows::<S, 2>(s, group),
                        _ => self.plain_rows::<S, 3>(s, group),
                    }
                }
            }
            return;
        }
        let mut panel = Panel([MaybeUninit::uninit(); PANEL_GROUPS * PANEL_K * GROUP]);
        let mut group = self.groups.start;
        while group < self.groups.end {
            let groups = group..(group + PANEL_GROUPS).min(self.groups.end);
            let mut start = 0;
            loop {
                let k = start..(start + PANEL_K).min(self.k);
                // SAFETY: as above.
                unsafe { self.panel(s, groups.clone(), k.clone(), &mut panel) };
                start = k.end;
                if start >= self.k {
                    break;
                }
            }
            group = groups.end;
        }
    }
}

/// Weights as f32, on a cache line.
#[repr(align(64))]
struct Panel([MaybeUninit<f32>; PANEL_GROUPS * PANEL_K * GROUP]);

impl<P: PanelSource> Float<'_, P> {
    /// One to three rows of activations, weights converted in registers. Four partial sums hide the latency.
    #[inline(always)]
    unsafe fn plain_rows<S: Simd, const NC: usize>(&self, s: S, group: usize) {
        const STEPS: usize = 4;
        let step_bytes = GROUP * P::PLAIN_BYTES;
        let rows: [*const f32; NC] = std::array::from_fn(|c| self.activations.tile(self.rows.start + c).cast());
        let mut lane = 0;
        while lane < GROUP {
            let mut acc = [[s.f_splat(0.0); NC]; STEPS];
            let mut w = self.weights.wrapping_add(group * self.group_bytes + lane * P::PLAIN_BYTES);
            let mut k = 0;
            // SAFETY: the group has k × 16 weights, the rows k activations.
            unsafe {
                while k + STEPS <= self.k {
                    if lane == 0 {
                        for line in 0..(STEPS * step_bytes).div_ceil(64) {
                            s.prefetch(w.wrapping_add(4096 + 64 * line));
                        }
                    }
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let w = P::load(s, w.add(i * step_bytes));
                        for (acc, x) in acc.iter_mut().zip(rows) {
                            *acc = s.f_fma(w, s.f_broadcast(x.add(k + i)), *acc);
                        }
                    }
                    w = w.add(STEPS * step_bytes);
                    k += STEPS;
                }
                while k < self.k {
                    let v = P::load(s, w);
                    for (acc, x) in acc[0].iter_mut().zip(rows) {
                        *acc = s.f_fma(v, s.f_broadcast(x.add(k)), *acc);
                    }
                    w = w.add(step_bytes);
                    k += 1;
                }
            }
            for c in 0..NC {
                let y = s.f_add(s.f_add(acc[0][c], acc[1][c]), s.f_add(acc[2][c], acc[3][c]));
                let first = group * GROUP + lane;
                let column = (group - self.groups.start) * GROUP + lane;
                // SAFETY: `matmul`'s caller gave an output of this shape.
                unsafe { self.out.store(s, c, column, first, self.n.saturating_sub(first).min(S::LANES), y) };
            }
            lane += S::LANES;
        }
    }

    /// One slice of k of one or two groups, for all rows.
    #[inline(always)]
    unsafe fn panel<S: Simd>(&self, s: S, groups: Range<usize>, k: Range<usize>, panel: &mut Panel) {
        let group = |g: usize| self.weights.wrapping_add(g * self.group_bytes);
        // Where the panel begins, and how far apart its groups are.
        let (weights, apart) = if P::IS_PANEL {
            let first = group(groups.start).cast::<f32>().wrapping_add(GROUP * k.start);
            (first, self.group_bytes / 4)
        } else {
            for (i, g) in groups.clone().enumerate() {
                let out = panel.0[i * GROUP * PANEL_K..].as_mut_ptr().cast();
                // SAFETY: the group has these weights, and the panel has room for two groups.
                unsafe { self.source.fill(s, group(g), k.clone(), out) };
            }
            (panel.0.as_ptr().cast(), GROUP * PANEL_K)
        };
        let rows = self.rows.clone();
        let outputs = GROUP * groups.len();
        let slice = Slice { weights, apart, group: groups.start, k };
        let mut at = 0;
        while at < outputs {
            let mut row = rows.start;
            // SAFETY: `at` and the vectors after it are outputs of the panel's groups; rows as checked by `matmul`.
            unsafe {
                if self.activations.layout().tile_rows() == 1 {
                    match rows.len() {
                        1 => self.tile::<S, 1, 1, 1>(s, &slice, at, row),
                        2 => self.tile::<S, 1, 1, 2>(s, &slice, at, row),
                        _ => self.tile::<S, 1, 1, 3>(s, &slice, at, row),
                    }
                    at += S::LANES;
                } else if S::LANES == 16 {
                    if outputs - at >= 32 {
                        while row + 8 < rows.end {
                            self.tile::<S, 2, 4, 12>(s, &slice, at, row);
                            row += 12;
                        }
                        while row < rows.end {
                            self.tile::<S, 2, 4, 4>(s, &slice, at, row);
                            row += 4;
                        }
                        at += 32;
                    } else {
                        while row + 8 < rows.end {
                            self.tile::<S, 1, 4, 12>(s, &slice, at, row);
                            row += 12;
                        }
                        while row < rows.end {
                            self.tile::<S, 1, 4, 4>(s, &slice, at, row);
                            row += 4;
                        }
                        at += 16;
                    }
                } else {
                    while row < rows.end {
                        self.tile::<S, 2, 4, 4>(s, &slice, at, row);
                        row += 4;
                    }
                    at += 2 * S::LANES;
                }
            }
        }
    }

    /// A register tile: `VR` vectors of outputs from `at` on × `NC` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const VR: usize, const W: usize, const NC: usize>(
        &self,
        s: S,
        slice: &Slice,
        at: usize,
        row: usize,
    ) {
        let tile_elements = self.activations.layout().tile_bytes() / 4;
        let vectors: [*const f32; VR] = std::array::from_fn(|v| {
            let o = at + v * S::LANES;
            slice.weights.wrapping_add(o / GROUP * slice.apart + o % GROUP)
        });
        let x = self.activations.tile(row).cast::<f32>().wrapping_add(W * slice.k.start);
        let mut acc = [[s.f_splat(0.0); NC]; VR];
        for k in 0..slice.k.len() {
            // SAFETY: the panel has k.len() × 16 weights per group, the tiles W activations for each k.
            unsafe {
                let w: [S::F; VR] = std::array::from_fn(|v| s.f_load(vectors[v].add(GROUP * k)));
                for c in 0..NC {
                    let x = s.f_broadcast(x.wrapping_add(c / W * tile_elements + W * k + c % W));
                    for v in 0..VR {
                        acc[v][c] = s.f_fma(w[v], x, acc[v][c]);
                    }
                }
            }
        }
        let mut out = self.out;
        if slice.k.start > 0 {
            out.accumulate = true;
            out.bias = None;
        }
        for (v, acc) in acc.into_iter().enumerate() {
            let o = at + v * S::LANES;
            let first = slice.group * GROUP + o;
            let column = (slice.group - self.groups.start) * GROUP + o;
            for (c, y) in acc.into_iter().enumerate() {
                if row + c < self.rows.end {
                    let count = self.n.saturating_sub(first).min(S::LANES);
                    // SAFETY: `matmul`'s caller gave an output of this shape.
                    unsafe { out.store(s, row + c - self.rows.start, column, first, count, y) };
                }
            }
        }
    }
}

/// A slice of k of some groups, as f32.
struct Slice {
    weights: *const f32,
    /// Elements from one group to the next.
    apart: usize,
    /// The first group.
    group: usize,
    k: Range<usize>,
}
