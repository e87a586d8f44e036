//! Opening a model, and what it says about itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use core_tensor::{FileAccess, FileBytes};
use prost::Message;

use crate::error::{Fault, OnnxError, Subject};
use crate::external::ExternalFiles;
use crate::function::Functions;
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto};
use crate::tensor::{TensorData, TensorReader};
use crate::value_info::ValueInfo;

/// The oldest version of the standard operators that is imported.
pub const MIN_OPSET: i64 = 6;
/// The newest version of the standard operators that is known. Newer models are imported as if they asked for this one.
pub const MAX_OPSET: i64 = 25;

/// An ONNX model: the message as it lies in the file, checked as a whole.
///
/// Weights stay where they are; [`OnnxModel::graph`] makes the graph.
#[derive(Debug)]
pub struct OnnxModel {
    pub(crate) file: Arc<FileBytes>,
    pub(crate) proto: ModelProto,
    pub(crate) external: ExternalFiles,
    pub(crate) opsets: BTreeMap<String, i64>,
    pub(crate) functions: Functions,
}

/// `ai.onnx` has two names, of which the other is nothing.
pub(crate) fn domain_name(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// A file's bytes as their reader's.
pub(crate) struct Shared(pub(crate) Arc<FileBytes>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl OnnxModel {
    /// Opens a model. Files with external data are looked for beside it, and opened when they are needed.
    ///
    /// # Errors
    /// When the file cannot be had, is no ONNX model, or uses versions that are too old.
    pub fn open(path: impl AsRef<Path>, access: FileAccess) -> Result<OnnxModel, OnnxError> {
        let path = path.as_ref();
        OnnxModel::new(FileBytes::open(path, access)?, ExternalFiles::beside(path, access))
    }

    /// Reads a model from memory, under a name for messages. It can have no external data.
    ///
    /// # Errors
    /// As [`OnnxModel::open`].
    pub fn from_slice(name: &str, bytes: &[u8]) -> Result<OnnxModel, OnnxError> {
        OnnxModel::new(FileBytes::from_slice(name, bytes)?, ExternalFiles::none())
    }

    fn new(file: Arc<FileBytes>, external: ExternalFiles) -> Result<OnnxModel, OnnxError> {
        let mut bytes = Bytes::from_owner(Shared(file.clone()));
        let proto = ModelProto::decode(&mut bytes).map_err(|source| OnnxError::Decode {
            path: file.path().to_owned(),
            offset: (file.len() - bytes.remaining()) as u64,
            source,
        })?;
        let path = file.path();
        let wrong = |fault| OnnxError::malformed(path, Subject::Model, fault);
        if proto.graph.is_none() {
            return Err(wrong(Fault::Missing("graph")));
        }
        match proto.ir_version {
            None => return Err(wrong(Fault::Missing("IR version"))),
            Some(found) if found < 3 => return Err(wrong(Fault::IrVersion { found })),
            Some(_) => {}
        }
        let opsets = opsets(&proto.opset_import).map_err(wrong)?;
        // A model of functions and other domains alone needs no standard operators.
        if opsets.is_empty() {
            return Err(wrong(Fault::Missing("operator set")));
        }
        let functions = Functions::new(path, &proto)?;
        Ok(OnnxModel { file, proto, external, opsets, functions })
    }

    /// The file's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The message as it lies in the file.
    #[must_use]
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The graph's message.
    pub(crate) fn main_graph(&self) -> Result<&GraphProto, OnnxError> {
        let missing = || OnnxError::malformed(self.path(), Subject::Model, Fault::Missing("graph"));
        self.proto.graph.as_ref().ok_or_else(missing)
    }

    /// The version of the format.
    #[must_use]
    pub fn ir_version(&self) -> i64 {
        self.proto.ir_version()
    }

    /// The version of a domain's operators that the model asks for; `ai.onnx` (or nothing) is the standard domain.
    #[must_use]
    pub fn opset(&self, domain: &str) -> Option<i64> {
        self.opsets.get(domain_name(domain)).copied()
    }

    /// All domains and the versions of their operators; the standard domain is `ai.onnx`.
    pub fn opsets(&self) -> impl Iterator<Item = (&str, i64)> {
        self.opsets.iter().map(|(domain, version)| (if domain.is_empty() { "ai.onnx" } else { &**domain }, *version))
    }

    /// The program that wrote the model, and its version.
    #[must_use]
    pub fn producer(&self) -> (&str, &str) {
        (self.proto.producer_name(), self.proto.producer_version())
    }

    /// Keys and values that the model's maker added.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.proto.metadata_props.iter().map(|entry| (entry.key(), entry.value()))
    }

    /// The value of a metadata key.
    #[must_use]
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.metadata().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// The inputs that a run takes: those that no initializer gives.
    ///
    /// # Errors
    /// When a declared type is no type.
    pub fn inputs(&self) -> Result<Vec<ValueInfo>, OnnxError> {
        let graph = self.main_graph()?;
        let given: std::collections::HashSet<&str> = graph
            .initializer
            .iter()
            .map(|tensor| tensor.name())
            .chain(graph.sparse_initializer.iter().filter_map(|sparse| Some(sparse.values.as_ref()?.name())))
            .collect();
        self.value_infos(graph.input.iter().filter(|input| !given.contains(input.name())))
    }

    /// The outputs that a run gives.
    ///
    /// # Errors
    /// When a declared type is no type.
    pub fn outputs(&self) -> Result<Vec<ValueInfo>, OnnxError> {
        self.value_infos(self.main_graph()?.output.iter())
    }

    fn value_infos<'a>(&self, protos: impl Iterator<Item = &'a ValueInfoProto>) -> Result<Vec<ValueInfo>, OnnxError> {
        let wrong = |name: &str, fault| OnnxError::malformed(self.path(), Subject::Value(name.to_owned()), fault);
        protos.map(|proto| ValueInfo::new(proto).map_err(|fault| wrong(proto.name(), fault))).collect()
    }

    /// The tensors that the graph stores, with their names. Numbers stay in the file.
    pub fn initializers(&self) -> impl Iterator<Item = (&str, Result<TensorData, OnnxError>)> {
        let tensors = self.proto.graph.iter().flat_map(|graph| &graph.initializer);
        tensors.map(|proto| {
            let wrong = |fault| OnnxError::malformed(self.path(), Subject::Tensor(proto.name().to_owned()), fault);
            (proto.name(), self.tensors().read(proto).map_err(wrong))
        })
    }

    /// Reads the model's tensors.
    pub(crate) fn tensors(&self) -> TensorReader<'_> {
        TensorReader { file: &self.file, external: &self.external }
    }
}

/// Domain → version, checked.
pub(crate) fn opsets(imports: &[OperatorSetIdProto]) -> Result<BTreeMap<String, i64>, Fault> {
    let mut opsets = BTreeMap::new();
    for import in imports {
        let (domain, found) = (domain_name(import.domain()), import.version());
        let shown = || if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() };
        let oldest = if domain.is_empty() { MIN_OPSET } else { 1 };
        if found < oldest {
            return Err(Fault::OpsetVersion { domain: shown(), found, oldest });
        }
        match opsets.insert(domain.to_owned(), found) {
            Some(other) if other != found => return Err(Fault::Twice { what: "domain", name: shown() }),
            _ => {}
        }
    }
    Ok(opsets)
}
