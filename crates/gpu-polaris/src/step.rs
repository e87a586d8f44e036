//! The values of a step: what changes from run to run lies in one small buffer, which kernels and indirect dispatches read.

use core_tensor::{Bindings, Dim, DimError, DimExpr};
use std::sync::Arc;

/// Words before the first value: the status that kernels tell the host something by, and room to the alignment of a binding.
pub(crate) const STATUS_WORDS: usize = 64;
/// The status of a kernel that was to divide an integer by zero; any other that is not 0 is of an index.
pub(crate) const DIVIDED_BY_ZERO: u32 = 2;
/// Set in a push constant that names a word instead of being a number.
const NAMES_A_WORD: u32 = 1 << 31;

/// Numbers and grids of a program, as expressions over the symbols of its graph.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepValues {
    /// Every expression has one word, each axis of a grid one of three in a row.
    words: Vec<Dim>,
}

/// Workgroups of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grid {
    Fixed([u32; 3]),
    /// The first of three words of the step's values.
    Step(usize),
}

/// The smaller of two extents.
pub(crate) fn least(a: Dim, b: usize) -> Dim {
    match a.as_num() {
        Some(n) => Dim::Num(n.min(b)),
        None => Dim::Expr(Arc::new(DimExpr::Min(a, Dim::Num(b)))),
    }
}

/// The product of extents.
pub(crate) fn product(dims: &[Dim]) -> Dim {
    dims.iter().cloned().fold(Dim::Num(1), Dim::mul)
}

impl StepValues {
    /// A push constant that stands for an extent.
    pub(crate) fn word(&mut self, dim: &Dim) -> u32 {
        if let Some(n) = dim.as_num().and_then(|n| u32::try_from(n).ok()).filter(|n| n & NAMES_A_WORD == 0) {
            return n;
        }
        let index = self.words.iter().position(|known| known == dim).unwrap_or_else(|| {
            self.words.push(dim.clone());
            self.words.len() - 1
        });
        NAMES_A_WORD | u32::try_from(index).unwrap_or(0)
    }

    /// A grid.
    pub(crate) fn grid(&mut self, axes: [Dim; 3]) -> Grid {
        let fixed: Vec<u32> = axes.iter().filter_map(|dim| dim.as_num().and_then(|n| u32::try_from(n).ok())).collect();
        if let Ok(fixed) = <[u32; 3]>::try_from(fixed) {
            return Grid::Fixed(fixed);
        }
        let known = self.words.windows(3).position(|words| words == axes);
        Grid::Step(known.unwrap_or_else(|| {
            self.words.extend(axes);
            self.words.len() - 3
        }))
    }

    /// How many words there are.
    pub(crate) fn len(&self) -> usize {
        self.words.len()
    }

    /// The words' values.
    ///
    /// # Errors
    /// When a symbol has no value.
    pub(crate) fn eval(&self, bindings: &Bindings, out: &mut [u8]) -> Result<(), DimError> {
        for (dim, out) in self.words.iter().zip(out.as_chunks_mut::<4>().0) {
            *out = u32::try_from(dim.eval(bindings)?).unwrap_or(u32::MAX).to_le_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_expressions_share_words_and_numbers_need_none() {
        let mut values = StepValues::default();
        let tokens = Dim::sym("tokens");
        assert_eq!(values.word(&Dim::Num(7)), 7);
        let word = values.word(&tokens);
        assert_eq!(word, values.word(&tokens));
        assert_eq!(values.grid([1.into(), 2.into(), 3.into()]), Grid::Fixed([1, 2, 3]));
        let grid = values.grid([tokens.clone(), 1.into(), 1.into()]);
        assert_eq!(grid, values.grid([tokens, 1.into(), 1.into()]));
        let mut bytes = vec![0; values.len() * 4];
        values.eval(&Bindings::new().with("tokens", 5), &mut bytes).unwrap();
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        assert_eq!(words, [5, 5, 1, 1]);
    }
}
