//! Weights that become zeros, the others staying as they are.

use super::cut::Cut;
use super::{Pattern, PruneError, check, reconstruct, sparse_gpt};
use crate::gptq::Feedback;

/// How weights that go are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The smallest of a matrix: [`magnitude`].
    Magnitude,
    /// Of each row those whose magnitude times the norm of their inputs is least: [`wanda`].
    Wanda,
    /// Those that cost least once the others have made up for them: [`sparse_gpt`].
    SparseGpt,
}

impl Method {
    /// Each with its name.
    pub const ALL: [(&'static str, Method); 3] =
        [("magnitude", Method::Magnitude), ("wanda", Method::Wanda), ("sparsegpt", Method::SparseGpt)];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Method::Magnitude => "magnitude",
            Method::Wanda => "wanda",
            Method::SparseGpt => "sparsegpt",
        }
    }

    /// Whether it takes what is known of the inputs.
    #[must_use]
    pub fn needs_inputs(self) -> bool {
        self != Method::Magnitude
    }
}

/// How weights become zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightPruning {
    /// Where, and how many.
    pub pattern: Pattern,
    /// Which.
    pub method: Method,
    /// Whether the others make up for them ([`reconstruct()`]); those of [`Method::SparseGpt`] do in any case.
    pub reconstruct: bool,
}

/// What a method asks for and did not get.
const SQUARES: &str = "mean squares of inputs";

impl WeightPruning {
    /// Whether it takes how inputs go together.
    #[must_use]
    pub fn needs_feedback(&self) -> bool {
        self.reconstruct || self.method == Method::SparseGpt
    }

    /// Makes weights of a matrix zeros.
    ///
    /// # Errors
    /// As the method's function, and when what it asks for is not there.
    pub fn apply(
        &self,
        weights: &mut [f32],
        columns: usize,
        mean_squares: Option<&[f32]>,
        feedback: Option<&Feedback>,
        threads: usize,
    ) -> Result<(), PruneError> {
        let missing = |what| PruneError::Length { what, columns, found: 0 };
        let feedback = || feedback.ok_or(missing("products of inputs"));
        if self.method == Method::SparseGpt {
            return sparse_gpt(weights, feedback()?, self.pattern, threads);
        }
        let original = self.reconstruct.then(|| weights.to_vec());
        match self.method {
            Method::Magnitude => magnitude(weights, columns, self.pattern)?,
            _ => wanda(weights, columns, mean_squares.ok_or(missing(SQUARES))?, self.pattern)?,
        }
        let Some(original) = original else { return Ok(()) };
        let mask = weights.to_vec();
        weights.copy_from_slice(&original);
        reconstruct(weights, feedback()?, &mask, threads)
    }
}

/// Makes the smallest weights zeros: of the whole matrix, or of each group of a row.
///
/// # Errors
/// When the weights are no whole rows of finite numbers, or rows no whole groups.
pub fn magnitude(weights: &mut [f32], columns: usize, pattern: Pattern) -> Result<(), PruneError> {
    check(weights, columns, Some(pattern))?;
    match pattern {
        Pattern::Share(share) => {
            let count = counted(weights.len(), share);
            let mut cut = Cut::new(|| weights.iter().map(|w| w.abs()), count);
            for w in weights.iter_mut() {
                if cut.takes(w.abs()) {
                    *w = 0.0;
                }
            }
        }
        Pattern::Groups { .. } => lowest_of_rows(weights, columns, pattern, |w, _| w.abs()),
    }
    Ok(())
}

/// Makes those weights zeros whose magnitude times the root of the mean square of what meets their column is least, in each row.
///
/// # Errors
/// As [`magnitude`], and when there is not one mean square for each column.
pub fn wanda(weights: &mut [f32], columns: usize, mean_squares: &[f32], pattern: Pattern) -> Result<(), PruneError> {
    check(weights, columns, Some(pattern))?;
    if mean_squares.len() != columns || mean_squares.iter().any(|square| !square.is_finite()) {
        return Err(PruneError::Length { what: "finite mean squares", columns, found: mean_squares.len() });
    }
    let norms: Vec<f32> = mean_squares.iter().map(|square| square.max(0.0).sqrt()).collect();
    lowest_of_rows(weights, columns, pattern, |w, column| w.abs() * norms[column]);
    Ok(())
}

/// So many of `count`.
pub(super) fn counted(count: usize, share: f64) -> usize {
    ((count as f64 * share).round() as usize).min(count)
}

/// Makes the lowest of each row, or of each of its groups, zeros.
fn lowest_of_rows(weights: &mut [f32], columns: usize, pattern: Pattern, score: impl Fn(f32, usize) -> f32) {
    let (group, gone) = match pattern {
        Pattern::Share(share) => (columns, counted(columns, share)),
        Pattern::Groups { keep, of } => (of, of - keep.min(of)),
    };
    let (mut scores, mut scratch) = (Vec::new(), Vec::new());
    for row in weights.chunks_exact_mut(columns) {
        for (number, part) in row.chunks_mut(group).enumerate() {
            scores.clear();
            scores.extend(part.iter().enumerate().map(|(i, w)| score(*w, number * group + i)));
            let mut cut = Cut::of_few(&scores, gone, &mut scratch);
            for (w, score) in part.iter_mut().zip(&scores) {
                if cut.takes(*score) {
                    *w = 0.0;
                }
            }
        }
    }
}

/// How many weights are zeros.
#[must_use]
pub fn zeros(weights: &[f32]) -> usize {
    weights.iter().filter(|w| **w == 0.0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_compared_in_the_whole_matrix() {
        let mut weights = [1.0, -2.0, 3.0, -4.0, 50.0, 60.0, 70.0, 80.0];
        magnitude(&mut weights, 4, Pattern::Share(0.5)).unwrap();
        assert_eq!(weights, [0.0, 0.0, 0.0, 0.0, 50.0, 60.0, 70.0, 80.0]);
    }

    #[test]
    fn wanda_compares_within_a_row_by_what_meets_the_columns() {
        let mut weights = [1.0, -2.0, 3.0, -4.0, 50.0, 60.0, 70.0, 80.0];
        // Norms 10, 1, 1, 1.
        wanda(&mut weights, 4, &[100.0, 1.0, 1.0, 1.0], Pattern::Share(0.5)).unwrap();
        assert_eq!(weights, [1.0, 0.0, 0.0, -4.0, 50.0, 0.0, 0.0, 80.0]);
        let mut weights = [1.0, -2.0, 3.0, -4.0];
        wanda(&mut weights, 4, &[100.0, 1.0, 1.0, 1.0], Pattern::Groups { keep: 1, of: 2 }).unwrap();
        assert_eq!(weights, [1.0, 0.0, 0.0, -4.0]);
    }

    #[test]
    fn exactly_the_share_becomes_zeros_even_where_weights_are_equal() {
        let mut weights = vec![0.5; 1000];
        magnitude(&mut weights, 10, Pattern::Share(0.3)).unwrap();
        assert_eq!(zeros(&weights), 300);
        let mut weights = vec![0.5; 1000];
        wanda(&mut weights, 10, &[1.0; 10], Pattern::Share(0.3)).unwrap();
        assert!(weights.chunks(10).all(|row| zeros(row) == 3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wrong =
            |weights: &mut [f32], columns, pattern| magnitude(weights, columns, pattern).unwrap_err().to_string();
        let groups = Pattern::Groups { keep: 2, of: 4 };
        assert!(wrong(&mut [1.0; 6], 6, groups).contains("no whole groups of 4"));
        assert!(wrong(&mut [1.0; 7], 4, groups).contains("7 weights"));
        assert!(wrong(&mut [1.0; 7], 0, groups).contains("0 columns"));
        assert!(wrong(&mut [1.0, f32::NAN], 2, Pattern::Share(0.5)).contains("weight 1 of row 0 is NaN"));
        let error = wanda(&mut [1.0; 4], 4, &[1.0; 3], groups).unwrap_err();
        assert!(error.to_string().contains("3 finite mean squares"), "{error}");
    }
}
