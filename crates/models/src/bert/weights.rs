//! The tensors of an encoder, found by the name table and checked against the configuration.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use core_tensor::{DType, Weight, WeightSource};

use super::config::BertConfig;
use super::names::{self, HeadActivation, HeadNames, IGNORED};
use crate::Error;

/// Names that a message lists at most.
const NAMED: usize = 8;

/// A linear layer: `[out, in]` as stored and `[out]` as f32.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Arc<Weight>,
    pub(crate) bias: Arc<Weight>,
}

/// A layer normalization, f32.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Arc<Weight>,
    pub(crate) bias: Arc<Weight>,
}

#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) attention_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) output_norm: Norm,
}

#[derive(Debug)]
pub(crate) enum Head {
    None,
    Sequence { first: Option<(Linear, HeadActivation)>, classifier: Linear },
    Token { classifier: Linear },
    Masked { dense: Linear, activation: HeadActivation, norm: Norm, decoder: Linear },
}

/// All that an encoder needs.
#[derive(Debug)]
pub(crate) struct BertWeights {
    pub(crate) words: Arc<Weight>,
    /// Without the rows before a text's first token.
    pub(crate) positions: Arc<Weight>,
    pub(crate) token_types: Option<Arc<Weight>>,
    pub(crate) embedding_norm: Norm,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) pooler: Option<Linear>,
    pub(crate) head: Head,
}

struct Finder<'a> {
    source: &'a dyn WeightSource,
    prefix: &'static str,
    names: HashSet<String>,
    used: HashSet<String>,
    missing: Vec<String>,
}

impl BertWeights {
    /// Finds and checks all tensors.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] with all that are missing, [`Error::UnusedTensors`], [`Error::TensorShape`], or [`Error::Tensor`] for a
    /// type that cannot be computed with.
    pub(crate) fn find(source: &dyn WeightSource, config: &BertConfig) -> Result<BertWeights, Error> {
        let table = names::table(config.family);
        let names: HashSet<String> = source.names().into_iter().map(str::to_owned).collect();
        // An encoder that was saved alone has no prefix.
        let alone = names.contains(&format!("{}.weight", table.words));
        let prefix = if alone { "" } else { table.prefix };
        let mut finder = Finder { source, prefix, names, used: HashSet::new(), missing: Vec::new() };
        let width = config.embedding;
        let words = finder.embedding(table.words, config.vocabulary, width)?;
        let positions = finder.embedding(table.positions, config.positions, width)?;
        let token_types = match config.token_types {
            0 => None,
            rows => Some(finder.embedding(table.token_types, rows, width)?),
        };
        let embedding_norm = finder.norm(table.embedding_norm, width, true)?;
        let mut layers = Vec::new();
        for number in 0..config.layers {
            let layer = finder.layer(number, table, config)?;
            // A file that lacks whole layers is told by the first of them.
            if finder.missing.len() > NAMED {
                break;
            }
            layers.extend(layer);
        }
        let head_names = names::head(config);
        // Only what is asked for: most encoders are saved with a pooler that nothing reads.
        let needs_pooler = matches!(head_names, HeadNames::Sequence { first: None, .. });
        let has_pooler = finder.has(&format!("{}.weight", table.pooler));
        let wants_pooler = needs_pooler || (has_pooler && matches!(head_names, HeadNames::None));
        let pooler = if wants_pooler { finder.linear(table.pooler, width, width, true)? } else { None };
        let head = finder.head(head_names, config, words.clone())?;
        finder.finish()?;
        // Nothing is missing: `finish` would have said so.
        let (Some(words), Some(positions), Some(embedding_norm), Some(head)) = (words, positions, embedding_norm, head)
        else {
            return Err(Error::MissingTensors { path: source.origin().into(), names: Vec::new(), count: 0 });
        };
        let positions = positions.slice_rows(config.first_position..config.positions)?;
        Ok(BertWeights { words, positions, token_types: token_types.flatten(), embedding_norm, layers, pooler, head })
    }
}

impl Finder<'_> {
    fn path(&self) -> PathBuf {
        PathBuf::from(self.source.origin())
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(&format!("{}{name}", self.prefix))
    }

    fn layer(
        &mut self,
        number: usize,
        table: &names::NameTable,
        config: &BertConfig,
    ) -> Result<Option<LayerWeights>, Error> {
        let (width, inner) = (config.embedding, config.feed_forward);
        let name = |name: &str| name.replacen("{}", &number.to_string(), 1);
        // All are looked for before one that is missing ends it, so that a message names them all.
        let q = self.linear(&name(table.q), width, width, true)?;
        let k = self.linear(&name(table.k), width, width, true)?;
        let v = self.linear(&name(table.v), width, width, true)?;
        let attention_output = self.linear(&name(table.attention_output), width, width, true)?;
        let attention_norm = self.norm(&name(table.attention_norm), width, true)?;
        let up = self.linear(&name(table.up), inner, width, true)?;
        let down = self.linear(&name(table.down), width, inner, true)?;
        let output_norm = self.norm(&name(table.output_norm), width, true)?;
        Ok((|| {
            let (q, k, v, attention_output) = (q?, k?, v?, attention_output?);
            let (attention_norm, up, down, output_norm) = (attention_norm?, up?, down?, output_norm?);
            Some(LayerWeights { q, k, v, attention_output, attention_norm, up, down, output_norm })
        })())
    }

    fn head(
        &mut self,
        names: HeadNames,
        config: &BertConfig,
        words: Option<Arc<Weight>>,
    ) -> Result<Option<Head>, Error> {
        let width = config.embedding;
        Ok(match names {
            HeadNames::None => Some(Head::None),
            HeadNames::Token { classifier } => {
                self.classifier(classifier, config)?.map(|classifier| Head::Token { classifier })
            }
            HeadNames::Sequence { first: None, classifier } => {
                self.classifier(classifier, config)?.map(|classifier| Head::Sequence { first: None, classifier })
            }
            HeadNames::Sequence { first: Some((name, activation)), classifier } => {
                let first = self.linear(name, width, width, false)?;
                let classifier = self.classifier(classifier, config)?;
                first
                    .zip(classifier)
                    .map(|(first, classifier)| Head::Sequence { first: Some((first, activation)), classifier })
            }
            HeadNames::Masked { dense, activation, norm, decoder, biases } => {
                let dense = self.linear(dense, width, width, false)?;
                let norm = self.norm(norm, width, false)?;
                // Where the decoder is tied to the embedding, the file may have it once or twice.
                let tied = !self.names.contains(decoder);
                let weight = if tied { words } else { self.tensor(decoder.into(), &[config.vocabulary, width])? };
                let [first, second] = biases;
                let name = if self.names.contains(first) { first } else { second };
                // Both are the same vector.
                self.used.insert(if name == first { second } else { first }.to_owned());
                let bias = self.tensor(name.into(), &[config.vocabulary])?;
                (|| {
                    Some(Head::Masked {
                        dense: dense?,
                        activation,
                        norm: norm?,
                        decoder: Linear { weight: weight?, bias: bias? },
                    })
                })()
            }
        })
    }

    /// A classifier: as many labels as it has rows, and as the configuration names, if it does.
    fn classifier(&mut self, name: &str, config: &BertConfig) -> Result<Option<Linear>, Error> {
        let stored = self.source.tensor(&format!("{name}.weight"));
        let rows = stored.and_then(|tensor| tensor.shape().first().copied()).unwrap_or(0);
        let named = config.labels.names.len();
        self.linear(name, if named > 0 { named } else { rows }, config.embedding, false)
    }

    fn embedding(&mut self, name: &str, rows: usize, width: usize) -> Result<Option<Arc<Weight>>, Error> {
        self.tensor(format!("{}{name}.weight", self.prefix), &[rows, width])
    }

    fn linear(&mut self, name: &str, rows: usize, width: usize, prefixed: bool) -> Result<Option<Linear>, Error> {
        let prefix = if prefixed { self.prefix } else { "" };
        let weight = self.tensor(format!("{prefix}{name}.weight"), &[rows, width])?;
        let bias = self.tensor(format!("{prefix}{name}.bias"), &[rows])?;
        Ok(weight.zip(bias).map(|(weight, bias)| Linear { weight, bias }))
    }

    fn norm(&mut self, name: &str, width: usize, prefixed: bool) -> Result<Option<Norm>, Error> {
        let prefix = if prefixed { self.prefix } else { "" };
        // Files that were converted from TensorFlow in 2018 have the older names.
        let old = self.names.contains(&format!("{prefix}{name}.gamma"));
        let [weight, bias] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let weight = self.tensor(format!("{prefix}{name}.{weight}"), &[width])?;
        let bias = self.tensor(format!("{prefix}{name}.{bias}"), &[width])?;
        Ok(weight.zip(bias).map(|(weight, bias)| Norm { weight, bias }))
    }

    fn tensor(&mut self, name: String, shape: &[usize]) -> Result<Option<Arc<Weight>>, Error> {
        if !self.names.contains(&name) {
            self.missing.push(name);
            return Ok(None);
        }
        let path = self.path();
        let Some(tensor) = self.source.tensor(&name) else {
            return Err(Error::Tensor { path, name, reason: "its type cannot be computed with yet".into() });
        };
        if tensor.shape() != shape {
            let (found, expected) = (tensor.shape().to_vec(), shape.to_vec());
            return Err(Error::TensorShape { path, name, found, expected });
        }
        if !tensor.dtype().is_float() {
            let reason = format!("{} is no type for weights", tensor.dtype());
            return Err(Error::Tensor { path, name, reason });
        }
        let weight = Weight::stored(tensor);
        // Vectors are tiny; matrices stay as stored if products take them so.
        let stays = shape.len() > 1 && matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16);
        let weight = if stays { weight } else { weight.cast(DType::F32)? };
        self.used.insert(name);
        Ok(Some(weight))
    }

    fn finish(self) -> Result<(), Error> {
        let path = self.path();
        if !self.missing.is_empty() {
            let (mut names, count) = (self.missing.clone(), self.missing.len());
            names.truncate(NAMED);
            return Err(Error::MissingTensors { path, names, count });
        }
        let ignored = |name: &&String| {
            let rest = name.strip_prefix(self.prefix).unwrap_or(name);
            IGNORED.iter().any(|part| rest.starts_with(part) || rest.ends_with(part))
        };
        let mut names: Vec<String> = self.names.difference(&self.used).filter(|name| !ignored(name)).cloned().collect();
        names.sort_unstable();
        let count = names.len();
        names.truncate(NAMED);
        if count > 0 { Err(Error::UnusedTensors { path, names, count }) } else { Ok(()) }
    }
}
