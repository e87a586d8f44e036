//! `quantize`, `verify` and `imatrix` as commands: what they print, write and refuse.

mod support;

use serde_json::Value;
use support::{Folder, polaris};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_quantized_model_runs_and_its_manifest_agrees() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let output = format!("{model}.q8.gguf");
    let manifest = format!("{output}.manifest.json");
    let told = json(&polaris(&["quantize", &model, &output, "--type", "q8_0", "--json"]).succeeded());
    assert_eq!(told["manifest"], manifest);
    assert_eq!(told["settings"]["mixture"], "Q8_0");
    assert_eq!(told["result"]["sha256"].as_str().map(str::len), Some(64));
    polaris(&["verify", &manifest]).succeeded();
    polaris(&["generate", "-m", &output, "-p", "ab", "-n", "3", "--temperature", "0"]).succeeded();

    polaris(&["quantize", &output, &format!("{output}.2"), "--type", "Q4_0"]).failed(1, &["q8_0 already"]);
    let mut bytes = std::fs::read(&output).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&output, bytes).unwrap();
    polaris(&["verify", &manifest]).fails_after_output("sha256");
}

#[test]
fn a_dry_run_tells_types_and_size_and_writes_nothing() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let output = format!("{model}.q.gguf");
    let told = json(&polaris(&["quantize", &model, &output, "--type", "Q4_K_M", "--dry-run", "--json"]).succeeded());
    let tensors = told["tensors"].as_array().unwrap();
    let up = tensors.iter().find(|tensor| tensor["name"] == "blk.0.ffn_up.weight").unwrap();
    // 32 columns are no whole block of Q4_K.
    assert_eq!((&up["from"], &up["to"]), (&"f32".into(), &"q5_0".into()));
    assert!(!std::path::Path::new(&output).exists());
}

#[test]
fn importances_are_collected_and_used() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (text, importances, output) = (format!("{model}.txt"), format!("{model}.imatrix"), format!("{model}.q.gguf"));
    std::fs::write(&text, "abc ".repeat(40)).unwrap();
    let collect = ["imatrix", "-m", &model, "-f", &text, "-o", &importances, "-c", "32", "--chunks", "2", "--json"];
    let told = json(&polaris(&collect).succeeded());
    assert_eq!((&told["tensors"], &told["chunks"], &told["tokens"]), (&7.into(), &2.into(), &64.into()));
    let arguments = ["quantize", &model, &output, "--type", "Q4_1", "--imatrix", &importances, "--no-manifest"];
    assert!(polaris(&arguments).succeeded().contains("smaller"));
    polaris(&["quantize", &model, &output, "--type", "Q4_1", "--imatrix", &text])
        .failed(1, &["no file of importances"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    polaris(&["quantize", &model, "x.gguf", "--type", "Q9"]).failed(2, &["Q9", "Q4_K_M"]);
    polaris(&["quantize", &model, "x.gguf", "--type", "Q8_0", "--tensor-type", "x"]).failed(2, &["PATTERN=TYPE"]);
    polaris(&["quantize", &model, &model, "--type", "Q8_0"]).failed(1, &["would replace"]);
    polaris(&["verify", &model]).failed(1, &[]);
}
