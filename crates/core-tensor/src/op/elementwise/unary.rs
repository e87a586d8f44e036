//! Functions of one operand.

use super::super::numbers::Numbers;
use super::super::{Evaluation, Inference, OpError, Operator};
use super::erf;
use crate::{DType, ValueType};

/// A parameter of an element-wise function: an f32 that compares by its bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scalar(u32);

impl Scalar {
    /// The parameter.
    #[must_use]
    pub fn new(value: f32) -> Scalar {
        Scalar(value.to_bits())
    }

    /// Its value.
    #[must_use]
    pub fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

/// An element-wise function of one operand. Output: same shape and dtype (`bool` for `IsNan`, `IsInf`, `Not`).
///
/// All are defined on floats; `Neg`, `Abs`, `Sign`, `Relu` and `Clip` on integers, too; `Not` on `bool`, `BitwiseNot` on integers.
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
    /// The error function.
    Erf,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Tangent.
    Tan,
    /// Inverse sine.
    Asin,
    /// Inverse cosine.
    Acos,
    /// Inverse tangent.
    Atan,
    /// Hyperbolic sine.
    Sinh,
    /// Hyperbolic cosine.
    Cosh,
    /// Inverse hyperbolic sine.
    Asinh,
    /// Inverse hyperbolic cosine.
    Acosh,
    /// Inverse hyperbolic tangent.
    Atanh,
    /// The largest integer not above.
    Floor,
    /// The smallest integer not below.
    Ceil,
    /// The nearest integer, halves to even.
    Round,
    /// -1, 0 or 1.
    Sign,
    /// `ln(1 + e^x)`
    Softplus,
    /// `x / (1 + |x|)`
    Softsign,
    /// `x * tanh(softplus(x))`
    Mish,
    /// `x * max(0, min(1, x/6 + 1/2))`
    HardSwish,
    /// `max(0, min(1, alpha x + beta))`
    HardSigmoid {
        /// Slope.
        alpha: Scalar,
        /// Offset.
        beta: Scalar,
    },
    /// `x` above 0, `alpha x` below.
    LeakyRelu {
        /// Slope below 0.
        alpha: Scalar,
    },
    /// `x` above 0, `alpha (e^x - 1)` below.
    Elu {
        /// Factor below 0.
        alpha: Scalar,
    },
    /// `max(0, x) + min(0, alpha (e^(x/alpha) - 1))`
    Celu {
        /// Scale below 0.
        alpha: Scalar,
    },
    /// `gamma x` above 0, `gamma alpha (e^x - 1)` below.
    Selu {
        /// Factor below 0.
        alpha: Scalar,
        /// Factor everywhere.
        gamma: Scalar,
    },
    /// `x` above `alpha`, else 0.
    ThresholdedRelu {
        /// Threshold.
        alpha: Scalar,
    },
    /// `x + bias` below `-lambd`, `x - bias` above `lambd`, else 0.
    Shrink {
        /// Threshold.
        lambd: Scalar,
        /// Offset.
        bias: Scalar,
    },
    /// `min(max(x, min), max)`; a NaN stays one.
    Clip {
        /// Least value.
        min: Scalar,
        /// Largest value.
        max: Scalar,
    },
    /// `x * sigmoid(alpha x)` (ONNX Swish).
    Swish {
        /// Factor inside of the sigmoid.
        alpha: Scalar,
    },
    /// Whether it is no number. Output: bool.
    IsNan,
    /// Whether it is infinite. Output: bool.
    IsInf {
        /// Whether -∞ counts.
        negative: bool,
        /// Whether +∞ counts.
        positive: bool,
    },
    /// Logical negation. Input and output: bool.
    Not,
    /// Complement of all bits. Integers.
    BitwiseNot,
}

impl Unary {
    /// The function on f32 (1 for true, 0 for false).
    #[must_use]
    pub fn apply(self, x: f32) -> f32 {
        let truth = |b: bool| if b { 1.0 } else { 0.0 };
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
            Unary::Erf => erf(f64::from(x)) as f32,
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tan => x.tan(),
            Unary::Asin => x.asin(),
            Unary::Acos => x.acos(),
            Unary::Atan => x.atan(),
            Unary::Sinh => x.sinh(),
            Unary::Cosh => x.cosh(),
            Unary::Asinh => x.asinh(),
            Unary::Acosh => x.acosh(),
            Unary::Atanh => x.atanh(),
            Unary::Floor => x.floor(),
            Unary::Ceil => x.ceil(),
            Unary::Round => x.round_ties_even(),
            Unary::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x * 0.0
                }
            }
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Softsign => x / (1.0 + x.abs()),
            Unary::Mish => x * Unary::Softplus.apply(x).tanh(),
            Unary::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Unary::HardSigmoid { alpha, beta } => (alpha.get() * x + beta.get()).clamp(0.0, 1.0),
            Unary::LeakyRelu { alpha } => {
                if x < 0.0 {
                    alpha.get() * x
                } else {
                    x
                }
            }
            Unary::Elu { alpha } => {
                if x < 0.0 {
                    alpha.get() * x.exp_m1()
                } else {
                    x
                }
            }
            Unary::Celu { alpha } => x.max(0.0) + (alpha.get() * (x / alpha.get()).exp_m1()).min(0.0),
            Unary::Selu { alpha, gamma } => gamma.get() * if x <= 0.0 { alpha.get() * x.exp_m1() } else { x },
            Unary::ThresholdedRelu { alpha } => {
                if x > alpha.get() {
                    x
                } else {
                    0.0
                }
            }
            Unary::Shrink { lambd, bias } => {
                if x < -lambd.get() {
                    x + bias.get()
                } else if x > lambd.get() {
                    x - bias.get()
                } else {
                    0.0
                }
            }
            Unary::Clip { min, max } => {
                if x.is_nan() {
                    x
                } else {
                    x.max(min.get()).min(max.get())
                }
            }
            Unary::Swish { alpha } => x / (1.0 + (-alpha.get() * x).exp()),
            Unary::IsNan => truth(x.is_nan()),
            Unary::IsInf { negative, positive } => {
                truth((negative && x == f32::NEG_INFINITY) || (positive && x == f32::INFINITY))
            }
            Unary::Not => truth(x == 0.0),
            Unary::BitwiseNot => f32::from_bits(!x.to_bits()),
        }
    }

    /// The function on f64, where it is not as exact through f32.
    fn apply_f64(self, x: f64) -> f64 {
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
            Unary::Erf => erf(x),
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tan => x.tan(),
            Unary::Asin => x.asin(),
            Unary::Acos => x.acos(),
            Unary::Atan => x.atan(),
            Unary::Sinh => x.sinh(),
            Unary::Cosh => x.cosh(),
            Unary::Asinh => x.asinh(),
            Unary::Acosh => x.acosh(),
            Unary::Atanh => x.atanh(),
            Unary::Floor => x.floor(),
            Unary::Ceil => x.ceil(),
            Unary::Round => x.round_ties_even(),
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::IsInf { negative, positive } => {
                f64::from(u8::from((negative && x == f64::NEG_INFINITY) || (positive && x == f64::INFINITY)))
            }
            Unary::Clip { min, max } if !x.is_nan() => x.max(f64::from(min.get())).min(f64::from(max.get())),
            other => f64::from(other.apply(x as f32)),
        }
    }

    fn apply_int(self, x: i128) -> Result<i128, OpError> {
        Ok(match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Sign => x.signum(),
            Unary::Relu => x.max(0),
            Unary::Not => i128::from(x == 0),
            Unary::BitwiseNot => !x,
            Unary::Clip { min, max } => x.max(min.get() as i128).min(max.get() as i128),
            _ => return Err(OpError::DType { input: 0, expected: "a float", found: "an integer".into() }),
        })
    }

    /// Whether the function is defined on integers.
    fn takes_integers(self) -> bool {
        matches!(self, Unary::Neg | Unary::Abs | Unary::Sign | Unary::Relu | Unary::BitwiseNot | Unary::Clip { .. })
    }

    /// Whether the result is `bool`.
    #[must_use]
    pub fn is_predicate(self) -> bool {
        matches!(self, Unary::IsNan | Unary::IsInf { .. } | Unary::Not)
    }

    /// Every function of f32 that gives f32, parametric ones with the parameters that ONNX has as defaults.
    #[must_use]
    pub fn all() -> Vec<Unary> {
        let scalar = Scalar::new;
        let mut all = Unary::ALL.to_vec();
        all.extend([
            Unary::Erf,
            Unary::Sin,
            Unary::Cos,
            Unary::Tan,
            Unary::Asin,
            Unary::Acos,
            Unary::Atan,
            Unary::Sinh,
            Unary::Cosh,
            Unary::Asinh,
            Unary::Acosh,
            Unary::Atanh,
            Unary::Floor,
            Unary::Ceil,
            Unary::Round,
            Unary::Sign,
            Unary::Softplus,
            Unary::Softsign,
            Unary::Mish,
            Unary::HardSwish,
            Unary::HardSigmoid { alpha: scalar(0.2), beta: scalar(0.5) },
            Unary::LeakyRelu { alpha: scalar(0.01) },
            Unary::Elu { alpha: scalar(1.0) },
            Unary::Celu { alpha: scalar(1.0) },
            Unary::Selu { alpha: scalar(1.673_263_2), gamma: scalar(1.050_701) },
            Unary::ThresholdedRelu { alpha: scalar(1.0) },
            Unary::Shrink { lambd: scalar(0.5), bias: scalar(0.1) },
            Unary::Clip { min: scalar(-0.5), max: scalar(0.75) },
            Unary::Swish { alpha: scalar(1.5) },
        ]);
        all
    }

    /// The functions without parameters that neural networks are full of.
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
            Unary::Erf => "Erf",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
            Unary::Tan => "Tan",
            Unary::Asin => "Asin",
            Unary::Acos => "Acos",
            Unary::Atan => "Atan",
            Unary::Sinh => "Sinh",
            Unary::Cosh => "Cosh",
            Unary::Asinh => "Asinh",
            Unary::Acosh => "Acosh",
            Unary::Atanh => "Atanh",
            Unary::Floor => "Floor",
            Unary::Ceil => "Ceil",
            Unary::Round => "Round",
            Unary::Sign => "Sign",
            Unary::Softplus => "Softplus",
            Unary::Softsign => "Softsign",
            Unary::Mish => "Mish",
            Unary::HardSwish => "HardSwish",
            Unary::HardSigmoid { .. } => "HardSigmoid",
            Unary::LeakyRelu { .. } => "LeakyRelu",
            Unary::Elu { .. } => "Elu",
            Unary::Celu { .. } => "Celu",
            Unary::Selu { .. } => "Selu",
            Unary::ThresholdedRelu { .. } => "ThresholdedRelu",
            Unary::Shrink { .. } => "Shrink",
            Unary::Clip { .. } => "Clip",
            Unary::Swish { .. } => "Swish",
            Unary::IsNan => "IsNaN",
            Unary::IsInf { .. } => "IsInf",
            Unary::Not => "Not",
            Unary::BitwiseNot => "BitwiseNot",
        }
    }

    fn attributes(&self) -> String {
        match self {
            Unary::HardSigmoid { alpha, beta } => format!(" {{alpha={alpha:?}, beta={beta:?}}}"),
            Unary::LeakyRelu { alpha }
            | Unary::Elu { alpha }
            | Unary::Celu { alpha }
            | Unary::Swish { alpha }
            | Unary::ThresholdedRelu { alpha } => format!(" {{alpha={alpha:?}}}"),
            Unary::Selu { alpha, gamma } => format!(" {{alpha={alpha:?}, gamma={gamma:?}}}"),
            Unary::Shrink { lambd, bias } => format!(" {{lambd={lambd:?}, bias={bias:?}}}"),
            Unary::Clip { min, max } => format!(" {{min={min:?}, max={max:?}}}"),
            Unary::IsInf { negative, positive } => format!(" {{negative={negative}, positive={positive}}}"),
            _ => String::new(),
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        let (fits, expected) = match self {
            Unary::Not => (dtype == DType::Bool, "bool"),
            Unary::BitwiseNot => (dtype.is_int(), "an integer"),
            op if op.takes_integers() => (dtype.is_float() || dtype.is_int(), "a float or an integer"),
            _ => (dtype.is_float(), "a float"),
        };
        if !fits {
            return Err(OpError::DType { input: 0, expected, found: dtype.to_string() });
        }
        Ok(vec![ValueType::tensor(if self.is_predicate() { DType::Bool } else { dtype }, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let result = match Numbers::load(cx.tensor(0)?)? {
            Numbers::F32(v) => Numbers::F32(v.into_iter().map(|x| self.apply(x)).collect()),
            Numbers::F64(v) => Numbers::F64(v.into_iter().map(|x| self.apply_f64(x)).collect()),
            Numbers::Int(v) => Numbers::Int(v.into_iter().map(|x| self.apply_int(x)).collect::<Result<_, _>>()?),
        };
        cx.put_numbers(0, &result)
    }
}
