//! One test case as the `onnx` package ships it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use core_tensor::{Backend, Bindings, DType, Dim, HostStates, Interpreter, Tensor};
use loader_onnx::{Data, FileAccess, ImportOptions, OnnxModel, TensorData};
use polaris_runtime::{Executable, ExecutableOptions};

/// What runs a case.
pub(crate) enum Runner {
    /// The reference interpreter.
    Interpreter,
    /// Backends, the later ones for what the first lacks, with or without the optimizer's passes.
    Backends(Vec<Arc<dyn Backend>>, bool),
}

/// Small tensors decide about shapes: where the import must know them, they are given to it.
const SMALL: usize = 64;
/// ONNX's own runner takes 1e-3 and 1e-7; the absolute part is for sums that should be 0.
const RELATIVE: f64 = 1e-3;
const ABSOLUTE: f64 = 1e-6;

type Failure = Box<dyn std::error::Error>;

/// The tensors of a value, in order; and what the import must know about it.
fn flatten(name: &str, data: Data, options: &mut ImportOptions, out: &mut Vec<Tensor>) -> Result<(), Failure> {
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
fn unpacked(tensor: Tensor) -> Result<Tensor, Failure> {
    let signed = match tensor.dtype() {
        DType::I4 => true,
        DType::U4 => false,
        _ => return Ok(tensor),
    };
    let nibbles = tensor.bytes().iter().flat_map(|byte| [byte & 15, byte >> 4]).take(tensor.len());
    let all: Vec<u8> = nibbles.map(|x| if signed && x > 7 { x | 0xf0 } else { x }).collect();
    Ok(Tensor::from_bytes(if signed { DType::I8 } else { DType::U8 }, tensor.shape(), &all)?)
}

fn doubles(tensor: &Tensor) -> Result<Vec<f64>, Failure> {
    Ok(match tensor.dtype() {
        DType::F64 => tensor.to_vec::<f64>()?,
        DType::I64 => tensor.to_vec::<i64>()?.into_iter().map(|x| x as f64).collect(),
        DType::U64 => tensor.to_vec::<u64>()?.into_iter().map(|x| x as f64).collect(),
        _ => tensor.to_f32()?.into_iter().map(f64::from).collect(),
    })
}

fn compare(found: &Tensor, expected: &Tensor, random: bool) -> Result<(), Failure> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Err(format!("{found:?}, {expected:?} expected").into());
    }
    for (i, (a, b)) in doubles(found)?.into_iter().zip(doubles(expected)?).enumerate() {
        let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= ABSOLUTE + RELATIVE * b.abs();
        // ONNX leaves the generator open: what is drawn must be possible.
        if !near && !(random && (a == 0.0 || a == 1.0)) {
            return Err(format!("element {i} of {expected:?}: {a}, {b} expected").into());
        }
    }
    Ok(())
}

/// Runs all data sets of a case. How many operators the first backend ran, and how many others did.
pub(crate) fn run(folder: &Path, runner: &Runner) -> Result<(usize, usize), Failure> {
    let mut nodes = (0, 0);
    let model = OnnxModel::open(folder.join("model.onnx"), FileAccess::Read)?;
    let random = model
        .proto()
        .graph
        .iter()
        .flat_map(|graph| &graph.node)
        .any(|node| matches!(node.op_type(), "Bernoulli" | "RandomUniformLike" | "RandomNormalLike"));
    let (inputs, outputs) = (model.inputs()?, model.outputs()?);
    for set in 0.. {
        let set = folder.join(format!("test_data_set_{set}"));
        if !set.exists() {
            break;
        }
        let (mut options, mut unused) = (ImportOptions::default(), ImportOptions::default());
        let (mut given, mut owners, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (i, info) in inputs.iter().enumerate() {
            let data = Data::open(set.join(format!("input_{i}.pb")), &info.ty)?;
            let single = matches!(data, Data::Tensor(_));
            flatten(&info.name, data, &mut options, &mut given)?;
            owners.resize(given.len(), (info.name.clone(), single));
        }
        for (i, info) in outputs.iter().enumerate() {
            let data = Data::open(set.join(format!("output_{i}.pb")), &info.ty)?;
            flatten(&info.name, data, &mut unused, &mut expected)?;
        }
        let mut given = given.into_iter().map(unpacked).collect::<Result<Vec<_>, _>>()?;
        let graph = match model.graph(&options) {
            Ok(graph) => graph,
            Err(first) => {
                let mut rest = Vec::new();
                for ((name, single), tensor) in owners.iter().zip(given) {
                    let decides = tensor.dtype().is_int() || matches!(tensor.dtype(), DType::Bool | DType::F32);
                    if *single && decides && tensor.len() <= SMALL {
                        options.values.insert(name.clone(), tensor);
                    } else {
                        rest.push(tensor);
                    }
                }
                given = rest;
                model.graph(&options).map_err(|_| first)?
            }
        };
        let found = match runner {
            Runner::Interpreter => {
                let graph = Arc::new(graph);
                let mut states = HostStates::new(&graph, 0, &Bindings::new())?;
                Interpreter::new(graph).run(&mut states, &given)?
            }
            Runner::Backends(backends, optimize) => {
                let options = ExecutableOptions { optimize: *optimize };
                let executable = Executable::load(backends, graph, options, &mut |_, _| ControlFlow::Continue(()))?;
                for (name, count) in executable.pieces() {
                    *if name == backends[0].name() { &mut nodes.0 } else { &mut nodes.1 } += count;
                }
                executable.run(&given)?
            }
        };
        if found.len() != expected.len() {
            return Err(format!("{} outputs, {} expected", found.len(), expected.len()).into());
        }
        for (found, expected) in found.iter().zip(expected) {
            compare(found, &unpacked(expected)?, random)?;
        }
    }
    Ok(nodes)
}
