//! Scattering.

use super::{check_elements, element_places, slice_places, tuples};
use crate::op::shape::plain;
use crate::op::{Evaluation, Inference, Numbers, OpError, Operator, expect_shape};
use crate::{DType, Dim, Tensor, ValueType};

/// How scattered elements join what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScatterReduction {
    /// Replaces.
    None,
    /// Sum.
    Add,
    /// Product.
    Mul,
    /// The smaller.
    Min,
    /// The larger.
    Max,
}

/// Data with single elements replaced along one extent (ONNX ScatterElements).
///
/// Inputs: data, a plain dtype; indices i32 or i64; updates as data's dtype, of the indices' shape. Output: as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScatterElements {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// How they join.
    pub reduction: ScatterReduction,
}

/// Data with slices at index tuples replaced (ONNX ScatterND).
///
/// Inputs: data, a plain dtype; indices i64 `[..., k]`; updates. Output: as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScatterNd {
    /// How they join.
    pub reduction: ScatterReduction,
}

impl ScatterReduction {
    /// Data with runs of `run` elements joined with updates at the places (in runs).
    fn scatter(self, data: &Tensor, updates: &Tensor, places: &[usize], run: usize) -> Result<Tensor, OpError> {
        fn join<T: Copy>(to: &mut [T], from: &[T], places: &[usize], run: usize, f: impl Fn(T, T) -> T) {
            for (i, at) in places.iter().enumerate() {
                let (to, from) = (&mut to[at * run..][..run], &from[i * run..][..run]);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = f(*to, *from));
            }
        }
        if self == ScatterReduction::None {
            let mut bytes = data.bytes().to_vec();
            join(&mut bytes, updates.bytes(), places, run * data.dtype().packing().1, |_, from| from);
            return Ok(Tensor::from_bytes(data.dtype(), data.shape(), &bytes)?);
        }
        let mut result = Numbers::load(data)?;
        match (&mut result, Numbers::load(updates)?) {
            (Numbers::F32(to), Numbers::F32(from)) => join(to, &from, places, run, |a, b| match self {
                ScatterReduction::None => b,
                ScatterReduction::Add => a + b,
                ScatterReduction::Mul => a * b,
                ScatterReduction::Min => a.min(b),
                ScatterReduction::Max => a.max(b),
            }),
            (Numbers::F64(to), Numbers::F64(from)) => join(to, &from, places, run, |a, b| match self {
                ScatterReduction::None => b,
                ScatterReduction::Add => a + b,
                ScatterReduction::Mul => a * b,
                ScatterReduction::Min => a.min(b),
                ScatterReduction::Max => a.max(b),
            }),
            (Numbers::Int(to), Numbers::Int(from)) => join(to, &from, places, run, |a, b| match self {
                ScatterReduction::None => b,
                ScatterReduction::Add => a.wrapping_add(b),
                ScatterReduction::Mul => a.wrapping_mul(b),
                ScatterReduction::Min => a.min(b),
                ScatterReduction::Max => a.max(b),
            }),
            _ => {
                let found = updates.dtype().to_string();
                return Err(OpError::DType { input: 2, expected: "of data's dtype", found });
            }
        }
        result.store(data.dtype(), data.shape())
    }

    fn name(self) -> &'static str {
        match self {
            ScatterReduction::None => "none",
            ScatterReduction::Add => "add",
            ScatterReduction::Mul => "mul",
            ScatterReduction::Min => "min",
            ScatterReduction::Max => "max",
        }
    }
}

impl Operator for ScatterElements {
    fn name(&self) -> &'static str {
        "ScatterElements"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}, reduction={}}}", self.axis, self.reduction.name())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=3, "3")?;
        let (dtype, data) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let indices = cx.typed(1, &[DType::I32, DType::I64], "i32 or i64")?;
        check_elements(data, indices, self.axis)?;
        expect_shape(cx.typed(2, &[dtype], "of data's dtype")?, indices, "updates")?;
        Ok(vec![ValueType::tensor(dtype, data)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let places = element_places(cx, self.axis)?;
        let result = self.reduction.scatter(cx.tensor(0)?, cx.tensor(2)?, &places, 1)?;
        cx.put_tensor(0, result)
    }
}

impl Operator for ScatterNd {
    fn name(&self) -> &'static str {
        "ScatterND"
    }

    fn attributes(&self) -> String {
        format!(" {{reduction={}}}", self.reduction.name())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=3, "3")?;
        let (dtype, data) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let indices = cx.typed(1, &[DType::I64, DType::I32], "i64 or i32")?;
        let (_, slice) = tuples(data, indices, 0)?;
        let expected: Vec<Dim> = indices[..indices.len() - 1].iter().chain(slice).cloned().collect();
        expect_shape(cx.typed(2, &[dtype], "of data's dtype")?, &expected, "updates")?;
        Ok(vec![ValueType::tensor(dtype, data)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        if cx.tensor(2)?.is_empty() {
            return cx.put_tensor(0, cx.tensor(0)?.clone());
        }
        let (places, run) = slice_places(cx, 0)?;
        let result = self.reduction.scatter(cx.tensor(0)?, cx.tensor(2)?, &places, run)?;
        cx.put_tensor(0, result)
    }
}
