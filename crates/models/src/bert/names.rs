//! How checkpoints of each family name their tensors.

use super::config::{BertConfig, Family, Task};

/// The names of a family, after its prefix; `{}` stands for the layer's number. Each has a `.weight`, and a `.bias` but for embeddings.
#[derive(Debug)]
pub(crate) struct NameTable {
    /// What stands before all names, unless the file is that of the encoder alone.
    pub(crate) prefix: &'static str,
    pub(crate) words: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) token_types: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) q: &'static str,
    pub(crate) k: &'static str,
    pub(crate) v: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) output_norm: &'static str,
    pub(crate) pooler: &'static str,
}

const BERT: NameTable = NameTable {
    prefix: "bert.",
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    q: "encoder.layer.{}.attention.self.query",
    k: "encoder.layer.{}.attention.self.key",
    v: "encoder.layer.{}.attention.self.value",
    attention_output: "encoder.layer.{}.attention.output.dense",
    attention_norm: "encoder.layer.{}.attention.output.LayerNorm",
    up: "encoder.layer.{}.intermediate.dense",
    down: "encoder.layer.{}.output.dense",
    output_norm: "encoder.layer.{}.output.LayerNorm",
    pooler: "pooler.dense",
};

const ROBERTA: NameTable = NameTable { prefix: "roberta.", ..BERT };

const DISTILBERT: NameTable = NameTable {
    prefix: "distilbert.",
    q: "transformer.layer.{}.attention.q_lin",
    k: "transformer.layer.{}.attention.k_lin",
    v: "transformer.layer.{}.attention.v_lin",
    attention_output: "transformer.layer.{}.attention.out_lin",
    attention_norm: "transformer.layer.{}.sa_layer_norm",
    up: "transformer.layer.{}.ffn.lin1",
    down: "transformer.layer.{}.ffn.lin2",
    output_norm: "transformer.layer.{}.output_layer_norm",
    ..BERT
};

/// What stands on top of the layers, with the names of its tensors (no prefix).
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeadNames {
    /// Nothing.
    None,
    /// A label for the text: `first` with its activation over the first token (`None`: over the pooler's output), then `classifier`.
    Sequence { first: Option<(&'static str, HeadActivation)>, classifier: &'static str },
    /// A label for each token.
    Token { classifier: &'static str },
    /// Scores of the vocabulary: a dense layer, its norm, and the word embedding again unless `decoder` is there.
    Masked {
        dense: &'static str,
        activation: HeadActivation,
        norm: &'static str,
        decoder: &'static str,
        biases: [&'static str; 2],
    },
}

/// The activation of a head's dense layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HeadActivation {
    Tanh,
    Relu,
    Gelu,
    /// That of the feed-forward layers.
    OfLayers,
}

/// Tensors that may be there without being used: buffers, heads for other tasks, the pooler.
pub(crate) const IGNORED: [&str; 8] =
    ["position_ids", "cls.", "lm_head.", "classifier.", "pre_classifier.", "vocab_", "pooler.", "qa_outputs."];

pub(crate) fn table(family: Family) -> &'static NameTable {
    match family {
        Family::Bert => &BERT,
        Family::Roberta => &ROBERTA,
        Family::DistilBert => &DISTILBERT,
    }
}

pub(crate) fn head(config: &BertConfig) -> HeadNames {
    match (config.task, config.family) {
        (Task::Features, _) => HeadNames::None,
        (Task::TokenClassification, _) => HeadNames::Token { classifier: "classifier" },
        (Task::SequenceClassification, Family::Bert) => HeadNames::Sequence { first: None, classifier: "classifier" },
        (Task::SequenceClassification, Family::Roberta) => HeadNames::Sequence {
            first: Some(("classifier.dense", HeadActivation::Tanh)),
            classifier: "classifier.out_proj",
        },
        (Task::SequenceClassification, Family::DistilBert) => {
            HeadNames::Sequence { first: Some(("pre_classifier", HeadActivation::Relu)), classifier: "classifier" }
        }
        (Task::MaskedLanguage, Family::Bert) => HeadNames::Masked {
            dense: "cls.predictions.transform.dense",
            activation: HeadActivation::OfLayers,
            norm: "cls.predictions.transform.LayerNorm",
            decoder: "cls.predictions.decoder.weight",
            biases: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
        },
        (Task::MaskedLanguage, Family::Roberta) => HeadNames::Masked {
            dense: "lm_head.dense",
            activation: HeadActivation::Gelu,
            norm: "lm_head.layer_norm",
            decoder: "lm_head.decoder.weight",
            biases: ["lm_head.bias", "lm_head.decoder.bias"],
        },
        (Task::MaskedLanguage, Family::DistilBert) => HeadNames::Masked {
            dense: "vocab_transform",
            activation: HeadActivation::OfLayers,
            norm: "vocab_layer_norm",
            decoder: "vocab_projector.weight",
            biases: ["vocab_projector.bias", "vocab_projector.bias"],
        },
    }
}
