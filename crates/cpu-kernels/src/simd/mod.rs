//! Instruction-set levels, picked at run time, and the vector vocabulary kernels are written in.
//!
//! A kernel is a struct that implements [`Kernel`] generically over [`Simd`]; [`Level::run`] instantiates it for
//! the level at hand inside a function that has the level's instructions enabled:
//!
//! ```
//! use cpu_kernels::simd::{Kernel, Level, Simd};
//!
//! struct Sum<'a>(&'a [f32]);
//!
//! impl Kernel for Sum<'_> {
//!     type Output = f32;
//!     #[inline(always)] // needed: what is not inlined is compiled without the level's instructions
//!     fn run<S: Simd>(self, s: S) -> f32 {
//!         let mut acc = s.f_splat(0.0);
//!         let mut chunks = self.0.chunks_exact(S::LANES);
//!         for c in &mut chunks {
//!             // SAFETY: a chunk has LANES elements.
//!             acc = s.f_add(acc, unsafe { s.f_load(c.as_ptr()) });
//!         }
//!         s.f_reduce_add(acc) + chunks.remainder().iter().sum::<f32>()
//!     }
//! }
//!
//! for level in Level::available() {
//!     assert_eq!(level.run(Sum(&[1.0; 19])), 19.0);
//! }
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sse41;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// The instruction sets a kernel can be compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Sse41,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    const ALL: &'static [Isa] = &[
        Isa::Scalar,
        #[cfg(target_arch = "x86_64")]
        Isa::Sse41,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512,
    ];

    fn detected(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Sse41 => is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.detected()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }
}

/// An instruction-set level that this machine has.
///
/// A value is proof: levels are only handed out by [`Level::available`], [`Level::best`] and
/// [`Level::from_name`], which ask the processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(Isa);

/// Index into `Isa::ALL` of the level that [`Level::force`] set; 255 = none.
static FORCED: AtomicU8 = AtomicU8::new(u8::MAX);

impl Level {
    /// Plain Rust, on every machine.
    pub const SCALAR: Level = Level(Isa::Scalar);

    /// The levels this machine has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Level> {
        Isa::ALL.iter().copied().filter(|isa| isa.detected()).map(Level).collect()
    }

    /// The level kernels should use: the widest available, unless [`Level::force`] chose another.
    #[must_use]
    pub fn best() -> Level {
        if let Some(isa) = Isa::ALL.get(usize::from(FORCED.load(Ordering::Relaxed))) {
            return Level(*isa);
        }
        Isa::ALL.iter().rev().copied().find(|isa| isa.detected()).map_or(Level::SCALAR, Level)
    }

    /// Makes [`Level::best`] answer `level` from now on in this process; `None` undoes it.
    pub fn force(level: Option<Level>) {
        let index = level.and_then(|l| Isa::ALL.iter().position(|isa| *isa == l.0));
        FORCED.store(index.and_then(|i| u8::try_from(i).ok()).unwrap_or(u8::MAX), Ordering::Relaxed);
    }

    /// The level of that [`name`](Level::name), if this machine has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Level> {
        Level::available().into_iter().find(|l| l.name() == name)
    }

    /// `scalar`, `sse4.1`, `avx2` (with FMA and F16C) or `avx512` (F, BW, DQ, VL, VNNI).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Sse41 => "sse4.1",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
        }
    }

    /// Runs a kernel with this level's instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Isa::Scalar => kernel.run(scalar::Scalar),
            // SAFETY: a `Level` is only made for instruction sets that the processor reports.
            #[cfg(target_arch = "x86_64")]
            Isa::Sse41 => unsafe { sse41::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::run(kernel) },
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A computation that is compiled once per instruction-set level.
pub trait Kernel {
    /// What it answers.
    type Output;

    /// The computation. Implementations, and everything they call, must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Vectors of [`LANES`](Simd::LANES) `f32` (`F`) or 32-bit integers (`I`), and what kernels do with them.
///
/// A value of an implementing type is proof that the processor has the instructions, so arithmetic is safe; only what
/// follows a pointer is not. No pointer needs any alignment.
pub trait Simd: Copy {
    /// `LANES` f32.
    type F: Copy;
    /// `LANES` i32, or `4 × LANES` bytes.
    type I: Copy;
    /// Lanes of a vector: 4, 8 or 16.
    const LANES: usize;
    /// How [`dot4`](Simd::dot4) reads 8-bit weights, which are stored with 128 added: `false` as the unsigned
    /// bytes they are (the caller corrects by −128 × the sum of the activations), `true` with the 128 taken off.
    const BYTES_ARE_CENTRED: bool;

    /// Runs a kernel as a function of its own: one copy serves all callers, where inlining would give each its own.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;
    /// All lanes `v`.
    fn f_splat(self, v: f32) -> Self::F;
    /// `a + b`.
    fn f_add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn f_sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn f_mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn f_div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The square root.
    fn f_sqrt(self, v: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the level can.
    fn f_fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater of each lane; `b` where either is NaN.
    fn f_max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser of each lane; `b` where either is NaN.
    fn f_min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Converts i32 to f32.
    fn f_from_i(self, v: Self::I) -> Self::F;
    /// The sum of the lanes.
    fn f_reduce_add(self, v: Self::F) -> f32;
    /// The greatest lane.
    fn f_reduce_max(self, v: Self::F) -> f32;
    /// The bits of the floats.
    fn f_to_bits(self, v: Self::F) -> Self::I;
    /// The floats of the bits.
    fn f_from_bits(self, v: Self::I) -> Self::F;

    /// All lanes `v`.
    fn i_splat(self, v: i32) -> Self::I;
    /// `a + b`, wrapping.
    fn i_add(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn i_sub(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a * b`, wrapping.
    fn i_mul(self, a: Self::I, b: Self::I) -> Self::I;
    /// The greater of each lane (signed).
    fn i_max(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bits of both.
    fn i_and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bits of either.
    fn i_or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Each 32-bit lane shifted left by `N`.
    fn i_shl<const N: u32>(self, v: Self::I) -> Self::I;
    /// Each 32-bit lane shifted right by `N`, zeros coming in.
    fn i_shr<const N: u32>(self, v: Self::I) -> Self::I;
    /// Each 32-bit lane shifted right by `n` < 32, zeros coming in.
    fn i_shr_by(self, v: Self::I, n: u32) -> Self::I;
    /// Each byte, which must be below 16, replaced by the table's.
    fn i_lookup(self, table: &[u8; 16], v: Self::I) -> Self::I;
    /// Rounds to the nearest integer, ties to even; `i32::MIN` where it does not fit.
    fn i_round(self, v: Self::F) -> Self::I;
    /// The wrapping sum of the lanes.
    fn i_reduce_add(self, v: Self::I) -> i32;
    /// The greatest lane.
    fn i_reduce_max(self, v: Self::I) -> i32;

    /// Loads `LANES` f32.
    ///
    /// # Safety
    /// `p` is readable for `LANES` f32.
    unsafe fn f_load(self, p: *const f32) -> Self::F;
    /// Loads the first `n` lanes; the others are 0.
    ///
    /// # Safety
    /// `p` is readable for `n` f32, `n <= LANES`.
    unsafe fn f_load_first(self, p: *const f32, n: usize) -> Self::F;
    /// Loads one f32 into all lanes.
    ///
    /// # Safety
    /// `p` is readable for one f32.
    unsafe fn f_broadcast(self, p: *const f32) -> Self::F;
    /// Loads `LANES` IEEE half-precision floats.
    ///
    /// # Safety
    /// `p` is readable for `2 × LANES` bytes.
    unsafe fn f_load_f16(self, p: *const u8) -> Self::F;
    /// Loads `LANES` bfloat16.
    ///
    /// # Safety
    /// `p` is readable for `2 × LANES` bytes.
    unsafe fn f_load_bf16(self, p: *const u8) -> Self::F;
    /// Stores `LANES` f32.
    ///
    /// # Safety
    /// `p` is writable for `LANES` f32.
    unsafe fn f_store(self, p: *mut f32, v: Self::F);
    /// Stores the first `n` lanes.
    ///
    /// # Safety
    /// `p` is writable for `n` f32, `n <= LANES`.
    unsafe fn f_store_first(self, p: *mut f32, v: Self::F, n: usize);
    /// Loads `4 × LANES` bytes.
    ///
    /// # Safety
    /// `p` is readable for `4 × LANES` bytes.
    unsafe fn i_load(self, p: *const u8) -> Self::I;
    /// Loads four bytes into all lanes.
    ///
    /// # Safety
    /// `p` is readable for 4 bytes.
    unsafe fn i_broadcast(self, p: *const u8) -> Self::I;
    /// Loads `LANES` bytes as unsigned integers.
    ///
    /// # Safety
    /// `p` is readable for `LANES` bytes.
    unsafe fn i_load_u8(self, p: *const u8) -> Self::I;
    /// Loads `LANES` bytes as signed integers.
    ///
    /// # Safety
    /// `p` is readable for `LANES` bytes.
    unsafe fn i_load_i8(self, p: *const u8) -> Self::I;
    /// Stores the low byte of each lane, whose value must fit an i8.
    ///
    /// # Safety
    /// `p` is writable for `LANES` bytes.
    unsafe fn i_store_i8(self, p: *mut u8, v: Self::I);
    /// Stores the low byte of each lane, whose value must fit a u8.
    ///
    /// # Safety
    /// `p` is writable for `LANES` bytes.
    unsafe fn i_store_u8(self, p: *mut u8, v: Self::I);
    /// Stores the low two bytes of each lane, whose value must fit an i16.
    ///
    /// # Safety
    /// `p` is writable for `2 × LANES` bytes.
    unsafe fn i_store_i16(self, p: *mut u8, v: Self::I);
    /// Stores `4 × LANES` bytes.
    ///
    /// # Safety
    /// `p` is writable for `4 × LANES` bytes.
    unsafe fn i_store(self, p: *mut u8, v: Self::I);
    /// Asks for the cache line at `p`, which need not be a valid address.
    fn prefetch(self, p: *const u8);

    /// Dot products of sixteen 8-bit weights per lane with sixteen 8-bit activations per column, exactly:
    /// `acc[c][lane] += Σ w[j][4 lane + i] · a[c][4 j + i]` over `j < 4`, `i < 4`.
    ///
    /// The weights are unsigned and below `1 << BITS` (4, 5, 6 or 8; see
    /// [`BYTES_ARE_CENTRED`](Simd::BYTES_ARE_CENTRED) for 8), the activations signed and at least −127.
    ///
    /// # Safety
    /// Each `a[c]` is readable for 16 bytes.
    unsafe fn dot4<const BITS: u32, const NC: usize>(
        self,
        acc: &mut [Self::I; NC],
        w: [Self::I; 4],
        a: [*const u8; NC],
    );

    /// Dot products of four signed weights per lane with four unsigned activations per column, exactly, wrapping at 32 bits:
    /// `acc[c][g][lane] += Σ w[g][4 lane + i] · a[c][i]` over `i < 4`.
    ///
    /// # Safety
    /// Each `a[c]` is readable for 4 bytes.
    unsafe fn dot_bytes<const NC: usize, const NG: usize>(
        self,
        acc: &mut [[Self::I; NG]; NC],
        w: [Self::I; NG],
        a: [*const u8; NC],
    );

    /// Dot products of two 16-bit weights per lane with two 16-bit activations per column, wrapping at 32 bits:
    /// `acc[c][lane] += w[2 lane] · a[c][0] + w[2 lane + 1] · a[c][1]`.
    ///
    /// # Safety
    /// Each `a[c]` is readable for 4 bytes.
    unsafe fn dot_pairs<const NC: usize>(self, acc: &mut [Self::I; NC], w: Self::I, a: [*const u8; NC]);
}

#[cfg(test)]
mod tests;
