//! Weights that become zeros, and the weights behind them that make up for it.
//!
//! What a weight's going does to the outputs is undone, as far as that can be, by the columns that are still to come: with the factor `U` of the inverse of the
//! inputs' products, removing `w` of column `j` changes the columns `i > j` of its row by `-w U[j, i] / U[j, j]`, and costs `(w / U[j, j])²`
//! (Frantar, Alistarh: SparseGPT, 2023, section 3).

use super::cut::Cut;
use super::weights::counted;
use super::{Pattern, PruneError, check};
use crate::gptq::Feedback;
use crate::widest::widest;

/// Columns among which a share is taken, and behind which the others are brought up to date: as in the paper.
const BLOCK: usize = 128;

/// Which weights go.
#[derive(Clone, Copy)]
enum Choice<'a> {
    /// Those that cost least.
    Least(Pattern),
    /// Those that are zeros in here.
    Zeros(&'a [f32]),
}

/// Makes weights zeros that cost least once the others have made up for them, and lets the others do so.
///
/// A share is taken of each 128 columns, whichever rows it falls on; of groups each gives its part. `threads` share the rows; what a
/// matrix becomes does not depend on how many they are.
///
/// # Errors
/// When the weights are no whole rows of finite numbers of the feedback's columns, or rows no whole groups.
pub fn sparse_gpt(
    weights: &mut [f32],
    feedback: &Feedback,
    pattern: Pattern,
    threads: usize,
) -> Result<(), PruneError> {
    check(weights, feedback.columns(), Some(pattern))?;
    run(weights, feedback, Choice::Least(pattern), threads);
    Ok(())
}

/// Makes weights zeros where `pruned` is zero, and lets the others make up for them.
///
/// # Errors
/// When the weights are no whole rows of finite numbers of the feedback's columns, or `pruned` is not as long.
pub fn reconstruct(weights: &mut [f32], feedback: &Feedback, pruned: &[f32], threads: usize) -> Result<(), PruneError> {
    let columns = feedback.columns();
    check(weights, columns, None)?;
    if pruned.len() != weights.len() {
        return Err(PruneError::Length { what: "pruned weights", columns, found: pruned.len() });
    }
    run(weights, feedback, Choice::Zeros(pruned), threads);
    Ok(())
}

fn run(weights: &mut [f32], feedback: &Feedback, choice: Choice<'_>, threads: usize) {
    let k = feedback.columns();
    let rows = weights.len() / k.max(1);
    let share = rows.div_ceil(threads.clamp(1, 1024)).max(1);
    // Groups are not torn apart.
    let width = match choice {
        Choice::Least(Pattern::Groups { of, .. }) => BLOCK.next_multiple_of(of),
        _ => BLOCK,
    };
    for start in (0..k).step_by(width) {
        let block = Block { feedback, start, end: (start + width).min(k) };
        let len = block.end - block.start;
        let gone = match choice {
            Choice::Least(Pattern::Share(share)) => Some(block.least(weights, share)),
            Choice::Zeros(pruned) => {
                let rows = pruned.chunks_exact(k);
                Some(rows.flat_map(|row| row[start..block.end].iter().map(|w| *w == 0.0)).collect())
            }
            Choice::Least(Pattern::Groups { .. }) => None,
        };
        std::thread::scope(|scope| {
            for (number, part) in weights.chunks_mut(share * k).enumerate() {
                let gone = gone.as_deref().map(|gone: &[bool]| &gone[number * share * len..]);
                let block = &block;
                scope.spawn(move || {
                    widest(
                        #[inline(always)]
                        || {
                            for (r, row) in part.chunks_exact_mut(k).enumerate() {
                                match (gone, choice) {
                                    (Some(gone), _) => block.row(row, |_, j| gone[r * len + j]),
                                    (None, Choice::Least(Pattern::Groups { keep, of })) => block.groups(row, keep, of),
                                    (None, _) => {}
                                }
                            }
                        },
                    );
                });
            }
        });
    }
}

/// Columns that are worked on together.
struct Block<'a> {
    feedback: &'a Feedback,
    start: usize,
    end: usize,
}

impl Block<'_> {
    fn factors(&self, column: usize) -> &[f32] {
        &self.feedback.factor()[column * self.feedback.columns()..][..self.feedback.columns()]
    }

    /// What removing a weight costs.
    fn cost(&self, w: f32, column: usize) -> f32 {
        let error = w / self.factors(column)[column];
        error * error
    }

    /// Which weights of the block cost least, `[rows, columns of the block]`.
    fn least(&self, weights: &[f32], share: f64) -> Vec<bool> {
        let (k, len) = (self.feedback.columns(), self.end - self.start);
        let costs = || {
            let rows = weights.chunks_exact(k);
            rows.flat_map(|row| (self.start..self.end).map(|column| self.cost(row[column], column)))
        };
        let mut cut = Cut::new(costs, counted(weights.len() / k * len, share));
        costs().map(|cost| cut.takes(cost)).collect()
    }

    /// One row, of which a function says what goes; it is told the row as it has become.
    #[inline(always)]
    fn row(&self, row: &mut [f32], mut goes: impl FnMut(&[f32], usize) -> bool) {
        let len = self.end - self.start;
        let mut errors: Vec<(usize, f32)> = Vec::with_capacity(len);
        for j in 0..len {
            let column = self.start + j;
            if !goes(row, j) {
                continue;
            }
            let factors = &self.factors(column)[column..self.end];
            let error = row[column] / factors[0];
            row[column] = 0.0;
            for (x, f) in row[column + 1..self.end].iter_mut().zip(&factors[1..]) {
                *x -= error * f;
            }
            errors.push((column, error));
        }
        let rest = &mut row[self.end..];
        let (fours, last) = errors.as_chunks::<4>();
        for four in fours {
            let [a, b, c, d] = four.map(|(column, _)| &self.factors(column)[self.end..][..rest.len()]);
            for (i, x) in rest.iter_mut().enumerate() {
                *x -= four[0].1 * a[i] + four[1].1 * b[i] + four[2].1 * c[i] + four[3].1 * d[i];
            }
        }
        for (column, error) in last {
            for (x, f) in rest.iter_mut().zip(&self.factors(*column)[self.end..]) {
                *x -= error * f;
            }
        }
    }

    /// One row by groups: which of a group go is seen when its turn comes.
    #[inline(always)]
    fn groups(&self, row: &mut [f32], keep: usize, of: usize) {
        let mut scratch = Vec::new();
        let mut gone = vec![false; of];
        self.row(row, |row, j| {
            if j.is_multiple_of(of) {
                let costs: Vec<f32> = (0..of).map(|i| self.cost(row[self.start + j + i], self.start + j + i)).collect();
                let mut cut = Cut::of_few(&costs, of - keep.min(of), &mut scratch);
                gone.iter_mut().zip(&costs).for_each(|(gone, cost)| *gone = cut.takes(*cost));
            }
            gone[j % of]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Products, magnitude, wanda, zeros};
    use super::*;
    use crate::random::random;

    /// Products of inputs of which neighbours go together.
    fn products(rows: usize, k: usize) -> Products {
        let mut next = random(7);
        let mut sums = vec![0.0; k * k];
        for _ in 0..rows {
            let mut last = 0.0;
            let row: Vec<f32> = (0..k)
                .map(|i| {
                    last = 0.8 * last + next() * if i % 7 == 0 { 4.0 } else { 1.0 };
                    last
                })
                .collect();
            for i in 0..k {
                for j in 0..k {
                    sums[i * k + j] += row[i] * row[j];
                }
            }
        }
        Products::new(sums, k).unwrap()
    }

    fn matrix(rows: usize, k: usize) -> (Vec<f32>, Products, Feedback) {
        let products = products(3 * k, k);
        let feedback = Feedback::new(products.values(), k, 0.01).unwrap();
        let mut next = random(3);
        let weights = (0..rows * k).map(|_| next() * next()).collect();
        (weights, products, feedback)
    }

    #[test]
    fn what_is_left_makes_up_for_what_goes() {
        let k = 320;
        let (weights, products, feedback) = matrix(24, k);
        for pattern in [Pattern::Share(0.5), Pattern::Groups { keep: 2, of: 4 }, Pattern::Groups { keep: 4, of: 8 }] {
            let error = |prune: &dyn Fn(&mut [f32])| {
                let mut pruned = weights.clone();
                prune(&mut pruned);
                assert_eq!(zeros(&pruned), pruned.len() / 2, "{pattern}");
                products.output_error(&weights, &pruned)
            };
            let magnitude = error(&|pruned| magnitude(pruned, k, pattern).unwrap());
            let wanda = error(&|pruned| wanda(pruned, k, &products.squares(), pattern).unwrap());
            let repaired = error(&|pruned| {
                super::super::wanda(pruned, k, &products.squares(), pattern).unwrap();
                let mask = pruned.to_vec();
                pruned.copy_from_slice(&weights);
                reconstruct(pruned, &feedback, &mask, 2).unwrap();
            });
            let chosen = error(&|pruned| sparse_gpt(pruned, &feedback, pattern, 2).unwrap());
            assert!(wanda < 0.95 * magnitude, "{pattern}: {wanda} {magnitude}");
            assert!(repaired < 0.75 * wanda, "{pattern}: {repaired} {wanda}");
            assert!(chosen < 1.02 * repaired, "{pattern}: {chosen} {repaired}");
        }
    }

    #[test]
    fn groups_keep_as_many_as_they_are_to() {
        let (mut weights, _, feedback) = matrix(5, 144);
        sparse_gpt(&mut weights, &feedback, Pattern::Groups { keep: 1, of: 3 }, 1).unwrap();
        assert!(weights.chunks(3).all(|group| zeros(group) == 2));
        // All of them, and more than there are.
        for keep in [3, 4] {
            let (mut weights, _, feedback) = matrix(5, 144);
            let before = weights.clone();
            sparse_gpt(&mut weights, &feedback, Pattern::Groups { keep, of: 3 }, 1).unwrap();
            assert_eq!(weights, before);
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads() {
        let (weights, _, feedback) = matrix(7, 200);
        for pattern in [Pattern::Share(0.6), Pattern::Groups { keep: 2, of: 4 }] {
            let [one, many] = [1, 3].map(|threads| {
                let mut pruned = weights.clone();
                sparse_gpt(&mut pruned, &feedback, pattern, threads).unwrap();
                pruned
            });
            assert_eq!(one, many, "{pattern}");
        }
    }

    #[test]
    fn what_does_not_fit_the_inputs_is_refused() {
        let (mut weights, _, feedback) = matrix(2, 32);
        assert!(sparse_gpt(&mut weights[..33], &feedback, Pattern::Share(0.5), 1).is_err());
        assert!(sparse_gpt(&mut weights, &feedback, Pattern::Groups { keep: 2, of: 5 }, 1).is_err());
        assert!(reconstruct(&mut weights, &feedback, &[0.0; 32], 1).is_err());
    }
}
