//! Reductions along the last extent.

use super::{Evaluation, Inference, OpError, Operator, split_last};
use crate::{DType, Dim, ValueType};

/// Softmax along the last extent. Input and output: f32 `[..., n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax;

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        "Softmax"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        split_last(cx.f32(0)?)?;
        Ok(vec![ValueType::tensor(DType::F32, cx.f32(0)?)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut x = cx.f32(0)?;
        let n = cx.last_extent(0)?;
        for row in x.chunks_mut(n.max(1)) {
            let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        cx.put_f32(0, &x)
    }
}

/// How a row is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceKind {
    /// Sum.
    Sum,
    /// Mean.
    Mean,
    /// Largest element.
    Max,
}

/// Reduces the last extent to 1 (ONNX ReduceSum, ReduceMean, ReduceMax with `keepdims`). Input: f32 `[..., n]`; output: f32 `[..., 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reduce {
    /// How.
    pub kind: ReduceKind,
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            ReduceKind::Sum => "ReduceSum",
            ReduceKind::Mean => "ReduceMean",
            ReduceKind::Max => "ReduceMax",
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (rest, _) = split_last(cx.f32(0)?)?;
        let shape: Vec<Dim> = rest.iter().cloned().chain([Dim::Num(1)]).collect();
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.f32(0)?;
        let n = cx.last_extent(0)?;
        let rows = cx.output_len(0)?;
        let y: Vec<f32> = (0..rows)
            .map(|row| {
                let row = &x[row * n..(row + 1) * n];
                match self.kind {
                    ReduceKind::Sum => row.iter().sum(),
                    ReduceKind::Mean => row.iter().sum::<f32>() / n as f32,
                    ReduceKind::Max => row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)),
                }
            })
            .collect();
        cx.put_f32(0, &y)
    }
}

/// Index of the largest element along the last extent, the first of equals. Input: f32 `[..., n]`, n > 0; output: i32 `[...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgMax;

impl Operator for ArgMax {
    fn name(&self) -> &'static str {
        "ArgMax"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (rest, last) = split_last(cx.f32(0)?)?;
        if *last == Dim::Num(0) {
            return Err(OpError::Shape("no element to choose from".into()));
        }
        Ok(vec![ValueType::tensor(DType::I32, rest)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.f32(0)?;
        let n = cx.last_extent(0)?;
        let y: Vec<i32> = x
            .chunks(n.max(1))
            .map(|row| {
                let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                best as i32
            })
            .collect();
        cx.put(0, &y)
    }
}

/// The `k` largest elements along the last extent, largest first, the first of equals first; what is no number comes last (ONNX TopK with
/// `largest` and `sorted`).
///
/// Input: f32 `[..., n]` with n ≥ k. Outputs: the elements, f32 `[..., k]`; their indices, i32 `[..., k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// How many; at least 1.
    pub k: usize,
}

impl TopK {
    /// Which of two elements, with their indices, comes first.
    #[must_use]
    pub fn order(a: (f32, usize), b: (f32, usize)) -> std::cmp::Ordering {
        let key = |x: f32| if x.is_nan() { None } else { Some(if x == 0.0 { 0.0 } else { x }) };
        let values = match (key(a.0), key(b.0)) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        values.then(a.1.cmp(&b.1))
    }
}

impl Operator for TopK {
    fn name(&self) -> &'static str {
        "TopK"
    }

    fn attributes(&self) -> String {
        format!(" {{k={}}}", self.k)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (rest, last) = split_last(cx.f32(0)?)?;
        if self.k == 0 || last.as_num().is_some_and(|n| n < self.k) {
            return Err(OpError::Attribute { name: "k", reason: format!("{} of {last} elements", self.k) });
        }
        let shape: Vec<Dim> = rest.iter().cloned().chain([Dim::Num(self.k)]).collect();
        Ok(vec![ValueType::tensor(DType::F32, &shape), ValueType::Tensor { dtype: DType::I32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.f32(0)?;
        let n = cx.last_extent(0)?;
        if n < self.k {
            return Err(OpError::Attribute { name: "k", reason: format!("{} of {n} elements", self.k) });
        }
        let (mut values, mut indices) = (Vec::new(), Vec::new());
        for row in x.chunks(n) {
            let mut sorted: Vec<(f32, usize)> = row.iter().copied().zip(0..).collect();
            sorted.sort_by(|a, b| TopK::order(*a, *b));
            values.extend(sorted[..self.k].iter().map(|(value, _)| *value));
            indices.extend(sorted[..self.k].iter().map(|(_, index)| *index as i32));
        }
        cx.put_f32(0, &values)?;
        cx.put(1, &indices)
    }
}
