//! Element-wise operators.

pub(crate) mod fused;
mod typed;

use core_tensor::ValueId;
use core_tensor::op::{Binary, Unary};

pub(crate) use typed::{TypedStep, converts, has_loop};

use crate::math;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// `y = op(x)`, in place or not.
pub(crate) struct UnaryStep {
    pub(crate) op: Unary,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
}

impl Step for UnaryStep {
    fn describe(&self) -> String {
        format!("{:?} {} -> {}", self.op, self.x, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (x, y) = (cx.view(self.x), cx.view(self.y));
        let share = cx.worker.share(x.len());
        let (x, y) = (x.f32().wrapping_add(share.start), y.f32().wrapping_add(share.start));
        cx.level.run(UnaryRows { op: self.op, x, y, rows: 1, stride: 0, n: share.len() });
    }
}

/// A function of `n` elements of some rows.
pub(crate) struct UnaryRows {
    pub(crate) op: Unary,
    pub(crate) x: *const f32,
    pub(crate) y: *mut f32,
    pub(crate) rows: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) n: usize,
}

impl Kernel for UnaryRows {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        math::with_function!(self.op, f => self.map(s, f));
    }
}

impl UnaryRows {
    #[inline(always)]
    fn map<S: Simd, F: math::Function>(&self, s: S, f: F) {
        for row in 0..self.rows {
            let (x, y) = (self.x.wrapping_add(row * self.stride), self.y.wrapping_add(row * self.stride));
            let mut i = 0;
            while i < self.n {
                let m = (self.n - i).min(S::LANES);
                // SAFETY: i + m is at most n, which each row of x and y holds.
                unsafe { s.f_store_first(y.add(i), f.of(s, s.f_load_first(x.add(i), m)), m) };
                i += m;
            }
        }
    }
}

/// `y = activation(gate) * up`, where no linear step computes it on the way.
pub(crate) struct Gated {
    pub(crate) activation: Unary,
    pub(crate) gate: ValueId,
    pub(crate) up: ValueId,
    pub(crate) y: ValueId,
}

impl Step for Gated {
    fn describe(&self) -> String {
        format!("GatedActivation {:?} {} {} -> {}", self.activation, self.gate, self.up, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (gate, up, y) = (cx.view(self.gate), cx.view(self.up), cx.view(self.y));
        let share = cx.worker.share(y.len());
        let at = |view: crate::program::View<'_>| view.f32().wrapping_add(share.start);
        let (gate, up, y) = (at(gate), at(up), at(y));
        cx.level.run(GatedRun { activation: self.activation, gate, up, y, n: share.len() });
    }
}

/// A run of `activation(gate) * up`.
pub(crate) struct GatedRun {
    pub(crate) activation: Unary,
    pub(crate) gate: *const f32,
    pub(crate) up: *const f32,
    pub(crate) y: *mut f32,
    pub(crate) n: usize,
}

impl Kernel for GatedRun {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // The gates of language models have loops of their own.
        match self.activation {
            Unary::Silu => self.map(s, math::Swish { alpha: 1.0 }),
            Unary::GeluTanh => self.map(s, math::GeluTanh {}),
            Unary::Gelu => self.map(s, math::Gelu {}),
            Unary::GeluQuick => self.map(s, math::Swish { alpha: 1.702 }),
            Unary::Relu => self.map(s, math::Relu {}),
            Unary::Sigmoid => self.map(s, math::Sigmoid {}),
            Unary::Tanh => self.map(s, math::Tanh {}),
            op => self.map(s, math::ByLanes { op }),
        }
    }
}

impl GatedRun {
    #[inline(always)]
    fn map<S: Simd, F: math::Function>(&self, s: S, f: F) {
        let mut i = 0;
        while i < self.n {
            let m = (self.n - i).min(S::LANES);
            // SAFETY: i + m is at most n, which gate, up and y hold.
            unsafe {
                let gate = s.f_load_first(self.gate.add(i), m);
                let up = s.f_load_first(self.up.add(i), m);
                s.f_store_first(self.y.add(i), s.f_mul(f.of(s, gate), up), m);
            }
            i += m;
        }
    }
}

/// `y = op(a, b)`, broadcast; `y` may lie where an operand of the same shape lies.
pub(crate) struct BinaryStep {
    pub(crate) op: Binary,
    pub(crate) a: ValueId,
    pub(crate) b: ValueId,
    pub(crate) y: ValueId,
}

impl Step for BinaryStep {
    fn describe(&self) -> String {
        format!("{:?} {} {} -> {}", self.op, self.a, self.b, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (a, b, y) = (cx.view(self.a), cx.view(self.b), cx.view(self.y));
        // Operands as large as the result, and single elements, need no rows.
        let flat = |x: &[usize]| x == y.shape || x.iter().all(|n| *n == 1);
        if flat(a.shape) && flat(b.shape) {
            let share = cx.worker.share(y.len());
            let place = |view: crate::program::View<'_>| {
                let step = view.shape == y.shape;
                (view.f32().wrapping_add(if step { share.start } else { 0 }), step)
            };
            let ((a, a_step), (b, b_step)) = (place(a), place(b));
            let y = y.f32().wrapping_add(share.start);
            return cx.level.run(BinaryRun { op: self.op, a, a_step, b, b_step, y, n: share.len() });
        }
        // Rows of the result; each operand's row is contiguous or one broadcast element.
        let n = y.cols();
        let rows = cx.worker.share(y.rows());
        for row in rows {
            let (a_at, a_step) = operand(a.shape, y.shape, row);
            let (b_at, b_step) = operand(b.shape, y.shape, row);
            cx.level.run(BinaryRun {
                op: self.op,
                a: a.f32().wrapping_add(a_at),
                a_step,
                b: b.f32().wrapping_add(b_at),
                b_step,
                y: y.f32().wrapping_add(row * n),
                n,
            });
        }
    }
}

/// Where an operand's row for row `row` of the result begins, and whether it advances along the row.
fn operand(shape: &[usize], result: &[usize], row: usize) -> (usize, bool) {
    let Some((cols, outer)) = shape.split_last() else { return (0, false) };
    let result_outer = &result[..result.len() - 1];
    let (mut rest, mut at, mut stride) = (row, 0, *cols);
    for i in (0..result_outer.len()).rev() {
        let coordinate = rest % result_outer[i];
        rest /= result_outer[i];
        if let Some(j) = (i + outer.len()).checked_sub(result_outer.len()) {
            if outer[j] != 1 {
                at += coordinate * stride;
            }
            stride *= outer[j];
        }
    }
    (at, *cols != 1 || result.last() == Some(&1))
}

/// A run of `op(a, b)`; an operand that does not advance is one element.
pub(crate) struct BinaryRun {
    pub(crate) op: Binary,
    pub(crate) a: *const f32,
    pub(crate) a_step: bool,
    pub(crate) b: *const f32,
    pub(crate) b_step: bool,
    pub(crate) y: *mut f32,
    pub(crate) n: usize,
}

impl Kernel for BinaryRun {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut i = 0;
        // Read before the row is written: y may lie over an operand.
        // SAFETY: a row has at least one element where n > 0.
        let (a0, b0) = if self.n > 0 { unsafe { (*self.a, *self.b) } } else { (0.0, 0.0) };
        // Variances are means of squares.
        let square = self.op == Binary::Pow && !self.b_step && b0 == 2.0;
        let op = if square { Binary::Mul } else { self.op };
        while i < self.n {
            let m = (self.n - i).min(S::LANES);
            // SAFETY: i + m is at most n, which y and every operand that advances hold.
            unsafe {
                let a = if self.a_step { s.f_load_first(self.a.add(i), m) } else { s.f_splat(a0) };
                let b = if self.b_step { s.f_load_first(self.b.add(i), m) } else { s.f_splat(b0) };
                s.f_store_first(self.y.add(i), binary(s, op, a, if square { a } else { b }), m);
            }
            i += m;
        }
    }
}

#[inline(always)]
pub(crate) fn binary<S: Simd>(s: S, op: Binary, a: S::F, b: S::F) -> S::F {
    match op {
        Binary::Add => s.f_add(a, b),
        Binary::Sub => s.f_sub(a, b),
        Binary::Mul => s.f_mul(a, b),
        Binary::Div => s.f_div(a, b),
        _ => {
            let (mut x, mut y) = ([0.0f32; 16], [0.0f32; 16]);
            // SAFETY: no vector has more than 16 lanes.
            unsafe {
                s.f_store(x.as_mut_ptr(), a);
                s.f_store(y.as_mut_ptr(), b);
                for (x, y) in x.iter_mut().zip(&y) {
                    *x = op.apply(*x, *y);
                }
                s.f_load(x.as_ptr())
            }
        }
    }
}
