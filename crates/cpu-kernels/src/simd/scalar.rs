//! Plain Rust, four lanes.

use super::{Kernel, Simd};
use half::{bf16, f16};

/// Proof of nothing: every machine has it.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type F = [f32; 4];
type I = [i32; 4];

#[inline(always)]
fn map2<A: Copy, B: Copy, R>(a: [A; 4], b: [B; 4], f: impl Fn(A, B) -> R) -> [R; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F = F;
    type I = I;
    const LANES: usize = 4;
    const BYTES_ARE_CENTRED: bool = true;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn f_splat(self, v: f32) -> F {
        [v; 4]
    }
    #[inline(always)]
    fn f_add(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn f_sub(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn f_mul(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn f_div(self, a: F, b: F) -> F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn f_sqrt(self, v: F) -> F {
        v.map(f32::sqrt)
    }
    #[inline(always)]
    fn f_fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i] * b[i] + c[i]) // `mul_add` would call into libm
    }
    #[inline(always)]
    fn f_max(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn f_min(self, a: F, b: F) -> F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn f_from_i(self, v: I) -> F {
        v.map(|v| v as f32)
    }
    #[inline(always)]
    fn f_reduce_add(self, v: F) -> f32 {
        (v[0] + v[1]) + (v[2] + v[3])
    }
    #[inline(always)]
    fn f_reduce_max(self, v: F) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }
    #[inline(always)]
    fn f_to_bits(self, v: F) -> I {
        v.map(|v| v.to_bits().cast_signed())
    }
    #[inline(always)]
    fn f_from_bits(self, v: I) -> F {
        v.map(|v| f32::from_bits(v.cast_unsigned()))
    }
    #[inline(always)]
    fn i_splat(self, v: i32) -> I {
        [v; 4]
    }
    #[inline(always)]
    fn i_add(self, a: I, b: I) -> I {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn i_sub(self, a: I, b: I) -> I {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn i_mul(self, a: I, b: I) -> I {
        map2(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn i_max(self, a: I, b: I) -> I {
        map2(a, b, i32::max)
    }
    #[inline(always)]
    fn i_and(self, a: I, b: I) -> I {
        map2(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn i_or(self, a: I, b: I) -> I {
        map2(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn i_lookup(self, table: &[u8; 16], v: I) -> I {
        v.map(|v| i32::from_le_bytes(v.to_le_bytes().map(|byte| table[usize::from(byte & 15)])))
    }
    #[inline(always)]
    fn i_shl<const N: u32>(self, v: I) -> I {
        v.map(|v| v << N)
    }
    #[inline(always)]
    fn i_shr<const N: u32>(self, v: I) -> I {
        self.i_shr_by(v, N)
    }
    #[inline(always)]
    fn i_shr_by(self, v: I, n: u32) -> I {
        v.map(|v| (v.cast_unsigned() >> n).cast_signed())
    }
    #[inline(always)]
    fn i_round(self, v: F) -> I {
        v.map(|v| {
            let r = v.round_ties_even();
            if (-2_147_483_648.0..2_147_483_648.0).contains(&r) { r as i32 } else { i32::MIN }
        })
    }
    #[inline(always)]
    fn i_reduce_add(self, v: I) -> i32 {
        v.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn i_reduce_max(self, v: I) -> i32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }

    #[inline(always)]
    unsafe fn f_load(self, p: *const f32) -> F {
        // SAFETY: the caller's.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn f_load_first(self, p: *const f32, n: usize) -> F {
        // SAFETY: only the first `n` are read.
        std::array::from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn f_broadcast(self, p: *const f32) -> F {
        // SAFETY: the caller's.
        [unsafe { p.read_unaligned() }; 4]
    }
    #[inline(always)]
    unsafe fn f_load_f16(self, p: *const u8) -> F {
        // SAFETY: the caller's.
        let bits = unsafe { p.cast::<[[u8; 2]; 4]>().read_unaligned() };
        bits.map(|b| f16::from_le_bytes(b).to_f32_const())
    }
    #[inline(always)]
    unsafe fn f_load_bf16(self, p: *const u8) -> F {
        // SAFETY: the caller's.
        let bits = unsafe { p.cast::<[[u8; 2]; 4]>().read_unaligned() };
        bits.map(|b| bf16::from_le_bytes(b).to_f32_const())
    }
    #[inline(always)]
    unsafe fn f_store(self, p: *mut f32, v: F) {
        // SAFETY: the caller's.
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn f_store_first(self, p: *mut f32, v: F, n: usize) {
        for (i, v) in v.into_iter().enumerate().take(n) {
            // SAFETY: only the first `n` are written.
            unsafe { p.add(i).write_unaligned(v) }
        }
    }
    #[inline(always)]
    unsafe fn i_load(self, p: *const u8) -> I {
        // SAFETY: the caller's.
        unsafe { p.cast::<[[u8; 4]; 4]>().read_unaligned() }.map(i32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn i_broadcast(self, p: *const u8) -> I {
        // SAFETY: the caller's.
        [i32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read_unaligned() }); 4]
    }
    #[inline(always)]
    unsafe fn i_load_u8(self, p: *const u8) -> I {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u8; 4]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn i_load_i8(self, p: *const u8) -> I {
        // SAFETY: the caller's.
        unsafe { p.cast::<[i8; 4]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn i_store_i8(self, p: *mut u8, v: I) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[u8; 4]>().write_unaligned(v.map(|v| v.to_le_bytes()[0])) }
    }
    #[inline(always)]
    unsafe fn i_store_u8(self, p: *mut u8, v: I) {
        // SAFETY: the caller's.
        unsafe { self.i_store_i8(p, v) }
    }
    #[inline(always)]
    unsafe fn i_store_i16(self, p: *mut u8, v: I) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[i16; 4]>().write_unaligned(v.map(|v| v as i16)) }
    }
    #[inline(always)]
    unsafe fn i_store(self, p: *mut u8, v: I) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[[u8; 4]; 4]>().write_unaligned(v.map(i32::to_le_bytes)) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    unsafe fn dot4<const BITS: u32, const NC: usize>(self, acc: &mut [I; NC], w: [I; 4], a: [*const u8; NC]) {
        for (acc, a) in acc.iter_mut().zip(a) {
            // SAFETY: the caller's.
            let a = unsafe { a.cast::<[[i8; 4]; 4]>().read_unaligned() };
            for (w, a) in w.iter().zip(a) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    for (w, a) in w.to_le_bytes().into_iter().zip(a) {
                        let w = if BITS == 8 { i32::from(w) - 128 } else { i32::from(w) };
                        *acc += w * i32::from(a);
                    }
                }
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
        for (acc, a) in acc.iter_mut().zip(a) {
            // SAFETY: the caller's.
            let a = unsafe { a.cast::<[u8; 4]>().read_unaligned() };
            for (acc, w) in acc.iter_mut().zip(&w) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    for (w, a) in w.to_le_bytes().into_iter().zip(a) {
                        *acc = acc.wrapping_add(i32::from(w.cast_signed()) * i32::from(a));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs<const NC: usize>(self, acc: &mut [I; NC], w: I, a: [*const u8; NC]) {
        for (acc, a) in acc.iter_mut().zip(a) {
            // SAFETY: the caller's.
            let a = unsafe { a.cast::<[i16; 2]>().read_unaligned() };
            for (acc, w) in acc.iter_mut().zip(w) {
                // The first of a pair is the low half, as in memory.
                let product = (w << 16 >> 16) * i32::from(a[0]);
                *acc = acc.wrapping_add(product).wrapping_add((w >> 16) * i32::from(a[1]));
            }
        }
    }
}
