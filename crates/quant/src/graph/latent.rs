//! Integers in training: fake quantization with gradients that pass straight through.

use half::f16;

use super::bytes::I8Rows;
use super::integers::{I4Groups, Matrix};
use crate::reconstruct::{Adam, Rates};

/// A matrix of integers while it is trained: codes that lie between integers, and factors of the scales.
///
/// What [`decode`](LatentIntegers::decode) gives is what the integers stand for ([`into_bytes`](LatentIntegers::into_bytes),
/// [`into_groups`](LatentIntegers::into_groups)). Gradients by it go through the rounding as if it were not there (Bengio, Léonard and Courville 2013), but not
/// through its limits; scales are learned as in LSQ (Esser et al. 2020), by their logarithms.
#[derive(Clone, Debug)]
pub struct LatentIntegers {
    columns: usize,
    /// Neighbours in a row that share a scale.
    group: usize,
    least: f32,
    most: f32,
    /// Whether the file has scales in f16.
    half: bool,
    /// `[rows, columns]`, in units of the scale.
    places: Vec<f32>,
    /// As they were, one for each group.
    scales: Vec<f32>,
    /// Logarithms of what they are multiplied with.
    factors: Vec<f32>,
    place_adam: Adam,
    scale_adam: Adam,
}

impl LatentIntegers {
    /// From bytes with a scale for each row around 0; none where there are zero points, or one scale for all rows.
    #[must_use]
    pub fn from_bytes(matrix: &Matrix, rows: &I8Rows) -> Option<LatentIntegers> {
        let fits = rows.zeros.is_empty() && rows.scales.len() == matrix.rows && matrix.columns > 0;
        fits.then(|| LatentIntegers::new(matrix, matrix.columns, [-127.0, 127.0], false, rows.scales.clone()))
    }

    /// From 4 bits in groups.
    #[must_use]
    pub fn from_groups(matrix: &Matrix, groups: &I4Groups) -> Option<LatentIntegers> {
        let fits = groups.group > 0 && groups.scales.len() == matrix.rows * matrix.columns.div_ceil(groups.group);
        fits.then(|| LatentIntegers::new(matrix, groups.group, [-8.0, 7.0], true, groups.scales.clone()))
    }

    fn new(matrix: &Matrix, group: usize, [least, most]: [f32; 2], half: bool, scales: Vec<f32>) -> LatentIntegers {
        let per_row = matrix.columns.div_ceil(group);
        let place = |(i, x): (usize, &f32)| {
            let scale = scales[i / matrix.columns * per_row + i % matrix.columns / group];
            // Half a code further than the last: as far as rounding lets a gradient matter.
            if scale == 0.0 { 0.0 } else { (x / scale).clamp(least - 0.5, most + 0.5) }
        };
        let places: Vec<f32> = matrix.values.iter().enumerate().map(place).collect();
        let (place_adam, scale_adam) = (Adam::new(places.len()), Adam::new(scales.len()));
        let factors = vec![0.0; scales.len()];
        LatentIntegers {
            columns: matrix.columns,
            group,
            least,
            most,
            half,
            places,
            scales,
            factors,
            place_adam,
            scale_adam,
        }
    }

    /// How many weights there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The scales as the file will hold them.
    fn scales(&self) -> Vec<f32> {
        let scale = |(scale, factor): (&f32, &f32)| {
            let scale = scale * factor.exp();
            if self.half { f16::from_f32(scale.clamp(-65504.0, 65504.0)).to_f32() } else { scale }
        };
        self.scales.iter().zip(&self.factors).map(scale).collect()
    }

    fn code(&self, place: f32) -> f32 {
        // The nearest integer, ties to even: places are far below 2^22, from where on floats have no fractions.
        const INTEGERS: f32 = 12_582_912.0;
        ((place + INTEGERS) - INTEGERS).clamp(self.least, self.most)
    }

    /// What the integers stand for, `[rows, columns]`; as many places as there are weights.
    pub fn decode(&self, out: &mut [f32]) {
        let scales = self.scales();
        let per_row = self.columns.div_ceil(self.group);
        let rows = out.chunks_mut(self.columns).zip(self.places.chunks(self.columns)).zip(scales.chunks(per_row));
        for ((out, places), scales) in rows {
            let groups = out.chunks_mut(self.group).zip(places.chunks(self.group)).zip(scales);
            for ((out, places), scale) in groups {
                out.iter_mut().zip(places).for_each(|(out, place)| *out = self.code(*place) * scale);
            }
        }
    }

    /// A step against the gradient by what `decode` gave.
    pub fn step(&mut self, gradient: &[f32], rates: Rates) {
        let scales = self.scales();
        let per_row = self.columns.div_ceil(self.group);
        let mut by_places = vec![0.0; self.places.len()];
        let mut by_factors = vec![0.0; self.factors.len()];
        let rows = self.places.chunks(self.columns).zip(gradient.chunks(self.columns));
        let rows = rows.zip(by_places.chunks_mut(self.columns)).zip(by_factors.chunks_mut(per_row));
        for (((places, gradient), by_places), (by_factors, scales)) in
            rows.zip(scales.chunks(per_row)).map(|((all, by_factors), scales)| (all, (by_factors, scales)))
        {
            let groups = places.chunks(self.group).zip(gradient.chunks(self.group));
            let groups = groups.zip(by_places.chunks_mut(self.group)).zip(by_factors.iter_mut().zip(scales));
            for (((places, gradient), by_places), (by_factor, scale)) in groups {
                let mut sum = 0.0;
                for ((place, gradient), by_place) in places.iter().zip(gradient).zip(by_places) {
                    sum += gradient * self.code(*place);
                    *by_place = gradient * scale;
                }
                *by_factor = sum * scale;
            }
        }
        self.place_adam.step(&mut self.places, &by_places, rates.codes);
        self.scale_adam.step(&mut self.factors, &by_factors, rates.scales);
        let (least, most) = (self.least - 0.5, self.most + 0.5);
        self.places.iter_mut().for_each(|place| *place = place.clamp(least, most));
    }

    fn codes(&self) -> Vec<i8> {
        self.places.iter().map(|place| self.code(*place) as i8).collect()
    }

    /// The result of what began as bytes.
    #[must_use]
    pub fn into_bytes(self) -> I8Rows {
        I8Rows { codes: self.codes(), scales: self.scales(), zeros: Vec::new() }
    }

    /// The result of what began as groups.
    #[must_use]
    pub fn into_groups(self) -> I4Groups {
        I4Groups { codes: self.codes(), scales: self.scales(), group: self.group, columns: self.columns }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{ByteRounding, encode_i8};
    use super::super::integers::encode_i4;
    use super::*;

    fn matrix() -> Matrix {
        let values = (0..3 * 64).map(|i| (i as f32 * 0.731).sin() * (1.0 + (i / 64) as f32)).collect();
        Matrix { rows: 3, columns: 64, values }
    }

    #[test]
    fn nothing_trained_is_what_was_rounded() {
        let matrix = matrix();
        let how = ByteRounding { per_tensor: false, asymmetric: false, clip: false, threads: 1 };
        let rows = encode_i8(&matrix, &how, None, None);
        assert_eq!(LatentIntegers::from_bytes(&matrix, &rows).unwrap().into_bytes(), rows);
        let groups = encode_i4(&matrix, 32, None, 1);
        assert_eq!(LatentIntegers::from_groups(&matrix, &groups).unwrap().into_groups(), groups);
        let zeros = encode_i8(&matrix, &ByteRounding { asymmetric: true, ..how }, None, None);
        assert!(LatentIntegers::from_bytes(&matrix, &zeros).is_none());
    }

    #[test]
    fn products_come_nearer_to_what_they_were() {
        let matrix = matrix();
        let groups = encode_i4(&matrix, 32, None, 1);
        let mut latent = LatentIntegers::from_groups(&matrix, &groups).unwrap();
        let inputs: Vec<Vec<f32>> =
            (0..6).map(|n| (0..64).map(|i| ((n * 7 + i) as f32 * 0.19).cos()).collect()).collect();
        let mut decoded = vec![0.0; latent.len()];
        let mut errors = Vec::new();
        for step in 0..60 {
            latent.decode(&mut decoded);
            let mut gradient = vec![0.0; decoded.len()];
            let mut error = 0.0;
            for x in &inputs {
                for row in 0..3 {
                    let span = row * 64..(row + 1) * 64;
                    let weights = decoded[span.clone()].iter().zip(&matrix.values[span.clone()]);
                    let off: f32 = weights.zip(x).map(|((new, old), x)| (new - old) * x).sum();
                    error += off * off;
                    gradient[span].iter_mut().zip(x).for_each(|(g, x)| *g += 2.0 * off * x);
                }
            }
            errors.push(error);
            let left = 1.0 - step as f32 / 60.0;
            latent.step(&gradient, Rates { codes: 0.05 * left, scales: 1e-3 * left });
        }
        let best = errors.iter().copied().fold(f32::INFINITY, f32::min);
        assert!(best < 0.2 * errors[0], "{} of {}", best, errors[0]);
        latent.decode(&mut decoded);
        assert_eq!(latent.into_groups().decode(), decoded);
    }
}
