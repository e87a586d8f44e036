//! What becomes of each tensor.

use std::path::Path;

use core_tensor::DType;
use fancy_regex::Regex;
use loader_gguf::{Gguf, GgufError};
use polaris_quant::block::ENCODED;
use polaris_quant::{AssignOptions, ModelFacts, TensorFacts, assign, gptq};

use super::QuantizeOptions;
use crate::Error;

/// A demand: tensors of this name get this type.
#[derive(Clone, Debug)]
pub struct TensorType {
    pattern: Regex,
    /// The type.
    pub dtype: DType,
}

impl TensorType {
    /// From `PATTERN=TYPE`: a regular expression that is searched in names, and a type of tensors (`attn_v=q8_0`).
    ///
    /// # Errors
    /// When there is no `=`, the pattern is no regular expression, or the type is none that can be written.
    pub fn parse(text: &str) -> Result<TensorType, String> {
        let (pattern, dtype) = text.rsplit_once('=').ok_or_else(|| format!("{text:?} is not PATTERN=TYPE"))?;
        let pattern = Regex::new(pattern).map_err(|error| format!("{pattern:?}: {error}"))?;
        Ok(TensorType { pattern, dtype: tensor_dtype(dtype)? })
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }
}

/// The type of the first demand whose pattern is found in a name.
pub(super) fn demanded(demands: &[TensorType], name: &str) -> Option<DType> {
    demands.iter().find(|demand| demand.pattern.is_match(name).unwrap_or(false)).map(|demand| demand.dtype)
}

/// A type of tensors by its name, in any case ("q4_k", "F16").
///
/// # Errors
/// When there is no such type, or it cannot be written.
pub fn tensor_dtype(name: &str) -> Result<DType, String> {
    let found = ENCODED.into_iter().find(|dtype| dtype.to_string().eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<String> = ENCODED.iter().map(ToString::to_string).collect();
        format!("{name:?} is no type of tensors; there are {}", names.join(", "))
    })
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// The type that it has.
    pub from: DType,
    /// The type that it gets.
    pub to: DType,
}

impl Planned {
    /// Bytes that it will take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let (len, bytes) = self.to.packing();
        (self.shape.iter().product::<usize>() / len * bytes) as u64
    }

    /// Whether its rounding can follow what meets it ([`polaris_quant::gptq`]): types with few codes, and one matrix.
    #[must_use]
    pub fn takes_feedback(&self) -> bool {
        gptq::has_feedback(self.to) && self.from != self.to && self.shape.len() == 2
    }
}

/// What would become of each tensor of a model.
///
/// # Errors
/// When the file lacks what the rules look at, or has a tensor that is quantized and would be again.
pub fn plan(model: &Gguf, options: &QuantizeOptions) -> Result<Vec<Planned>, Error> {
    let mut facts = Vec::with_capacity(model.tensors().len());
    for info in model.tensors() {
        let Some(dtype) = info.dtype() else {
            let reason = format!("{} cannot be read yet", info.ggml_type());
            return Err(Error::Tensor { path: model.path().to_owned(), name: info.name().to_owned(), reason });
        };
        facts.push(TensorFacts { name: info.name(), shape: info.shape(), dtype });
    }
    plan_of(model.path(), &model_facts(model)?, &facts, options)
}

/// What would become of tensors that make up a model.
pub(crate) fn plan_of(
    path: &Path,
    model: &ModelFacts,
    facts: &[TensorFacts<'_>],
    options: &QuantizeOptions,
) -> Result<Vec<Planned>, Error> {
    let forced = |name: &str| options.exact.get(name).copied().or_else(|| demanded(&options.tensor_types, name));
    let assigned = AssignOptions { importance: options.importances.is_some(), ..options.assign };
    let types = assign(options.mixture, model, facts, &assigned, &forced);
    let mut planned = Vec::with_capacity(types.len());
    for (tensor, to) in facts.iter().zip(types) {
        if tensor.dtype != to && tensor.dtype.is_block() && !options.allow_requantize {
            return Err(quantized_already(path, tensor.name, tensor.dtype));
        }
        let (name, shape) = (tensor.name.to_owned(), tensor.shape.to_vec());
        planned.push(Planned { name, shape, from: tensor.dtype, to });
    }
    Ok(planned)
}

/// A tensor is quantized, and would be once more.
pub(super) fn quantized_already(path: &Path, name: &str, dtype: DType) -> Error {
    let reason = format!(
        "it is {dtype} already, and quantizing it again loses more than quantizing the original; --allow-requantize allows it"
    );
    Error::Tensor { path: path.to_owned(), name: name.to_owned(), reason }
}

/// What the rules of mixtures look at.
pub(crate) fn model_facts(model: &Gguf) -> Result<ModelFacts, Error> {
    let architecture = model.optional::<&str>("general.architecture")?.unwrap_or_default().to_owned();
    let number = |key: &str| -> Result<usize, GgufError> {
        let key = format!("{architecture}.{key}");
        // Some models have a number for each layer.
        match model.get(&key) {
            Some(loader_gguf::Value::Array(_)) => Ok(model.u32s(&key)?.first().copied().unwrap_or(0) as usize),
            _ => Ok(model.optional::<u32>(&key)?.unwrap_or(0) as usize),
        }
    };
    let heads = number("attention.head_count")?;
    let kv_heads = match number("attention.head_count_kv")? {
        0 => heads,
        kv_heads => kv_heads,
    };
    Ok(ModelFacts { layers: number("block_count")?, heads, kv_heads, experts: number("expert_count")?, architecture })
}
