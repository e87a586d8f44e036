//! The graph of a model.

use std::sync::Arc;

use core_tensor::op::{
    Attention, Binary, Gather, MatMul, Op, Reshape, RmsNormalization, RotaryEmbedding, StateWrite, TopK, Unary,
};
use core_tensor::{Bindings, DType, Dim, Graph, GraphError, StateDecl, StateId, Tensor, ValueId, Weight, WeightSource};

use super::KvDType;
use super::config::{Architecture, Layer, LlamaConfig};
use super::names::{NameTable, Role};
use super::trained::Trained;
use super::weights::LlamaWeights;
use crate::Error;

/// Rows of a step at most.
pub const MAX_ROWS: usize = 512;

/// Tokens with the highest logits that a step gives where all logits are not asked for.
pub const CANDIDATES: usize = 64;

/// Numbers of the graph's outputs.
pub(crate) mod output {
    pub(crate) const LOGITS: usize = 0;
    pub(crate) const CANDIDATE_LOGITS: usize = 1;
    pub(crate) const CANDIDATES: usize = 2;
}

/// The symbols of the graph's inputs and states.
pub(crate) mod symbol {
    /// Rows of a step.
    pub(crate) const TOKENS: &str = "tokens";
    /// Rows whose logits are asked for.
    pub(crate) const LOGIT_ROWS: &str = "logit_rows";
    /// Positions of a sequence.
    pub(crate) const CONTEXT: &str = "context";
}

/// Values of all symbols of a model's graph: positions of a sequence, rows of a step, rows whose logits are asked for.
#[must_use]
pub fn bounds(context: usize, rows: usize, logit_rows: usize) -> Bindings {
    let bounds = Bindings::new().with(symbol::CONTEXT, context);
    bounds.with(symbol::TOKENS, rows).with(symbol::LOGIT_ROWS, logit_rows)
}

/// Builds the graph of a model.
///
/// Inputs, all i32: `tokens`, `positions` and `slots` of `[tokens]`, and `logit_rows` of `[logit_rows]`, which names the rows
/// whose logits are asked for. Outputs: logits, f32 `[logit_rows, vocabulary]`; the highest of them and their tokens, f32 and i32 `[logit_rows, candidates]`. States: K and V of each layer, rows
/// `[kv_heads, head length]`, of capacity `context`; layers with a window are rings if `context` (positions that sequences will hold) is longer.
///
/// # Errors
/// When tensors are missing, of another shape than the configuration asks for, or of a type that cannot be computed with; when `kv_dtype` does
/// not fit the length of the heads.
pub fn build(
    config: &LlamaConfig,
    source: &dyn WeightSource,
    kv_dtype: KvDType,
    context: usize,
) -> Result<Graph, Error> {
    Ok(assemble(config, source, kv_dtype, context)?.graph)
}

/// A graph, the products of its layers (layer, matrix, activations), and what meets the output matrix.
pub(super) struct Assembled {
    pub(super) graph: Graph,
    pub(super) products: Vec<(usize, Role, ValueId)>,
    pub(super) last: ValueId,
}

pub(super) fn assemble(
    config: &LlamaConfig,
    source: &dyn WeightSource,
    kv_dtype: KvDType,
    context: usize,
) -> Result<Assembled, Error> {
    for length in [config.key_length, config.value_length] {
        if kv_dtype.dtype().row_bytes(length).is_none() {
            let reason = format!("heads of {length} elements are no whole blocks of {}", kv_dtype.dtype());
            return Err(Error::Option { name: "kv_dtype", reason });
        }
    }
    let weights = LlamaWeights::find(source, config, &NameTable::gguf(config.architecture))?;
    let mut graph = Graph::new(config.architecture.name());
    let tokens = Dim::sym(symbol::TOKENS);
    let inputs = Inputs {
        tokens: graph.input("tokens", DType::I32, std::slice::from_ref(&tokens)),
        positions: graph.input("positions", DType::I32, std::slice::from_ref(&tokens)),
        slots: graph.input("slots", DType::I32, std::slice::from_ref(&tokens)),
        logit_rows: graph.input("logit_rows", DType::I32, &[Dim::sym(symbol::LOGIT_ROWS)]),
    };
    let rope_factors = weights.model(Role::RopeFactors).map(|weight| graph.weight("rope_freqs", weight.clone()));
    let mut builder = Builder {
        graph,
        config,
        weights: &weights,
        inputs,
        rope_factors,
        kv_dtype,
        context,
        products: Vec::new(),
        trained: None,
    };
    let (last, logits) = builder.model()?;
    builder.graph.output(logits);
    let op = TopK { k: CANDIDATES.min(config.vocabulary) };
    for output in builder.graph.add_node("candidates", Op::TopK(op), vec![Some(logits)])? {
        builder.graph.output(output);
    }
    Ok(Assembled { graph: builder.graph, products: builder.products, last })
}

#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub(super) tokens: ValueId,
    pub(super) positions: ValueId,
    pub(super) slots: ValueId,
    pub(super) logit_rows: ValueId,
}

pub(super) struct Builder<'a> {
    pub(super) graph: Graph,
    pub(super) config: &'a LlamaConfig,
    pub(super) weights: &'a LlamaWeights,
    pub(super) inputs: Inputs,
    pub(super) rope_factors: Option<ValueId>,
    pub(super) kv_dtype: KvDType,
    pub(super) context: usize,
    pub(super) products: Vec<(usize, Role, ValueId)>,
    /// Given where a part of the model is built whose weights are inputs, over chunks of text and without states.
    pub(super) trained: Option<Trained>,
}

impl Builder<'_> {
    /// What meets the output matrix, and the logits.
    fn model(&mut self) -> Result<(ValueId, ValueId), Error> {
        let embedding = self.model_weight("token_embd", Role::Embedding)?;
        let mut x = self.graph.add("embedding", Op::Gather(Gather::rows()), &[embedding, self.inputs.tokens])?;
        if self.config.architecture == Architecture::Gemma3 {
            let scale = (self.config.embedding as f32).sqrt();
            x = self.scale("embedding.scaled", x, scale)?;
        }
        for layer in 0..self.config.layers.len() {
            x = self.layer(layer, x)?;
        }
        let norm = self.model_weight("output_norm", Role::OutputNorm)?;
        x = self.norm("output_norm", x, norm)?;
        // Without a matrix of its own, the output shares the embedding's.
        let output = match self.weights.model(Role::Output) {
            Some(weight) => self.graph.weight("output", weight.clone()),
            None => embedding,
        };
        Ok((x, self.logits(x, output)?))
    }

    /// What comes behind the last norm.
    pub(super) fn logits(&mut self, x: ValueId, output: ValueId) -> Result<ValueId, Error> {
        let mut logits = self.graph.add("logits", Op::MatMul(MatMul { transpose_b: true }), &[x, output])?;
        if let Some(bias) = self.weights.model(Role::OutputBias) {
            let bias = self.graph.weight("output.bias", bias.clone());
            logits = self.graph.add("logits.biased", Op::Binary(Binary::Add), &[logits, bias])?;
        }
        if let Some(cap) = self.config.logit_softcap {
            let small = self.scale("logits.scaled", logits, 1.0 / cap)?;
            let bent = self.graph.add("logits.tanh", Op::Unary(Unary::Tanh), &[small])?;
            logits = self.scale("logits.capped", bent, cap)?;
        }
        Ok(logits)
    }

    pub(super) fn layer(&mut self, number: usize, x: ValueId) -> Result<ValueId, Error> {
        let config = self.config.layers[number];
        let mut residual = x;
        let mut h = self.normed(number, "attention.norm", Role::AttentionNorm, x)?;
        h = self.attention(number, &config, h)?;
        if number + 1 == self.config.layers.len() && self.trained.is_none() {
            // Behind the last layer's attention, only the rows whose logits are asked for are computed.
            let rows = self.inputs.logit_rows;
            h = self.graph.add(&name(number, "attention.rows"), Op::Gather(Gather::rows()), &[h, rows])?;
            residual = self.graph.add(&name(number, "residual.rows"), Op::Gather(Gather::rows()), &[residual, rows])?;
        }
        h = self.linear(number, "attention.output", Role::AttentionOutput, Some(Role::AttentionOutputBias), h)?;
        h = self.optional_norm(number, "attention.post_norm", Role::AttentionPostNorm, h)?;
        residual = self.graph.add(&name(number, "attention.residual"), Op::Binary(Binary::Add), &[h, residual])?;
        h = self.normed(number, "feed_forward.norm", Role::FeedForwardNorm, residual)?;
        h = self.feed_forward(number, h)?;
        h = self.optional_norm(number, "feed_forward.post_norm", Role::FeedForwardPostNorm, h)?;
        Ok(self.graph.add(&name(number, "feed_forward.residual"), Op::Binary(Binary::Add), &[h, residual])?)
    }

    /// Attention up to its heads' outputs: `[tokens, heads * value_length]`.
    fn attention(&mut self, number: usize, layer: &Layer, x: ValueId) -> Result<ValueId, Error> {
        let (key, value) = (self.config.key_length, self.config.value_length);
        let q = self.linear(number, "attention.q", Role::Q, Some(Role::QBias), x)?;
        let k = self.linear(number, "attention.k", Role::K, Some(Role::KBias), x)?;
        let v = self.linear(number, "attention.v", Role::V, Some(Role::VBias), x)?;
        let q = self.heads(number, "attention.q.heads", q, layer.heads, key)?;
        let k = self.heads(number, "attention.k.heads", k, layer.kv_heads, key)?;
        let v = self.heads(number, "attention.v.heads", v, layer.kv_heads, value)?;
        let q = self.optional_norm(number, "attention.q.norm", Role::QNorm, q)?;
        let k = self.optional_norm(number, "attention.k.norm", Role::KNorm, k)?;
        let q = self.rope(number, "attention.q.rope", layer, q)?;
        let k = self.rope(number, "attention.k.rope", layer, k)?;
        if self.trained.is_some() {
            return self.attention_over_chunk(number, layer, [q, k, v]);
        }
        let k = self.write(number, "k", layer, [layer.kv_heads, key], k)?;
        let v = self.write(number, "v", layer, [layer.kv_heads, value], v)?;
        let attention = Attention {
            scale: self.config.attention_scale,
            softcap: self.config.attention_softcap,
            window: layer.window,
        };
        let Inputs { positions, slots, .. } = self.inputs;
        let inputs = [q, k, v, positions, slots];
        let out = self.graph.add(&name(number, "attention"), Op::Attention(attention), &inputs)?;
        let flat = Reshape { shape: vec![Dim::sym(symbol::TOKENS), Dim::Num(layer.heads * value)] };
        Ok(self.graph.add(&name(number, "attention.flat"), Op::Reshape(flat), &[out])?)
    }

    fn feed_forward(&mut self, number: usize, x: ValueId) -> Result<ValueId, Error> {
        let activation = match self.config.architecture {
            Architecture::Llama | Architecture::Qwen2 => Unary::Silu,
            Architecture::Gemma3 => Unary::GeluTanh,
        };
        let gate = self.linear(number, "feed_forward.gate", Role::Gate, Some(Role::GateBias), x)?;
        let up = self.linear(number, "feed_forward.up", Role::Up, Some(Role::UpBias), x)?;
        let gate = self.graph.add(&name(number, "feed_forward.activation"), Op::Unary(activation), &[gate])?;
        let inner = self.graph.add(&name(number, "feed_forward.gated"), Op::Binary(Binary::Mul), &[gate, up])?;
        self.linear(number, "feed_forward.down", Role::Down, Some(Role::DownBias), inner)
    }

    /// Splits the last extent into heads.
    fn heads(&mut self, number: usize, what: &str, x: ValueId, heads: usize, length: usize) -> Result<ValueId, Error> {
        let shape = vec![Dim::sym(symbol::TOKENS), Dim::Num(heads), Dim::Num(length)];
        Ok(self.graph.add(&name(number, what), Op::Reshape(Reshape { shape }), &[x])?)
    }

    fn rope(&mut self, number: usize, what: &str, layer: &Layer, x: ValueId) -> Result<ValueId, Error> {
        let op = RotaryEmbedding {
            // The converter to GGUF reorders Llama's rows so that pairs lie side by side; other models keep halves.
            interleaved: self.config.architecture == Architecture::Llama,
            rotary_dims: layer.rope.dims,
            theta: layer.rope.theta,
            scaling: layer.rope.scaling,
        };
        let inputs = match self.rope_factors {
            Some(factors) => vec![Some(x), Some(self.inputs.positions), Some(factors)],
            None => vec![Some(x), Some(self.inputs.positions)],
        };
        first(self.graph.add_node(&name(number, what), Op::RotaryEmbedding(op), inputs)?, x)
    }

    /// Declares a state for the rows and writes them into it.
    fn write(
        &mut self,
        number: usize,
        what: &str,
        layer: &Layer,
        row: [usize; 2],
        x: ValueId,
    ) -> Result<ValueId, Error> {
        let state = self.state(&name(number, what), layer, row);
        let inputs = [x, self.inputs.positions, self.inputs.slots];
        let op = Op::StateWrite(StateWrite { state });
        Ok(self.graph.add(&name(number, &format!("attention.{what}.write")), op, &inputs)?)
    }

    fn state(&mut self, name: &str, layer: &Layer, row: [usize; 2]) -> StateId {
        // A ring holds the window and as many rows as one step writes.
        let ring = layer.window.and_then(|window| Some((window, window.checked_add(MAX_ROWS)?)));
        let (capacity, window) = match ring {
            Some((window, capacity)) if self.context > capacity => (Dim::Num(capacity), Some(window)),
            _ => (Dim::sym(symbol::CONTEXT), None),
        };
        let dtype = self.kv_dtype.dtype();
        self.graph.add_state(StateDecl { name: name.to_owned(), dtype, row: row.to_vec(), capacity, window })
    }

    fn linear(
        &mut self,
        number: usize,
        what: &str,
        role: Role,
        bias: Option<Role>,
        x: ValueId,
    ) -> Result<ValueId, Error> {
        let weight = self.layer_weight(number, what, role)?;
        self.products.push((number, role, x));
        let y = self.graph.add(&name(number, what), Op::MatMul(MatMul { transpose_b: true }), &[x, weight])?;
        let Some(bias) = bias.filter(|role| self.weights.layer(number, *role).is_some()) else {
            return Ok(y);
        };
        let bias = self.layer_value(number, &name(number, &format!("{what}.bias")), bias)?;
        Ok(self.graph.add(&name(number, &format!("{what}.biased")), Op::Binary(Binary::Add), &[y, bias])?)
    }

    fn normed(&mut self, number: usize, what: &str, role: Role, x: ValueId) -> Result<ValueId, Error> {
        let weight = self.layer_weight(number, what, role)?;
        self.norm(&name(number, what), x, weight)
    }

    fn optional_norm(&mut self, number: usize, what: &str, role: Role, x: ValueId) -> Result<ValueId, Error> {
        if self.weights.layer(number, role).is_some() { self.normed(number, what, role, x) } else { Ok(x) }
    }

    pub(super) fn norm(&mut self, name: &str, x: ValueId, weight: ValueId) -> Result<ValueId, Error> {
        let op = Op::RmsNormalization(RmsNormalization { epsilon: self.config.norm_epsilon });
        Ok(self.graph.add(name, op, &[x, weight])?)
    }

    pub(super) fn scale(&mut self, name: &str, x: ValueId, factor: f32) -> Result<ValueId, Error> {
        let factor = self.graph.weight(&format!("{name}.factor"), Weight::stored(Tensor::from_slice(&[1], &[factor])?));
        Ok(self.graph.add(name, Op::Binary(Binary::Mul), &[x, factor])?)
    }

    fn model_weight(&mut self, name: &str, role: Role) -> Result<ValueId, Error> {
        let weight = self.weights.model(role).cloned();
        self.found(name, weight)
    }

    fn layer_weight(&mut self, number: usize, what: &str, role: Role) -> Result<ValueId, Error> {
        self.layer_value(number, &name(number, &format!("{what}.weight")), role)
    }

    fn layer_value(&mut self, number: usize, name: &str, role: Role) -> Result<ValueId, Error> {
        if self.trained.is_some() {
            return self.parameter(number, role);
        }
        let weight = self.weights.layer(number, role).cloned();
        self.found(name, weight)
    }

    /// The name table requires every weight that is asked for in this way; the error is for a table that does not.
    pub(super) fn found(&mut self, name: &str, weight: Option<Arc<Weight>>) -> Result<ValueId, Error> {
        let Some(weight) = weight else {
            return Err(Error::MissingTensors { path: "".into(), names: vec![name.to_owned()], count: 1 });
        };
        Ok(self.graph.weight(name, weight))
    }
}

pub(super) fn name(layer: usize, what: &str) -> String {
    format!("layers.{layer}.{what}")
}

/// The first output of a node with several.
fn first(outputs: Vec<ValueId>, input: ValueId) -> Result<ValueId, Error> {
    let missing = || GraphError::Output { value: input };
    Ok(outputs.into_iter().next().ok_or_else(missing)?)
}
