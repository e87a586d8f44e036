//! Gathering.

use super::{Evaluation, Inference, OpError, Operator, axis};
use crate::{DType, Dim, ValueType};

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

/// Where elements are not zero, in row-major order (ONNX NonZero). Input: a plain dtype `[rank extents]`. Output: i64 `[rank, count]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonZero {
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

/// Boxes chosen by score that do not overlap much (ONNX NonMaxSuppression).
///
/// Inputs: boxes f32 `[batch, n, 4]`; scores f32 `[batch, classes, n]`; optionally max_output_boxes_per_class i64, iou_threshold f32,
/// score_threshold f32, scalars or single elements. Output: i64 `[count, 3]` of (batch, class, box).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonMaxSuppression {
    /// Whether boxes are (x_center, y_center, width, height), and not two corners (y1, x1, y2, x2).
    pub center_point_box: bool,
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

/// Different elements, or different slices along an extent (ONNX Unique).
///
/// Input: a plain dtype. Outputs: the unique ones; i64 index of the first occurrence of each; i64 for each element of the input which unique one it
/// is; i64 how often each occurs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    /// The extent, or the flattened input.
    pub axis: Option<isize>,
    /// Whether in ascending order, and not in that of first occurrence.
    pub sorted: bool,
    /// A symbol that gets its value when the node has run.
    pub count: Dim,
}

super::pending!(GatherElements, "GatherElements");
super::pending!(GatherNd, "GatherND");
super::pending!(ScatterElements, "ScatterElements");
super::pending!(ScatterNd, "ScatterND");
super::pending!(NonZero, "NonZero", count);
super::pending!(NonMaxSuppression, "NonMaxSuppression", count);
super::pending!(Unique, "Unique", count);
