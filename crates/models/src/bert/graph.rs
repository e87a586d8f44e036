//! The graph of an encoder.

use std::sync::Arc;

use core_tensor::op::{Binary, Cast, Gather, LayerNormalization, MatMul, Op, Reshape, Slice, TensorAttention, Unary};
use core_tensor::{DType, Dim, Graph, GraphError, ValueId, Weight, WeightSource};

use super::config::{Activation, BertConfig};
use super::names::HeadActivation;
use super::weights::{BertWeights, Head, LayerWeights, Linear, Norm};
use crate::Error;

/// Symbols of the graph's inputs.
pub(crate) mod symbol {
    /// Texts side by side.
    pub(crate) const BATCH: &str = "batch";
    /// Tokens of the longest of them.
    pub(crate) const TOKENS: &str = "tokens";
}

/// Names of inputs and outputs, as exports of such models to ONNX have them.
pub mod name {
    /// Token ids, `[batch, tokens]`.
    pub const INPUT_IDS: &str = "input_ids";
    /// 1 for tokens and 0 for padding, `[batch, tokens]`.
    pub const ATTENTION_MASK: &str = "attention_mask";
    /// 0 for tokens of the first text and 1 for those of the second, `[batch, tokens]`.
    pub const TOKEN_TYPE_IDS: &str = "token_type_ids";
    /// Hidden states, f32 `[batch, tokens, width]`.
    pub const LAST_HIDDEN_STATE: &str = "last_hidden_state";
    /// The same, as sentence-transformers names them.
    pub const TOKEN_EMBEDDINGS: &str = "token_embeddings";
    /// The first token's hidden state through the pooler, f32 `[batch, width]`.
    pub const POOLER_OUTPUT: &str = "pooler_output";
    /// Pooled (and usually normalized) embeddings, f32 `[batch, width]`.
    pub const SENTENCE_EMBEDDING: &str = "sentence_embedding";
    /// What a classifier or a masked language model gives: f32 `[batch, labels]`, `[batch, tokens, labels]` or `[batch, tokens, vocabulary]`.
    pub const LOGITS: &str = "logits";
}

/// Builds the graph of an encoder from its weights.
///
/// Inputs, i64 `[batch, tokens]`: [`name::INPUT_IDS`], [`name::ATTENTION_MASK`] and, if there are several token types,
/// [`name::TOKEN_TYPE_IDS`]. Padding stands behind the tokens. Outputs: [`name::LAST_HIDDEN_STATE`] and, where the file has a pooler,
/// [`name::POOLER_OUTPUT`]; or [`name::LOGITS`] where something stands on top.
///
/// # Errors
/// When tensors are missing, not used, of another shape than the configuration says, or of a type that cannot be computed with.
pub fn build(config: &BertConfig, source: &dyn WeightSource) -> Result<Graph, Error> {
    let weights = BertWeights::find(source, config)?;
    let mut builder = Builder { graph: Graph::new("bert"), config };
    builder.encoder(&weights)?;
    builder.graph.verify()?;
    Ok(builder.graph)
}

struct Builder<'a> {
    graph: Graph,
    config: &'a BertConfig,
}

fn rows() -> [Dim; 2] {
    [Dim::sym(symbol::BATCH), Dim::sym(symbol::TOKENS)]
}

impl Builder<'_> {
    fn encoder(&mut self, weights: &BertWeights) -> Result<(), Error> {
        let ids = self.graph.input(name::INPUT_IDS, DType::I64, &rows());
        let mask = self.graph.input(name::ATTENTION_MASK, DType::I64, &rows());
        let seen = self.graph.add("mask.seen", Op::Cast(Cast { to: DType::Bool }), &[mask])?;
        let shape = vec![Dim::sym(symbol::BATCH), Dim::Num(1), Dim::Num(1), Dim::sym(symbol::TOKENS)];
        let seen = self.graph.add("mask.heads", Op::Reshape(Reshape { shape }), &[seen])?;
        let mut x = self.embeddings(weights, ids)?;
        let last = weights.layers.len().saturating_sub(1);
        for (number, layer) in weights.layers.iter().enumerate() {
            let plain = number == last && matches!(weights.head, Head::None);
            let output = if plain { name::LAST_HIDDEN_STATE.to_owned() } else { format!("layers.{number}") };
            x = self.layer(&format!("layers.{number}"), &output, layer, x, seen)?;
        }
        let logits = match &weights.head {
            Head::None => {
                self.graph.output(x);
                if let Some(pooler) = &weights.pooler {
                    let pooled = self.pooler(pooler, x, name::POOLER_OUTPUT)?;
                    self.graph.output(pooled);
                }
                return Ok(());
            }
            Head::Token { classifier } => self.linear(name::LOGITS, classifier, x)?,
            Head::Sequence { first, classifier } => {
                let x = match (first, &weights.pooler) {
                    (Some((first, activation)), _) => {
                        let x = self.first_token(x)?;
                        let x = self.linear("head.dense", first, x)?;
                        self.head_activation("head.activation", *activation, x)?
                    }
                    (None, Some(pooler)) => self.pooler(pooler, x, "pooler.activation")?,
                    (None, None) => self.first_token(x)?,
                };
                self.linear(name::LOGITS, classifier, x)?
            }
            Head::Masked { dense, activation, norm, decoder } => {
                let x = self.linear("head.dense", dense, x)?;
                let x = self.head_activation("head.activation", *activation, x)?;
                let x = self.norm("head.norm", norm, x)?;
                self.linear(name::LOGITS, decoder, x)?
            }
        };
        self.graph.output(logits);
        Ok(())
    }

    fn embeddings(&mut self, weights: &BertWeights, ids: ValueId) -> Result<ValueId, Error> {
        let words = self.graph.weight("embeddings.words.weight", weights.words.clone());
        let mut x = self.graph.add("embeddings.words", Op::Gather(Gather::rows()), &[words, ids])?;
        let table = self.float("embeddings.positions.weight", &weights.positions)?;
        let slice = Slice { axis: 0, start: Dim::Num(0), len: Dim::sym(symbol::TOKENS), step: 1 };
        let positions = self.graph.add("embeddings.positions", Op::Slice(slice), &[table])?;
        if let Some(types) = &weights.token_types {
            let types = if self.config.token_types == 1 {
                // One type: its row is added to every token.
                self.float("embeddings.types.weight", types)?
            } else {
                let input = self.graph.input(name::TOKEN_TYPE_IDS, DType::I64, &rows());
                let types = self.graph.weight("embeddings.types.weight", types.clone());
                self.graph.add("embeddings.types", Op::Gather(Gather::rows()), &[types, input])?
            };
            x = self.graph.add("embeddings.typed", Op::Binary(Binary::Add), &[x, types])?;
        }
        let x = self.graph.add("embeddings.placed", Op::Binary(Binary::Add), &[x, positions])?;
        self.norm("embeddings.norm", &weights.embedding_norm, x)
    }

    fn layer(
        &mut self,
        what: &str,
        output: &str,
        layer: &LayerWeights,
        x: ValueId,
        seen: ValueId,
    ) -> Result<ValueId, Error> {
        let name = |part: &str| format!("{what}.{part}");
        let q = self.heads(&name("attention.q"), &layer.q, x)?;
        let k = self.heads(&name("attention.k"), &layer.k, x)?;
        let v = self.heads(&name("attention.v"), &layer.v, x)?;
        let head_dim = self.config.embedding / self.config.heads;
        let attention = TensorAttention { scale: (head_dim as f32).sqrt().recip(), causal: false, softcap: None };
        let h = self.graph.add(&name("attention"), Op::TensorAttention(attention), &[q, k, v, seen])?;
        let shape = rows().into_iter().chain([Dim::Num(self.config.embedding)]).collect();
        let h = self.graph.add(&name("attention.flat"), Op::Reshape(Reshape { shape }), &[h])?;
        let h = self.linear(&name("attention.output"), &layer.attention_output, h)?;
        let h = self.graph.add(&name("attention.residual"), Op::Binary(Binary::Add), &[h, x])?;
        let x = self.norm(&name("attention.norm"), &layer.attention_norm, h)?;
        let h = self.linear(&name("feed_forward.up"), &layer.up, x)?;
        let activation = unary(self.config.activation);
        let h = self.graph.add(&name("feed_forward.activation"), Op::Unary(activation), &[h])?;
        let h = self.linear(&name("feed_forward.down"), &layer.down, h)?;
        let h = self.graph.add(&name("feed_forward.residual"), Op::Binary(Binary::Add), &[h, x])?;
        self.norm(output, &layer.output_norm, h)
    }

    /// A projection, split into heads: `[batch, tokens, heads, head_dim]`.
    fn heads(&mut self, name: &str, linear: &Linear, x: ValueId) -> Result<ValueId, Error> {
        let x = self.linear(name, linear, x)?;
        let (heads, width) = (self.config.heads, self.config.embedding);
        let shape = rows().into_iter().chain([Dim::Num(heads), Dim::Num(width / heads)]).collect();
        Ok(self.graph.add(&format!("{name}.heads"), Op::Reshape(Reshape { shape }), &[x])?)
    }

    /// The hidden state of each text's first token: `[batch, width]`.
    fn first_token(&mut self, x: ValueId) -> Result<ValueId, Error> {
        let x = self.graph.add("first_token", Op::Slice(Slice::range(1, 0, 1)), &[x])?;
        let shape = vec![Dim::sym(symbol::BATCH), Dim::Num(self.config.embedding)];
        Ok(self.graph.add("first_token.flat", Op::Reshape(Reshape { shape }), &[x])?)
    }

    fn pooler(&mut self, pooler: &Linear, x: ValueId, output: &str) -> Result<ValueId, Error> {
        let x = self.first_token(x)?;
        let x = self.linear("pooler", pooler, x)?;
        Ok(self.graph.add(output, Op::Unary(Unary::Tanh), &[x])?)
    }

    fn head_activation(&mut self, name: &str, activation: HeadActivation, x: ValueId) -> Result<ValueId, GraphError> {
        let activation = match activation {
            HeadActivation::Tanh => Unary::Tanh,
            HeadActivation::Relu => Unary::Relu,
            HeadActivation::Gelu => Unary::Gelu,
            HeadActivation::OfLayers => unary(self.config.activation),
        };
        self.graph.add(name, Op::Unary(activation), &[x])
    }

    fn linear(&mut self, name: &str, linear: &Linear, x: ValueId) -> Result<ValueId, Error> {
        let weight = self.graph.weight(&format!("{name}.weight"), linear.weight.clone());
        let bias = self.graph.weight(&format!("{name}.bias"), linear.bias.clone());
        let product = format!("{name}.product");
        let y = self.graph.add(&product, Op::MatMul(MatMul { transpose_b: true }), &[x, weight])?;
        Ok(self.graph.add(name, Op::Binary(Binary::Add), &[y, bias])?)
    }

    fn norm(&mut self, name: &str, norm: &Norm, x: ValueId) -> Result<ValueId, Error> {
        let weight = self.graph.weight(&format!("{name}.weight"), norm.weight.clone());
        let bias = self.graph.weight(&format!("{name}.bias"), norm.bias.clone());
        let op = LayerNormalization { epsilon: self.config.norm_epsilon };
        Ok(self.graph.add(name, Op::LayerNormalization(op), &[x, weight, bias])?)
    }

    /// A table that is added and not gathered from: f32.
    fn float(&mut self, name: &str, weight: &Arc<Weight>) -> Result<ValueId, Error> {
        let weight = weight.cast(DType::F32)?;
        Ok(self.graph.weight(name, weight))
    }
}

fn unary(activation: Activation) -> Unary {
    match activation {
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Relu => Unary::Relu,
        Activation::Silu => Unary::Silu,
    }
}
