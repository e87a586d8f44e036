//! Vector mathematics on every instruction-set level.

use core_tensor::op::Unary;

use crate::simd::{Kernel, Simd};

/// `e^x` to about 2 ulp for x in −87.3..88.7; clamped outside (Cody and Waite's reduction, a polynomial of degree 6).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    exp_between(s, x, -87.3, 88.7)
}

/// The same over all of f32: 0 or a number of fewer bits below the exponent's range, infinity above.
#[inline(always)]
fn exp_full<S: Simd>(s: S, x: S::F) -> S::F {
    exp_between(s, x, -104.0, 89.0)
}

#[inline(always)]
fn exp_between<S: Simd>(s: S, x: S::F, least: f32, largest: f32) -> S::F {
    // In this order NaN stays NaN.
    let x = s.f_min(s.f_splat(largest), s.f_max(s.f_splat(least), x));
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

/// `|x|`
#[inline(always)]
fn abs<S: Simd>(s: S, x: S::F) -> S::F {
    s.f_from_bits(s.i_and(s.f_to_bits(x), s.i_splat(0x7fff_ffff)))
}

/// A polynomial, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut p = s.f_splat(coefficients[0]);
    for c in &coefficients[1..] {
        p = s.f_fma(p, x, s.f_splat(*c));
    }
    p
}

/// All bits set where `x` is NaN.
#[inline(always)]
fn mask_nan<S: Simd>(s: S, x: S::F) -> S::I {
    // Only the bits of NaN exceed those of infinity.
    let over = s.i_sub(s.i_splat(0x7f80_0000), s.i_and(s.f_to_bits(x), s.i_splat(0x7fff_ffff)));
    s.i_sub(s.i_splat(0), s.i_and(s.i_shr::<31>(over), s.i_splat(1)))
}

/// `e^x - 1`: a series near zero.
#[inline(always)]
fn exp_m1<S: Simd>(s: S, x: S::F) -> S::F {
    let far = s.f_sub(exp_full(s, x), s.f_splat(1.0));
    let series = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let near = s.f_mul(x, polynomial(s, x, series));
    select(s, mask_negative(s, s.f_sub(abs(s, x), s.f_splat(0.4))), near, far)
}

/// Natural logarithm of normal positive numbers: the exponent, and `2 atanh((m - 1) / (m + 1))` of the mantissa.
#[inline(always)]
fn log_normal<S: Simd>(s: S, x: S::F) -> S::F {
    // The mantissa goes from the root of 1/2 to that of 2.
    let bits = s.f_to_bits(x);
    let least = s.i_splat(0x3f35_04f3);
    let exponent = s.i_sub(s.i_shr::<23>(s.i_add(s.i_sub(bits, least), s.i_splat(127 << 23))), s.i_splat(127));
    let m = s.f_from_bits(s.i_sub(bits, s.i_shl::<23>(exponent)));
    let e = s.f_from_i(exponent);
    let z = s.f_div(s.f_sub(m, s.f_splat(1.0)), s.f_add(m, s.f_splat(1.0)));
    let z2 = s.f_mul(z, z);
    let p = polynomial(s, z2, [2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0]);
    s.f_fma(e, s.f_splat(355.0 / 512.0), s.f_fma(e, s.f_splat(-2.121_944_4e-4), s.f_mul(z, p)))
}

/// `ln(1 + x)` for x in 0..=1.
#[inline(always)]
fn log_1p_unit<S: Simd>(s: S, x: S::F) -> S::F {
    let far = log_normal(s, s.f_add(s.f_splat(1.0), x));
    let near = s.f_mul(x, polynomial(s, x, [-0.25, 1.0 / 3.0, -0.5, 1.0]));
    select(s, mask_negative(s, s.f_sub(x, s.f_splat(0.01))), near, far)
}

/// `ln(1 + e^x)`
#[inline(always)]
fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let u = exp(s, s.f_sub(s.f_splat(0.0), abs(s, x)));
    let y = s.f_add(s.f_max(x, s.f_splat(0.0)), log_1p_unit(s, u));
    select(s, mask_nan(s, x), x, y)
}

/// The error function to 4e-7: a quotient of two polynomials of degree 5 in x², which from 3.92 on is 1 (a minimax fit of erf(x) / x).
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    // In this order NaN stays NaN.
    let x = s.f_min(s.f_splat(3.92), s.f_max(s.f_splat(-3.92), x));
    let t = s.f_mul(x, x);
    let p = polynomial(
        s,
        t,
        [
            2.050_070_6e-6,
            2.848_624_7e-4,
            3.765_070_3e-3,
            5.274_699_6e-2,
            0.190_394_86,
            std::f32::consts::FRAC_2_SQRT_PI,
        ],
    );
    let q = polynomial(s, t, [3.809_048_6e-5, 1.162_388_4e-3, 1.496_812_2e-2, 1.141_041_4e-1, 0.502_065_8, 1.0]);
    s.f_div(s.f_mul(x, p), q)
}

/// Sine (`SHIFT` 0) or cosine (1) of numbers below 8192 in magnitude: reduced by multiples of a quarter turn in three parts.
#[inline(always)]
fn sine<S: Simd, const SHIFT: i32>(s: S, x: S::F) -> S::F {
    let n = s.i_round(s.f_mul(x, s.f_splat(std::f32::consts::FRAC_2_PI)));
    let nf = s.f_from_i(n);
    // The first two parts have so few bits that their products with n are exact.
    let r = s.f_fma(nf, s.f_splat(-1.570_312_5), x);
    let r = s.f_fma(nf, s.f_splat(-4.837_513e-4), r);
    let r = s.f_fma(nf, s.f_splat(-7.549_79e-8), r);
    let r2 = s.f_mul(r, r);
    let sin = s.f_mul(r, polynomial(s, r2, [1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0]));
    let cos = polynomial(s, r2, [1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0]);
    let quarter = s.i_add(n, s.i_splat(SHIFT));
    let odd = s.i_sub(s.i_splat(0), s.i_and(quarter, s.i_splat(1)));
    let sign = s.i_shl::<30>(s.i_and(quarter, s.i_splat(2)));
    let value = s.f_to_bits(select(s, odd, cos, sin));
    // The sign bit is turned over by addition.
    s.f_from_bits(s.i_add(value, sign))
}

/// The nearest integer; halves to even.
#[inline(always)]
fn round<S: Simd>(s: S, x: S::F) -> S::F {
    let rounded = s.f_from_i(s.i_round(x));
    let signed = s.f_from_bits(s.i_or(s.f_to_bits(rounded), s.i_and(s.f_to_bits(x), s.i_splat(i32::MIN))));
    // From 2^23 on all are integers. A NaN is not below, whatever its sign.
    let small = mask_negative(s, s.f_sub(abs(s, x), s.f_splat(8_388_608.0)));
    let small = s.i_and(small, s.i_sub(s.i_splat(-1), mask_nan(s, x)));
    select(s, small, signed, x)
}

/// Lane by lane: what has no vector form, or where a lane is outside of its range.
#[inline(always)]
fn lanes<S: Simd>(s: S, op: Unary, x: S::F) -> S::F {
    let mut lanes = [0.0f32; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe {
        s.f_store(lanes.as_mut_ptr(), x);
        apply(op, &mut lanes[..S::LANES]);
        s.f_load(lanes.as_ptr())
    }
}

// Not inlined: each of the many callers would hold all functions there are.
#[inline(never)]
fn apply(op: Unary, lanes: &mut [f32]) {
    lanes.iter_mut().for_each(|lane| *lane = op.apply(*lane));
}

/// A function of vectors. One type for each, so that a loop over elements holds one function and not the choice between all.
pub(crate) trait Function: Copy {
    /// The function's value.
    fn of<S: Simd>(self, s: S, x: S::F) -> S::F;
}

/// Types of functions, with the parameters that they capture.
macro_rules! functions {
    ($($name:ident { $($field:ident: $ty:ty),* } |$s:ident, $x:ident| $e:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            pub(crate) struct $name { $(pub(crate) $field: $ty),* }

            impl Function for $name {
                #[inline(always)]
                fn of<S: Simd>(self, $s: S, $x: S::F) -> S::F {
                    let $name { $($field),* } = self;
                    $e
                }
            }
        )*
    };
}

/// `x` limited to 0..=1.
#[inline(always)]
fn unit<S: Simd>(s: S, x: S::F) -> S::F {
    s.f_min(s.f_splat(1.0), s.f_max(s.f_splat(0.0), x))
}

functions! {
    Neg {} |s, x| s.f_from_bits(s.i_sub(s.f_to_bits(x), s.i_splat(i32::MIN)));
    Abs {} |s, x| abs(s, x);
    Sqrt {} |s, x| s.f_sqrt(x);
    Exp {} |s, x| exp_full(s, x);
    Log {} |s, x| {
        // Only bits of normal positive numbers lie between these.
        let bits = s.f_to_bits(x);
        let outside = s.i_or(s.i_sub(bits, s.i_splat(0x0080_0000)), s.i_sub(s.i_splat(0x7f7f_ffff), bits));
        if s.i_reduce_max(s.i_or(s.i_shr::<31>(outside), s.i_shr::<31>(bits))) != 0 {
            lanes(s, Unary::Log, x)
        } else {
            log_normal(s, x)
        }
    };
    Erf {} |s, x| erf(s, x);
    Gelu {} |s, x| {
        // Below -5.54 the result is less than what the error function is off by.
        let half = s.f_mul(s.f_splat(0.5), s.f_max(s.f_splat(-5.54), x));
        s.f_fma(half, erf(s, s.f_mul(x, s.f_splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    };
    Sin {} |s, x| if is_small_angle(s, x) { sine::<S, 0>(s, x) } else { lanes(s, Unary::Sin, x) };
    Cos {} |s, x| if is_small_angle(s, x) { sine::<S, 1>(s, x) } else { lanes(s, Unary::Cos, x) };
    Floor {} |s, x| {
        let near = round(s, x);
        step(s, x, near, s.f_sub(x, near), -1.0)
    };
    Ceil {} |s, x| {
        let near = round(s, x);
        step(s, x, near, s.f_sub(near, x), 1.0)
    };
    Round {} |s, x| round(s, x);
    Relu {} |s, x| s.f_max(x, s.f_splat(0.0));
    Clip { min: f32, max: f32 } |s, x| s.f_min(s.f_splat(max), s.f_max(s.f_splat(min), x));
    LeakyRelu { alpha: f32 } |s, x| select(s, mask_negative(s, x), s.f_mul(s.f_splat(alpha), x), x);
    Elu { alpha: f32 } |s, x| select(s, mask_negative(s, x), s.f_mul(s.f_splat(alpha), exp_m1(s, x)), x);
    HardSigmoid { alpha: f32, beta: f32 } |s, x| unit(s, s.f_fma(s.f_splat(alpha), x, s.f_splat(beta)));
    HardSwish {} |s, x| s.f_mul(x, unit(s, s.f_add(s.f_div(x, s.f_splat(6.0)), s.f_splat(0.5))));
    Softplus {} |s, x| softplus(s, x);
    Softsign {} |s, x| s.f_div(x, s.f_add(s.f_splat(1.0), abs(s, x)));
    Mish {} |s, x| s.f_mul(x, tanh(s, softplus(s, x)));
    Swish { alpha: f32 } |s, x| s.f_mul(x, sigmoid(s, s.f_mul(s.f_splat(alpha), x)));
    Reciprocal {} |s, x| s.f_div(s.f_splat(1.0), x);
    Sigmoid {} |s, x| sigmoid(s, x);
    Tanh {} |s, x| tanh(s, x);
    GeluTanh {} |s, x| {
        let x2 = s.f_mul(x, x);
        let inner = s.f_mul(s.f_mul(s.f_splat(0.797_884_6), x), s.f_fma(s.f_splat(0.044_715), x2, s.f_splat(1.0)));
        s.f_mul(s.f_mul(s.f_splat(0.5), x), s.f_add(s.f_splat(1.0), tanh(s, inner)))
    };
    ByLanes { op: Unary } |s, x| lanes(s, op, x);
}

/// Whether all are numbers that [`sine`] takes.
#[inline(always)]
fn is_small_angle<S: Simd>(s: S, x: S::F) -> bool {
    s.i_reduce_max(s.i_and(s.f_to_bits(x), s.i_splat(0x7fff_ffff))) <= 8192f32.to_bits().cast_signed()
}

/// The nearest integer moved by one where `over` is negative.
#[inline(always)]
fn step<S: Simd>(s: S, x: S::F, near: S::F, over: S::F, by: f32) -> S::F {
    let moved = s.f_add(near, s.f_splat(by));
    let moved = s.f_from_bits(s.i_or(s.f_to_bits(moved), s.i_and(s.f_to_bits(x), s.i_splat(i32::MIN))));
    // What is no number, or infinite, has no distance.
    let moves = s.i_and(mask_negative(s, over), s.i_sub(s.i_splat(-1), mask_nan(s, over)));
    select(s, moves, moved, near)
}

/// A function of a vector chosen on the spot, for where it is one of few; a loop over many elements takes [`with_function`].
#[inline(always)]
pub(crate) fn unary<S: Simd>(s: S, op: Unary, x: S::F) -> S::F {
    match op {
        Unary::Relu => s.f_max(x, s.f_splat(0.0)),
        Unary::Clip { min, max } => s.f_min(s.f_splat(max.get()), s.f_max(s.f_splat(min.get()), x)),
        Unary::LeakyRelu { alpha } => LeakyRelu { alpha: alpha.get() }.of(s, x),
        Unary::HardSwish => HardSwish {}.of(s, x),
        Unary::Silu => Swish { alpha: 1.0 }.of(s, x),
        Unary::Sigmoid => sigmoid(s, x),
        _ => {
            let mut lanes = [0.0f32; 16];
            // SAFETY: no vector has more than 16 lanes.
            unsafe {
                s.f_store(lanes.as_mut_ptr(), x);
                s.call(OneVector { op, lanes: &mut lanes });
                s.f_load(lanes.as_ptr())
            }
        }
    }
}

/// Evaluates an expression with the [`Function`] that an operator is.
macro_rules! with_function {
    ($op:expr, $f:ident => $e:expr) => {{
        use core_tensor::op::Unary;
        use $crate::math;
        macro_rules! arm {
            ($function:expr) => {{
                let $f = $function;
                $e
            }};
        }
        match $op {
            Unary::Neg => arm!(math::Neg {}),
            Unary::Abs => arm!(math::Abs {}),
            Unary::Sqrt => arm!(math::Sqrt {}),
            Unary::Exp => arm!(math::Exp {}),
            Unary::Log => arm!(math::Log {}),
            Unary::Erf => arm!(math::Erf {}),
            Unary::Gelu => arm!(math::Gelu {}),
            Unary::Sin => arm!(math::Sin {}),
            Unary::Cos => arm!(math::Cos {}),
            Unary::Floor => arm!(math::Floor {}),
            Unary::Ceil => arm!(math::Ceil {}),
            Unary::Round => arm!(math::Round {}),
            Unary::Relu => arm!(math::Relu {}),
            Unary::Clip { min, max } => arm!(math::Clip { min: min.get(), max: max.get() }),
            Unary::LeakyRelu { alpha } => arm!(math::LeakyRelu { alpha: alpha.get() }),
            Unary::Elu { alpha } => arm!(math::Elu { alpha: alpha.get() }),
            Unary::HardSigmoid { alpha, beta } => arm!(math::HardSigmoid { alpha: alpha.get(), beta: beta.get() }),
            Unary::HardSwish => arm!(math::HardSwish {}),
            Unary::Softplus => arm!(math::Softplus {}),
            Unary::Softsign => arm!(math::Softsign {}),
            Unary::Mish => arm!(math::Mish {}),
            Unary::Swish { alpha } => arm!(math::Swish { alpha: alpha.get() }),
            Unary::Silu => arm!(math::Swish { alpha: 1.0 }),
            Unary::GeluQuick => arm!(math::Swish { alpha: 1.702 }),
            Unary::Reciprocal => arm!(math::Reciprocal {}),
            Unary::Sigmoid => arm!(math::Sigmoid {}),
            Unary::Tanh => arm!(math::Tanh {}),
            Unary::GeluTanh => arm!(math::GeluTanh {}),
            op => arm!(math::ByLanes { op }),
        }
    }};
}
pub(crate) use with_function;

/// A function of the first vector of some lanes: all functions there are, once for each level.
struct OneVector<'a> {
    op: Unary,
    lanes: &'a mut [f32; 16],
}

impl Kernel for OneVector<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let at = self.lanes.as_mut_ptr();
        // SAFETY: no vector has more than 16 lanes.
        unsafe { with_function!(self.op, f => s.f_store(at, f.of(s, s.f_load(at)))) }
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
                unsafe {
                    with_function!(self.0, f => s.f_store(chunk.as_mut_ptr(), f.of(s, s.f_load(chunk.as_ptr()))))
                };
            }
        }
    }

    #[test]
    fn vector_functions_agree_with_their_definition_on_every_level() {
        let edges = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            1e9,
            -1e9,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            1e-30,
            -1e-30,
            1e-41,
        ];
        let xs = (-1600..1600).map(|i| i as f32 * 0.0137).chain(edges);
        let xs: Vec<f32> = xs.chain((-160..160).map(|i| i as f32)).chain((0..160).map(|i| i as f32 * 40.3)).collect();
        for level in Level::available() {
            for op in Unary::all() {
                let mut ys = xs.clone();
                level.run(Map(op, &mut ys));
                for (x, y) in xs.iter().zip(&ys) {
                    let expected = op.apply(*x);
                    let near = (y - expected).abs() <= 2e-6 * expected.abs().max(0.5);
                    // Infinity times zero: no number by definition, -inf or 0 here.
                    let undefined = x.is_infinite() && expected.is_nan();
                    assert!(
                        near || undefined || (y.is_nan() && expected.is_nan()) || y == &expected,
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
