//! AVX-512 F, BW, DQ, VL and VNNI: sixteen lanes.
#![allow(clippy::undocumented_unsafe_blocks)] // the macros below say once why they are sound

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the processor has the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// # Safety
/// The processor has the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)]
unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

type F = __m512;
type I = __m512i;

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
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    type F = F;
    type I = I;
    const LANES: usize = 16;
    const BYTES_ARE_CENTRED: bool = false;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token is proof of the instructions.
        unsafe { call(kernel) }
    }

    safe! {
        fn f_splat(v: f32) -> F = _mm512_set1_ps(v);
        fn f_add(a: F, b: F) -> F = _mm512_add_ps(a, b);
        fn f_sub(a: F, b: F) -> F = _mm512_sub_ps(a, b);
        fn f_mul(a: F, b: F) -> F = _mm512_mul_ps(a, b);
        fn f_div(a: F, b: F) -> F = _mm512_div_ps(a, b);
        fn f_sqrt(v: F) -> F = _mm512_sqrt_ps(v);
        fn f_fma(a: F, b: F, c: F) -> F = _mm512_fmadd_ps(a, b, c);
        fn f_max(a: F, b: F) -> F = _mm512_max_ps(a, b);
        fn f_min(a: F, b: F) -> F = _mm512_min_ps(a, b);
        fn f_from_i(v: I) -> F = _mm512_cvtepi32_ps(v);
        fn f_reduce_add(v: F) -> f32 = _mm512_reduce_add_ps(v);
        fn f_reduce_max(v: F) -> f32 = _mm512_reduce_max_ps(v);
        fn f_to_bits(v: F) -> I = _mm512_castps_si512(v);
        fn f_from_bits(v: I) -> F = _mm512_castsi512_ps(v);
        fn i_splat(v: i32) -> I = _mm512_set1_epi32(v);
        fn i_add(a: I, b: I) -> I = _mm512_add_epi32(a, b);
        fn i_sub(a: I, b: I) -> I = _mm512_sub_epi32(a, b);
        fn i_mul(a: I, b: I) -> I = _mm512_mullo_epi32(a, b);
        fn i_max(a: I, b: I) -> I = _mm512_max_epi32(a, b);
        fn i_and(a: I, b: I) -> I = _mm512_and_si512(a, b);
        fn i_or(a: I, b: I) -> I = _mm512_or_si512(a, b);
        fn i_shr_by(v: I, n: u32) -> I = _mm512_srl_epi32(v, _mm_cvtsi32_si128(n.cast_signed()));
        fn i_lookup(table: &[u8; 16], v: I) -> I =
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v);
        fn i_round(v: F) -> I = _mm512_cvtps_epi32(v);
        fn i_reduce_add(v: I) -> i32 = _mm512_reduce_add_epi32(v);
        fn i_reduce_max(v: I) -> i32 = _mm512_reduce_max_epi32(v);
        fn prefetch(p: *const u8) -> () = _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    fn i_shl<const N: u32>(self, v: I) -> I {
        unsafe { _mm512_slli_epi32::<N>(v) }
    }
    #[inline(always)]
    fn i_shr<const N: u32>(self, v: I) -> I {
        unsafe { _mm512_srli_epi32::<N>(v) }
    }

    pointer! {
        fn f_load(p: *const f32) -> F = _mm512_loadu_ps(p);
        fn f_load_first(p: *const f32, n: usize) -> F = _mm512_maskz_loadu_ps(first(n), p);
        fn f_broadcast(p: *const f32) -> F = _mm512_set1_ps(p.read_unaligned());
        fn f_load_f16(p: *const u8) -> F = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
        fn f_load_bf16(p: *const u8) -> F =
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))));
        fn f_store(p: *mut f32, v: F) = _mm512_storeu_ps(p, v);
        fn f_store_first(p: *mut f32, v: F, n: usize) = _mm512_mask_storeu_ps(p, first(n), v);
        fn i_load(p: *const u8) -> I = _mm512_loadu_si512(p.cast());
        fn i_broadcast(p: *const u8) -> I = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
        fn i_load_u8(p: *const u8) -> I = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        fn i_load_i8(p: *const u8) -> I = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
        fn i_store_i16(p: *mut u8, v: I) = _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(v));
        fn i_store(p: *mut u8, v: I) = _mm512_storeu_si512(p.cast(), v);
        fn i_store_i8(p: *mut u8, v: I) = _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v));
        fn i_store_u8(p: *mut u8, v: I) = _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v));
    }

    #[inline(always)]
    unsafe fn dot4<const BITS: u32, const NC: usize>(self, acc: &mut [I; NC], w: [I; 4], a: [*const u8; NC]) {
        // Column by column within each quad: NC independent chains hide the latency of the dot product.
        macro_rules! quad {
            ($j:literal) => {
                for c in 0..NC {
                    unsafe {
                        let a = _mm512_set1_epi32(a[c].cast::<i32>().add($j).read_unaligned());
                        acc[c] = _mm512_dpbusd_epi32(acc[c], w[$j], a);
                    }
                }
            };
        }
        quad!(0);
        quad!(1);
        quad!(2);
        quad!(3);
    }

    #[inline(always)]
    unsafe fn dot_bytes<const NC: usize, const NG: usize>(
        self,
        acc: &mut [[I; NG]; NC],
        w: [I; NG],
        a: [*const u8; NC],
    ) {
        for c in 0..NC {
            unsafe {
                let a = _mm512_set1_epi32(a[c].cast::<i32>().read_unaligned());
                for g in 0..NG {
                    acc[c][g] = _mm512_dpbusd_epi32(acc[c][g], a, w[g]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs<const NC: usize>(self, acc: &mut [I; NC], w: I, a: [*const u8; NC]) {
        for c in 0..NC {
            unsafe {
                let a = _mm512_set1_epi32(a[c].cast::<i32>().read_unaligned());
                acc[c] = _mm512_dpwssd_epi32(acc[c], w, a);
            }
        }
    }
}
