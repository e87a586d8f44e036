//! `quantize` on graphs: what it writes, which data it takes, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Folder, npy, polaris, two_layers, unread, values};
use core_tensor::FileAccess;
use loader_onnx::{ImportOptions, OnnxModel};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn data(folder: &Folder) -> PathBuf {
    let data = folder.path().join("data");
    fs::create_dir_all(&data).unwrap();
    for run in 0..4 {
        npy(&data.join(format!("{run}.npy")), "(5, 64)", &values(5 * 64, run as f32 * 1000.0));
    }
    data
}

#[test]
fn every_type_is_written_verified_and_near_the_original() {
    let folder = Folder::new();
    let (model, data) = (two_layers(&folder), data(&folder).display().to_string());
    let calibrate = ["--calibrate", data.as_str()];
    let with = |more: &[&'static str]| -> Vec<String> {
        calibrate.iter().copied().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let methods = [
        ("int8-dynamic", with(&["--smooth"]), 28.0),
        ("int8", with(&["--smooth=0.3", "--bias-correction", "--equalize"]), 28.0),
        ("int8-weights", with(&["--gptq", "--clip", "--asymmetric"]), 38.0),
        ("int8-weights", with(&["--awq", "--memory", "0"]), 35.0),
        ("int8-dynamic", with(&["--per-tensor", "--asymmetric", "--gptq"]), 30.0),
        ("int4-g32", with(&["--awq", "--bias-correction"]), 15.0),
        ("int4-g128", with(&["--gptq", "--awq", "--memory", "0"]), 15.0),
    ];
    let methods: Vec<(&str, Vec<&str>, f64)> =
        methods.iter().map(|(ty, more, least)| (*ty, more.iter().map(String::as_str).collect(), *least)).collect();
    let cases: [(&str, &[&str], f64); 10] = [
        ("int8", &calibrate, 30.0),
        ("int8", &["--calibrate", data.as_str(), "--symmetric", "--per-tensor"], 28.0),
        ("int8", &["--calibrate", data.as_str(), "--calibration", "percentile:99.9"], 25.0),
        ("int8", &["--calibrate", "random:3", "--calibration", "mse"], 15.0),
        ("int8-dynamic", &[], 30.0),
        ("INT8-weights", &[], 35.0),
        ("int8-weights", &["--external-data"], 35.0),
        ("int4-g32", &[], 15.0),
        ("int4-g64", &["--calibrate", data.as_str(), "--gptq"], 15.0),
        ("int4-g128", &["--no-manifest"], 15.0),
    ];
    let cases = cases.into_iter().chain(methods.iter().map(|(ty, more, least)| (*ty, more.as_slice(), *least)));
    for (ty, more, decibels) in cases {
        let output = folder.path().join("small.onnx").display().to_string();
        let told = json(&polaris(&[&["quantize", &model, &output, "--type", ty, "--json"], more].concat()).succeeded());
        assert_eq!(told["settings"]["mixture"], ty.to_lowercase());
        assert_eq!(
            told["beside"].as_array().map(Vec::len),
            (more.contains(&"--external-data") || more.contains(&"--memory")).then_some(1)
        );
        let changed = told["tensors"].as_array().unwrap().iter().filter(|t| t["relative_error"].as_f64() > Some(0.0));
        assert_eq!(changed.count(), 2, "{told}");
        if !more.contains(&"--no-manifest") {
            polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
        }
        let input = format!("x={data}/2.npy");
        let found =
            polaris(&["compare", &model, &output, "--input", &input, "--device", "cpu", "--runs", "1", "--json"]);
        let sqnr = json(&found.succeeded())["outputs"][0]["sqnr_decibels"].as_f64().unwrap();
        assert!(sqnr > decibels, "{ty} {more:?}: {sqnr} dB");
        // Data are told of where something was looked at, and a method where ranges were chosen.
        let settings = &told["settings"]["graph"];
        assert_eq!(settings["data"].is_string(), more.contains(&"--calibrate"), "{settings}");
        assert_eq!(settings["method"].is_string(), ty == "int8", "{settings}");
    }
}

#[test]
fn a_changed_result_is_noticed() {
    let folder = Folder::new();
    let (model, output) = (two_layers(&folder), folder.path().join("small.onnx").display().to_string());
    polaris(&["quantize", &model, &output, "--type", "int8-weights", "--external-data"]).succeeded();
    let manifest = format!("{output}.manifest.json");
    let data = format!("{output}.data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[100] ^= 1;
    fs::write(&data, bytes).unwrap();
    polaris(&["verify", &manifest]).fails_after_output("sha256");
    fs::remove_file(&data).unwrap();
    polaris(&["verify", &manifest]).fails_after_output("not there");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let folder = Folder::new();
    let (model, data) = (two_layers(&folder), data(&folder).display().to_string());
    let gguf = folder.tiny_model();
    polaris(&["quantize", &model, "x.onnx", "--type", "Q4_K_M"]).failed(2, &["GGUF", "int8-dynamic"]);
    polaris(&["quantize", &gguf, "x.gguf", "--type", "int8"]).failed(2, &["type of graphs", "Q8_0"]);
    polaris(&["quantize", &model, "x.gguf", "--type", "int8-dynamic"]).failed(2, &[".onnx"]);
    for more in [&["--calibrate", data.as_str()][..], &["--symmetric"], &["--calibration", "mse"]] {
        polaris(&[&["quantize", &model, "x.onnx", "--type", "int8-dynamic"], more].concat())
            .failed(2, &[more[0], "int8"]);
    }
    polaris(&["quantize", &model, "x.onnx", "--type", "int8-dynamic", "--pure"]).failed(2, &["--pure"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8"]).failed(1, &["calibration"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int4-g32", "--gptq"]).failed(2, &["--calibrate"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8", "--calibrate", "random:no"]).failed(2, &["random:N"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8", "--calibrate", "nowhere"]).failed(1, &["nowhere"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8-dynamic", "--skip", "third"]).failed(2, &["third"]);
    polaris(&["quantize", &model, &model, "--type", "int8-dynamic"]).failed(1, &["would replace"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int4-g32", "--smooth", "--calibrate", &data])
        .failed(2, &["--smooth is for int8"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8", "--awq", "--calibrate", &data])
        .failed(2, &["--awq is for int4"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int4-g32", "--clip"]).failed(2, &["--calibrate"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int4-g32", "--asymmetric"]).failed(2, &["8 bits"]);
    polaris(&["quantize", &model, "x.onnx", "--type", "int8", "--smooth=2", "--calibrate", &data])
        .failed(2, &["0 to 1"]);
    polaris(&["quantize", &gguf, "x.gguf", "--type", "Q4_0", "--equalize"]).failed(2, &["--equalize", "graphs"]);
    npy(&Path::new(&data).join("9.npy"), "(5, 63)", &values(5 * 63, 0.0));
    polaris(&["quantize", &model, "x.onnx", "--type", "int8", "--calibrate", &data]).failed(1, &["input \"x\""]);
    assert!(!Path::new("x.onnx").exists() && !Path::new("x.gguf").exists());
}

#[test]
fn a_threshold_that_a_graph_misses_ends_in_code_3_even_where_nobody_reads() {
    let folder = Folder::new();
    let (model, output) = (two_layers(&folder), folder.path().join("small.onnx").display().to_string());
    polaris(&["quantize", &model, &output, "--type", "int8-weights"]).succeeded();
    let base = ["compare", &model, &output, "--input", "random", "--extent", "rows=2", "--device", "cpu"];
    let compare = |least: &'static str| [&base[..], &["--min-sqnr", least]].concat();
    assert!(polaris(&compare("20")).succeeded().contains("met"));
    polaris(&compare("200")).ends_with(3, "error: beyond the threshold: sqnr_decibels\n");
    assert_eq!((unread(&compare("200")), unread(&compare("20"))), (Some(3), Some(0)));
    polaris(&[&base[..], &["--ctx", "64"]].concat()).failed(2, &["--ctx is for language models"]);
}

#[test]
fn trained_integers_give_more_of_what_the_graph_gave() {
    let folder = Folder::new();
    let (model, data) = (two_layers(&folder), data(&folder).display().to_string());
    let output = folder.path().join("small.onnx").display().to_string();
    let input = format!("x={data}/2.npy");
    let sqnr = |ty: &str, more: &[&str]| -> (f64, Value) {
        let told =
            polaris(&[&["quantize", &model, &output, "--type", ty, "--calibrate", &data, "--json"], more].concat());
        let told = json(&told.succeeded());
        let found =
            polaris(&["compare", &model, &output, "--input", &input, "--device", "cpu", "--runs", "1", "--json"]);
        (json(&found.succeeded())["outputs"][0]["sqnr_decibels"].as_f64().unwrap(), told)
    };
    for (ty, gained) in [("int4-g32", 3.0), ("int8-weights", 1.0)] {
        let (trained, told) = sqnr(ty, &["--reconstruct", "--steps", "60", "--batch", "4"]);
        let report = &told["reconstruction"];
        let layer = &report["layers"][0];
        assert!(layer["after"].as_f64() < layer["before"].as_f64(), "{report}");
        assert_eq!((report["steps"].as_u64(), report["chunks"].as_u64()), (Some(60), Some(4)), "{report}");
        polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
        // Data are used by the search for scales alone here.
        let (rounded, _) = sqnr(ty, &["--awq"]);
        assert!(trained > rounded + gained, "{ty}: {trained} dB trained, {rounded} dB not");
    }
    // What is trained in 4 bits is not clipped as well; in 8 bits what is not trained is.
    let brief = ["--reconstruct", "--steps", "2", "--batch", "1", "--awq"];
    let clipped = |ty| sqnr(ty, &brief).1["settings"]["graph"]["clip"].as_bool();
    assert_eq!((clipped("int4-g32"), clipped("int8-weights")), (Some(false), Some(true)));
    let refused = |more: &[&str], with: &str| {
        let base = ["quantize", &model, &output, "--type", "int8", "--reconstruct"];
        polaris(&[&base[..], more].concat()).failed(2, &[with]);
    };
    refused(&[], "--calibrate");
    refused(&["--calibrate", &data, "--bias-correction"], "--bias-correction");
    refused(&["--calibrate", &data, "--per-tensor"], "--per-tensor");
    refused(&["--calibrate", &data, "--distill-steps", "3"], "--distill-steps is for GGUF files");
    polaris(&["quantize", &model, &output, "--type", "int4-g32", "--reconstruct", "--clip", "--calibrate", &data])
        .failed(2, &["--clip"]);
}

#[test]
fn damping_decides_how_products_are_made_up_for() {
    let folder = Folder::new();
    let (model, data) = (two_layers(&folder), data(&folder).display().to_string());
    let output = folder.path().join("small.onnx").display().to_string();
    let quantize = |more: &[&str]| {
        let base = ["quantize", &model, &output, "--type", "int4-g32", "--gptq", "--calibrate", &data, "--json"];
        let told = json(&polaris(&[&base[..], more].concat()).succeeded());
        (told["settings"]["graph"]["damping"].as_f64(), fs::read(&output).unwrap())
    };
    let (standard, given) = (quantize(&[]), quantize(&["--damping", "1"]));
    assert_eq!((standard.0, given.0), (Some(0.01), Some(1.0)));
    assert!(standard.1 != given.1);
    polaris(&["quantize", &model, &output, "--type", "int4-g32", "--damping", "1"]).failed(2, &["--gptq"]);
}

#[test]
fn all_files_that_weights_come_from_are_recorded() {
    let folder = Folder::new();
    let model = two_layers(&folder);
    let (apart, output) = (folder.path().join("apart.onnx"), folder.path().join("small.onnx").display().to_string());
    let graph = OnnxModel::open(Path::new(&model), FileAccess::Read).unwrap().graph(&ImportOptions::default()).unwrap();
    loader_onnx::export::write_with(&graph, &apart, 0).unwrap();
    let apart = apart.display().to_string();
    let told = json(&polaris(&["prune", &apart, &output, "--neurons", "50%", "--multiple", "8", "--json"]).succeeded());
    let sources = told["source"].as_array().unwrap();
    assert_eq!(sources.len(), 2, "{told}");
    assert_eq!(sources[1]["path"], format!("{apart}.data"));
    polaris(&["prune", &apart, &apart, "--neurons", "50%"]).failed(1, &["would replace"]);
}

#[test]
fn a_pruned_graph_runs_and_its_manifest_agrees() {
    let folder = Folder::new();
    let (model, data) = (two_layers(&folder), data(&folder).display().to_string());
    let output = folder.path().join("small.onnx").display().to_string();
    let prune = ["prune", &model, &output, "--neurons", "25%", "--multiple", "8", "--calibrate", &data, "--json"];
    let told = json(&polaris(&prune).succeeded());
    let settings = &told["pruned"]["settings"];
    assert_eq!((&settings["multiple"], &settings["calibration_chunks"]), (&8.into(), &4.into()));
    let shapes: Vec<String> =
        told["tensors"].as_array().unwrap().iter().map(|tensor| tensor["shape"].to_string()).collect();
    assert!(shapes.contains(&"[64,72]".to_owned()) && shapes.contains(&"[72,32]".to_owned()), "{shapes:?}");
    polaris(&["verify", &format!("{output}.manifest.json")]).succeeded();
    polaris(&["run", &output, "--input", &format!("x={data}/1.npy"), "--device", "cpu"]).succeeded();
    let before = fs::metadata(&model).unwrap().len();
    assert!(fs::metadata(&output).unwrap().len() < before);
    polaris(&[&prune[..], &["--chunks", "2"]].concat()).failed(2, &["--chunks is for GGUF files"]);
}
