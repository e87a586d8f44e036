//! Mixtures: which tensor of a language model becomes which type.
//!
//! `Q4_K_M` and its kin are not types but rules: some tensors take more bits than others, because it pays. The rules here
//! are llama.cpp's (`llama-quant.cpp`, ggml 0.25), so that a name means the same types in both programs: by what a tensor is
//! (its name in a GGUF file), by its layer, and by how many columns it has, where a type needs whole blocks.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use core_tensor::BlockFormat as B;
use core_tensor::DType;

/// A mixture by the name that users know.
#[allow(non_camel_case_types, missing_docs)] // the names are the field's own
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mixture {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    /// Expert matrices in MXFP4, everything else in Q8_0.
    MXFP4_MOE,
    /// Every matrix in MXFP4, embeddings and output in Q8_0; llama.cpp has no such mixture.
    MXFP4,
}

/// A name that is no mixture's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no type to quantize to; there are {names}", names = Mixture::ALL.map(Mixture::name).join(", "))]
pub struct UnknownMixture(pub String);

impl Mixture {
    /// Every mixture, from the plain types on.
    pub const ALL: [Mixture; 24] = {
        use Mixture::*;
        [
            F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_1, Q5_0, Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4,
            MXFP4_MOE, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K, Q2_K_S, TQ2_0, TQ1_0,
        ]
    };

    /// The one table: name, the type of most tensors, and the number that `general.file_type` has (`llama_ftype`).
    const fn row(self) -> (&'static str, DType, u32) {
        use DType::Block;
        match self {
            Mixture::F32 => ("F32", DType::F32, 0),
            Mixture::F16 => ("F16", DType::F16, 1),
            Mixture::BF16 => ("BF16", DType::BF16, 32),
            Mixture::Q4_0 => ("Q4_0", Block(B::Q4_0), 2),
            Mixture::Q4_1 => ("Q4_1", Block(B::Q4_1), 3),
            Mixture::Q5_0 => ("Q5_0", Block(B::Q5_0), 8),
            Mixture::Q5_1 => ("Q5_1", Block(B::Q5_1), 9),
            Mixture::Q8_0 => ("Q8_0", Block(B::Q8_0), 7),
            Mixture::Q2_K => ("Q2_K", Block(B::Q2_K), 10),
            Mixture::Q2_K_S => ("Q2_K_S", Block(B::Q2_K), 21),
            Mixture::Q3_K_S => ("Q3_K_S", Block(B::Q3_K), 11),
            Mixture::Q3_K_M => ("Q3_K_M", Block(B::Q3_K), 12),
            Mixture::Q3_K_L => ("Q3_K_L", Block(B::Q3_K), 13),
            Mixture::Q4_K_S => ("Q4_K_S", Block(B::Q4_K), 14),
            Mixture::Q4_K_M => ("Q4_K_M", Block(B::Q4_K), 15),
            Mixture::Q5_K_S => ("Q5_K_S", Block(B::Q5_K), 16),
            Mixture::Q5_K_M => ("Q5_K_M", Block(B::Q5_K), 17),
            Mixture::Q6_K => ("Q6_K", Block(B::Q6_K), 18),
            Mixture::IQ4_NL => ("IQ4_NL", Block(B::IQ4_NL), 25),
            Mixture::IQ4_XS => ("IQ4_XS", Block(B::IQ4_XS), 30),
            Mixture::TQ1_0 => ("TQ1_0", Block(B::TQ1_0), 36),
            Mixture::TQ2_0 => ("TQ2_0", Block(B::TQ2_0), 37),
            Mixture::MXFP4_MOE => ("MXFP4_MOE", Block(B::MXFP4), 38),
            Mixture::MXFP4 => ("MXFP4", Block(B::MXFP4), 38),
        }
    }

    /// The name ("Q4_K_M").
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The type that most tensors get.
    #[must_use]
    pub const fn dtype(self) -> DType {
        self.row().1
    }

    /// The number that `general.file_type` has.
    #[must_use]
    pub const fn file_type(self) -> u32 {
        self.row().2
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mixture {
    type Err = UnknownMixture;

    /// By name, in any case; `Q3_K`, `Q4_K` and `Q5_K` are the medium ones.
    fn from_str(name: &str) -> Result<Mixture, UnknownMixture> {
        let upper = name.to_ascii_uppercase();
        let full = match upper.as_str() {
            "Q3_K" => "Q3_K_M",
            "Q4_K" => "Q4_K_M",
            "Q5_K" => "Q5_K_M",
            other => other,
        };
        Mixture::ALL.into_iter().find(|mixture| mixture.name() == full).ok_or_else(|| UnknownMixture(name.to_owned()))
    }
}

/// A tensor that a type is to be chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorFacts<'a> {
    /// Its name in a GGUF file ("blk.0.attn_q.weight").
    pub name: &'a str,
    /// Outermost extent first; the last is the columns.
    pub shape: &'a [usize],
    /// The type that it has.
    pub dtype: DType,
}

/// What the rules look at besides the tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub layers: usize,
    /// Attention heads of the first layer.
    pub heads: usize,
    /// Heads of keys and values of the first layer.
    pub kv_heads: usize,
    /// Experts; 0 where there are none.
    pub experts: usize,
}

/// What the user decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AssignOptions {
    /// Whether importances are at hand: some rules are more careful without them.
    pub importance: bool,
    /// Whether all matrices get the mixture's main type.
    pub pure: bool,
    /// The type of the output matrix, and of embeddings that serve as one.
    pub output: Option<DType>,
    /// The type of the token embeddings.
    pub embedding: Option<DType>,
    /// Whether the output matrix stays as it is.
    pub leave_output: bool,
}

impl AssignOptions {
    /// The type that is demanded of a tensor since it is the output matrix, or the token embeddings, which serve as one where there is no other (`tied`).
    #[must_use]
    pub fn demanded(&self, name: &str, tied: bool) -> Option<DType> {
        match Kind::of(name) {
            Kind::Output => self.output,
            Kind::Embedding => self.embedding.or(self.output.filter(|_| tied)),
            _ => None,
        }
    }
}

/// The types of all tensors, in their order. `forced` gives the type of a tensor by its name where the user demands one.
///
/// What is not to be quantized (vectors, norms, small or delicate matrices) keeps its type; a matrix whose columns are no
/// whole blocks of its type gets a related type of shorter blocks, and else f16.
#[must_use]
pub fn assign(
    mixture: Mixture,
    model: &ModelFacts,
    tensors: &[TensorFacts<'_>],
    options: &AssignOptions,
    forced: &dyn Fn(&str) -> Option<DType>,
) -> Vec<DType> {
    // Rules count tensors of a kind in the order of the layers, whatever the file's order is.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|i| (layer(tensors[*i].name), tensors[*i].name));
    let kinds: Vec<Kind> = tensors.iter().map(|tensor| Kind::of(tensor.name)).collect();
    let mut rules = Rules {
        mixture,
        model,
        options,
        tied: !kinds.contains(&Kind::Output),
        values: kinds.iter().filter(|kind| kind.is_value()).count(),
        seen: BTreeMap::new(),
    };
    let mut types: Vec<DType> = tensors.iter().map(|tensor| tensor.dtype).collect();
    for i in order {
        types[i] = rules.choose(&tensors[i], kinds[i], forced);
    }
    types
}

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Output,
    Embedding,
    Qkv,
    KeyValueB,
    Value,
    Key,
    Query,
    AttentionOutput,
    Up,
    Gate,
    Down,
    Other,
}

impl Kind {
    fn of(name: &str) -> Kind {
        const PARTS: [(&str, Kind); 9] = [
            ("attn_qkv.weight", Kind::Qkv),
            ("attn_kv_b.weight", Kind::KeyValueB),
            ("attn_v.weight", Kind::Value),
            ("attn_k.weight", Kind::Key),
            ("attn_q.weight", Kind::Query),
            ("attn_output.weight", Kind::AttentionOutput),
            ("ffn_up", Kind::Up),
            ("ffn_gate", Kind::Gate),
            ("ffn_down", Kind::Down),
        ];
        match name {
            "output.weight" => Kind::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Kind::Embedding,
            _ => PARTS.into_iter().find(|(part, _)| name.contains(part)).map_or(Kind::Other, |(_, kind)| kind),
        }
    }

    /// Whether it makes attention's values: errors there go straight through.
    fn is_value(self) -> bool {
        matches!(self, Kind::Qkv | Kind::KeyValueB | Kind::Value)
    }
}

/// The number in `blk.N.`; tensors of no layer come first.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Parts of names of matrices that are too small or too delicate to be quantized.
const KEPT: [&str; 38] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
    "position_embd.weight",
    "token_types.weight",
    "rope_freqs",
];

/// The choice for one model, with what was seen of it so far.
struct Rules<'a> {
    mixture: Mixture,
    model: &'a ModelFacts,
    options: &'a AssignOptions,
    /// Whether the embeddings are the output matrix, too.
    tied: bool,
    /// Tensors that make values.
    values: usize,
    /// How many tensors of a kind came before.
    seen: BTreeMap<Kind, usize>,
}

impl Rules<'_> {
    fn choose(&mut self, tensor: &TensorFacts<'_>, kind: Kind, forced: &dyn Fn(&str) -> Option<DType>) -> DType {
        let extents = tensor.shape.iter().skip_while(|extent| **extent == 1).count();
        let kept = extents < 2
            || !tensor.name.ends_with("weight")
            || KEPT.iter().any(|part| tensor.name.contains(part))
            || !(tensor.dtype.is_float() || tensor.dtype.is_block())
            || (self.options.leave_output && kind == Kind::Output);
        if kept {
            return tensor.dtype;
        }
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let by_user = forced(tensor.name).or(match kind {
            Kind::Embedding => self.options.embedding,
            Kind::Output => self.options.output,
            _ => None,
        });
        let wanted = match by_user {
            Some(dtype) => dtype,
            None if self.options.pure || !self.mixture.dtype().is_block() => self.mixture.dtype(),
            None => self.by_rule(tensor, kind, columns),
        };
        fitting(wanted, columns)
    }

    /// How many tensors of a kind came before this one; all that make values are one kind.
    fn count(&mut self, kind: Kind) -> usize {
        let seen = self.seen.entry(if kind.is_value() { Kind::Value } else { kind }).or_default();
        *seen += 1;
        *seen - 1
    }

    fn by_rule(&mut self, tensor: &TensorFacts<'_>, kind: Kind, columns: usize) -> DType {
        use Mixture as M;
        let main = self.mixture.dtype();
        let q = DType::Block;
        if kind == Kind::Output || (kind == Kind::Embedding && self.tied) {
            let whole = columns.is_multiple_of(main.packing().0);
            return match self.options.output {
                Some(dtype) => dtype,
                None if matches!(self.mixture, M::MXFP4_MOE | M::MXFP4) || !whole || self.falcon() => q(B::Q8_0),
                None if main == q(B::Q8_0) => main,
                None => q(B::Q6_K),
            };
        }
        match (self.mixture, kind) {
            (M::MXFP4_MOE, _) => {
                let experts = tensor.shape.len() > 2 && tensor.shape[..tensor.shape.len() - 2].iter().any(|n| *n > 1);
                if experts { main } else { q(B::Q8_0) }
            }
            (M::MXFP4, Kind::Embedding) => q(B::Q8_0),
            (M::TQ1_0 | M::TQ2_0, Kind::Embedding) => q(B::Q4_K),
            (_, Kind::Qkv | Kind::KeyValueB | Kind::Value) => self.value(kind),
            (_, Kind::Key) if self.model.experts == 8 => q(B::Q8_0),
            (_, Kind::Down) => self.down(tensor.name),
            (_, Kind::AttentionOutput) => self.attention_output(),
            _ => main,
        }
    }

    fn falcon(&self) -> bool {
        self.model.architecture == "falcon"
    }

    /// Query heads that share one head of values.
    fn shared(&self) -> usize {
        self.model.heads.checked_div(self.model.kv_heads).unwrap_or(0)
    }

    fn value(&mut self, kind: Kind) -> DType {
        use Mixture as M;
        let (index, values) = (self.count(kind), self.values);
        let q = DType::Block;
        let main = self.mixture.dtype();
        let mut dtype = match self.mixture {
            M::Q2_K => q(if self.shared() >= 4 { B::Q4_K } else { B::Q3_K }),
            M::Q2_K_S if self.shared() >= 4 => q(B::Q4_K),
            M::Q3_K_M => q(if index < 2 { B::Q5_K } else { B::Q4_K }),
            M::Q3_K_L => q(B::Q5_K),
            M::IQ4_NL | M::IQ4_XS if self.shared() >= 4 => q(B::Q5_K),
            M::Q4_K_M | M::Q5_K_M if more_bits(index, values) => q(B::Q6_K),
            M::Q4_K_S if index < 4 => q(B::Q5_K),
            _ => main,
        };
        // Of the 70B models eight heads share a matrix that is small beside the others.
        let large = self.model.layers == 80
            && match self.model.architecture.as_str() {
                "llama" => self.model.heads != self.model.kv_heads,
                "qwen2" | "deci" | "olmo" => true,
                _ => false,
            };
        if large && (dtype == q(B::Q3_K) || dtype == q(B::Q4_K)) {
            dtype = q(B::Q5_K);
        }
        if self.model.experts == 8 { q(B::Q8_0) } else { dtype }
    }

    fn down(&mut self, name: &str) -> DType {
        use Mixture as M;
        let count = self.count(Kind::Down);
        // Files hold the matrices of experts in any order.
        let index = if self.model.experts > 1 { layer(name).unwrap_or(count) } else { count };
        let layers = self.model.layers;
        let q = DType::Block;
        let early = index < layers / 8;
        match self.mixture {
            M::Q2_K => q(B::Q3_K),
            M::Q2_K_S if early => q(B::Q4_K),
            M::Q3_K_M if index < layers / 16 => q(B::Q5_K),
            M::Q3_K_M if !self.falcon() || more_bits(index, layers) => q(B::Q4_K),
            M::Q3_K_L => q(if self.falcon() { B::Q4_K } else { B::Q5_K }),
            M::Q4_K_M if self.falcon() => q(match () {
                () if index < layers / 16 => B::Q6_K,
                () if more_bits(index, layers) => B::Q5_K,
                () => B::Q4_K,
            }),
            M::Q4_K_M | M::Q5_K_M if more_bits(index, layers) => q(B::Q6_K),
            M::IQ4_NL | M::IQ4_XS if early && !self.options.importance => q(B::Q5_K),
            M::Q4_K_S if early && !self.falcon() => q(B::Q5_K),
            M::Q4_0 if early && self.options.importance => q(B::Q4_1),
            M::Q5_0 if early && self.options.importance => q(B::Q5_1),
            _ => self.mixture.dtype(),
        }
    }

    fn attention_output(&self) -> DType {
        use Mixture as M;
        let q = DType::Block;
        match self.mixture {
            M::Q3_K_L if self.falcon() => q(B::Q4_K),
            _ if self.falcon() => self.mixture.dtype(),
            M::Q2_K | M::Q3_K_S | M::Q3_K_M | M::Q4_K_S | M::Q4_K_M | M::IQ4_NL | M::IQ4_XS
                if self.model.experts == 8 =>
            {
                q(B::Q5_K)
            }
            _ if self.model.experts == 8 => self.mixture.dtype(),
            M::Q2_K => q(B::Q3_K),
            M::Q3_K_M => q(B::Q4_K),
            M::Q3_K_L => q(B::Q5_K),
            _ => self.mixture.dtype(),
        }
    }
}

/// The layers that medium mixtures spend more on: the first and last eighth, and every third in between.
fn more_bits(index: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    index < eighth || index >= 7 * layers / 8 || (index - eighth) % 3 == 2
}

/// The type itself, or a relative of shorter blocks that whole columns make, or f16.
fn fitting(dtype: DType, columns: usize) -> DType {
    if columns.is_multiple_of(dtype.packing().0) {
        return dtype;
    }
    let DType::Block(format) = dtype else { return dtype };
    let shorter = DType::Block(match format {
        B::IQ4_XS => B::IQ4_NL,
        B::Q2_K | B::Q3_K | B::TQ1_0 | B::TQ2_0 => B::Q4_0,
        B::Q4_K => B::Q5_0,
        B::Q5_K => B::Q5_1,
        B::Q6_K => B::Q8_0,
        other => other,
    });
    if columns.is_multiple_of(shorter.packing().0) { shorter } else { DType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_by_their_short_forms() {
        for mixture in Mixture::ALL {
            assert_eq!(mixture.name().to_ascii_lowercase().parse(), Ok(mixture));
        }
        assert_eq!("q4_k".parse(), Ok(Mixture::Q4_K_M));
        assert!("Q9_K".parse::<Mixture>().is_err_and(|error| error.to_string().contains("Q4_K_M")));
    }

    fn choose(mixture: Mixture, name: &str, shape: &[usize], options: &AssignOptions) -> DType {
        let model = ModelFacts { architecture: "llama".into(), layers: 32, heads: 32, kv_heads: 8, experts: 0 };
        let tensors = [
            TensorFacts { name, shape, dtype: DType::F32 },
            TensorFacts { name: "output.weight", shape: &[1000, 4096], dtype: DType::F32 },
        ];
        assign(mixture, &model, &tensors, options, &|name| name.contains("blk.3.").then_some(DType::Block(B::Q8_0)))[0]
    }

    #[test]
    fn what_the_user_asks_for_goes_before_the_rules() {
        let plain = AssignOptions::default();
        let q = DType::Block;
        let value = "blk.2.attn_v.weight";
        assert_eq!(choose(Mixture::Q4_K_M, value, &[1024, 4096], &plain), q(B::Q6_K));
        let pure = AssignOptions { pure: true, ..plain };
        assert_eq!(choose(Mixture::Q4_K_M, value, &[1024, 4096], &pure), q(B::Q4_K));
        assert_eq!(choose(Mixture::Q4_K_M, "blk.3.attn_q.weight", &[4096, 4096], &plain), q(B::Q8_0));
        let embedding = AssignOptions { embedding: Some(DType::F16), ..plain };
        assert_eq!(choose(Mixture::Q4_K_M, "token_embd.weight", &[1000, 4096], &embedding), DType::F16);
    }

    #[test]
    fn vectors_norms_and_small_matrices_stay() {
        let plain = AssignOptions::default();
        for (name, shape) in [
            ("blk.0.attn_norm.weight", &[4096][..]),
            ("blk.0.attn_q.bias", &[4096]),
            ("blk.0.ffn_gate_inp.weight", &[8, 4096]),
            ("blk.0.ssm_conv1d.weight", &[4096, 4]),
            ("blk.0.attn_q.weight", &[1, 4096]),
        ] {
            assert_eq!(choose(Mixture::Q4_0, name, shape, &plain), DType::F32, "{name}");
        }
    }

    #[test]
    fn columns_that_are_no_whole_blocks_get_a_relative() {
        let plain = AssignOptions::default();
        let q = DType::Block;
        let up = "blk.0.ffn_up.weight";
        assert_eq!(choose(Mixture::Q4_K_M, up, &[64, 576], &plain), q(B::Q5_0));
        assert_eq!(choose(Mixture::Q2_K, up, &[64, 576], &plain), q(B::Q4_0));
        assert_eq!(choose(Mixture::IQ4_XS, up, &[64, 576], &plain), q(B::IQ4_NL));
        assert_eq!(choose(Mixture::Q6_K, up, &[64, 576], &plain), q(B::Q8_0));
        assert_eq!(choose(Mixture::Q4_K_M, up, &[64, 100], &plain), DType::F16);
    }
}
