//! Byte-pair encoding as GPT-2 has it (`tokenizer.ggml.model = "gpt2"`), and the variant of
//! Gemma 4 without the detour over printable bytes.

use super::error::TokenizerError;
use super::merge::Merger;
use super::pretokenizer::Pretokenizer;
use super::strings::{Duplicates, Strings};

/// Merges, and how text is cut into words before them.
#[derive(Debug)]
pub(super) struct BytePairs {
    /// "left right", in the order of their rank.
    merges: Strings,
    pretokenizer: &'static Pretokenizer,
    alphabet: Alphabet,
}

/// How the texts of tokens stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Each byte is one printable character, see [`byte_to_char`].
    Bytes,
    /// Plain text with `▁` for spaces; bytes that no token covers are tokens `<0xXX>`.
    Text,
}

impl BytePairs {
    pub(super) fn new(
        merges: &[&[u8]],
        pretokenizer: &'static Pretokenizer,
        alphabet: Alphabet,
    ) -> Result<BytePairs, TokenizerError> {
        if merges.is_empty() {
            return Err(TokenizerError::NoMerges);
        }
        // A part may begin with a space, but not be empty.
        let malformed = |merge: &&[u8]| {
            let space = merge.iter().skip(1).position(|byte| *byte == b' ');
            space.is_none_or(|space| space + 2 >= merge.len())
        };
        if let Some(index) = merges.iter().position(malformed) {
            return Err(TokenizerError::MalformedMerge {
                index,
                text: String::from_utf8_lossy(merges[index]).into_owned(),
            });
        }
        Ok(BytePairs {
            merges: Strings::new(merges, ("merge", "merges"), Duplicates::KeepFirst)?,
            pretokenizer,
            alphabet,
        })
    }

    /// Appends the tokens of `text` to `ids`.
    pub(super) fn encode(&self, tokens: &Strings, text: &str, ids: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut written = String::new();
        self.pretokenizer.split(text, &mut |word| {
            written.clear();
            match self.alphabet {
                Alphabet::Bytes => written.extend(word.bytes().map(byte_to_char)),
                Alphabet::Text => written.push_str(word),
            }
            self.encode_word(tokens, &written, &mut merger, ids);
        });
    }

    fn encode_word(&self, tokens: &Strings, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        // Gemma 4 has tokens for several line ends, and no merges that lead to them.
        let newlines = self.alphabet == Alphabet::Text && word.bytes().all(|byte| byte == b'\n');
        if (self.pretokenizer.ignore_merges || newlines)
            && let Some(id) = tokens.find(word.as_bytes())
        {
            ids.push(id);
            return;
        }
        let rank = |pair: &str, left: usize| self.rank(pair, left);
        merger.merge(word, rank, |part| match tokens.find(part.as_bytes()) {
            Some(id) => ids.push(id),
            None => self.encode_unknown(tokens, part, ids),
        });
    }

    /// A part that is no token, which happens only where the vocabulary has gaps: its bytes, as
    /// far as there are tokens for them.
    fn encode_unknown(&self, tokens: &Strings, part: &str, ids: &mut Vec<u32>) {
        match self.alphabet {
            Alphabet::Bytes => ids.extend(part.chars().filter_map(|c| {
                let mut buffer = [0; 4];
                tokens.find(c.encode_utf8(&mut buffer).as_bytes())
            })),
            Alphabet::Text => ids.extend(part.bytes().filter_map(|byte| byte_token(tokens, byte))),
        }
    }

    fn rank(&self, pair: &str, left: usize) -> Option<u32> {
        const SHORT: usize = 64;
        if pair.len() >= self.merges.longest() {
            return None;
        }
        let (left, right) = pair.as_bytes().split_at(left);
        let length = pair.len() + 1;
        if length <= SHORT {
            let mut merge = [b' '; SHORT];
            merge[..left.len()].copy_from_slice(left);
            merge[left.len() + 1..length].copy_from_slice(right);
            self.merges.find(&merge[..length])
        } else {
            self.merges.find(&[left, b" ", right].concat())
        }
    }
}

/// The token `<0xXX>` of a byte.
pub(super) fn byte_token(tokens: &Strings, byte: u8) -> Option<u32> {
    tokens.find(format!("<0x{byte:02X}>").as_bytes())
}

/// The character by which GPT-2's alphabet writes a byte: printable ones of Latin-1 stand for
/// themselves, the others are numbered from U+0100 in the order of the bytes.
pub(super) fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte as u32,
        0..=0x20 => 0x100 + byte as u32,
        0x7f..=0xa0 => 0x121 + (byte - 0x7f) as u32,
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character of GPT-2's alphabet stands for.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_a_character_for_each_byte_and_back() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=255 {
            let c = byte_to_char(byte);
            assert_eq!(char_to_byte(c), Some(byte));
            assert!(seen.insert(c));
            assert!(!c.is_whitespace() && !c.is_control());
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('中'), None);
    }

    #[test]
    fn merges_need_two_parts() {
        let gpt2 = Pretokenizer::named("gpt-2").unwrap();
        for bad in ["ab", "", " a", "a ", " "] {
            let merges: [&[u8]; 2] = [b"a b", bad.as_bytes()];
            let error = BytePairs::new(&merges, gpt2, Alphabet::Bytes).unwrap_err();
            let text = bad.to_owned();
            assert_eq!(error, TokenizerError::MalformedMerge { index: 1, text });
        }
    }
}
