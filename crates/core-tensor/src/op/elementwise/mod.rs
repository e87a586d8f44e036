//! Element-wise operators.

use super::{Evaluation, Inference, OpError, Operator, show};
use crate::{DType, ValueType};

mod binary;
mod unary;

pub use binary::{Binary, Where};
pub use unary::{Scalar, Unary};

/// The error function by its Taylor series near zero and a continued fraction elsewhere (Abramowitz and Stegun 7.1.5, 7.1.14).
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let value = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut fraction = 0.0;
        for n in (1..60).rev() {
            fraction = f64::from(n) / 2.0 / (z + fraction);
        }
        1.0 - (-z * z).exp() / (z + fraction) / std::f64::consts::PI.sqrt()
    };
    value.copysign(x)
}

/// Where element `index` of a broadcast result lies in an operand.
pub(crate) fn broadcast_index(index: usize, shape: &[usize], operand: &[usize]) -> usize {
    let (mut rest, mut at, mut stride) = (index, 0, 1);
    for i in (0..shape.len()).rev() {
        let coordinate = rest % shape[i];
        rest /= shape[i];
        if let Some(j) = (i + operand.len()).checked_sub(shape.len()) {
            if operand[j] != 1 {
                at += coordinate * stride;
            }
            stride *= operand[j];
        }
    }
    at
}

/// `activation(gate) * up` (SwiGLU with `Silu`, GeGLU with `Gelu` or `GeluTanh`; Shazeer 2020).
///
/// Inputs: gate, up, both f32 of one shape. Output: f32, same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedActivation {
    /// The activation.
    pub activation: Unary,
}

impl Operator for GatedActivation {
    fn name(&self) -> &'static str {
        "GatedActivation"
    }

    fn attributes(&self) -> String {
        format!(" {{{}}}", self.activation.name())
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let (gate, up) = (cx.f32(0)?, cx.f32(1)?);
        if gate != up {
            return Err(OpError::Shape(format!("gate {} and up {} differ", show(gate), show(up))));
        }
        Ok(vec![ValueType::tensor(DType::F32, gate)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let (gate, up) = (cx.f32(0)?, cx.f32(1)?);
        let y: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| self.activation.apply(*gate) * up).collect();
        cx.put_f32(0, &y)
    }
}
