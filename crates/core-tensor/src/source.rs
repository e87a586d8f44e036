//! Where weights come from.

use crate::Tensor;

/// Named weights of a model file. A loader implements it; a pipeline asks for the names that its architecture has.
pub trait WeightSource: Send + Sync {
    /// The names of all weights, in the file's order.
    fn names(&self) -> Vec<&str>;

    /// The weight of that name: shape outermost extent first (a linear layer is `[out, in]`), bytes as stored, nothing copied.
    fn tensor(&self, name: &str) -> Option<Tensor>;

    /// What the weights come from, for messages (a path).
    fn origin(&self) -> String;
}
