//! Operators of `com.microsoft` give what ONNX Runtime gives: `data/microsoft` holds models of one node with inputs and outputs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use core_tensor::{Bindings, HostStates, Interpreter, Tensor};
use loader_onnx::{Data, FileAccess, ImportOptions, OnnxModel, TensorData, ValueInfo};

fn tensors(folder: &Path, what: &str, infos: &[ValueInfo]) -> Vec<Tensor> {
    let read = |(i, info): (usize, &ValueInfo)| {
        let path = folder.join(format!("test_data_set_0/{what}_{i}.pb"));
        match Data::open(path, &info.ty).unwrap() {
            Data::Tensor(TensorData::Tensor(tensor)) => tensor,
            other => panic!("{other:?}"),
        }
    };
    infos.iter().enumerate().map(read).collect()
}

fn check(folder: &Path) -> Result<(), String> {
    let model = OnnxModel::open(folder.join("model.onnx"), FileAccess::Map).map_err(|error| error.to_string())?;
    let given = tensors(folder, "input", &model.inputs().unwrap());
    let expected = tensors(folder, "output", &model.outputs().unwrap());
    let graph = Arc::new(model.graph(&ImportOptions::default()).map_err(|error| error.to_string())?);
    let mut states = HostStates::new(&graph, 0, &Bindings::new()).unwrap();
    let found = Interpreter::new(graph).run(&mut states, &given).map_err(|error| error.to_string())?;
    // Scores of up to 100 under an exponential: f32 keeps four digits. ONNX Runtime rounds the activations of these layers to bytes.
    let bound = if folder.ends_with("dqlstm") || folder.ends_with("dqlstm_channels") { 1e-3 } else { 1e-4 };
    for (found, expected) in found.iter().zip(&expected) {
        if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
            return Err(format!("{found:?}, {expected:?} expected"));
        }
        for (a, b) in found.to_f32().unwrap().iter().zip(expected.to_f32().unwrap()) {
            if (a - b).abs() > bound + bound * b.abs() {
                return Err(format!("{a}, {b} expected"));
            }
        }
    }
    Ok(())
}

#[test]
fn each_operator_gives_what_onnx_runtime_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/microsoft");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(cases.len() > 35, "cases are missing");
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|path| Some(format!("{}: {}", path.file_name()?.display(), check(path).err()?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
