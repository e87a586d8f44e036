//! The commands that work on any graph, on a small model that the tests write.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Folder, npy, polaris};
use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, Weight};

/// `y = tanh(x·W)`, `z = y + y`; x is `[rows, 3]`.
fn model(folder: &Folder) -> PathBuf {
    let mut graph = Graph::new("small");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 3.into()]);
    let w = Tensor::from_slice(&[3, 2], &[1.0f32, 2.0, -1.0, 0.5, 0.25, -2.0]).unwrap();
    let w = graph.weight("w", Weight::stored(w));
    let product = graph.add("product", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    let y = graph.add("y", Op::Unary(Unary::Tanh), &[product]).unwrap();
    let z = graph.add("z/sum", Op::Binary(Binary::Add), &[y, y]).unwrap();
    graph.output(y);
    graph.output(z);
    let path = folder.path().join("model.onnx");
    loader_onnx::export::write(&graph, &path).unwrap();
    path
}

/// The f32 of an .npy file.
fn floats(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

#[test]
fn run_writes_each_output_to_a_file_named_after_it() {
    let folder = Folder::new();
    let model = model(&folder);
    let (x, out) = (folder.path().join("x.npy"), folder.path().join("out"));
    npy(&x, "(2, 3)", &[1.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    let input = format!("x={}", x.display());
    let arguments = ["run", model.to_str().unwrap(), "--input", &input, "--output", out.to_str().unwrap()];
    let text = polaris(&[&arguments[..], &["--device", "cpu"]].concat()).succeeded();
    assert!(text.contains("y: f32[2, 2]"), "{text}");
    let expected: Vec<f32> = [1.0f32, 2.0, -0.5, -3.5].iter().map(|x| x.tanh()).collect();
    for (file, factor) in [("y.npy", 1.0), ("z_sum.npy", 2.0)] {
        let found = floats(&out.join(file));
        assert_eq!(found.len(), 4);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - factor * expected).abs() < 1e-6, "{file}: {found} {expected}");
        }
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    let json =
        polaris(&[&arguments[..], &["--device", "cpu", "--json", "--runs", "2", "--profile"]].concat()).succeeded();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["outputs"][1]["name"], "z/sum");
    assert_eq!(json["latency"]["runs"], 2);
    assert!(json["profile"].as_array().is_some_and(|steps| !steps.is_empty()), "{json}");
}

#[test]
fn a_comparison_with_the_reference_shows_next_to_no_difference() {
    let folder = Folder::new();
    let model = model(&folder);
    let model = model.to_str().unwrap();
    let common =
        ["compare", model, "--input", "random", "-x", "rows=5", "--device", "cpu", "--other-device", "reference"];
    let json = polaris(&[&common[..], &["--json"]].concat()).succeeded();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for output in json["outputs"].as_array().unwrap() {
        assert_eq!(output["shape"], serde_json::json!([5, 2]));
        assert!(output["maximum"].as_f64().unwrap() < 1e-5, "{output}");
        assert!(output["cosine"].as_f64().unwrap() > 0.999_999, "{output}");
    }
}

#[test]
fn inspect_shows_the_graph() {
    let folder = Folder::new();
    let model = model(&folder);
    let text = polaris(&["inspect", model.to_str().unwrap()]).succeeded();
    for part in ["ONNX", "x: f32[rows, 3]", "parameters: 6", "MatMul", "Tanh"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json = polaris(&["inspect", model.to_str().unwrap(), "--json"]).succeeded();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["operators"]["Tanh"], 1);
}

#[test]
fn wrong_inputs_of_a_graph_are_told() {
    let folder = Folder::new();
    let model = model(&folder);
    let model = model.to_str().unwrap();
    let x = folder.path().join("x.npy");
    let input = format!("x={}", x.display());
    polaris(&["run", model]).failed(2, &["input \"x\" has no value", "--input x=FILE.npy", "f32[rows, 3]"]);
    polaris(&["run", model, "--input", "w=random"]).failed(2, &["no input \"w\"", "x"]);
    polaris(&["run", model, "--input", "random", "-x", "rows"]).failed(2, &["NAME=N"]);
    polaris(&["run", model, "--input", &input]).failed(1, &["x.npy"]);
    npy(&x, "(2, 3)", &[1.0]);
    polaris(&["run", model, "--input", &input]).failed(1, &["x.npy", "at byte", "4 bytes"]);
    npy(&x, "(1, 2)", &[1.0, 2.0]);
    polaris(&["run", model, "--input", &input, "--device", "cpu"]).failed(1, &["x", "f32[rows, 3]"]);
    polaris(&["run", "model.bin", "--input", "random"]).failed(1, &["model.bin", ".onnx"]);
    fs::write(folder.path().join("bad.onnx"), b"\x08\xff\xff").unwrap();
    let bad = folder.path().join("bad.onnx");
    for command in ["run", "inspect", "optimize"] {
        polaris(&[command, bad.to_str().unwrap()]).failed(1, &["bad.onnx"]);
    }
    polaris(&["compare", model, "--input", "random"]).failed(2, &["--other-device"]);
}
