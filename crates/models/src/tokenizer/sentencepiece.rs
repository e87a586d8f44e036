//! SentencePiece's byte-pair model (`tokenizer.ggml.model = "llama"`): neighbours are joined in the
//! order of the score of the token that they make; what is no token is written as bytes.

use super::byte_pairs::byte_token;
use super::error::TokenizerError;
use super::merge::Merger;
use super::strings::Strings;

/// How SentencePiece writes a space (U+2581).
pub(super) const SPACE: &str = "▁";

/// The order of the tokens, and the tokens of bytes.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// For each token a number that is the lower the higher its score is.
    keys: Vec<u32>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

impl SentencePiece {
    /// `scores` are as many as `tokens`; `unknown` stands for characters that no token covers.
    pub(super) fn new(tokens: &Strings, scores: &[f32], unknown: Option<u32>) -> Result<SentencePiece, TokenizerError> {
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::ScoreNotANumber { index });
        }
        let byte = |byte: u8| byte_token(tokens, byte).or_else(|| tokens.find(&[byte]));
        Ok(SentencePiece {
            keys: scores.iter().map(|score| descending(*score)).collect(),
            bytes: Box::new(std::array::from_fn(|at| byte(at as u8))),
            unknown,
        })
    }

    /// Appends the tokens of `text`, in which spaces are written as [`SPACE`], to `ids`.
    pub(super) fn encode(&self, tokens: &Strings, text: &str, ids: &mut Vec<u32>) {
        let key = |pair: &str, _| {
            let id = tokens.find(pair.as_bytes())?;
            self.keys.get(id as usize).copied()
        };
        Merger::default().merge(text, key, |part| match tokens.find(part.as_bytes()) {
            Some(id) => ids.push(id),
            None => self.encode_unknown(part, ids),
        });
    }

    /// A character that is no token.
    fn encode_unknown(&self, part: &str, ids: &mut Vec<u32>) {
        let before = ids.len();
        for byte in part.bytes() {
            let Some(id) = self.bytes[byte as usize] else {
                ids.truncate(before);
                ids.extend(self.unknown);
                return;
            };
            ids.push(id);
        }
    }
}

/// Maps scores that are not NaN to integers in the opposite order.
fn descending(score: f32) -> u32 {
    // Adding zero makes -0 and 0 the same, as the comparison of numbers has them.
    let bits = (score + 0.0).to_bits();
    match bits >> 31 {
        0 => !(bits | 1 << 31),
        _ => bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_opposite_order_of_scores() {
        let scores = [f32::INFINITY, 1e9, 1.0, f32::MIN_POSITIVE, 0.0, -1e-9, -1.0, -259.0, f32::NEG_INFINITY];
        for pair in scores.windows(2) {
            assert!(descending(pair[0]) < descending(pair[1]), "{pair:?}");
        }
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
