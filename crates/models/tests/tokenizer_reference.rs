//! Token ids against those of llama.cpp (`vocabularies/README.md`).

use std::path::PathBuf;

use loader_gguf::{FileAccess, Gguf};
use models::tokenizer::{EncodeOptions, Tokenizer, Vocabulary};
use serde_json::Value;

const SUBSETS: [(&str, &str); 5] = [
    ("falcon", include_str!("vocabularies/falcon.json")),
    ("gpt-2", include_str!("vocabularies/gpt-2.json")),
    ("gpt-neox", include_str!("vocabularies/gpt-neox.json")),
    ("phi-3", include_str!("vocabularies/phi-3.json")),
    ("qwen2", include_str!("vocabularies/qwen2.json")),
];

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn strings(value: &Value) -> Vec<&[u8]> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().as_bytes()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn vocabulary(subset: &Value) -> Vocabulary<'_> {
    let id = |role: &str| subset[role].as_u64().map(|id| u32::try_from(id).unwrap());
    let number = |value: &Value| value.as_f64().unwrap();
    Vocabulary {
        model: subset["model"].as_str().unwrap(),
        pre: subset["pre"].as_str(),
        tokens: strings(&subset["tokens"]),
        scores: subset["scores"].as_array().unwrap().iter().map(|score| number(score) as f32).collect(),
        token_types: subset["types"].as_array().unwrap().iter().map(|kind| number(kind) as i32).collect(),
        merges: strings(&subset["merges"]),
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        unknown: id("unknown"),
        add_bos: subset["add_bos"].as_bool(),
        add_eos: subset["add_eos"].as_bool(),
        add_space_prefix: subset["add_space_prefix"].as_bool(),
        ..Vocabulary::default()
    }
}

/// Compares every case, and brings every text back from its tokens.
fn check(name: &str, tokenizer: &Tokenizer, cases: &Value) {
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 80);
    for case in cases {
        let text = case[0].as_str().unwrap();
        let options = [(false, false), (false, true), (true, true)];
        for (at, (add_special, parse_special)) in options.into_iter().enumerate() {
            let expected = case.get(1 + at).unwrap_or(&case[1]);
            let found = tokenizer.encode(text, EncodeOptions { add_special, parse_special });
            assert_eq!(found, ids(expected), "{name}: {text:?}, special: {add_special}, {parse_special}");
        }
        // SentencePiece reads its own sign for a space as a space.
        let sentencepiece = tokenizer.token_id("<0x00>").is_some();
        let expected = if sentencepiece { text.replace('▁', " ") } else { text.to_owned() };
        assert_eq!(tokenizer.decode(&ids(&case[1])), expected, "{name}");
    }
}

#[test]
fn parts_of_published_vocabularies_give_the_tokens_of_llama_cpp() {
    for (name, subset) in SUBSETS {
        let subset: Value = serde_json::from_str(subset).unwrap();
        check(name, &Tokenizer::new(&vocabulary(&subset)).unwrap(), &subset["cases"]);
    }
}

#[test]
fn the_vocabulary_of_smollm2_gives_the_tokens_of_llama_cpp() {
    let folder = std::env::var_os("POLARIS_MODELS").unwrap_or_else(|| {
        panic!("this test needs {MODEL}: `cargo xtask fetch` gets it; set POLARIS_MODELS to the folder that it names")
    });
    let path = PathBuf::from(folder).join(MODEL);
    let gguf = Gguf::open(&path, FileAccess::default()).unwrap_or_else(|error| panic!("{error}"));
    let vocabulary = Vocabulary {
        model: gguf.str("tokenizer.ggml.model").unwrap(),
        pre: gguf.optional("tokenizer.ggml.pre").unwrap(),
        tokens: gguf.byte_strings("tokenizer.ggml.tokens").unwrap().collect(),
        token_types: gguf.i32s("tokenizer.ggml.token_type").unwrap(),
        merges: gguf.byte_strings("tokenizer.ggml.merges").unwrap().collect(),
        bos: gguf.optional("tokenizer.ggml.bos_token_id").unwrap(),
        eos: gguf.optional("tokenizer.ggml.eos_token_id").unwrap(),
        add_bos: gguf.optional("tokenizer.ggml.add_bos_token").unwrap(),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let reference: Value = serde_json::from_str(include_str!("vocabularies/smollm2.json")).unwrap();
    check("SmolLM2", &tokenizer, &reference["cases"]);
    let ends = tokenizer.end_of_generation_ids().iter().map(|id| tokenizer.token_text(*id).unwrap());
    assert_eq!(ends.collect::<Vec<_>>(), ["<|endoftext|>", "<|im_end|>", "<reponame>"]);
}
