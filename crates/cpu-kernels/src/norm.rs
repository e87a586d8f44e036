//! Normalizations.

use core_tensor::ValueId;

use crate::math::dot;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// One row of RMSNormalization: `y = x / sqrt(mean(x²) + epsilon) * w`.
pub(crate) struct RmsRow {
    pub(crate) x: *const f32,
    pub(crate) w: *const f32,
    pub(crate) y: *mut f32,
    pub(crate) n: usize,
    pub(crate) epsilon: f32,
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

/// RMSNormalization on its own; before a linear step it is fused into the packing of the activations.
pub(crate) struct RmsNorm {
    pub(crate) x: ValueId,
    pub(crate) w: ValueId,
    pub(crate) y: ValueId,
    pub(crate) epsilon: f32,
}

impl Step for RmsNorm {
    fn describe(&self) -> String {
        format!("RMSNormalization {} -> {}", self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let w = cx.floats(self.w);
        let n = x.cols();
        for row in cx.worker.share(x.rows()) {
            let (x, y) = (x.f32().wrapping_add(row * n), y.f32().wrapping_add(row * n));
            cx.level.run(RmsRow { x, w: w.as_ptr(), y, n, epsilon: self.epsilon });
        }
    }
}
