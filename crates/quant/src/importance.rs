//! Importances: what is known of the activations that meet each column of each matrix.

use std::collections::BTreeMap;

/// Sums of squares of activations, by the names of the tensors that they meet (`imatrix` in llama.cpp).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importances {
    /// By tensor name.
    pub entries: BTreeMap<String, Importance>,
    /// The texts that were run.
    pub datasets: Vec<String>,
    /// Chunks of text that were run.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_size: u32,
}

/// What met one tensor. A tensor with several matrices (of experts) has sums and a count for each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// Sums of squares, `[matrices][columns]`.
    pub sums: Vec<f32>,
    /// Rows of activations that were summed, one count per matrix.
    pub counts: Vec<f32>,
}

impl Importance {
    /// Mean squares, `[matrices][columns]`; ones for a matrix that met nothing.
    #[must_use]
    pub fn means(&self) -> Vec<f32> {
        let columns = self.sums.len() / self.counts.len().max(1);
        let matrices = self.sums.chunks(columns.max(1)).zip(&self.counts);
        matrices
            .flat_map(|(sums, count)| sums.iter().map(move |sum| if *count > 0.0 { sum / count } else { 1.0 }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_per_matrix_and_ones_where_nothing_was_seen() {
        let importance = Importance { sums: vec![2.0, 4.0, 7.0, 9.0], counts: vec![2.0, 0.0] };
        assert_eq!(importance.means(), [1.0, 2.0, 1.0, 1.0]);
        assert_eq!(Importance::default().means(), [0.0; 0]);
    }
}
