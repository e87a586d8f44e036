//! AVX2 with FMA and F16C: eight lanes.
#![allow(clippy::undocumented_unsafe_blocks)] // the macros below say once why they are sound

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// # Safety
/// The processor has the features named.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

type F = __m256;
type I = __m256i;

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

/// A mask whose first `n` lanes are set.
#[inline(always)]
unsafe fn first(n: usize) -> I {
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }
}

#[inline(always)]
unsafe fn halves_i(v: I, f: impl Fn(__m128i, __m128i) -> __m128i) -> i32 {
    unsafe {
        let v = f(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = f(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        _mm_cvtsi128_si32(f(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
    }
}

#[inline(always)]
unsafe fn halves_f(v: F, f: impl Fn(__m128, __m128) -> __m128) -> f32 {
    unsafe {
        let v = f(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = f(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(f(v, _mm_shuffle_ps::<0b10_11_00_01>(v, v)))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    const LANES: usize = 8;
    const BYTES_ARE_CENTRED: bool = true;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token is proof of the instructions.
        unsafe { call(kernel) }
    }

    safe! {
        fn f_splat(v: f32) -> F = _mm256_set1_ps(v);
        fn f_add(a: F, b: F) -> F = _mm256_add_ps(a, b);
        fn f_sub(a: F, b: F) -> F = _mm256_sub_ps(a, b);
        fn f_mul(a: F, b: F) -> F = _mm256_mul_ps(a, b);
        fn f_div(a: F, b: F) -> F = _mm256_div_ps(a, b);
        fn f_sqrt(v: F) -> F = _mm256_sqrt_ps(v);
        fn f_fma(a: F, b: F, c: F) -> F = _mm256_fmadd_ps(a, b, c);
        fn f_max(a: F, b: F) -> F = _mm256_max_ps(a, b);
        fn f_min(a: F, b: F) -> F = _mm256_min_ps(a, b);
        fn f_from_i(v: I) -> F = _mm256_cvtepi32_ps(v);
        fn f_reduce_add(v: F) -> f32 = halves_f(v, |a, b| _mm_add_ps(a, b));
        fn f_reduce_max(v: F) -> f32 = halves_f(v, |a, b| _mm_max_ps(a, b));
        fn f_to_bits(v: F) -> I = _mm256_castps_si256(v);
        fn f_from_bits(v: I) -> F = _mm256_castsi256_ps(v);
        fn i_splat(v: i32) -> I = _mm256_set1_epi32(v);
        fn i_add(a: I, b: I) -> I = _mm256_add_epi32(a, b);
        fn i_sub(a: I, b: I) -> I = _mm256_sub_epi32(a, b);
        fn i_mul(a: I, b: I) -> I = _mm256_mullo_epi32(a, b);
        fn i_max(a: I, b: I) -> I = _mm256_max_epi32(a, b);
        fn i_and(a: I, b: I) -> I = _mm256_and_si256(a, b);
        fn i_or(a: I, b: I) -> I = _mm256_or_si256(a, b);
        fn i_shr_by(v: I, n: u32) -> I = _mm256_srl_epi32(v, _mm_cvtsi32_si128(n.cast_signed()));
        fn i_lookup(table: &[u8; 16], v: I) -> I =
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), v);
        fn i_round(v: F) -> I = _mm256_cvtps_epi32(v);
        fn i_reduce_add(v: I) -> i32 = halves_i(v, |a, b| _mm_add_epi32(a, b));
        fn i_reduce_max(v: I) -> i32 = halves_i(v, |a, b| _mm_max_epi32(a, b));
        fn prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    fn i_shl<const N: u32>(self, v: I) -> I {
        unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(N.cast_signed())) }
    }
    #[inline(always)]
    fn i_shr<const N: u32>(self, v: I) -> I {
        self.i_shr_by(v, N)
    }

    pointer! {
        fn f_load(p: *const f32) -> F = _mm256_loadu_ps(p);
        fn f_load_first(p: *const f32, n: usize) -> F = _mm256_maskload_ps(p, first(n));
        fn f_broadcast(p: *const f32) -> F = _mm256_set1_ps(p.read_unaligned());
        fn f_load_f16(p: *const u8) -> F = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
        fn f_load_bf16(p: *const u8) -> F =
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))));
        fn f_store(p: *mut f32, v: F) = _mm256_storeu_ps(p, v);
        fn f_store_first(p: *mut f32, v: F, n: usize) = _mm256_maskstore_ps(p, first(n), v);
        fn i_load(p: *const u8) -> I = _mm256_loadu_si256(p.cast());
        fn i_broadcast(p: *const u8) -> I = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
        fn i_load_u8(p: *const u8) -> I = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        fn i_load_i8(p: *const u8) -> I = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
        fn i_store_i16(p: *mut u8, v: I) = {
            let w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storeu_si128(p.cast(), w);
        };
        fn i_store(p: *mut u8, v: I) = _mm256_storeu_si256(p.cast(), v);
        fn i_store_u8(p: *mut u8, v: I) = {
            let w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(w, w));
        };
        fn i_store_i8(p: *mut u8, v: I) = {
            let w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(w, w));
        };
    }

    #[inline(always)]
    unsafe fn dot4<const BITS: u32, const NC: usize>(self, acc: &mut [I; NC], w: [I; 4], a: [*const u8; NC]) {
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let widen = |v| _mm256_madd_epi16(v, ones);
            for (acc, p) in acc.iter_mut().zip(a) {
                let a = |j: usize| _mm256_set1_epi32(p.cast::<i32>().add(j).read_unaligned());
                let pairs = |j: usize| _mm256_maddubs_epi16(w[j], a(j));
                let sum = if BITS <= 5 {
                    // Four pairs stay below 31 * 127 * 2 * 4 = 31496: one widening is enough.
                    let lo = _mm256_add_epi16(pairs(0), pairs(1));
                    let hi = _mm256_add_epi16(pairs(2), pairs(3));
                    widen(_mm256_add_epi16(lo, hi))
                } else if BITS == 6 {
                    // Two pairs stay below 63 * 127 * 2 * 2 = 32004.
                    let lo = widen(_mm256_add_epi16(pairs(0), pairs(1)));
                    let hi = widen(_mm256_add_epi16(pairs(2), pairs(3)));
                    _mm256_add_epi32(lo, hi)
                } else {
                    // |w| * (a with w's sign): one pair stays below 128 * 127 * 2 = 32512.
                    let signed = |j: usize| {
                        let w = _mm256_xor_si256(w[j], _mm256_set1_epi8(-128));
                        widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a(j), w)))
                    };
                    let lo = _mm256_add_epi32(signed(0), signed(1));
                    _mm256_add_epi32(lo, _mm256_add_epi32(signed(2), signed(3)))
                };
                *acc = _mm256_add_epi32(*acc, sum);
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
            let even = w.map(|w| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
            let odd = w.map(|w| _mm256_srai_epi16::<8>(w));
            for c in 0..NC {
                let a = _mm256_set1_epi32(a[c].cast::<i32>().read_unaligned());
                let (low, high) = (_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(a));
                for g in 0..NG {
                    let sum = _mm256_add_epi32(_mm256_madd_epi16(even[g], low), _mm256_madd_epi16(odd[g], high));
                    acc[c][g] = _mm256_add_epi32(acc[c][g], sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs<const NC: usize>(self, acc: &mut [I; NC], w: I, a: [*const u8; NC]) {
        for (acc, a) in acc.iter_mut().zip(a) {
            unsafe {
                let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(w, a));
            }
        }
    }
}
