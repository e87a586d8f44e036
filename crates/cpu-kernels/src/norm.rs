//! Normalizations of rows.

use core_tensor::ValueId;

use crate::math::dot;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// A normalization of rows and what it is weighted with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Norm {
    /// `x / sqrt(mean(x²) + epsilon) * w`
    Rms { w: ValueId, epsilon: f32 },
    /// `(x - mean) / sqrt(variance + epsilon) * w + b`
    Layer { w: Option<ValueId>, b: Option<ValueId>, epsilon: f32 },
}

impl Norm {
    /// The operator's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Norm::Rms { .. } => "RMSNormalization",
            Norm::Layer { .. } => "LayerNormalization",
        }
    }

    /// The values that are read besides the rows.
    pub(crate) fn reads(&self) -> impl Iterator<Item = ValueId> + use<> {
        let (w, b) = match *self {
            Norm::Rms { w, .. } => (Some(w), None),
            Norm::Layer { w, b, .. } => (w, b),
        };
        w.into_iter().chain(b)
    }

    /// Normalizes a row of `n`.
    ///
    /// # Safety
    /// `x` and `y` hold `n` elements; they may be the same.
    pub(crate) unsafe fn row(&self, cx: &RunContext<'_>, x: *const f32, y: *mut f32, n: usize) {
        match *self {
            Norm::Rms { w, epsilon } => cx.level.run(RmsRow { x, w: cx.floats(w).as_ptr(), y, n, epsilon }),
            Norm::Layer { w, b, epsilon } => {
                let pointer = |id: Option<ValueId>| id.map(|id| cx.floats(id).as_ptr());
                cx.level.run(LayerRow { x, w: pointer(w), b: pointer(b), y, n, epsilon });
            }
        }
    }
}

/// One row of RMSNormalization.
struct RmsRow {
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    n: usize,
    epsilon: f32,
}

impl Kernel for RmsRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: x, w and y hold n elements, says who made the kernel.
        let squares = unsafe { dot(s, self.x, self.x, self.n) };
        let scale = s.f_splat(1.0 / (squares / self.n as f32 + self.epsilon).sqrt());
        let mut i = 0;
        while i < self.n {
            let m = (self.n - i).min(S::LANES);
            // SAFETY: i + m is at most n.
            unsafe {
                let x = s.f_load_first(self.x.add(i), m);
                let w = s.f_load_first(self.w.add(i), m);
                s.f_store_first(self.y.add(i), s.f_mul(s.f_mul(x, scale), w), m);
            }
            i += m;
        }
    }
}

/// One row of LayerNormalization.
struct LayerRow {
    x: *const f32,
    w: Option<*const f32>,
    b: Option<*const f32>,
    y: *mut f32,
    n: usize,
    epsilon: f32,
}

impl Kernel for LayerRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        let whole = n / S::LANES * S::LANES;
        // The mean in f64: where it is far from 0, the squares of the differences must not feel its rounding.
        let mut sums = [s.f_splat(0.0); 2];
        let mut sum = 0.0f64;
        // SAFETY: every access is below n, which x, w, b and y hold.
        unsafe {
            let mut i = 0;
            while i < whole {
                sums[0] = s.f_add(sums[0], s.f_load(self.x.add(i)));
                i += S::LANES;
                if i < whole {
                    sums[1] = s.f_add(sums[1], s.f_load(self.x.add(i)));
                    i += S::LANES;
                }
            }
            for i in whole..n {
                sum += f64::from(*self.x.add(i));
            }
            sum += f64::from(s.f_reduce_add(s.f_add(sums[0], sums[1])));
            let mean = (sum / n as f64) as f32;
            let center = s.f_splat(mean);
            // Shifted by the rounded mean: what that is off by is taken out of the variance and the result.
            let (mut squares, mut rest) = ([s.f_splat(0.0); 2], [s.f_splat(0.0); 2]);
            let (mut square, mut off) = (0.0f32, 0.0f32);
            let mut i = 0;
            while i < whole {
                let d = s.f_sub(s.f_load(self.x.add(i)), center);
                squares[0] = s.f_fma(d, d, squares[0]);
                rest[0] = s.f_add(rest[0], d);
                i += S::LANES;
                if i < whole {
                    let d = s.f_sub(s.f_load(self.x.add(i)), center);
                    squares[1] = s.f_fma(d, d, squares[1]);
                    rest[1] = s.f_add(rest[1], d);
                    i += S::LANES;
                }
            }
            for i in whole..n {
                let d = *self.x.add(i) - mean;
                square += d * d;
                off += d;
            }
            let off = (off + s.f_reduce_add(s.f_add(rest[0], rest[1]))) / n as f32;
            let square = square + s.f_reduce_add(s.f_add(squares[0], squares[1]));
            let variance = (square / n as f32 - off * off).max(0.0);
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            let (factor, off) = (s.f_splat(scale), s.f_splat(off));
            let mut i = 0;
            while i < n {
                let m = (n - i).min(S::LANES);
                let d = s.f_sub(s.f_sub(s.f_load_first(self.x.add(i), m), center), off);
                let mut y = s.f_mul(d, factor);
                if let Some(w) = self.w {
                    y = s.f_mul(y, s.f_load_first(w.add(i), m));
                }
                if let Some(b) = self.b {
                    y = s.f_add(y, s.f_load_first(b.add(i), m));
                }
                s.f_store_first(self.y.add(i), y, m);
                i += m;
            }
        }
    }
}

/// A normalization on its own; before a linear step it is fused into the packing of the activations.
pub(crate) struct NormRows {
    pub(crate) norm: Norm,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
}

impl Step for NormRows {
    fn describe(&self) -> String {
        format!("{} {} -> {}", self.norm.name(), self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let n = x.cols();
        for row in cx.worker.share(x.rows()) {
            // SAFETY: the row is inside of both values, and this thread's.
            unsafe { self.norm.row(cx, x.f32().wrapping_add(row * n), y.f32().wrapping_add(row * n), n) };
        }
    }
}
