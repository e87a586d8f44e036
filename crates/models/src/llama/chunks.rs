//! A text in chunks, as llama.cpp's llama-perplexity takes them.

use super::{Llama, PerplexityOptions, Row};
use crate::Error;
use crate::tokenizer::EncodeOptions;

/// Which chunks of a text are taken where not all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Picked {
    /// The first ones.
    #[default]
    First,
    /// Some at equal distances: a text is seldom the same from its beginning to its end.
    Spread,
}

impl Picked {
    /// The numbers of so many chunks at most, of `whole` that there are.
    pub(crate) fn numbers(self, whole: usize, most: Option<usize>) -> Vec<usize> {
        let count = most.map_or(whole, |most| most.min(whole));
        let number = |i: usize| match self {
            Picked::First => i,
            Picked::Spread => (i as u128 * whole as u128 / count as u128) as usize,
        };
        (0..count).map(number).collect()
    }
}

/// The shortest chunk that scores a token.
const SHORTEST: usize = 4;

/// A text cut into chunks of `context` tokens, each evaluated on its own and begun with the token that begins a text (in the place of its
/// first token) if the model wants one. Of each chunk the second half is scored: the tokens after position `context / 2`, each by the
/// logits before it. What remains behind the last whole chunk is left out.
///
/// Special tokens in the text are plain text, and a last newline is dropped, as llama.cpp does with a file.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    tokens: Vec<u32>,
    pub(super) context: usize,
    /// Which of the whole text's chunks they are.
    numbers: Vec<usize>,
    /// How many there are.
    pub(super) count: usize,
    bos: Option<u32>,
}

impl Chunks {
    /// # Errors
    /// When the chunks do not fit the model's context, or the text has fewer than two chunks of tokens.
    pub(super) fn new(model: &Llama, text: &str, options: &PerplexityOptions) -> Result<Chunks, Error> {
        let context = options.context;
        if context < SHORTEST || context > model.context() {
            let reason = format!("chunks of {context} tokens; between {SHORTEST} and {} are possible", model.context());
            return Err(Error::Option { name: "context", reason });
        }
        if options.chunks == Some(0) {
            return Err(Error::Option { name: "chunks", reason: "there must be at least 1".into() });
        }
        let text = text.strip_suffix('\n').unwrap_or(text);
        let tokens = model.tokenize(text, EncodeOptions { add_special: true, parse_special: false });
        if tokens.len() / 2 < context {
            return Err(Error::TextTooShort { tokens: tokens.len(), needed: context.saturating_mul(2), context });
        }
        let numbers = options.picked.numbers(tokens.len() / context, options.chunks);
        let bos = if model.tokenizer().adds_bos() { model.tokenizer().bos() } else { None };
        Ok(Chunks { tokens, context, count: numbers.len(), numbers, bos })
    }

    /// Tokens of the whole text.
    pub(super) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    fn chunk(&self, number: usize) -> &[u32] {
        &self.tokens[self.numbers[number] * self.context..][..self.context]
    }

    /// What is evaluated for a chunk below `count`.
    pub(super) fn rows(&self, number: usize) -> Vec<Row> {
        let first = self.context / 2;
        let row = |(position, token): (usize, &u32)| Row {
            slot: 0,
            token: if position == 0 { self.bos.unwrap_or(*token) } else { *token },
            logits: (first..self.context - 1).contains(&position),
        };
        self.chunk(number).iter().enumerate().map(row).collect()
    }

    /// The tokens that a chunk's logits are to predict, in their order.
    pub(super) fn scored(&self, number: usize) -> &[u32] {
        &self.chunk(number)[self.context / 2 + 1..]
    }

    /// Whether another model reads the text in the same tokens.
    pub(super) fn same_tokens(&self, other: &Chunks) -> bool {
        self.tokens == other.tokens && self.bos == other.bos
    }
}

#[cfg(test)]
mod tests {
    use super::Picked;

    #[test]
    fn chunks_are_the_first_ones_or_lie_all_over_the_text() {
        assert_eq!(Picked::First.numbers(10, Some(3)), [0, 1, 2]);
        assert_eq!(Picked::Spread.numbers(10, Some(3)), [0, 3, 6]);
        for picked in [Picked::First, Picked::Spread] {
            assert_eq!(picked.numbers(3, None), [0, 1, 2]);
            assert_eq!(picked.numbers(3, Some(9)), [0, 1, 2]);
            assert!(picked.numbers(0, Some(9)).is_empty());
        }
    }
}
