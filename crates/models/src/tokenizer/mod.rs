//! Text to token ids and back, with the vocabulary that a GGUF file carries.
//!
//! Two families are here: byte-pair encoding (`gpt2`: GPT-2, Llama 3, Qwen, SmolLM, Falcon,
//! DeepSeek …, and Gemma 4's variant of it) and SentencePiece (`llama`: Llama 2, TinyLlama,
//! Mistral, Gemma 1–3). The ids are those of llama.cpp; where it departs from the model's original
//! tokenizer, the module that does so says which one is followed.
//!
//! ```
//! use models::tokenizer::{EncodeOptions, Tokenizer, Vocabulary};
//!
//! let vocabulary = Vocabulary {
//!     model: "gpt2",
//!     pre: Some("gpt-2"),
//!     tokens: [&b"h"[..], b"i", b"hi", b"\xc4\xa0", b"<|end|>"].to_vec(),
//!     token_types: vec![1, 1, 1, 1, 3],
//!     merges: vec![b"h i"],
//!     eos: Some(4),
//!     ..Vocabulary::default()
//! };
//! let tokenizer = Tokenizer::new(&vocabulary)?;
//! let ids = tokenizer.encode("hi hi<|end|>", EncodeOptions::default());
//! assert_eq!(ids, [2, 3, 2, 4]);
//! assert_eq!(tokenizer.decode(&ids), "hi hi");
//! assert!(tokenizer.is_end_of_generation(4));
//! # Ok::<(), models::tokenizer::TokenizerError>(())
//! ```
//!
//! Any text takes O(n log n) time, any vocabulary is checked, and nothing here panics on either.
//!
//! # Why not a library
//!
//! A program that answers one question builds its tokenizer once and encodes one prompt, so what
//! counts is the start. On the 2-core machine of the project's benchmarks this module is ready with
//! SmolLM2's 49,152 tokens and 48,900 merges after 4 ms and with Llama 3's 128,256 and 280,147 after
//! 17 ms; `tokenizers` 0.23 takes 45 and 225 ms of processor time to make its model from the same
//! lists in memory (through its Python binding, the conversion of the lists included). It looks up
//! the parts of every merge; here, merges are hashed as they are written and parts are joined when
//! they are looked for. It also has no pre-tokenizer by the names that GGUF files give, and its regular
//! expressions can take quadratic time. 45 KB of English text take 5 ms here (10,710 tokens), 10 ms
//! with SentencePiece.

mod byte_pairs;
mod error;
mod merge;
mod pretokenizer;
mod sentencepiece;
mod special;
mod stream;
mod strings;
mod vocabulary;

use std::borrow::Cow;

pub use error::TokenizerError;
pub use special::TokenKind;
pub use stream::StreamDecoder;
pub use vocabulary::Vocabulary;

use byte_pairs::{Alphabet, BytePairs};
use pretokenizer::Pretokenizer;
use sentencepiece::{SPACE, SentencePiece};
use special::{Fragment, SpecialTokens};
use strings::{Duplicates, Strings};

/// How [`Tokenizer::encode`] treats what is not plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Adds the tokens that begin and end a text, as far as the vocabulary asks for them.
    pub add_special: bool,
    /// Takes the text of a control token, such as `<|im_end|>`, for that token. Leave it out for
    /// text that somebody else wrote, who must not steer the model. (User-defined tokens are
    /// plain text, and found in any case.)
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    /// Both: right for prompts that a chat template rendered or that a user gives as they are.
    fn default() -> Self {
        EncodeOptions { add_special: true, parse_special: true }
    }
}

/// Turns text into token ids, and ids into text.
#[derive(Debug)]
pub struct Tokenizer {
    tokens: Strings,
    kinds: Vec<TokenKind>,
    algorithm: Algorithm,
    special: SpecialTokens,
    /// Sorted.
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    /// Tokens to put before and after each text.
    first: Option<u32>,
    last: Option<u32>,
    add_space_prefix: bool,
    /// Whether text and tokens have `▁` for spaces.
    escape_spaces: bool,
}

#[derive(Debug)]
enum Algorithm {
    BytePairs(BytePairs),
    SentencePiece(SentencePiece),
}

/// The models that [`Tokenizer::new`] takes, for messages.
const MODELS: &str = "gpt2, llama, gemma4";

impl Tokenizer {
    /// Checks a vocabulary and prepares it.
    ///
    /// # Errors
    /// Whatever [`TokenizerError`] lists.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
        check_counts(vocabulary)?;
        let tokens = Strings::new(&vocabulary.tokens, ("token", "tokens"), Duplicates::Reject)?;
        let ids = Ids::new(vocabulary)?;
        let style = Style::new(vocabulary)?;
        let algorithm = match style.pretokenizer {
            Some((pretokenizer, alphabet)) => {
                Algorithm::BytePairs(BytePairs::new(&vocabulary.merges, pretokenizer, alphabet)?)
            }
            None => Algorithm::SentencePiece(SentencePiece::new(&tokens, &vocabulary.scores, ids.unknown)?),
        };
        let mut kinds = match vocabulary.token_types.is_empty() {
            true => vec![TokenKind::Normal; tokens.len()],
            false => vocabulary.token_types.iter().copied().map(TokenKind::from_number).collect(),
        };
        let named = [ids.eos, ids.eot, ids.eom].into_iter().flatten();
        let other = vocabulary.other_ends.iter().copied();
        let other = other.filter(|id| (*id as usize) < tokens.len());
        let ends = special::end_tokens(&tokens, &mut kinds, named.chain(other));
        Ok(Tokenizer {
            special: SpecialTokens::new(&tokens, &kinds)?,
            first: added("beginning-of-text", ids.bos, vocabulary.add_bos, style.add_bos)?,
            last: added("end-of-text", ids.eos, vocabulary.add_eos, false)?,
            add_space_prefix: vocabulary.add_space_prefix.unwrap_or(style.add_space_prefix),
            escape_spaces: style.escape_spaces,
            tokens,
            kinds,
            algorithm,
            ends,
            bos: ids.bos,
            eos: ids.eos,
            eot: ids.eot,
            eom: ids.eom,
            unknown: ids.unknown,
            padding: ids.padding,
        })
    }

    /// The ids of `text`.
    ///
    /// Text that the vocabulary does not cover becomes its unknown token, if there is one, and
    /// else nothing; vocabularies cover all bytes, so that this happens only with broken ones.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special {
            ids.extend(self.first);
        }
        // SentencePiece adds its space at the start and after each special token.
        let mut at_start = true;
        self.special.split(text, options.parse_special, |fragment| match fragment {
            Fragment::Token(id) => {
                ids.push(id);
                at_start = true;
            }
            Fragment::Text(text) => {
                self.encode_text(text, at_start, &mut ids);
                at_start = false;
            }
        });
        if options.add_special {
            ids.extend(self.last);
        }
        ids
    }

    fn encode_text(&self, text: &str, at_start: bool, ids: &mut Vec<u32>) {
        let escaped = match self.escape_spaces {
            true => Cow::Owned(text.replace(' ', SPACE)),
            false => Cow::Borrowed(text),
        };
        match &self.algorithm {
            Algorithm::BytePairs(algorithm) => algorithm.encode(&self.tokens, &escaped, ids),
            Algorithm::SentencePiece(algorithm) => {
                let text = match self.add_space_prefix && at_start {
                    true => Cow::Owned([SPACE, &escaped].concat()),
                    false => escaped,
                };
                algorithm.encode(&self.tokens, &text, ids);
            }
        }
    }

    /// The text of `ids` without control tokens, and without the space that SentencePiece put
    /// before it. Bytes that are no UTF-8 become U+FFFD, and ids beyond the vocabulary nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            self.append_bytes(*id, false, &mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        match text.strip_prefix(' ') {
            Some(stripped) if self.add_space_prefix => stripped.to_owned(),
            _ => text.into_owned(),
        }
    }

    /// The bytes that token `id` stands for, which may be a part of a character. Control tokens
    /// are their name; an id beyond the vocabulary has none.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.append_bytes(id, true, &mut bytes);
        bytes
    }

    /// The text of token `id` as the file writes it: with `Ġ` or `▁` for spaces.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.tokens.get(id)
    }

    /// The kind of token `id`.
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The token with this text, written as the file writes it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.tokens.find(text.as_bytes())
    }

    /// How many tokens there are. (A model may have more outputs; those have no text.)
    pub fn vocabulary_size(&self) -> usize {
        self.tokens.len()
    }

    /// Whether a generation is over with this token: it ends a text, a turn or a message.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, in ascending order.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn, if the file names it.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The token that ends a message, if the file names it.
    pub fn eom(&self) -> Option<u32> {
        self.eom
    }

    /// The token for what no other token covers.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The token that fills rows of a batch.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Whether [`Tokenizer::encode`] puts [`Tokenizer::bos`] before a text.
    pub fn adds_bos(&self) -> bool {
        self.first.is_some()
    }

    /// Whether [`Tokenizer::encode`] puts [`Tokenizer::eos`] after a text.
    pub fn adds_eos(&self) -> bool {
        self.last.is_some()
    }

    /// Appends the bytes of token `id`; those of control tokens only with `special`.
    fn append_bytes(&self, id: u32, special: bool, bytes: &mut Vec<u8>) {
        let (Some(text), Some(kind)) = (self.token_text(id), self.token_kind(id)) else {
            return;
        };
        match kind {
            TokenKind::Control | TokenKind::Unknown if !special => {}
            TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
                bytes.extend_from_slice(text.as_bytes());
            }
            TokenKind::Unused => {}
            TokenKind::Byte => bytes.extend(byte_of(text)),
            TokenKind::Normal if self.escape_spaces => {
                bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes());
            }
            TokenKind::Normal => {
                for c in text.chars() {
                    match byte_pairs::char_to_byte(c) {
                        Some(byte) => bytes.push(byte),
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
    }
}

/// The byte of a token `<0xXX>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

fn check_counts(vocabulary: &Vocabulary<'_>) -> Result<(), TokenizerError> {
    let tokens = vocabulary.tokens.len();
    if tokens == 0 {
        return Err(TokenizerError::NoTokens);
    }
    let counts = [("scores", vocabulary.scores.len()), ("token types", vocabulary.token_types.len())];
    match counts.into_iter().find(|(_, found)| *found != 0 && *found != tokens) {
        None => Ok(()),
        Some((what, found)) => Err(TokenizerError::CountMismatch { what, found, tokens }),
    }
}

/// The token to add to each text.
fn added(role: &'static str, id: Option<u32>, asked: Option<bool>, usual: bool) -> Result<Option<u32>, TokenizerError> {
    match (asked, id) {
        (Some(true), None) => Err(TokenizerError::MissingId { role }),
        (asked, id) => Ok(id.filter(|_| asked.unwrap_or(usual))),
    }
}

/// The ids of tokens with a role, within the vocabulary.
struct Ids {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

impl Ids {
    fn new(vocabulary: &Vocabulary<'_>) -> Result<Ids, TokenizerError> {
        let tokens = vocabulary.tokens.len();
        let sentencepiece = vocabulary.model == "llama";
        let usual = |id: u32| Some(id).filter(|id| sentencepiece && (*id as usize) < tokens);
        let check = |role, id: Option<u32>| match id {
            Some(id) if id as usize >= tokens => Err(TokenizerError::IdOutOfRange { role, id, tokens }),
            id => Ok(id),
        };
        // These two steer nothing, and there are files about with a padding id that is the size
        // of the vocabulary.
        let lenient = |role, id: Option<u32>| {
            check(role, id).unwrap_or_else(|error| {
                tracing::warn!("ignored: {error}");
                None
            })
        };
        Ok(Ids {
            bos: check("beginning-of-text", vocabulary.bos)?.or(usual(1)),
            eos: check("end-of-text", vocabulary.eos)?.or(usual(2)),
            eot: check("end-of-turn", vocabulary.eot)?,
            eom: check("end-of-message", vocabulary.eom)?,
            unknown: lenient("unknown", vocabulary.unknown).or(usual(0)),
            padding: lenient("padding", vocabulary.padding),
        })
    }
}

/// What follows from the names of the tokenizer's model and pre-tokenizer.
struct Style {
    /// Nothing for SentencePiece.
    pretokenizer: Option<(&'static Pretokenizer, Alphabet)>,
    add_bos: bool,
    add_space_prefix: bool,
    escape_spaces: bool,
}

impl Style {
    fn new(vocabulary: &Vocabulary<'_>) -> Result<Style, TokenizerError> {
        match vocabulary.model {
            "llama" if vocabulary.scores.is_empty() => Err(TokenizerError::NoScores),
            "llama" => Ok(Style { pretokenizer: None, add_bos: true, add_space_prefix: true, escape_spaces: true }),
            "gpt2" => {
                let name = vocabulary.pre.unwrap_or_else(|| {
                    tracing::warn!("the file names no pre-tokenizer; \"default\" may be wrong");
                    "default"
                });
                Style::byte_pairs(name)
            }
            "gemma4" => Style::byte_pairs("gemma4"),
            model => {
                Err(TokenizerError::UnsupportedModel { model: model.chars().take(64).collect(), supported: MODELS })
            }
        }
    }

    fn byte_pairs(name: &str) -> Result<Style, TokenizerError> {
        let Some(pretokenizer) = Pretokenizer::named(name) else {
            return Err(TokenizerError::UnknownPretokenizer {
                name: name.to_owned(),
                known: Pretokenizer::names().collect::<Vec<_>>().join(", "),
            });
        };
        let text = name == "gemma4";
        let alphabet = match text {
            true => Alphabet::Text,
            false => Alphabet::Bytes,
        };
        Ok(Style {
            pretokenizer: Some((pretokenizer, alphabet)),
            add_bos: pretokenizer.add_bos,
            add_space_prefix: false,
            escape_spaces: text,
        })
    }
}

#[cfg(test)]
mod tests;
