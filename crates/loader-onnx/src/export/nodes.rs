//! The model under construction: names, nodes, initializers.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use core_tensor::{DType, Graph, Node, Tensor, ValueId, ValueSource, Weight};

use super::ExportError;
use super::content::{Blocks, Content};
use crate::proto::{AttributeProto, NodeProto, attribute_proto::AttributeType, tensor_proto::DataType};

/// A constant of the model.
pub(super) struct Initializer {
    pub(super) name: String,
    pub(super) content: Content,
}

/// The model under construction.
pub(super) struct Writer<'a> {
    pub(super) graph: &'a Graph,
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<Initializer>,
    names: Vec<Option<String>>,
    taken: HashSet<String>,
    /// Small constants by their bytes, so that each is written once.
    constants: HashMap<(DType, Vec<usize>, Vec<u8>), String>,
    /// Extents that were computed, by their text.
    pub(super) dims: HashMap<String, String>,
    /// Whether operators of onnxruntime's own were written.
    pub(super) microsoft: bool,
    /// Weights that were taken apart, by their names: each is written once.
    apart: HashMap<String, String>,
    /// Scales that were made floats, by the name of what these are made from.
    floats: HashMap<String, String>,
    /// The node that is written now, for messages.
    pub(super) at: Option<&'a Node>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(graph: &'a Graph) -> Writer<'a> {
        let mut writer = Writer {
            graph,
            nodes: Vec::new(),
            initializers: Vec::new(),
            names: vec![None; graph.values().len()],
            taken: HashSet::new(),
            constants: HashMap::new(),
            dims: HashMap::new(),
            microsoft: false,
            apart: HashMap::new(),
            floats: HashMap::new(),
            at: None,
        };
        // The interface keeps its names.
        for id in graph.inputs().iter().chain(graph.outputs()) {
            if writer.names[id.index()].is_none() {
                let name = writer.fresh(&graph.value(*id).name);
                writer.names[id.index()] = Some(name);
            }
        }
        writer
    }

    /// A name that no value has, like the one wished for.
    pub(super) fn fresh(&mut self, wish: &str) -> String {
        let wish = if wish.is_empty() { "value" } else { wish };
        let mut name = wish.to_owned();
        let mut count = 0usize;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{wish}_{count}");
        }
        name
    }

    /// The name of a value; weights are written when they are first asked for.
    pub(super) fn name(&mut self, id: ValueId) -> String {
        if let Some(name) = &self.names[id.index()] {
            return name.clone();
        }
        let value = self.graph.value(id);
        let name = self.fresh(&value.name);
        if let ValueSource::Weight(weight) = &value.source {
            self.initializers.push(Initializer { name: name.clone(), content: Content::Weight(weight.clone()) });
        }
        self.names[id.index()] = Some(name.clone());
        name
    }

    /// Whether a weight is an output of the graph, whose name is taken before it is written.
    pub(super) fn write_output_weights(&mut self) {
        for id in self.graph.outputs() {
            let Some(weight) = self.graph.weight_of(*id) else { continue };
            let name = self.name(*id);
            if !self.initializers.iter().any(|known| known.name == name) {
                self.initializers.push(Initializer { name, content: Content::Weight(weight.clone()) });
            }
        }
    }

    /// A constant.
    pub(super) fn constant(&mut self, tensor: Tensor) -> String {
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.fresh("constant");
        self.initializers.push(Initializer { name: name.clone(), content: Content::Weight(Weight::stored(tensor)) });
        self.constants.insert(key, name.clone());
        name
    }

    /// A part of a weight in blocks, which is written once in each shape.
    pub(super) fn part(&mut self, name: &str, part: Blocks) -> String {
        let key = format!("{name} {:?}", part.shape());
        if let Some(known) = self.apart.get(&key) {
            return known.clone();
        }
        let name = self.fresh(name);
        self.initializers.push(Initializer { name: name.clone(), content: Content::Blocks(part) });
        self.apart.insert(key, name.clone());
        name
    }

    /// A constant of f16 as f32.
    pub(super) fn floats(&mut self, halves: &str) -> String {
        if let Some(known) = self.floats.get(halves) {
            return known.clone();
        }
        let name = self.fresh(&format!("{halves}.f32"));
        self.node("Cast", &[halves], &[&name], vec![int("to", i64::from(DataType::Float as i32))]);
        self.floats.insert(halves.to_owned(), name.clone());
        name
    }

    /// A constant vector of i64.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<String, ExportError> {
        let tensor = Tensor::from_slice(&[values.len()], values).map_err(|error| self.refuse(error.to_string()))?;
        Ok(self.constant(tensor))
    }

    /// A constant f32.
    pub(super) fn float(&mut self, value: f32) -> Result<String, ExportError> {
        let tensor = Tensor::from_slice(&[], &[value]).map_err(|error| self.refuse(error.to_string()))?;
        Ok(self.constant(tensor))
    }

    /// Adds a node; an empty name in `inputs` stands for an input that is left out.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) {
        let mut inputs: Vec<String> = inputs.iter().map(|name| (*name).to_owned()).collect();
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.nodes.push(NodeProto {
            input: inputs,
            output: outputs.iter().map(|name| (*name).to_owned()).collect(),
            name: Some(format!("{op}_{}", self.nodes.len())),
            op_type: Some(op.to_owned()),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    /// Adds a node with a result that only other added nodes read.
    pub(super) fn step(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let wish = self.at.map_or_else(|| op.to_owned(), |node| format!("{}.{op}", node.name));
        let name = self.fresh(&wish);
        self.node(op, inputs, &[&name], attributes);
        name
    }

    /// That the current node cannot be written.
    pub(super) fn refuse(&self, reason: impl Into<String>) -> ExportError {
        let (node, op) = self.at.map_or(("", "the model"), |node| (node.name.as_str(), node.op.name()));
        ExportError::Node { node: node.to_owned(), op, reason: reason.into() }
    }
}

/// ONNX's number for a dtype.
pub(super) fn data_type(dtype: DType) -> Option<i32> {
    Some(match dtype {
        DType::F64 => DataType::Double,
        DType::F32 => DataType::Float,
        DType::F16 => DataType::Float16,
        DType::BF16 => DataType::Bfloat16,
        DType::F8E4M3 => DataType::Float8e4m3fn,
        DType::F8E5M2 => DataType::Float8e5m2,
        DType::I8 => DataType::Int8,
        DType::I16 => DataType::Int16,
        DType::I32 => DataType::Int32,
        DType::I64 => DataType::Int64,
        DType::U8 => DataType::Uint8,
        DType::U16 => DataType::Uint16,
        DType::U32 => DataType::Uint32,
        DType::U64 => DataType::Uint64,
        DType::I4 => DataType::Int4,
        DType::U4 => DataType::Uint4,
        DType::Bool => DataType::Bool,
        _ => return None,
    } as i32)
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(ty as i32), ..AttributeProto::default() }
}

/// An attribute that is an integer.
pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// An attribute that is a float.
pub(super) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// An attribute that is a text.
pub(super) fn text(name: &str, value: &'static str) -> AttributeProto {
    AttributeProto { s: Some(Bytes::from_static(value.as_bytes())), ..attribute(name, AttributeType::String) }
}

/// An attribute that is a list of integers.
pub(super) fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> AttributeProto {
    AttributeProto { ints: values.into_iter().collect(), ..attribute(name, AttributeType::Ints) }
}
