//! Running sums.

use crate::ValueType;
use crate::op::{Evaluation, Inference, Numbers, OpError, Operator, axis};

/// Running sums along one extent (ONNX CumSum). Input: f32, f64 or integers. Output: as input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CumSum {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// Whether an element's own value is left out.
    pub exclusive: bool,
    /// Whether it goes from the last to the first.
    pub reverse: bool,
}

impl CumSum {
    /// Replaces runs of numbers, `n` of them at a distance of `inner`, by their running sums.
    fn sum<T: Copy>(self, x: &mut [T], n: usize, inner: usize, zero: T, add: impl Fn(T, T) -> T) {
        for x in x.chunks_mut((n * inner).max(1)) {
            for i in 0..inner {
                let mut sum = zero;
                for step in 0..n {
                    let at = if self.reverse { n - 1 - step } else { step } * inner + i;
                    let before = sum;
                    sum = add(sum, x[at]);
                    x[at] = if self.exclusive { before } else { sum };
                }
            }
        }
    }
}

impl Operator for CumSum {
    fn name(&self) -> &'static str {
        "CumSum"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}, exclusive={}, reverse={}}}", self.axis, self.exclusive, self.reverse)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        if !(dtype.is_float() || dtype.is_int()) || dtype.packing().0 != 1 {
            return Err(OpError::DType { input: 0, expected: "a number", found: dtype.to_string() });
        }
        axis(self.axis, shape.len())?;
        Ok(vec![ValueType::tensor(dtype, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.tensor(0)?.shape();
        let along = axis(self.axis, shape.len())?;
        let (n, inner) = (shape[along], shape[along + 1..].iter().product());
        let mut x = Numbers::load(cx.tensor(0)?)?;
        match &mut x {
            Numbers::F32(x) => self.sum(x, n, inner, 0.0, |a, b| a + b),
            Numbers::F64(x) => self.sum(x, n, inner, 0.0, |a, b| a + b),
            Numbers::Int(x) => self.sum(x, n, inner, 0, |a, b| a + b),
        }
        cx.put_numbers(0, &x)
    }
}
