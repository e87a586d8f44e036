//! Runs a folder of test cases as the `onnx` package ships them (`onnx/backend/test/data/node`) on the reference interpreter, and
//! says which pass.
//!
//! `cargo run -p loader-onnx --example node_cases -- FOLDER [PART_OF_A_NAME] [-v]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{Bindings, DType, Dim, HostStates, Interpreter, Tensor};
use loader_onnx::{Data, FileAccess, ImportOptions, OnnxModel, TensorData};

/// The tensors of a value, in order; and what the import must know about it.
fn flatten(name: &str, data: Data, options: &mut ImportOptions, out: &mut Vec<Tensor>) -> Result<(), String> {
    match data {
        Data::Tensor(TensorData::Tensor(tensor)) => {
            if name.contains('.') {
                options.shapes.insert(name.to_owned(), tensor.shape().iter().map(|n| Dim::Num(*n)).collect());
            }
            out.push(tensor);
        }
        Data::Sequence(all) => {
            options.sequences.insert(name.to_owned(), all.len());
            for (i, data) in all.into_iter().enumerate() {
                flatten(&format!("{name}.{i}"), data, options, out)?;
            }
        }
        Data::Optional(Some(data)) => {
            options.present.insert(name.to_owned());
            flatten(name, *data, options, out)?;
        }
        Data::Optional(None) => {}
        _ => return Err("strings".into()),
    }
    Ok(())
}

/// 4-bit integers as the bytes in which graphs hold them.
fn bytes(tensor: Tensor) -> Tensor {
    let signed = match tensor.dtype() {
        DType::I4 => true,
        DType::U4 => false,
        _ => return tensor,
    };
    let nibbles = tensor.bytes().iter().flat_map(|byte| [byte & 15, byte >> 4]);
    let all: Vec<u8> = nibbles.map(|x| if signed && x > 7 { x | 0xf0 } else { x }).collect();
    Tensor::from_bytes(if signed { DType::I8 } else { DType::U8 }, tensor.shape(), &all).unwrap_or(tensor)
}

fn doubles(tensor: &Tensor) -> Result<Vec<f64>, Box<dyn Error>> {
    Ok(match tensor.dtype() {
        DType::F64 => tensor.to_vec::<f64>()?,
        DType::I64 => tensor.to_vec::<i64>()?.into_iter().map(|x| x as f64).collect(),
        DType::U64 => tensor.to_vec::<u64>()?.into_iter().map(|x| x as f64).collect(),
        _ => tensor.to_f32()?.into_iter().map(f64::from).collect(),
    })
}

fn small(dtype: DType) -> bool {
    dtype.is_int() || matches!(dtype, DType::Bool | DType::F32)
}

fn compare(found: &Tensor, expected: &Tensor) -> Result<(), Box<dyn Error>> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Err(format!("{found:?}, {expected:?} expected").into());
    }
    for (i, (a, b)) in doubles(found)?.into_iter().zip(doubles(expected)?).enumerate() {
        let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 + 1e-3 * b.abs();
        if !near {
            return Err(format!("element {i} of {expected:?}: {a}, {b} expected").into());
        }
    }
    Ok(())
}

fn run(folder: &Path, verbose: bool) -> Result<(), Box<dyn Error>> {
    let model = OnnxModel::open(folder.join("model.onnx"), FileAccess::Read)?;
    let (inputs, outputs) = (model.inputs()?, model.outputs()?);
    for set in 0.. {
        let set = folder.join(format!("test_data_set_{set}"));
        if !set.exists() {
            break;
        }
        let mut options = ImportOptions::default();
        let (mut given, mut owners, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (i, info) in inputs.iter().enumerate() {
            let data = Data::open(set.join(format!("input_{i}.pb")), &info.ty)?;
            let single = matches!(data, Data::Tensor(_));
            flatten(&info.name, data, &mut options, &mut given)?;
            owners.resize(given.len(), (info.name.clone(), single));
        }
        let mut unused = ImportOptions::default();
        for (i, info) in outputs.iter().enumerate() {
            let data = Data::open(set.join(format!("output_{i}.pb")), &info.ty)?;
            flatten(&info.name, data, &mut unused, &mut expected)?;
        }
        let given: Vec<Tensor> = given.into_iter().map(bytes).collect();
        // Where the model must know small integers (axes, pads, sizes) when it is imported, they are given then.
        let (graph, given) = match model.graph(&options) {
            Ok(graph) => (graph, given),
            Err(first) => {
                let mut rest = Vec::new();
                for ((name, single), tensor) in owners.iter().zip(given) {
                    if *single && tensor.len() <= 64 && small(tensor.dtype()) {
                        options.values.insert(name.clone(), tensor);
                    } else {
                        rest.push(tensor);
                    }
                }
                (model.graph(&options).map_err(|second| if verbose { second } else { first })?, rest)
            }
        };
        let graph = Arc::new(graph);
        if verbose {
            println!("{}", graph.to_text());
        }
        let mut states = HostStates::new(&graph, 0, &Bindings::new())?;
        let found = Interpreter::new(graph).run(&mut states, &given)?;
        if found.len() != expected.len() {
            return Err(format!("{} outputs, {} expected", found.len(), expected.len()).into());
        }
        for (found, expected) in found.iter().zip(expected.into_iter().map(bytes)) {
            compare(found, &expected)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let verbose = arguments.iter().any(|argument| argument == "-v");
    arguments.retain(|argument| argument != "-v");
    let [folder, rest @ ..] = &arguments[..] else { return Err("a folder of cases is needed".into()) };
    let mut cases: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    cases.sort_by_key(|case| case.file_name());
    let (mut passed, mut failed) = (0, BTreeMap::<String, usize>::new());
    std::panic::set_hook(Box::new(|_| {}));
    for case in cases {
        let name = case.file_name().to_string_lossy().into_owned();
        if rest.first().is_some_and(|part| !name.contains(part.as_str())) || !case.path().join("model.onnx").exists() {
            continue;
        }
        let result = std::panic::catch_unwind(|| run(&case.path(), verbose).map_err(|error| error.to_string()));
        match result.unwrap_or_else(|_| Err("PANIC".into())) {
            Ok(()) => passed += 1,
            Err(error) => {
                let reason = error.rsplit_once("model.onnx: ").map_or(&*error, |(_, reason)| reason).replace('\n', " ");
                println!("{name}: {reason}");
                *failed.entry(reason.chars().take(60).collect()).or_default() += 1;
            }
        }
    }
    println!("{passed} passed, {} failed", failed.values().sum::<usize>());
    Ok(())
}
