//! Thousands of damaged models, made from small whole ones with a fixed seed: whatever they say, opening and importing them neither panics nor
//! takes memory out of proportion, and graphs that come out of it verify.

mod build;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use build::*;
use loader_onnx::proto::tensor_proto::DataType;
use loader_onnx::proto::*;
use loader_onnx::{ImportOptions, OnnxModel};

/// Counts what this thread holds, and its peak.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn count(grow: usize, shrink: usize) {
    let held = HELD.get().saturating_add(grow).saturating_sub(shrink);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting neither allocates nor unwinds (the
// cells are const-initialized and have no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// xorshift64*: the same mutations on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Bytes that break careless arithmetic: varints of edge values.
const EDGES: [&[u8]; 8] = [
    &[0],
    &[1],
    &[0x7f],
    &[0xff, 0xff, 0xff, 0xff, 0x07],
    &[0x80, 0x80, 0x80, 0x80, 0x08],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

fn mutate(base: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 | 2 => bytes[at] = random.next() as u8,
            3 => bytes[at] = random.below(12) as u8,
            4 => {
                let edge = EDGES[random.below(EDGES.len())];
                let end = if random.below(2) == 0 { at + 1 } else { (at + edge.len()).min(bytes.len()) };
                bytes.splice(at..end, edge.iter().copied());
            }
            5 => {
                let from = random.below(other.len());
                let piece = &other[from..(from + random.below(64)).min(other.len())];
                let end = (at + piece.len()).min(bytes.len());
                bytes.splice(at..end, piece.iter().copied());
            }
            6 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let piece = bytes[at..(at + random.below(48)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

fn ints(name: &str, all: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_proto::AttributeType::Ints as i32),
        ints: all.to_vec(),
        ..AttributeProto::default()
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_proto::AttributeType::Int as i32),
        i: Some(i),
        ..AttributeProto::default()
    }
}

fn graph(name: &str, body: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_proto::AttributeType::Graph as i32),
        g: Some(body),
        ..AttributeProto::default()
    }
}

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

fn i64s(name: &str, all: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
    raw(name, DataType::Int64, &[all.len() as i64], &bytes)
}

fn model(graph: GraphProto) -> Vec<u8> {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    let function = FunctionProto {
        name: Some("twice".into()),
        domain: Some("local".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![node("Add", &["a", "a"], &["b"])],
        opset_import: vec![opset("", 17)],
        ..FunctionProto::default()
    };
    bytes(&ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("local", 1), opset("com.microsoft", 1)],
        graph: Some(graph),
        functions: vec![function],
        ..ModelProto::default()
    })
}

/// Shape arithmetic, a convolution, pooling, a function.
fn image_model() -> Vec<u8> {
    let mut call = node("twice", &["p"], &["t"]);
    call.domain = Some("local".into());
    model(GraphProto {
        name: Some("image".into()),
        node: vec![
            with(node("Conv", &["x", "w"], &["c"]), vec![ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])]),
            with(node("MaxPool", &["c"], &["p"]), vec![ints("kernel_shape", &[2, 2]), int("ceil_mode", 1)]),
            call,
            with(node("Shape", &["t"], &["s"]), vec![int("start", 0), int("end", 1)]),
            with(node("Concat", &["s", "minus"], &["to"]), vec![int("axis", 0)]),
            node("Reshape", &["t", "to"], &["r"]),
            with(node("Transpose", &["r"], &["y"]), vec![ints("perm", &[1, 0])]),
            node("Slice", &["y", "from", "until"], &["z"]),
        ],
        initializer: vec![
            raw("w", DataType::Float, &[2, 1, 3, 3], &[0; 72]),
            i64s("minus", &[-1]),
            i64s("from", &[1]),
            i64s("until", &[-1]),
        ],
        input: vec![value("x", tensor_type(DataType::Float, &["batch", "1", "8", "8"]))],
        output: vec![value("z", tensor_type(DataType::Float, &["n", "batch"]))],
        ..GraphProto::default()
    })
}

/// A loop with a branch in it, reductions, gathers, quantization.
fn control_model() -> Vec<u8> {
    let branch = |op: &str| GraphProto {
        name: Some(op.into()),
        node: vec![node(op, &["acc"], &["o"])],
        output: vec![value("o", tensor_type(DataType::Float, &[]))],
        ..GraphProto::default()
    };
    let body = GraphProto {
        name: Some("body".into()),
        node: vec![
            node("ReduceMax", &["x"], &["top"]),
            node("Greater", &["top", "limit"], &["more"]),
            with(
                node("If", &["more"], &["next"]),
                vec![graph("then_branch", branch("Neg")), graph("else_branch", branch("Exp"))],
            ),
            node("Identity", &["go"], &["on"]),
            node("Gather", &["x", "i"], &["row"]),
        ],
        input: vec![
            value("i", tensor_type(DataType::Int64, &[])),
            value("go", tensor_type(DataType::Bool, &[])),
            value("acc", tensor_type(DataType::Float, &["4"])),
        ],
        output: vec![
            value("on", tensor_type(DataType::Bool, &[])),
            value("next", tensor_type(DataType::Float, &["4"])),
            value("row", tensor_type(DataType::Float, &["4"])),
        ],
        ..GraphProto::default()
    };
    model(GraphProto {
        name: Some("control".into()),
        node: vec![
            with(node("Loop", &["count", "", "start"], &["last", "rows"]), vec![graph("body", body)]),
            node("QuantizeLinear", &["rows", "scale"], &["q"]),
            node("DequantizeLinear", &["q", "scale"], &["d"]),
            node("MatMul", &["d", "x"], &["m"]),
            node("NonZero", &["m"], &["n"]),
            node("ReduceSum", &["m", "axes"], &["y"]),
        ],
        initializer: vec![
            i64s("count", &[3]),
            i64s("axes", &[-1]),
            raw("scale", DataType::Float, &[], &[0, 0, 128, 63]),
            raw("limit", DataType::Float, &[], &[0, 0, 128, 63]),
            raw("start", DataType::Float, &[4], &[0; 16]),
        ],
        input: vec![value("x", tensor_type(DataType::Float, &["4", "4"]))],
        output: vec![
            value("y", tensor_type(DataType::Float, &[])),
            value("last", tensor_type(DataType::Float, &["4"])),
            value("n", tensor_type(DataType::Int64, &["2", "k"])),
        ],
        ..GraphProto::default()
    })
}

/// The models that ONNX Runtime's operators are tested with, small ones.
fn microsoft_models() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/microsoft");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path.join("model.onnx")).ok()).collect()
}

fn survives(bytes: &[u8]) -> bool {
    PEAK.set(HELD.get());
    let before = HELD.get();
    let imported = OnnxModel::from_slice("mutant.onnx", bytes).and_then(|model| {
        model.initializers().for_each(drop);
        let _ = (model.inputs().is_ok(), model.outputs().is_ok());
        model.graph(&ImportOptions::default())
    });
    let grown = PEAK.get().saturating_sub(before);
    // Constants that are folded are bounded each; messages have their nodes.
    assert!(grown <= (64 << 20) + 400 * bytes.len(), "{grown} bytes held for a file of {}", bytes.len());
    match imported {
        Ok(graph) => {
            graph.verify().expect("an imported graph verifies");
            true
        }
        Err(error) => {
            assert!(error.to_string().starts_with("mutant.onnx: "), "{error}");
            false
        }
    }
}

fn damage(bases: &[Vec<u8>], rounds: usize, seed: u64) -> usize {
    for base in bases {
        assert!(survives(base), "the whole model is imported");
    }
    let mut random = Random(seed);
    let mut imported = 0;
    for _ in 0..rounds {
        let (base, other) = (&bases[random.below(bases.len())], &bases[random.below(bases.len())]);
        imported += usize::from(survives(&mutate(base, other, &mut random)));
    }
    imported
}

#[test]
fn damaged_models_end_in_errors_or_in_graphs_that_verify() {
    let imported = damage(&[bytes(&small_model()), image_model(), control_model()], 20_000, 0x9E37_79B9_7F4A_7C15);
    assert!(imported > 1000, "only {imported} mutants were imported: the mutations are too coarse");
}

#[test]
fn damaged_models_of_com_microsoft_end_in_errors_or_in_graphs_that_verify() {
    let imported = damage(&microsoft_models(), 8_000, 0xD1B5_4A32_D192_ED03);
    assert!(imported > 400, "only {imported} mutants were imported: the mutations are too coarse");
}
