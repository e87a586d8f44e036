//! Attention over states: tiles of queries for prompts, one pass over keys and values per group of heads for single rows.
//!
//! Both forms go over the keys in blocks with a running maximum and sum (online softmax, Milakov and Gimelshein 2018), so that no buffer grows
//! with the context.

mod tensor;

use core_tensor::op::Attention;
use core_tensor::{BlockFormat, DType, StateId, StateLayout, ValueId};

use crate::math::{exp, select, tanh};
use crate::program::{RunContext, Step, View};
use crate::simd::{Kernel, Simd};
use crate::state::row_ptr;

pub(crate) use tensor::{TensorAttentionStep, scratch_floats as tensor_scratch_floats};

/// Keys per block.
const KEYS: usize = 32;
/// Lanes of a tile of queries, at most: two vectors of the widest level.
const LANES: usize = 32;
/// Below any score, far from overflow: what a masked score gets added, and where the running maximum begins.
const MASKED: f32 = -3.0e30;
const LOWEST: f32 = -1.0e30;

pub(crate) struct AttentionStep {
    pub(crate) op: Attention,
    pub(crate) q: ValueId,
    pub(crate) k: StateId,
    pub(crate) v: StateId,
    pub(crate) positions: ValueId,
    pub(crate) slots: ValueId,
    pub(crate) y: ValueId,
    pub(crate) scratch: usize,
    pub(crate) counter: usize,
}

/// Rows of one step that follow each other in one slot.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    len: usize,
}

/// A unit of work: some queries of one key head.
#[derive(Clone, Copy)]
struct Unit {
    run: Run,
    kv_head: usize,
    /// Queries, numbered `token * group + head in the group` within the run.
    start: usize,
    end: usize,
}

/// Floats of scratch that one thread needs.
pub(crate) fn scratch_floats(k_dim: usize, v_dim: usize) -> usize {
    let (k, v) = (padded(k_dim), padded(v_dim));
    // Queries, results, keys, values, scores, and per lane: maximum, sum, rescaling.
    LANES * (k + v) + KEYS * (k + v) + KEYS * LANES + 3 * LANES
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(16)
}

fn runs(slots: &[i32]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, slot) in slots.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if slots[run.first] == *slot => run.len += 1,
            _ => runs.push(Run { first: i, len: 1 }),
        }
    }
    runs
}

impl Step for AttentionStep {
    fn describe(&self) -> String {
        format!("Attention {} {} {} -> {}", self.q, self.k, self.v, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let q = cx.view(self.q);
        let [_, heads, _] = *q.shape else { return };
        let (k, v) = (cx.state(self.k), cx.state(self.v));
        let group = heads / k.heads;
        let (positions, slots) = (cx.ints(self.positions), cx.ints(self.slots));
        let lanes = cx.level.run(TileLanes);
        let mut units = Vec::new();
        for run in runs(slots) {
            let queries = run.len * group;
            // Few rows: one query row at a time. If the key heads do not go round, its query heads are dealt out instead.
            let few = run.len <= 2;
            let deal =
                few && !(run.len * k.heads).is_multiple_of(cx.worker.count) && run.len * k.heads < 8 * cx.worker.count;
            let size = match (few, deal) {
                (true, true) => 1,
                (true, false) => group,
                (false, _) => lanes,
            };
            for start in (0..queries).step_by(size) {
                for kv_head in 0..k.heads {
                    units.push(Unit { run, kv_head, start, end: (start + size).min(queries) });
                }
            }
        }
        let floats = scratch_floats(k.head_dim, v.head_dim);
        let scratch: *mut f32 = cx.scratch(self.scratch).cast();
        let scratch = scratch.wrapping_add(cx.worker.index * floats.next_multiple_of(16));
        // The last units see the most keys: first.
        while let Some(i) = cx.claim(self.counter, units.len()) {
            let unit = units[units.len() - 1 - i];
            let y = cx.view(self.y);
            let task = Task { op: self.op, unit, group, heads, q, y, k, v, positions, slots, scratch };
            if unit.run.len <= 2 { cx.level.run(Rows(task)) } else { cx.level.run(Tile(task)) }
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

#[derive(Clone, Copy)]
struct Task<'a> {
    op: Attention,
    unit: Unit,
    group: usize,
    heads: usize,
    q: View<'a>,
    y: View<'a>,
    k: StateLayout,
    v: StateLayout,
    positions: &'a [i32],
    slots: &'a [i32],
    scratch: *mut f32,
}

impl Task<'_> {
    /// Token and query head of query `i`.
    fn query(&self, i: usize) -> (usize, usize) {
        (self.unit.run.first + i / self.group, self.unit.kv_head * self.group + i % self.group)
    }

    fn query_ptr(&self, i: usize) -> *const f32 {
        let (token, head) = self.query(i);
        self.q.f32().wrapping_add((token * self.heads + head) * self.k.head_dim)
    }

    fn result_ptr(&self, i: usize) -> *mut f32 {
        let (token, head) = self.query(i);
        self.y.f32().wrapping_add((token * self.heads + head) * self.v.head_dim)
    }

    fn position(&self, i: usize) -> usize {
        self.positions[self.query(i).0] as usize
    }

    fn slot(&self) -> usize {
        self.slots[self.unit.run.first] as usize
    }

    /// Converts keys or values `from..to` to f32, each padded with zeros.
    #[inline(always)]
    unsafe fn load_rows<S: Simd>(&self, s: S, state: &StateLayout, from: usize, to: usize, out: *mut f32) {
        let stride = padded(state.head_dim);
        for (i, position) in (from..to).enumerate() {
            let row = row_ptr(state, self.slot(), self.unit.kv_head, position);
            // SAFETY: the row is inside the state, and out holds KEYS rows of the padded length.
            unsafe { load_row(s, state.dtype, row, out.add(i * stride), state.head_dim) };
        }
    }
}

/// Converts one head of one row to f32, padded with zeros to a multiple of 16.
///
/// # Safety
/// `row` holds `n` elements of the dtype, `out` `padded(n)` f32.
#[inline(always)]
unsafe fn load_row<S: Simd>(s: S, dtype: DType, row: *const u8, out: *mut f32, n: usize) {
    let whole = n / S::LANES * S::LANES;
    // SAFETY: every access is below n, or below padded(n) for the padding, says the caller.
    unsafe {
        match dtype {
            DType::F16 => {
                let mut i = 0;
                while i < whole {
                    s.f_store(out.add(i), s.f_load_f16(row.add(2 * i)));
                    i += S::LANES;
                }
                for i in whole..n {
                    *out.add(i) = half::f16::from_le_bytes(row.add(2 * i).cast::<[u8; 2]>().read()).to_f32();
                }
            }
            DType::Block(BlockFormat::Q8_0) => {
                for block in 0..n / 32 {
                    let source = row.add(block * 34);
                    let d = s.f_splat(half::f16::from_le_bytes(source.cast::<[u8; 2]>().read()).to_f32());
                    let mut i = 0;
                    while i < 32 {
                        let q = s.f_from_i(s.i_load_i8(source.add(2 + i)));
                        s.f_store(out.add(block * 32 + i), s.f_mul(q, d));
                        i += S::LANES;
                    }
                }
            }
            _ => std::ptr::copy_nonoverlapping(row, out.cast::<u8>(), n * 4),
        }
        for i in n..padded(n) {
            *out.add(i) = 0.0;
        }
    }
}

/// Queries of one or two rows: dot products along the head.
struct Rows<'a>(Task<'a>);

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let task = self.0;
        let mut start = task.unit.start;
        while start < task.unit.end {
            // Queries of one token share the range of keys.
            let token_end = (start / task.group + 1) * task.group;
            let end = token_end.min(task.unit.end).min(start + LANES);
            // SAFETY: the scratch is this thread's, and sized for LANES queries.
            unsafe { rows(s, &task, start, end) };
            start = end;
        }
    }
}

/// # Safety
/// At most [`LANES`] queries, all of one token; the scratch holds [`scratch_floats`].
#[inline(always)]
unsafe fn rows<S: Simd>(s: S, task: &Task<'_>, start: usize, end: usize) {
    let (k_dim, v_dim) = (padded(task.k.head_dim), padded(task.v.head_dim));
    let queries = end - start;
    let q = task.scratch;
    let acc = q.wrapping_add(LANES * k_dim);
    let keys = acc.wrapping_add(LANES * v_dim);
    let values = keys.wrapping_add(KEYS * k_dim);
    let scores = values.wrapping_add(KEYS * v_dim);
    let mut max = [LOWEST; LANES];
    let mut sum = [0.0f32; LANES];
    let last = task.position(start);
    let first = task.op.first_position(last);
    // SAFETY: offsets stay inside the scratch areas laid out above; query and result rows are inside their values.
    unsafe {
        for i in 0..queries {
            load_row(s, DType::F32, task.query_ptr(start + i).cast(), q.add(i * k_dim), task.k.head_dim);
        }
        std::ptr::write_bytes(acc, 0, queries * v_dim);
        let mut from = first;
        while from <= last {
            let count = (last + 1 - from).min(KEYS);
            task.load_rows(s, &task.k, from, from + count, keys);
            task.load_rows(s, &task.v, from, from + count, values);
            for i in 0..queries {
                let row = scores.add(i * KEYS);
                let mut top = max[i];
                for j in 0..count {
                    let score = dot_padded(s, q.add(i * k_dim), keys.add(j * k_dim), k_dim) * task.op.scale;
                    let score = task.op.softcap.map_or(score, |cap| cap * (score / cap).tanh());
                    *row.add(j) = score;
                    top = top.max(score);
                }
                let rescale = (max[i] - top).exp();
                max[i] = top;
                let mut total = s.f_splat(0.0);
                let mut j = 0;
                while j < count {
                    let m = (count - j).min(S::LANES);
                    let p = exp(s, s.f_sub(s.f_load_first(row.add(j), m), s.f_splat(top)));
                    s.f_store_first(row.add(j), p, m);
                    total = s.f_add(total, s.f_load_first(row.add(j), m));
                    j += m;
                }
                sum[i] = sum[i] * rescale + s.f_reduce_add(total);
                weigh(s, acc.add(i * v_dim), rescale, row, values, count, v_dim);
            }
            from += count;
        }
        for i in 0..queries {
            let out = task.result_ptr(start + i);
            let mut d = 0;
            while d < task.v.head_dim {
                let m = (task.v.head_dim - d).min(S::LANES);
                let value = s.f_mul(s.f_load(acc.add(i * v_dim + d)), s.f_splat(1.0 / sum[i]));
                s.f_store_first(out.add(d), value, m);
                d += m;
            }
        }
    }
}

/// Dot product of two padded rows.
#[inline(always)]
unsafe fn dot_padded<S: Simd>(s: S, a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut acc = [s.f_splat(0.0); 2];
    let mut i = 0;
    // SAFETY: n is a multiple of 16 and both rows hold n, says the caller; 2 * LANES may exceed it by LANES only in the guarded half.
    unsafe {
        while i < n {
            acc[0] = s.f_fma(s.f_load(a.add(i)), s.f_load(b.add(i)), acc[0]);
            if i + S::LANES < n {
                let at = i + S::LANES;
                acc[1] = s.f_fma(s.f_load(a.add(at)), s.f_load(b.add(at)), acc[1]);
            }
            i += 2 * S::LANES;
        }
    }
    s.f_reduce_add(s.f_add(acc[0], acc[1]))
}

/// `acc = acc * rescale + Σ_j p[j] * values[j]`, four vectors of the head at a time.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    s: S,
    acc: *mut f32,
    rescale: f32,
    p: *const f32,
    values: *const f32,
    count: usize,
    v_dim: usize,
) {
    let scale = s.f_splat(rescale);
    let mut d = 0;
    // SAFETY: acc and each value row hold v_dim (a multiple of 16), p holds count.
    unsafe {
        while d < v_dim {
            let vectors = ((v_dim - d) / S::LANES).min(4);
            let mut sums = [s.f_splat(0.0); 4];
            for (i, sum) in sums.iter_mut().enumerate().take(vectors) {
                *sum = s.f_mul(s.f_load(acc.add(d + i * S::LANES)), scale);
            }
            for j in 0..count {
                let weight = s.f_splat(*p.add(j));
                let row = values.add(j * v_dim + d);
                for (i, sum) in sums.iter_mut().enumerate().take(vectors) {
                    *sum = s.f_fma(weight, s.f_load(row.add(i * S::LANES)), *sum);
                }
            }
            for (i, sum) in sums.iter().enumerate().take(vectors) {
                s.f_store(acc.add(d + i * S::LANES), *sum);
            }
            d += vectors * S::LANES;
        }
    }
}

/// Many queries: two vectors of them lie across the lanes, so that maximum, sum and exponential need no reduction.
struct Tile<'a>(Task<'a>);

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the scratch is this thread's and sized for LANES queries; a unit has at most two vectors of them.
        unsafe { tile(s, &self.0) };
    }
}

/// # Safety
/// The unit has at most `2 * S::LANES` queries; the scratch holds [`scratch_floats`].
#[inline(always)]
unsafe fn tile<S: Simd>(s: S, task: &Task<'_>) {
    let lanes = 2 * S::LANES;
    let (k_dim, v_dim) = (padded(task.k.head_dim), padded(task.v.head_dim));
    let queries = task.unit.end - task.unit.start;
    // Queries and results lie transposed: element d of all lanes side by side.
    let q = task.scratch;
    let acc = q.wrapping_add(LANES * k_dim);
    let keys = acc.wrapping_add(LANES * v_dim);
    let values = keys.wrapping_add(KEYS * k_dim);
    let scores = values.wrapping_add(KEYS * v_dim);
    let mut last = [0usize; LANES];
    let mut first = [0usize; LANES];
    for i in 0..lanes {
        // Idle lanes repeat the last query.
        let position = task.position(task.unit.start + i.min(queries - 1));
        last[i] = position;
        first[i] = task.op.first_position(position);
    }
    let bounds = |v: &[usize; LANES]| v[..lanes].iter().fold((usize::MAX, 0), |(a, b), x| (a.min(*x), b.max(*x)));
    let ((first_min, first_max), (last_min, last_max)) = (bounds(&first), bounds(&last));
    let mut max = [s.f_splat(LOWEST); 2];
    let mut sum = [s.f_splat(0.0); 2];
    let scale = s.f_splat(task.op.scale);
    // SAFETY: offsets stay inside the scratch areas laid out above.
    unsafe {
        for i in 0..lanes {
            let source = task.query_ptr(task.unit.start + i.min(queries - 1));
            for d in 0..task.k.head_dim {
                *q.add(d * lanes + i) = *source.add(d);
            }
        }
        std::ptr::write_bytes(acc, 0, lanes * v_dim);
        let mut from = first_min;
        while from <= last_max {
            let count = (last_max + 1 - from).min(KEYS);
            task.load_rows(s, &task.k, from, from + count, keys);
            task.load_rows(s, &task.v, from, from + count, values);
            // Rows past the count are computed in groups of four all the same: zeros there, and masked below.
            if !count.is_multiple_of(4) {
                std::ptr::write_bytes(keys.add(count * k_dim), 0, (4 - count % 4) * k_dim);
                std::ptr::write_bytes(values.add(count * v_dim), 0, (4 - count % 4) * v_dim);
            }
            let rows = count.next_multiple_of(4);
            let mut top = max;
            let masked = from + rows > last_min + 1 || from < first_max;
            let mut j = 0;
            while j < rows {
                let mut dots = [[s.f_splat(0.0); 2]; 4];
                for d in 0..task.k.head_dim {
                    let a = s.f_load(q.add(d * lanes));
                    let b = s.f_load(q.add(d * lanes + S::LANES));
                    for (i, dot) in dots.iter_mut().enumerate() {
                        let key = s.f_broadcast(keys.add((j + i) * k_dim + d));
                        dot[0] = s.f_fma(a, key, dot[0]);
                        dot[1] = s.f_fma(b, key, dot[1]);
                    }
                }
                for (i, dot) in dots.iter().enumerate() {
                    for (half, dot) in dot.iter().enumerate() {
                        let mut score = s.f_mul(*dot, scale);
                        if let Some(cap) = task.op.softcap {
                            score = s.f_mul(s.f_splat(cap), tanh(s, s.f_mul(score, s.f_splat(1.0 / cap))));
                        }
                        if masked {
                            let position = from + j + i;
                            let mut mask = [0i32; 16];
                            for lane in 0..S::LANES {
                                let at = half * S::LANES + lane;
                                if position > last[at] || position < first[at] {
                                    mask[lane] = -1;
                                }
                            }
                            score = select(s, s.i_load(mask.as_ptr().cast()), s.f_splat(MASKED), score);
                        }
                        top[half] = s.f_max(score, top[half]);
                        s.f_store(scores.add((j + i) * lanes + half * S::LANES), score);
                    }
                }
                j += 4;
            }
            let mut rescale = [s.f_splat(1.0); 2];
            for half in 0..2 {
                rescale[half] = exp(s, s.f_sub(max[half], top[half]));
                sum[half] = s.f_mul(sum[half], rescale[half]);
                max[half] = top[half];
            }
            for j in 0..rows {
                for half in 0..2 {
                    let at = scores.add(j * lanes + half * S::LANES);
                    let p = exp(s, s.f_sub(s.f_load(at), max[half]));
                    sum[half] = s.f_add(sum[half], p);
                    s.f_store(at, p);
                }
            }
            let mut d = 0;
            while d < v_dim {
                let mut sums = [[s.f_splat(0.0); 2]; 4];
                for (i, sum) in sums.iter_mut().enumerate() {
                    for (half, sum) in sum.iter_mut().enumerate() {
                        *sum = s.f_mul(s.f_load(acc.add((d + i) * lanes + half * S::LANES)), rescale[half]);
                    }
                }
                for j in 0..rows {
                    let a = s.f_load(scores.add(j * lanes));
                    let b = s.f_load(scores.add(j * lanes + S::LANES));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let value = s.f_broadcast(values.add(j * v_dim + d + i));
                        sum[0] = s.f_fma(a, value, sum[0]);
                        sum[1] = s.f_fma(b, value, sum[1]);
                    }
                }
                for (i, sum) in sums.iter().enumerate() {
                    for (half, sum) in sum.iter().enumerate() {
                        s.f_store(acc.add((d + i) * lanes + half * S::LANES), *sum);
                    }
                }
                d += 4;
            }
            from += count;
        }
        let mut sums = [0.0f32; LANES];
        for half in 0..2 {
            s.f_store(sums.as_mut_ptr().add(half * S::LANES), sum[half]);
        }
        for i in 0..queries {
            let out = task.result_ptr(task.unit.start + i);
            let scale = 1.0 / sums[i];
            for d in 0..task.v.head_dim {
                *out.add(d) = *acc.add(d * lanes + i) * scale;
            }
        }
    }
}
