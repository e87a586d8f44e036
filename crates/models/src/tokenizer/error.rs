//! Why a tokenizer could not be built.

/// Why a vocabulary cannot be made a [`Tokenizer`](super::Tokenizer). Indices count from 0.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not implemented.
    #[error("tokenizer model {model:?} is not supported (supported: {supported})")]
    UnsupportedModel {
        /// The name in the file.
        model: String,
        /// The names that are supported.
        supported: &'static str,
    },
    /// `tokenizer.ggml.pre` names an unknown pre-tokenizer: guessing would give wrong tokens.
    #[error("pre-tokenizer {name:?} is not known (known: {known})")]
    UnknownPretokenizer {
        /// The name in the file.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// The vocabulary is empty.
    #[error("the vocabulary has no tokens")]
    NoTokens,
    /// A byte-pair vocabulary has no merges.
    #[error("the vocabulary has no merges, which a byte-pair tokenizer needs")]
    NoMerges,
    /// A SentencePiece vocabulary has no scores.
    #[error("the vocabulary has no scores, which a SentencePiece tokenizer needs")]
    NoScores,
    /// Scores or types are not as many as tokens.
    #[error("{found} {what} for {tokens} tokens")]
    CountMismatch {
        /// "scores" or "token types".
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many tokens there are.
        tokens: usize,
    },
    /// More tokens, merges or text than 32-bit ids and offsets can name.
    #[error("the {what} are more than 32-bit offsets can name")]
    TooLarge {
        /// "tokens" or "merges".
        what: &'static str,
    },
    /// A token or merge is not UTF-8.
    #[error("{what} {index} is not UTF-8")]
    NotUtf8 {
        /// "token" or "merge".
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// Two tokens have the same text.
    #[error("tokens {first} and {second} are the same text {text:?}")]
    DuplicateToken {
        /// The lower index.
        first: usize,
        /// The higher index.
        second: usize,
        /// The text.
        text: String,
    },
    /// A merge is not two parts with a space between.
    #[error("merge {index} is {text:?}, not two parts with a space between")]
    MalformedMerge {
        /// Its index.
        index: usize,
        /// Its text.
        text: String,
    },
    /// A score is not a number.
    #[error("the score of token {index} is not a number")]
    ScoreNotANumber {
        /// The index of the token.
        index: usize,
    },
    /// A special token's id is beyond the vocabulary.
    #[error("the {role} token has id {id}, but there are {tokens} tokens")]
    IdOutOfRange {
        /// What the id is for, such as "end-of-text".
        role: &'static str,
        /// The id.
        id: u32,
        /// How many tokens there are.
        tokens: usize,
    },
    /// The file asks for a token to be added to each text, and does not say which.
    #[error("the vocabulary asks to add a {role} token and names none")]
    MissingId {
        /// "beginning-of-text" or "end-of-text".
        role: &'static str,
    },
    /// The matcher of special tokens could not be built.
    #[error("the special tokens are too many or too long to match: {0}")]
    SpecialTokens(String),
}
