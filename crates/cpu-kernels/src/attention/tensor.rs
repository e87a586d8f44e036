//! Attention over tensors: two vectors of queries lie across the lanes, keys and values are broadcast from where they lie.
//!
//! Scores and results are then products like any other, maximum and sum of the softmax need no reduction, and nothing but the queries is moved.
//! Keys are taken in blocks with a running maximum and sum (online softmax, Milakov and Gimelshein 2018).

use core_tensor::op::TensorAttention;
use core_tensor::{DType, ValueId};

use crate::math::{exp, tanh};
use crate::program::{RunContext, Step, View};
use crate::simd::{Kernel, Simd};

/// Keys per block: their scores stay in the first-level cache.
const KEYS: usize = 128;
/// Lanes of a tile of queries, at most.
const LANES: usize = 32;
/// Rows of the register tile.
const TILE: usize = 8;

pub(crate) struct TensorAttentionStep {
    pub(crate) op: TensorAttention,
    pub(crate) q: ValueId,
    pub(crate) k: ValueId,
    pub(crate) v: ValueId,
    /// The mask and its dtype.
    pub(crate) mask: Option<(ValueId, DType)>,
    pub(crate) y: ValueId,
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Floats of scratch that one thread needs: queries, results, scores and what is added to these.
pub(crate) fn scratch_floats(k_dim: usize, v_dim: usize) -> usize {
    LANES * (k_dim + v_dim + 2 * KEYS)
}

impl Step for TensorAttentionStep {
    fn describe(&self) -> String {
        let mask = self.mask.map_or(String::new(), |(mask, _)| format!(" mask {mask}"));
        format!("TensorAttention {} {} {}{mask} -> {}", self.q, self.k, self.v, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (q, k, v, y) = (cx.view(self.q), cx.view(self.k), cx.view(self.v), cx.view(self.y));
        let [batch, tokens, heads, k_dim] = *q.shape else { return };
        let [_, n, n_kv, v_dim] = *v.shape else { return };
        if y.len() == 0 {
            return;
        }
        let lanes = cx.level.run(TileLanes);
        let blocks = tokens.div_ceil(lanes);
        let units = batch * heads * blocks;
        let floats = scratch_floats(k_dim, v_dim).next_multiple_of(16);
        let scratch: *mut f32 = cx.scratch(self.scratch).cast();
        let scratch = scratch.wrapping_add(cx.worker.index * floats);
        let mask = self.mask.map(|(id, dtype)| Mask::new(cx.view(id), dtype));
        while let Some(unit) = cx.claim(self.counter, units) {
            // The blocks of one head follow each other: its keys and values stay in the cache.
            let (image, head, block) = (unit / blocks / heads, unit / blocks % heads, unit % blocks);
            let first = block * lanes;
            let kv_head = head / (heads / n_kv);
            cx.level.run(Block {
                op: self.op,
                q: q.f32().wrapping_add(((image * tokens + first) * heads + head) * k_dim),
                q_stride: heads * k_dim,
                k: k.f32().wrapping_add((image * n * n_kv + kv_head) * k_dim),
                k_stride: n_kv * k_dim,
                v: v.f32().wrapping_add((image * n * n_kv + kv_head) * v_dim),
                v_stride: n_kv * v_dim,
                y: y.f32().wrapping_add(((image * tokens + first) * heads + head) * v_dim),
                y_stride: heads * v_dim,
                mask: mask.map(|mask| mask.at(image, head, first)),
                queries: (tokens - first).min(lanes),
                // The last query sees all keys; of more queries than keys the first ones see none.
                seen: (first + 1 + n).saturating_sub(tokens),
                hidden: (tokens).saturating_sub(first + 1 + n),
                n,
                k_dim,
                v_dim,
                scratch,
            });
        }
    }
}

struct TileLanes;

impl Kernel for TileLanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        2 * S::LANES
    }
}

/// A mask, broadcast to `[batch, heads, tokens, n]`.
#[derive(Clone, Copy)]
struct Mask {
    ptr: *const u8,
    dtype: DType,
    /// Elements from one image, head, query and key to the next; 0 where all share one.
    strides: [usize; 4],
}

impl Mask {
    fn new(view: View<'_>, dtype: DType) -> Mask {
        let mut strides = [0; 4];
        let mut stride = 1;
        for (i, extent) in view.shape.iter().rev().enumerate().take(4) {
            strides[3 - i] = if *extent == 1 { 0 } else { stride };
            stride *= extent;
        }
        Mask { ptr: view.ptr, dtype, strides }
    }

    fn size(&self) -> usize {
        if self.dtype == DType::Bool { 1 } else { 4 }
    }

    /// The mask of one head's queries from `query` on.
    fn at(self, image: usize, head: usize, query: usize) -> Mask {
        let [a, b, c, _] = self.strides;
        Mask { ptr: self.ptr.wrapping_add((image * a + head * b + query * c) * self.size()), ..self }
    }

    /// What is added to a score.
    ///
    /// # Safety
    /// The query and key exist.
    #[inline(always)]
    unsafe fn get(&self, query: usize, key: usize) -> f32 {
        let p = self.ptr.wrapping_add((query * self.strides[2] + key * self.strides[3]) * self.size());
        // SAFETY: inside of the mask, which the shape rule has made sure is as large.
        unsafe {
            if self.dtype != DType::Bool {
                p.cast::<f32>().read_unaligned()
            } else if *p == 0 {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        }
    }
}

/// Some queries of one head; strides in elements.
struct Block {
    op: TensorAttention,
    q: *const f32,
    q_stride: usize,
    k: *const f32,
    k_stride: usize,
    v: *const f32,
    v_stride: usize,
    y: *mut f32,
    y_stride: usize,
    mask: Option<Mask>,
    queries: usize,
    /// How many keys the first query sees if the attention is causal; each one after it sees one more, after the first `hidden`.
    seen: usize,
    hidden: usize,
    n: usize,
    k_dim: usize,
    v_dim: usize,
    scratch: *mut f32,
}

impl Block {
    /// Keys that a query sees.
    fn seen(&self, query: usize) -> usize {
        if self.op.causal { (self.seen + query).saturating_sub(self.hidden).min(self.n) } else { self.n }
    }
}

impl Kernel for Block {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the scratch is this thread's and holds `scratch_floats`; rows are inside of their values.
        unsafe { if self.queries > S::LANES { self.attend::<S, 2>(s) } else { self.attend::<S, 1>(s) } }
    }
}

/// What is added to the scores of a block of keys.
#[derive(Clone, Copy, PartialEq)]
enum Added {
    Nothing,
    /// One number per key.
    Row,
    /// One per key and lane.
    All,
}

impl Block {
    /// # Safety
    /// At most `VR` vectors of queries; the scratch holds [`scratch_floats`].
    #[inline(always)]
    unsafe fn attend<S: Simd, const VR: usize>(&self, s: S) {
        let lanes = VR * S::LANES;
        let q = self.scratch;
        let acc = q.wrapping_add(LANES * self.k_dim);
        let scores = acc.wrapping_add(LANES * self.v_dim);
        let added = scores.wrapping_add(LANES * KEYS);
        // SAFETY: all offsets stay inside of the scratch areas, and rows inside of their values.
        unsafe {
            for lane in 0..lanes {
                // Idle lanes repeat the last query.
                let source = self.q.add(lane.min(self.queries - 1) * self.q_stride);
                for d in 0..self.k_dim {
                    *q.add(d * lanes + lane) = *source.add(d) * self.op.scale;
                }
            }
            let mut max = [s.f_splat(f32::NEG_INFINITY); VR];
            let mut sum = [s.f_splat(0.0); VR];
            let end = self.seen(self.queries - 1);
            let mut from = 0;
            while from < end {
                let count = (end - from).min(KEYS);
                let kind = self.added(from, count, lanes, added);
                let mut top = max;
                let mut j = 0;
                while j < count {
                    let rows = if count - j >= TILE { TILE } else { 1 };
                    let at = scores.add(j * lanes);
                    let keys = self.k.add((from + j) * self.k_stride);
                    if rows == TILE {
                        let dots = product::<S, VR, TILE>(s, q, keys, self.k_stride, 1, self.k_dim, None);
                        self.scores(s, &dots, kind, added, j, at, &mut top);
                    } else {
                        let dots = product::<S, VR, 1>(s, q, keys, self.k_stride, 1, self.k_dim, None);
                        self.scores(s, &dots, kind, added, j, at, &mut top);
                    }
                    j += rows;
                }
                let mut rescale = [s.f_splat(1.0); VR];
                let mut shift = [s.f_splat(0.0); VR];
                for r in 0..VR {
                    // Where nothing has been seen yet the maximum is -inf, from which nothing can be taken.
                    shift[r] = s.f_max(top[r], s.f_splat(f32::MIN));
                    rescale[r] = exp(s, s.f_sub(max[r], shift[r]));
                    sum[r] = s.f_mul(sum[r], rescale[r]);
                    max[r] = top[r];
                }
                for j in 0..count {
                    for r in 0..VR {
                        let at = scores.add(j * lanes + r * S::LANES);
                        let p = exp(s, s.f_sub(s.f_load(at), shift[r]));
                        sum[r] = s.f_add(sum[r], p);
                        s.f_store(at, p);
                    }
                }
                let values = self.v.add(from * self.v_stride);
                let old = if from == 0 { None } else { Some(rescale) };
                let mut d = 0;
                while d < self.v_dim {
                    let at = acc.add(d * lanes);
                    let start = old.map(|rescale| (at.cast_const(), rescale));
                    if self.v_dim - d >= TILE {
                        let sums = product::<S, VR, TILE>(s, scores, values.add(d), 1, self.v_stride, count, start);
                        store(s, &sums, at);
                        d += TILE;
                    } else {
                        let sums = product::<S, VR, 1>(s, scores, values.add(d), 1, self.v_stride, count, start);
                        store(s, &sums, at);
                        d += 1;
                    }
                }
                from += count;
            }
            let (mut sums, mut tops) = ([0.0f32; LANES], [0.0f32; LANES]);
            for r in 0..VR {
                s.f_store(sums.as_mut_ptr().add(r * S::LANES), sum[r]);
                s.f_store(tops.as_mut_ptr().add(r * S::LANES), max[r]);
            }
            for i in 0..self.queries {
                let out = self.y.add(i * self.y_stride);
                if tops[i] == f32::NEG_INFINITY {
                    std::ptr::write_bytes(out, 0, self.v_dim);
                    continue;
                }
                let scale = 1.0 / sums[i];
                for d in 0..self.v_dim {
                    *out.add(d) = *acc.add(d * lanes + i) * scale;
                }
            }
        }
    }

    /// Scales, caps and masks the scores of some keys, stores them, and takes their maximum.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the state of one step of the loop above
    unsafe fn scores<S: Simd, const VR: usize, const N: usize>(
        &self,
        s: S,
        dots: &[[S::F; VR]; N],
        kind: Added,
        added: *const f32,
        j: usize,
        at: *mut f32,
        top: &mut [S::F; VR],
    ) {
        for (i, dots) in dots.iter().enumerate() {
            for (r, dot) in dots.iter().enumerate() {
                let mut score = *dot;
                if let Some(cap) = self.op.softcap {
                    score = s.f_mul(s.f_splat(cap), tanh(s, s.f_mul(score, s.f_splat(1.0 / cap))));
                }
                // SAFETY: the block has room for KEYS rows of VR vectors each.
                unsafe {
                    match kind {
                        Added::Nothing => {}
                        Added::Row => score = s.f_add(score, s.f_broadcast(added.add(j + i))),
                        Added::All => {
                            score = s.f_add(score, s.f_load(added.add(((j + i) * VR + r) * S::LANES)));
                        }
                    }
                    top[r] = s.f_max(score, top[r]);
                    s.f_store(at.add((i * VR + r) * S::LANES), score);
                }
            }
        }
    }

    /// Fills `added` for some keys.
    #[inline(always)]
    unsafe fn added(&self, from: usize, count: usize, lanes: usize, added: *mut f32) -> Added {
        let edge = self.op.causal && from + count > self.seen(0);
        // SAFETY: the keys and queries exist; the scratch has room for KEYS × lanes.
        unsafe {
            match self.mask {
                None if !edge => Added::Nothing,
                Some(mask) if !edge && mask.strides[2] == 0 => {
                    let mut any = false;
                    for j in 0..count {
                        let value = mask.get(0, from + j);
                        any |= value != 0.0;
                        *added.add(j) = value;
                    }
                    if any { Added::Row } else { Added::Nothing }
                }
                mask => {
                    for lane in 0..lanes {
                        let query = lane.min(self.queries - 1);
                        let seen = self.seen(query);
                        for j in 0..count {
                            let value = mask.map_or(0.0, |mask| mask.get(query, from + j));
                            *added.add(j * lanes + lane) = if from + j < seen { value } else { f32::NEG_INFINITY };
                        }
                    }
                    Added::All
                }
            }
        }
    }
}

/// `Σ_i a[i][lanes] · x[row · outer + i · inner]` for `N` rows, added to what was before times a factor.
///
/// # Safety
/// `a` holds `steps × VR` vectors, `x` all elements named, `start` `N × VR` vectors.
#[inline(always)]
unsafe fn product<S: Simd, const VR: usize, const N: usize>(
    s: S,
    a: *const f32,
    x: *const f32,
    outer: usize,
    inner: usize,
    steps: usize,
    start: Option<(*const f32, [S::F; VR])>,
) -> [[S::F; VR]; N] {
    let mut acc = [[s.f_splat(0.0); VR]; N];
    // SAFETY: the caller's.
    unsafe {
        if let Some((old, factor)) = start {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = s.f_mul(s.f_load(old.add((i * VR + r) * S::LANES)), factor[r]);
                }
            }
        }
        for step in 0..steps {
            let a: [S::F; VR] = std::array::from_fn(|r| s.f_load(a.add((step * VR + r) * S::LANES)));
            let x = x.add(step * inner);
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = s.f_broadcast(x.add(i * outer));
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = s.f_fma(a[r], x, *acc);
                }
            }
        }
    }
    acc
}

/// Stores rows of vectors one after the other.
///
/// # Safety
/// `out` has room for `N × VR` vectors.
#[inline(always)]
unsafe fn store<S: Simd, const VR: usize, const N: usize>(s: S, rows: &[[S::F; VR]; N], out: *mut f32) {
    for (i, row) in rows.iter().enumerate() {
        for (r, v) in row.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { s.f_store(out.add((i * VR + r) * S::LANES), *v) };
        }
    }
}
