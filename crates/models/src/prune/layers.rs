//! Which neurons and heads of a layer remain.

use polaris_quant::prune::{PruneError, keep_best, unit_scores};

use super::plan::{Extents, Unit};

/// A matrix whose inputs are neurons or heads, and what meets them.
pub(super) struct Scored<'a> {
    pub(super) weights: &'a [f32],
    pub(super) columns: usize,
    pub(super) mean_squares: &'a [f32],
}

/// The neurons that remain: those whose columns of the down matrix give most.
pub(super) fn neurons(down: &Scored<'_>, keep: usize) -> Result<Vec<usize>, PruneError> {
    Ok(keep_best(&unit_scores(down.weights, down.columns, down.mean_squares, 1)?, keep))
}

/// The heads that remain, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) query: Vec<usize>,
    pub(super) kv: Vec<usize>,
}

impl Heads {
    /// Those whose columns of the output matrix give most: whole groups of query heads where fewer heads of keys and values are to remain,
    /// else as many of each group.
    pub(super) fn best(output: &Scored<'_>, before: Extents, after: Extents) -> Result<Heads, PruneError> {
        let unit = output.columns / before.heads.max(1);
        let scores = unit_scores(output.weights, output.columns, output.mean_squares, unit)?;
        let per_group = (before.heads / before.kv_heads.max(1)).max(1);
        if after.kv_heads < before.kv_heads {
            let groups: Vec<f64> = scores.chunks(per_group).map(|group| group.iter().sum()).collect();
            let kv = keep_best(&groups, after.kv_heads);
            let query = kv.iter().flat_map(|group| group * per_group..(group + 1) * per_group).collect();
            return Ok(Heads { query, kv });
        }
        let keep = after.heads / after.kv_heads.max(1);
        let groups = scores.chunks(per_group).enumerate();
        let query = groups
            .flat_map(|(group, scores)| keep_best(scores, keep).into_iter().map(move |head| group * per_group + head));
        Ok(Heads { query: query.collect(), kv: (0..before.kv_heads).collect() })
    }
}

/// What remains of a layer, as far as it was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    pub(super) neurons: Option<Vec<usize>>,
    pub(super) heads: Option<Heads>,
}

impl Choice {
    /// The rows or columns of what remains; none where that has not been chosen.
    pub(super) fn places(&self, unit: Unit, before: Extents) -> Option<Vec<usize>> {
        let spread = |units: &[usize], length: usize, start: usize| -> Vec<usize> {
            units.iter().flat_map(|unit| start + unit * length..start + (unit + 1) * length).collect()
        };
        Some(match unit {
            Unit::Neurons => self.neurons.clone()?,
            Unit::Heads(length) => spread(&self.heads.as_ref()?.query, length, 0),
            Unit::KvHeads(length) => spread(&self.heads.as_ref()?.kv, length, 0),
            Unit::Joined(key, value) => {
                let heads = self.heads.as_ref()?;
                let keys = before.heads * key;
                let values = keys + before.kv_heads * key;
                let mut all = spread(&heads.query, key, 0);
                all.extend(spread(&heads.kv, key, keys));
                all.extend(spread(&heads.kv, value, values));
                all
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Extents = Extents { neurons: 4, heads: 4, kv_heads: 2 };

    /// Heads of one value; the scores of four heads.
    fn heads(scores: [f32; 4], after: Extents) -> Heads {
        let output = Scored { weights: &[1.0; 4], columns: 4, mean_squares: &scores };
        Heads::best(&output, BEFORE, after).unwrap()
    }

    #[test]
    fn groups_go_with_all_their_query_heads() {
        let found = heads([9.0, 0.0, 5.0, 5.0], Extents { heads: 2, kv_heads: 1, ..BEFORE });
        assert_eq!(found, Heads { query: vec![2, 3], kv: vec![1] });
    }

    #[test]
    fn query_heads_go_from_each_group_alike() {
        let found = heads([9.0, 8.0, 1.0, 2.0], Extents { heads: 2, ..BEFORE });
        assert_eq!(found, Heads { query: vec![0, 3], kv: vec![0, 1] });
    }

    #[test]
    fn rows_of_joined_matrices_are_found_below_each_other() {
        let choice = Choice { neurons: None, heads: Some(Heads { query: vec![2, 3], kv: vec![1] }) };
        // Queries 0..8, keys 8..12, values 12..18.
        let places = choice.places(Unit::Joined(2, 3), BEFORE).unwrap();
        assert_eq!(places, [4, 5, 6, 7, 10, 11, 15, 16, 17]);
        assert_eq!(choice.places(Unit::Heads(3), BEFORE).unwrap(), [6, 7, 8, 9, 10, 11]);
        assert_eq!(choice.places(Unit::Neurons, BEFORE), None);
    }
}
