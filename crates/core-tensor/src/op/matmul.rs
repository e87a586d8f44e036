//! Matrix products.

use super::elementwise::broadcast_index;
use super::{Evaluation, Inference, Numbers, OpError, Operator, broadcast, filled, room, show, split_last};
use crate::{DType, Dim, Tensor, ValueType};

/// `Y = A·B` (`B` is `[..., k, n]`) or `Y = A·Bᵀ` (`B` is `[..., n, k]`, as linear layers are stored).
///
/// Inputs: `A` f32 `[..., m, k]` (or `[k]`: the extent m is missing in the result, too); `B` of any float dtype, or two extents of a block dtype.
/// Or both f64, or both of one integer dtype, whose products wrap around. Extents before the last two broadcast as in NumPy.
/// Output: A's dtype, `[..., m, n]`. The kernel is chosen by the dtype of `B`: a block format is a dtype of weights.
/// (ONNX MatMul and Gemm's `transB`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatMul {
    /// Whether `B` is stored `[..., n, k]`.
    pub transpose_b: bool,
}

/// The shape of a product of matrices.
fn product_shape(a: &[Dim], b: &[Dim], transpose_b: bool) -> Result<Vec<Dim>, OpError> {
    let (rows, k) = split_last(a)?;
    let [b_batch @ .., first, second] = b else {
        return Err(OpError::Shape(format!("B must have 2 or more extents, it is {}", show(b))));
    };
    let (n, k_b) = if transpose_b { (first, second) } else { (second, first) };
    if k.differs(k_b) {
        let transposed = if transpose_b { " (transposed)" } else { "" };
        return Err(OpError::Shape(format!("A {} and B {}{transposed} do not share k", show(a), show(b))));
    }
    let mut shape = match rows.split_last() {
        Some((m, batch)) => [broadcast(batch, b_batch)?, vec![m.clone()]].concat(),
        None => b_batch.to_vec(),
    };
    shape.push(n.clone());
    Ok(shape)
}

/// Where the operands of a product of matrices lie.
struct Places {
    m: usize,
    n: usize,
    k: usize,
    /// For each matrix of the result, which ones of A and B.
    batch: Vec<(usize, usize)>,
}

impl Places {
    fn new(a: &[usize], b: &[usize], transpose_b: bool) -> Result<Places, OpError> {
        let ([b_batch @ .., first, second], [a_rows @ .., k]) = (b, a) else {
            return Err(OpError::Shape(format!("no product of {a:?} and {b:?}")));
        };
        let (m, a_batch) = a_rows.split_last().map_or((1, &[][..]), |(m, batch)| (*m, batch));
        let dims = |shape: &[usize]| -> Vec<Dim> { shape.iter().map(|n| Dim::Num(*n)).collect() };
        let batch = broadcast(&dims(a_batch), &dims(b_batch))?;
        let batch: Vec<usize> = batch.iter().filter_map(Dim::as_num).collect();
        let mut pairs = room(&batch)?;
        for i in 0..batch.iter().product() {
            pairs.push((broadcast_index(i, &batch, a_batch), broadcast_index(i, &batch, b_batch)));
        }
        Ok(Places { m, n: if transpose_b { *first } else { *second }, k: *k, batch: pairs })
    }

    /// All sums of products.
    fn multiply<T: Copy>(
        &self,
        (a, b): (&[T], &[T]),
        transpose_b: bool,
        zero: T,
        multiply_add: impl Fn(T, T, T) -> T,
    ) -> Result<Vec<T>, OpError> {
        let (m, n, k) = (self.m, self.n, self.k);
        let mut y = filled(&[self.batch.len(), m, n], zero)?;
        if n == 0 {
            return Ok(y);
        }
        for (row, out) in y.chunks_mut(n).enumerate() {
            let (a_matrix, b_matrix) = self.batch[row / m];
            let a = &a[(a_matrix * m + row % m) * k..][..k];
            let b = &b[b_matrix * k * n..][..k * n];
            for (col, out) in out.iter_mut().enumerate() {
                for (i, x) in a.iter().enumerate() {
                    *out = multiply_add(*out, *x, if transpose_b { b[col * k + i] } else { b[i * n + col] });
                }
            }
        }
        Ok(y)
    }
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
        let (a_dtype, a) = cx.tensor(0)?;
        let (dtype, b) = cx.tensor(1)?;
        if a_dtype == DType::F64 || (a_dtype.is_int() && a_dtype.packing().0 == 1) {
            let b = cx.typed(1, &[a_dtype], "of A's dtype")?;
            return Ok(vec![ValueType::Tensor { dtype: a_dtype, shape: product_shape(a, b, self.transpose_b)? }]);
        }
        let a = cx.f32(0)?;
        if !(dtype.is_float() || dtype.is_block()) {
            return Err(OpError::DType { input: 1, expected: "a float or block dtype", found: dtype.to_string() });
        }
        if dtype.is_block() && !self.transpose_b {
            return Err(OpError::Attribute {
                name: "transpose_b",
                reason: format!("{dtype} weights have their blocks along k and must be stored [n, k]"),
            });
        }
        if dtype.is_block() && b.len() != 2 {
            return Err(OpError::Shape(format!("{dtype} weights must have 2 extents, B is {}", show(b))));
        }
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape: product_shape(a, b, self.transpose_b)? }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let places = Places::new(cx.tensor(0)?.shape(), cx.tensor(1)?.shape(), self.transpose_b)?;
        let b_dtype = cx.tensor(1)?.dtype();
        match Numbers::load(cx.tensor(0)?)? {
            Numbers::F64(a) => {
                let b = Numbers::load(cx.tensor(1)?)?.to_f64();
                let y = places.multiply((&a, &b), self.transpose_b, 0.0, |sum, a, b| sum + a * b)?;
                cx.put_numbers(0, &Numbers::F64(y))
            }
            Numbers::Int(a) => {
                let Numbers::Int(b) = Numbers::load(cx.tensor(1)?)? else {
                    return Err(OpError::DType { input: 1, expected: "of A's dtype", found: b_dtype.to_string() });
                };
                let add = |sum: i128, a: i128, b: i128| sum.wrapping_add(a.wrapping_mul(b));
                let y = places.multiply((&a, &b), self.transpose_b, 0, add)?;
                cx.put_numbers(0, &Numbers::Int(y))
            }
            Numbers::F32(mut a) => {
                let b = cx.f32(1)?;
                if cx.quantize_activations && b_dtype.is_block() && places.k > 0 {
                    a.chunks_mut(places.k).for_each(quantize_row_q8);
                }
                let y = places.multiply((&a, &b), self.transpose_b, 0.0, |sum, a, b| sum + a * b)?;
                cx.put_f32(0, &y)
            }
        }
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

impl Operator for MatMulInteger {
    fn name(&self) -> &'static str {
        "MatMulInteger"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=4, "2 to 4")?;
        let bytes = [DType::U8, DType::I8];
        let (a, b) = (cx.typed(0, &bytes, "u8 or i8")?, cx.typed(1, &bytes, "u8 or i8")?);
        let shape = product_shape(a, b, false)?;
        for (input, operand) in [(2, a), (3, b)] {
            if !cx.has(input) {
                continue;
            }
            let (dtype, _) = cx.tensor(input - 2)?;
            let zero = cx.typed(input, &[dtype], "of its operand's dtype")?;
            // A vector is one zero point per row of A, or per column of B.
            let zero = if input == 2 && zero.len() == 1 { [zero, &[Dim::Num(1)]].concat() } else { zero.to_vec() };
            let whole = zero.iter().all(|dim| *dim == Dim::Num(1));
            let fits = |(a, b): (&Dim, &Dim)| *a == Dim::Num(1) || !a.differs(b);
            let near = zero.len() <= operand.len() && zero.iter().rev().zip(operand.iter().rev()).all(fits);
            if !whole && !near {
                let reason = format!("the zero point {} does not fit {}", show(&zero), show(operand));
                return Err(OpError::Shape(reason));
            }
        }
        Ok(vec![ValueType::Tensor { dtype: DType::I32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let places = Places::new(cx.tensor(0)?.shape(), cx.tensor(1)?.shape(), false)?;
        let (a, b) = (shifted(cx, 0)?, shifted(cx, 1)?);
        let y = places.multiply((&a, &b), false, 0, |sum: i32, a, b| sum.wrapping_add(a * b))?;
        cx.put(0, &y)
    }
}

/// An operand less its zero point.
fn shifted(cx: &Evaluation<'_>, input: usize) -> Result<Vec<i32>, OpError> {
    let x = small_integers(cx.tensor(input)?)?;
    if !cx.has(input + 2) {
        return Ok(x);
    }
    let (shape, zero) = (cx.tensor(input)?.shape(), small_integers(cx.tensor(input + 2)?)?);
    let mut zero_shape = cx.tensor(input + 2)?.shape().to_vec();
    if input == 0 && zero_shape.len() == 1 {
        zero_shape.push(1);
    }
    let at = |i: usize| if zero.len() == 1 { 0 } else { broadcast_index(i, shape, &zero_shape) };
    Ok(x.iter().enumerate().map(|(i, x)| x - zero[at(i)]).collect())
}

/// The elements of a u8 or i8 tensor.
pub(crate) fn small_integers(tensor: &Tensor) -> Result<Vec<i32>, OpError> {
    Ok(match tensor.dtype() {
        DType::I8 => tensor.to_vec::<i8>()?.into_iter().map(i32::from).collect(),
        _ => tensor.to_vec::<u8>()?.into_iter().map(i32::from).collect(),
    })
}
