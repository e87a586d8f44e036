//! The tensors of a model, found by the name table and checked against the configuration.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use core_tensor::{DType, Tensor, Weight, WeightSource};

use super::config::{Layer, LlamaConfig};
use super::names::{Entry, NameTable, Presence, Role};
use crate::Error;

/// Names that a message lists at most.
const NAMED: usize = 8;

/// The weights of a model. Norms, biases and frequency factors are f32; everything else is as stored.
#[derive(Debug)]
pub(crate) struct LlamaWeights {
    model: HashMap<Role, Arc<Weight>>,
    layers: Vec<HashMap<Role, Arc<Weight>>>,
}

struct Finder<'a> {
    source: &'a dyn WeightSource,
    names: HashSet<String>,
    used: HashSet<String>,
    missing: Vec<String>,
}

impl LlamaWeights {
    /// Finds and checks all tensors.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] with all that are missing, [`Error::UnusedTensors`], [`Error::TensorShape`], or [`Error::Tensor`] for a
    /// type that cannot be computed with.
    pub(crate) fn find(
        source: &dyn WeightSource,
        config: &LlamaConfig,
        table: &NameTable,
    ) -> Result<LlamaWeights, Error> {
        let names: HashSet<String> = source.names().into_iter().map(str::to_owned).collect();
        let mut finder = Finder { source, names, used: HashSet::new(), missing: Vec::new() };
        let mut model = HashMap::new();
        for (role, name, presence) in table.model {
            finder.find(&mut model, *role, (*name).to_owned(), *presence, &model_shape(*role, config))?;
        }
        let mut layers = Vec::with_capacity(config.layers.len());
        for (number, layer) in config.layers.iter().enumerate() {
            layers.push(finder.layer(number, layer, config, table.layer)?);
        }
        finder.finish(table)?;
        Ok(LlamaWeights { model, layers })
    }

    /// A weight of the model as a whole.
    pub(crate) fn model(&self, role: Role) -> Option<&Arc<Weight>> {
        self.model.get(&role)
    }

    /// A weight of a layer.
    pub(crate) fn layer(&self, layer: usize, role: Role) -> Option<&Arc<Weight>> {
        self.layers.get(layer)?.get(&role)
    }
}

impl Finder<'_> {
    fn path(&self) -> PathBuf {
        PathBuf::from(self.source.origin())
    }

    fn layer(
        &mut self,
        number: usize,
        layer: &Layer,
        config: &LlamaConfig,
        entries: &[Entry],
    ) -> Result<HashMap<Role, Arc<Weight>>, Error> {
        let name_of = |name: &str| name.replacen("{}", &number.to_string(), 1);
        let joined = entries.iter().any(|(role, name, _)| *role == Role::Qkv && self.names.contains(&name_of(name)));
        let mut found = HashMap::new();
        for (role, name, presence) in entries {
            if joined && matches!(role, Role::Q | Role::K | Role::V) {
                continue;
            }
            self.find(&mut found, *role, name_of(name), *presence, &layer_shape(*role, layer, config))?;
        }
        if let Some(qkv) = found.remove(&Role::Qkv) {
            let (q, k, v) = projections(layer, config);
            found.insert(Role::Q, qkv.slice_rows(0..q)?);
            found.insert(Role::K, qkv.slice_rows(q..q + k)?);
            found.insert(Role::V, qkv.slice_rows(q + k..q + k + v)?);
        }
        Ok(found)
    }

    fn find(
        &mut self,
        found: &mut HashMap<Role, Arc<Weight>>,
        role: Role,
        name: String,
        presence: Presence,
        shape: &[usize],
    ) -> Result<(), Error> {
        if !self.names.contains(&name) {
            if presence == Presence::Required {
                self.missing.push(name);
            }
            return Ok(());
        }
        let path = self.path();
        let Some(tensor) = self.source.tensor(&name) else {
            let reason = "its type cannot be computed with yet".to_owned();
            return Err(Error::Tensor { path, name, reason });
        };
        if tensor.shape() != shape {
            let (found, expected) = (tensor.shape().to_vec(), shape.to_vec());
            return Err(Error::TensorShape { path, name, found, expected });
        }
        let weight = usable(tensor, shape).map_err(|reason| Error::Tensor { path, name: name.clone(), reason })?;
        self.used.insert(name);
        found.insert(role, weight);
        Ok(())
    }

    fn finish(self, table: &NameTable) -> Result<(), Error> {
        let path = self.path();
        let ignored = |name: &String| table.ignored.iter().any(|part| name.contains(part));
        let mut unused: Vec<String> =
            self.names.difference(&self.used).filter(|name| !ignored(name)).cloned().collect();
        unused.sort_unstable();
        let (mut names, count) = match self.missing.len() {
            0 => (unused, None),
            count => (self.missing, Some(count)),
        };
        let total = names.len();
        names.truncate(NAMED);
        match count {
            Some(count) => Err(Error::MissingTensors { path, names, count }),
            None if total > 0 => Err(Error::UnusedTensors { path, names, count: total }),
            None => Ok(()),
        }
    }
}

/// Vectors become f32 (they are tiny); matrices stay as stored and must be floats or blocks.
fn usable(tensor: Tensor, shape: &[usize]) -> Result<Arc<Weight>, String> {
    let dtype = tensor.dtype();
    if !(dtype.is_float() || dtype.is_block()) {
        return Err(format!("{dtype} is no type for weights"));
    }
    let weight = Weight::stored(tensor);
    if shape.len() == 1 { weight.cast(DType::F32).map_err(|e| e.to_string()) } else { Ok(weight) }
}

/// Rows of Q, K and V. Extents are bounded, so that the products fit.
fn projections(layer: &Layer, config: &LlamaConfig) -> (usize, usize, usize) {
    (layer.heads * config.key_length, layer.kv_heads * config.key_length, layer.kv_heads * config.value_length)
}

fn model_shape(role: Role, config: &LlamaConfig) -> Vec<usize> {
    match role {
        Role::Embedding | Role::Output => vec![config.vocabulary, config.embedding],
        Role::OutputBias => vec![config.vocabulary],
        Role::RopeFactors => vec![config.layers.first().map_or(0, |layer| layer.rope.dims / 2)],
        _ => vec![config.embedding],
    }
}

fn layer_shape(role: Role, layer: &Layer, config: &LlamaConfig) -> Vec<usize> {
    let (q, k, v) = projections(layer, config);
    let width = config.embedding;
    match role {
        Role::Q => vec![q, width],
        Role::K => vec![k, width],
        Role::V => vec![v, width],
        Role::Qkv => vec![q + k + v, width],
        Role::QBias => vec![q],
        Role::KBias => vec![k],
        Role::VBias => vec![v],
        Role::QNorm | Role::KNorm => vec![config.key_length],
        Role::AttentionOutput => vec![width, layer.heads * config.value_length],
        Role::Gate | Role::Up => vec![layer.feed_forward, width],
        Role::GateBias | Role::UpBias => vec![layer.feed_forward],
        Role::Down => vec![width, layer.feed_forward],
        _ => vec![width],
    }
}
