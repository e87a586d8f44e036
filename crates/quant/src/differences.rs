//! What weights lost.

use crate::widest::widest;

/// Sums of the squared differences between weights and what became of them, and of the weights' squares. The same on every machine.
#[must_use]
pub fn differences(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    let (mut noise, mut power) = widest(
        #[inline(always)]
        || in_vectors(values, decoded),
    );
    if !(noise.is_finite() && power.is_finite()) {
        // Squares of large numbers are beyond f32.
        let square = |x: f64| x * x;
        noise = values.iter().zip(decoded).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
        power = values.iter().map(|x| square(f64::from(*x))).sum();
    }
    (noise, power)
}

/// Eight sums side by side, as f32 for a while.
#[inline(always)]
fn in_vectors(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    let (mut noise, mut power) = (0.0f64, 0.0f64);
    for (values, decoded) in values.chunks(1024).zip(decoded.chunks(1024)) {
        let (mut d, mut p) = ([0.0f32; 8], [0.0f32; 8]);
        let ((values, more), (decoded, more_decoded)) = (values.as_chunks::<8>(), decoded.as_chunks::<8>());
        for (values, decoded) in values.iter().zip(decoded) {
            for i in 0..8 {
                d[i] += (values[i] - decoded[i]) * (values[i] - decoded[i]);
                p[i] += values[i] * values[i];
            }
        }
        for (i, (x, y)) in more.iter().zip(more_decoded).enumerate() {
            d[i] += (x - y) * (x - y);
            p[i] += x * x;
        }
        noise += d.iter().map(|d| f64::from(*d)).sum::<f64>();
        power += p.iter().map(|p| f64::from(*p)).sum::<f64>();
    }
    (noise, power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    #[test]
    fn sums_are_those_of_a_plain_loop_of_any_length_and_size() {
        let mut next = random(2);
        for (len, size) in [(0, 1.0), (1, 1.0), (7, 1.0), (5003, 1.0), (100, 1e30)] {
            let values: Vec<f32> = (0..len).map(|_| next() * size).collect();
            let decoded: Vec<f32> = values.iter().map(|x| x + next() * 0.1 * size).collect();
            let (noise, power) = differences(&values, &decoded);
            let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
            let expected: f64 = values.iter().zip(&decoded).map(|(x, y)| square(*x, *y)).sum();
            assert!((noise - expected).abs() <= 1e-5 * expected, "{len}: {noise} and {expected}");
            let expected: f64 = values.iter().map(|x| square(*x, 0.0)).sum();
            assert!((power - expected).abs() <= 1e-5 * expected, "{len}: {power} and {expected}");
        }
    }
}
