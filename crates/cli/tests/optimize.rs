//! `polaris optimize`, on a small model that the tests write.

use crate::support::{Folder, polaris};
use core_tensor::op::{Binary, MatMul, Op, Unary};
use core_tensor::{DType, Dim, Graph, Tensor, Weight};
use serde_json::Value;

/// `silu(x·W)`, spelled out, its sigmoid shared if asked for: then it cannot go.
fn model(folder: &Folder, shared: bool) -> String {
    let mut graph = Graph::new("small");
    let x = graph.input("x", DType::F32, &[Dim::sym("rows"), 3.into()]);
    let w = Tensor::from_slice(&[3, 2], &[1.0f32, 2.0, -1.0, 0.5, 0.25, -2.0]).unwrap();
    let w = graph.weight("w", Weight::stored(w));
    let product = graph.add("product", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    let gate = graph.add("gate", Op::Unary(Unary::Sigmoid), &[product]).unwrap();
    let y = graph.add("y", Op::Binary(Binary::Mul), &[product, gate]).unwrap();
    graph.output(y);
    if shared {
        graph.output(gate);
    }
    let path = folder.path().join("model.onnx");
    loader_onnx::export::write(&graph, &path).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_fired_is_told_and_the_result_written() {
    let folder = Folder::new();
    let model = model(&folder, false);
    let out = folder.path().join("out.onnx");
    let out = out.to_str().unwrap();
    let text = polaris(&["optimize", &model, "-o", out, "--explain", "-x", "rows=4"]).succeeded();
    assert!(text.contains("nodes              3 -> 2"), "{text}");
    assert!(text.contains("x * sigmoid(x) becomes silu(x)"), "{text}");
    assert!(text.contains("(rows=4)"), "{text}");
    assert!(text.contains("written to"), "{text}");
    // Read again, it is found again.
    let json: Value = serde_json::from_str(&polaris(&["optimize", out, "--json"]).succeeded()).unwrap();
    assert_eq!(json["operators_after"]["Silu"], 1);
}

#[test]
fn what_nearly_fired_is_told_with_its_reason() {
    let folder = Folder::new();
    let model = model(&folder, true);
    let json: Value = serde_json::from_str(&polaris(&["optimize", &model, "--json"]).succeeded()).unwrap();
    let rules = json["rules"].as_array().unwrap();
    let silu = rules.iter().find(|rule| rule["name"] == "silu").unwrap();
    assert_eq!((&silu["fired"], &silu["near_miss_count"]), (&0.into(), &1.into()));
    let reason = silu["near_misses"][0]["reason"].as_str().unwrap();
    assert!(reason.ends_with("is used elsewhere, too"), "{reason}");
}

#[test]
fn a_rule_that_is_left_out_does_not_fire_and_one_that_does_not_exist_is_named() {
    let folder = Folder::new();
    let model = model(&folder, false);
    let text = polaris(&["optimize", &model, "--without", "silu", "--without", "gated-activation"]).succeeded();
    assert!(text.contains("nodes              3 -> 3"), "{text}");
    polaris(&["optimize", &model, "--without", "sulu"]).failed(2, &["--without sulu", "--rules"]);
}
