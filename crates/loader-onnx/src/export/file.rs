//! The files: the model, and its weights beside it where they are large.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use core_tensor::{Dim, Graph, PartialFile, ValueId};
use prost::Message;

use super::content::Content;
use super::microsoft::DOMAIN;
use super::nodes::{Writer, data_type};
use super::{ExportError, IR_VERSION, OPSET};
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto, type_proto,
};

/// Weights of more bytes go to a file of their own: a protobuf message must stay below 2 GiB.
pub const EXTERNAL_ABOVE: u64 = 1 << 30;

/// Weights of fewer bytes stay in the model in any case.
const SMALL: usize = 1024;

/// Where data in the external file begin: a page, so that it can be mapped.
const ALIGNMENT: u64 = 4096;

/// Bytes that are held at once while a weight is written.
const CHUNK: usize = 1 << 20;

pub(super) fn write(graph: &Graph, path: &Path, external_above: u64) -> Result<(), ExportError> {
    let mut writer = Writer::new(graph);
    writer.write_nodes()?;
    let total: u64 = writer.initializers.iter().map(|constant| constant.content.byte_len() as u64).sum();
    let mut data = match total > external_above {
        true => Some(Data::create(path)?),
        false => None,
    };
    let mut initializers = Vec::with_capacity(writer.initializers.len());
    for constant in &writer.initializers {
        initializers.push(tensor(&constant.name, &constant.content, &mut data)?);
    }
    let input = value_infos(&mut writer, graph.inputs())?;
    let output = value_infos(&mut writer, graph.outputs())?;
    let mut opset_import = vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }];
    if writer.microsoft {
        opset_import.push(OperatorSetIdProto { domain: Some(DOMAIN.into()), version: Some(1) });
    }
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import,
        producer_name: Some("polaris".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            node: writer.nodes,
            name: Some(if graph.name().is_empty() { "graph".into() } else { graph.name().to_owned() }),
            initializer: initializers,
            input,
            output,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let failed = |source| ExportError::Io { path: path.to_owned(), source };
    let mut file = PartialFile::create(path).map_err(failed)?;
    file.write_all(&model.encode_to_vec()).map_err(failed)?;
    // The model last: it names the weights' file.
    data.map_or(Ok(()), Data::finish)?;
    file.finish().map_err(failed)
}

/// The path with more at its end.
fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

fn value_infos(writer: &mut Writer<'_>, ids: &[ValueId]) -> Result<Vec<ValueInfoProto>, ExportError> {
    ids.iter().map(|id| value_info(writer, *id)).collect()
}

fn value_info(writer: &mut Writer<'_>, id: ValueId) -> Result<ValueInfoProto, ExportError> {
    let name = writer.name(id);
    let Some((dtype, shape)) = writer.graph.tensor_type(id) else {
        return Err(writer.refuse(format!("{name:?} is a state")));
    };
    let elem_type = data_type(dtype).ok_or_else(|| ExportError::DType { value: name.clone(), dtype })?;
    let dim = shape.iter().map(|dim| {
        let value = match dim {
            Dim::Num(n) => dimension::Value::DimValue(i64::try_from(*n).unwrap_or(i64::MAX)),
            Dim::Sym(_) | Dim::Expr(_) => dimension::Value::DimParam(dim.to_string()),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    });
    let shape = TensorShapeProto { dim: dim.collect() };
    let tensor = type_proto::Tensor { elem_type: Some(elem_type), shape: Some(shape) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    Ok(ValueInfoProto { name: Some(name), r#type: Some(ty), ..ValueInfoProto::default() })
}

fn tensor(name: &str, content: &Content, data: &mut Option<Data>) -> Result<TensorProto, ExportError> {
    let dtype = content.dtype();
    let data_type = data_type(dtype).ok_or_else(|| ExportError::DType { value: name.to_owned(), dtype })?;
    let failed = |source| ExportError::Weight { name: name.to_owned(), source };
    let mut proto = TensorProto {
        dims: content.shape().iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect(),
        data_type: Some(data_type),
        name: Some(name.to_owned()),
        ..TensorProto::default()
    };
    match data {
        Some(data) if content.byte_len() > SMALL => {
            let offset = data.align()?;
            let (rows, row_bytes) = content.rows();
            let step = (CHUNK / row_bytes.max(1)).clamp(1, rows.max(1));
            let mut row = 0;
            while row < rows {
                let end = (row + step).min(rows);
                data.write(&content.bytes(row..end).map_err(failed)?)?;
                content.release(row..end);
                row = end;
            }
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            proto.data_location = Some(tensor_proto::DataLocation::External as i32);
            proto.external_data = vec![
                entry("location", data.location.clone()),
                entry("offset", offset.to_string()),
                entry("length", content.byte_len().to_string()),
            ];
        }
        _ => {
            let bytes = content.bytes(0..content.rows().0).map_err(failed)?;
            proto.raw_data = Some(Bytes::from(bytes.into_owned()));
        }
    }
    Ok(proto)
}

/// The file of weights.
struct Data {
    file: BufWriter<PartialFile>,
    path: PathBuf,
    /// Its name, as the model has it.
    location: String,
    len: u64,
}

impl Data {
    fn create(model: &Path) -> Result<Data, ExportError> {
        let path = beside(model, ".data");
        let location = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = PartialFile::create(&path).map_err(|source| ExportError::Io { path: path.clone(), source })?;
        Ok(Data { file: BufWriter::new(file), path, location, len: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.len += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| ExportError::Io { path: self.path.clone(), source })
    }

    /// Fills up to where the next tensor begins.
    fn align(&mut self) -> Result<u64, ExportError> {
        let offset = self.len.next_multiple_of(ALIGNMENT);
        let gap = usize::try_from(offset - self.len).unwrap_or(0);
        self.write(&vec![0; gap])?;
        Ok(offset)
    }

    fn finish(self) -> Result<(), ExportError> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(PartialFile::finish).map_err(|source| ExportError::Io { path: self.path, source })
    }
}
