//! Signal processing.

use super::{Evaluation, Inference, Numbers, Op, OpError, Operator, axis, filled, show};
use crate::{Bindings, DType, Dim, ValueType};

/// Discrete Fourier transform along one extent (ONNX DFT).
///
/// Input: f32 or f64 `[..., n, ..., 1]` (real) or `[..., n, ..., 2]` (complex), the transformed extent first cut or filled with zeros to `length`.
/// Output: as the input `[..., m, ..., 2]`, m = length, or `length / 2 + 1` if `onesided`; the inverse of a onesided spectrum is real `[..., 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dft {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// Points.
    pub length: Dim,
    /// Whether it goes back (divided by `length`).
    pub inverse: bool,
    /// Whether only the first half of the spectrum is given (or, inverse, taken).
    pub onesided: bool,
}

impl Operator for Dft {
    fn name(&self) -> &'static str {
        "DFT"
    }

    fn attributes(&self) -> String {
        let (axis, length) = (self.axis, &self.length);
        format!(" {{axis={axis}, length={length}, inverse={}, onesided={}}}", self.inverse, self.onesided)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let x = cx.typed(0, &[DType::F32, DType::F64], "f32 or f64")?;
        let along = axis(self.axis, x.len())?;
        let last = x.len() - 1;
        if along == last || !matches!(x[last], Dim::Num(1 | 2)) {
            let reason = format!("{} is no signal along extent {along} of 1 or 2 parts at the end", show(x));
            return Err(OpError::Shape(reason));
        }
        if self.length == Dim::Num(0) {
            return Err(OpError::Attribute { name: "length", reason: "it is 0".into() });
        }
        let mut shape = x.to_vec();
        shape[along] = if self.onesided && !self.inverse {
            self.length.clone().div(Dim::Num(2)).add(Dim::Num(1))
        } else {
            self.length.clone()
        };
        shape[last] = Dim::Num(if self.onesided && self.inverse { 1 } else { 2 });
        Ok(vec![ValueType::Tensor { dtype: cx.tensor(0)?.0, shape }])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Dft(Dft { length: self.length.bind(bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let length = self.length.eval(cx.bindings())?;
        let x_shape = cx.tensor(0)?.shape().to_vec();
        let x = Numbers::load(cx.tensor(0)?)?.to_f64();
        let along = axis(self.axis, shape.len())?;
        let last = shape.len() - 1;
        let (n, m) = (x_shape[along], shape[along]);
        let (parts, out_parts) = (x_shape[last], shape[last]);
        let inner: usize = shape[along + 1..last].iter().product();
        let outer: usize = shape[..along].iter().product();
        let sign = if self.inverse { 1.0 } else { -1.0 };
        let mut y = filled(&shape, 0.0f64)?;
        if y.is_empty() {
            return cx.put_numbers(0, &Numbers::F64(y));
        }
        // Real and imaginary part of e^(±2πi k / length).
        let mut turns = filled(&[length], (0.0, 0.0))?;
        for (k, turn) in turns.iter_mut().enumerate() {
            let angle = sign * std::f64::consts::TAU * k as f64 / length as f64;
            *turn = (angle.cos(), angle.sin());
        }
        let halves = self.onesided && self.inverse;
        let used = if halves { n.min(length / 2 + 1) } else { n.min(length) };
        for block in 0..outer * inner {
            let (o, i) = (block / inner, block % inner);
            for k in 0..m {
                let (mut re, mut im) = (0.0, 0.0);
                for j in 0..used {
                    let at = ((o * n + j) * inner + i) * parts;
                    let (a, b) = (x[at], if parts == 2 { x[at + 1] } else { 0.0 });
                    let (c, s) = turns[(j as u128 * k as u128 % length as u128) as usize];
                    // In half a spectrum each element but the first and the middle one stands for its conjugate, too.
                    let times = if halves && j > 0 && 2 * j < length { 2.0 } else { 1.0 };
                    re += times * (a * c - b * s);
                    im += a * s + b * c;
                }
                let factor = if self.inverse { 1.0 / length as f64 } else { 1.0 };
                let at = ((o * m + k) * inner + i) * out_parts;
                y[at] = re * factor;
                if out_parts == 2 {
                    y[at + 1] = im * factor;
                }
            }
        }
        cx.put_numbers(0, &Numbers::F64(y))
    }
}
