//! The tokens that may come next, and the rules that narrow them down.

use std::cmp::Ordering;

/// A token and its logit, which is a finite number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

impl Candidate {
    /// Higher logits first, then lower ids: a total order, so that equal logits leave no choice.
    fn best_first(&self, other: &Candidate) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// Candidates, and their logits relative to the highest one as probabilities that do not yet add
/// up to one.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    items: Vec<Candidate>,
    weights: Vec<f64>,
    /// Whether `items` are in the order of their ids; else they are in the order best first.
    by_id: bool,
}

impl Candidates {
    pub(super) fn items(&self) -> &[Candidate] {
        &self.items
    }

    /// Starts anew with the `k` highest of `logits` (0: all). What is not a number or minus
    /// infinity can never come next.
    ///
    /// One look at each logit: a logit that is no better than the k-th best so far is passed over,
    /// and the few others are sorted out in batches.
    pub(super) fn fill(&mut self, logits: &[f32], k: usize) {
        self.items.clear();
        self.by_id = true;
        let candidates = (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        // Infinity would make every difference of logits not a number.
        let candidates = candidates.map(|(id, logit)| Candidate { id, logit: logit.min(f32::MAX) });
        if k == 0 || k >= logits.len() {
            self.items.extend(candidates);
            return;
        }
        let batch = k.saturating_mul(2).max(128);
        let mut bar = f32::NEG_INFINITY;
        for candidate in candidates {
            if candidate.logit <= bar {
                continue;
            }
            self.items.push(candidate);
            if self.items.len() == batch {
                let (_, last, _) = self.items.select_nth_unstable_by(k - 1, Candidate::best_first);
                bar = last.logit;
                self.items.truncate(k);
            }
        }
        self.items.sort_unstable_by(Candidate::best_first);
        self.items.truncate(k);
        self.by_id = false;
    }

    /// Keeps the tokens whose information is nearest to the expected one, until their
    /// probabilities add up to more than `p` ("locally typical sampling", Meister et al., 2022).
    pub(super) fn keep_typical(&mut self, p: f32) {
        if p >= 1.0 || self.items.is_empty() {
            return;
        }
        let highest = self.highest();
        let total = self.weigh(1.0);
        // With d the distance of a logit from the highest, information is ln(total) - d, and its
        // expectation ln(total) - mean(d): the logarithm cancels out of the difference.
        let distance = |candidate: &Candidate| f64::from(candidate.logit) - highest;
        let weighted = self.items.iter().zip(&self.weights);
        let mean = weighted.map(|(item, weight)| weight * distance(item)).sum::<f64>() / total;
        let surprise = |candidate: &Candidate| (distance(candidate) - mean).abs();
        let with_surprise = |(item, weight): (&Candidate, &f64)| (surprise(item), *weight, *item);
        let mut items: Vec<_> = self.items.iter().zip(&self.weights).map(with_surprise).collect();
        let mut sum = 0.0;
        keep_until(
            &mut items,
            |(a, _, first), (b, _, second)| a.total_cmp(b).then(first.id.cmp(&second.id)),
            |(_, weight, _)| {
                sum += weight;
                sum > f64::from(p) * total
            },
        );
        self.items.clear();
        self.items.extend(items.into_iter().map(|(_, _, item)| item));
        self.items.sort_unstable_by(Candidate::best_first);
        self.by_id = false;
    }

    /// Keeps the most probable tokens, until their probabilities add up to `p` ("nucleus
    /// sampling", Holtzman et al., 2020). Sorts only as many as it keeps, about.
    pub(super) fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 || self.items.is_empty() {
            return;
        }
        let highest = self.highest();
        let goal = f64::from(p) * self.weigh(1.0);
        let mut sum = 0.0;
        keep_until(&mut self.items, Candidate::best_first, |item| {
            sum += exp_of_negative(f64::from(item.logit) - highest);
            sum >= goal
        });
        self.by_id = false;
    }

    /// Keeps tokens that are at least `p` times as probable as the most probable one.
    pub(super) fn keep_min_p(&mut self, p: f32) {
        if p > 0.0 && !self.items.is_empty() {
            let highest = self.highest();
            self.items.retain(|candidate| exp_of_negative(f64::from(candidate.logit) - highest) >= f64::from(p));
        }
    }

    /// The probabilities at a temperature above zero, as weights with their sum.
    pub(super) fn weights(&mut self, temperature: f32) -> (&[f64], f64) {
        let total = self.weigh(temperature);
        (&self.weights, total)
    }

    fn weigh(&mut self, temperature: f32) -> f64 {
        let highest = self.highest();
        let scale = 1.0 / f64::from(temperature);
        let weight = |item: &Candidate| exp_of_negative((f64::from(item.logit) - highest) * scale);
        self.weights.clear();
        self.weights.extend(self.items.iter().map(weight));
        self.weights.iter().sum()
    }

    fn highest(&self) -> f64 {
        let logits = self.items.iter().map(|item| item.logit);
        f64::from(match self.by_id {
            true => logits.fold(f32::NEG_INFINITY, f32::max),
            false => logits.into_iter().next().unwrap_or(0.0),
        })
    }
}

/// Puts `items` in order up to the first one that is `enough`, and drops the rest. Sorts growing
/// parts, so that the cost of sorting is that of the items kept.
fn keep_until<T>(items: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering, mut enough: impl FnMut(&T) -> bool) {
    let (mut sorted, mut kept) = (0, 0);
    while kept < items.len() {
        if kept == sorted {
            let rest = &mut items[sorted..];
            let next = (3 * sorted).max(256).min(rest.len());
            if next < rest.len() {
                rest.select_nth_unstable_by(next, &order);
            }
            rest[..next].sort_unstable_by(&order);
            sorted += next;
        }
        kept += 1;
        if enough(&items[kept - 1]) {
            break;
        }
    }
    items.truncate(kept);
}

/// e to the power of `x`, which is not positive, within 2 units in the last place.
///
/// The one of the standard library is that of the operating system, and differs in the last bits
/// between them; this one is made of additions and multiplications, which are the same everywhere
/// (and which the compiler can turn into vector instructions).
fn exp_of_negative(x: f64) -> f64 {
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// 1.5 * 2^52: added to a number, it leaves the nearest integer in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// 1/n!; at |r| <= ln(2)/2 the term after the last is below 1e-17.
    const TAYLOR: [f64; 14] = {
        let mut terms = [1.0; 14];
        let mut n = 1;
        while n < 14 {
            terms[n] = terms[n - 1] / n as f64;
            n += 1;
        }
        terms
    };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = x - power * LN2_HIGH - power * LN2_LOW;
    let series = TAYLOR.iter().rev().fold(0.0, |sum, term| sum * r + term);
    let two_to_power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -700.0 { 0.0 } else { series * two_to_power }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32], k: usize) -> Candidates {
        let mut candidates = Candidates::default();
        candidates.fill(logits, k);
        candidates
    }

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.items.iter().map(|candidate| candidate.id).collect()
    }

    /// The logits of these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn top_k_keeps_the_highest_and_of_equal_ones_the_first() {
        assert_eq!(ids(&candidates(&[1.0, 3.0, 2.0, 3.0, 0.0], 3)), [1, 3, 2]);
        assert_eq!(ids(&candidates(&[5.0; 7], 2)), [0, 1]);
        assert_eq!(ids(&candidates(&[1.0, 2.0], 0)), [0, 1]);
        assert_eq!(ids(&candidates(&[1.0, 2.0], 9)), [0, 1]);
    }

    #[test]
    fn top_k_of_many_agrees_with_sorting() {
        for k in [1, 2, 40, 100, 500] {
            let logits: Vec<f32> = (0..5000u32).map(|n| (n.wrapping_mul(2654435761) >> 22) as f32).collect();
            let mut sorted: Vec<u32> = (0..5000).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            assert_eq!(ids(&candidates(&logits, k)), sorted[..k]);
        }
    }

    #[test]
    fn what_is_no_number_or_impossible_is_no_candidate() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY, -f32::NAN];
        assert_eq!(ids(&candidates(&logits, 0)), [1, 3]);
        assert_eq!(ids(&candidates(&logits, 4)), [3, 1]);
        let mut all = candidates(&logits, 0);
        let (weights, total) = all.weights(1.0);
        assert_eq!((weights, total), (&[0.0, 1.0][..], 1.0));
        assert!(candidates(&[f32::NAN; 3], 2).items.is_empty());
    }

    #[test]
    fn top_p_keeps_the_token_that_reaches_the_sum_and_none_after() {
        let logits = logits(&[0.1, 0.5, 0.15, 0.25]);
        for (p, expected) in [(0.0, &[1][..]), (0.49, &[1]), (0.51, &[1, 3]), (0.8, &[1, 3, 2]), (0.95, &[1, 3, 2, 0])]
        {
            for k in [0, 4] {
                let mut candidates = candidates(&logits, k);
                candidates.keep_top_p(p);
                assert_eq!(ids(&candidates), expected, "{p}");
            }
        }
    }

    #[test]
    fn top_p_of_many_even_tokens_keeps_that_share_of_them() {
        let mut candidates = candidates(&[0.5; 10_000], 0);
        candidates.keep_top_p(0.75);
        assert_eq!(ids(&candidates), (0..7500).collect::<Vec<_>>());
    }

    #[test]
    fn min_p_keeps_what_is_near_enough_to_the_best() {
        let logits = logits(&[0.1, 0.5, 0.15, 0.25]);
        for (p, expected) in [(0.0, &[0, 1, 2, 3][..]), (0.25, &[1, 2, 3]), (0.4, &[1, 3]), (1.0, &[1])] {
            let mut candidates = candidates(&logits, 0);
            candidates.keep_min_p(p);
            assert_eq!(ids(&candidates), expected, "{p}");
        }
    }

    #[test]
    fn typical_keeps_what_is_nearest_to_the_expected_information() {
        // Information in nats: 0.22, 2.30, 2.81, 3.22; expected 0.71. All are in the order of
        // their distance from it.
        let skewed = logits(&[0.80, 0.10, 0.06, 0.04]);
        for (p, expected) in [(0.5, &[0][..]), (0.85, &[0, 1]), (0.97, &[0, 1, 2, 3])] {
            let mut kept = candidates(&skewed, 0);
            kept.keep_typical(p);
            assert_eq!(ids(&kept), expected, "{p}");
        }
        // One likely token among many unlikely ones: those are the typical ones.
        let mut probabilities = vec![0.01; 60];
        probabilities.push(0.4);
        let mut kept = candidates(&logits(&probabilities), 0);
        kept.keep_typical(0.5);
        assert_eq!(ids(&kept), (0..51).collect::<Vec<_>>());
    }

    #[test]
    fn exp_is_that_of_the_standard_library_but_for_the_last_bits() {
        for n in 0..100_000 {
            let x = -f64::from(n) * 0.007;
            let (ours, theirs) = (exp_of_negative(x), x.exp());
            assert!((ours - theirs).abs() <= theirs * 4.0 * f64::EPSILON, "{x}: {ours} {theirs}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(f64::NEG_INFINITY), 0.0);
        // Bit for bit, on all platforms.
        assert_eq!(exp_of_negative(-1.0).to_bits(), 0x3fd7_8b56_362c_ef38);
    }
}
