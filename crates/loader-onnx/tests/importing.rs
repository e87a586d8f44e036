//! What models become.

mod build;

use build::*;
use core_tensor::Bindings;
use loader_onnx::proto::tensor_proto::DataType;
use loader_onnx::proto::*;
use loader_onnx::{ImportOptions, OnnxError, OnnxModel};

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("local", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn import(model: &ModelProto, options: &ImportOptions) -> Result<String, OnnxError> {
    Ok(OnnxModel::from_slice("m.onnx", &bytes(model))?.graph(options)?.to_text())
}

fn text(model: &ModelProto) -> String {
    import(model, &ImportOptions::default()).unwrap()
}

fn error(model: &ModelProto) -> String {
    import(model, &ImportOptions::default()).unwrap_err().to_string()
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_proto::AttributeType::Int as i32),
        i: Some(i),
        ..AttributeProto::default()
    }
}

fn i64s(name: &str, all: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
    raw(name, DataType::Int64, &[all.len() as i64], &bytes)
}

fn floats(extents: &[&str]) -> TypeProto {
    tensor_type(DataType::Float, extents)
}

/// `x` split into heads as PyTorch writes it: by the extents that `x` turns out to have.
fn heads_model() -> ModelProto {
    let gather = |index: &str, output: &str| node("Gather", &["s", index], &[output]);
    let mut concat = node("Concat", &["b1", "t1", "heads", "each"], &["to"]);
    concat.attribute = vec![int("axis", 0)];
    model(GraphProto {
        name: Some("heads".into()),
        node: vec![
            node("Shape", &["x"], &["s"]),
            gather("zero", "b"),
            gather("one", "t"),
            node("Unsqueeze", &["b", "axis"], &["b1"]),
            node("Unsqueeze", &["t", "axis"], &["t1"]),
            concat,
            node("Reshape", &["x", "to"], &["y"]),
        ],
        initializer: vec![
            raw("zero", DataType::Int64, &[], &0i64.to_le_bytes()),
            raw("one", DataType::Int64, &[], &1i64.to_le_bytes()),
            i64s("axis", &[0]),
            i64s("heads", &[12]),
            i64s("each", &[-1]),
        ],
        input: vec![value("x", floats(&["batch", "tokens", "768"]))],
        output: vec![value("y", floats(&["batch", "tokens", "12", "64"]))],
        ..GraphProto::default()
    })
}

#[test]
fn arithmetic_on_shapes_becomes_extents_and_no_nodes() {
    assert_eq!(
        text(&heads_model()),
        "graph heads\n\
         input %0: f32[batch, tokens, 768]  // x\n\
         %1: f32[batch, tokens, 12, 64] = Reshape(%0) {shape=[batch, tokens, 12, 64]}  // y\n\
         output %1\n"
    );
}

#[test]
fn named_extents_can_be_fixed() {
    let options = ImportOptions { extents: Bindings::new().with("batch", 2), ..ImportOptions::default() };
    let text = import(&heads_model(), &options).unwrap();
    assert!(text.contains("input %0: f32[2, tokens, 768]") && text.contains("shape=[2, tokens, 12, 64]"), "{text}");
}

#[test]
fn all_operators_that_are_not_supported_are_listed_at_once() {
    let mut small = small_model();
    let mut other = node("Mystery", &["m"], &["n"]);
    other.domain = Some("com.example".into());
    small.opset_import.push(opset("com.example", 3));
    small.graph.as_mut().unwrap().node =
        vec![node("ImageDecoder", &["x"], &["a"]), node("Add", &["a", "w"], &["m"]), other.clone(), other];
    assert_eq!(
        error(&small),
        "m.onnx: 2 unsupported operators\n  node 'imagedecoder_node' (ImageDecoder of ai.onnx 17)\n  \
         node 'mystery_node' (Mystery of com.example 3), 2 nodes"
    );
}

#[test]
fn a_node_at_fault_is_named_with_its_operator_domain_and_opset() {
    let mut small = small_model();
    small.graph.as_mut().unwrap().initializer = vec![raw("w", DataType::Float, &[3], &[0; 12])];
    assert_eq!(
        error(&small),
        "m.onnx: node 'add_node' (Add of ai.onnx 17): Add: shapes [rows, 2] and [3] do not broadcast"
    );
    small.graph.as_mut().unwrap().node[0].input[1] = "nothing".into();
    assert_eq!(error(&small), "m.onnx: node 'add_node' (Add of ai.onnx 17): nothing gives its input 'nothing'");
}

fn call(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let mut node = node(name, inputs, outputs);
    node.domain = Some("local".into());
    node
}

fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        attribute: vec!["slope".into()],
        node: nodes,
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..FunctionProto::default()
    }
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let mut leaky = node("LeakyRelu", &["a"], &["b"]);
    leaky.attribute = vec![AttributeProto {
        name: Some("alpha".into()),
        ref_attr_name: Some("slope".into()),
        r#type: Some(attribute_proto::AttributeType::Float as i32),
        ..AttributeProto::default()
    }];
    let mut caller = call("leak", &["x"], &["y"]);
    caller.attribute = vec![AttributeProto {
        name: Some("slope".into()),
        r#type: Some(attribute_proto::AttributeType::Float as i32),
        f: Some(0.25),
        ..AttributeProto::default()
    }];
    let mut small = small_model();
    small.opset_import.push(opset("local", 1));
    small.functions = vec![function("leak", vec![leaky])];
    small.graph.as_mut().unwrap().node = vec![caller];
    let text = text(&small);
    assert!(text.contains("%1: f32[rows, 2] = LeakyRelu(%0) {alpha=0.25}"), "{text}");
}

#[test]
fn functions_that_call_themselves_and_that_multiply_are_refused() {
    let mut small = small_model();
    small.opset_import.push(opset("local", 1));
    small.graph.as_mut().unwrap().node = vec![call("f", &["x"], &["y"])];
    small.functions =
        vec![function("f", vec![call("g", &["a"], &["b"])]), function("g", vec![call("f", &["a"], &["b"])])];
    assert_eq!(error(&small), "m.onnx: function 'f': it calls itself, by way of g, f");

    // Each calls the next one four times: 4^30 nodes.
    let level = |i: usize| {
        let next = format!("f{}", i + 1);
        let mut nodes: Vec<NodeProto> = (0..3).map(|j| call(&next, &["a"], &[&format!("t{j}")])).collect();
        nodes.push(call(&next, &["a"], &["b"]));
        function(&format!("f{i}"), nodes)
    };
    small.functions = (0..30).map(level).collect();
    small.functions.push(function("f30", vec![node("Identity", &["a"], &["b"])]));
    small.graph.as_mut().unwrap().node = vec![call("f0", &["x"], &["y"])];
    assert_eq!(error(&small), "m.onnx: model: its functions expand to more than 2000000 nodes");
}

#[test]
fn what_lies_too_deep_is_refused_before_the_stack_ends() {
    let mut small = small_model();
    small.opset_import.push(opset("local", 1));
    small.functions =
        (0..200).map(|i| function(&format!("f{i}"), vec![call(&format!("f{}", i + 1), &["a"], &["b"])])).collect();
    small.functions.push(function("f200", vec![node("Identity", &["a"], &["b"])]));
    small.graph.as_mut().unwrap().node = vec![call("f0", &["x"], &["y"])];
    assert!(error(&small).contains("lie more than 40 deep in each other"), "{}", error(&small));
}

#[test]
fn constants_that_would_grow_are_not_folded() {
    let mut small = small_model();
    let graph = small.graph.as_mut().unwrap();
    graph.initializer.push(i64s("huge", &[1 << 20, 1 << 20]));
    graph.node = vec![node("Expand", &["one", "huge"], &["y"])];
    graph.initializer.push(raw("one", DataType::Float, &[], &1f32.to_le_bytes()));
    let text = text(&small);
    assert!(text.contains("Expand(%1) {shape=[1048576, 1048576]}"), "{text}");
}

#[test]
fn extents_that_double_with_each_node_are_refused() {
    let mut small = small_model();
    let graph = small.graph.as_mut().unwrap();
    let join = |from: &str, to: &str| {
        let mut node = node("Concat", &[from, from], &[to]);
        node.attribute = vec![int("axis", 0)];
        node
    };
    graph.node = (0..40).map(|i| join(&format!("t{i}"), &format!("t{}", i + 1))).collect();
    graph.node.insert(0, node("Relu", &["x"], &["t0"]));
    graph.node.push(node("Relu", &["t40"], &["y"]));
    assert!(error(&small).contains("expressions of too many terms"), "{}", error(&small));
}
