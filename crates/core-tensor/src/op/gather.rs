//! Gathering.

use super::{Evaluation, Inference, OpError, Operator};
use crate::{DType, Dim, ValueType};

/// Takes rows along the first extent (ONNX Gather with axis 0); embedding tables of any weight dtype give f32.
///
/// Inputs: data `[rows, ...]`; indices i32 `[n]`. Output: `[n, ...]`, f32 (i32 where data is i32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather;

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (dtype, data) = cx.tensor(0)?;
        let n = cx.i32_vector(1)?;
        let dtype = match dtype {
            DType::I32 => DType::I32,
            dtype if dtype.is_block() || dtype.is_float() => DType::F32,
            dtype => {
                return Err(OpError::DType {
                    input: 0,
                    expected: "a float, block or i32 dtype",
                    found: dtype.to_string(),
                });
            }
        };
        let Some((_, rest)) = data.split_first() else {
            return Err(OpError::Shape("data is a scalar".into()));
        };
        if rest.is_empty() && cx.tensor(0)?.0.is_block() {
            return Err(OpError::Shape("single weights of a block cannot be gathered".into()));
        }
        let shape: Vec<Dim> = [n].into_iter().chain(rest).cloned().collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let indices = cx.i32(1)?;
        let data = cx.tensor(0)?.clone();
        let rows = data.shape()[0];
        let row_len: usize = data.shape()[1..].iter().product();
        let row_bytes = data.bytes().len().checked_div(rows).unwrap_or(0);
        let (mut floats, mut ints) = (Vec::new(), Vec::new());
        for index in indices {
            let row = usize::try_from(index).ok().filter(|row| *row < rows).ok_or(OpError::Index {
                what: "rows to gather",
                index: i64::from(index),
                len: rows,
            })?;
            let bytes = &data.bytes()[row * row_bytes..(row + 1) * row_bytes];
            if data.dtype() == DType::I32 {
                ints.extend(bytes.as_chunks::<4>().0.iter().map(|chunk| i32::from_le_bytes(*chunk)));
            } else {
                floats.extend(crate::decode_f32(data.dtype(), bytes, row_len)?);
            }
        }
        if data.dtype() == DType::I32 { cx.put(0, &ints) } else { cx.put_f32(0, &floats) }
    }
}
