//! A model's weights with some of them replaced.

use std::collections::HashMap;

use core_tensor::{Tensor, WeightSource};
use loader_gguf::Gguf;

/// The tensors of a file, of which some have other bytes and types.
pub(in crate::quantize) struct Overlay<'a> {
    pub(in crate::quantize) model: &'a Gguf,
    pub(in crate::quantize) replaced: HashMap<String, Tensor>,
}

impl WeightSource for Overlay<'_> {
    fn names(&self) -> Vec<&str> {
        WeightSource::names(self.model)
    }

    fn tensor(&self, name: &str) -> Option<Tensor> {
        match self.replaced.get(name) {
            Some(tensor) => Some(tensor.clone()),
            None => WeightSource::tensor(self.model, name),
        }
    }

    fn origin(&self) -> String {
        self.model.origin()
    }
}
