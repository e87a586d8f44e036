//! The right-hand side of a matrix product, in the layout the kernels stream: rows of f32 quantized to 8-bit blocks,
//! or left as f32, four rows interleaved.

use std::ops::Range;

use super::buffer::Buffer;
use crate::simd::{Kernel, Level, Simd};

/// What the activations of a matrix product are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// Blocks of 32 along a row: signed bytes in −127..=127 and one f32 scale (largest magnitude / 127, nearest
    /// integer, ties to even).
    Q8,
    /// Blocks of 32 along a row: signed 14-bit integers (−8191..=8191) and one f32 scale. For 16-bit float weights, which
    /// are brought into the same form on the way: two multiply-adds where f32 arithmetic has one, at a relative error
    /// (NMSE) of about 1e-8, what rounding to f16 costs. Fewer than 16 rows are kept as f32.
    I16,
    /// As they are.
    F32,
}

/// What packed activations consist of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Q8,
    I16,
    F32,
}

/// Activations per quantized block.
pub(super) const BLOCK: usize = 32;

/// Bytes per row of one quantized block: 32 values, then four 4-byte fields; see [`ActivationLayout`].
pub(super) const Q8_BLOCK_BYTES: usize = BLOCK + 5 * 4;

/// Bytes per row of one block of 16-bit integers: 32 values and a scale.
pub(super) const I16_BLOCK_BYTES: usize = 2 * BLOCK + 4;

/// Largest magnitude of 14-bit integers: the sum of 32 products of two of them fits an i32.
pub(super) const I16_TOP: f32 = 8191.0;

/// Fewest rows for which weights are turned into 16-bit integers.
const I16_ROWS: usize = 16;

/// Where packed activations lie.
///
/// Rows come in tiles of `W` rows: `W` is 1 for fewer than four rows, else 4, the last tile being filled up with zeros.
/// A tile is contiguous.
///
/// * `F32` (and fewer than 16 rows of `I16`): per element of the row, the `W` rows' values (`[k][W]` f32).
/// * `Q8`: per block of 32, `[W][32]` i8 values, then `[W]` each of f32 scale, f32 scale × sum of the values, and the
///   *negated* i32 sums of all 32, the first 16 and the last 16 values (what zero points are multiplied by). The number of
///   blocks is made even with zeros.
/// * `I16`: per block of 32, `[W][32]` i16 values, then `[W]` f32 scales; the last block is filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationLayout {
    kind: ActivationKind,
    rows: usize,
    k: usize,
}

impl ActivationLayout {
    /// Layout of `rows` rows of `k` activations.
    #[must_use]
    pub const fn new(kind: ActivationKind, rows: usize, k: usize) -> Self {
        Self { kind, rows, k }
    }

    /// Kind of activations.
    #[must_use]
    pub const fn kind(&self) -> ActivationKind {
        self.kind
    }

    /// Rows (columns of the product's right-hand side).
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Activations per row.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Rows per tile: 1 or 4. Work is handed out in ranges of rows that start at a multiple of it.
    #[must_use]
    pub const fn tile_rows(&self) -> usize {
        if self.rows < 4 { 1 } else { 4 }
    }

    /// What the packed activations consist of.
    pub(super) const fn form(&self) -> Form {
        match self.kind {
            ActivationKind::Q8 => Form::Q8,
            ActivationKind::I16 if self.rows >= I16_ROWS => Form::I16,
            ActivationKind::I16 | ActivationKind::F32 => Form::F32,
        }
    }

    /// Blocks per row, those of `Q8` made even.
    pub(super) const fn blocks(&self) -> usize {
        match self.form() {
            Form::Q8 => self.k.div_ceil(2 * BLOCK) * 2,
            _ => self.k.div_ceil(BLOCK),
        }
    }

    /// Bytes of a tile.
    pub(super) const fn tile_bytes(&self) -> usize {
        self.tile_rows()
            * match self.form() {
                Form::Q8 => self.blocks() * Q8_BLOCK_BYTES,
                Form::I16 => self.blocks() * I16_BLOCK_BYTES,
                Form::F32 => self.k * 4,
            }
    }

    /// Bytes that the packed activations take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.rows.div_ceil(self.tile_rows()) * self.tile_bytes()
    }

    /// Bytes that suffice for any number of rows up to `rows`.
    #[must_use]
    pub const fn max_bytes(kind: ActivationKind, rows: usize, k: usize) -> usize {
        let bytes = Self::new(kind, rows, k).bytes();
        let f32_rows = if rows < I16_ROWS { rows } else { I16_ROWS };
        let few = match kind {
            ActivationKind::I16 => Self::new(ActivationKind::F32, f32_rows, k).bytes(),
            ActivationKind::Q8 | ActivationKind::F32 => 0,
        };
        if few > bytes { few } else { bytes }
    }

    /// Packs (and for `Q8` and `I16` quantizes) some rows. Different rows may be packed by different threads at the same time.
    ///
    /// `x` is the first of the `rows`, each `stride` f32 after the one before; `out` is the start of the whole packed
    /// buffer. The range that ends with the last row also fills up the last tile.
    ///
    /// # Safety
    /// `rows` lies within the layout's; `x` is readable for `k` f32 at each of the rows; `out` is writable for
    /// [`bytes`](Self::bytes), and what these rows own is not touched by another thread meanwhile.
    pub unsafe fn pack_rows(&self, level: Level, out: *mut u8, rows: Range<usize>, x: *const f32, stride: usize) {
        debug_assert!(rows.end <= self.rows);
        match self.form() {
            Form::Q8 => level.run(Quantize::<true> { layout: *self, out, rows, x, stride }),
            Form::I16 => level.run(Quantize::<false> { layout: *self, out, rows, x, stride }),
            Form::F32 => level.run(Interleave { layout: *self, out, rows, x, stride }),
        }
    }
}

/// Packed activations that own their memory: what a caller without an arena uses.
#[derive(Debug)]
pub struct Activations {
    layout: ActivationLayout,
    data: Buffer,
}

impl Activations {
    /// Packs `rows` rows of `k` activations that lie one after the other in `x`.
    ///
    /// # Panics
    /// If `x` is not `rows × k` long, or there is no memory.
    #[must_use]
    pub fn pack(level: Level, kind: ActivationKind, rows: usize, k: usize, x: &[f32]) -> Self {
        assert_eq!(x.len(), rows * k, "activations of {rows} rows of {k}");
        let layout = ActivationLayout::new(kind, rows, k);
        let data = Buffer::new(layout.bytes()).expect("memory for packed activations");
        // SAFETY: the lengths were checked, and nobody else knows the buffer yet.
        unsafe { layout.pack_rows(level, data.as_mut_ptr(), 0..rows, x.as_ptr(), k) };
        Self { layout, data }
    }

    /// A view to compute with.
    #[must_use]
    pub fn view(&self) -> ActivationView<'_> {
        ActivationView { layout: self.layout, data: self.data.as_ptr(), life: std::marker::PhantomData }
    }
}

/// Packed activations, borrowed.
#[derive(Clone, Copy)]
pub struct ActivationView<'a> {
    layout: ActivationLayout,
    data: *const u8,
    life: std::marker::PhantomData<&'a [u8]>,
}

impl ActivationView<'_> {
    /// Activations packed at `data`.
    ///
    /// # Safety
    /// `data` is readable for `layout.bytes()` for the view's life, and all rows have been packed by
    /// [`ActivationLayout::pack_rows`] before any product reads them.
    #[must_use]
    pub const unsafe fn from_raw(layout: ActivationLayout, data: *const u8) -> Self {
        Self { layout, data, life: std::marker::PhantomData }
    }

    /// The layout.
    #[must_use]
    pub const fn layout(&self) -> &ActivationLayout {
        &self.layout
    }

    /// The tile that `row` begins.
    pub(super) fn tile(&self, row: usize) -> *const u8 {
        debug_assert!(row.is_multiple_of(self.layout.tile_rows()) && row < self.layout.rows);
        self.data.wrapping_add(row / self.layout.tile_rows() * self.layout.tile_bytes())
    }
}

/// To 8 bits (`Q8`) or to 16.
struct Quantize<const Q8: bool> {
    layout: ActivationLayout,
    out: *mut u8,
    rows: Range<usize>,
    x: *const f32,
    stride: usize,
}

impl<const Q8: bool> Kernel for Quantize<Q8> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let l = &self.layout;
        let w = l.tile_rows();
        let padded = if self.rows.end == l.rows { l.rows.next_multiple_of(w) } else { self.rows.end };
        for row in self.rows.start..padded {
            let (tile, lane) = (self.out.wrapping_add(row / w * l.tile_bytes()), row % w);
            for block in 0..l.blocks() {
                let out = tile.wrapping_add(block * w * if Q8 { Q8_BLOCK_BYTES } else { I16_BLOCK_BYTES });
                let at = block * BLOCK;
                if row >= l.rows || at >= l.k {
                    // SAFETY: within the tile, which the caller lets us write.
                    unsafe { quantize_block::<S, Q8>(s, [0.0f32; BLOCK].as_ptr(), out, w, lane) };
                } else if at + BLOCK <= l.k {
                    let x = self.x.wrapping_add((row - self.rows.start) * self.stride + at);
                    // SAFETY: 32 activations are left in the row; the tile as above.
                    unsafe { quantize_block::<S, Q8>(s, x, out, w, lane) };
                } else {
                    let x = self.x.wrapping_add((row - self.rows.start) * self.stride + at);
                    let mut last = [0.0f32; BLOCK];
                    // SAFETY: k - at activations are left in the row; the tile as above.
                    unsafe {
                        std::ptr::copy_nonoverlapping(x, last.as_mut_ptr(), l.k - at);
                        quantize_block::<S, Q8>(s, last.as_ptr(), out, w, lane);
                    }
                }
            }
        }
    }
}

/// Quantizes 32 activations into lane `lane` of a block of a `w`-row tile.
///
/// # Safety
/// `x` is readable for 32 f32, `out` writable for a block of `w` rows.
#[inline(always)]
unsafe fn quantize_block<S: Simd, const Q8: bool>(s: S, x: *const f32, out: *mut u8, w: usize, lane: usize) {
    let magnitude = s.i_splat(0x7fff_ffff);
    let limit = if Q8 { 127.0 } else { I16_TOP };
    // SAFETY: 32 activations are readable and the block is writable, says the caller.
    unsafe {
        // As integers, magnitudes order like the floats they are, NaN on top: a NaN ends up in the scale.
        let mut top = s.i_splat(0);
        let mut at = 0;
        while at < BLOCK {
            top = s.i_max(top, s.i_and(s.f_to_bits(s.f_load(x.add(at))), magnitude));
            at += S::LANES;
        }
        let top = f32::from_bits(s.i_reduce_max(top).cast_unsigned());
        // Below 2^-100 the reciprocal would not be finite.
        let tiny = top < 7.9e-31;
        let scale = if tiny { 0.0 } else { top / limit };
        let inverse = s.f_splat(if tiny { 0.0 } else { limit / top });
        if !Q8 {
            let mut at = 0;
            while at < BLOCK {
                let q = s.i_round(s.f_mul(s.f_load(x.add(at)), inverse));
                s.i_store_i16(out.add(2 * (lane * BLOCK + at)), q);
                at += S::LANES;
            }
            out.add(2 * w * BLOCK + lane * 4).cast::<f32>().write_unaligned(scale);
            return;
        }
        let mut sums = [0i32; 2];
        for (half, sum) in sums.iter_mut().enumerate() {
            let mut acc = s.i_splat(0);
            let mut at = half * BLOCK / 2;
            while at < (half + 1) * BLOCK / 2 {
                let q = s.i_round(s.f_mul(s.f_load(x.add(at)), inverse));
                acc = s.i_add(acc, q);
                s.i_store_i8(out.add(lane * BLOCK + at), q);
                at += S::LANES;
            }
            *sum = s.i_reduce_add(acc);
        }
        let sum = sums[0].wrapping_add(sums[1]); // wraps only if a value was not finite
        let fields = out.add(w * BLOCK + lane * 4);
        fields.cast::<f32>().write_unaligned(scale);
        fields.add(w * 4).cast::<f32>().write_unaligned(scale * sum as f32);
        fields.add(w * 8).cast::<i32>().write_unaligned(sum.wrapping_neg());
        fields.add(w * 12).cast::<i32>().write_unaligned(sums[0].wrapping_neg());
        fields.add(w * 16).cast::<i32>().write_unaligned(sums[1].wrapping_neg());
    }
}

struct Interleave {
    layout: ActivationLayout,
    out: *mut u8,
    rows: Range<usize>,
    x: *const f32,
    stride: usize,
}

impl Kernel for Interleave {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let _ = s;
        let l = &self.layout;
        let w = l.tile_rows();
        let out = self.out.cast::<f32>();
        let padded = if self.rows.end == l.rows { l.rows.next_multiple_of(w) } else { self.rows.end };
        let mut row = self.rows.start;
        while row < padded {
            let tile = out.wrapping_add(row / w * w * l.k);
            let source = |row: usize| self.x.wrapping_add((row - self.rows.start) * self.stride);
            if w == 1 {
                // SAFETY: one row of k activations, into a tile of one row.
                unsafe { std::ptr::copy_nonoverlapping(source(row), tile, l.k) };
                row += 1;
            } else if row.is_multiple_of(4) && row + 4 <= self.rows.end {
                let rows = [source(row), source(row + 1), source(row + 2), source(row + 3)];
                // SAFETY: the rows have k elements, the tile four times as many.
                let done = unsafe { interleave_whole(&rows, l.k, tile) };
                for k in done..l.k {
                    for (lane, x) in rows.iter().enumerate() {
                        // SAFETY: k is within the rows and 4 k + lane within the tile.
                        unsafe { tile.add(4 * k + lane).write_unaligned(x.add(k).read_unaligned()) };
                    }
                }
                row += 4;
            } else {
                for k in 0..l.k {
                    // SAFETY: as above, for one row; rows beyond the last are zeros.
                    unsafe {
                        let x = if row < l.rows { source(row).add(k).read_unaligned() } else { 0.0 };
                        tile.add(4 * k + row % 4).write_unaligned(x);
                    }
                }
                row += 1;
            }
        }
    }
}

/// Interleaves four rows, four elements of each at a time, and answers how many it did.
///
/// # Safety
/// Each row is readable for `k` f32, `out` writable for `4 k`.
#[inline(always)]
unsafe fn interleave_whole(rows: &[*const f32; 4], k: usize, out: *mut f32) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        for at in (0..k / 4 * 4).step_by(4) {
            // SAFETY: SSE2 is part of the architecture; the caller's.
            unsafe {
                let load = |i: usize| _mm_castps_si128(_mm_loadu_ps(rows[i].add(at)));
                let (a, b, c, d) = (load(0), load(1), load(2), load(3));
                let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                let out = out.add(4 * at).cast::<__m128i>();
                _mm_storeu_si128(out, _mm_unpacklo_epi64(ab, cd));
                _mm_storeu_si128(out.add(1), _mm_unpackhi_epi64(ab, cd));
                _mm_storeu_si128(out.add(2), _mm_unpacklo_epi64(ab_high, cd_high));
                _mm_storeu_si128(out.add(3), _mm_unpackhi_epi64(ab_high, cd_high));
            }
        }
        k / 4 * 4
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (rows, k, out);
        0
    }
}
