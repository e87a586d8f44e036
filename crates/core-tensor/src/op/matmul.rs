//! Matrix products.

use super::{Evaluation, Inference, OpError, Operator, show, split_last};
use crate::{DType, Dim, ValueType};

/// `Y = A·B` (`B` is `[k, n]`) or `Y = A·Bᵀ` (`B` is `[n, k]`, as linear layers are stored).
///
/// Inputs: `A` f32 `[..., m, k]`; `B` of any float or block dtype, two extents. Output: f32 `[..., m, n]`.
/// The kernel is chosen by the dtype of `B`: a block format is a dtype of weights.
/// (ONNX MatMul and Gemm's `transB`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatMul {
    /// Whether `B` is stored `[n, k]`.
    pub transpose_b: bool,
}

impl Operator for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn attributes(&self) -> String {
        if self.transpose_b { " {transpose_b}".into() } else { String::new() }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let a = cx.f32(0)?;
        let (dtype, b) = cx.tensor(1)?;
        if !(dtype.is_float() || dtype.is_block()) {
            return Err(OpError::DType { input: 1, expected: "a float or block dtype", found: dtype.to_string() });
        }
        if dtype.is_block() && !self.transpose_b {
            return Err(OpError::Attribute {
                name: "transpose_b",
                reason: format!("{dtype} weights have their blocks along k and must be stored [n, k]"),
            });
        }
        let (rows, k) = split_last(a)?;
        let [first, second] = b else {
            return Err(OpError::Shape(format!("B must have 2 extents, it is {}", show(b))));
        };
        let (n, k_b) = if self.transpose_b { (first, second) } else { (second, first) };
        if k != k_b {
            return Err(OpError::Shape(format!(
                "A {} and B {}{} do not share k",
                show(a),
                show(b),
                if self.transpose_b { " (transposed)" } else { "" }
            )));
        }
        let shape: Vec<Dim> = rows.iter().chain([n]).cloned().collect();
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut a = cx.f32(0)?;
        let b_dtype = cx.tensor(1)?.dtype();
        let b = cx.f32(1)?;
        let b_shape = cx.tensor(1)?.shape().to_vec();
        let (n, k) = if self.transpose_b { (b_shape[0], b_shape[1]) } else { (b_shape[1], b_shape[0]) };
        if cx.quantize_activations && b_dtype.is_block() && k > 0 {
            a.chunks_mut(k).for_each(quantize_row_q8);
        }
        let rows = a.len().checked_div(k).unwrap_or(0);
        let mut y = vec![0.0f32; if k == 0 { cx.output_len(0)? } else { rows * n }];
        for row in 0..rows {
            for col in 0..n {
                let mut sum = 0.0f32;
                for i in 0..k {
                    let w = if self.transpose_b { b[col * k + i] } else { b[i * n + col] };
                    sum += a[row * k + i] * w;
                }
                y[row * n + col] = sum;
            }
        }
        cx.put_f32(0, &y)
    }
}

/// Rounds a row of activations the way in which integer kernels see it: blocks of 32 share `d = amax / 127`, each element becomes
/// `round(x * (127 / amax)) * d`, halves to even: what processors and shaders round to. (ggml's scalar code takes halves away from zero, its
/// vector code does as here.) A block of nothing but tiny values (`amax` below 2⁻¹⁰⁰, where the factor would overflow) becomes zeros. A last,
/// shorter block is rounded alone.
pub fn quantize_row_q8(row: &mut [f32]) {
    for block in row.chunks_mut(32) {
        let amax = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (d, factor) = if amax < 7.9e-31 { (0.0, 0.0) } else { (amax / 127.0, 127.0 / amax) };
        for x in block {
            *x = (*x * factor).round_ties_even() * d;
        }
    }
}

/// Product of integer matrices (ONNX MatMulInteger): exact, i32.
///
/// Inputs: A u8 or i8 `[..., m, k]`; B u8 or i8 `[..., k, n]`; optionally A's zero point, scalar or `[m]` (or `[..., m, 1]`), of A's dtype; optionally
/// B's zero point, scalar or `[n]` (or `[..., 1, n]`), of B's dtype. Output: i32 `[..., m, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatMulInteger;

super::pending!(MatMulInteger, "MatMulInteger");
