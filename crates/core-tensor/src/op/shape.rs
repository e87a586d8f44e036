//! Operators that move elements.

use super::{Evaluation, Inference, OpError, Operator, axis, show};
use crate::{DType, Dim, Shape as Extents, ValueType};

/// The same elements under another shape. Input: a tensor of a plain dtype; the output has as many elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshape {
    /// The shape.
    pub shape: Extents,
}

/// The product of extents, as an expression.
fn product(shape: &[Dim]) -> Dim {
    // Numbers first, then the other factors in order, so that products of the same extents in another grouping are equal.
    let mut factors = Vec::new();
    shape.iter().for_each(|dim| dim.factors(&mut factors));
    let numbers = factors.iter().filter_map(|dim| dim.as_num()).fold(Dim::Num(1), |n, m| n.mul(Dim::Num(m)));
    let mut rest: Vec<&Dim> = factors.into_iter().filter(|dim| dim.as_num().is_none()).collect();
    rest.sort();
    rest.into_iter().fold(numbers, |product, dim| product.mul(dim.clone()))
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn attributes(&self) -> String {
        format!(" {{shape={}}}", show(&self.shape))
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        if product(shape) != product(&self.shape) {
            return Err(OpError::Shape(format!("{} cannot be reshaped to {}", show(shape), show(&self.shape))));
        }
        Ok(vec![ValueType::tensor(dtype, &self.shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let tensor = cx.tensor(0)?.reshaped(&shape)?;
        cx.put_tensor(0, tensor)
    }
}

/// Permutes extents: extent `i` of the output is extent `perm[i]` of the input. Input: a tensor of a plain dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transpose {
    /// The permutation.
    pub perm: Vec<usize>,
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn attributes(&self) -> String {
        format!(" {{perm={:?}}}", self.perm)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..shape.len()) {
            return Err(OpError::Attribute {
                name: "perm",
                reason: format!("{:?} is no permutation of the extents of {}", self.perm, show(shape)),
            });
        }
        let shape: Vec<Dim> = self.perm.iter().map(|i| shape[*i].clone()).collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let input = cx.tensor(0)?.clone();
        let out_shape = cx.output_shape(0)?;
        let size = input.dtype().packing().1;
        let mut strides = vec![1; input.shape().len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * input.shape()[i];
        }
        let mut bytes = Vec::with_capacity(input.bytes().len());
        for index in 0..input.len() {
            let (mut rest, mut at) = (index, 0);
            for i in (0..out_shape.len()).rev() {
                at += rest % out_shape[i] * strides[self.perm[i]];
                rest /= out_shape[i];
            }
            bytes.extend_from_slice(&input.bytes()[at * size..(at + 1) * size]);
        }
        cx.put_bytes(0, &bytes)
    }
}

fn plain(dtype: DType, input: usize) -> Result<(), OpError> {
    if dtype.packing().0 == 1 {
        return Ok(());
    }
    Err(OpError::DType { input, expected: "a plain dtype of whole bytes", found: dtype.to_string() })
}

/// Elements `start..end` of one extent. Input: a tensor of a plain dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// First element.
    pub start: usize,
    /// One past the last element.
    pub end: usize,
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}, start={}, end={}}}", self.axis, self.start, self.end)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let axis = axis(self.axis, shape.len())?;
        let Dim::Num(extent) = shape[axis] else {
            return Err(OpError::Shape(format!("extent {axis} of {} is no number", show(shape))));
        };
        if self.start > self.end || self.end > extent {
            return Err(OpError::Shape(format!("{}..{} is not in an extent of {extent}", self.start, self.end)));
        }
        let mut shape = shape.to_vec();
        shape[axis] = Dim::Num(self.end - self.start);
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let input = cx.tensor(0)?.clone();
        let axis = axis(self.axis, input.shape().len())?;
        let inner = input.shape()[axis + 1..].iter().product::<usize>() * input.dtype().packing().1;
        let extent = input.shape()[axis];
        let outer: usize = input.shape()[..axis].iter().product();
        let mut bytes = Vec::new();
        for i in 0..outer {
            bytes.extend_from_slice(&input.bytes()[(i * extent + self.start) * inner..(i * extent + self.end) * inner]);
        }
        cx.put_bytes(0, &bytes)
    }
}

/// Joins tensors of one plain dtype along one extent. Inputs: one or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concat {
    /// The extent; negative counts from the end.
    pub axis: isize,
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}}}", self.axis)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=usize::MAX, "1 or more")?;
        let (dtype, first) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let axis = axis(self.axis, first.len())?;
        let mut shape = first.to_vec();
        for input in 1..cx.inputs.len() {
            let other = cx.typed(input, &[dtype], "of the first input's dtype")?;
            let fits = other.len() == first.len() && (0..first.len()).all(|i| i == axis || other[i] == first[i]);
            if !fits {
                return Err(OpError::Shape(format!("{} and {} cannot be joined", show(first), show(other))));
            }
            shape[axis] = shape[axis].clone().add(other[axis].clone());
        }
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let parts: Vec<_> = (0..cx.input_count()).map(|i| cx.tensor(i).cloned()).collect::<Result<_, _>>()?;
        let axis = axis(self.axis, parts[0].shape().len())?;
        let outer: usize = parts[0].shape()[..axis].iter().product();
        let mut bytes = Vec::new();
        for i in 0..outer {
            for part in &parts {
                let run = part.bytes().len() / outer;
                bytes.extend_from_slice(&part.bytes()[i * run..(i + 1) * run]);
            }
        }
        cx.put_bytes(0, &bytes)
    }
}

/// Converts the element type: between f32, f16, bf16 and i32. Floats become integers by truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The target.
    pub to: DType,
}

const CASTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I32];

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "Cast"
    }

    fn attributes(&self) -> String {
        format!(" {{to={}}}", self.to)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let shape = cx.typed(0, &CASTS, "f32, f16, bf16 or i32")?;
        if !CASTS.contains(&self.to) {
            return Err(OpError::Attribute { name: "to", reason: format!("no conversion to {}", self.to) });
        }
        Ok(vec![ValueType::tensor(self.to, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        if cx.tensor(0)?.dtype() == self.to {
            let tensor = cx.tensor(0)?.clone();
            return cx.put_tensor(0, tensor);
        }
        let x = cx.f32(0)?;
        match self.to {
            DType::F16 => cx.put(0, &x.iter().map(|x| half::f16::from_f32(*x)).collect::<Vec<_>>()),
            DType::BF16 => cx.put(0, &x.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>()),
            DType::I32 => cx.put(0, &x.iter().map(|x| *x as i32).collect::<Vec<_>>()),
            _ => cx.put_f32(0, &x),
        }
    }
}
