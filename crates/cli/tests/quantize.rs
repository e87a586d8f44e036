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
fn a_reconstructed_model_runs_and_its_manifest_tells_what_was_done() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (text, output) = (format!("{model}.txt"), format!("{model}.q4.gguf"));
    std::fs::write(&text, "abc cab ".repeat(40)).unwrap();
    let base = ["quantize", &model, &output, "--type", "Q4_0", "--reconstruct", "--calibrate", &text];
    let with = |more: &[&str]| polaris(&[&base[..], &["--calibration-context", "32", "-t", "1"], more].concat());
    let told = json(&with(&["--steps", "10", "--distill-steps", "2", "--json"]).succeeded());
    let report = &told["reconstruction"];
    assert_eq!((&report["steps"], &report["context"]), (&10.into(), &32.into()));
    let layer = &report["layers"][0];
    assert!(layer["after"].as_f64().unwrap() < layer["before"].as_f64().unwrap(), "{report}");
    assert_eq!(report["distillation"].as_array().map(Vec::len), Some(2));
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    polaris(&["generate", "-m", &output, "-p", "ab", "-n", "3", "--temperature", "0"]).succeeded();

    with(&["--rate", "nan"]).failed(1, &["rate", "not between 0 and 1"]);
    with(&["--calibration-chunks", "0"]).failed(2, &["--calibration-chunks"]);
    polaris(&["quantize", &model, &output, "--type", "Q4_0", "--reconstruct"]).failed(2, &["--calibrate"]);
    polaris(&["quantize", &model, &output, "--type", "Q4_0", "--steps", "3"]).failed(2, &["--reconstruct"]);
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

/// A model, its quantized form and a text: what a comparison takes.
fn pair(folder: &Folder) -> [String; 3] {
    let model = folder.tiny_model();
    let (quantized, text) = (format!("{model}.q.gguf"), format!("{model}.txt"));
    std::fs::write(&text, "abc abd ".repeat(40)).unwrap();
    polaris(&["quantize", &model, &quantized, "--type", "Q4_0", "--no-manifest"]).succeeded();
    [model, quantized, text]
}

#[test]
fn language_models_are_compared_and_thresholds_are_kept_or_end_in_code_3() {
    let folder = Folder::new();
    let [model, quantized, text] = pair(&folder);
    let compare = |b: &str, more: &[&str]| {
        let arguments = ["compare", &model, b, "--data", &text, "--ctx", "32", "--chunks", "2", "--device", "cpu"];
        polaris(&[&arguments[..], &["--speed-prompt", "8", "--speed-decode", "2"], more].concat())
    };
    let told = json(&compare(&quantized, &["--max-kl", "10", "--min-cosine", "0.5", "--json"]).succeeded());
    let comparison = &told["comparison"];
    assert_eq!(comparison["tokens"], 2 * 15);
    let divergence = comparison["divergence"]["mean"].as_f64().unwrap();
    assert!(divergence > 0.0 && comparison["divergence"]["maximum"].as_f64().unwrap() >= divergence, "{comparison}");
    assert!(told["b"]["file_bytes"].as_u64().unwrap() < told["a"]["file_bytes"].as_u64().unwrap());
    assert!(told["b"]["decode"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!((&told["thresholds"][0]["what"], &told["thresholds"][0]["kept"]), (&"kl".into(), &true.into()));

    let below = (divergence * 0.9).to_string();
    compare(&quantized, &["--max-kl", &below, "--max-ppl-ratio", "100"])
        .ends_with(3, "error: beyond the threshold: kl\n");
    let same = compare(&model, &["--max-kl", "0", "--min-top1", "1", "--max-error", "0"]).succeeded();
    assert!(same.contains("SQNR equal") && same.contains("threshold top1 >= 1: 1.000000, met"), "{same}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = Folder::new();
    let [model, quantized, text] = pair(&folder);
    polaris(&["compare", &model, &quantized]).failed(2, &["--data"]);
    polaris(&["compare", &model, "x.onnx", "--data", &text]).failed(2, &["graph"]);
    polaris(&["compare", "a.onnx", "b.onnx", "--max-kl", "1"]).failed(2, &["--max-kl is for language models"]);
}

#[test]
fn a_mixed_model_meets_its_budget_and_tells_why() {
    let folder = Folder::new();
    let [model, quantized, text] = pair(&folder);
    let (output, mixed) = (format!("{model}.m.gguf"), ["--type", "mixed", "--data", &text, "--probe-context", "32"]);
    let quantize = |more: &[&str]| polaris(&[&["quantize", &model, &output], &mixed[..], more].concat());
    let size = std::fs::metadata(&quantized).unwrap().len() + 2000;
    let told = json(&quantize(&["--target-size", &size.to_string(), "--json"]).succeeded());
    assert!(std::fs::metadata(&output).unwrap().len() <= size);
    let tensors = told["mixed"]["tensors"].as_array().unwrap();
    assert!(tensors.len() > 7 && tensors.iter().all(|tensor| tensor["reason"].as_str().is_some_and(|r| !r.is_empty())));
    assert!(told["mixed"]["measured"].as_f64().unwrap() > 0.0);
    assert_eq!(told["settings"]["mixture"], "mixed");
    for chart in told["charts"].as_array().unwrap() {
        assert!(std::fs::read_to_string(chart.as_str().unwrap()).unwrap().starts_with("<svg"), "{chart}");
    }
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    polaris(&["generate", "-m", &output, "-p", "ab", "-n", "3", "--temperature", "0"]).succeeded();

    let told = json(&quantize(&["--max-kl", "0.01", "--probe-parts", "--dry-run", "--json"]).succeeded());
    assert!(told["measured"].as_f64().unwrap() <= 0.01, "{told}");
    let told = json(&quantize(&["--vram", "4GiB", "--context", "128", "--dry-run", "--json"]).succeeded());
    assert!(told["tensors"].as_array().unwrap().iter().all(|tensor| tensor["to"] == "q8_0"), "{told}");
    quantize(&["--target-size", "1kB"]).ends_with(1, "there are 0\n");
    quantize(&[]).failed(2, &["--target-size"]);
    polaris(&["quantize", &model, &output, "--type", "Q8_0", "--max-kl", "1"]).failed(2, &["--type mixed"]);
}
