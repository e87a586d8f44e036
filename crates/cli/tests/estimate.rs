//! `polaris estimate` on a tiny model, on a file whose weights are holes, and on what is no model.

use std::fs::OpenOptions;
use std::time::{Duration, Instant};

use crate::support::{Folder, polaris};
use serde_json::Value;

fn json(arguments: &[&str]) -> Value {
    let text = polaris(arguments).succeeded();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_context_has_speeds_and_memory_that_grows_with_it() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let short = json(&["estimate", "-m", &model, "--context", "64", "--json"]);
    let long = json(&["estimate", "-m", &model, "--json"]);
    let (short, long) = (&short["contexts"][0], &long["contexts"][0]);
    assert_eq!((&short["context"], &long["context"]), (&Value::from(64), &Value::from(256)));
    assert!(short["states_bytes"].as_u64().unwrap() < long["states_bytes"].as_u64().unwrap(), "{short} {long}");
    for row in [short, long] {
        assert_eq!(row["fits"], true);
        for phase in ["decode", "prefill"] {
            let speed = |key: &str| row[phase][key].as_f64().unwrap();
            assert!(0.0 < speed("low") && speed("low") <= speed("tokens_per_second"), "{row}");
            assert!(speed("tokens_per_second") <= speed("high"), "{row}");
            assert!(!row[phase]["kernels"].as_array().unwrap().is_empty(), "{row}");
        }
        let sum: u64 =
            ["weights_bytes", "states_bytes", "working_bytes"].map(|key| row[key].as_u64().unwrap()).iter().sum();
        assert_eq!(row["total_bytes"], sum);
    }
}

#[test]
fn the_table_names_the_card_and_verbose_its_kernels() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let text = polaris(&["estimate", "-m", &model, "--device", "RX 570", "-v"]).succeeded();
    for part in ["Radeon RX 570", "32 compute units", "Predicted, not measured", "matmul.f32", "a token at context 256"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_context_that_does_not_fit_is_said_not_to() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let estimate =
        |more: &[&str]| json(&[&["estimate", "-m", &model, "--json", "--context", "30000000"], more].concat());
    assert_eq!(estimate(&["--memory", "1"])["contexts"][0]["fits"], false);
    assert_eq!(estimate(&["--memory", "8"])["contexts"][0]["fits"], true);
}

#[test]
fn the_comparison_with_llama_cpp_is_within_15_percent() {
    let checks = json(&["estimate", "--validate", "--json"]);
    let checks = checks.as_array().unwrap();
    assert!(checks.len() >= 10, "{checks:?}");
    for check in checks {
        assert!(check["error"].as_f64().unwrap().abs() < 0.15, "{check}");
    }
    assert!(polaris(&["estimate", "--validate"]).succeeded().contains("Llama-2-7B Q4_0"));
}

#[test]
fn wrong_command_lines_and_files_are_told() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    polaris(&["estimate"]).failed(2, &["--model"]);
    polaris(&["estimate", "-m", &model, "--device", "gtx1080"]).failed(2, &["gtx1080", "rx580"]);
    polaris(&["estimate", "-m", &model, "--context", "0"]).failed(2, &["--context"]);
    polaris(&["estimate", "-m", &model, "--memory", "0"]).failed(2, &["--memory"]);
    polaris(&["estimate", "-m", &model, "--validate"]).failed(2, &["--validate"]);
    polaris(&["estimate", "-m", &model, "--context", "4000000000"]).failed(1, &["4000000000"]);
    let text = folder.file("text.gguf", b"This is no model.\n");
    polaris(&["estimate", "-m", &text]).failed(1, &[&text]);
    let other = folder.model("abacus");
    polaris(&["estimate", "-m", &other]).failed(1, &[&other, "abacus"]);
}

#[test]
fn weights_are_not_read() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    // Every byte of the file is there and none of the weights is: a reader of them would take seconds for what this takes milliseconds.
    let header = 16 << 10;
    let file = OpenOptions::new().write(true).open(&model).unwrap();
    let length = file.metadata().unwrap().len();
    assert!(length > header, "{length}");
    let before = json(&["estimate", "-m", &model, "--json"])["contexts"].clone();
    file.set_len(length - 4096).unwrap();
    file.set_len(length).unwrap();
    let begun = Instant::now();
    assert_eq!(json(&["estimate", "-m", &model, "--json"])["contexts"], before);
    assert!(begun.elapsed() < Duration::from_secs(10));
}
