//! How the inputs of a matrix go together.

use crate::gptq::FeedbackError;
use crate::widest::widest;

/// Rows of a matrix that its outputs' error is measured on at most; of more, as many are taken at equal distances.
const MEASURED: usize = 512;

/// The sums of the products of a matrix's inputs with each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Products {
    columns: usize,
    values: Vec<f32>,
}

impl Products {
    /// From sums over inputs, `[columns, columns]`.
    ///
    /// # Errors
    /// When the length is wrong or a sum is no finite number.
    pub fn new(values: Vec<f32>, columns: usize) -> Result<Products, FeedbackError> {
        if values.len() != columns.saturating_mul(columns) {
            return Err(FeedbackError::Length { columns, found: values.len() });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(FeedbackError::NotFinite { column: at / columns, value: f64::from(values[at]) });
        }
        Ok(Products { columns, values })
    }

    /// The number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The sums, `[columns, columns]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The sums of the squares of each column.
    #[must_use]
    pub fn squares(&self) -> Vec<f32> {
        self.values.iter().step_by(self.columns + 1).copied().collect()
    }

    /// The root of the squared error of a matrix's outputs relative to that of their squares, over the inputs that were summed; of at most 512
    /// rows, at equal distances. 0 where there are no outputs.
    ///
    /// `changed` is as long as `original`, both are whole rows.
    #[must_use]
    pub fn output_error(&self, original: &[f32], changed: &[f32]) -> f64 {
        let k = self.columns;
        if k == 0 {
            return 0.0;
        }
        let step = (original.len() / k).div_ceil(MEASURED).max(1);
        let rows = original.chunks_exact(k).zip(changed.chunks_exact(k)).step_by(step);
        let (mut noise, mut power) = (0.0, 0.0);
        let mut scratch = vec![0.0; k];
        for (original, changed) in rows {
            let difference: Vec<f32> = original.iter().zip(changed).map(|(w, v)| w - v).collect();
            power += widest(
                #[inline(always)]
                || self.form(original, &mut scratch),
            );
            noise += widest(
                #[inline(always)]
                || self.form(&difference, &mut scratch),
            );
        }
        if power > 0.0 { (noise.max(0.0) / power).sqrt() } else { 0.0 }
    }

    /// `row · products · rowᵀ`.
    #[inline(always)]
    fn form(&self, row: &[f32], scratch: &mut [f32]) -> f64 {
        scratch.fill(0.0);
        for (x, products) in row.iter().zip(self.values.chunks_exact(self.columns)) {
            if *x != 0.0 {
                scratch.iter_mut().zip(products).for_each(|(sum, p)| *sum += x * p);
            }
        }
        scratch.iter().zip(row).map(|(sum, x)| f64::from(*sum) * f64::from(*x)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_the_outputs() {
        // Inputs (1, 2) and (3, -1).
        let products = Products::new(vec![10.0, -1.0, -1.0, 5.0], 2).unwrap();
        assert_eq!(products.squares(), [10.0, 5.0]);
        // Outputs of (1, 1): 3 and 2; of (1, 0): 1 and 3.
        let error = products.output_error(&[1.0, 1.0], &[1.0, 0.0]);
        assert!((error - (5.0f64 / 13.0).sqrt()).abs() < 1e-6, "{error}");
        assert_eq!(products.output_error(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
    }

    #[test]
    fn what_is_no_sum_of_products_is_refused() {
        assert!(Products::new(vec![1.0; 3], 2).is_err());
        assert!(Products::new(vec![1.0, f32::NAN, 1.0, 1.0], 2).is_err());
    }
}
