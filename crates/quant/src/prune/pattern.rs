//! Where the zeros of a pruned matrix may lie.

use std::fmt;
use std::str::FromStr;

/// Where zeros lie, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Anywhere.
    Share(f64),
    /// All but `keep` of each `of` neighbours in a row.
    Groups {
        /// Weights of a group that remain.
        keep: usize,
        /// Weights of a group.
        of: usize,
    },
}

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no sparsity: a share below 1 (0.5 or 50%) or N:M, of which N of each M weights remain (2:4)")]
pub struct PatternError {
    /// The text.
    pub found: String,
}

/// Weights of a group at most.
const MOST: usize = 1024;

impl Pattern {
    /// The share of the weights that become zeros.
    #[must_use]
    pub fn share(self) -> f64 {
        match self {
            Pattern::Share(share) => share,
            Pattern::Groups { keep, of } => (of - keep.min(of)) as f64 / of.max(1) as f64,
        }
    }

    /// What of it is reached after a step of several: see [`share_at`].
    #[must_use]
    pub fn at(self, step: usize, steps: usize) -> Pattern {
        match self {
            Pattern::Share(share) => Pattern::Share(share_at(share, step, steps)),
            Pattern::Groups { keep, of } => {
                let gone = share_at((of - keep.min(of)) as f64, step, steps).ceil() as usize;
                Pattern::Groups { keep: of - gone.min(of), of }
            }
        }
    }
}

/// What of a share has gone after a step of several, counted from 1: much at first, when little depends on what goes, and less and less
/// (Zhu, Gupta: To prune, or not to prune, 2017, equation 1).
#[must_use]
pub fn share_at(share: f64, step: usize, steps: usize) -> f64 {
    let left = 1.0 - (step.min(steps) as f64 / steps.max(1) as f64);
    share * (1.0 - left.powi(3))
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        let wrong = || PatternError { found: text.to_owned() };
        if let Some((keep, of)) = text.split_once(':') {
            let (keep, of): (usize, usize) = (keep.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
            return match keep < of && of <= MOST {
                true => Ok(Pattern::Groups { keep, of }),
                false => Err(wrong()),
            };
        }
        let number = |text: &str| text.parse::<f64>().map_err(|_| wrong());
        let share = match text.strip_suffix('%') {
            Some(percent) => number(percent)? / 100.0,
            None => number(text)?,
        };
        if share > 0.0 && share < 1.0 { Ok(Pattern::Share(share)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Share(share) => write!(f, "{}%", (share * 1e4).round() / 1e2),
            Pattern::Groups { keep, of } => write!(f, "{keep}:{of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_shares_and_groups() {
        assert_eq!("50%".parse(), Ok(Pattern::Share(0.5)));
        assert_eq!("0.625".parse(), Ok(Pattern::Share(0.625)));
        assert_eq!("4:8".parse(), Ok(Pattern::Groups { keep: 4, of: 8 }));
        for wrong in ["", "0", "1", "100%", "-0.5", "nan", "4:4", "4:2", "2:", ":4", "2:99999", "half"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
        for text in ["50%", "12.5%", "2:4"] {
            assert_eq!(text.parse::<Pattern>().map(|pattern| pattern.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn steps_take_much_at_first_and_all_in_the_end() {
        let shares: Vec<f64> = (1..=4).map(|step| share_at(0.5, step, 4)).collect();
        assert!(shares.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
        assert!(shares[0] > 0.25 && shares[3] == 0.5, "{shares:?}");
        let groups = Pattern::Groups { keep: 4, of: 8 };
        assert_eq!(groups.at(1, 3), Pattern::Groups { keep: 5, of: 8 });
        assert_eq!(groups.at(3, 3), groups);
        assert_eq!(Pattern::Share(0.5).at(1, 1), Pattern::Share(0.5));
    }
}
