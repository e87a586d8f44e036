//! Text to tokens by a `tokenizer.json`.

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationParams};

use super::files::{ModelFiles, read, unusable};
use crate::Error;

/// The thread that the tokenizer runs on. Its file comes from anywhere: a panic there is an error of the file, and not of this program.
pub const THREAD_NAME: &str = "polaris-tokenizer";

/// Bytes of a `tokenizer.json` at most.
const LONGEST: u64 = 256 << 20;
/// Tokens of a text where nothing says how many there may be.
const DEFAULT_TOKENS: usize = 512;

/// A text, or two that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'a> {
    /// The text.
    pub first: &'a str,
    /// What a classifier of pairs compares it with.
    pub second: Option<&'a str>,
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(first: &'a str) -> Text<'a> {
        Text { first, second: None }
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(first: &'a String) -> Text<'a> {
        Text { first, second: None }
    }
}

/// A tokenizer with the rules of its model.
#[derive(Debug)]
pub struct TextTokenizer {
    path: PathBuf,
    tokenizer: Tokenizer,
    max_tokens: usize,
    lowercase: bool,
    pad: u32,
    mask: Option<(u32, String)>,
}

/// A text as the model takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The ids, with the tokens that begin and end a text.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second.
    pub types: Vec<u32>,
    /// Bytes of the text that each token stands for; empty for tokens that were added.
    pub offsets: Vec<(usize, usize)>,
    /// Whether a token was added.
    pub special: Vec<bool>,
    /// The word that each token belongs to.
    pub words: Vec<Option<u32>>,
    /// Whether the text was too long, and its end is missing.
    pub truncated: bool,
}

impl TextTokenizer {
    /// Opens the tokenizer of a model. `limit` is what the model itself can take, `max_tokens` what the caller asks for, `pad` the
    /// model's padding token.
    ///
    /// # Errors
    /// When there is no tokenizer, or its file is malformed.
    pub(crate) fn open(
        files: &ModelFiles,
        path: Option<&Path>,
        limit: Option<usize>,
        max_tokens: Option<usize>,
        pad: Option<u32>,
    ) -> Result<TextTokenizer, Error> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => files
                .beside("tokenizer.json")
                .ok_or_else(|| unusable(&files.weights, "there is no tokenizer.json beside it".into()))?,
        };
        let bytes = read(&path, LONGEST)?;
        let wrong = |error: String| unusable(&path, error);
        let (mut tokenizer, stored) = apart(|| {
            let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string())?;
            // Files carry the padding and truncation of some run; both are done as the model asks for.
            let stored = tokenizer.get_truncation().map(|truncation| truncation.max_length);
            let padding = tokenizer.get_padding().map(|padding| padding.pad_id);
            tokenizer.with_padding(None).with_truncation(None).map_err(|error| error.to_string())?;
            Ok((tokenizer, (stored, padding)))
        })
        .map_err(wrong)?;
        let (stored, stored_pad) = stored;
        let sentences = files.json("sentence_bert_config.json")?;
        let general = files.json("tokenizer_config.json")?;
        let mut longest = None;
        if let Some(json) = &sentences {
            longest = json.get("max_seq_length").and_then(Value::as_u64);
        }
        if let (None, Some(json)) = (longest, &general) {
            // Where nothing was known, the file has 1e30.
            longest = json.get("model_max_length").and_then(Value::as_u64).filter(|length| *length < 1 << 24);
        }
        let longest =
            longest.and_then(|length| usize::try_from(length).ok()).or(limit).or(stored).unwrap_or(DEFAULT_TOKENS);
        let longest = longest.min(limit.unwrap_or(usize::MAX));
        let max_tokens = max_tokens.map_or(longest, |asked| asked.min(limit.unwrap_or(usize::MAX)));
        apart(|| {
            let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
            tokenizer.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
            Ok(())
        })
        .map_err(|reason| Error::Option { name: "max_tokens", reason })?;
        let id =
            |names: [&str; 2]| names.into_iter().find_map(|name| Some((tokenizer.token_to_id(name)?, name.to_owned())));
        let named = general.as_ref().and_then(|json| {
            let value = json.get("mask_token")?;
            let name = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((tokenizer.token_to_id(name)?, name.to_owned()))
        });
        Ok(TextTokenizer {
            pad: pad.or(stored_pad).or(id(["[PAD]", "<pad>"]).map(|(id, _)| id)).unwrap_or(0),
            mask: named.or(id(["[MASK]", "<mask>"])),
            lowercase: sentences.is_some_and(|json| json.is_true("do_lower_case")),
            max_tokens,
            tokenizer,
            path,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens of a text at most, with those that are added; what is longer is cut.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The token that fills up shorter texts.
    #[must_use]
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The token for a gap, and how it is written in a text.
    #[must_use]
    pub fn mask(&self) -> Option<(u32, &str)> {
        self.mask.as_ref().map(|(id, name)| (*id, name.as_str()))
    }

    /// The tokens of texts.
    ///
    /// # Errors
    /// When the tokenizer refuses one.
    pub fn encode(&self, texts: &[Text<'_>]) -> Result<Vec<Tokens>, Error> {
        apart(|| texts.iter().map(|text| self.encode_one(*text)).collect())
            .map_err(|reason| unusable(&self.path, reason))
    }

    fn encode_one(&self, text: Text<'_>) -> Result<Tokens, String> {
        let lower = |text: &str| if self.lowercase { text.to_lowercase() } else { text.to_owned() };
        let input = match text.second {
            None => EncodeInput::Single(lower(text.first).into()),
            Some(second) => EncodeInput::Dual(lower(text.first).into(), lower(second).into()),
        };
        let encoding: Encoding = self.tokenizer.encode(input, true).map_err(|error| error.to_string())?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            special: encoding.get_special_tokens_mask().iter().map(|special| *special != 0).collect(),
            words: encoding.get_word_ids().to_vec(),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }

    /// The text of tokens, without those that were added.
    ///
    /// # Errors
    /// When the tokenizer refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        apart(|| self.tokenizer.decode(ids, true).map_err(|error| error.to_string()))
            .map_err(|reason| unusable(&self.path, reason))
    }

    /// A token as the vocabulary has it.
    #[must_use]
    pub fn piece(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }
}

/// Runs something on a thread of its own, so that a panic in it becomes an error.
fn apart<T: Send>(run: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().name(THREAD_NAME.into()).spawn_scoped(scope, run);
        let thread = spawned.map_err(|error| format!("no thread for the tokenizer: {error}"))?;
        thread.join().unwrap_or_else(|_| {
            Err("the tokenizer gave up: the file is damaged, or has a form that is not supported".into())
        })
    })
}
