//! The commands that run encoders, on tiny models (`crates/models/tests/encoders`).

use std::fs;
use std::path::Path;

use crate::support::{self, Folder, polaris, polaris_with_input};
use serde_json::Value;

fn model(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/encoders");
    Path::new(folder).join(name).display().to_string()
}

/// A run on the processor.
fn run(command: &str, name: &str, more: &[&str]) -> support::Ended {
    polaris(&[&[command, "-m", &model(name), "--device", "cpu", "-t", "2"], more].concat())
}

#[track_caller]
fn object(ended: support::Ended) -> Value {
    serde_json::from_str(&ended.succeeded()).expect("one JSON object")
}

#[test]
fn embed_prints_a_vector_for_each_text_as_lines_or_json_or_npy() {
    let texts = ["-p", "the cat sits", "a dog"];
    let found = object(run("embed", "bert", &[&texts[..], &["--json"]].concat()));
    let vectors = found["embeddings"].as_array().unwrap();
    assert_eq!((vectors.len(), &found["dimensions"], &found["normalized"]), (2, &Value::from(16), &Value::from(true)));
    let numbers = |vector: &Value| vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    let length: f64 = numbers(&vectors[0]).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");

    let lines = run("embed", "bert", &texts).succeeded();
    let first: Vec<f64> = lines.lines().next().unwrap().split(' ').map(|x| x.parse().unwrap()).collect();
    assert!(first.iter().zip(numbers(&vectors[0])).all(|(a, b)| (a - b).abs() < 1e-6), "{lines}");
    assert_eq!(lines.lines().count(), 2);

    let plain = object(run("embed", "bert", &[&texts[..], &["--json", "--no-normalize", "--pooling", "cls"]].concat()));
    assert_eq!((&plain["normalized"], &plain["pooling"]), (&Value::from(false), &Value::from("cls")));
    assert_ne!(plain["embeddings"], found["embeddings"]);

    let folder = Folder::new();
    let npy = folder.path().join("x.npy").display().to_string();
    assert_eq!(run("embed", "bert", &[&texts[..], &["--npy", &npy]].concat()).succeeded(), "");
    let bytes = fs::read(npy).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..128]).contains("(2, 16)"));
    assert_eq!(bytes.len(), 128 + 2 * 16 * 4);
}

#[test]
fn embed_takes_the_lines_of_a_file_and_of_standard_input() {
    let folder = Folder::new();
    let file = folder.file("lines.txt", b"the cat\n\na dog\n");
    let from_file = run("embed", "bert", &["--file", &file]).succeeded();
    assert_eq!(from_file.lines().count(), 3);
    let arguments = ["embed", "-m", &model("bert"), "--device", "cpu", "--file", "-"];
    assert_eq!(polaris_with_input(&arguments, "the cat\n\na dog\n").succeeded(), from_file);
}

#[test]
fn a_text_that_is_cut_is_told() {
    let long = "the cat ".repeat(20);
    let ended = run("embed", "bert", &["-p", &long]);
    assert!(ended.stderr.contains("1 text was cut to 16 tokens"), "{ended:?}");
    let found = object(run("embed", "bert", &["-p", &long, "--json", "--max-tokens", "9"]));
    assert_eq!((&found["tokens"][0], &found["truncated"][0]), (&Value::from(9), &Value::from(0)));
}

#[test]
fn classify_prints_labels_of_texts_and_names_in_them() {
    let found = object(run("classify", "bert-sequence", &["-p", "a dog", "the cat", "--json"]));
    let labels = found["results"][0]["labels"].as_array().unwrap();
    assert_eq!((labels.len(), &labels[0]["label"]), (3, &Value::from("flat")));
    let lines = run("classify", "bert-sequence", &["-p", "a dog", "--top", "1"]).succeeded();
    assert!(
        lines.starts_with("a dog\n  0.") && lines.trim_end().ends_with("flat") && lines.lines().count() == 2,
        "{lines}"
    );
    let tokens = object(run("classify", "xlm-roberta-token", &["-p", "Paris is the capital of France.", "--json"]));
    let result = &tokens["results"][0];
    assert!(result["tokens"].as_array().is_some_and(|tokens| !tokens.is_empty()), "{result}");
    assert!(result["entities"].is_array() && result["labels"].as_array().is_some_and(Vec::is_empty), "{result}");
    let pair = object(run("classify", "bert-sequence", &["-p", "a dog", "--pair", "the cat", "--json"]));
    assert_ne!(pair["results"][0]["labels"], found["results"][0]["labels"]);
    run("classify", "bert-sequence", &["-p", "a", "b", "--pair", "c"]).failed(2, &["--pair has 1 texts for 2"]);
}

#[test]
fn fill_mask_prints_the_best_tokens_for_each_gap() {
    let found = object(run("fill-mask", "bert-masked", &["-p", "the [MASK] sits on the [MASK]", "-k", "3", "--json"]));
    let gaps = found["results"][0]["gaps"].as_array().unwrap();
    assert_eq!(gaps.iter().map(|gap| gap.as_array().unwrap().len()).collect::<Vec<_>>(), [3, 3]);
    let lines = run("fill-mask", "roberta-masked", &["-p", "a dog <mask>", "--top-k", "2"]).succeeded();
    assert_eq!(lines.lines().count(), 3, "{lines}");
    run("fill-mask", "bert-masked", &["-p", "no gap"]).failed(1, &["the text has no [MASK]"]);
}

#[test]
fn wrong_input_ends_in_one_clear_message() {
    let folder = Folder::new();
    let gguf = folder.file("model.gguf", b"GGUF");
    let empty = folder.path().display().to_string();
    for command in ["embed", "classify", "fill-mask"] {
        polaris(&[command, "-m", &gguf, "-p", "x"]).failed(1, &["model.gguf: neither .safetensors nor .onnx"]);
        polaris(&[command, "-m", &empty, "-p", "x"]).failed(1, &[&empty, "without model.safetensors"]);
        polaris(&[command, "-m", &gguf]).failed(2, &["--prompt"]);
        polaris(&[command, "-m", &gguf, "-p", "x", "--file", "y"]).failed(2, &["--file"]);
        polaris(&[command, "-m", "absent.onnx", "-p", "x"]).failed(1, &["absent.onnx"]);
    }
    run("classify", "bert", &["-p", "x"]).failed(1, &["has no output logits; it has last_hidden_state"]);
    run("embed", "bert-masked", &["-p", "x"]).failed(1, &["has no output last_hidden_state"]);
    run("embed", "bert", &["-p", "x", "--json", "--npy", "y"]).failed(2, &["--npy"]);
    run("embed", "bert", &["-p", "x", "--pooling", "best"]).failed(2, &["mean"]);
    let damaged = folder.path().join("damaged");
    fs::create_dir_all(&damaged).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&model("bert")).join(file), damaged.join(file)).unwrap();
    }
    fs::write(damaged.join("tokenizer.json"), "[]").unwrap();
    polaris(&["embed", "-m", &damaged.display().to_string(), "-p", "x"]).failed(1, &["tokenizer.json: "]);
}

#[test]
fn a_safetensors_file_cut_anywhere_ends_with_code_1() {
    let folder = Folder::new();
    let source = model("bert");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(Path::new(&source).join(file), folder.path().join(file)).unwrap();
    }
    let whole = fs::read(Path::new(&source).join("model.safetensors")).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        let path = folder.file("model.safetensors", &whole[..length]);
        polaris(&["embed", "-m", &path, "-p", "x"]).failed(1, &[&path, "truncated"]);
        polaris(&["inspect", &path]).failed(1, &[&path, "truncated"]);
    }
}

#[test]
fn inspect_lists_the_tensors_of_safetensors() {
    let file = Path::new(&model("bert")).join("model.safetensors").display().to_string();
    let text = polaris(&["inspect", &file]).succeeded();
    for part in ["architecture  bert", "safetensors, ", "F32", "format"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("does not run"), "{text}");
    let tensors = polaris(&["inspect", &file, "--tensors"]).succeeded();
    assert!(tensors.contains("embeddings.word_embeddings.weight") && tensors.contains("[41, 16]"), "{tensors}");
    let folder = Folder::new();
    let alone = folder.file("alone.safetensors", &fs::read(&file).unwrap());
    assert!(polaris(&["inspect", &alone]).succeeded().contains("there is no config.json beside it"));
}
