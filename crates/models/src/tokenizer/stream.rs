//! Turning tokens into text while they are generated.

use super::Tokenizer;

/// Turns tokens into text one by one. A character may be spread over several tokens; its bytes
/// are held back until it is complete, so that what is handed out is always valid UTF-8.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    special: bool,
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder that leaves control tokens out.
    pub fn new() -> StreamDecoder {
        StreamDecoder::default()
    }

    /// A decoder that writes control tokens as their text, too.
    pub fn with_special() -> StreamDecoder {
        StreamDecoder { special: true, ..StreamDecoder::default() }
    }

    /// The text that token `id` completes, which may be empty. Bytes that can never become a
    /// character are replaced by U+FFFD. An id beyond the vocabulary has no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        tokenizer.append_bytes(id, self.special, &mut self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete(&self.pending)]).into_owned();
        self.pending.drain(..complete(&self.pending));
        text
    }

    /// What was held back, with U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// The length of `bytes` without a last character that more bytes could complete.
fn complete(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    // Of a character's at most four bytes, the first one tells how many there are.
    let lead = bytes[tail..].iter().rposition(|byte| byte & 0xc0 != 0x80);
    match lead.map(|lead| &bytes[tail + lead..]) {
        Some(last) => match std::str::from_utf8(last) {
            Err(error) if error.error_len().is_none() => bytes.len() - last.len(),
            _ => bytes.len(),
        },
        None => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_incomplete_character_is_held_back_and_a_hopeless_one_is_not() {
        assert_eq!(complete(b""), 0);
        assert_eq!(complete(b"a"), 1);
        assert_eq!(complete("aé".as_bytes()), 3);
        assert_eq!(complete(b"a\xc3"), 1);
        assert_eq!(complete(b"\xf0\x9f\xa6"), 0);
        assert_eq!(complete("🦙".as_bytes()), 4);
        assert_eq!(complete(b"\xff"), 1);
        assert_eq!(complete(b"\xa6\xa6\xa6\xa6"), 4);
        assert_eq!(complete(b"\xe0\x80"), 2);
    }

    proptest! {
        #[test]
        fn pieces_of_any_bytes_join_to_what_decoding_at_once_gives(
            bytes: Vec<u8>,
            cuts: Vec<prop::sample::Index>,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = StreamDecoder::new();
            let mut text = String::new();
            for cut in cuts.windows(2) {
                decoder.pending.extend_from_slice(&bytes[cut[0]..cut[1]]);
                let end = complete(&decoder.pending);
                text.push_str(&String::from_utf8_lossy(&decoder.pending[..end]));
                decoder.pending.drain(..end);
            }
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
