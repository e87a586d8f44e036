//! TQ1_0 and TQ2_0: −d, 0 or d.

use core_tensor::block::{BlockTq1_0, BlockTq2_0, F16Le};

use super::Encoder;
use super::k_quants::two_bits;
use super::lanes::through_f16;

/// Magnitudes are sorted into this many classes.
const CLASSES: usize = 64;

/// The scale of least squared error, as it is in the file.
///
/// With the weights above a threshold at ±d, the best d is their (weighted) mean magnitude, and it explains `(Σ w |x|)² / Σ w`
/// over them: thresholds are tried from the largest magnitude down. Then threshold (d/2) and d find each other.
fn scale(x: &[f32; 256], w: Option<&[f32; 256]>) -> f32 {
    let weight = |j: usize| w.map_or(1.0, |w| w[j]);
    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if largest < 1e-30 {
        return 0.0;
    }
    let (mut sums, mut counts) = ([0.0f32; CLASSES], [0.0f32; CLASSES]);
    let factor = (CLASSES - 1) as f32 / largest;
    for (j, x) in x.iter().enumerate() {
        let class = ((x.abs() * factor) as usize).min(CLASSES - 1);
        sums[class] += weight(j) * x.abs();
        counts[class] += weight(j);
    }
    let (mut sum, mut count, mut d, mut most) = (0.0, 0.0, 0.0, 0.0);
    for (more, weights) in sums.iter().zip(&counts).rev() {
        sum += more;
        count += weights;
        if count > 0.0 && sum * sum / count > most {
            most = sum * sum / count;
            d = sum / count;
        }
    }
    for _ in 0..3 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (j, x) in x.iter().enumerate() {
            let w = if x.abs() > d * 0.5 { weight(j) } else { 0.0 };
            sum += w * x.abs();
            count += w;
        }
        if count > 0.0 {
            d = sum / count;
        }
    }
    through_f16(d)
}

/// The scale, and the codes 0, 1, 2.
fn encode(x: &[f32; 256], w: Option<&[f32; 256]>) -> (F16Le, [u8; 256]) {
    let d = scale(x, w);
    let half = d * 0.5;
    let q = x.map(|x| 1 + u8::from(x > half) - u8::from(x < -half));
    (F16Le::from_f32(d), q)
}

/// The one block, and its importances.
fn block<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32]) -> (F16Le, [u8; 256]) {
    let mut x = [0.0; 256];
    x.copy_from_slice(values);
    if !W {
        return encode(&x, None);
    }
    let mut w = [0.0; 256];
    for (j, w) in w.chunks_exact_mut(32).enumerate() {
        w.copy_from_slice(&importance(32 * j)[..32]);
    }
    encode(&x, Some(&w))
}

/// Codes as digits of base three, five and four to a byte.
pub(crate) fn threes(q: &[u8; 256]) -> ([u8; 48], [u8; 4]) {
    let byte = |first: usize, stride: usize, digits: usize| {
        let number =
            (0..5).fold(0u32, |number, n| number * 3 + if n < digits { u32::from(q[first + n * stride]) } else { 0 });
        // The fraction number/243 in 256ths, rounded up.
        ((number * 256).div_ceil(243)) as u8
    };
    let qs = std::array::from_fn(|m| if m < 32 { byte(m, 32, 5) } else { byte(160 + m - 32, 16, 5) });
    (qs, std::array::from_fn(|m| byte(240 + m, 4, 4)))
}

impl Encoder for BlockTq1_0 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let (d, q) = block::<W>(values, importance);
        let (qs, qh) = threes(&q);
        out[0] = BlockTq1_0 { qs, qh, d };
    }
}

impl Encoder for BlockTq2_0 {
    #[inline(always)]
    fn encode<'a, const W: bool>(values: &[f32], importance: impl Fn(usize) -> &'a [f32], out: &mut [Self]) {
        let (d, q) = block::<W>(values, importance);
        out[0] = BlockTq2_0 { qs: two_bits(&q), d };
    }
}
