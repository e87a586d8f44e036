//! Files that hold one value: `input_0.pb` and `output_0.pb` beside test models.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use core_tensor::{FileAccess, FileBytes};
use prost::Message;

use crate::error::{Fault, OnnxError, Subject};
use crate::external::ExternalFiles;
use crate::model::Shared;
use crate::proto::{OptionalProto, SequenceProto, TensorProto};
use crate::tensor::{TensorData, TensorReader};
use crate::value_info::OnnxType;

/// A value from a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Data {
    /// A tensor.
    Tensor(TensorData),
    /// A sequence.
    Sequence(Vec<Data>),
    /// A value or none.
    Optional(Option<Box<Data>>),
}

impl Data {
    /// Reads a file that holds one value of this type (such files do not say themselves whether they hold a tensor or a sequence).
    ///
    /// # Errors
    /// When the file cannot be had, or holds no such value.
    pub fn open(path: impl AsRef<Path>, ty: &OnnxType) -> Result<Data, OnnxError> {
        Data::read(&FileBytes::open(path.as_ref(), FileAccess::Read)?, ty)
    }

    /// Reads the bytes of such a file.
    ///
    /// # Errors
    /// When they hold no such value.
    pub fn read(file: &Arc<FileBytes>, ty: &OnnxType) -> Result<Data, OnnxError> {
        let external = ExternalFiles::none();
        let reader = TensorReader { file, external: &external };
        let wrong = |fault| OnnxError::malformed(file.path(), Subject::Value(String::new()), fault);
        match ty {
            OnnxType::Sequence(_) => sequence(reader, &decode::<SequenceProto>(file)?).map_err(wrong),
            OnnxType::Optional(_) => optional(reader, &decode::<OptionalProto>(file)?).map_err(wrong),
            _ => {
                let proto = decode::<TensorProto>(file)?;
                reader
                    .read(&proto)
                    .map(Data::Tensor)
                    .map_err(|fault| OnnxError::malformed(file.path(), Subject::Tensor(proto.name().to_owned()), fault))
            }
        }
    }
}

fn decode<M: Message + Default>(file: &Arc<FileBytes>) -> Result<M, OnnxError> {
    let mut bytes = Bytes::from_owner(Shared(file.clone()));
    M::decode(&mut bytes).map_err(|source| {
        let offset = (file.len() - bytes.remaining()) as u64;
        OnnxError::Decode { path: file.path().to_owned(), offset, source }
    })
}

fn sequence(reader: TensorReader<'_>, proto: &SequenceProto) -> Result<Data, Fault> {
    let mut all = Vec::new();
    for tensor in &proto.tensor_values {
        all.push(Data::Tensor(reader.read(tensor)?));
    }
    for inner in &proto.sequence_values {
        all.push(sequence(reader, inner)?);
    }
    for inner in &proto.optional_values {
        all.push(optional(reader, inner)?);
    }
    if !proto.sparse_tensor_values.is_empty() || !proto.map_values.is_empty() {
        return Err(Fault::ValueType("a sequence of maps or sparse tensors".into()));
    }
    Ok(Data::Sequence(all))
}

fn optional(reader: TensorReader<'_>, proto: &OptionalProto) -> Result<Data, Fault> {
    if proto.map_value.is_some() || proto.sparse_tensor_value.is_some() {
        return Err(Fault::ValueType("an optional map or sparse tensor".into()));
    }
    let value = match proto {
        OptionalProto { tensor_value: Some(tensor), .. } => Some(Data::Tensor(reader.read(tensor)?)),
        OptionalProto { sequence_value: Some(inner), .. } => Some(sequence(reader, inner)?),
        OptionalProto { optional_value: Some(inner), .. } => Some(optional(reader, inner)?),
        _ => None,
    };
    Ok(Data::Optional(value.map(Box::new)))
}
