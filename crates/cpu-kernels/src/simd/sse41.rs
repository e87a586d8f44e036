//! SSE4.1: four lanes.
#![allow(clippy::undocumented_unsafe_blocks)] // the macros below say once why they are sound

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Sse41(());

/// # Safety
/// The processor has the features named.
#[target_feature(enable = "ssse3,sse4.1")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Sse41(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "ssse3,sse4.1")]
#[inline(never)]
unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Sse41(()))
}

type F = __m128;
type I = __m128i;

// SAFETY: a token exists only inside `run`, whose caller vouches for the instructions; what follows
// pointers hands on the conditions of the trait's method.
macro_rules! safe {
    ($(fn $name:ident($($a:ident: $t:ty),*) -> $r:ty = $e:expr;)*) => {
        $(#[inline(always)] fn $name(self, $($a: $t),*) -> $r { unsafe { $e } })*
    };
}
macro_rules! pointer {
    ($(fn $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $e:expr;)*) => {
        $(#[inline(always)] unsafe fn $name(self, $($a: $t),*) $(-> $r)? { unsafe { $e } })*
    };
}

#[inline(always)]
unsafe fn reduce_i(v: I, f: impl Fn(I, I) -> I) -> i32 {
    unsafe {
        let v = f(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        _mm_cvtsi128_si32(f(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
    }
}

#[inline(always)]
unsafe fn reduce_f(v: F, f: impl Fn(F, F) -> F) -> f32 {
    unsafe {
        let v = f(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(f(v, _mm_shuffle_ps::<0b10_11_00_01>(v, v)))
    }
}

/// Half precision to single without F16C: the exponent is rebased by a multiplication, which also makes subnormals right.
#[inline(always)]
unsafe fn f16_to_f32(h: I) -> F {
    unsafe {
        let magnitude = _mm_and_si128(h, _mm_set1_epi32(0x7fff));
        let sign = _mm_slli_epi32::<16>(_mm_and_si128(h, _mm_set1_epi32(0x8000)));
        let rebase = _mm_set1_ps(f32::from_bits((127 + 112) << 23));
        let finite = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32::<13>(magnitude)), rebase);
        let special = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff));
        let exponent = _mm_and_si128(special, _mm_set1_epi32(0x7f80_0000));
        _mm_or_ps(finite, _mm_castsi128_ps(_mm_or_si128(sign, exponent)))
    }
}

impl Simd for Sse41 {
    type F = F;
    type I = I;
    const LANES: usize = 4;
    const BYTES_ARE_CENTRED: bool = true;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token is proof of the instructions.
        unsafe { call(kernel) }
    }

    safe! {
        fn f_splat(v: f32) -> F = _mm_set1_ps(v);
        fn f_add(a: F, b: F) -> F = _mm_add_ps(a, b);
        fn f_sub(a: F, b: F) -> F = _mm_sub_ps(a, b);
        fn f_mul(a: F, b: F) -> F = _mm_mul_ps(a, b);
        fn f_div(a: F, b: F) -> F = _mm_div_ps(a, b);
        fn f_sqrt(v: F) -> F = _mm_sqrt_ps(v);
        fn f_fma(a: F, b: F, c: F) -> F = _mm_add_ps(_mm_mul_ps(a, b), c);
        fn f_max(a: F, b: F) -> F = _mm_max_ps(a, b);
        fn f_min(a: F, b: F) -> F = _mm_min_ps(a, b);
        fn f_from_i(v: I) -> F = _mm_cvtepi32_ps(v);
        fn f_reduce_add(v: F) -> f32 = reduce_f(v, |a, b| _mm_add_ps(a, b));
        fn f_reduce_max(v: F) -> f32 = reduce_f(v, |a, b| _mm_max_ps(a, b));
        fn f_to_bits(v: F) -> I = _mm_castps_si128(v);
        fn f_from_bits(v: I) -> F = _mm_castsi128_ps(v);
        fn i_splat(v: i32) -> I = _mm_set1_epi32(v);
        fn i_add(a: I, b: I) -> I = _mm_add_epi32(a, b);
        fn i_sub(a: I, b: I) -> I = _mm_sub_epi32(a, b);
        fn i_mul(a: I, b: I) -> I = _mm_mullo_epi32(a, b);
        fn i_max(a: I, b: I) -> I = _mm_max_epi32(a, b);
        fn i_and(a: I, b: I) -> I = _mm_and_si128(a, b);
        fn i_or(a: I, b: I) -> I = _mm_or_si128(a, b);
        fn i_shr_by(v: I, n: u32) -> I = _mm_srl_epi32(v, _mm_cvtsi32_si128(n.cast_signed()));
        fn i_lookup(table: &[u8; 16], v: I) -> I = _mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), v);
        fn i_round(v: F) -> I = _mm_cvtps_epi32(v);
        fn i_reduce_add(v: I) -> i32 = reduce_i(v, |a, b| _mm_add_epi32(a, b));
        fn i_reduce_max(v: I) -> i32 = reduce_i(v, |a, b| _mm_max_epi32(a, b));
        fn prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    fn i_shl<const N: u32>(self, v: I) -> I {
        unsafe { _mm_sll_epi32(v, _mm_cvtsi32_si128(N.cast_signed())) }
    }
    #[inline(always)]
    fn i_shr<const N: u32>(self, v: I) -> I {
        self.i_shr_by(v, N)
    }

    pointer! {
        fn f_load(p: *const f32) -> F = _mm_loadu_ps(p);
        fn f_load_first(p: *const f32, n: usize) -> F = {
            let mut v = [0.0f32; 4];
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
            _mm_loadu_ps(v.as_ptr())
        };
        fn f_broadcast(p: *const f32) -> F = _mm_set1_ps(p.read_unaligned());
        fn f_load_f16(p: *const u8) -> F = f16_to_f32(_mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast())));
        fn f_load_bf16(p: *const u8) -> F =
            _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast()))));
        fn f_store(p: *mut f32, v: F) = _mm_storeu_ps(p, v);
        fn f_store_first(p: *mut f32, v: F, n: usize) = {
            let mut lanes = [0.0f32; 4];
            _mm_storeu_ps(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        };
        fn i_load(p: *const u8) -> I = _mm_loadu_si128(p.cast());
        fn i_broadcast(p: *const u8) -> I = _mm_set1_epi32(p.cast::<i32>().read_unaligned());
        fn i_load_u8(p: *const u8) -> I = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()));
        fn i_load_i8(p: *const u8) -> I = _mm_cvtepi8_epi32(_mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()));
        fn i_store_i16(p: *mut u8, v: I) = _mm_storel_epi64(p.cast(), _mm_packs_epi32(v, v));
        fn i_store(p: *mut u8, v: I) = _mm_storeu_si128(p.cast(), v);
        fn i_store_u8(p: *mut u8, v: I) = {
            let w = _mm_packs_epi32(v, v);
            p.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packus_epi16(w, w)));
        };
        fn i_store_i8(p: *mut u8, v: I) = {
            let w = _mm_packs_epi32(v, v);
            p.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packs_epi16(w, w)));
        };
    }

    #[inline(always)]
    unsafe fn dot4<const BITS: u32, const NC: usize>(self, acc: &mut [I; NC], w: [I; 4], a: [*const u8; NC]) {
        unsafe {
            let ones = _mm_set1_epi16(1);
            let widen = |v| _mm_madd_epi16(v, ones);
            for (acc, p) in acc.iter_mut().zip(a) {
                let a = |j: usize| _mm_set1_epi32(p.cast::<i32>().add(j).read_unaligned());
                let pairs = |j: usize| _mm_maddubs_epi16(w[j], a(j));
                let sum = if BITS <= 5 {
                    // Four pairs stay below 31 * 127 * 2 * 4 = 31496: one widening is enough.
                    let lo = _mm_add_epi16(pairs(0), pairs(1));
                    widen(_mm_add_epi16(lo, _mm_add_epi16(pairs(2), pairs(3))))
                } else if BITS == 6 {
                    // Two pairs stay below 63 * 127 * 2 * 2 = 32004.
                    let lo = widen(_mm_add_epi16(pairs(0), pairs(1)));
                    _mm_add_epi32(lo, widen(_mm_add_epi16(pairs(2), pairs(3))))
                } else {
                    // |w| * (a with w's sign): one pair stays below 128 * 127 * 2 = 32512.
                    let signed = |j: usize| {
                        let w = _mm_xor_si128(w[j], _mm_set1_epi8(-128));
                        widen(_mm_maddubs_epi16(_mm_abs_epi8(w), _mm_sign_epi8(a(j), w)))
                    };
                    let lo = _mm_add_epi32(signed(0), signed(1));
                    _mm_add_epi32(lo, _mm_add_epi32(signed(2), signed(3)))
                };
                *acc = _mm_add_epi32(*acc, sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes<const NC: usize, const NG: usize>(
        self,
        acc: &mut [[I; NG]; NC],
        w: [I; NG],
        a: [*const u8; NC],
    ) {
        unsafe {
            // Bytes of even and of odd places as 16-bit integers: `maddubs` would saturate.
            let even = w.map(|w| _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(w)));
            let odd = w.map(|w| _mm_srai_epi16::<8>(w));
            for c in 0..NC {
                let a = _mm_set1_epi32(a[c].cast::<i32>().read_unaligned());
                let (low, high) = (_mm_and_si128(a, _mm_set1_epi16(0xff)), _mm_srli_epi16::<8>(a));
                for g in 0..NG {
                    let sum = _mm_add_epi32(_mm_madd_epi16(even[g], low), _mm_madd_epi16(odd[g], high));
                    acc[c][g] = _mm_add_epi32(acc[c][g], sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs<const NC: usize>(self, acc: &mut [I; NC], w: I, a: [*const u8; NC]) {
        for (acc, a) in acc.iter_mut().zip(a) {
            unsafe {
                let a = _mm_set1_epi32(a.cast::<i32>().read_unaligned());
                *acc = _mm_add_epi32(*acc, _mm_madd_epi16(w, a));
            }
        }
    }
}
