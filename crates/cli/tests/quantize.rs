//! `quantize`, `verify` and `imatrix` as commands: what they print, write and refuse.

use crate::support::{Folder, command, polaris, unread};
use serde_json::Value;

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
    // The importances are the text's own, and from no file.
    assert_eq!((&told["settings"]["imatrix"], &told["settings"]["calibration"]), (&Value::Null, &text.clone().into()));
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
    assert_eq!((&told["tensors"], &told["chunks"], &told["tokens"]), (&8.into(), &2.into(), &64.into()));
    let errors = |more: &[&str]| {
        let told =
            json(&polaris(&[&["quantize", &model, &output, "--type", "Q4_1", "--json"], more].concat()).succeeded());
        let error = |tensor: &Value| (tensor["name"].to_string(), tensor["relative_error"].as_f64().unwrap());
        (told["settings"]["imatrix"].clone(), told["tensors"].as_array().unwrap().iter().map(error).collect::<Vec<_>>())
    };
    let (plain, weighted) = (errors(&[]), errors(&["--imatrix", &importances]));
    assert_eq!((plain.0, &weighted.0), (Value::Null, &importances.clone().into()));
    // Other codes where something is known of columns, and the same ones elsewhere.
    for ((name, plain), (_, weighted)) in plain.1.iter().zip(&weighted.1) {
        let known = !name.contains("norm") && !name.contains("token_embd");
        assert_eq!(weighted != plain, known, "{name}: {plain} {weighted}");
    }
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
    let text = folder.file("text", b"abc");
    let quantize = |more: &[&str]| polaris(&[&["quantize", &model, "x.gguf"], more].concat());
    quantize(&["--type", "Q4_0", "--calibrate", &text]).failed(2, &["--gptq or --reconstruct"]);
    quantize(&["--type", "Q4_0", "--calibrate", &text, "--dry-run"]).failed(2, &["--gptq or --reconstruct"]);
    quantize(&["--type", "Q4_0", "--memory", "1"]).failed(2, &["--memory is for --gptq"]);
    quantize(&["--type", "Q4_0", "--calibration", "mse"]).failed(2, &["--calibration is for graphs"]);
    quantize(&["--type", "Q4_0", "--damping", "1"]).failed(2, &["--gptq"]);
    quantize(&["--type", "Q8_0", "--gptq", "--calibrate", &text]).failed(2, &["no tensor becomes a type"]);
    quantize(&["--type", "mixed", "--pure", "--target-size", "1MB"]).failed(2, &["--pure"]);
    quantize(&["--type", "mixed", "--max-kl", "0", "--data", &text]).failed(2, &["above 0"]);
    quantize(&["--type", "Q4_0", "--probe-chunks", "1", "--data", &text]).failed(2, &["--type mixed"]);
    let nowhere = folder.path().join("none/x.gguf").display().to_string();
    polaris(&["quantize", &model, &nowhere, "--type", "mixed", "--max-kl", "1", "--data", &text])
        .failed(1, &["cannot be written there"]);
}

#[test]
fn demands_for_single_tensors_are_met() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let output = format!("{model}.q.gguf");
    let quantize =
        |input: &str, output: &str, more: &[&str]| polaris(&[&["quantize", input, output, "--json"], more].concat());
    let types = |told: &Value| -> Vec<String> {
        let tensors = told["tensors"].as_array().unwrap();
        let of = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).map(|tensor| tensor["to"].clone());
        ["output.weight", "token_embd.weight", "blk.0.ffn_up.weight"]
            .map(|name| of(name).unwrap().as_str().unwrap().to_owned())
            .to_vec()
    };
    let told = quantize(&model, &output, &["--type", "Q4_0", "--output-type", "q8_0", "--embedding-type", "f16"]);
    let told = json(&told.succeeded());
    assert_eq!(types(&told), ["q8_0", "f16", "q4_0"]);
    let told = json(&quantize(&model, &output, &["--type", "Q4_0", "--leave-output"]).succeeded());
    assert_eq!(types(&told), ["f32", "q4_0", "q4_0"]);
    assert_eq!(told["settings"]["leave_output"], true);

    let again = format!("{model}.2.gguf");
    quantize(&output, &again, &["--type", "Q8_0"]).failed(1, &["q4_0 already", "--allow-requantize"]);
    let told = json(&quantize(&output, &again, &["--type", "Q8_0", "--allow-requantize"]).succeeded());
    assert_eq!(types(&told), ["q8_0", "q8_0", "q8_0"]);
    assert_eq!(told["settings"]["allow_requantize"], true);

    // Mixed precision heeds them, too, and leaves alone what is quantized.
    let mixed = ["--type", "mixed", "--target-size", "1MB", "--leave-output", "--tensor-type", "ffn_up=q5_0"];
    assert_eq!(types(&json(&quantize(&model, &again, &mixed).succeeded())), ["f32", "q8_0", "q5_0"]);
    let told = json(&quantize(&output, &again, &["--type", "mixed", "--target-size", "1MB"]).succeeded());
    assert_eq!(types(&told), ["q8_0", "q4_0", "q4_0"]);
    quantize(&again, &output, &["--type", "mixed", "--target-size", "1MB"])
        .failed(1, &["no tensor to choose", "--allow-requantize"]);
}

#[test]
fn rounding_follows_a_text_and_the_manifest_tells_how() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (text, output) = (format!("{model}.txt"), format!("{model}.q.gguf"));
    std::fs::write(&text, "abc cab, 12 34. ".repeat(200)).unwrap();
    let gptq = ["quantize", &model, &output, "--type", "Q4_0", "--json", "-t", "2", "--gptq", "--calibrate", &text];
    let made = |more: &[&str]| {
        let told = json(&polaris(&[&gptq[..], more].concat()).succeeded());
        (told["settings"].clone(), std::fs::read(&output).unwrap())
    };
    let (standard, strict) = (made(&[]), made(&["--damping", "10", "--memory", "0"]));
    assert_eq!((&standard.0["gptq"]["damping"], &strict.0["gptq"]["damping"]), (&0.1.into(), &10.0.into()));
    assert_eq!((&standard.0["calibration"], &standard.0["gptq"]["context"]), (&text.clone().into(), &256.into()));
    polaris(&["quantize", &model, &output, "--type", "Q4_0"]).succeeded();
    let plain = std::fs::read(&output).unwrap();
    assert!(standard.1 != strict.1 && standard.1 != plain && strict.1 != plain);
    polaris(&[&gptq[..], &["--damping", "0"]].concat()).failed(2, &["above 0"]);
    let cut = made(&["--calibration-context", "64", "--calibration-chunks", "3"]);
    assert_eq!((&cut.0["gptq"]["context"], &cut.0["gptq"]["chunks"]), (&64.into(), &3.into()));
    assert!(cut.1 != standard.1);
    let train = ["--reconstruct", "--steps", "2", "--calibration-context", "64"];
    let told = json(&polaris(&[&gptq[..], &train].concat()).succeeded());
    assert_eq!((&told["settings"]["gptq"]["context"], &told["reconstruction"]["steps"]), (&64.into(), &2.into()));
    assert!(std::fs::read(&output).unwrap() != standard.1);
    polaris(&[&gptq[..], &["--calibration-context", "100000"]].concat())
        .failed(1, &["--calibration-context", "the model knows"]);
    // Without --reconstruct its options mean nothing.
    polaris(&[&gptq[..], &["--steps", "2"]].concat()).failed(2, &["--reconstruct"]);
}

#[test]
fn verification_tells_of_a_tampered_list_of_tensors_even_where_nobody_reads() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let (output, manifest) = (format!("{model}.q.gguf"), format!("{model}.q.gguf.manifest.json"));
    polaris(&["quantize", &model, &output, "--type", "Q8_0"]).succeeded();
    let told = json(&polaris(&["verify", &manifest, "--json"]).succeeded());
    assert_eq!((told["files"].as_array().map(Vec::len), told["problems"].as_array().map(Vec::len)), (Some(2), Some(0)));
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut changed = json(&text);
    changed["tensors"][1]["name"] = "\u{1b}[2J".into();
    std::fs::write(&manifest, changed.to_string()).unwrap();
    let ended = polaris(&["verify", &manifest, "--json"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(json(&ended.stdout)["problems"].as_array().map(Vec::len), Some(1));
    assert!(ended.stderr.contains("the manifest has") && !ended.stderr.contains('\u{1b}'), "{ended:?}");
    assert_eq!(unread(&["verify", &manifest]), Some(1));
    changed["tensors"].as_array_mut().unwrap().pop();
    std::fs::write(&manifest, changed.to_string()).unwrap();
    polaris(&["verify", &manifest]).fails_after_output("tensors, the manifest");
}

#[test]
fn importances_replace_no_model_and_go_nowhere_that_cannot_be_written() {
    let folder = Folder::new();
    let model = folder.tiny_model();
    let text = folder.file("text", "abc ".repeat(40).as_bytes());
    let collect = |output: &str| polaris(&["imatrix", "-m", &model, "-f", &text, "-c", "32", "-o", output]);
    let before = std::fs::read(&model).unwrap();
    collect(&model).failed(1, &["would replace"]);
    assert_eq!(std::fs::read(&model).unwrap(), before);
    collect(&folder.path().join("none/imatrix").display().to_string()).failed(1, &["cannot be written there"]);
    collect(&folder.path().display().to_string()).failed(1, &["a folder"]);
}

/// Who presses Ctrl-C, or tells the process to end, gets what there is, and an exit code that tells that it is not all.
#[cfg(unix)]
#[test]
fn an_interrupted_collection_is_kept_and_told() {
    use std::io::BufRead as _;
    use std::process::{Command, Stdio};

    let folder = Folder::new();
    let model = folder.tiny_model();
    let text = folder.file("text", "abc cab ".repeat(400_000).as_bytes());
    let output = folder.path().join("imatrix").display().to_string();
    for signal in ["-INT", "-TERM"] {
        let mut command =
            command(&["imatrix", "-m", &model, "-f", &text, "-o", &output, "-c", "32", "--device", "cpu"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut notes = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(notes.by_ref().any(|line| line.unwrap().starts_with("chunk 3 ")));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        notes.for_each(drop);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        let quantized = format!("{model}.q.gguf");
        polaris(&["quantize", &model, &quantized, "--type", "Q4_1", "--imatrix", &output]).succeeded();
        std::fs::remove_file(&output).unwrap();
    }
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
    let arguments =
        ["compare", &model, &quantized, "--data", &text, "--ctx", "32", "--chunks", "2", "--max-kl", &below];
    assert_eq!(unread(&[&arguments[..], &["--device", "cpu"]].concat()), Some(3));
    let same = compare(&model, &["--max-kl", "0", "--min-top1", "1", "--max-error", "0"]).succeeded();
    assert!(same.contains("SQNR equal") && same.contains("threshold top1 >= 1: 1.000000, met"), "{same}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = Folder::new();
    let [model, quantized, text] = pair(&folder);
    polaris(&["compare", &model, &quantized]).failed(2, &["--data"]);
    polaris(&["compare", &model, &quantized, "--data", &text, "--input", "random"])
        .failed(2, &["--input is for graphs"]);
    polaris(&["compare", &model, &quantized, "--data", &text, "--runs", "3"]).failed(2, &["--runs is for graphs"]);
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
    let measured = &told["mixed"]["data"];
    assert_eq!((&measured["dataset"], &measured["context"]), (&text.clone().into(), &32.into()), "{measured}");
    assert_eq!((&measured["chunks"], &measured["probes"]), (&2.into(), &"tensors".into()), "{measured}");
    for chart in told["charts"].as_array().unwrap() {
        assert!(std::fs::read_to_string(chart.as_str().unwrap()).unwrap().starts_with("<svg"), "{chart}");
    }
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    polaris(&["generate", "-m", &output, "-p", "ab", "-n", "3", "--temperature", "0"]).succeeded();

    let told = json(&quantize(&["--max-kl", "0.01", "--probe-parts", "--dry-run", "--json"]).succeeded());
    assert!(told["measured"].as_f64().unwrap() <= 0.01, "{told}");
    let told = json(&quantize(&["--vram", "4GiB", "--context", "128", "--dry-run", "--json"]).succeeded());
    assert!(told["tensors"].as_array().unwrap().iter().all(|tensor| tensor["to"] == "q8_0"), "{told}");
    quantize(&["--target-size", "1kB"]).ends_with(1, " bytes, and there are 1000\n");
    quantize(&[]).failed(2, &["--target-size"]);
    polaris(&["quantize", &model, &output, "--type", "Q8_0", "--max-kl", "1"]).failed(2, &["--type mixed"]);
}
