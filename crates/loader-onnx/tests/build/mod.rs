//! Models made in the tests.

#![allow(dead_code)] // each test uses some of it

use bytes::Bytes;
use loader_onnx::proto::tensor_proto::{DataLocation, DataType};
use loader_onnx::proto::*;
use prost::Message;

/// An entry of two strings.
pub(crate) fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
}

/// A tensor with raw bytes.
pub(crate) fn raw(name: &str, ty: DataType, dims: &[i64], bytes: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(ty as i32),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::copy_from_slice(bytes)),
        ..TensorProto::default()
    }
}

/// A tensor whose data are in another file.
pub(crate) fn external(name: &str, ty: DataType, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(ty as i32),
        dims: dims.to_vec(),
        data_location: Some(DataLocation::External as i32),
        external_data: entries.iter().map(|(key, value)| entry(key, value)).collect(),
        ..TensorProto::default()
    }
}

/// The type of a tensor; extents are numbers or names.
pub(crate) fn tensor_type(ty: DataType, extents: &[&str]) -> TypeProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = extents
        .iter()
        .map(|extent| {
            let value = match extent.parse() {
                Ok(n) => Value::DimValue(n),
                Err(_) => Value::DimParam((*extent).into()),
            };
            Dimension { value: Some(value), denotation: None }
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: Some(ty as i32), shape: Some(TensorShapeProto { dim }) };
    TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }
}

/// An input or output.
pub(crate) fn value(name: &str, ty: TypeProto) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
}

/// A node.
pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("{}_node", op.to_lowercase())),
        input: inputs.iter().map(|name| (*name).into()).collect(),
        output: outputs.iter().map(|name| (*name).into()).collect(),
        ..NodeProto::default()
    }
}

/// `y = x + w` with `w` stored, of opset 17.
pub(crate) fn small_model() -> ModelProto {
    let graph = GraphProto {
        name: Some("small".into()),
        node: vec![node("Add", &["x", "w"], &["y"])],
        initializer: vec![raw("w", DataType::Float, &[2], &[0, 0, 128, 63, 0, 0, 0, 64])],
        input: vec![value("x", tensor_type(DataType::Float, &["rows", "2"]))],
        output: vec![value("y", tensor_type(DataType::Float, &["rows", "2"]))],
        ..GraphProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        producer_name: Some("tests".into()),
        graph: Some(graph),
        metadata_props: vec![entry("author", "nobody")],
        ..ModelProto::default()
    }
}

/// The bytes of a model.
pub(crate) fn bytes(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}
