//! What a file says about its tokenizer.

/// The entries `tokenizer.ggml.*` of a GGUF file, borrowed from it. Nothing here is trusted:
/// [`Tokenizer::new`](super::Tokenizer::new) checks all of it.
///
/// An absent key is `None`, or an empty list.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary<'a> {
    /// `model`: `"gpt2"` (byte-pair encoding), `"llama"` (SentencePiece) or `"gemma4"`.
    pub model: &'a str,
    /// `pre`: how byte-pair tokenizers cut text into words.
    pub pre: Option<&'a str>,
    /// `tokens`: the text of each token, UTF-8.
    pub tokens: Vec<&'a [u8]>,
    /// `scores`: one for each token, or none.
    pub scores: Vec<f32>,
    /// `token_type`: one for each token, or none (then all are normal).
    pub token_types: Vec<i32>,
    /// `merges`: pairs of tokens with a space between, the best first.
    pub merges: Vec<&'a [u8]>,
    /// `bos_token_id`: begins a text.
    pub bos: Option<u32>,
    /// `eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `eot_token_id`: ends a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: ends a message, before a tool is called.
    pub eom: Option<u32>,
    /// `unknown_token_id`: stands for text that no token covers.
    pub unknown: Option<u32>,
    /// `padding_token_id`: fills rows of a batch.
    pub padding: Option<u32>,
    /// `fim_pad_token_id`, `fim_rep_token_id`, `fim_sep_token_id`: more tokens that end a generation.
    pub other_ends: Vec<u32>,
    /// `add_bos_token`: whether each text begins with `bos`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`: whether each text ends with `eos`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether SentencePiece text begins with a space.
    pub add_space_prefix: Option<bool>,
}
