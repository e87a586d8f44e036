//! The functions of a model: nodes of their own, which are inlined where they are called.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Fault, OnnxError, Subject};
use crate::model::domain_name;
use crate::proto::{FunctionProto, ModelProto};

/// Calls of functions and graphs within nodes at most, one within the other.
pub(crate) const MAX_DEPTH: usize = 40;
/// Nodes of a model at most, with functions inlined.
pub(crate) const MAX_NODES: usize = 2_000_000;

/// Where each function of a model is, by domain, name and overload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Functions(HashMap<(String, String, String), usize>);

impl Functions {
    /// The table of a model's functions.
    pub(crate) fn new(path: &Path, model: &ModelProto) -> Result<Functions, OnnxError> {
        let mut table = HashMap::new();
        for (index, function) in model.functions.iter().enumerate() {
            let name = function.name().to_owned();
            let wrong = |fault| OnnxError::malformed(path, Subject::Function(name.clone()), fault);
            if name.is_empty() {
                return Err(wrong(Fault::Missing("name")));
            }
            let key = (domain_name(function.domain()).to_owned(), name.clone(), function.overload().to_owned());
            if table.insert(key, index).is_some() {
                return Err(wrong(Fault::Twice { what: "function", name: name.clone() }));
            }
        }
        Ok(Functions(table))
    }

    /// The function that a node calls, if it calls one, with its number.
    pub(crate) fn get<'a>(
        &self,
        model: &'a ModelProto,
        domain: &str,
        name: &str,
        overload: &str,
    ) -> Option<(usize, &'a FunctionProto)> {
        if self.0.is_empty() {
            return None;
        }
        let index = *self.0.get(&(domain_name(domain).to_owned(), name.to_owned(), overload.to_owned()))?;
        Some((index, model.functions.get(index)?))
    }
}
