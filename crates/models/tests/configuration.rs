//! What metadata and tensors must say, and the messages when they do not.

use crate::tiny::{self, Spec, spec};
use core_tensor::op::RopeScaling;
use loader_gguf::{ArrayBuf, GgmlType, Gguf, GgufWriter, Value};
use models::Error;
use models::llama::{Architecture, KvDType, LlamaConfig, build};

/// A model with some keys set to something else (given first, so that they are the ones that stay) and some left out.
fn with_keys(spec: &Spec, keys: &[(&str, Value<'_>)], without: &[&str]) -> Gguf {
    let original = tiny::open(spec);
    let data = tiny::tensors(spec);
    let mut writer = GgufWriter::new();
    for (key, value) in keys {
        writer.set(key, *value).unwrap();
    }
    for (key, value) in original.metadata() {
        if !without.contains(&key) && keys.iter().all(|(set, _)| *set != key) {
            writer.set(key, value).unwrap();
        }
    }
    for (name, shape, bytes) in &data {
        writer.bytes(name, GgmlType::F32, shape, bytes).unwrap();
    }
    let mut out = Vec::new();
    writer.write_to(&mut out).unwrap();
    Gguf::from_slice("model.gguf", &out).unwrap()
}

/// A model whose tensors `change` may change, drop (an empty name) or add to.
fn with_tensors(spec: &Spec, change: impl Fn(&mut Vec<tiny::TensorData>)) -> Gguf {
    let mut data = tiny::tensors(spec);
    change(&mut data);
    let mut writer = GgufWriter::new();
    tiny::metadata(spec, &mut writer);
    for (name, shape, bytes) in &data {
        writer.bytes(name, GgmlType::F32, shape, bytes).unwrap();
    }
    let mut out = Vec::new();
    writer.write_to(&mut out).unwrap();
    Gguf::from_slice("model.gguf", &out).unwrap()
}

fn message(gguf: &Gguf) -> String {
    let config = LlamaConfig::from_gguf(gguf);
    match config.and_then(|config| build(&config, gguf, KvDType::F16, 64)) {
        Ok(_) => "no error".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn wrong_metadata_is_refused_with_the_key_that_is_wrong() {
    let zeros: ArrayBuf = [4u32, 0].into_iter().collect();
    let cases: &[(&str, Value<'_>, &str)] = &[
        ("attention.head_count", 0u32.into(), "'llama.attention.head_count': 0 is not between 1 and 16777216"),
        ("attention.head_count", (&zeros).into(), "'llama.attention.head_count': 0 is not between 1 and 16777216"),
        ("attention.head_count", u64::MAX.into(), "is not between 1 and 16777216"),
        ("attention.head_count", 5u32.into(), "'llama.attention.head_count_kv': 2 does not divide the 5 query heads"),
        ("attention.head_count", "four".into(), "llama.attention.head_count"),
        (
            "attention.head_count_kv",
            3u32.into(),
            "'llama.attention.head_count_kv': 3 does not divide the 4 query heads",
        ),
        ("attention.head_count_kv", 0u32.into(), "'llama.attention.head_count_kv': 0 is not between 1"),
        ("attention.key_length", 13u32.into(), "'llama.attention.key_length': 13 elements of heads of 13"),
        ("rope.dimension_count", 7u32.into(), "'llama.rope.dimension_count': 7 elements of heads of 12"),
        ("rope.dimension_count", 24u32.into(), "'llama.rope.dimension_count': 24 elements of heads of 12"),
        ("block_count", 0u32.into(), "'llama.block_count': 0 is not between 1"),
        ("block_count", 4_000_000_000u32.into(), "'llama.block_count': 4000000000 is not between 1"),
        ("block_count", 10_000_000u32.into(), "'llama.block_count': 10000000 layers, and the file has 21 tensors"),
        ("embedding_length", 0u32.into(), "'llama.embedding_length': 0 is not between 1"),
        ("embedding_length", 50u32.into(), "4 heads do not divide the embedding length 50"),
        ("feed_forward_length", 0u32.into(), "'llama.feed_forward_length': 0 is not between 1"),
        ("context_length", 0u32.into(), "'llama.context_length': 0 is not between 1"),
        ("attention.layer_norm_rms_epsilon", f32::NAN.into(), "layer_norm_rms_epsilon': NaN is not a number from 0 up"),
        ("attention.layer_norm_rms_epsilon", (-1.0f32).into(), "layer_norm_rms_epsilon': -1 is not a number"),
        ("rope.freq_base", 0.0f32.into(), "'llama.rope.freq_base': 0 is not a number above 0"),
        ("rope.freq_base", f32::INFINITY.into(), "'llama.rope.freq_base': inf is not a number above 0"),
        (
            "rope.scaling.type",
            "su".into(),
            "'llama.rope.scaling.type': \"su\" is not supported (supported: none, linear",
        ),
        ("rope.scaling.factor", (-2.0f32).into(), "'llama.rope.scaling.factor': -2 is not a number above 0"),
        ("final_logit_softcapping", (-2.0f32).into(), "'llama.final_logit_softcapping': -2 is not"),
        ("expert_count", 8u32.into(), "'llama.expert_count': mixtures of experts are not supported yet"),
        ("vocab_size", 1000u32.into(), "'llama.vocab_size': 1000 tokens, and the embedding has 259 rows"),
    ];
    for (key, value, expected) in cases {
        let key = format!("llama.{key}");
        let found = message(&with_keys(&spec("llama"), &[(&key, *value)], &[]));
        assert!(found.contains(expected), "{key}: {found}");
        assert!(found.contains("model.gguf"), "{key}: {found}");
    }
}

#[test]
fn missing_keys_are_named() {
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"] {
        let key = format!("llama.{key}");
        let found = message(&with_keys(&spec("llama"), &[], &[&key]));
        assert!(found.contains(&format!("no metadata key '{key}'")), "{found}");
    }
    assert_eq!(
        message(&with_keys(&spec("llama"), &[], &["llama.attention.head_count_kv"])),
        "model.gguf: tensor 'blk.0.attn_k.weight' is [24, 48], the metadata asks for [48, 48]",
        "without the key there are as many key heads as query heads"
    );
}

#[test]
fn an_unknown_architecture_is_answered_with_the_known_ones() {
    let found = message(&with_keys(&spec("llama"), &[("general.architecture", "mamba".into())], &[]));
    assert_eq!(found, "model.gguf: architecture \"mamba\" is not supported (supported: llama, qwen2, gemma3)");
}

#[test]
fn all_missing_tensors_are_listed_at_once_and_not_without_end() {
    let some = with_tensors(&spec("llama"), |tensors| {
        tensors.retain(|(name, ..)| name != "output_norm.weight" && name != "blk.1.ffn_up.weight");
    });
    assert_eq!(
        message(&some),
        "model.gguf: 2 tensor(s) that the architecture needs are missing: output_norm.weight, blk.1.ffn_up.weight"
    );
    let many = with_tensors(&spec("gemma3"), |tensors| tensors.retain(|(name, ..)| !name.contains("norm")));
    assert!(message(&many).contains("43 tensor(s)"), "{}", message(&many));
    assert!(message(&many).ends_with(" and 35 more"), "{}", message(&many));
}

#[test]
fn tensors_of_another_shape_or_for_another_model_are_refused() {
    let transposed = with_tensors(&spec("llama"), |tensors| {
        let (_, shape, _) = tensors.iter_mut().find(|(name, ..)| name == "blk.0.ffn_down.weight").unwrap();
        shape.reverse();
    });
    assert_eq!(
        message(&transposed),
        "model.gguf: tensor 'blk.0.ffn_down.weight' is [80, 48], the metadata asks for [48, 80]"
    );
    let extra = with_tensors(&spec("llama"), |tensors| {
        tensors.push(("blk.0.attn_q_norm.weight".into(), vec![12], vec![0; 48]));
    });
    assert_eq!(message(&extra), "model.gguf: 1 tensor(s) that the architecture does not use: blk.0.attn_q_norm.weight");
    let derived = with_tensors(&spec("llama"), |tensors| {
        tensors.push(("blk.0.attn_rot_embd.weight".into(), vec![12], vec![0; 48]));
    });
    assert_eq!(message(&derived), "no error", "rotations that follow from the metadata are left alone");
}

#[test]
fn a_cache_type_that_does_not_fit_the_heads_is_refused() {
    let gguf = tiny::open(&spec("llama"));
    let config = LlamaConfig::from_gguf(&gguf).unwrap();
    let error = build(&config, &gguf, KvDType::Q8_0, 64).unwrap_err();
    assert_eq!(error.to_string(), "option kv_dtype: heads of 12 elements are no whole blocks of q8_0");
    assert!(matches!(error, Error::Option { .. }));
}

#[test]
fn the_configuration_is_what_the_metadata_says() {
    let config = LlamaConfig::from_gguf(&tiny::open(&spec("gemma3-pattern"))).unwrap();
    assert_eq!(config.architecture, Architecture::Gemma3);
    let windows: Vec<Option<usize>> = config.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(8), None, Some(8), None, Some(8), None, Some(8)]);
    assert_eq!((config.layers[0].rope.theta, config.layers[1].rope.theta), (20_000.0, 100_000.0));
    let config = LlamaConfig::from_gguf(&tiny::open(&spec("gemma3"))).unwrap();
    assert_eq!(config.logit_softcap, Some(2.5));
    assert!(config.layers.iter().enumerate().all(|(i, layer)| layer.window.is_none() == (i == 5)));
    assert_eq!(config.layers[0].rope.scaling, RopeScaling::None, "angles of local layers are not stretched");
    assert_eq!(config.layers[5].rope.scaling, RopeScaling::Linear { factor: 0.125 });
}

#[test]
fn graphs_are_as_they_were() {
    for name in ["llama", "llama-3", "llama-bias", "llama-joined", "qwen2", "gemma3"] {
        let spec = Spec { layers: if name == "gemma3" { 7 } else { 2 }, ..spec(name) };
        let gguf = tiny::open(&spec);
        let config = LlamaConfig::from_gguf(&gguf).unwrap();
        let graph = build(&config, &gguf, KvDType::F16, 1024).unwrap();
        graph.verify().unwrap();
        insta::assert_snapshot!(name, graph.to_text());
    }
}
