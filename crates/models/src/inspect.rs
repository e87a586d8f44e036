//! What is in a model file, for people and programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use loader_gguf::{Gguf, Value};
use loader_torch::SafeTensors;
use serde::Serialize;

use crate::llama::{self, KvDType, LlamaConfig, MAX_ROWS};
use crate::{Error, bert};

/// A summary of a GGUF or safetensors file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The file (of a split model: the first).
    pub path: PathBuf,
    /// Files of a split model; 1 otherwise.
    pub files: usize,
    /// The format: `GGUF` or `safetensors`.
    pub format: &'static str,
    /// Version of GGUF; other formats have none.
    pub gguf_version: Option<u32>,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// `general.architecture`; of safetensors, the `model_type` of the `config.json` beside it.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// Whether a pipeline here runs it; else why not.
    pub unsupported: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Metadata in the file's order.
    pub metadata: Vec<MetadataEntry>,
    /// Tensors in the file's order.
    pub tensors: Vec<TensorEntry>,
    /// Tensors, elements and bytes per type.
    pub types: Vec<TypeEntry>,
    /// Estimated memory for some context lengths; empty if the architecture is not supported.
    pub memory: Vec<ContextMemory>,
}

/// A metadata entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetadataEntry {
    /// The key.
    pub key: String,
    /// Type, with the element type and count of an array (`string[49152]`).
    pub value_type: String,
    /// The value, shortened for long strings and arrays.
    pub value: String,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorEntry {
    /// The name.
    pub name: String,
    /// The type, as the format names it.
    #[serde(rename = "type")]
    pub element_type: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// What there is of one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeEntry {
    /// The type, as the format names it.
    #[serde(rename = "type")]
    pub element_type: String,
    /// Tensors.
    pub tensors: usize,
    /// Elements.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Estimated memory at a context length: one sequence, steps of up to 512 tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ContextMemory {
    /// Positions.
    pub context: usize,
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of the KV cache.
    pub states: u64,
    /// Bytes of intermediate values.
    pub arena: u64,
    /// The sum.
    pub total: u64,
}

/// Characters that are shown of a value.
const SHOWN: usize = 120;

/// Context lengths that the estimate is made for, as far as the model was trained for them.
const CONTEXTS: [usize; 6] = [512, 2048, 4096, 8192, 32_768, 131_072];

/// Summarizes an opened file; `kv_dtype` is what the memory estimate counts with. Never fails: what is wrong with the file as a model
/// is in [`Inspection::unsupported`].
#[must_use]
pub fn inspect(gguf: &Gguf, kv_dtype: KvDType) -> Inspection {
    let text = |key: &str| gguf.optional::<&str>(key).ok().flatten().map(str::to_owned);
    let (memory, unsupported) = match memory(gguf, kv_dtype) {
        Ok(memory) => (memory, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let tensors: Vec<TensorEntry> = gguf
        .tensors()
        .iter()
        .map(|info| TensorEntry {
            name: info.name().to_owned(),
            element_type: info.ggml_type().to_string(),
            shape: info.shape().to_vec(),
            bytes: info.byte_len() as u64,
        })
        .collect();
    Inspection {
        path: gguf.path().to_owned(),
        files: gguf.shards().len(),
        format: "GGUF",
        gguf_version: Some(gguf.version().number()),
        file_bytes: gguf.shards().map(|file| file.len() as u64).sum(),
        architecture: text("general.architecture"),
        name: text("general.name"),
        unsupported,
        parameters: gguf.parameters(),
        tensor_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        metadata: gguf.metadata().map(|(key, value)| metadata(key, value)).collect(),
        types: types(gguf),
        tensors,
        memory,
    }
}

/// Summarizes an opened safetensors model. Never fails: why no pipeline here runs it is in [`Inspection::unsupported`].
#[must_use]
pub fn inspect_safetensors(model: &SafeTensors) -> Inspection {
    let (architecture, checked) = bert::check(model);
    let tensors: Vec<TensorEntry> = model
        .tensors()
        .iter()
        .map(|info| TensorEntry {
            name: info.name().to_owned(),
            element_type: info.torch_type().to_string(),
            shape: info.shape().to_vec(),
            bytes: info.byte_len() as u64,
        })
        .collect();
    let mut types = BTreeMap::new();
    for info in model.tensors() {
        let empty = || TypeEntry { element_type: info.torch_type().to_string(), tensors: 0, elements: 0, bytes: 0 };
        let entry = types.entry(info.torch_type()).or_insert_with(empty);
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(info.elements() as u64);
        entry.bytes = entry.bytes.saturating_add(info.byte_len() as u64);
    }
    let text = |(key, value): (&str, &str)| MetadataEntry {
        key: key.to_owned(),
        value_type: "string".into(),
        value: Value::from(value).show(SHOWN).to_string(),
    };
    Inspection {
        path: model.path().to_owned(),
        files: model.files().len(),
        format: "safetensors",
        gguf_version: None,
        file_bytes: model.files().iter().map(|file| file.len() as u64).sum(),
        architecture,
        name: None,
        unsupported: checked.err().map(|error| error.to_string()),
        parameters: model.parameters(),
        tensor_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        metadata: model.all_metadata().map(text).collect(),
        types: types.into_values().collect(),
        tensors,
        memory: Vec::new(),
    }
}

fn metadata(key: &str, value: Value<'_>) -> MetadataEntry {
    let value_type = match value {
        Value::Array(array) => format!("{}[{}]", array.value_type(), array.len()),
        other => other.value_type().to_string(),
    };
    MetadataEntry { key: key.to_owned(), value_type, value: value.show(SHOWN).to_string() }
}

fn types(gguf: &Gguf) -> Vec<TypeEntry> {
    let mut types = BTreeMap::new();
    for info in gguf.tensors() {
        let empty = || TypeEntry { element_type: info.ggml_type().to_string(), tensors: 0, elements: 0, bytes: 0 };
        let entry = types.entry(info.ggml_type()).or_insert_with(empty);
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(info.elements() as u64);
        entry.bytes = entry.bytes.saturating_add(info.byte_len() as u64);
    }
    types.into_values().collect()
}

/// Memory for some context lengths and for the one that the model was trained with.
///
/// # Errors
/// When the file is no model that can be run.
fn memory(gguf: &Gguf, kv_dtype: KvDType) -> Result<Vec<ContextMemory>, Error> {
    let config = LlamaConfig::from_gguf(gguf)?;
    let mut contexts: Vec<usize> = CONTEXTS.into_iter().filter(|context| *context < config.trained_context).collect();
    contexts.push(config.trained_context);
    contexts.into_iter().map(|context| context_memory(gguf, &config, kv_dtype, context)).collect()
}

fn context_memory(
    gguf: &Gguf,
    config: &LlamaConfig,
    kv_dtype: KvDType,
    context: usize,
) -> Result<ContextMemory, Error> {
    let graph = llama::build(config, gguf, kv_dtype, context)?;
    let bounds = llama::bounds(context, MAX_ROWS.min(context), 1);
    let estimate = polaris_runtime::estimate(&graph, 1, &bounds).map_err(polaris_runtime::RuntimeError::from)?;
    Ok(ContextMemory {
        context,
        weights: estimate.weights,
        states: estimate.states,
        arena: estimate.arena,
        total: estimate.total(),
    })
}
