//! A user's operators.

use std::fmt::Debug;
use std::sync::Arc;

use super::{Evaluation, Inference, OpError, Operator};
use crate::{Tensor, ValueType};

/// An operator of the user's own: a name, attribute bytes, a shape rule and a CPU function. A GPU falls back to the function.
pub trait CustomOp: Debug + Send + Sync {
    /// The name that `to_text` prints.
    fn name(&self) -> &'static str;

    /// Attributes as bytes: operators of one name with equal bytes are equal.
    fn attribute_bytes(&self) -> Vec<u8>;

    /// The shape rule.
    ///
    /// # Errors
    /// When the operator refuses its inputs.
    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError>;

    /// The outputs for these inputs, with the dtypes and shapes that the shape rule gives.
    ///
    /// # Errors
    /// When it fails.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError>;
}

impl Operator for Arc<dyn CustomOp> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn attributes(&self) -> String {
        let bytes = self.attribute_bytes();
        if bytes.is_empty() { String::new() } else { format!(" {{{}}}", bytes.escape_ascii()) }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        (**self).infer(cx)
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let inputs: Vec<Tensor> = (0..cx.input_count()).map(|i| cx.tensor(i).cloned()).collect::<Result<_, _>>()?;
        let outputs = self.run(&inputs)?;
        for (i, output) in outputs.into_iter().enumerate() {
            cx.put_tensor(i, output)?;
        }
        Ok(())
    }
}
