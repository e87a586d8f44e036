//! What a file's metadata says about a model.

use core_tensor::op::RopeScaling;
use loader_gguf::{FromValue, Gguf, Value};

use crate::Error;

/// An architecture that has a builder here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, TinyLlama, SmolLM2, Mistral.
    Llama,
    /// Qwen 2 and 2.5: biases on Q, K and V, NeoX rotation.
    Qwen2,
    /// Gemma 3 (text): norms after each block and on Q and K, sliding windows, GeGLU.
    Gemma3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Gemma3];

    /// The name in `general.architecture`, which also begins the names of its keys.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Gemma3 => "gemma3",
        }
    }

    /// The architecture of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|architecture| architecture.name() == name)
    }
}

/// Rotary position embedding of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Elements of a head that are rotated.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward network.
    pub feed_forward: usize,
    /// Positions that attention looks back on, itself included; `None` for all.
    pub window: Option<usize>,
    /// Rotary position embedding.
    pub rope: Rope,
}

/// A model's shape, checked: what follows from it can be computed without overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// The architecture.
    pub architecture: Architecture,
    /// Positions that the model was trained with.
    pub trained_context: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Rows of the embedding: tokens that the model knows.
    pub vocabulary: usize,
    /// Elements of a query or key head.
    pub key_length: usize,
    /// Elements of a value head.
    pub value_length: usize,
    /// Added to the mean of squares in norms.
    pub norm_epsilon: f32,
    /// What attention scores are multiplied with.
    pub attention_scale: f32,
    /// Soft cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Soft cap of the logits.
    pub logit_softcap: Option<f32>,
    /// The layers.
    pub layers: Vec<Layer>,
}

/// Extents above this are no model's: it keeps every product of two of them far from overflow.
const MAX_EXTENT: usize = 1 << 24;

/// Reads keys of one architecture and says which key is at fault.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Metadata { path: self.gguf.path().to_owned(), key: self.key(name), reason: reason.into() }
    }

    fn optional<T: FromValue<'a>>(&self, name: &str) -> Result<Option<T>, Error> {
        Ok(self.gguf.optional(&self.key(name))?)
    }

    fn checked_extent(&self, name: &str, value: u64) -> Result<usize, Error> {
        match usize::try_from(value) {
            Ok(extent) if (1..=MAX_EXTENT).contains(&extent) => Ok(extent),
            _ => Err(self.error(name, format!("{value} is not between 1 and {MAX_EXTENT}"))),
        }
    }

    /// A required extent.
    fn extent(&self, name: &str) -> Result<usize, Error> {
        self.checked_extent(name, self.gguf.u64(&self.key(name))?)
    }

    /// An extent that need not be there.
    fn optional_extent(&self, name: &str) -> Result<Option<usize>, Error> {
        self.optional::<u64>(name)?.map(|value| self.checked_extent(name, value)).transpose()
    }

    /// One extent per layer, given once or for each.
    fn layer_extents(&self, name: &str, layers: usize) -> Result<Vec<usize>, Error> {
        let values: Vec<u64> = self.gguf.per_layer(&self.key(name), layers)?;
        values.into_iter().map(|value| self.checked_extent(name, value)).collect()
    }

    /// A number that need not be there; it must be finite and above 0.
    fn positive(&self, name: &str) -> Result<Option<f32>, Error> {
        match self.optional::<f32>(name)? {
            Some(value) if !(value.is_finite() && value > 0.0) => {
                Err(self.error(name, format!("{value} is not a number above 0")))
            }
            value => Ok(value),
        }
    }

    /// A number that need not be there, where 0 says the same as nothing.
    fn positive_or_zero(&self, name: &str) -> Result<Option<f32>, Error> {
        if self.optional::<f32>(name)? == Some(0.0) { Ok(None) } else { self.positive(name) }
    }
}

impl LlamaConfig {
    /// Fails where chunks of a text are longer than what the model was trained with.
    pub(crate) fn check_context(&self, context: usize) -> Result<(), Error> {
        if context <= self.trained_context {
            return Ok(());
        }
        let reason = format!("{context} tokens, and the model knows {}", self.trained_context);
        Err(Error::Option { name: "context", reason })
    }

    /// Reads and checks the metadata of a file.
    ///
    /// # Errors
    /// [`Error::UnknownArchitecture`]; [`Error::Metadata`] or [`Error::Gguf`] with the key that is missing, of the wrong type or out
    /// of range.
    pub fn from_gguf(gguf: &Gguf) -> Result<LlamaConfig, Error> {
        let name = gguf.str("general.architecture")?;
        let architecture = Architecture::from_name(name).ok_or_else(|| Error::UnknownArchitecture {
            path: gguf.path().to_owned(),
            found: name.chars().take(64).collect(),
            known: Architecture::ALL.map(Architecture::name).join(", "),
        })?;
        let keys = Keys { gguf, prefix: architecture.name() };
        if keys.optional::<u64>("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(keys.error("expert_count", "mixtures of experts are not supported yet"));
        }
        let trained_context = keys.extent("context_length")?;
        let embedding = keys.extent("embedding_length")?;
        let layers = keys.extent("block_count")?;
        // Every layer has tensors of its own, so that a number beyond those in the file is a lie: no list grows by it.
        if layers > gguf.tensors().len() {
            let found = gguf.tensors().len();
            return Err(keys.error("block_count", format!("{layers} layers, and the file has {found} tensors")));
        }
        let heads = keys.layer_extents("attention.head_count", layers)?;
        let kv_heads = match gguf.contains(&keys.key("attention.head_count_kv")) {
            true => keys.layer_extents("attention.head_count_kv", layers)?,
            false => heads.clone(),
        };
        for (layer, (heads, kv_heads)) in heads.iter().zip(&kv_heads).enumerate() {
            if !heads.is_multiple_of(*kv_heads) {
                let reason = format!("{kv_heads} does not divide the {heads} query heads of layer {layer}");
                return Err(keys.error("attention.head_count_kv", reason));
            }
        }
        let first_heads = heads.first().copied().unwrap_or(1);
        let head_length = |name| -> Result<usize, Error> {
            if let Some(length) = keys.optional_extent(name)? {
                return Ok(length);
            }
            if !embedding.is_multiple_of(first_heads) {
                let reason = format!("{first_heads} heads do not divide the embedding length {embedding}");
                return Err(keys.error("attention.head_count", reason));
            }
            Ok(embedding / first_heads)
        };
        let (key_length, value_length) = (head_length("attention.key_length")?, head_length("attention.value_length")?);
        let feed_forward = keys.layer_extents("feed_forward_length", layers)?;
        let windows = windows(&keys, architecture, layers)?;
        let rope = Ropes::new(&keys, key_length, trained_context)?;
        let layers: Vec<Layer> = heads
            .into_iter()
            .zip(kv_heads)
            .zip(feed_forward)
            .zip(windows)
            .map(|(((heads, kv_heads), feed_forward), window)| {
                let rope = if window.is_some() { rope.local } else { rope.global };
                Layer { heads, kv_heads, feed_forward, window, rope }
            })
            .collect();
        let epsilon = gguf.f32(&keys.key("attention.layer_norm_rms_epsilon"))?;
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(keys.error("attention.layer_norm_rms_epsilon", format!("{epsilon} is not a number from 0 up")));
        }
        Ok(LlamaConfig {
            architecture,
            trained_context,
            embedding,
            vocabulary: vocabulary(&keys)?,
            key_length,
            value_length,
            norm_epsilon: epsilon,
            attention_scale: attention_scale(&keys, architecture, &layers, embedding, key_length)?,
            attention_softcap: keys.positive_or_zero("attn_logit_softcapping")?,
            logit_softcap: keys.positive_or_zero("final_logit_softcapping")?,
            layers,
        })
    }
}

/// The tokens that the model knows: rows of the embedding, which the vocabulary may not exceed (it may be smaller: some
/// models are padded).
fn vocabulary(keys: &Keys<'_>) -> Result<usize, Error> {
    let rows = |name: &str| keys.gguf.tensor_info(name).and_then(|info| info.shape().first().copied());
    let size = keys.optional_extent("vocab_size")?;
    // Without the embedding, the list of missing tensors is the message to give: what else tells the size, or any, will do.
    let rows = rows("token_embd.weight").or_else(|| rows("output.weight")).or(size).unwrap_or(1);
    if let Some(size) = size
        && size > rows
    {
        return Err(keys.error("vocab_size", format!("{size} tokens, and the embedding has {rows} rows")));
    }
    if rows == 0 || i32::try_from(rows).is_err() {
        return Err(keys.error("vocab_size", format!("the embedding has {rows} rows")));
    }
    Ok(rows)
}

/// Gemma's 27B model scales attention by its embedding length per head, all others by the length of a head
/// (llama.cpp tells it by its 62 layers; Google's configuration: `query_pre_attn_scalar`).
fn attention_scale(
    keys: &Keys<'_>,
    architecture: Architecture,
    layers: &[Layer],
    embedding: usize,
    key_length: usize,
) -> Result<f32, Error> {
    const GEMMA3_27B_LAYERS: usize = 62;
    if let Some(scale) = keys.positive_or_zero("attention.scale")? {
        return Ok(scale);
    }
    let heads = layers.first().map_or(1, |layer| layer.heads);
    let length = match architecture {
        Architecture::Gemma3 if layers.len() == GEMMA3_27B_LAYERS => (embedding / heads).max(1),
        _ => key_length,
    };
    Ok(1.0 / (length as f32).sqrt())
}

/// The window of each layer. Gemma 3 alternates: of each `sliding_window_pattern` (6) layers the last one sees everything.
fn windows(keys: &Keys<'_>, architecture: Architecture, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let everything = vec![None; layers];
    if architecture != Architecture::Gemma3 {
        // Mistral's files carry a window that was given up in later versions; llama.cpp does not use it either.
        return Ok(everything);
    }
    let window = match keys.optional::<u64>("attention.sliding_window")? {
        None | Some(0) => return Ok(everything),
        Some(window) => keys.checked_extent("attention.sliding_window", window)?,
    };
    let is_local: Vec<bool> = match keys.gguf.get(&keys.key(PATTERN)) {
        Some(Value::Array(_)) => keys.gguf.per_layer(&keys.key(PATTERN), layers)?,
        _ => {
            let pattern = keys.optional::<u64>(PATTERN)?.unwrap_or(6);
            (0..layers as u64).map(|layer| pattern == 0 || layer % pattern < pattern - 1).collect()
        }
    };
    Ok(is_local.into_iter().map(|local| local.then_some(window)).collect())
}

/// Rotations of the layers that see everything, and of those with a window.
struct Ropes {
    global: Rope,
    local: Rope,
}

impl Ropes {
    fn new(keys: &Keys<'_>, key_length: usize, trained_context: usize) -> Result<Ropes, Error> {
        const DIMS: &str = "rope.dimension_count";
        let dims = keys.optional_extent(DIMS)?.unwrap_or(key_length);
        if !dims.is_multiple_of(2) || dims > key_length {
            let name = if keys.gguf.contains(&keys.key(DIMS)) { DIMS } else { "attention.key_length" };
            let reason = format!("{dims} elements of heads of {key_length} cannot be rotated in pairs");
            return Err(keys.error(name, reason));
        }
        let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let local_theta = keys.positive("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let (scaling, local_scaling) = scaling(keys, trained_context)?;
        Ok(Ropes {
            global: Rope { dims, theta, scaling },
            local: Rope { dims, theta: local_theta, scaling: local_scaling },
        })
    }
}

/// How angles are stretched, for layers that see everything and for those with a window (whose angles stay as trained).
fn scaling(keys: &Keys<'_>, trained_context: usize) -> Result<(RopeScaling, RopeScaling), Error> {
    const TYPE: &str = "rope.scaling.type";
    let kind = keys.optional::<&str>(TYPE)?.unwrap_or("linear");
    // The older name is read where the newer one is not there, as llama.cpp does.
    let stretch = match keys.optional::<f32>("rope.scaling.factor")? {
        Some(_) => keys.positive_or_zero("rope.scaling.factor")?,
        None => keys.positive_or_zero("rope.scale_linear")?,
    };
    let stretch = stretch.unwrap_or(1.0);
    let factor = 1.0 / stretch;
    let attn_factor = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let plain = |factor: f32| match (factor == 1.0, attn_factor == 1.0) {
        (true, true) => RopeScaling::None,
        (false, true) => RopeScaling::Linear { factor },
        (_, false) => RopeScaling::Yarn {
            factor,
            ext_factor: 0.0,
            attn_factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 1,
        },
    };
    let global = match kind {
        "none" => plain(1.0),
        "linear" => plain(factor),
        "yarn" => {
            let context = keys.optional_extent("rope.scaling.original_context_length")?.unwrap_or(trained_context);
            let named = |name, otherwise| Ok::<f32, Error>(keys.positive(name)?.unwrap_or(otherwise));
            RopeScaling::Yarn {
                factor,
                ext_factor: named("rope.scaling.yarn_ext_factor", 1.0)?,
                // YaRN's own magnitude falls away where the context is not stretched.
                attn_factor: if stretch < 1.0 { attn_factor / (1.0 + 0.1 * stretch.ln()) } else { attn_factor },
                beta_fast: named("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: named("rope.scaling.yarn_beta_slow", 1.0)?,
                original_context: context as u32,
            }
        }
        other => {
            let other: String = other.chars().take(64).collect();
            return Err(keys.error(TYPE, format!("{other:?} is not supported (supported: none, linear, yarn)")));
        }
    };
    Ok((global, plain(1.0)))
}
