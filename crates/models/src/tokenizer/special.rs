//! Tokens that are not made from text by merging: which there are, finding them in text, and which
//! of them end a generation.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::error::TokenizerError;
use super::strings::Strings;

/// What kind a token is (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for text that the vocabulary does not cover, type 2.
    Unknown,
    /// Steers the model, such as the begin of a text or the end of a turn, type 3.
    Control,
    /// Text that is always one token, type 4.
    UserDefined,
    /// Reserved and without meaning, type 5.
    Unused,
    /// A byte, written as `<0xXX>`, type 6.
    Byte,
}

impl TokenKind {
    /// The kind of a number in the file. Numbers without meaning are [`TokenKind::Unused`].
    pub(super) fn from_number(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            6 => TokenKind::Byte,
            _ => TokenKind::Unused,
        }
    }
}

/// Texts of tokens that end a generation in the models that have them.
const END_TEXTS: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // What follows is another file or repository, which nobody asked for.
    "<|file_sep|>",
];

/// More of them: padding and repository names of code models.
const CODE_END_TEXTS: [&str; 10] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
];

/// Texts of control tokens that files are known to mark as plain text.
const CONTROL_TEXTS: [&str; 24] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Texts of tokens that frame gpt-oss's channels, which are part of its answer.
const VISIBLE_TEXTS: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Finds the tokens that end a generation, and corrects kinds, by the texts of well-known tokens.
/// GGUF files seldom name more than one end token, and some give control tokens the wrong type;
/// the rules are llama.cpp's. The result is sorted; `named` are the ids that the file names.
pub(super) fn end_tokens(tokens: &Strings, kinds: &mut [TokenKind], named: impl Iterator<Item = u32>) -> Vec<u32> {
    let find = |text: &str| tokens.find(text.as_bytes());
    let mut ends = Vec::new();
    for id in END_TEXTS.iter().chain(&CODE_END_TEXTS).filter_map(|text| find(text)) {
        set(kinds, id, TokenKind::Control);
        ends.push(id);
    }
    for id in CONTROL_TEXTS.iter().filter_map(|text| find(text)) {
        set(kinds, id, TokenKind::Control);
    }
    for id in VISIBLE_TEXTS.iter().filter_map(|text| find(text)) {
        set(kinds, id, TokenKind::UserDefined);
    }
    ends.extend(named);
    ends.sort_unstable();
    ends.dedup();

    // In the format of gpt-oss and Solar Open, "<|end|>" ends a message and not the answer.
    let has = |text| find(text).is_some();
    let channels = has("<|return|>") && has("<|call|>") || has("<|calls|>") && has("<|flush|>");
    if let Some(end) = find("<|end|>").filter(|_| channels) {
        ends.retain(|id| *id != end);
        set(kinds, end, TokenKind::UserDefined);
    }
    // Gemma 4 and PLaMo have an ordinary token "</s>".
    let ordinary = has("<|tool_response>") || has("<|plamo:eos|>");
    if let Some(id) = find("</s>").filter(|_| ordinary) {
        ends.retain(|end| *end != id);
        set(kinds, id, TokenKind::Normal);
    }
    ends
}

fn set(kinds: &mut [TokenKind], id: u32, kind: TokenKind) {
    if let Some(place) = kinds.get_mut(id as usize) {
        *place = kind;
    }
}

/// A stretch of text, cut at special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds special tokens in text. Where several begin at one place the longest one counts, and what
/// begins first goes before what begins later.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    all: Matcher,
    user_defined: Matcher,
}

impl SpecialTokens {
    pub(super) fn new(tokens: &Strings, kinds: &[TokenKind]) -> Result<SpecialTokens, TokenizerError> {
        Ok(SpecialTokens {
            all: Matcher::new(tokens, kinds, |kind| {
                matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            })?,
            user_defined: Matcher::new(tokens, kinds, |kind| kind == TokenKind::UserDefined)?,
        })
    }

    /// Hands the fragments of `text` to `emit` in order; no text is empty. Without `control`,
    /// only user-defined tokens are found.
    pub(super) fn split<'t>(&self, text: &'t str, control: bool, emit: impl FnMut(Fragment<'t>)) {
        match control {
            true => self.all.split(text, emit),
            false => self.user_defined.split(text, emit),
        }
    }
}

#[derive(Debug)]
struct Matcher {
    /// Nothing, if there are no such tokens.
    automaton: Option<AhoCorasick>,
    /// The token of each pattern.
    ids: Vec<u32>,
}

impl Matcher {
    fn new(
        tokens: &Strings,
        kinds: &[TokenKind],
        wanted: impl Fn(TokenKind) -> bool,
    ) -> Result<Matcher, TokenizerError> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = (0..)
            .zip(tokens.iter().zip(kinds))
            .filter(|(_, (text, kind))| wanted(**kind) && !text.is_empty())
            .map(|(id, (text, _))| (id, text))
            .unzip();
        if ids.is_empty() {
            let automaton = None;
            return Ok(Matcher { automaton, ids });
        }
        // The automaton takes many times the memory of the texts; real ones have some ten thousand bytes.
        const MOST: usize = 4 << 20;
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        if bytes > MOST {
            return Err(TokenizerError::SpecialTokens(format!("{bytes} bytes, more than {MOST}")));
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::NoncontiguousNFA))
            .build(texts)
            .map_err(|error| TokenizerError::SpecialTokens(error.to_string()))?;
        let automaton = Some(automaton);
        Ok(Matcher { automaton, ids })
    }

    fn split<'t>(&self, text: &'t str, mut emit: impl FnMut(Fragment<'t>)) {
        let mut end = 0;
        if let Some(automaton) = &self.automaton {
            for found in automaton.find_iter(text) {
                if end < found.start() {
                    emit(Fragment::Text(&text[end..found.start()]));
                }
                emit(Fragment::Token(self.ids[found.pattern().as_usize()]));
                end = found.end();
            }
        }
        if end < text.len() {
            emit(Fragment::Text(&text[end..]));
        }
    }
}
