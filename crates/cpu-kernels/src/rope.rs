//! Rotary position embedding.

use core_tensor::ValueId;
use core_tensor::op::{RotaryEmbedding, rope_table};

use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Cosines and sines of a step's positions, shared by all layers with the same parameters: per row `rotary_dims` f32 of cosines, then as many of
/// sines, each laid out as the elements they meet.
pub(crate) struct RopeTable {
    pub(crate) op: RotaryEmbedding,
    pub(crate) positions: ValueId,
    pub(crate) factors: Option<ValueId>,
    /// Scratch buffer of the table.
    pub(crate) table: usize,
}

impl Step for RopeTable {
    fn describe(&self) -> String {
        format!("RopeTable {} theta={}", self.positions, self.op.theta)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let positions = cx.ints(self.positions);
        let factors = self.factors.map(|id| cx.floats(id));
        let dims = self.op.rotary_dims;
        let table: *mut f32 = cx.scratch(self.table).cast();
        for row in cx.worker.share(positions.len()) {
            let pairs = rope_table(&self.op, positions[row], factors);
            for (i, (cos, sin)) in pairs.into_iter().enumerate() {
                let (p, q) = pair(&self.op, i);
                // SAFETY: the scratch holds 2 * rotary_dims f32 per row, and this thread alone has the row.
                unsafe {
                    let row = table.add(row * 2 * dims);
                    *row.add(p) = cos;
                    *row.add(q) = cos;
                    *row.add(dims + p) = -sin;
                    *row.add(dims + q) = sin;
                }
            }
        }
    }
}

fn pair(op: &RotaryEmbedding, i: usize) -> (usize, usize) {
    if op.interleaved { (2 * i, 2 * i + 1) } else { (i, i + op.rotary_dims / 2) }
}

/// Rotates each head of each row, in place or into another buffer.
pub(crate) struct Rope {
    pub(crate) op: RotaryEmbedding,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
    pub(crate) table: usize,
}

impl Step for Rope {
    fn describe(&self) -> String {
        format!("RotaryEmbedding {} -> {}", self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let [tokens, heads, head_dim] = *x.shape else { return };
        let dims = self.op.rotary_dims;
        let table: *const f32 = cx.scratch(self.table).cast_const().cast();
        for unit in cx.worker.share(tokens * heads) {
            let at = unit * head_dim;
            cx.level.run(Rotate {
                x: x.f32().wrapping_add(at),
                y: y.f32().wrapping_add(at),
                table: table.wrapping_add(unit / heads * 2 * dims),
                dims,
                head_dim,
                interleaved: self.op.interleaved,
            });
        }
    }
}

struct Rotate {
    x: *const f32,
    y: *mut f32,
    table: *const f32,
    dims: usize,
    head_dim: usize,
    interleaved: bool,
}

impl Kernel for Rotate {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cos, sin) = (self.table, self.table.wrapping_add(self.dims));
        // SAFETY: x and y hold head_dim elements (and may be the same), the table 2 * dims, and dims <= head_dim.
        unsafe {
            if self.interleaved {
                // The swap of neighbours has no vector form here; the loop is short and the compiler's.
                let mut i = 0;
                while i < self.dims {
                    let (a, b) = (*self.x.add(i), *self.x.add(i + 1));
                    *self.y.add(i) = a * *cos.add(i) + b * *sin.add(i);
                    *self.y.add(i + 1) = b * *cos.add(i + 1) + a * *sin.add(i + 1);
                    i += 2;
                }
            } else {
                let half = self.dims / 2;
                let mut i = 0;
                while i < half {
                    let m = (half - i).min(S::LANES);
                    let a = s.f_load_first(self.x.add(i), m);
                    let b = s.f_load_first(self.x.add(i + half), m);
                    let c = s.f_load_first(cos.add(i), m);
                    let n = s.f_load_first(sin.add(i + half), m);
                    s.f_store_first(self.y.add(i), s.f_sub(s.f_mul(a, c), s.f_mul(b, n)), m);
                    s.f_store_first(self.y.add(i + half), s.f_fma(a, n, s.f_mul(b, c)), m);
                    i += m;
                }
            }
            if self.x != self.y.cast_const() {
                std::ptr::copy_nonoverlapping(self.x.add(self.dims), self.y.add(self.dims), self.head_dim - self.dims);
            }
        }
    }
}
