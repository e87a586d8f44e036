//! Which texts are evaluated side by side.

/// Token rows of a batch at most, padding counted (unless one text alone has more).
const MOST_ROWS: usize = 4096;

/// Groups texts of similar length, so that little is padding: numbers of texts, the longest first.
///
/// A batch has at most `most` texts, and its shortest text at least three quarters of the tokens of its longest.
pub(crate) fn batches(lengths: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let length = |text: &usize| lengths.get(*text).copied().unwrap_or(0);
    order.sort_by_key(|text| std::cmp::Reverse(length(text)));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for text in order {
        if let Some(batch) = batches.last_mut()
            && let Some(longest) = batch.first().map(length)
            && batch.len() < most.max(1)
            && (batch.len() + 1).saturating_mul(longest) <= MOST_ROWS
            && length(&text).saturating_mul(4) >= longest.saturating_mul(3)
        {
            batch.push(text);
        } else {
            batches.push(vec![text]);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_similar_length_share_a_batch() {
        assert_eq!(batches(&[10, 40, 8, 39, 9], 32), [vec![1, 3], vec![0, 4, 2]]);
        assert_eq!(batches(&[5, 5, 5], 2), [vec![0, 1], vec![2]]);
        assert_eq!(batches(&[5000, 2048, 2048, 2048], 32), [vec![0], vec![1, 2], vec![3]]);
        assert!(batches(&[], 32).is_empty());
    }

    #[test]
    fn every_text_is_in_one_batch() {
        let lengths: Vec<usize> = (0..1000).map(|i| i * 7919 % 513).collect();
        let mut all = batches(&lengths, 32).concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
    }
}
