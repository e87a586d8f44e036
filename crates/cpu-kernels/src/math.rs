//! Vector mathematics on every instruction-set level.

use core_tensor::op::Unary;

use crate::simd::Simd;

/// `e^x` to about 2 ulp for x in −87.3..88.7; clamped outside (Cody and Waite's reduction, a polynomial of degree 6).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // In this order NaN stays NaN.
    let x = s.f_min(s.f_splat(88.7), s.f_max(s.f_splat(-87.3), x));
    let n = s.i_round(s.f_mul(x, s.f_splat(std::f32::consts::LOG2_E)));
    let nf = s.f_from_i(n);
    // ln 2 in two parts, the first (355/512) exact in its product with n.
    let r = s.f_fma(nf, s.f_splat(-355.0 / 512.0), x);
    let r = s.f_fma(nf, s.f_splat(2.121_944_4e-4), r);
    let mut p = s.f_splat(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.f_fma(p, r, s.f_splat(c));
    }
    // 2^n in two steps, so that n = 128 and n = -126 stay inside the exponent's range.
    let half = s.i_shr::<1>(s.i_add(n, s.i_splat(256)));
    let first = s.i_sub(half, s.i_splat(128));
    let second = s.i_sub(n, first);
    let power = |n: S::I| s.f_from_bits(s.i_shl::<23>(s.i_add(n, s.i_splat(127))));
    s.f_mul(s.f_mul(p, power(first)), power(second))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.f_splat(1.0);
    s.f_div(one, s.f_add(one, exp(s, s.f_sub(s.f_splat(0.0), x))))
}

/// `tanh x`: a series near zero, where the quotient of exponentials would cancel.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // 1 - 2 / (e^2x + 1) loses relative precision as x goes to 0; x - x³/3 + ... is exact there. Blend with a mask made from the sign
    // of |x| - 0.25.
    let abs = s.f_from_bits(s.i_and(s.f_to_bits(x), s.i_splat(0x7fff_ffff)));
    let one = s.f_splat(1.0);
    let far = s.f_sub(
        one,
        s.f_div(s.f_splat(2.0), s.f_add(exp(s, s.f_mul(s.f_splat(2.0), s.f_min(s.f_splat(20.0), abs))), one)),
    );
    let x2 = s.f_mul(x, x);
    let mut p = s.f_splat(-1382.0 / 155_925.0);
    for c in [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
        p = s.f_fma(p, x2, s.f_splat(c));
    }
    let near = s.f_mul(abs, p);
    let is_near = mask_negative(s, s.f_sub(abs, s.f_splat(0.25)));
    let magnitude = select(s, is_near, near, far);
    let sign = s.i_and(s.f_to_bits(x), s.i_splat(i32::MIN));
    s.f_from_bits(s.i_or(s.f_to_bits(magnitude), sign))
}

/// All bits set where `x` is negative.
#[inline(always)]
fn mask_negative<S: Simd>(s: S, x: S::F) -> S::I {
    // The sign bit moved down gives 1 or 0; its negative is all ones or nothing.
    let bit = s.i_and(s.i_shr::<31>(s.f_to_bits(x)), s.i_splat(1));
    s.i_sub(s.i_splat(0), bit)
}

/// `a` where the mask is set, else `b`.
#[inline(always)]
pub(crate) fn select<S: Simd>(s: S, mask: S::I, a: S::F, b: S::F) -> S::F {
    let not = s.i_sub(s.i_splat(-1), mask);
    s.f_from_bits(s.i_or(s.i_and(s.f_to_bits(a), mask), s.i_and(s.f_to_bits(b), not)))
}

/// A unary function on vectors; those without a vector form are computed lane by lane.
#[inline(always)]
pub(crate) fn unary<S: Simd>(s: S, op: Unary, x: S::F) -> S::F {
    match op {
        Unary::Neg => s.f_from_bits(s.i_sub(s.i_or(s.f_to_bits(x), s.i_splat(0)), s.i_splat(i32::MIN))),
        Unary::Abs => s.f_from_bits(s.i_and(s.f_to_bits(x), s.i_splat(0x7fff_ffff))),
        Unary::Relu => s.f_max(x, s.f_splat(0.0)),
        Unary::Reciprocal => s.f_div(s.f_splat(1.0), x),
        Unary::Sigmoid => sigmoid(s, x),
        Unary::Silu => s.f_mul(x, sigmoid(s, x)),
        Unary::GeluQuick => s.f_mul(x, sigmoid(s, s.f_mul(s.f_splat(1.702), x))),
        Unary::Tanh => tanh(s, x),
        Unary::GeluTanh => {
            let x2 = s.f_mul(x, x);
            let inner = s.f_mul(s.f_mul(s.f_splat(0.797_884_6), x), s.f_fma(s.f_splat(0.044_715), x2, s.f_splat(1.0)));
            s.f_mul(s.f_mul(s.f_splat(0.5), x), s.f_add(s.f_splat(1.0), tanh(s, inner)))
        }
        _ => {
            let mut lanes = [0.0f32; 16];
            // SAFETY: no vector has more than 16 lanes.
            unsafe {
                s.f_store(lanes.as_mut_ptr(), x);
                for lane in &mut lanes[..S::LANES] {
                    *lane = op.apply(*lane);
                }
                s.f_load(lanes.as_ptr())
            }
        }
    }
}

/// The sum of products of two runs of `n` f32.
///
/// # Safety
/// `a` and `b` are readable for `n` f32.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd>(s: S, a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut acc = [s.f_splat(0.0); 2];
    let mut i = 0;
    // SAFETY: every access is below n, says the caller.
    unsafe {
        while i + 2 * S::LANES <= n {
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = i + j * S::LANES;
                *acc = s.f_fma(s.f_load(a.add(at)), s.f_load(b.add(at)), *acc);
            }
            i += 2 * S::LANES;
        }
        while i < n {
            let m = (n - i).min(S::LANES);
            acc[0] = s.f_fma(s.f_load_first(a.add(i), m), s.f_load_first(b.add(i), m), acc[0]);
            i += m;
        }
    }
    s.f_reduce_add(s.f_add(acc[0], acc[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Map<'a>(Unary, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for chunk in self.1.chunks_exact_mut(S::LANES) {
                // SAFETY: a chunk has LANES elements.
                unsafe { s.f_store(chunk.as_mut_ptr(), unary(s, self.0, s.f_load(chunk.as_ptr()))) };
            }
        }
    }

    #[test]
    fn vector_functions_agree_with_their_definition_on_every_level() {
        let xs: Vec<f32> = (-1600..1600).map(|i| i as f32 * 0.0137).collect();
        for level in Level::available() {
            for op in Unary::ALL {
                let mut ys = xs.clone();
                level.run(Map(op, &mut ys));
                for (x, y) in xs.iter().zip(&ys) {
                    let expected = op.apply(*x);
                    let near = (y - expected).abs() <= 2e-6 * expected.abs().max(1e-6 / 2e-6 * 0.1);
                    assert!(
                        near || (y.is_nan() && expected.is_nan()) || y == &expected,
                        "{level} {op:?} {x}: {y} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_exponential_is_right_to_a_few_ulp_over_its_range() {
        struct Exp<'a>(&'a mut [f32]);
        impl Kernel for Exp<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                for chunk in self.0.chunks_exact_mut(S::LANES) {
                    // SAFETY: a chunk has LANES elements.
                    unsafe { s.f_store(chunk.as_mut_ptr(), exp(s, s.f_load(chunk.as_ptr()))) };
                }
            }
        }
        let xs: Vec<f32> = (0..16_000).map(|i| -87.0 + i as f32 * 0.0109).collect();
        for level in Level::available() {
            let mut ys = xs.clone();
            level.run(Exp(&mut ys));
            for (x, y) in xs.iter().zip(&ys) {
                let expected = f64::from(*x).exp();
                assert!(((f64::from(*y) - expected) / expected).abs() < 5e-7, "{level} {x}: {y} {expected}");
            }
        }
    }
}
