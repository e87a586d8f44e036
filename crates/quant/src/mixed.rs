//! Mixed precision: which tensor gets which type where a budget is to be met.
//!
//! Each tensor has several types to choose from, each with the bytes that it takes and a cost (what the model loses by it). If
//! costs add up, the best assignment spends bytes where they buy most: on each tensor's lower convex hull of cost over bytes,
//! the steps to more bytes are taken in the order of what they save for a byte.

use core_tensor::DType;

/// A type that a tensor may get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The type.
    pub dtype: DType,
    /// What the tensor takes in it.
    pub bytes: u64,
    /// What the model loses by it; not negative, and in the same unit for all tensors.
    pub cost: f64,
}

/// What an assignment has to meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// All tensors together take this many bytes at most; then they cost as little as possible.
    Bytes(u64),
    /// All tensors together cost this at most; then they take as little as possible.
    Cost(f64),
}

/// What one tensor gets, and why not less or more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Which of its choices.
    pub choice: usize,
    /// What the last step to more bytes saved, in cost for a byte; none where the tensor has the smallest that is worth having.
    pub saved: Option<f64>,
    /// The next step that was not taken: the choice, and what it would save for a byte.
    pub next: Option<(usize, f64)>,
}

/// Why there is no assignment.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// The smallest types take more.
    #[error("the smallest types take {least} bytes, and there are {budget}")]
    Bytes {
        /// What they take.
        least: u64,
        /// What there is.
        budget: u64,
    },
    /// The largest types cost more.
    #[error("the best types lose {least}, and {budget} is allowed")]
    Cost {
        /// What they lose.
        least: f64,
        /// What is allowed.
        budget: f64,
    },
    /// A tensor has nothing to choose from, or a cost that is no number.
    #[error("tensor {0} has no type to choose, or a cost that is no number")]
    Choices(usize),
}

/// A step on a tensor's hull.
#[derive(Clone, Copy, Debug)]
struct Step {
    tensor: usize,
    to: usize,
    bytes: u64,
    saves: f64,
}

impl Step {
    fn rate(&self) -> f64 {
        self.saves / self.bytes.max(1) as f64
    }
}

/// Chooses for all tensors; `choices` has those of each, in any order.
///
/// # Errors
/// When no assignment meets the budget, or a tensor has no choice.
pub fn spend(choices: &[Vec<Choice>], budget: Budget) -> Result<Vec<Decision>, BudgetError> {
    let mut decisions = Vec::with_capacity(choices.len());
    let mut steps = Vec::new();
    let (mut bytes, mut cost) = (0u64, 0.0);
    for (tensor, choices) in choices.iter().enumerate() {
        if choices.iter().any(|choice| !(choice.cost.is_finite() && choice.cost >= 0.0)) {
            return Err(BudgetError::Choices(tensor));
        }
        let hull = hull(choices);
        let first = *hull.first().ok_or(BudgetError::Choices(tensor))?;
        bytes += choices[first].bytes;
        cost += choices[first].cost;
        decisions.push(Decision { choice: first, saved: None, next: None });
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (choices[pair[0]], choices[pair[1]]);
            Step { tensor, to: pair[1], bytes: to.bytes - from.bytes, saves: from.cost - to.cost }
        }));
    }
    if let Budget::Bytes(budget) = budget
        && bytes > budget
    {
        return Err(BudgetError::Bytes { least: bytes, budget });
    }
    // A hull's steps save less and less for a byte, so that a stable order keeps each tensor's own.
    steps.sort_by(|a, b| b.rate().total_cmp(&a.rate()));
    for step in steps {
        let decision = &mut decisions[step.tensor];
        let wanted = match budget {
            // What does not fit leaves room for a smaller step of another tensor; but this tensor is done.
            Budget::Bytes(budget) => decision.next.is_none() && bytes + step.bytes <= budget,
            Budget::Cost(budget) => cost > budget,
        };
        if wanted {
            bytes += step.bytes;
            cost -= step.saves;
            decision.choice = step.to;
            decision.saved = Some(step.rate());
        } else if decision.next.is_none() {
            decision.next = Some((step.to, step.rate()));
        }
    }
    match budget {
        // Sums of differences may be off by a rounding.
        Budget::Cost(budget) if cost > budget * (1.0 + 1e-9) + 1e-12 => Err(BudgetError::Cost { least: cost, budget }),
        _ => Ok(decisions),
    }
}

/// The choices on the lower convex hull of cost over bytes, from the smallest on.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&choices[*a], &choices[*b]);
        a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost))
    });
    let rate = |from: usize, to: usize| {
        (choices[from].cost - choices[to].cost) / (choices[to].bytes - choices[from].bytes) as f64
    };
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        if hull
            .last()
            .is_some_and(|last| choices[i].bytes == choices[*last].bytes || choices[i].cost >= choices[*last].cost)
        {
            continue;
        }
        while let [.., before, last] = hull[..] {
            if rate(before, last) > rate(last, i) {
                break;
            }
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use core_tensor::BlockFormat as B;

    fn choice(bytes: u64, cost: f64) -> Choice {
        Choice { dtype: DType::Block(B::Q4_0), bytes, cost }
    }

    fn total(choices: &[Vec<Choice>], decisions: &[Decision]) -> (u64, f64) {
        let chosen = choices.iter().zip(decisions).map(|(choices, decision)| choices[decision.choice]);
        chosen.fold((0, 0.0), |(bytes, cost), choice| (bytes + choice.bytes, cost + choice.cost))
    }

    #[test]
    fn what_lies_above_the_hull_is_never_chosen() {
        let choices =
            [choice(40, 1.0), choice(10, 8.0), choice(20, 7.5), choice(30, 2.0), choice(50, 1.5), choice(30, 3.0)];
        assert_eq!(hull(&choices), [1, 3, 0]);
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let tensors = [vec![choice(10, 4.0), choice(20, 1.0)], vec![choice(10, 9.0), choice(20, 1.0)]];
        let decisions = spend(&tensors, Budget::Bytes(30)).unwrap();
        assert_eq!(total(&tensors, &decisions), (30, 5.0));
        assert_eq!(decisions[0], Decision { choice: 0, saved: None, next: Some((1, 0.3)) });
        assert_eq!(decisions[1], Decision { choice: 1, saved: Some(0.8), next: None });
        let all = spend(&tensors, Budget::Bytes(40)).unwrap();
        assert_eq!(total(&tensors, &all), (40, 2.0));
    }

    #[test]
    fn a_cost_is_met_with_few_bytes() {
        let tensors = [vec![choice(10, 4.0), choice(20, 1.0)], vec![choice(10, 9.0), choice(20, 1.0)]];
        assert_eq!(total(&tensors, &spend(&tensors, Budget::Cost(5.0)).unwrap()), (30, 5.0));
        assert_eq!(total(&tensors, &spend(&tensors, Budget::Cost(13.0)).unwrap()), (20, 13.0));
    }

    #[test]
    fn what_cannot_be_met_is_told() {
        let tensors = [vec![choice(10, 4.0), choice(20, 1.0)]];
        assert_eq!(spend(&tensors, Budget::Bytes(9)), Err(BudgetError::Bytes { least: 10, budget: 9 }));
        assert_eq!(spend(&tensors, Budget::Cost(0.5)), Err(BudgetError::Cost { least: 1.0, budget: 0.5 }));
        assert_eq!(spend(&[Vec::new()], Budget::Cost(0.5)), Err(BudgetError::Choices(0)));
        assert_eq!(spend(&[vec![choice(1, f64::NAN)]], Budget::Cost(0.5)), Err(BudgetError::Choices(0)));
    }

    #[test]
    fn no_assignment_of_few_tensors_is_better() {
        // Costs that fall like the squares of the bytes, by different factors; all assignments tried.
        let tensors: Vec<Vec<Choice>> =
            (1..=5).map(|t| (1..=4).map(|b| choice(b * 8, f64::from(t) * 0.25f64.powi(b as i32))).collect()).collect();
        let all = |limit: u64| {
            let totals = (0..4usize.pow(5)).map(|n| {
                let pick = |(t, choices): (usize, &Vec<Choice>)| choices[n / 4usize.pow(t as u32) % 4];
                tensors
                    .iter()
                    .enumerate()
                    .map(pick)
                    .fold((0, 0.0), |(b, c), choice| (b + choice.bytes, c + choice.cost))
            });
            totals.filter(|(bytes, _)| *bytes <= limit).map(|(_, cost)| cost).fold(f64::INFINITY, f64::min)
        };
        for limit in [40, 64, 80, 104, 128, 160] {
            let found = total(&tensors, &spend(&tensors, Budget::Bytes(limit)).unwrap());
            assert!(found.0 <= limit && found.1 <= all(limit) + 1e-12, "{limit}: {found:?}, best {}", all(limit));
        }
    }
}
