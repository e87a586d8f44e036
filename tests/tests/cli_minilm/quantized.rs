//! What `polaris quantize` makes of the model: how near it stays, how small it gets, and that onnxruntime computes the same from the file.
//!
//! `fixtures/minilm-quantized.json` has what onnxruntime gives on the files that the same commands write; `fixtures/onnxruntime_quantized.py` made it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::{F32, FIXTURES, cosine, model, numbers, object, text};

/// Texts, the first of the fixtures.
const TEXTS: [&str; 3] =
    ["The cat sits on the mat.", "A feline is resting on a rug.", "Stock markets fell sharply on Monday."];

/// A folder that is gone in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The model quantized, in a folder with all that belongs to it; its bytes.
fn quantized(ty: &str, more: &[&str]) -> (Folder, u64) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = Folder(env::temp_dir().join(format!("polaris-minilm-{number}-{}", process::id())));
    fs::create_dir_all(folder.0.join("1_Pooling")).unwrap();
    let source = model(F32);
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "sentence_bert_config.json",
        "modules.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(Path::new(&source).join(name), folder.0.join(name)).unwrap();
    }
    let output = folder.0.join("model.onnx").display().to_string();
    let told = object(&[&["quantize", &source, &output, "--type", ty, "--json"], more].concat());
    assert_eq!((told["settings"]["mixture"].as_str(), told["source"].as_array().map(Vec::len)), (Some(ty), Some(1)));
    text(&["verify", &format!("{output}.manifest.json")]);
    (folder, told["result"]["bytes"].as_u64().expect("a number"))
}

/// Checks the embeddings of a type (the first word of `name`) against onnxruntime's on the same file, and against those of the model in f32.
#[track_caller]
fn check(name: &str, more: &[&str], megabytes: u64, least: f64) {
    let ty = name.split(' ').next().unwrap();
    let (folder, bytes) = quantized(ty, more);
    assert!(bytes < megabytes << 20, "{name}: {bytes} bytes");
    let read =
        |name: &str| serde_json::from_str::<Value>(&fs::read_to_string(format!("{FIXTURES}/{name}")).unwrap()).unwrap();
    let (references, floats) = (read("minilm-quantized.json"), read("minilm.json"));
    let folder = folder.0.display().to_string();
    // One text at a time: dynamic ranges are those of all that is evaluated at once.
    let arguments = ["embed", "-m", &folder, "--device", "cpu", "--activations", "f32", "--batch", "1", "--json", "-p"];
    let found = object(&[&arguments[..], &TEXTS[..]].concat());
    for (i, vector) in found["embeddings"].as_array().expect("vectors").iter().map(numbers).enumerate() {
        let (reference, float) = (numbers(&references[name][i]), numbers(&floats[i]["f32"]));
        let near = cosine(&vector, &reference);
        assert!(near >= 0.9999, "{name}, text {i}: the cosine with onnxruntime's is {near}");
        let near = cosine(&vector, &float);
        assert!(near >= least, "{name}, text {i}: the cosine with the model in f32 is {near}");
    }
}

fn constitution() -> String {
    format!("{FIXTURES}/us-constitution.txt")
}

#[test]
fn int8_with_dynamic_activations_is_near_and_runs_in_onnxruntime() {
    check("int8-dynamic", &[], 23, 0.99);
}

#[test]
fn int8_with_calibrated_activations_is_near_and_runs_in_onnxruntime() {
    check("int8", &["--calibrate", &constitution()], 23, 0.98);
}

#[test]
fn int8_weights_are_near_and_run_in_onnxruntime() {
    check("int8-weights", &[], 23, 0.999);
}

#[test]
fn int4_weights_by_gptq_are_near_and_run_in_onnxruntime() {
    check("int4-g32", &["--gptq", "--calibrate", &constitution()], 15, 0.96);
}

#[test]
fn int8_weights_by_gptq_with_zero_points_are_near_and_run_in_onnxruntime() {
    let constitution = constitution();
    check("int8-weights by gptq", &["--gptq", "--asymmetric", "--clip", "--calibrate", &constitution], 23, 0.9995);
}

#[test]
fn protected_int4_weights_are_near_and_run_in_onnxruntime() {
    let constitution = constitution();
    check("int4-g128 protected", &["--awq", "--calibrate", &constitution], 13, 0.95);
}
