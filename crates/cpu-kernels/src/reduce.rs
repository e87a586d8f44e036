//! Reductions along the last extent.

use core_tensor::ValueId;
use core_tensor::op::{OpError, ReduceKind, TopK};

use crate::math::exp;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// What a row is reduced to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RowKind {
    Softmax,
    Reduce(ReduceKind),
    ArgMax,
}

pub(crate) struct ReduceRows {
    pub(crate) kind: RowKind,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
}

impl Step for ReduceRows {
    fn describe(&self) -> String {
        format!("{:?} {} -> {}", self.kind, self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let n = x.cols();
        for row in cx.worker.share(x.rows()) {
            let source = x.f32().wrapping_add(row * n);
            // SAFETY: the row is inside x; y has a row of n for softmax, else one element; rows are this thread's.
            unsafe {
                match self.kind {
                    RowKind::Softmax => {
                        cx.level.run(SoftmaxRow { x: source, y: y.f32().wrapping_add(row * n), n });
                    }
                    RowKind::Reduce(kind) => *y.f32().add(row) = cx.level.run(ReduceRow { kind, x: source, n }),
                    RowKind::ArgMax => {
                        let values = std::slice::from_raw_parts(source, n);
                        let best = (0..n).fold(0, |best, i| if values[i] > values[best] { i } else { best });
                        *y.ptr.cast::<i32>().add(row) = best as i32;
                    }
                }
            }
        }
    }
}

/// The largest elements of each row.
pub(crate) struct TopKRows {
    pub(crate) k: usize,
    pub(crate) x: ValueId,
    pub(crate) values: ValueId,
    pub(crate) indices: ValueId,
}

impl Step for TopKRows {
    fn describe(&self) -> String {
        format!("TopK {} of {} -> {}, {}", self.k, self.x, self.values, self.indices)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, values, indices) = (cx.view(self.x), cx.view(self.values), cx.view(self.indices));
        let n = x.cols();
        if n < self.k {
            return cx.fail(OpError::Attribute { name: "k", reason: format!("{} of {n} elements", self.k) });
        }
        let mut best: Vec<(f32, usize)> = Vec::with_capacity(2 * self.k);
        for row in cx.worker.share(x.rows()) {
            // SAFETY: the row is inside x, and no other step writes it meanwhile.
            let source = unsafe { std::slice::from_raw_parts(x.f32().wrapping_add(row * n), n) };
            best.clear();
            for element in source.iter().copied().zip(0..) {
                // One look at each: what comes after the k-th best so far is passed over, the others are sorted out in batches.
                if best.len() >= self.k && TopK::order(element, best[self.k - 1]).is_gt() {
                    continue;
                }
                best.push(element);
                if best.len() == self.k || best.len() == 2 * self.k {
                    best.sort_unstable_by(|a, b| TopK::order(*a, *b));
                    best.truncate(self.k);
                }
            }
            best.sort_unstable_by(|a, b| TopK::order(*a, *b));
            for (i, (value, index)) in best.iter().take(self.k).enumerate() {
                // SAFETY: both outputs have k elements a row; rows are this thread's.
                unsafe {
                    *values.f32().add(row * self.k + i) = *value;
                    *indices.ptr.cast::<i32>().add(row * self.k + i) = *index as i32;
                }
            }
        }
    }
}

struct SoftmaxRow {
    x: *const f32,
    y: *mut f32,
    n: usize,
}

impl Kernel for SoftmaxRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = (ReduceRow { kind: ReduceKind::Max, x: self.x, n: self.n }).run(s);
        let mut sum = 0.0;
        // SAFETY: i + m is at most n, which x and y hold.
        unsafe {
            let mut i = 0;
            while i < self.n {
                let m = (self.n - i).min(S::LANES);
                let e = exp(s, s.f_sub(s.f_load_first(self.x.add(i), m), s.f_splat(max)));
                s.f_store_first(self.y.add(i), e, m);
                for lane in 0..m {
                    sum += *self.y.add(i + lane);
                }
                i += m;
            }
            let scale = s.f_splat(1.0 / sum);
            let mut i = 0;
            while i < self.n {
                let m = (self.n - i).min(S::LANES);
                s.f_store_first(self.y.add(i), s.f_mul(s.f_load_first(self.y.add(i), m), scale), m);
                i += m;
            }
        }
    }
}

struct ReduceRow {
    kind: ReduceKind,
    x: *const f32,
    n: usize,
}

impl Kernel for ReduceRow {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let max = matches!(self.kind, ReduceKind::Max);
        let mut acc = s.f_splat(if max { f32::NEG_INFINITY } else { 0.0 });
        let mut tail = if max { f32::NEG_INFINITY } else { 0.0 };
        let mut i = 0;
        // SAFETY: every access is below n, which x holds.
        unsafe {
            while i + S::LANES <= self.n {
                let v = s.f_load(self.x.add(i));
                // NaN is passed over, as by `f32::max`.
                acc = if max { s.f_max(v, acc) } else { s.f_add(acc, v) };
                i += S::LANES;
            }
            while i < self.n {
                let v = *self.x.add(i);
                tail = if max { tail.max(v) } else { tail + v };
                i += 1;
            }
        }
        match self.kind {
            ReduceKind::Max => s.f_reduce_max(acc).max(tail),
            ReduceKind::Sum => s.f_reduce_add(acc) + tail,
            ReduceKind::Mean => (s.f_reduce_add(acc) + tail) / self.n as f32,
            // SAFETY: x holds n elements.
            kind => kind.apply(unsafe { std::slice::from_raw_parts(self.x, self.n) }),
        }
    }
}
