//! `quantize` on graphs: what it writes, which data it takes, and what it refuses.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, Weight};
use serde_json::Value;
use support::{Folder, npy, polaris};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Numbers that look random and are the same in each run.
fn values(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|i| (((i as f32 + seed) * 12.9898).sin() * 43_758.547).fract()).collect()
}

/// `relu(x·V + b)·W`, x is `[rows, 64]`.
fn model(folder: &Folder) -> String {
    let mut graph = Graph::new("two layers");
    let mut x = graph.input("x", DType::F32, &[Dim::sym("rows"), 64.into()]);
    for (name, n) in [("first", 96), ("second", 32)] {
        let k = graph.tensor_type(x).unwrap().1[1].as_num().unwrap();
        let w = Tensor::from_slice(&[k, n], &values(k * n, n as f32)).unwrap();
        let w = graph.weight(&format!("{name}.weight"), Weight::stored(w));
        x = graph.add(name, Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
        let b =
            graph.weight(&format!("{name}.bias"), Weight::stored(Tensor::from_slice(&[n], &values(n, 0.5)).unwrap()));
        x = graph.add(&format!("{name}.sum"), Op::Binary(Binary::Add), &[x, b]).unwrap();
        if name == "first" {
            x = graph.add("relu", Op::Unary(Unary::Relu), &[x]).unwrap();
        }
    }
    graph.rename(x, "y");
    graph.output(x);
    let path = folder.path().join("model.onnx");
    loader_onnx::export::write(&graph, &path).unwrap();
    path.display().to_string()
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
    let (model, data) = (model(&folder), data(&folder).display().to_string());
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
    }
}

#[test]
fn a_changed_result_is_noticed() {
    let folder = Folder::new();
    let (model, output) = (model(&folder), folder.path().join("small.onnx").display().to_string());
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
    let (model, data) = (model(&folder), data(&folder).display().to_string());
    let gguf = folder.tiny_model();
    polaris(&["quantize", &model, "x.onnx", "--type", "Q4_K_M"]).failed(2, &["GGUF", "int8-dynamic"]);
    polaris(&["quantize", &gguf, "x.gguf", "--type", "int8"]).failed(2, &["type of graphs", "Q8_0"]);
    polaris(&["quantize", &model, "x.gguf", "--type", "int8-dynamic"]).failed(2, &[".onnx"]);
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
