//! Tiny models with pseudo-random weights, as GGUF files in memory: one for each fact about an architecture that a test depends on.
//! `fixtures/logits` holds what llama.cpp computes for them (`examples/write_tiny_models.rs` tells how it was made).

use loader_gguf::{ArrayBuf, GgmlType, Gguf, GgufWriter};

/// Tokens whose logits are compared: position 3, one in the middle, the last one.
pub(crate) fn compared_rows(tokens: usize) -> [usize; 3] {
    [3, tokens / 2, tokens - 1]
}

/// The tokens that a model is evaluated on.
pub(crate) fn tokens(spec: &Spec) -> Vec<u32> {
    let mut random = Random(spec.tokens as u64);
    (0..spec.tokens).map(|_| random.next() % VOCABULARY as u32).collect()
}

/// Bytes, one merged pair, two control tokens.
pub(crate) const VOCABULARY: usize = 259;
pub(crate) const IM_START: u32 = 257;
pub(crate) const IM_END: u32 = 258;

/// A tiny model.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) embedding: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
    pub(crate) feed_forward: usize,
    pub(crate) context: u32,
    /// Tokens that it is evaluated on.
    pub(crate) tokens: usize,
    pub(crate) tied: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) other_bias: bool,
    pub(crate) joined_qkv: bool,
    pub(crate) rope_factors: bool,
    /// Further keys, without the architecture's prefix.
    pub(crate) floats: &'static [(&'static str, f32)],
    pub(crate) ints: &'static [(&'static str, u32)],
    pub(crate) strings: &'static [(&'static str, &'static str)],
}

const LLAMA: Spec = Spec {
    name: "llama",
    architecture: "llama",
    embedding: 48,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head: 12,
    feed_forward: 80,
    context: 256,
    tokens: 40,
    tied: false,
    qkv_bias: false,
    other_bias: false,
    joined_qkv: false,
    rope_factors: false,
    floats: &[],
    ints: &[],
    strings: &[],
};

const QWEN2: Spec = Spec {
    name: "qwen2",
    architecture: "qwen2",
    qkv_bias: true,
    other_bias: true,
    floats: &[("rope.freq_base", 1_000_000.0)],
    ..LLAMA
};

const GEMMA3: Spec = Spec {
    name: "gemma3",
    architecture: "gemma3",
    layers: 7,
    head: 16,
    tied: true,
    context: 1024,
    floats: &[("rope.freq_base", 1_000_000.0), ("rope.scaling.factor", 8.0), ("final_logit_softcapping", 2.5)],
    ints: &[("attention.sliding_window", 8), ("attention.key_length", 16), ("attention.value_length", 16)],
    strings: &[("rope.scaling.type", "linear")],
    ..LLAMA
};

/// Every model, with what it is for.
pub(crate) const SPECS: [Spec; 13] = [
    LLAMA,
    // Tied embeddings, frequency factors as Llama 3 has them.
    Spec { name: "llama-3", tied: true, rope_factors: true, floats: &[("rope.freq_base", 500_000.0)], ..LLAMA },
    Spec {
        name: "llama-linear",
        floats: &[("rope.scaling.factor", 4.0)],
        strings: &[("rope.scaling.type", "linear")],
        ..LLAMA
    },
    Spec {
        name: "llama-yarn",
        floats: &[("rope.scaling.factor", 4.0), ("rope.scaling.attn_factor", 0.9)],
        ints: &[("rope.scaling.original_context_length", 32)],
        strings: &[("rope.scaling.type", "yarn")],
        ..LLAMA
    },
    // Biases everywhere, and the older name of linear scaling.
    Spec { name: "llama-bias", qkv_bias: true, other_bias: true, floats: &[("rope.scale_linear", 2.0)], ..LLAMA },
    Spec { name: "llama-joined", joined_qkv: true, ..LLAMA },
    // Heads that do not make up the embedding's width (Mistral Nemo).
    Spec {
        name: "llama-heads",
        head: 16,
        ints: &[
            ("attention.key_length", 16),
            ("attention.value_length", 16),
            ("rope.dimension_count", 16),
            // In Mistral's files, and not used.
            ("attention.sliding_window", 4),
        ],
        ..LLAMA
    },
    QWEN2,
    Spec {
        name: "qwen2-yarn",
        tied: true,
        floats: &[("rope.freq_base", 1_000_000.0), ("rope.scaling.factor", 2.0)],
        ints: &[("rope.scaling.original_context_length", 16)],
        strings: &[("rope.scaling.type", "yarn")],
        ..QWEN2
    },
    GEMMA3,
    // Longer than the ring of its local layers.
    Spec { name: "gemma3-long", tokens: 700, ..GEMMA3 },
    // Another pattern, theta for local layers from the file, no softcap.
    Spec {
        name: "gemma3-pattern",
        floats: &[("rope.freq_base", 100_000.0), ("rope.freq_base_swa", 20_000.0)],
        ints: &[
            ("attention.sliding_window", 8),
            ("attention.sliding_window_pattern", 2),
            ("attention.key_length", 16),
            ("attention.value_length", 16),
        ],
        strings: &[],
        ..GEMMA3
    },
    // 62 layers: attention is scaled as in the 27B model.
    Spec { name: "gemma3-62-layers", layers: 62, embedding: 24, feed_forward: 32, ..GEMMA3 },
];

/// The model of that name.
pub(crate) fn spec(name: &str) -> Spec {
    SPECS.into_iter().find(|spec| spec.name == name).unwrap()
}

/// The model, opened.
pub(crate) fn open(spec: &Spec) -> Gguf {
    Gguf::from_slice(spec.name, &bytes(spec)).unwrap()
}

/// The model's file.
pub(crate) fn bytes(spec: &Spec) -> Vec<u8> {
    let data = tensors(spec);
    let mut writer = GgufWriter::new();
    metadata(spec, &mut writer);
    for (name, shape, values) in &data {
        writer.bytes(name, GgmlType::F32, shape, values).unwrap();
    }
    let mut out = Vec::new();
    writer.write_to(&mut out).unwrap();
    out
}

/// Name, extents and bytes of a tensor.
pub(crate) type TensorData = (String, Vec<usize>, Vec<u8>);

/// All tensors of a model.
pub(crate) fn tensors(spec: &Spec) -> Vec<TensorData> {
    let width = spec.embedding;
    let (q, kv) = (spec.heads * spec.head, spec.kv_heads * spec.head);
    let gemma = spec.architecture == "gemma3";
    let mut list = Tensors { random: Random(0x9E37_79B9), list: Vec::new() };
    list.matrix("token_embd.weight", VOCABULARY, width);
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        list.norm(&name("attn_norm.weight"), width);
        if spec.joined_qkv {
            list.matrix(&name("attn_qkv.weight"), q + 2 * kv, width);
        } else {
            for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                list.matrix(&name(&format!("{part}.weight")), rows, width);
            }
        }
        if spec.qkv_bias {
            for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                list.bias(&name(&format!("{part}.bias")), rows);
            }
        }
        list.matrix(&name("attn_output.weight"), width, q);
        if gemma {
            list.norm(&name("attn_q_norm.weight"), spec.head);
            list.norm(&name("attn_k_norm.weight"), spec.head);
            list.norm(&name("post_attention_norm.weight"), width);
            list.norm(&name("post_ffw_norm.weight"), width);
        }
        list.norm(&name("ffn_norm.weight"), width);
        list.matrix(&name("ffn_gate.weight"), spec.feed_forward, width);
        list.matrix(&name("ffn_up.weight"), spec.feed_forward, width);
        list.matrix(&name("ffn_down.weight"), width, spec.feed_forward);
        if spec.other_bias && spec.architecture == "llama" {
            list.bias(&name("attn_output.bias"), width);
            list.bias(&name("ffn_gate.bias"), spec.feed_forward);
            list.bias(&name("ffn_up.bias"), spec.feed_forward);
            list.bias(&name("ffn_down.bias"), width);
        }
    }
    list.norm("output_norm.weight", width);
    if !spec.tied {
        list.matrix("output.weight", VOCABULARY, width);
    }
    if spec.other_bias && spec.architecture == "qwen2" {
        list.bias("output.bias", VOCABULARY);
    }
    if spec.rope_factors {
        list.push("rope_freqs.weight", &[spec.head / 2], |random| 1.0 + 7.0 * random.unit().abs());
    }
    list.list
}

/// All metadata of a model.
pub(crate) fn metadata(spec: &Spec, writer: &mut GgufWriter<'_>) {
    writer.set("general.architecture", spec.architecture).unwrap();
    writer.set("general.name", spec.name).unwrap();
    let key = |name: &str| format!("{}.{name}", spec.architecture);
    let own = |name: &str| spec.ints.iter().any(|(own, _)| *own == name);
    for (name, value) in [
        ("context_length", spec.context),
        ("embedding_length", spec.embedding as u32),
        ("block_count", spec.layers as u32),
        ("feed_forward_length", spec.feed_forward as u32),
        ("attention.head_count", spec.heads as u32),
        ("attention.head_count_kv", spec.kv_heads as u32),
    ] {
        if !own(name) {
            writer.set(&key(name), value).unwrap();
        }
    }
    writer.set(&key("attention.layer_norm_rms_epsilon"), 1e-5f32).unwrap();
    for (name, value) in spec.floats {
        writer.set(&key(name), *value).unwrap();
    }
    for (name, value) in spec.ints {
        writer.set(&key(name), *value).unwrap();
    }
    for (name, value) in spec.strings {
        writer.set(&key(name), *value).unwrap();
    }
    let mut texts: Vec<String> = (0..=255u8).map(|byte| byte_char(byte).to_string()).collect();
    texts.extend(["hi", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let mut kinds = vec![1i32; VOCABULARY];
    kinds[IM_START as usize] = 3;
    kinds[IM_END as usize] = 3;
    let texts: ArrayBuf = texts.iter().map(String::as_str).collect();
    let merges: ArrayBuf = ["h i"].into_iter().collect();
    let kinds: ArrayBuf = kinds.into_iter().collect();
    writer.set("tokenizer.ggml.model", "gpt2").unwrap();
    writer.set("tokenizer.ggml.pre", "gpt-2").unwrap();
    writer.set("tokenizer.ggml.tokens", &texts).unwrap();
    writer.set("tokenizer.ggml.token_type", &kinds).unwrap();
    writer.set("tokenizer.ggml.merges", &merges).unwrap();
    writer.set("tokenizer.ggml.bos_token_id", IM_START).unwrap();
    writer.set("tokenizer.ggml.eos_token_id", IM_END).unwrap();
    writer.set("tokenizer.ggml.add_bos_token", false).unwrap();
    writer.set("tokenizer.chat_template", TEMPLATE).unwrap();
}

/// ChatML.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The character that stands for a byte in the vocabularies of GPT-2.
fn byte_char(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if plain(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|other| !plain(*other)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

struct Tensors {
    random: Random,
    list: Vec<TensorData>,
}

impl Tensors {
    fn push(&mut self, name: &str, shape: &[usize], value: impl Fn(&mut Random) -> f32) {
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|_| value(&mut self.random).to_le_bytes()).collect();
        self.list.push((name.to_owned(), shape.to_vec(), bytes));
    }

    fn matrix(&mut self, name: &str, rows: usize, columns: usize) {
        let scale = 1.7 / (columns as f32).sqrt();
        self.push(name, &[rows, columns], |random| scale * random.unit());
    }

    fn norm(&mut self, name: &str, len: usize) {
        self.push(name, &[len], |random| 1.0 + 0.3 * random.unit());
    }

    fn bias(&mut self, name: &str, len: usize) {
        self.push(name, &[len], |random| 0.3 * random.unit());
    }
}

/// Knuth's linear congruence, the upper bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// From -1 to 1.
    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }
}
