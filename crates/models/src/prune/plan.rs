//! What becomes of each tensor.

use std::collections::HashMap;

use core_tensor::DType;
use loader_gguf::Gguf;
use polaris_quant::TensorFacts;
use serde::{Deserialize, Serialize};

use super::{PruneOptions, StructurePruning, What};
use crate::Error;
use crate::llama::names::{NameTable, Role};
use crate::llama::weights::LlamaWeights;
use crate::llama::{Architecture, Layer, LlamaConfig};
use crate::quantize::{Planned, model_facts, plan_of};

/// What there is of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extents {
    /// Neurons of the feed-forward network.
    pub neurons: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
}

impl From<&Layer> for Extents {
    fn from(layer: &Layer) -> Extents {
        Extents { neurons: layer.feed_forward, heads: layer.heads, kv_heads: layer.kv_heads }
    }
}

/// What happens to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Keep,
    /// Weights become zeros.
    Zeros,
    /// Rows of some units go.
    Rows(Unit),
    /// Columns of some units go.
    Columns(Unit),
}

/// What rows and columns belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Neurons of a feed-forward network.
    Neurons,
    /// Query heads, each of so many rows or columns.
    Heads(usize),
    /// Heads of keys or values.
    KvHeads(usize),
    /// Queries, keys and values below each other; lengths of the heads of keys and of values.
    Joined(usize, usize),
}

/// A tensor and what becomes of it.
#[derive(Clone, Debug)]
pub struct PrunedShape {
    /// What it becomes: the shape that it has afterwards.
    pub planned: Planned,
    /// The shape that it had.
    pub before: Vec<usize>,
    /// The type that it has in the result: another than that of `planned` where the result is quantized.
    pub to: DType,
    pub(super) layer: Option<usize>,
    pub(super) action: Action,
}

impl PrunedShape {
    /// Whether weights are taken out of it.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.action != Action::Keep
    }

    /// Bytes that it takes in the result.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        Planned { to: self.to, ..self.planned.clone() }.bytes()
    }
}

/// What becomes of a model.
#[derive(Clone, Debug)]
pub struct PrunePlan {
    /// Each tensor, in the file's order.
    pub tensors: Vec<PrunedShape>,
    /// What each layer had.
    pub before: Vec<Extents>,
    /// What each layer will have.
    pub after: Vec<Extents>,
    pub(super) config: LlamaConfig,
}

/// What would become of each tensor of a model.
///
/// # Errors
/// When the file is no language model that is supported, the options do not fit each other, nothing would go, or a tensor is quantized and would be again
/// where the result is to be quantized.
pub fn plan(model: &Gguf, options: &PruneOptions) -> Result<PrunePlan, Error> {
    options.check()?;
    let config = LlamaConfig::from_gguf(model)?;
    let table = NameTable::gguf(config.architecture);
    LlamaWeights::find(model, &config, &table)?;
    let before: Vec<Extents> = config.layers.iter().map(Extents::from).collect();
    let after = match options.what {
        What::Weights(_) => before.clone(),
        What::Structure(cut) => {
            heads_can_go(&config, model, &cut)?;
            before.iter().map(|layer| remaining(*layer, &cut)).collect::<Result<_, _>>()?
        }
    };
    let roles = roles(&config, &table);
    let mut tensors = Vec::with_capacity(model.tensors().len());
    for info in model.tensors() {
        let Some(from) = info.dtype() else {
            let reason = format!("{} cannot be read yet", info.ggml_type());
            return Err(Error::Tensor { path: model.path().to_owned(), name: info.name().to_owned(), reason });
        };
        let role = roles.get(info.name()).copied();
        let skipped = options.skip.iter().any(|pattern| pattern.is_in(info.name()));
        let action = match (role, options.what) {
            (Some((_, role)), What::Weights(_)) if is_matrix(role) && !skipped => Action::Zeros,
            (Some((layer, role)), What::Structure(_)) => cut_of(role, &config, before[layer], after[layer]),
            _ => Action::Keep,
        };
        let mut shape = info.shape().to_vec();
        if let Some((layer, _)) = role {
            cut(&mut shape, action, after[layer]);
        }
        // Rows are whole blocks and stay what they are; what is changed weight by weight was floats or becomes such.
        let to = match action {
            Action::Zeros | Action::Columns(_) if !matches!(from, DType::F32 | DType::F16 | DType::BF16) => DType::F16,
            _ => from,
        };
        let planned = Planned { name: info.name().to_owned(), shape, from, to };
        let layer = role.map(|(layer, _)| layer);
        tensors.push(PrunedShape { planned, before: info.shape().to_vec(), to, layer, action });
    }
    if tensors.iter().all(|tensor| tensor.action == Action::Keep) {
        let reason = "of no tensor anything would go".to_owned();
        return Err(Error::Unusable { path: model.path().to_owned(), reason });
    }
    if let Some(quantize) = &options.quantize {
        // As the pruned file will be seen, whose first layer has other heads.
        let mut facts = model_facts(model)?;
        if let Some(first) = after.first() {
            (facts.heads, facts.kv_heads) = (first.heads, first.kv_heads);
        }
        let pruned: Vec<TensorFacts<'_>> = tensors
            .iter()
            .map(|PrunedShape { planned: p, .. }| TensorFacts { name: &p.name, shape: &p.shape, dtype: p.to })
            .collect();
        let types = plan_of(model.path(), &facts, &pruned, quantize)?;
        tensors.iter_mut().zip(types).for_each(|(tensor, planned)| tensor.to = planned.to);
    }
    Ok(PrunePlan { tensors, before, after, config })
}

/// What each tensor's name stands for: its layer and what it is there.
fn roles(config: &LlamaConfig, table: &NameTable) -> HashMap<String, (usize, Role)> {
    let layers = 0..config.layers.len();
    let named = |layer: usize| {
        table.layer.iter().map(move |(role, name, _)| (name.replacen("{}", &layer.to_string(), 1), (layer, *role)))
    };
    layers.flat_map(named).collect()
}

fn is_matrix(role: Role) -> bool {
    use Role as R;
    matches!(role, R::Q | R::K | R::V | R::Qkv | R::AttentionOutput | R::Gate | R::Up | R::Down)
}

/// What of a layer remains.
fn remaining(layer: Extents, cut: &StructurePruning) -> Result<Extents, Error> {
    let mut after = layer;
    if cut.neurons > 0.0 {
        let multiple = common_divisor(layer.neurons, cut.multiple);
        let wanted = layer.neurons as f64 * (1.0 - cut.neurons) / multiple as f64;
        after.neurons = (wanted.round() as usize).max(1) * multiple;
        if after.neurons >= layer.neurons {
            let reason = format!("of {} neurons, kept in multiples of {multiple}, none would go", layer.neurons);
            return Err(Error::Option { name: "neurons", reason });
        }
    }
    let per_group = layer.heads / layer.kv_heads.max(1);
    let fewer = |name: &'static str, count: usize, share: f64, what: &str| {
        let gone = (count as f64 * share).round() as usize;
        if gone > 0 && gone < count {
            return Ok(count - gone);
        }
        Err(Error::Option { name, reason: format!("of {count} {what} {gone} would go") })
    };
    if cut.heads > 0.0 {
        after.kv_heads = fewer("heads", layer.kv_heads, cut.heads, "heads of keys and values of each layer")?;
        after.heads = after.kv_heads * per_group;
    }
    if cut.query_heads > 0.0 {
        let per_group = fewer("query_heads", per_group, cut.query_heads, "query heads of each head of keys")?;
        after.heads = after.kv_heads * per_group;
    }
    Ok(after)
}

/// Whether a file with fewer heads is still one that others read: Gemma's largest model scales attention by its width per head, and llama.cpp reads no
/// Qwen 2 whose heads do not make up the width.
fn heads_can_go(config: &LlamaConfig, model: &Gguf, cut: &StructurePruning) -> Result<(), Error> {
    if cut.heads == 0.0 && cut.query_heads == 0.0 {
        return Ok(());
    }
    let usual = 1.0 / (config.key_length as f32).sqrt();
    let reason = match config.architecture {
        Architecture::Gemma3 if config.attention_scale != usual => "this model scales attention by its number of heads",
        Architecture::Qwen2 => "readers of qwen2 files take it that heads make up the width of the model",
        _ => return Ok(()),
    };
    Err(Error::Unusable { path: model.path().to_owned(), reason: format!("{reason}: none can go") })
}

pub(super) fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { common_divisor(b, a % b) }
}

/// What a structure's cut does to a tensor of a layer.
fn cut_of(role: Role, config: &LlamaConfig, before: Extents, after: Extents) -> Action {
    let (key, value) = (config.key_length, config.value_length);
    let (rows, columns) = match role {
        Role::Gate | Role::Up | Role::GateBias | Role::UpBias => (Some(Unit::Neurons), None),
        Role::Down => (None, Some(Unit::Neurons)),
        Role::Q | Role::QBias => (Some(Unit::Heads(key)), None),
        Role::K | Role::KBias => (Some(Unit::KvHeads(key)), None),
        Role::V | Role::VBias => (Some(Unit::KvHeads(value)), None),
        Role::Qkv => (Some(Unit::Joined(key, value)), None),
        Role::AttentionOutput => (None, Some(Unit::Heads(value))),
        _ => (None, None),
    };
    let changes = |unit: &Unit| match unit {
        Unit::Neurons => before.neurons != after.neurons,
        Unit::Heads(_) | Unit::Joined(..) => before.heads != after.heads,
        Unit::KvHeads(_) => before.kv_heads != after.kv_heads,
    };
    let rows = rows.filter(changes).map(Action::Rows);
    rows.or(columns.filter(changes).map(Action::Columns)).unwrap_or(Action::Keep)
}

/// The shape that is left.
fn cut(shape: &mut [usize], action: Action, after: Extents) {
    let extent = |unit: Unit| match unit {
        Unit::Neurons => after.neurons,
        Unit::Heads(length) => after.heads * length,
        Unit::KvHeads(length) => after.kv_heads * length,
        Unit::Joined(key, value) => after.heads * key + after.kv_heads * (key + value),
    };
    let (place, unit) = match action {
        Action::Rows(unit) => (shape.first_mut(), unit),
        Action::Columns(unit) => (shape.last_mut(), unit),
        Action::Keep | Action::Zeros => return,
    };
    if let Some(place) = place {
        *place = extent(unit);
    }
}
