//! Reductions along the last extent.

use super::{Evaluation, Inference, Numbers, OpError, Operator, split_last};
use crate::{DType, Dim, ValueType};

mod cumulative;
mod order;

pub use cumulative::CumSum;
pub use order::{ArgMax, Sort, TopK};

/// Softmax along the last extent. Input and output: f32 or f64 `[..., n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax;

/// `x - ln Σ e^x` along the last extent (ONNX LogSoftmax). Input and output: f32 or f64 `[..., n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSoftmax;

/// The type of what normalizes rows of f32 or f64.
fn rows_type(cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
    cx.arity(1..=1, "1")?;
    let shape = cx.typed(0, &[DType::F32, DType::F64], "f32 or f64")?;
    split_last(shape)?;
    Ok(vec![ValueType::tensor(cx.tensor(0)?.0, shape)])
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        "Softmax"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        rows_type(cx)
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let n = cx.last_extent(0)?.max(1);
        if let Numbers::F64(mut x) = Numbers::load(cx.tensor(0)?)? {
            for row in x.chunks_mut(n) {
                let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
                row.iter_mut().for_each(|v| *v = (*v - max).exp());
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
            return cx.put_numbers(0, &Numbers::F64(x));
        }
        let mut x = cx.f32(0)?;
        for row in x.chunks_mut(n) {
            let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            row.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        cx.put_f32(0, &x)
    }
}

impl Operator for LogSoftmax {
    fn name(&self) -> &'static str {
        "LogSoftmax"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        rows_type(cx)
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let n = cx.last_extent(0)?.max(1);
        let mut x = Numbers::load(cx.tensor(0)?)?.to_f64();
        for row in x.chunks_mut(n) {
            let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
            let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
            row.iter_mut().for_each(|v| *v = *v - max - sum.ln());
        }
        cx.put_numbers(0, &Numbers::F64(x))
    }
}

/// How a row is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceKind {
    /// Sum.
    Sum,
    /// Mean.
    Mean,
    /// Largest element; of none -∞.
    Max,
    /// Smallest element; of none +∞.
    Min,
    /// Product.
    Prod,
    /// Sum of magnitudes.
    L1,
    /// Square root of the sum of squares.
    L2,
    /// Sum of squares.
    SumSquare,
    /// Logarithm of the sum.
    LogSum,
    /// Logarithm of the sum of exponentials.
    LogSumExp,
}

/// Reduces the last extent to 1 (ONNX ReduceSum and so on, with `keepdims`). Input: f32, f64 or integers `[..., n]` (Max and Min: also bool); output:
/// the same dtype `[..., 1]`.
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
            ReduceKind::Min => "ReduceMin",
            ReduceKind::Prod => "ReduceProd",
            ReduceKind::L1 => "ReduceL1",
            ReduceKind::L2 => "ReduceL2",
            ReduceKind::SumSquare => "ReduceSumSquare",
            ReduceKind::LogSum => "ReduceLogSum",
            ReduceKind::LogSumExp => "ReduceLogSumExp",
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        let ordered = matches!(self.kind, ReduceKind::Max | ReduceKind::Min) && dtype == DType::Bool;
        if !(dtype.is_float() || dtype.is_int() || ordered) {
            return Err(OpError::DType { input: 0, expected: "a number", found: dtype.to_string() });
        }
        let (rest, _) = split_last(shape)?;
        let shape: Vec<Dim> = rest.iter().cloned().chain([Dim::Num(1)]).collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        let n = cx.last_extent(0)?;
        let rows = cx.output_len(0)?;
        let result = match Numbers::load(&x)? {
            Numbers::F32(v) => Numbers::F32((0..rows).map(|row| self.kind.apply(&v[row * n..(row + 1) * n])).collect()),
            Numbers::F64(v) => Numbers::F64((0..rows).map(|row| self.kind.f64(&v[row * n..(row + 1) * n])).collect()),
            Numbers::Int(v) => {
                let (least, most) = limits(x.dtype());
                Numbers::Int((0..rows).map(|row| self.kind.int(&v[row * n..(row + 1) * n], least, most)).collect())
            }
        };
        cx.put_numbers(0, &result)
    }
}

/// The least and the largest integer of a dtype.
fn limits(dtype: DType) -> (i128, i128) {
    match dtype {
        DType::I64 => (i64::MIN.into(), i64::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::U64 => (0, u64::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        _ => (0, 1),
    }
}

impl ReduceKind {
    /// The reduction of a row of f32.
    #[must_use]
    pub fn apply(self, row: &[f32]) -> f32 {
        let n = row.len() as f32;
        match self {
            ReduceKind::Sum => row.iter().sum(),
            ReduceKind::Mean => row.iter().sum::<f32>() / n,
            ReduceKind::Max => row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)),
            ReduceKind::Min => row.iter().fold(f32::INFINITY, |m, v| m.min(*v)),
            ReduceKind::Prod => row.iter().product(),
            ReduceKind::L1 => row.iter().map(|v| v.abs()).sum(),
            ReduceKind::L2 => row.iter().map(|v| v * v).sum::<f32>().sqrt(),
            ReduceKind::SumSquare => row.iter().map(|v| v * v).sum(),
            ReduceKind::LogSum => row.iter().sum::<f32>().ln(),
            ReduceKind::LogSumExp => {
                let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
                if max.is_infinite() { max } else { max + row.iter().map(|v| (v - max).exp()).sum::<f32>().ln() }
            }
        }
    }

    fn f64(self, row: &[f64]) -> f64 {
        let n = row.len() as f64;
        match self {
            ReduceKind::Sum => row.iter().sum(),
            ReduceKind::Mean => row.iter().sum::<f64>() / n,
            ReduceKind::Max => row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v)),
            ReduceKind::Min => row.iter().fold(f64::INFINITY, |m, v| m.min(*v)),
            ReduceKind::Prod => row.iter().product(),
            ReduceKind::L1 => row.iter().map(|v| v.abs()).sum(),
            ReduceKind::L2 => row.iter().map(|v| v * v).sum::<f64>().sqrt(),
            ReduceKind::SumSquare => row.iter().map(|v| v * v).sum(),
            ReduceKind::LogSum => row.iter().sum::<f64>().ln(),
            ReduceKind::LogSumExp => {
                let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
                if max.is_infinite() { max } else { max + row.iter().map(|v| (v - max).exp()).sum::<f64>().ln() }
            }
        }
    }

    fn int(self, row: &[i128], least: i128, most: i128) -> i128 {
        let sum = || row.iter().sum::<i128>();
        let squares = || row.iter().map(|v| v.wrapping_mul(*v)).fold(0i128, i128::wrapping_add);
        match self {
            ReduceKind::Sum => sum(),
            ReduceKind::Mean => sum().checked_div(row.len() as i128).unwrap_or(0),
            ReduceKind::Max => row.iter().copied().max().unwrap_or(least),
            ReduceKind::Min => row.iter().copied().min().unwrap_or(most),
            ReduceKind::Prod => row.iter().fold(1i128, |p, v| p.wrapping_mul(*v)),
            ReduceKind::L1 => row.iter().map(|v| v.abs()).sum(),
            ReduceKind::L2 => (squares() as f64).sqrt() as i128,
            ReduceKind::SumSquare => squares(),
            ReduceKind::LogSum => (sum() as f64).ln() as i128,
            ReduceKind::LogSumExp => row.iter().map(|v| (*v as f64).exp()).sum::<f64>().ln() as i128,
        }
    }
}
