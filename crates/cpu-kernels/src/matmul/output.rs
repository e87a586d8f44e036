//! Where a product's results go, and what is done to them on the way.

use crate::simd::Simd;

/// The destination of a product, `y[row][output]`, and its epilogue.
///
/// `y` points at the first of the *computed* rows and the first output of the *computed* groups, so that a part of a
/// big matrix and a small scratch tile look alike.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The first result.
    pub y: *mut f32,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Added to each row; indexed by the output's number in the whole matrix, so as long as the matrix has rows.
    pub bias: Option<&'a [f32]>,
    /// Add to what is there (a residual connection) instead of replacing it.
    pub accumulate: bool,
}

impl<'a> Output<'a> {
    /// A destination without bias that replaces what is there.
    #[must_use]
    pub const fn new(y: *mut f32, row_stride: usize) -> Self {
        Self { y, row_stride, bias: None, accumulate: false }
    }

    /// The same with a bias.
    #[must_use]
    pub const fn with_bias(mut self, bias: Option<&'a [f32]>) -> Self {
        self.bias = bias;
        self
    }

    /// The same, adding to what is there or not.
    #[must_use]
    pub const fn accumulating(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    /// Stores the first `count` lanes of `v` at row `row`, columns from `column` on; `first` is the number of the first
    /// output in the whole matrix.
    ///
    /// # Safety
    /// `y` is valid there, and the bias has `first + count` elements.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(&self, s: S, row: usize, column: usize, first: usize, count: usize, v: S::F) {
        if count == 0 {
            return;
        }
        // SAFETY: the caller's.
        unsafe {
            let p = self.y.add(row * self.row_stride + column);
            let mut v = v;
            if count == S::LANES {
                if let Some(bias) = self.bias {
                    v = s.f_add(v, s.f_load(bias.as_ptr().add(first)));
                }
                if self.accumulate {
                    v = s.f_add(v, s.f_load(p));
                }
                s.f_store(p, v);
            } else {
                if let Some(bias) = self.bias {
                    v = s.f_add(v, s.f_load_first(bias.as_ptr().add(first), count));
                }
                if self.accumulate {
                    v = s.f_add(v, s.f_load_first(p, count));
                }
                s.f_store_first(p, v, count);
            }
        }
    }
}
