//! Element-wise operators.

use super::{Evaluation, Inference, OpError, Operator, broadcast, show};
use crate::{DType, ValueType};

/// An element-wise function of one f32 operand. Output: f32, same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1 / x`
    Reciprocal,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)` (ONNX Swish, SiLU)
    Silu,
    /// `x * Φ(x)` with the error function (ONNX Gelu, approximate = none)
    Gelu,
    /// `x * Φ(x)` by tanh (ONNX Gelu, approximate = tanh)
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    GeluQuick,
}

impl Unary {
    /// The function.
    #[must_use]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Reciprocal => 1.0 / x,
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::Relu => x.max(0.0),
            Unary::Silu => x / (1.0 + (-x).exp()),
            Unary::Gelu => {
                let x = f64::from(x);
                (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
            }
            Unary::GeluTanh => {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Unary::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
        }
    }

    /// Every unary function.
    pub const ALL: [Unary; 13] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Exp,
        Unary::Log,
        Unary::Sqrt,
        Unary::Reciprocal,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Relu,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::GeluQuick,
    ];
}

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

impl Operator for Unary {
    fn name(&self) -> &'static str {
        match self {
            Unary::Neg => "Neg",
            Unary::Abs => "Abs",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Reciprocal => "Reciprocal",
            Unary::Tanh => "Tanh",
            Unary::Sigmoid => "Sigmoid",
            Unary::Relu => "Relu",
            Unary::Silu => "Silu",
            Unary::Gelu => "Gelu",
            Unary::GeluTanh => "GeluTanh",
            Unary::GeluQuick => "GeluQuick",
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        Ok(vec![ValueType::tensor(DType::F32, cx.f32(0)?)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let mut x = cx.f32(0)?;
        x.iter_mut().for_each(|x| *x = self.apply(*x));
        cx.put_f32(0, &x)
    }
}

/// An element-wise function of two f32 operands, broadcast as in NumPy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// `a^b`
    Pow,
}

impl Binary {
    /// The function.
    #[must_use]
    pub fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::Pow => a.powf(b),
        }
    }

    /// Every binary function.
    pub const ALL: [Binary; 7] =
        [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max, Binary::Pow];
}

impl Operator for Binary {
    fn name(&self) -> &'static str {
        match self {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Min => "Min",
            Binary::Max => "Max",
            Binary::Pow => "Pow",
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(2..=2, "2")?;
        let shape = broadcast(cx.f32(0)?, cx.f32(1)?)?;
        Ok(vec![ValueType::Tensor { dtype: DType::F32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let (a, b) = (cx.f32(0)?, cx.f32(1)?);
        let shape = cx.output_shape(0)?;
        let (a_shape, b_shape) = (cx.tensor(0)?.shape().to_vec(), cx.tensor(1)?.shape().to_vec());
        let count: usize = shape.iter().product();
        let y: Vec<f32> = (0..count)
            .map(|i| self.apply(a[broadcast_index(i, &shape, &a_shape)], b[broadcast_index(i, &shape, &b_shape)]))
            .collect();
        cx.put_f32(0, &y)
    }
}

/// Where element `index` of a broadcast result lies in an operand.
fn broadcast_index(index: usize, shape: &[usize], operand: &[usize]) -> usize {
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
