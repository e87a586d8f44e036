//! What a `config.json` says of an encoder.

use serde::Serialize;

use super::files::{Json, short};
use super::labels::Labels;
use crate::Error;

/// Extents that are believed; larger ones would be a mistake, and their products must not overflow.
const MOST_EXTENT: usize = 1 << 24;
/// Layers that are believed.
const MOST_LAYERS: usize = 1024;

/// Which kin of BERT a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// BERT and MiniLM (Devlin et al. 2018).
    Bert,
    /// RoBERTa, XLM-R and CamemBERT (Liu et al. 2019): positions begin behind the padding's id.
    Roberta,
    /// DistilBERT (Sanh et al. 2019): no token types, no pooler.
    DistilBert,
}

impl Family {
    /// The values of `model_type`, as transformers names them.
    const NAMES: [(&'static str, Family); 6] = [
        ("bert", Family::Bert),
        ("roberta", Family::Roberta),
        ("xlm-roberta", Family::Roberta),
        ("camembert", Family::Roberta),
        ("distilbert", Family::DistilBert),
        ("xlm-roberta-xl", Family::Roberta),
    ];
}

/// What stands on top of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Nothing: hidden states.
    Features,
    /// A label for the text.
    SequenceClassification,
    /// A label for each token.
    TokenClassification,
    /// The token that belongs in a gap.
    MaskedLanguage,
}

/// The activation of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * Φ(x)` with the error function.
    Gelu,
    /// `x * Φ(x)` by tanh.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)`
    Silu,
}

/// The configuration of an encoder with weights by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BertConfig {
    /// Which kin of BERT it is.
    pub family: Family,
    /// What stands on top.
    pub task: Task,
    /// Rows of the word embedding.
    pub vocabulary: usize,
    /// Width of the hidden states.
    pub embedding: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub feed_forward: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// The row of a text's first token.
    pub first_position: usize,
    /// Rows of the token type embedding; 0 if there is none.
    pub token_types: usize,
    /// Added to the variance in layer normalization.
    pub norm_epsilon: f32,
    /// Of the feed-forward layers.
    pub activation: Activation,
    /// Labels of a classifier; empty where the file names none.
    pub labels: Labels,
    /// The token that fills up shorter texts.
    pub pad_token: Option<u32>,
}

impl BertConfig {
    /// Tokens of a text at most.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }

    /// Reads a `config.json`.
    pub(crate) fn from_json(json: &Json) -> Result<BertConfig, Error> {
        let model_type = json.text("model_type")?.ok_or_else(|| json.wrong("model_type", "is missing"))?;
        let Some((_, family)) = Family::NAMES.into_iter().find(|(name, _)| *name == model_type) else {
            let known: Vec<&str> = Family::NAMES.iter().map(|(name, _)| *name).collect();
            let reason = format!("{model_type:?} is not supported (supported: {})", known.join(", "));
            return Err(json.wrong("model_type", reason));
        };
        if json.is_true("is_decoder") {
            return Err(json.wrong("is_decoder", "decoders are not supported"));
        }
        if let Some(kind) = json.text("position_embedding_type")?
            && kind != "absolute"
        {
            return Err(json.wrong("position_embedding_type", format!("{kind:?} is not supported")));
        }
        let distilled = family == Family::DistilBert;
        let key = |plain, short| if distilled { short } else { plain };
        let extent = |name| json.count(name, MOST_EXTENT);
        let embedding = extent(key("hidden_size", "dim"))?;
        let heads_key = key("num_attention_heads", "n_heads");
        let heads = extent(heads_key)?;
        if !embedding.is_multiple_of(heads) {
            return Err(json.wrong(heads_key, format!("{heads} heads do not divide the width {embedding}")));
        }
        let pad_token = pad_token(json)?;
        let positions = extent("max_position_embeddings")?;
        // RoBERTa counts positions from the padding's id on.
        let first_position = match family {
            Family::Roberta => pad_token.unwrap_or(1) as usize + 1,
            Family::Bert | Family::DistilBert => 0,
        };
        if first_position >= positions {
            return Err(json.wrong("max_position_embeddings", format!("{positions} leave no room for a token")));
        }
        Ok(BertConfig {
            family,
            task: task(json)?,
            vocabulary: extent("vocab_size")?,
            embedding,
            layers: json.count(key("num_hidden_layers", "n_layers"), MOST_LAYERS)?,
            heads,
            feed_forward: extent(key("intermediate_size", "hidden_dim"))?,
            positions,
            first_position,
            token_types: if distilled { 0 } else { json.optional_count("type_vocab_size", MOST_EXTENT)?.unwrap_or(2) },
            norm_epsilon: if distilled { 1e-12 } else { epsilon(json)? },
            activation: activation(json, key("hidden_act", "activation"))?,
            labels: Labels::from_json(json)?,
            pad_token,
        })
    }
}

/// The id of the padding token that a configuration names.
pub(crate) fn pad_token(json: &Json) -> Result<Option<u32>, Error> {
    let Some(value) = json.get("pad_token_id") else { return Ok(None) };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < MOST_EXTENT);
    id.map(Some).ok_or_else(|| json.wrong("pad_token_id", format!("{} is no token", short(value))))
}

/// What stands on top, by the name of the class that transformers has for it.
fn task(json: &Json) -> Result<Task, Error> {
    let names = json.get("architectures").and_then(|names| names.get(0)).and_then(|name| name.as_str());
    let Some(name) = names else { return Ok(Task::Features) };
    let Some((_, head)) = name.split_once("For") else { return Ok(Task::Features) };
    match head {
        "SequenceClassification" => Ok(Task::SequenceClassification),
        "TokenClassification" => Ok(Task::TokenClassification),
        "MaskedLM" | "PreTraining" => Ok(Task::MaskedLanguage),
        _ => {
            Err(json
                .wrong("architectures", format!("{:?} is not supported", name.chars().take(60).collect::<String>())))
        }
    }
}

fn epsilon(json: &Json) -> Result<f32, Error> {
    let Some(value) = json.get("layer_norm_eps") else { return Ok(1e-12) };
    let epsilon = value.as_f64().map(|epsilon| epsilon as f32).filter(|epsilon| (0.0..1.0).contains(epsilon));
    epsilon.ok_or_else(|| json.wrong("layer_norm_eps", format!("{} (a number between 0 and 1 expected)", short(value))))
}

fn activation(json: &Json, key: &str) -> Result<Activation, Error> {
    match json.text(key)? {
        None | Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some(other) => Err(json.wrong(key, format!("{other:?} is not supported"))),
    }
}
