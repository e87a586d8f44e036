//! `prune` as a command: what it prints, writes and refuses.

use std::path::Path;

use crate::support::{Folder, polaris};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_cut_model_is_smaller_runs_and_its_manifest_agrees() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let output = format!("{model}.small.gguf");
    let prune = ["prune", &model, &output, "--neurons", "25%", "--multiple", "16", "--query-heads", "0.5", "--json"];
    let told = json(&polaris(&prune).succeeded());
    let size = |path: &str| std::fs::metadata(path).unwrap().len();
    assert!(size(&output) < size(&model));
    let after = &told["pruned"]["layers_after"][0];
    assert_eq!((&after["neurons"], &after["heads"], &after["kv_heads"]), (&48.into(), &1.into(), &1.into()));
    assert_eq!(told["pruned"]["steps"][0]["heads"]["0"].as_array().map(Vec::len), Some(1));
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    polaris(&["generate", "-m", &output, "-p", "ab", "-n", "3", "--temperature", "0"]).succeeded();
    for chart in told["charts"].as_array().unwrap() {
        assert!(std::fs::read_to_string(chart.as_str().unwrap()).unwrap().starts_with("<svg"), "{chart}");
    }
}

#[test]
fn a_text_chooses_and_makes_up_and_the_table_tells_what_it_cost() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (text, output) = (format!("{model}.txt"), format!("{model}.sparse.gguf"));
    std::fs::write(&text, "abc xyz, 12 34. ".repeat(30)).unwrap();
    let data = ["--calibrate", &text, "--calibration-context", "32", "--chunks", "4"];
    let prune = |more: &[&str]| polaris(&[&["prune", &model, &output], more, &data[..]].concat()).succeeded();
    let told = prune(&["--sparsity", "2:4", "--steps", "2", "--type", "Q8_0"]);
    assert!(told.contains("blk.0.ffn_down.weight") && told.contains("50.0%") && told.contains("smaller"), "{told}");
    assert!(Path::new(&format!("{output}.error.svg")).is_file());
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    let error = |more: &[&str]| {
        let told = json(&prune(&[more, &["--json"]].concat()));
        let tensors = told["pruned"]["steps"][0]["tensors"].as_array().unwrap().clone();
        tensors.iter().filter_map(|tensor| tensor["output_error"].as_f64()).sum::<f64>()
    };
    let (chosen, plain) = (error(&["--sparsity", "0.5"]), error(&["--sparsity", "0.5", "--method", "magnitude"]));
    assert!(chosen > 0.0 && chosen < plain, "{chosen} {plain}");
    let told = json(&prune(&["--sparsity", "0.5", "--skip", "ffn_(up|down)", "--json"]));
    let settings = &told["pruned"]["settings"];
    assert_eq!(settings["skip"][0], "ffn_(up|down)");
    assert_eq!((&settings["calibration_context"], &settings["calibration_chunks"]), (&32.into(), &4.into()));
    assert!(error(&["--neurons", "50%"]) < error(&["--neurons", "50%", "--no-reconstruct"]));
}

#[test]
fn a_dry_run_tells_shapes_and_size_and_writes_nothing() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let output = format!("{model}.p.gguf");
    let told = json(&polaris(&["prune", &model, &output, "--neurons", "50%", "--dry-run", "--json"]).succeeded());
    let up = told["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == "blk.0.ffn_up.weight").unwrap();
    assert_eq!((up["before"].to_string(), up["after"].to_string()), ("[64,32]".to_owned(), "[32,32]".to_owned()));
    assert!(polaris(&["prune", &model, &output, "--sparsity", "50%", "--dry-run"]).succeeded().contains("zeros"));
    assert!(!Path::new(&output).exists());
    let typed = ["prune", &model, &output, "--neurons", "50%", "--type", "Q8_0", "--dry-run", "--json"];
    let told = json(&polaris(&typed).succeeded());
    let planned =
        |name: &str| told["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()["to"].clone();
    assert_eq!((planned("blk.0.ffn_up.weight"), planned("blk.0.ffn_norm.weight")), ("q8_0".into(), "f32".into()));
    polaris(&["prune", &model, &output, "--neurons", "50%", "--type", "Q8_0"]).succeeded();
    let tensors: u64 = told["tensors"].as_array().unwrap().iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(told["bytes"], tensors);
    let manifest = json(&std::fs::read_to_string(format!("{output}.manifest.json")).unwrap());
    let made = manifest["tensors"].as_array().unwrap().iter().map(|tensor| tensor["bytes"].as_u64().unwrap());
    assert_eq!(made.sum::<u64>(), tensors);
}

#[test]
fn what_is_quantized_is_quantized_again_only_where_that_is_allowed() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (source, output) = (format!("{model}.q8.gguf"), format!("{model}.p.gguf"));
    polaris(&["quantize", &model, &source, "--type", "Q8_0"]).succeeded();
    let prune = ["prune", &source, &output, "--neurons", "50%", "--type", "Q4_0"];
    for more in [&[][..], &["--dry-run"]] {
        polaris(&[&prune[..], more].concat()).failed(1, &["q8_0 already", "--allow-requantize"]);
    }
    assert!(!Path::new(&output).exists());
    assert!(polaris(&[&prune[..], &["--allow-requantize"]].concat()).succeeded().contains("smaller"));
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let prune = |more: &[&str]| polaris(&[&["prune", &model, "x.gguf"], more].concat());
    prune(&[]).failed(2, &["--neurons", "--sparsity"]);
    prune(&["--sparsity", "150%"]).failed(2, &["150%", "2:4"]);
    prune(&["--neurons", "1.5"]).failed(2, &["1.5", "25%"]);
    prune(&["--sparsity", "50%", "--neurons", "25%"]).failed(2, &["--neurons"]);
    prune(&["--sparsity", "50%", "--multiple", "16"]).failed(2, &["--multiple"]);
    prune(&["--neurons", "25%", "--chunks", "16"]).failed(2, &["--calibrate"]);
    prune(&["--sparsity", "50%", "--method", "best"]).failed(2, &["magnitude", "wanda", "sparsegpt"]);
    prune(&["--sparsity", "50%", "--method", "wanda"]).failed(1, &["importances or a text"]);
    prune(&["--sparsity", "50%", "--steps", "2"]).failed(1, &["between steps"]);
    prune(&["--heads", "50%"]).failed(1, &["of 1 heads of keys and values"]);
    prune(&["--channels", "50%"]).failed(2, &["--channels is for graphs"]);
    polaris(&["prune", "none.gguf", "x.gguf", "--neurons", "25%"]).failed(1, &["none.gguf"]);
    polaris(&["prune", "a.onnx", "x.onnx", "--heads", "25%"]).failed(2, &["--heads is for GGUF files"]);
    polaris(&["prune", "a.onnx", "x.gguf", "--channels", "25%"]).failed(2, &["OUT must end in .onnx"]);
}
