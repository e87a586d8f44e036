//! Scales and minima of least squared error.
//!
//! The error as a function of the scale has many local minima: a start decides which codes the weights get, and for given
//! codes the best scale is a quotient of sums. So each search tries a list of starts, keeps what explains most, and lets
//! codes and scale find each other from there.

use super::grid::Grid;
use super::lanes::{Group, Lanes};

/// The scale `d` with the least `Σ w (x − d v)²` that is found from the inverse scales `start / peak`, `v` being the nearest
/// value of the grid to `x / d`; then from the best scale, `refinements` times.
#[inline(always)]
pub(crate) fn scale<const N: usize, const W: bool, G: Grid>(
    group: &Group<N, W>,
    starts: &[f32],
    refinements: usize,
) -> Lanes {
    let peak = group.peak();
    let mut best = Explained { d: Lanes::ZERO, gain: Lanes::ZERO };
    for start in starts {
        best.consider::<N, W, G>(group, Lanes::splat(*start).over(peak));
    }
    for _ in 0..refinements {
        best.consider::<N, W, G>(group, Lanes::splat(1.0).over(best.d));
    }
    best.d
}

/// A scale, and how much of `Σ w x²` it explains.
struct Explained {
    d: Lanes,
    gain: Lanes,
}

impl Explained {
    /// Takes the best scale for the codes that an inverse scale gives, where it is better.
    ///
    /// That scale is `Σ w x v / Σ w v²`, and it explains `(Σ w x v)² / Σ w v²`.
    #[inline(always)]
    fn consider<const N: usize, const W: bool, G: Grid>(&mut self, group: &Group<N, W>, inverse: Lanes) {
        let (mut xv, mut vv) = (Lanes::ZERO, Lanes::ZERO);
        for j in 0..N {
            let v = G::nearest(group.x[j] * inverse);
            let wv = group.weigh(j, v);
            xv = xv + wv * group.x[j];
            vv = vv + wv * v;
        }
        let d = xv.over(vv);
        let gain = d * xv;
        self.d = gain.greater(self.gain, d, self.d);
        self.gain = gain.max(self.gain);
    }
}

/// Scale and minimum of a sub-block: `x ≈ scale · q + min`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub(crate) scale: Lanes,
    pub(crate) min: Lanes,
}

/// Sums over a sub-block and its codes.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// `Σ w`
    pub(crate) w: Lanes,
    /// `Σ w x`
    pub(crate) x: Lanes,
    /// `Σ w q`
    pub(crate) q: Lanes,
    /// `Σ w q²`
    pub(crate) qq: Lanes,
    /// `Σ w x q`
    pub(crate) xq: Lanes,
}

impl Sums {
    /// The sums that do not depend on the codes.
    #[inline(always)]
    pub(crate) fn of<const N: usize, const W: bool>(group: &Group<N, W>) -> Sums {
        let x = (0..N).fold(Lanes::ZERO, |sum, j| sum + group.weigh(j, group.x[j]));
        Sums { w: group.total(), x, q: Lanes::ZERO, qq: Lanes::ZERO, xq: Lanes::ZERO }
    }

    /// With the codes `0 ..= MAX` nearest to `(x − min) / scale`, the inverse of the scale given.
    #[inline(always)]
    pub(crate) fn with_codes<const N: usize, const W: bool, const MAX: i32>(
        mut self,
        group: &Group<N, W>,
        inverse: Lanes,
        min: Lanes,
    ) -> Sums {
        let offset = min * inverse;
        let (mut q1, mut q2, mut xq) = (Lanes::ZERO, Lanes::ZERO, Lanes::ZERO);
        for j in 0..N {
            let q = (group.x[j] * inverse - offset).clamp(0.0, MAX as f32).round();
            let wq = group.weigh(j, q);
            q1 = q1 + wq;
            q2 = q2 + wq * q;
            xq = xq + wq * group.x[j];
        }
        (self.q, self.qq, self.xq) = (q1, q2, xq);
        self
    }

    /// The best scale and minimum for these codes, the latter not above zero where `NEGATIVE_MIN`, and how much of
    /// `Σ w x²` they explain.
    #[inline(always)]
    fn solve<const NEGATIVE_MIN: bool>(&self) -> (Affine, Lanes) {
        let determinant = self.w * self.qq - self.q * self.q;
        // All codes alike: there is no telling scale from minimum.
        let distinct = self.w * self.qq * Lanes::splat(1e-6);
        let mut scale = (self.w * self.xq - self.x * self.q).over(determinant);
        let mut min = (self.qq * self.x - self.q * self.xq).over(determinant);
        scale = determinant.greater(distinct, scale, Lanes::ZERO);
        min = determinant.greater(distinct, min, self.x.over(self.w));
        if NEGATIVE_MIN {
            scale = min.greater(Lanes::ZERO, self.xq.over(self.qq), scale);
            min = min.min(Lanes::ZERO);
        }
        let gain = scale * self.xq + min * self.x;
        (Affine { scale, min }, gain)
    }
}

/// Scale and minimum with the least `Σ w (x − scale·q − min)²` for codes `0 ..= MAX` that are found from the scales
/// `(largest − smallest) / start`, then from the best, `refinements` times.
#[inline(always)]
pub(crate) fn affine<const N: usize, const W: bool, const MAX: i32, const NEGATIVE_MIN: bool>(
    group: &Group<N, W>,
    starts: &[f32],
    refinements: usize,
) -> Affine {
    let (mut low, high) = group.range();
    if NEGATIVE_MIN {
        low = low.min(Lanes::ZERO);
    }
    let sums = Sums::of(group);
    let mut best = Affine { scale: Lanes::ZERO, min: low };
    let mut most = Lanes::splat(f32::NEG_INFINITY);
    for i in 0..starts.len() + refinements {
        let (inverse, min) = match starts.get(i) {
            Some(start) => (Lanes::splat(*start).over(high - low), low),
            None => (Lanes::splat(1.0).over(best.scale), best.min),
        };
        let (found, gain) = sums.with_codes::<N, W, MAX>(group, inverse, min).solve::<NEGATIVE_MIN>();
        best.scale = gain.greater(most, found.scale, best.scale);
        best.min = gain.greater(most, found.min, best.min);
        most = gain.max(most);
    }
    best
}
