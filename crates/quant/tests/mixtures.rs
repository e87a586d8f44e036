//! The types of mixtures, next to llama-quantize's choice (`fixtures/mixtures.py`).

use core_tensor::DType;
use polaris_quant::{AssignOptions, Mixture, ModelFacts, TensorFacts, assign};
use serde_json::Value;

/// The tensors of all layers; the fixture lists those of none and of the first.
fn tensors(model: &Value) -> Vec<(String, Vec<usize>)> {
    let layers = model["layers"].as_u64().expect("a number");
    let listed: Vec<(String, Vec<usize>)> =
        serde_json::from_value(model["tensors"].clone()).expect("names and extents");
    let first: Vec<_> = listed.iter().filter(|(name, _)| name.starts_with("blk.0.")).cloned().collect();
    let named = |layer: u64| {
        let renamed =
            first.iter().map(move |(name, shape)| (name.replace("blk.0.", &format!("blk.{layer}.")), shape.clone()));
        renamed.collect::<Vec<_>>()
    };
    listed.iter().cloned().chain((1..layers).flat_map(named)).collect()
}

/// `f32*1 q4_k*2` in full.
fn types(text: &str) -> Vec<String> {
    let runs = text.split(' ').filter_map(|run| run.split_once('*'));
    runs.flat_map(|(name, count)| std::iter::repeat_n(name.to_owned(), count.parse().expect("a number"))).collect()
}

#[test]
fn every_tensor_gets_the_type_that_llama_quantize_gives_it() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/mixtures.json")).expect("the fixture is JSON");
    let (mut compared, mut different) = (0, Vec::new());
    for (name, model) in fixture["models"].as_object().expect("it has models") {
        let number = |key: &str| model[key].as_u64().expect("a number") as usize;
        let (layers, heads, kv_heads) = (number("layers"), number("heads"), number("kv_heads"));
        let facts = ModelFacts { architecture: "llama".into(), layers, heads, kv_heads, experts: 0 };
        let tensors = tensors(model);
        // The order of a file is its own.
        let shown: Vec<_> = tensors.iter().rev().collect();
        let given: Vec<_> = shown.iter().map(|(name, shape)| TensorFacts { name, shape, dtype: DType::F32 }).collect();
        for (key, expected) in model["types"].as_object().expect("it has types") {
            let (mixture, importance) = match key.split_once('+') {
                Some((mixture, _)) => (mixture, true),
                None => (key.as_str(), false),
            };
            let mixture: Mixture = mixture.parse().expect("a mixture");
            let options = AssignOptions { importance, ..AssignOptions::default() };
            let chosen = assign(mixture, &facts, &given, &options, &|_| None);
            let expected = types(expected.as_str().expect("runs"));
            assert_eq!(expected.len(), chosen.len(), "{name} {key}");
            for ((dtype, (tensor, _)), expected) in chosen.iter().rev().zip(&tensors).zip(&expected) {
                compared += 1;
                if dtype.to_string() != *expected {
                    different.push(format!("{name} {key} {tensor}: {dtype}, llama-quantize {expected}"));
                }
            }
        }
    }
    assert!(compared > 20_000, "{compared} comparisons");
    assert!(different.is_empty(), "{} differ: {:#?}", different.len(), &different[..different.len().min(20)]);
}
