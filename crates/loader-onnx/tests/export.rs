//! Graphs are written and read again: they compute the same.

use std::path::PathBuf;
use std::sync::Arc;

use core_tensor::op::{
    ArgMax, Binary, Cast, Concat, Conv, DequantizeLinear, Expand, ExtentValues, GatedActivation, Gather, Granularity,
    GroupNormalization, LayerNormalization, MatMul, MatMulInteger, Op, Pad, PadMode, Pool, PoolKind, QuantizeLinear,
    Reduce, ReduceKind, Reshape, RmsNormalization, Scalar, Slice, Softmax, TensorAttention, TopK, Transpose, Trilu,
    Unary, Where, Window,
};
use core_tensor::{
    Bindings, BlockFormat, DType, Dim, Graph, HostStates, Interpreter, StateDecl, Tensor, ValueId, Weight,
};
use loader_onnx::export::{ExportError, write, write_with};
use loader_onnx::{FileAccess, ImportOptions, OnnxModel};

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("loader-onnx-export-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11) % 64) as f32 / 32.0 - 0.97).collect()
}

fn weight(graph: &mut Graph, shape: &[usize]) -> ValueId {
    let values = numbers(shape.iter().product());
    graph.weight("w", Weight::stored(Tensor::from_slice(shape, &values).unwrap()))
}

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

fn inputs(graph: &Graph) -> Vec<Tensor> {
    let bindings = Bindings::new().with("batch", 2).with("tokens", 3);
    let make = |id: &ValueId| {
        let (dtype, shape) = graph.tensor_type(*id).unwrap();
        let shape: Vec<usize> = shape.iter().map(|dim| dim.eval(&bindings).unwrap()).collect();
        let values = numbers(shape.iter().product());
        match dtype {
            DType::F32 => Tensor::from_slice(&shape, &values).unwrap(),
            DType::I64 => {
                Tensor::from_slice(&shape, &values.iter().map(|x| (x.abs() * 3.0) as i64).collect::<Vec<_>>()).unwrap()
            }
            DType::U8 => {
                Tensor::from_slice(&shape, &values.iter().map(|x| (x.abs() * 200.0) as u8).collect::<Vec<_>>()).unwrap()
            }
            other => panic!("no input of {other}"),
        }
    };
    graph.inputs().iter().map(make).collect()
}

fn run(graph: Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let graph = Arc::new(graph);
    let mut states = HostStates::new(&graph, 1, &Bindings::new()).unwrap();
    Interpreter::new(graph).run(&mut states, inputs).unwrap()
}

fn assert_survives(graph: Graph, name: &str) {
    let folder = Folder::new(name);
    let path = folder.0.join("model.onnx");
    write(&graph, &path).unwrap();
    let again = OnnxModel::open(&path, FileAccess::Map).unwrap().graph(&ImportOptions::default()).unwrap();
    let names = |graph: &Graph, ids: &[ValueId]| ids.iter().map(|id| graph.value(*id).name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&graph, graph.inputs()), names(&again, again.inputs()));
    assert_eq!(names(&graph, graph.outputs()), names(&again, again.outputs()));
    let inputs = inputs(&graph);
    let text = again.to_text();
    let (expected, found) = (run(graph, &inputs), run(again, &inputs));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!((expected.dtype(), expected.shape()), (found.dtype(), found.shape()), "{text}");
        if expected.dtype() == DType::F32 {
            let (expected, found) = (expected.to_f32().unwrap(), found.to_f32().unwrap());
            for (x, y) in expected.iter().zip(&found) {
                assert!((x - y).abs() <= 1e-5 * x.abs().max(1.0), "{x} became {y}\n{text}");
            }
        } else {
            assert_eq!(expected.bytes(), found.bytes(), "{text}");
        }
    }
}

#[test]
fn a_transformer_survives() {
    let mut g = Graph::new("transformer");
    let ids = g.input("ids", DType::I64, &[sym("batch"), sym("tokens")]);
    let mask = g.input("mask", DType::F32, &[sym("batch"), 1.into(), 1.into(), sym("tokens")]);
    let table = weight(&mut g, &[5, 8]);
    let x = g.add("embed", Op::Gather(Gather::rows()), &[table, ids]).unwrap();
    let (w, b) = (weight(&mut g, &[8]), weight(&mut g, &[8]));
    let x = g.add("norm", Op::LayerNormalization(LayerNormalization { epsilon: 1e-5 }), &[x, w, b]).unwrap();
    let split = Op::Reshape(Reshape { shape: vec![sym("batch"), sym("tokens"), 4.into(), 2.into()] });
    let narrow = Op::Reshape(Reshape { shape: vec![sym("batch"), sym("tokens"), 2.into(), 2.into()] });
    let project = |g: &mut Graph, name: &str, n: usize, x, transpose_b: bool, shape: &Op| {
        let w = weight(g, &if transpose_b { [n, 8] } else { [8, n] });
        let y = g.add(name, Op::MatMul(MatMul { transpose_b }), &[x, w]).unwrap();
        g.add(name, shape.clone(), &[y]).unwrap()
    };
    let q = project(&mut g, "q", 8, x, true, &split);
    let k = project(&mut g, "k", 4, x, false, &narrow);
    let v = project(&mut g, "v", 4, x, true, &narrow);
    let attention = Op::TensorAttention(TensorAttention { scale: 0.5, causal: false, softcap: Some(20.0) });
    let y = g.add("attention", attention, &[q, k, v, mask]).unwrap();
    let causal = Op::TensorAttention(TensorAttention { scale: 1.0, causal: true, softcap: None });
    let z = g.add("causal", causal, &[q, k, v]).unwrap();
    let y = g.add("sum", Op::Binary(Binary::Add), &[y, z]).unwrap();
    let joined = Op::Reshape(Reshape { shape: vec![sym("batch").mul(sym("tokens")), 8.into()] });
    let y = g.add("joined", joined, &[y]).unwrap();
    let w = weight(&mut g, &[8]);
    let y = g.add("rms", Op::RmsNormalization(RmsNormalization { epsilon: 1e-6 }), &[y, w]).unwrap();
    let gated = Op::GatedActivation(GatedActivation { activation: Unary::Silu });
    let y = g.add("gated", gated, &[y, y]).unwrap();
    let extents =
        Op::ExtentValues(ExtentValues { dims: vec![sym("tokens").add(1.into()), sym("batch").mul(sym("tokens"))] });
    let extents = g.add("extents", extents, &[]).unwrap();
    g.output(y);
    g.output(extents);
    assert_survives(g, "transformer");
}

#[test]
fn a_convolutional_network_survives() {
    let mut g = Graph::new("images");
    let x = g.input("x", DType::F32, &[sym("batch"), 3.into(), 7.into(), 6.into()]);
    let (w, b) = (weight(&mut g, &[4, 3, 3, 3]), weight(&mut g, &[4]));
    let window = |pads: usize, stride: usize| Window {
        strides: vec![stride; 2],
        dilations: vec![1, 1],
        pads_begin: vec![pads; 2],
        pads_end: vec![pads; 2],
    };
    let y = g.add("conv", Op::Conv(Conv { window: window(1, 1), groups: 1 }), &[x, w, b]).unwrap();
    let y = g.add("norm", Op::GroupNormalization(GroupNormalization { groups: 2, epsilon: 1e-5 }), &[y]).unwrap();
    let clip = Unary::Clip { min: Scalar::new(0.0), max: Scalar::new(6.0) };
    let y = g.add("clip", Op::Unary(clip), &[y]).unwrap();
    let none = (Dim::Num(0), Dim::Num(0));
    let pads = vec![none.clone(), none, (1.into(), 0.into()), (2.into(), 1.into())];
    let y = g.add("pad", Op::Pad(Pad { pads, mode: PadMode::Reflect }), &[y]).unwrap();
    let pool = |kind| Pool {
        kind,
        kernel: vec![2, 2],
        window: window(0, 2),
        ceil_mode: false,
        indices: false,
        column_major: false,
    };
    let a = g.add("max", Op::Pool(pool(PoolKind::Max)), &[y]).unwrap();
    let mean = PoolKind::Average { count_include_pad: false };
    let b = g.add("mean", Op::Pool(pool(mean)), &[y]).unwrap();
    let y = g.add("join", Op::Concat(Concat { axis: 1 }), &[a, b]).unwrap();
    let y = g.add("move", Op::Transpose(Transpose { perm: vec![0, 2, 3, 1] }), &[y]).unwrap();
    let back = Slice { axis: 1, start: 2.into(), len: 3.into(), step: -1 };
    let y = g.add("back", Op::Slice(back), &[y]).unwrap();
    let y = g.add("total", Op::Reduce(Reduce { kind: ReduceKind::L2 }), &[y]).unwrap();
    g.output(y);
    assert_survives(g, "images");
}

#[test]
fn quantized_arithmetic_survives() {
    let mut g = Graph::new("quantized");
    let x = g.input("x", DType::U8, &[sym("batch"), 4.into()]);
    let bytes: Vec<i8> = (0..12).map(|i| i * 9 - 50).collect();
    let w = g.weight("w", Weight::stored(Tensor::from_slice(&[4, 3], &bytes).unwrap()));
    let zero = g.weight("zero", Weight::stored(Tensor::from_slice(&[], &[100u8]).unwrap()));
    let y = g.add_node("product", Op::MatMulInteger(MatMulInteger), vec![Some(x), Some(w), Some(zero)]).unwrap()[0];
    let y = g.add("cast", Op::Cast(Cast { to: DType::F32 }), &[y]).unwrap();
    let scales = g.weight("scales", Weight::stored(Tensor::from_slice(&[3], &[0.01f32, 0.02, 0.03]).unwrap()));
    let y = g.add("scaled", Op::Binary(Binary::Mul), &[y, scales]).unwrap();
    let per = DequantizeLinear { granularity: Granularity::Axis(1) };
    let w = g.add("dequantized", Op::DequantizeLinear(per), &[w, scales]).unwrap();
    let t = Op::MatMul(MatMul { transpose_b: true });
    let y = g.add("again", t, &[y, w]).unwrap();
    let scale = g.weight("scale", Weight::stored(Tensor::from_slice(&[], &[0.5f32]).unwrap()));
    let to = QuantizeLinear { granularity: Granularity::Tensor, to: DType::I8, saturate: true, bits: None };
    let y = g.add("quantized", Op::QuantizeLinear(to), &[y, scale]).unwrap();
    g.output(y);
    assert_survives(g, "quantized");
}

#[test]
fn choices_and_functions_survive() {
    let mut g = Graph::new("functions");
    let x = g.input("x", DType::F32, &[sym("batch"), sym("tokens"), 6.into()]);
    let half = g.weight("half", Weight::stored(Tensor::from_slice(&[], &[0.5f32]).unwrap()));
    let mut y = x;
    for unary in
        [Unary::Gelu, Unary::GeluTanh, Unary::Silu, Unary::GeluQuick, Unary::Mish, Unary::HardSwish, Unary::Erf]
    {
        y = g.add("f", Op::Unary(unary), &[y]).unwrap();
        y = g.add("shift", Op::Binary(Binary::Add), &[y, half]).unwrap();
    }
    let condition = g.add("less", Op::Binary(Binary::Less), &[x, y]).unwrap();
    let y = g.add("choice", Op::Where(Where), &[condition, x, y]).unwrap();
    let p = g.add("p", Op::Softmax(Softmax), &[y]).unwrap();
    let lower = g.add("lower", Op::Trilu(Trilu { upper: false, k: 1 }), &[p]).unwrap();
    let best = g.add_node("best", Op::TopK(TopK { k: 2 }), vec![Some(p)]).unwrap();
    let at = g.add("at", Op::ArgMax(ArgMax), &[p]).unwrap();
    let one = g.add("one", Op::Slice(Slice::range(1, 0, 1)), &[p]).unwrap();
    let wide =
        g.add("wide", Op::Expand(Expand { shape: vec![sym("batch"), sym("tokens"), 6.into()] }), &[one]).unwrap();
    for id in [lower, best[0], best[1], at, wide] {
        g.output(id);
    }
    assert_survives(g, "functions");
}

/// A weight in blocks of 32 with scales that repeat along each row so often.
fn blocks(graph: &mut Graph, format: BlockFormat, shape: [usize; 2], repeated: usize) -> ValueId {
    let bytes = format.block_bytes();
    let mut all = vec![0u8; shape[0] * shape[1] / 32 * bytes];
    for (i, block) in all.chunks_mut(bytes).enumerate() {
        let scale = half::f16::from_f32(0.01 * (1 + i / repeated) as f32);
        block[..2].copy_from_slice(&scale.to_le_bytes());
        block[2..].iter_mut().enumerate().for_each(|(j, byte)| *byte = (i * 31 + j * 47 + 5) as u8);
    }
    let tensor = Tensor::from_bytes(DType::Block(format), &shape, &all).unwrap();
    graph.weight("blocks", Weight::stored(tensor))
}

#[test]
fn weights_in_blocks_survive_bit_for_bit_with_as_few_scales_as_they_have() {
    for (format, repeated, group) in [
        (BlockFormat::Q4_0, 1, 32),
        (BlockFormat::Q4_0, 2, 64),
        (BlockFormat::Q4_0, 4, 128),
        (BlockFormat::Q8_0, 1, 32),
    ] {
        let mut g = Graph::new("blocks");
        let x = g.input("x", DType::F32, &[sym("batch"), 128.into()]);
        let ids = g.input("ids", DType::I64, &[sym("batch"), sym("tokens")]);
        let w = blocks(&mut g, format, [3, 128], repeated);
        let y = g.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
        let rows = g.add("rows", Op::Gather(Gather::rows()), &[w, ids]).unwrap();
        g.output(y);
        g.output(rows);
        let stored = g.weights().next().unwrap().1.to_tensor().unwrap();
        let folder = Folder::new(&format!("blocks-{format}-{group}"));
        let path = folder.0.join("model.onnx");
        write(&g, &path).unwrap();
        let model = OnnxModel::open(&path, FileAccess::Map).unwrap();
        assert_eq!(model.opset("com.microsoft"), Some(1));
        let scales: Vec<usize> = model
            .initializers()
            .filter(|(name, _)| name.ends_with("scale"))
            .map(|(_, data)| match data.unwrap() {
                loader_onnx::TensorData::Tensor(tensor) => tensor.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(scales, [3 * 128 / group]);
        let again = model.graph(&ImportOptions::default()).unwrap();
        let found: Vec<_> = again.weights().filter(|(_, weight)| weight.dtype().is_block()).collect();
        assert_eq!(found.len(), 2);
        for (_, weight) in found {
            assert_eq!(weight.to_tensor().unwrap().bytes(), stored.bytes(), "{format}, groups of {group}");
        }
        assert_survives(g, &format!("again-{format}-{group}"));
    }
}

#[test]
fn other_blocks_are_refused() {
    let mut g = Graph::new("blocks");
    let x = g.input("x", DType::F32, &[sym("batch"), 128.into()]);
    let w = blocks(&mut g, BlockFormat::Q5_0, [3, 128], 1);
    let y = g.add("y", Op::MatMul(MatMul { transpose_b: true }), &[x, w]).unwrap();
    g.output(y);
    let folder = Folder::new("other-blocks");
    let error = write(&g, &folder.0.join("model.onnx")).unwrap_err();
    assert!(matches!(error, ExportError::DType { .. }), "{error}");
    assert!(folder.names().is_empty());
}

#[test]
fn large_weights_go_to_a_file_beside_the_model() {
    let mut g = Graph::new("large");
    let x = g.input("x", DType::F32, &[sym("batch"), 64.into()]);
    let w = weight(&mut g, &[64, 32]);
    let y = g.add("y", Op::MatMul(MatMul { transpose_b: false }), &[x, w]).unwrap();
    g.output(y);
    let folder = Folder::new("large");
    let path = folder.0.join("model.onnx");
    write_with(&g, &path, 1024).unwrap();
    assert_eq!(folder.names(), ["model.onnx", "model.onnx.data"]);
    assert!(std::fs::metadata(&path).unwrap().len() < 1024);
    let again = OnnxModel::open(&path, FileAccess::Map).unwrap().graph(&ImportOptions::default()).unwrap();
    let inputs = inputs(&g);
    assert_eq!(run(g, &inputs)[0].bytes(), run(again, &inputs)[0].bytes());
}

#[test]
fn what_cannot_be_written_is_told_and_leaves_no_file() {
    let mut g = Graph::new("state");
    let row = vec![1, 4];
    let state = g.add_state(StateDecl { name: "k".into(), dtype: DType::F32, row, capacity: 8.into(), window: None });
    let x = g.input("x", DType::F32, &[sym("tokens"), 1.into(), 4.into()]);
    let (at, slots) = (g.input("at", DType::I32, &[sym("tokens")]), g.input("slots", DType::I32, &[sym("tokens")]));
    g.add("write", Op::StateWrite(core_tensor::op::StateWrite { state }), &[x, at, slots]).unwrap();
    let y = g.add("y", Op::Unary(Unary::Neg), &[x]).unwrap();
    g.output(y);
    let folder = Folder::new("state");
    let error = write(&g, &folder.0.join("model.onnx")).unwrap_err();
    assert!(matches!(error, ExportError::Node { .. }));
    assert_eq!(error.to_string(), "node \"write\" (StateWrite) cannot be written: states have no counterpart");
    assert!(folder.names().is_empty());
}
