//! Why a node cannot be lowered, before the node is named.

use core_tensor::{DimError, GraphError, InterpreterError, TensorError};

use crate::error::{Fault, OnnxError};

/// A reason without its place.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The node's inputs or attributes are wrong or not supported.
    Reason(String),
    /// The operator is not supported in this form at all.
    Unsupported,
    /// Something unsupported that is listed already lies within.
    Lacking,
    /// An error that names its place already.
    Placed(Box<OnnxError>),
}

/// What lowering gives.
pub(crate) type Res<T> = Result<T, Fail>;

/// A reason.
pub(crate) fn fail<T>(reason: impl Into<String>) -> Res<T> {
    Err(Fail::Reason(reason.into()))
}

impl From<String> for Fail {
    fn from(reason: String) -> Fail {
        Fail::Reason(reason)
    }
}

impl From<&str> for Fail {
    fn from(reason: &str) -> Fail {
        Fail::Reason(reason.to_owned())
    }
}

impl From<OnnxError> for Fail {
    fn from(error: OnnxError) -> Fail {
        Fail::Placed(Box::new(error))
    }
}

macro_rules! reasons {
    ($($t:ty),*) => { $(impl From<$t> for Fail {
        fn from(error: $t) -> Fail {
            Fail::Reason(error.to_string())
        }
    })* };
}
reasons!(Fault, TensorError, DimError, InterpreterError);

impl From<GraphError> for Fail {
    fn from(error: GraphError) -> Fail {
        Fail::Reason(match error {
            // The node is named already.
            GraphError::Op { op, source, .. } => format!("{op}: {source}"),
            other => other.to_string(),
        })
    }
}
