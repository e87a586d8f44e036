//! What can be wrong with a model, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use core_tensor::{FileError, GraphError, TensorError};

/// Everything that importing ONNX can end in. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file's bytes could not be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// The bytes are no protobuf message, or not that of a model.
    #[error("{path}: at byte {offset}: {source}{}", if *offset == 0 { " (is this an ONNX file?)" } else { "" })]
    Decode {
        /// The file.
        path: PathBuf,
        /// How far the message was read: the fault lies in the field that ends here.
        offset: u64,
        /// What is wrong.
        source: prost::DecodeError,
    },
    /// The message is that of a model, but breaks a rule of the format.
    #[error("{path}: {subject}: {fault}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The part at fault.
        subject: Subject,
        /// What is wrong.
        fault: Box<Fault>,
    },
    /// The model uses operators that cannot be imported: all of them, each once.
    #[error("{path}: {}", list(operators))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The operators.
        operators: Vec<UnsupportedOperator>,
    },
    /// A node cannot be imported: its inputs or attributes are wrong, or are not supported.
    #[error("{path}: {at}: {reason}")]
    Node {
        /// The file.
        path: PathBuf,
        /// The node.
        at: Box<NodePlace>,
        /// What is wrong.
        reason: String,
    },
    /// The imported graph does not hold together.
    #[error("{path}: {source}")]
    Graph {
        /// The file.
        path: PathBuf,
        /// Why.
        source: GraphError,
    },
}

/// A node, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// Its name, or the name of its first output where it has none.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The operator's domain; `ai.onnx` for the standard one.
    pub domain: String,
    /// The version of the domain's operators that the model asks for.
    pub opset: i64,
}

impl fmt::Display for NodePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodePlace { node, operator, domain, opset } = self;
        write!(f, "node '{}' ({} of {} {opset})", node.escape_debug(), operator.escape_debug(), domain.escape_debug())
    }
}

/// An operator that cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedOperator {
    /// The first node that uses it.
    pub at: NodePlace,
    /// How many nodes use it.
    pub nodes: usize,
}

fn list(operators: &[UnsupportedOperator]) -> String {
    let mut text = format!("{} unsupported operator{}", operators.len(), if operators.len() == 1 { "" } else { "s" });
    for operator in operators {
        let nodes = operator.nodes;
        text += &format!("\n  {}{}", operator.at, if nodes > 1 { format!(", {nodes} nodes") } else { String::new() });
    }
    text
}

/// The part of a model that a fault belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// The model as a whole.
    Model,
    /// A graph, or one within a node.
    Graph(String),
    /// A tensor.
    Tensor(String),
    /// A value: an input or output.
    Value(String),
    /// A function of the model.
    Function(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Model => f.write_str("model"),
            Subject::Graph(name) => write!(f, "graph '{}'", name.escape_debug()),
            Subject::Tensor(name) => write!(f, "tensor '{}'", name.escape_debug()),
            Subject::Value(name) => write!(f, "value '{}'", name.escape_debug()),
            Subject::Function(name) => write!(f, "function '{}'", name.escape_debug()),
        }
    }
}

/// What is wrong with a part of a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A part that must be there is not.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// The version of the format is too old.
    #[error("IR version {found} is too old (3, of ONNX 1.0, is the oldest)")]
    IrVersion {
        /// The version.
        found: i64,
    },
    /// The version of the operators is too old.
    #[error(
        "it uses version {found} of the operators of {domain}; {oldest} is the oldest supported \
         (onnx.version_converter brings it up to date)"
    )]
    OpsetVersion {
        /// The domain.
        domain: String,
        /// The version.
        found: i64,
        /// The oldest supported one.
        oldest: i64,
    },
    /// A domain is used, but not imported.
    #[error("the domain '{}' is used, but its version is nowhere declared", domain.escape_debug())]
    NoOpset {
        /// The domain.
        domain: String,
    },
    /// A domain, name or key occurs a second time.
    #[error("{what} '{}' occurs twice", name.escape_debug())]
    Twice {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// An extent is negative or too large.
    #[error("an extent of {extent}")]
    Extent {
        /// The extent.
        extent: i64,
    },
    /// The extents multiply past what the machine can address.
    #[error("the extents {shape:?} multiply past what can be addressed")]
    TooLarge {
        /// The extents.
        shape: Vec<i64>,
    },
    /// The element type is unknown, or there is none.
    #[error("unknown element type {number}")]
    UnknownType {
        /// Its number.
        number: i32,
    },
    /// The element type cannot be computed with.
    #[error("elements of type {name} are not supported")]
    UnsupportedType {
        /// Its name.
        name: &'static str,
    },
    /// There are more or fewer elements than the extents say.
    #[error("{expected} {unit} expected in {field}, {found} found")]
    Length {
        /// The field that holds them.
        field: &'static str,
        /// Elements or bytes.
        unit: &'static str,
        /// How many there should be.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// Data are in a field of another type, or in several.
    #[error("its data are in {found} (a tensor of {dtype} keeps them in {expected} or raw_data)")]
    Field {
        /// The element type.
        dtype: &'static str,
        /// The field where they should be.
        expected: &'static str,
        /// The field where they are.
        found: &'static str,
    },
    /// An element does not fit its type.
    #[error("element {index} is {value}, which is no {dtype}")]
    Element {
        /// Which element.
        index: usize,
        /// Its value.
        value: i64,
        /// The element type.
        dtype: &'static str,
    },
    /// External data has an entry that is no number, or none at all.
    #[error("external data: {0}")]
    External(String),
    /// External data lies outside of its file.
    #[error("external data: bytes {offset}..{} are not in '{}', which has {len}", offset.saturating_add(*length), file.display())]
    ExternalRange {
        /// The file.
        file: PathBuf,
        /// Where the data should begin.
        offset: u64,
        /// How many bytes there should be.
        length: u64,
        /// The length of the file.
        len: u64,
    },
    /// The file with external data could not be had.
    #[error("external data: {0}")]
    ExternalFile(#[from] FileError),
    /// A sparse tensor is inconsistent, or too large when dense.
    #[error("sparse tensor: {0}")]
    Sparse(String),
    /// The tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A function calls itself.
    #[error("it calls itself, by way of {0}")]
    Recursion(String),
    /// Inlined functions make more nodes than are believed.
    #[error("its functions expand to more than {limit} nodes")]
    Growth {
        /// The limit.
        limit: usize,
    },
    /// A value is used that nothing gives.
    #[error("nothing gives this value")]
    NoValue,
    /// An input has a type that the graph cannot take.
    #[error("type {0} is not supported")]
    ValueType(String),
}

impl OnnxError {
    pub(crate) fn malformed(path: &Path, subject: Subject, fault: Fault) -> OnnxError {
        OnnxError::Malformed { path: path.to_owned(), subject, fault: Box::new(fault) }
    }
}
