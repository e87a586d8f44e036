//! What a model says about its inputs and outputs.

use std::fmt;

use core_tensor::DType;

use crate::error::Fault;
use crate::proto::type_proto::Value as TypeValue;
use crate::proto::{TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::dimension};
use crate::tensor;

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// What it is.
    pub ty: OnnxType,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnnxType {
    /// A tensor.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Extents, outermost first; `None` where not even their number is known.
        shape: Option<Vec<Extent>>,
    },
    /// A sequence of values of one type.
    Sequence(Box<OnnxType>),
    /// A value or none.
    Optional(Box<OnnxType>),
    /// A type that graphs cannot hold: strings, maps, sparse tensors, opaque types, numbers without dtype.
    Other(String),
    /// The model does not say.
    Unknown,
}

/// An extent as a model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extent {
    /// A number.
    Number(usize),
    /// A name.
    Named(String),
    /// Not declared.
    Unknown,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extent::Number(n) => write!(f, "{n}"),
            Extent::Named(name) => f.write_str(name),
            Extent::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for OnnxType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OnnxType::Tensor { dtype, shape: None } => write!(f, "{dtype}[...]"),
            OnnxType::Tensor { dtype, shape: Some(shape) } => {
                let extents: Vec<String> = shape.iter().map(Extent::to_string).collect();
                write!(f, "{dtype}[{}]", extents.join(", "))
            }
            OnnxType::Sequence(element) => write!(f, "sequence({element})"),
            OnnxType::Optional(element) => write!(f, "optional({element})"),
            OnnxType::Other(name) => f.write_str(name),
            OnnxType::Unknown => f.write_str("unknown"),
        }
    }
}

impl ValueInfo {
    pub(crate) fn new(proto: &ValueInfoProto) -> Result<ValueInfo, Fault> {
        let ty = proto.r#type.as_ref().map_or(Ok(OnnxType::Unknown), OnnxType::new)?;
        Ok(ValueInfo { name: proto.name().to_owned(), ty })
    }
}

impl OnnxType {
    /// What a type message says. Nesting is bounded by that of the message.
    pub(crate) fn new(proto: &TypeProto) -> Result<OnnxType, Fault> {
        Ok(match &proto.value {
            None => OnnxType::Unknown,
            Some(TypeValue::TensorType(tensor)) => {
                if tensor.elem_type() == 0 {
                    return Ok(OnnxType::Unknown);
                }
                match tensor::dtype(tensor.elem_type()) {
                    Ok(Some(dtype)) => OnnxType::Tensor { dtype, shape: tensor.shape.as_ref().map(shape).transpose()? },
                    Ok(None) => OnnxType::Other("string".into()),
                    Err(Fault::UnsupportedType { name }) => OnnxType::Other(name.into()),
                    Err(fault) => return Err(fault),
                }
            }
            Some(TypeValue::SequenceType(sequence)) => {
                OnnxType::Sequence(Box::new(element(sequence.elem_type.as_deref())?))
            }
            Some(TypeValue::OptionalType(optional)) => {
                OnnxType::Optional(Box::new(element(optional.elem_type.as_deref())?))
            }
            Some(TypeValue::MapType(_)) => OnnxType::Other("map".into()),
            Some(TypeValue::SparseTensorType(_)) => OnnxType::Other("sparse tensor".into()),
            Some(TypeValue::OpaqueType(_)) => OnnxType::Other("opaque".into()),
        })
    }
}

fn element(proto: Option<&TypeProto>) -> Result<OnnxType, Fault> {
    proto.map_or(Ok(OnnxType::Unknown), OnnxType::new)
}

fn shape(proto: &TensorShapeProto) -> Result<Vec<Extent>, Fault> {
    let extent = |value: &Option<dimension::Value>| match value {
        Some(dimension::Value::DimValue(n)) => match usize::try_from(*n) {
            Ok(n) if n <= isize::MAX as usize => Ok(Extent::Number(n)),
            // Old exporters write -1 where they mean nothing.
            _ if *n == -1 => Ok(Extent::Unknown),
            _ => Err(Fault::Extent { extent: *n }),
        },
        Some(dimension::Value::DimParam(name)) if !name.is_empty() && name != "?" => Ok(Extent::Named(name.clone())),
        _ => Ok(Extent::Unknown),
    };
    proto.dim.iter().map(|dim| extent(&dim.value)).collect()
}
