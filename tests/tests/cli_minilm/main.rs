//! `polaris embed` on a real model, all-MiniLM-L6-v2, in its two formats.
//!
//! The models lie in `$POLARIS_MODELS`, or where `cargo xtask fetch` puts them. The binary is `$POLARIS_BIN`, or a release build made here,
//! as `cargo xtask ci` has it. `fixtures/minilm.json` has the embeddings that sentence-transformers' arithmetic gives in PyTorch (f32) and ONNX
//! Runtime (int8). What `polaris quantize` makes of the model is in `quantized.rs`.

mod quantized;

use std::env;
use std::fs;
use std::path::Path;
use std::process::{self, Command, Output, Stdio};

use polaris_tests::binary;
use serde_json::Value;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
const F32: &str = "all-MiniLM-L6-v2";
const INT8: &str = "all-MiniLM-L6-v2-int8";

/// A folder that `cargo xtask fetch` fills.
fn model(name: &str) -> String {
    polaris_tests::model(name).display().to_string()
}

fn polaris(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("POLARIS_LOG").stdin(Stdio::null());
    command.output().expect("the binary runs")
}

/// Standard output of a run that must succeed.
#[track_caller]
fn text(arguments: &[&str]) -> String {
    let output = polaris(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn object(arguments: &[&str]) -> Value {
    let text = text(arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The fixture's texts and what they should become.
fn references() -> (Vec<String>, Vec<Value>) {
    let read = |name: &str| fs::read_to_string(format!("{FIXTURES}/{name}")).unwrap();
    let constitution = read("us-constitution.txt");
    let cases = serde_json::from_str::<Value>(&read("minilm.json")).unwrap().as_array().unwrap().clone();
    let text = |case: &Value| match case["constitution"].as_u64() {
        Some(length) => constitution[..length as usize].to_owned(),
        None => case["text"].as_str().unwrap().to_owned(),
    };
    (cases.iter().map(text).collect(), cases)
}

/// Embeddings of the fixture's texts, in one run.
fn embed(model: &str, more: &[&str]) -> Vec<Vec<f64>> {
    let (texts, _) = references();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = object(&[&["embed", "-m", model, "--json"], more, &["-p"], &texts[..]].concat());
    assert_eq!((found["dimensions"].as_u64(), &found["pooling"]), (Some(384), &Value::from("mean")));
    assert_eq!(found["tokens"].as_array().unwrap().last(), Some(&Value::from(256)));
    assert_eq!(found["truncated"], serde_json::json!([texts.len() - 1]));
    found["embeddings"].as_array().unwrap().iter().map(numbers).collect()
}

#[track_caller]
fn assert_near(found: &[Vec<f64>], kind: &str, distance: f64) {
    let (texts, cases) = references();
    for ((vector, case), text) in found.iter().zip(&cases).zip(&texts) {
        let apart = 1.0 - cosine(vector, &numbers(&case[kind]));
        let text: String = text.chars().take(40).collect();
        assert!(apart.abs() <= distance, "{kind}: {text:?} is {apart:.2e} from the reference");
    }
    assert_eq!(found.len(), cases.len());
}

/// Cosines of the first three texts: 0 and 1, 0 and 2, 1 and 2.
fn cosines(found: &[Vec<f64>]) -> [f64; 3] {
    [(0, 1), (0, 2), (1, 2)].map(|(a, b)| cosine(&found[a], &found[b]))
}

#[test]
fn embeddings_from_safetensors_are_those_of_sentence_transformers() {
    let found = embed(&model(F32), &["--device", "cpu"]);
    assert_near(&found, "f32", 1e-6);
    let first = [0.134_177_12, -0.032_900_34, -0.024_803_72, 0.041_438_99, -0.036_347_66, 0.041_814_22];
    for (found, expected) in found[0].iter().zip(first) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
    for (found, expected) in cosines(&found).into_iter().zip([0.57349, 0.02672, 0.03334]) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
}

#[test]
fn embeddings_from_int8_onnx_are_those_of_onnx_runtime() {
    let found = embed(&model(INT8), &["--device", "cpu"]);
    assert_near(&found, "int8", 1e-4);
    for (found, expected) in cosines(&found).into_iter().zip([0.57129, 0.02573, 0.03367]) {
        assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
    }
}

#[test]
fn a_graphics_driver_gives_the_same_embeddings() {
    assert_near(&embed(&model(F32), &["--device", "vulkan"]), "f32", 1e-4);
}

#[test]
fn a_file_of_lines_becomes_an_npy_file() {
    let folder = env::temp_dir().join(format!("polaris-minilm-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (lines, npy) = (folder.join("lines.txt"), folder.join("lines.npy"));
    fs::write(&lines, "The cat sits on the mat.\n\nStock markets fell sharply on Monday.\n").unwrap();
    let (lines, npy) = (lines.display().to_string(), npy.display().to_string());
    // The weights themselves name the model as well as its folder does.
    let weights = Path::new(&model(F32)).join("model.safetensors").display().to_string();
    assert_eq!(text(&["embed", "-m", &weights, "--file", &lines, "--npy", &npy, "--device", "cpu"]), "");
    let bytes = fs::read(&npy).unwrap();
    let header = String::from_utf8_lossy(&bytes[..128]);
    assert!(header.contains("'descr': '<f4'") && header.contains("(3, 384)"), "{header}");
    let data: Vec<f64> = bytes[bytes.len() - 3 * 384 * 4..]
        .chunks(4)
        .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]).into())
        .collect();
    let rows: Vec<Vec<f64>> = data.chunks(384).map(<[f64]>::to_vec).collect();
    let (_, cases) = references();
    for (row, case) in rows.iter().zip([0, 4, 2]) {
        assert!(cosine(row, &numbers(&cases[case]["f32"])) > 1.0 - 1e-6);
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "no temporary file is left");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn inspect_knows_the_file() {
    let weights = Path::new(&model(F32)).join("model.safetensors").display().to_string();
    let found = object(&["inspect", &weights, "--json"]);
    assert_eq!((&found["format"], &found["architecture"]), (&Value::from("safetensors"), &Value::from("bert")));
    assert_eq!((&found["parameters"], &found["file_bytes"]), (&Value::from(22_713_728), &Value::from(90_868_376)));
    assert_eq!(found["tensors"].as_array().map(Vec::len), Some(104));
    assert_eq!((&found["unsupported"], &found["gguf_version"]), (&Value::Null, &Value::Null));
}
