//! Encoders from files, as graphs.

use std::path::{Path, PathBuf};

use core_tensor::{FileAccess, Graph};
use loader_onnx::{ImportOptions, OnnxModel};
use loader_torch::SafeTensors;

use super::config::{BertConfig, pad_token};
use super::encoder::positions;
use super::files::{Format, ModelFiles, unusable};
use super::graph::build;
use super::tokens::{Text, TextTokenizer, Tokens};
use crate::Error;

/// The graph of an ONNX file.
pub(crate) fn graph(path: &Path, access: FileAccess) -> Result<Graph, Error> {
    Ok(OnnxModel::open(path, access)?.graph(&ImportOptions::default())?)
}

/// The file of an encoder that is named by its weights or its folder, and its graph.
///
/// # Errors
/// When a file is missing, malformed or not supported.
pub(crate) fn built(path: &Path, access: FileAccess) -> Result<(PathBuf, Graph), Error> {
    let files = ModelFiles::find(path)?;
    let graph = match files.format {
        Format::Onnx => graph(&files.weights, access)?,
        Format::SafeTensors => {
            let missing = || unusable(&files.weights, "there is no config.json beside it".into());
            let config = BertConfig::from_json(&files.json("config.json")?.ok_or_else(missing)?)?;
            build(&config, &SafeTensors::open(&files.weights, access)?)?
        }
    };
    Ok((files.weights, graph))
}

/// The tokens of texts, by the tokenizer beside a model; at most `max_tokens` of each.
///
/// # Errors
/// When there is no tokenizer, or it refuses a text.
pub(crate) fn tokens_of(path: &Path, max_tokens: usize, texts: &[Text<'_>]) -> Result<Vec<Tokens>, Error> {
    let files = ModelFiles::find(path)?;
    let json = files.json("config.json")?;
    let pad = json.as_ref().map(pad_token).transpose()?.flatten();
    let limit = json.as_ref().and_then(positions);
    TextTokenizer::open(&files, None, limit, Some(max_tokens), pad)?.encode(texts)
}
