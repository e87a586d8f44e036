//! The tokenizer of a GGUF file.

use loader_gguf::Gguf;

use crate::Error;
use crate::tokenizer::{Tokenizer, Vocabulary};

/// Builds the tokenizer of a GGUF file from the keys `tokenizer.ggml.*`; no tensor is read.
///
/// # Errors
/// When a key is missing or of the wrong type, or the vocabulary makes no tokenizer.
pub fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, Error> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| id(gguf, &key(name));
    let flag = |name: &str| gguf.optional::<bool>(&key(name));
    let merges = if gguf.contains(&key("merges")) { gguf.byte_strings(&key("merges"))?.collect() } else { Vec::new() };
    let scores = if gguf.contains(&key("scores")) { gguf.f32s(&key("scores"))? } else { Vec::new() };
    let types = if gguf.contains(&key("token_type")) { gguf.i32s(&key("token_type"))? } else { Vec::new() };
    let mut other_ends = Vec::new();
    for name in ["fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"] {
        other_ends.extend(id(name)?);
    }
    let (model_key, pre_key, tokens_key) = (key("model"), key("pre"), key("tokens"));
    let vocabulary = Vocabulary {
        model: gguf.str(&model_key)?,
        pre: gguf.optional(&pre_key)?,
        tokens: gguf.byte_strings(&tokens_key)?.collect(),
        scores,
        token_types: types,
        merges,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        eom: id("eom_token_id")?,
        unknown: id("unknown_token_id")?,
        padding: id("padding_token_id")?,
        other_ends,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
    };
    Tokenizer::new(&vocabulary).map_err(|source| Error::Tokenizer { path: gguf.path().to_owned(), source })
}

/// The id of a special token. Writers put -1 (or its unsigned pattern) for "none".
fn id(gguf: &Gguf, key: &str) -> Result<Option<u32>, Error> {
    let number: Option<i64> = gguf.optional(key)?;
    Ok(number.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX))
}
