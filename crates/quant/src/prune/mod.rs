//! Pruning: weights that are taken out of matrices, and what is left made to stand in for them.
//!
//! | what is taken | which | what is left |
//! | --- | --- | --- |
//! | weights, as zeros ([`Pattern`]: a share of them, or all but N of each M along a row) | [`magnitude`]; [`wanda`]: the magnitude times the norm of the inputs, within a row (Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language Models, 2023) | as it is, or [`reconstruct()`]ed |
//! | the same | [`sparse_gpt`]: what costs least once the other weights make up for it (Frantar, Alistarh: SparseGPT, 2023) | changed column by column through the inverse of the inputs' products |
//! | inputs: columns of a matrix and the rows that make them ([`unit_scores`], [`keep_best`]) | neurons, attention heads, channels, by the norms of their columns times those of the inputs | [`least_squares`] over what remains |
//!
//! Nothing is run here: the caller brings mean squares of the inputs, or the sums of their products ([`Products`]).
//!
//! ```
//! use polaris_quant::prune::{Pattern, magnitude};
//!
//! let mut weights = [0.1_f32, -3.0, 0.2, 4.0, 5.0, -0.3, 6.0, 0.0];
//! let pattern: Pattern = "2:4".parse()?;
//! magnitude(&mut weights, 4, pattern)?;
//! assert_eq!(weights, [0.0, -3.0, 0.0, 4.0, 5.0, 0.0, 6.0, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cut;
pub mod graph;
mod pattern;
mod products;
mod reconstruct;
mod structured;
mod weights;

use crate::gptq::FeedbackError;

pub use pattern::{Pattern, PatternError, share_at};
pub use products::Products;
pub use reconstruct::{reconstruct, sparse_gpt};
pub use structured::{keep_best, least_squares, select_columns, unit_scores};
pub use weights::{Method, WeightPruning, magnitude, wanda, zeros};

/// Why nothing can be taken out of a matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PruneError {
    /// The weights are no whole rows, or what is known of the inputs is not of so many columns.
    #[error("{found} {what} for rows of {columns} columns")]
    Length {
        /// What has the wrong length.
        what: &'static str,
        /// The columns.
        columns: usize,
        /// The length.
        found: usize,
    },
    /// A weight is infinite or no number.
    #[error("weight {column} of row {row} is {value}")]
    NotFinite {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// Rows are no whole groups of a pattern.
    #[error("rows of {columns} weights are no whole groups of {group}")]
    Groups {
        /// The columns.
        columns: usize,
        /// Weights of a group.
        group: usize,
    },
    /// The inputs' products cannot be used.
    #[error(transparent)]
    Products(#[from] FeedbackError),
}

/// Whether weights are whole rows of finite numbers, and patterns fit them.
fn check(weights: &[f32], columns: usize, pattern: Option<Pattern>) -> Result<(), PruneError> {
    if columns == 0 || !weights.len().is_multiple_of(columns) {
        return Err(PruneError::Length { what: "weights", columns, found: weights.len() });
    }
    if let Some(at) = weights.iter().position(|value| !value.is_finite()) {
        return Err(PruneError::NotFinite { row: at / columns, column: at % columns, value: weights[at] });
    }
    match pattern {
        Some(Pattern::Groups { of, .. }) if !columns.is_multiple_of(of) => {
            Err(PruneError::Groups { columns, group: of })
        }
        _ => Ok(()),
    }
}
