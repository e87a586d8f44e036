//! Tensor names: one table per architecture and format.

use super::Architecture;

/// What a tensor is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Role {
    Embedding,
    OutputNorm,
    Output,
    OutputBias,
    RopeFactors,
    AttentionNorm,
    Q,
    K,
    V,
    /// Q, K and V below each other.
    Qkv,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    AttentionOutput,
    AttentionOutputBias,
    AttentionPostNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    FeedForwardPostNorm,
}

/// Whether a file must have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    Optional,
}

use Presence::{Optional, Required};

/// One line of a table.
pub(crate) type Entry = (Role, &'static str, Presence);

/// The names of one architecture in one format. `{}` in a layer's name stands for its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameTable {
    pub(crate) model: &'static [Entry],
    pub(crate) layer: &'static [Entry],
    /// Tensors that files carry and nothing uses: derived values that the metadata gives as well.
    pub(crate) ignored: &'static [&'static str],
}

impl NameTable {
    /// The table of an architecture in GGUF files.
    pub(crate) fn gguf(architecture: Architecture) -> NameTable {
        let (model, layer) = match architecture {
            Architecture::Llama => (LLAMA_GGUF, LLAMA_LAYER_GGUF),
            Architecture::Qwen2 => (QWEN2_GGUF, QWEN2_LAYER_GGUF),
            Architecture::Gemma3 => (GEMMA3_GGUF, GEMMA3_LAYER_GGUF),
        };
        NameTable { model, layer, ignored: &["rope_freqs.", ".attn_rot_embd.", ".rope_freqs."] }
    }
}

const LLAMA_GGUF: &[Entry] = &[
    (Role::Embedding, "token_embd.weight", Required),
    (Role::OutputNorm, "output_norm.weight", Required),
    (Role::Output, "output.weight", Optional),
    (Role::RopeFactors, "rope_freqs.weight", Optional),
];

const LLAMA_LAYER_GGUF: &[Entry] = &[
    (Role::AttentionNorm, "blk.{}.attn_norm.weight", Required),
    (Role::Q, "blk.{}.attn_q.weight", Required),
    (Role::K, "blk.{}.attn_k.weight", Required),
    (Role::V, "blk.{}.attn_v.weight", Required),
    (Role::Qkv, "blk.{}.attn_qkv.weight", Optional),
    (Role::QBias, "blk.{}.attn_q.bias", Optional),
    (Role::KBias, "blk.{}.attn_k.bias", Optional),
    (Role::VBias, "blk.{}.attn_v.bias", Optional),
    (Role::AttentionOutput, "blk.{}.attn_output.weight", Required),
    (Role::AttentionOutputBias, "blk.{}.attn_output.bias", Optional),
    (Role::FeedForwardNorm, "blk.{}.ffn_norm.weight", Required),
    (Role::Gate, "blk.{}.ffn_gate.weight", Required),
    (Role::Up, "blk.{}.ffn_up.weight", Required),
    (Role::Down, "blk.{}.ffn_down.weight", Required),
    (Role::GateBias, "blk.{}.ffn_gate.bias", Optional),
    (Role::UpBias, "blk.{}.ffn_up.bias", Optional),
    (Role::DownBias, "blk.{}.ffn_down.bias", Optional),
];

const QWEN2_GGUF: &[Entry] = &[
    (Role::Embedding, "token_embd.weight", Required),
    (Role::OutputNorm, "output_norm.weight", Required),
    (Role::Output, "output.weight", Optional),
    (Role::OutputBias, "output.bias", Optional),
];

const QWEN2_LAYER_GGUF: &[Entry] = &[
    (Role::AttentionNorm, "blk.{}.attn_norm.weight", Required),
    (Role::Q, "blk.{}.attn_q.weight", Required),
    (Role::K, "blk.{}.attn_k.weight", Required),
    (Role::V, "blk.{}.attn_v.weight", Required),
    (Role::Qkv, "blk.{}.attn_qkv.weight", Optional),
    (Role::QBias, "blk.{}.attn_q.bias", Optional),
    (Role::KBias, "blk.{}.attn_k.bias", Optional),
    (Role::VBias, "blk.{}.attn_v.bias", Optional),
    (Role::AttentionOutput, "blk.{}.attn_output.weight", Required),
    (Role::FeedForwardNorm, "blk.{}.ffn_norm.weight", Required),
    (Role::Gate, "blk.{}.ffn_gate.weight", Required),
    (Role::Up, "blk.{}.ffn_up.weight", Required),
    (Role::Down, "blk.{}.ffn_down.weight", Required),
];

const GEMMA3_GGUF: &[Entry] = &[
    (Role::Embedding, "token_embd.weight", Required),
    (Role::OutputNorm, "output_norm.weight", Required),
    (Role::Output, "output.weight", Optional),
];

const GEMMA3_LAYER_GGUF: &[Entry] = &[
    (Role::AttentionNorm, "blk.{}.attn_norm.weight", Required),
    (Role::Q, "blk.{}.attn_q.weight", Required),
    (Role::K, "blk.{}.attn_k.weight", Required),
    (Role::V, "blk.{}.attn_v.weight", Required),
    (Role::Qkv, "blk.{}.attn_qkv.weight", Optional),
    (Role::QBias, "blk.{}.attn_q.bias", Optional),
    (Role::KBias, "blk.{}.attn_k.bias", Optional),
    (Role::VBias, "blk.{}.attn_v.bias", Optional),
    (Role::QNorm, "blk.{}.attn_q_norm.weight", Required),
    (Role::KNorm, "blk.{}.attn_k_norm.weight", Required),
    (Role::AttentionOutput, "blk.{}.attn_output.weight", Required),
    (Role::AttentionPostNorm, "blk.{}.post_attention_norm.weight", Required),
    (Role::FeedForwardNorm, "blk.{}.ffn_norm.weight", Required),
    (Role::Gate, "blk.{}.ffn_gate.weight", Required),
    (Role::Up, "blk.{}.ffn_up.weight", Required),
    (Role::Down, "blk.{}.ffn_down.weight", Required),
    (Role::FeedForwardPostNorm, "blk.{}.post_ffw_norm.weight", Required),
];
