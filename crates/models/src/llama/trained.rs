//! Parts of a model whose weights are inputs: what is differentiated by them.
//!
//! A chunk of text runs at once, from its first position on, so that there are no states: attention is over tensors.

use std::collections::HashSet;

use core_tensor::op::{Binary, Cast, Expand, Op, Reshape, Slice, TensorAttention, Trilu};
use core_tensor::{DType, Dim, Graph, Tensor, ValueId, Weight, WeightSource};

use super::KvDType;
use super::config::{Layer, LlamaConfig};
use super::graph::{Builder, Inputs, name, symbol};
use super::names::{NameTable, Role};
use super::weights::LlamaWeights;
use crate::Error;

/// A weight that is an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// The tensor's name in the file.
    pub(crate) name: String,
    /// The input.
    pub(crate) value: ValueId,
    /// Its extents.
    pub(crate) shape: Vec<usize>,
}

/// What is collected while a part is built.
#[derive(Default)]
pub(super) struct Trained {
    present: HashSet<String>,
    parameters: Vec<Parameter>,
}

/// A part of a model.
#[derive(Debug)]
pub(crate) struct Part {
    /// Inputs: `x` f32 `[tokens, width]`, positions i32 `[tokens]`, then the parameters, all f32. Output: `y`.
    pub(crate) graph: Graph,
    pub(crate) x: ValueId,
    pub(crate) y: ValueId,
    pub(crate) parameters: Vec<Parameter>,
}

/// A layer, from residual stream to residual stream: `y` is f32 `[tokens, width]`.
pub(crate) fn layer(config: &LlamaConfig, source: &dyn WeightSource, number: usize) -> Result<Part, Error> {
    part(config, source, |builder, x| builder.layer(number, x))
}

/// What comes behind the last layer: `y` are the logits, f32 `[tokens, vocabulary]`. The norm's weight is the parameter, the matrix is the source's.
pub(crate) fn head(config: &LlamaConfig, source: &dyn WeightSource) -> Result<Part, Error> {
    part(config, source, |builder, x| {
        let stored = |role: Role| NameTable::gguf(config.architecture).model.iter().find(|entry| entry.0 == role);
        let norm = stored(Role::OutputNorm).map(|entry| entry.1).unwrap_or_default();
        let norm = builder.input_of(norm.to_owned(), vec![config.embedding]);
        let weight = builder.weights.model(Role::Output).or_else(|| builder.weights.model(Role::Embedding)).cloned();
        let x = builder.norm("output_norm", x, norm)?;
        let output = builder.found("output", weight)?;
        builder.logits(x, output)
    })
}

fn part(
    config: &LlamaConfig,
    source: &dyn WeightSource,
    build: impl FnOnce(&mut Builder<'_>, ValueId) -> Result<ValueId, Error>,
) -> Result<Part, Error> {
    let weights = LlamaWeights::find(source, config, &NameTable::gguf(config.architecture))?;
    let mut graph = Graph::new(config.architecture.name());
    let tokens = Dim::sym(symbol::TOKENS);
    let x = graph.input("x", DType::F32, &[tokens.clone(), config.embedding.into()]);
    let positions = graph.input("positions", DType::I32, &[tokens]);
    // There are no states that slots and rows would be of.
    let inputs = Inputs { tokens: positions, positions, slots: positions, logit_rows: positions };
    let rope_factors = weights.model(Role::RopeFactors).map(|weight| graph.weight("rope_freqs", weight.clone()));
    let present = source.names().into_iter().map(str::to_owned).collect();
    let mut builder = Builder {
        graph,
        config,
        weights: &weights,
        inputs,
        rope_factors,
        kv_dtype: KvDType::F32,
        context: config.trained_context,
        products: Vec::new(),
        trained: Some(Trained { present, parameters: Vec::new() }),
    };
    let y = build(&mut builder, x)?;
    builder.graph.output(y);
    let parameters = builder.trained.map(|trained| trained.parameters).unwrap_or_default();
    Ok(Part { graph: builder.graph, x, y, parameters })
}

impl Builder<'_> {
    /// The input of a layer's weight; of Q, K and V that lie in one tensor, a slice of its input.
    pub(super) fn parameter(&mut self, number: usize, role: Role) -> Result<ValueId, Error> {
        let table = NameTable::gguf(self.config.architecture).layer;
        let stored = |role: Role| {
            let entry = table.iter().find(|entry| entry.0 == role);
            entry.map(|entry| entry.1.replacen("{}", &number.to_string(), 1)).unwrap_or_default()
        };
        let shape = |role: Role| -> Result<Vec<usize>, Error> {
            let weight = self.weights.layer(number, role);
            let missing = || Error::MissingTensors { path: "".into(), names: vec![stored(role)], count: 1 };
            weight.map(|weight| weight.shape().to_vec()).ok_or_else(missing)
        };
        let own = stored(role);
        let is_present = |name: &String| self.trained.as_ref().is_some_and(|trained| trained.present.contains(name));
        let joined = [Role::Q, Role::K, Role::V];
        let Some(before) = joined.iter().position(|other| *other == role).filter(|_| is_present(&stored(Role::Qkv)))
        else {
            let shape = shape(role)?;
            return Ok(self.input_of(own, shape));
        };
        let rows = joined.iter().map(|role| Ok(shape(*role)?[0])).collect::<Result<Vec<usize>, Error>>()?;
        let columns = shape(role)?[1];
        let all = self.input_of(stored(Role::Qkv), vec![rows.iter().sum(), columns]);
        let start: usize = rows[..before].iter().sum();
        let op = Op::Slice(Slice::range(0, start, start + rows[before]));
        Ok(self.graph.add(&name(number, "attention.part"), op, &[all])?)
    }

    /// The input that stands for a tensor.
    fn input_of(&mut self, name: String, shape: Vec<usize>) -> ValueId {
        let known = self.trained.iter().flat_map(|trained| &trained.parameters).find(|known| known.name == name);
        if let Some(known) = known {
            return known.value;
        }
        let dims: Vec<Dim> = shape.iter().map(|n| Dim::Num(*n)).collect();
        let value = self.graph.input(&name, DType::F32, &dims);
        if let Some(trained) = &mut self.trained {
            trained.parameters.push(Parameter { name, value, shape });
        }
        value
    }

    /// Attention over the tokens of a chunk, up to its heads' outputs: `[tokens, heads * value_length]`.
    pub(super) fn attention_over_chunk(
        &mut self,
        number: usize,
        layer: &Layer,
        [q, k, v]: [ValueId; 3],
    ) -> Result<ValueId, Error> {
        let tokens = Dim::sym(symbol::TOKENS);
        let mut inputs = Vec::new();
        for x in [q, k, v] {
            let shape = self.graph.tensor_type(x).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
            let shape = [vec![Dim::Num(1)], shape].concat();
            inputs.push(self.graph.add(&name(number, "attention.batch"), Op::Reshape(Reshape { shape }), &[x])?);
        }
        if let Some(window) = layer.window {
            // Of the keys up to the query's own, the last ones: those that are not below the window's diagonal.
            let one = self.graph.weight("one", Weight::stored(Tensor::from_slice(&[1, 1], &[1.0f32])?));
            let ones = Op::Expand(Expand { shape: vec![tokens.clone(), tokens.clone()] });
            let ones = self.graph.add(&name(number, "attention.ones"), ones, &[one])?;
            let below = Op::Trilu(Trilu { upper: false, k: -(window as i64) });
            let below = self.graph.add(&name(number, "attention.below"), below, &[ones])?;
            let seen = self.graph.add(&name(number, "attention.window"), Op::Binary(Binary::Sub), &[ones, below])?;
            let seen = self.graph.add(&name(number, "attention.mask"), Op::Cast(Cast { to: DType::Bool }), &[seen])?;
            inputs.push(seen);
        }
        let op = TensorAttention {
            scale: self.config.attention_scale,
            causal: true,
            softcap: self.config.attention_softcap,
        };
        let out = self.graph.add(&name(number, "attention"), Op::TensorAttention(op), &inputs)?;
        let flat = Reshape { shape: vec![tokens, Dim::Num(layer.heads * self.config.value_length)] };
        Ok(self.graph.add(&name(number, "attention.flat"), Op::Reshape(flat), &[out])?)
    }
}
