//! The text in chunks, and what enters the first layer.

use core_tensor::{Tensor, decode_f32};
use loader_gguf::Gguf;

use super::ReconstructOptions;
use crate::Error;
use crate::llama::{Architecture, LlamaConfig, Picked, tokenizer};
use crate::tokenizer::EncodeOptions;

/// What becomes of some rows of weights.
pub(super) type Changed<'a> = dyn Fn(&[f32]) -> Result<Vec<f32>, Error> + 'a;

/// The table of the tokens' embeddings.
pub(super) const EMBEDDING: &str = "token_embd.weight";

/// Chunks of tokens, each begun with the token that begins a text if the model wants one; what remains behind the last whole chunk is left out.
pub(super) struct Chunks {
    chunks: Vec<Vec<u32>>,
}

impl Chunks {
    pub(super) fn new(model: &Gguf, text: &str, options: &ReconstructOptions) -> Result<Chunks, Error> {
        let tokenizer = tokenizer(model)?;
        let tokens = tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: false });
        let context = options.context;
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        let numbers = Picked::Spread.numbers(tokens.len() / context, Some(options.chunks));
        let chunk = |number: usize| &tokens[number * context..][..context];
        let chunks: Vec<Vec<u32>> = numbers
            .into_iter()
            .map(|number| [&[bos.unwrap_or(chunk(number)[0])], &chunk(number)[1..]].concat())
            .collect();
        if chunks.is_empty() {
            return Err(Error::TextTooShort { tokens: tokens.len(), needed: context, context });
        }
        Ok(Chunks { chunks })
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The rows of the embedding, f32 `[tokens, width]` for each chunk; as `changed` makes them, where it is given.
    pub(super) fn embedded(
        &self,
        model: &Gguf,
        config: &LlamaConfig,
        changed: Option<&Changed<'_>>,
    ) -> Result<Vec<Tensor>, Error> {
        let table = model.tensor(EMBEDDING)?;
        let fault =
            |reason: String| Error::Tensor { path: model.path().to_owned(), name: EMBEDDING.to_owned(), reason };
        let width = config.embedding;
        let (Some(row_bytes), from) = (table.dtype().row_bytes(width), table.dtype()) else {
            return Err(fault(format!("rows of {width} weights are no whole blocks")));
        };
        let factor = match config.architecture {
            Architecture::Gemma3 => (width as f32).sqrt(),
            Architecture::Llama | Architecture::Qwen2 => 1.0,
        };
        let row = |token: u32| -> Result<Vec<f32>, String> {
            let at = token as usize * row_bytes;
            let bytes = table.bytes().get(at..at + row_bytes).ok_or_else(|| format!("it has no row {token}"))?;
            decode_f32(from, bytes, width).map_err(|error| error.to_string())
        };
        let chunk = |chunk: &Vec<u32>| -> Result<Tensor, Error> {
            let mut values = Vec::with_capacity(chunk.len() * width);
            for token in chunk {
                values.extend(row(*token).map_err(fault)?);
            }
            if let Some(changed) = changed {
                values = changed(&values)?;
            }
            values.iter_mut().for_each(|value| *value *= factor);
            Ok(Tensor::from_slice(&[chunk.len(), width], &values)?)
        };
        self.chunks.iter().map(chunk).collect()
    }
}
