//! Gathering.

use super::shape::plain;
use super::{Evaluation, Inference, OpError, Operator, axis, room, show};
use crate::{DType, Dim, ValueType};

mod scatter;
mod select;

pub use scatter::{ScatterElements, ScatterNd, ScatterReduction};
pub use select::{NonMaxSuppression, NonZero, Unique};

/// Takes elements along one extent (ONNX Gather). Tables of f16, bf16 and block dtypes give f32: such dtypes are for weights.
///
/// Inputs: data, any dtype (blocks: axis 0 of two or more extents); indices i32 or i64 of any shape, negative ones count from the end.
/// Output: data's shape with the extent replaced by the indices' shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gather {
    /// The extent; negative counts from the end.
    pub axis: isize,
}

impl Gather {
    /// Takes rows: along the first extent.
    #[must_use]
    pub fn rows() -> Gather {
        Gather { axis: 0 }
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn attributes(&self) -> String {
        if self.axis == 0 { String::new() } else { format!(" {{axis={}}}", self.axis) }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (dtype, data) = cx.tensor(0)?;
        let indices = cx.typed(1, &[DType::I32, DType::I64], "i32 or i64")?;
        if data.is_empty() {
            return Err(OpError::Shape("data is a scalar".into()));
        }
        let axis = axis(self.axis, data.len())?;
        if dtype.packing().0 != 1 && !dtype.is_block() {
            return Err(OpError::DType { input: 0, expected: "a dtype of whole bytes", found: dtype.to_string() });
        }
        if dtype.is_block() && (axis != 0 || data.len() < 2) {
            return Err(OpError::Shape("single weights of a block cannot be gathered".into()));
        }
        let to = if dtype.is_block() || matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
        let shape: Vec<Dim> = data[..axis].iter().chain(indices).chain(&data[axis + 1..]).cloned().collect();
        Ok(vec![ValueType::Tensor { dtype: to, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let data = cx.tensor(0)?.clone();
        let axis = axis(self.axis, data.shape().len())?;
        let n = data.shape()[axis];
        let indices = indices(cx, 1, n, "rows to gather")?;
        let outer: usize = data.shape()[..axis].iter().product();
        let inner: usize = data.shape()[axis + 1..].iter().product();
        let run = data.bytes().len().checked_div(outer * n).unwrap_or(0);
        let decode = data.dtype().is_block() || matches!(data.dtype(), DType::F16 | DType::BF16);
        let (mut bytes, mut floats) = (Vec::new(), Vec::new());
        for i in 0..outer {
            for index in &indices {
                let row = &data.bytes()[(i * n + index) * run..][..run];
                if decode {
                    floats.extend(crate::decode_f32(data.dtype(), row, inner)?);
                } else {
                    bytes.extend_from_slice(row);
                }
            }
        }
        if decode { cx.put_f32(0, &floats) } else { cx.put_bytes(0, &bytes) }
    }
}

/// The elements of an i32 or i64 input as indices into `len` things, negative ones counted from the end.
pub(crate) fn indices(
    cx: &Evaluation<'_>,
    input: usize,
    len: usize,
    what: &'static str,
) -> Result<Vec<usize>, OpError> {
    let tensor = cx.tensor(input)?;
    let raw: Vec<i64> = match tensor.dtype() {
        DType::I32 => tensor.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        _ => tensor.to_vec::<i64>()?,
    };
    raw.into_iter()
        .map(|index| {
            let at = if index < 0 { index.checked_add_unsigned(len as u64) } else { Some(index) };
            at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < len).ok_or(OpError::Index { what, index, len })
        })
        .collect()
}

/// Takes single elements along one extent (ONNX GatherElements).
///
/// Inputs: data, a plain dtype; indices i32 or i64 of the same rank. Output: the indices' shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherElements {
    /// The extent; negative counts from the end.
    pub axis: isize,
}

/// Takes slices at index tuples (ONNX GatherND).
///
/// Inputs: data, a plain dtype; indices i64 `[..., k]`: each tuple names a place in the first k extents after `batch_dims`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherNd {
    /// Leading extents that both inputs share.
    pub batch_dims: usize,
}

/// Fails unless indices along one extent fit data: the same rank, and no other extent larger than data's.
fn check_elements(data: &[Dim], indices: &[Dim], along: isize) -> Result<(), OpError> {
    let along = axis(along, data.len())?;
    let larger = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Num(a), Dim::Num(b)) if a > b);
    if indices.len() != data.len() || (0..data.len()).any(|i| i != along && larger((&indices[i], &data[i]))) {
        return Err(OpError::Shape(format!("indices {} do not fit data {}", show(indices), show(data))));
    }
    Ok(())
}

/// For each index along one extent of data, which element of data it names.
fn element_places(cx: &Evaluation<'_>, along: isize) -> Result<Vec<usize>, OpError> {
    let (data, shape) = (cx.tensor(0)?.shape().to_vec(), cx.tensor(1)?.shape().to_vec());
    let along = axis(along, data.len())?;
    let place = |(i, index): (usize, usize)| {
        let (mut rest, mut at, mut stride) = (i, 0, 1);
        for d in (0..data.len()).rev() {
            at += if d == along { index } else { rest % shape[d] } * stride;
            rest /= shape[d];
            stride *= data[d];
        }
        at
    };
    Ok(indices(cx, 1, data[along], "elements along an extent")?.into_iter().enumerate().map(place).collect())
}

impl Operator for GatherElements {
    fn name(&self) -> &'static str {
        "GatherElements"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}}}", self.axis)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (dtype, data) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let indices = cx.typed(1, &[DType::I32, DType::I64], "i32 or i64")?;
        check_elements(data, indices, self.axis)?;
        Ok(vec![ValueType::tensor(dtype, indices)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let data = cx.tensor(0)?.clone();
        let size = data.dtype().packing().1;
        let mut bytes = Vec::new();
        for at in element_places(cx, self.axis)? {
            bytes.extend_from_slice(&data.bytes()[at * size..][..size]);
        }
        cx.put_bytes(0, &bytes)
    }
}

/// How many extents the tuples of indices name, and the shape of what they name.
fn tuples<'a>(data: &'a [Dim], indices: &[Dim], batch_dims: usize) -> Result<(usize, &'a [Dim]), OpError> {
    let wrong = || {
        let reason = format!("indices {} into {} after {batch_dims} shared extents", show(indices), show(data));
        OpError::Shape(reason)
    };
    let (k, rest) = indices.split_last().ok_or_else(wrong)?;
    let k = k.as_num().ok_or_else(wrong)?;
    let shared =
        rest.len() >= batch_dims && data.len() >= batch_dims && (0..batch_dims).all(|i| !rest[i].differs(&data[i]));
    let end = batch_dims.checked_add(k).filter(|end| shared && *end <= data.len()).ok_or_else(wrong)?;
    Ok((k, &data[end..]))
}

/// For each tuple of indices, which slice of data it names, and how many elements a slice has.
fn slice_places(cx: &Evaluation<'_>, batch_dims: usize) -> Result<(Vec<usize>, usize), OpError> {
    let (data, shape) = (cx.tensor(0)?.shape(), cx.tensor(1)?.shape());
    let (k, tuples) = shape.split_last().map_or((0, &[][..]), |(k, tuples)| (*k, tuples));
    let raw = match cx.tensor(1)?.dtype() {
        DType::I32 => cx.tensor(1)?.to_vec::<i32>()?.into_iter().map(i64::from).collect(),
        _ => cx.tensor(1)?.to_vec::<i64>()?,
    };
    let count: usize = tuples.iter().product();
    let batch: usize = tuples[..batch_dims].iter().product();
    let named = &data[batch_dims..batch_dims + k];
    let mut places = room(&[count])?;
    for tuple in 0..count {
        let mut at = tuple / (count / batch);
        for (index, len) in raw[tuple * k..(tuple + 1) * k].iter().zip(named) {
            let from_start = if *index < 0 { index.checked_add_unsigned(*len as u64) } else { Some(*index) };
            let from_start = from_start.and_then(|i| usize::try_from(i).ok()).filter(|i| i < len);
            at = at * len + from_start.ok_or(OpError::Index { what: "slices", index: *index, len: *len })?;
        }
        places.push(at);
    }
    Ok((places, data[batch_dims + k..].iter().product()))
}

impl Operator for GatherNd {
    fn name(&self) -> &'static str {
        "GatherND"
    }

    fn attributes(&self) -> String {
        format!(" {{batch_dims={}}}", self.batch_dims)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (dtype, data) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let indices = cx.typed(1, &[DType::I64, DType::I32], "i64 or i32")?;
        let (_, slice) = tuples(data, indices, self.batch_dims)?;
        let shape: Vec<Dim> = indices[..indices.len() - 1].iter().chain(slice).cloned().collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        if cx.output_shape(0)?.contains(&0) {
            return cx.put_bytes(0, &[]);
        }
        let data = cx.tensor(0)?.clone();
        let (places, len) = slice_places(cx, self.batch_dims)?;
        let run = len * data.dtype().packing().1;
        let mut bytes = Vec::new();
        for at in places {
            bytes.extend_from_slice(&data.bytes()[at * run..][..run]);
        }
        cx.put_bytes(0, &bytes)
    }
}
