//! The register tile of convolutions: output channels × output pixels.

use core_tensor::op::Unary;

use super::image::BLOCK;
use crate::math;
use crate::simd::Simd;

/// Most pixels of a tile on any level.
pub(crate) const MAX_PIXELS: usize = 14;

/// Pixels side by side.
pub(crate) const IN_A_ROW: [usize; MAX_PIXELS] = {
    let mut at = [0; MAX_PIXELS];
    let mut i = 0;
    while i < MAX_PIXELS {
        at[i] = i * BLOCK;
        i += 1;
    }
    at
};

/// A function that every result passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    None,
    Relu,
    /// Between two bounds; a NaN stays one.
    Clip(f32, f32),
    Other(Unary),
}

impl Activation {
    pub(crate) fn of(op: Unary) -> Activation {
        match op {
            Unary::Relu => Activation::Relu,
            Unary::Clip { min, max } => Activation::Clip(min.get(), max.get()),
            other => Activation::Other(other),
        }
    }

    /// Whether it takes an instruction or two.
    pub(crate) fn is_simple(self) -> bool {
        !matches!(self, Activation::Other(_))
    }

    #[inline(always)]
    pub(crate) fn simple<S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Activation::Relu => s.f_max(x, s.f_splat(0.0)),
            Activation::Clip(min, max) => s.f_min(s.f_splat(max), s.f_max(s.f_splat(min), x)),
            Activation::None | Activation::Other(_) => x,
        }
    }

    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        match self {
            Activation::Other(op) => math::unary(s, op, x),
            simple => simple.simple(s, x),
        }
    }
}

impl std::fmt::Display for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Activation::None => Ok(()),
            Activation::Relu => write!(f, " + Relu"),
            Activation::Clip(min, max) => write!(f, " + Clip {min}..{max}"),
            Activation::Other(op) => write!(f, " + {op:?}"),
        }
    }
}

/// What happens to sums on their way out: `post(pre(sum + bias) + residual)`.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
    pub(crate) pre: Activation,
    /// An image of the result's extents, or null.
    pub(crate) residual: *const f32,
    pub(crate) post: Activation,
}

/// The pixels of the next tile, as its level likes them, when `left` are left: no more than these.
pub(crate) fn tile_pixels(lanes: usize, left: usize) -> usize {
    let sizes: &[usize] = match (lanes, left) {
        // Eight and seven or eight are quicker than fourteen and one or two.
        (16, 15 | 16) => &[8],
        (16, _) => &[14, 8, 7, 4, 2, 1],
        _ => &[6, 4, 2, 1],
    };
    sizes.iter().copied().find(|n| *n <= left).unwrap_or(1)
}

/// One tile: the sums of a slice of products for one or two blocks of output channels.
pub(crate) struct Tile<'a> {
    /// Weights of the first block, a row of 16 for each product.
    pub(crate) weights: *const f32,
    /// Elements to the second block's weights.
    pub(crate) apart: usize,
    /// Blocks of output channels: 1 or 2.
    pub(crate) blocks: usize,
    /// Activations.
    pub(crate) x: *const f32,
    /// Segments of the slice, and elements of x from one to the next.
    pub(crate) segments: usize,
    pub(crate) x_apart: usize,
    /// Where in its tap the first segment stands, of how many; the last segment of a tap has `last` products, the others 16.
    pub(crate) phase: usize,
    pub(crate) per_tap: usize,
    pub(crate) last: usize,
    /// The bias of the first block, or null; `lanes` of both blocks count.
    pub(crate) bias: *const f32,
    pub(crate) lanes: usize,
    /// Where the blocks of the result begin, and elements from one to the next.
    pub(crate) y: *mut f32,
    pub(crate) y_apart: usize,
    /// Where each pixel of the tile lies in y.
    pub(crate) at: &'a [usize; MAX_PIXELS],
    /// Pixels.
    pub(crate) pixels: usize,
    /// Whether sums go on from y.
    pub(crate) accumulate: bool,
    /// What follows the last slice. The residual is that of the first block.
    pub(crate) epilogue: Option<Epilogue>,
}

impl Tile<'_> {
    /// # Safety
    /// All pointers and extents are as the fields say. `ROWS`: x lies as `[product][pixel]`, in one segment of `last` products; else as
    /// `[segment][pixel][16]`, the pixels of a segment side by side.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd, const ROWS: bool>(&self, s: S) {
        let outputs = self.blocks * BLOCK;
        let mut at = 0;
        while at < outputs {
            // SAFETY: `at` and the vectors after it are outputs of the tile.
            unsafe {
                if S::LANES == 16 {
                    if self.blocks == 2 {
                        self.pick::<S, ROWS, 2>(s, at);
                        at += 32;
                    } else {
                        self.pick::<S, ROWS, 1>(s, at);
                        at += 16;
                    }
                } else {
                    match self.pixels {
                        6 => self.sums::<S, ROWS, 2, 6>(s, at),
                        4 => self.sums::<S, ROWS, 2, 4>(s, at),
                        2 => self.sums::<S, ROWS, 2, 2>(s, at),
                        _ => self.sums::<S, ROWS, 2, 1>(s, at),
                    }
                    at += 2 * S::LANES;
                }
            }
        }
        if let Some(epilogue) = self.epilogue
            && !(epilogue.pre == Activation::None && epilogue.post.is_simple())
        {
            // SAFETY: the tile's results are those of y.
            unsafe { self.finish(s, &epilogue) };
        }
    }

    #[inline(always)]
    unsafe fn pick<S: Simd, const ROWS: bool, const VR: usize>(&self, s: S, at: usize) {
        // SAFETY: as `run`.
        unsafe {
            match self.pixels {
                14 => self.sums::<S, ROWS, VR, 14>(s, at),
                8 => self.sums::<S, ROWS, VR, 8>(s, at),
                7 => self.sums::<S, ROWS, VR, 7>(s, at),
                4 => self.sums::<S, ROWS, VR, 4>(s, at),
                2 => self.sums::<S, ROWS, VR, 2>(s, at),
                _ => self.sums::<S, ROWS, VR, 1>(s, at),
            }
        }
    }

    /// `VR` vectors of outputs from `at` on × `NC` pixels.
    #[inline(always)]
    unsafe fn sums<S: Simd, const ROWS: bool, const VR: usize, const NC: usize>(&self, s: S, at: usize) {
        let output = |v: usize| at + v * S::LANES;
        let y: [*mut f32; VR] =
            std::array::from_fn(|v| self.y.wrapping_add(output(v) / BLOCK * self.y_apart + output(v) % BLOCK));
        let mut w: [*const f32; VR] =
            std::array::from_fn(|v| self.weights.wrapping_add(output(v) / BLOCK * self.apart + output(v) % BLOCK));
        let mut acc = [[s.f_splat(0.0); NC]; VR];
        // SAFETY: y has the pixels, the bias `lanes` elements.
        unsafe {
            if self.accumulate {
                for v in 0..VR {
                    for c in 0..NC {
                        acc[v][c] = s.f_load(y[v].add(self.at[c]));
                    }
                }
            } else if !self.bias.is_null() {
                for v in 0..VR {
                    let n = self.lanes.saturating_sub(output(v)).min(S::LANES);
                    let bias = s.f_load_first(self.bias.wrapping_add(output(v)), n);
                    for c in 0..NC {
                        acc[v][c] = bias;
                    }
                }
            }
        }
        let (pixel_step, product_step) = if ROWS { (1, NC) } else { (BLOCK, 1) };
        let mut x = self.x;
        let mut phase = self.phase;
        for _ in 0..self.segments {
            phase += 1;
            let mut products = BLOCK;
            if ROWS || phase == self.per_tap {
                products = self.last;
                phase = 0;
            }
            let mut from = x;
            for _ in 0..products {
                // SAFETY: the slice has a row of weights and NC activations for each product.
                unsafe {
                    let weights: [S::F; VR] = std::array::from_fn(|v| s.f_load(w[v]));
                    for c in 0..NC {
                        let x = s.f_broadcast(from.add(c * pixel_step));
                        for v in 0..VR {
                            acc[v][c] = s.f_fma(weights[v], x, acc[v][c]);
                        }
                    }
                    for w in &mut w {
                        *w = w.add(BLOCK);
                    }
                    from = from.add(product_step);
                }
            }
            x = x.wrapping_add(self.x_apart);
        }
        let simple = self.epilogue.filter(|e| e.pre == Activation::None && e.post.is_simple());
        if let Some(epilogue) = simple {
            if !epilogue.residual.is_null() {
                for v in 0..VR {
                    let residual = epilogue.residual.wrapping_add(output(v) / BLOCK * self.y_apart + output(v) % BLOCK);
                    for c in 0..NC {
                        // SAFETY: the residual has y's extents.
                        acc[v][c] = unsafe { s.f_add(acc[v][c], s.f_load(residual.add(self.at[c]))) };
                    }
                }
            }
            // By indices, as everywhere here: what is iterated over by reference does not stay in registers.
            for v in 0..VR {
                for c in 0..NC {
                    acc[v][c] = epilogue.post.simple(s, acc[v][c]);
                }
            }
        }
        for v in 0..VR {
            for c in 0..NC {
                // SAFETY: y has the pixels.
                unsafe { s.f_store(y[v].add(self.at[c]), acc[v][c]) };
            }
        }
    }

    /// The epilogue on results that were just stored.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, epilogue: &Epilogue) {
        for block in 0..self.blocks {
            for c in 0..self.pixels {
                let at = block * self.y_apart + self.at[c];
                for lane in (0..BLOCK).step_by(S::LANES) {
                    // SAFETY: y has the pixels, and the residual y's extents.
                    unsafe {
                        let y = self.y.add(at + lane);
                        let mut value = epilogue.pre.apply(s, s.f_load(y));
                        if !epilogue.residual.is_null() {
                            value = s.f_add(value, s.f_load(epilogue.residual.add(at + lane)));
                        }
                        s.f_store(y, epilogue.post.apply(s, value));
                    }
                }
            }
        }
    }
}
