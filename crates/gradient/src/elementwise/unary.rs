//! Functions of one operand.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LN_2, PI};

use core_tensor::op::{Binary, Unary};
use core_tensor::{Node, ValueId};

use crate::GradientError;
use crate::backward::{Backward, unsupported};
use crate::builder::Builder;

impl Backward {
    pub(crate) fn unary(&mut self, op: Unary, node: &Node, dy: ValueId) -> Result<(), GradientError> {
        let x = self.input(node, 0)?;
        let slope = match slope(&mut self.build, op, x, node.outputs[0])? {
            Slope::Zero => return Ok(()),
            Slope::One => None,
            Slope::Value(slope) => Some(slope),
            Slope::Unknown => return Err(unsupported(node, "")),
        };
        let dx = match slope {
            Some(slope) => self.build.mul(dy, slope)?,
            None => dy,
        };
        self.give(node, 0, dx)
    }

    /// Of `activation(gate) · up`.
    pub(crate) fn gated_activation(
        &mut self,
        activation: Unary,
        node: &Node,
        dy: ValueId,
    ) -> Result<(), GradientError> {
        let (gate, up) = (self.input(node, 0)?, self.input(node, 1)?);
        let opened = self.build.unary(activation, gate)?;
        if self.wants(node, 1) {
            let dup = self.build.mul(dy, opened)?;
            self.give(node, 1, dup)?;
        }
        if self.wants(node, 0) {
            let dopened = self.build.mul(dy, up)?;
            let dgate = match slope(&mut self.build, activation, gate, opened)? {
                Slope::Zero => return Ok(()),
                Slope::One => dopened,
                Slope::Value(slope) => self.build.mul(dopened, slope)?,
                Slope::Unknown => return Err(unsupported(node, " with such an activation")),
            };
            self.give(node, 0, dgate)?;
        }
        Ok(())
    }
}

/// A derivative.
enum Slope {
    /// 0 everywhere but at steps.
    Zero,
    One,
    Value(ValueId),
    /// There is none.
    Unknown,
}

/// The derivative of a function at `x`, where it gives `y`.
fn slope(b: &mut Builder, op: Unary, x: ValueId, y: ValueId) -> Result<Slope, GradientError> {
    Ok(Slope::Value(match op {
        Unary::Floor | Unary::Ceil | Unary::Round | Unary::Sign => return Ok(Slope::Zero),
        Unary::IsNan | Unary::IsInf { .. } | Unary::Not | Unary::BitwiseNot => return Ok(Slope::Unknown),
        Unary::Clip { min, max } if min.get() == f32::NEG_INFINITY && max.get() == f32::INFINITY => {
            return Ok(Slope::One);
        }
        Unary::Neg => b.scalar(-1.0)?,
        Unary::Abs => b.unary(Unary::Sign, x)?,
        Unary::Exp => y,
        Unary::Log => b.unary(Unary::Reciprocal, x)?,
        Unary::Sqrt => {
            let double = b.scaled(y, 2.0)?;
            b.unary(Unary::Reciprocal, double)?
        }
        Unary::Reciprocal => {
            let square = b.square(y)?;
            b.unary(Unary::Neg, square)?
        }
        Unary::Tanh => {
            let square = b.square(y)?;
            b.rest(1.0, square)?
        }
        Unary::Sigmoid => {
            let rest = b.rest(1.0, y)?;
            b.mul(y, rest)?
        }
        Unary::Silu => swish(b, x, 1.0)?,
        Unary::GeluQuick => swish(b, x, 1.702)?,
        Unary::Swish { alpha } => swish(b, x, alpha.get())?,
        Unary::Gelu => {
            // Φ(x) + x φ(x)
            let inner = b.scaled(x, FRAC_1_SQRT_2)?;
            let erf = b.unary(Unary::Erf, inner)?;
            let erf = b.shifted(erf, 1.0)?;
            let below = b.scaled(erf, 0.5)?;
            let square = b.square(x)?;
            let square = b.scaled(square, -0.5)?;
            let bell = b.unary(Unary::Exp, square)?;
            let bell = b.scaled(bell, FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * 0.5)?;
            let bell = b.mul(x, bell)?;
            b.add(below, bell)?
        }
        Unary::GeluTanh => {
            // With u = c (x + a x³): (1 + tanh u) / 2 + x (1 - tanh² u) c (1 + 3 a x²) / 2
            let (c, a) = ((2.0 / PI).sqrt(), 0.044_715);
            let square = b.square(x)?;
            let inner = b.scaled(square, a)?;
            let inner = b.shifted(inner, 1.0)?;
            let inner = b.mul(x, inner)?;
            let inner = b.scaled(inner, c)?;
            let tanh = b.unary(Unary::Tanh, inner)?;
            let below = b.shifted(tanh, 1.0)?;
            let bent = b.square(tanh)?;
            let bent = b.rest(1.0, bent)?;
            let steep = b.scaled(square, 3.0 * a)?;
            let steep = b.shifted(steep, 1.0)?;
            let steep = b.scaled(steep, c)?;
            let rise = b.mul(bent, steep)?;
            let rise = b.mul(x, rise)?;
            let sum = b.add(below, rise)?;
            b.scaled(sum, 0.5)?
        }
        Unary::Erf => {
            let square = b.square(x)?;
            let square = b.unary(Unary::Neg, square)?;
            let bell = b.unary(Unary::Exp, square)?;
            b.scaled(bell, FRAC_2_SQRT_PI)?
        }
        Unary::Sin => b.unary(Unary::Cos, x)?,
        Unary::Cos => {
            let sin = b.unary(Unary::Sin, x)?;
            b.unary(Unary::Neg, sin)?
        }
        Unary::Tan => {
            let square = b.square(y)?;
            b.shifted(square, 1.0)?
        }
        Unary::Asin => inverse_root(b, x, -1.0, 1.0)?,
        Unary::Acos => {
            let slope = inverse_root(b, x, -1.0, 1.0)?;
            b.unary(Unary::Neg, slope)?
        }
        Unary::Asinh => inverse_root(b, x, 1.0, 1.0)?,
        Unary::Acosh => inverse_root(b, x, 1.0, -1.0)?,
        Unary::Atan => {
            let square = b.square(x)?;
            let more = b.shifted(square, 1.0)?;
            b.unary(Unary::Reciprocal, more)?
        }
        Unary::Atanh => {
            let square = b.square(x)?;
            let rest = b.rest(1.0, square)?;
            b.unary(Unary::Reciprocal, rest)?
        }
        Unary::Sinh => b.unary(Unary::Cosh, x)?,
        Unary::Cosh => b.unary(Unary::Sinh, x)?,
        Unary::Softplus => b.unary(Unary::Sigmoid, x)?,
        Unary::Softsign => {
            let size = b.unary(Unary::Abs, x)?;
            let more = b.shifted(size, 1.0)?;
            let inverse = b.unary(Unary::Reciprocal, more)?;
            b.square(inverse)?
        }
        Unary::Mish => {
            // tanh s + x sigmoid(x) (1 - tanh² s) with s = softplus(x)
            let s = b.unary(Unary::Softplus, x)?;
            let tanh = b.unary(Unary::Tanh, s)?;
            let bent = b.square(tanh)?;
            let bent = b.rest(1.0, bent)?;
            let sigmoid = b.unary(Unary::Sigmoid, x)?;
            let rise = b.mul(sigmoid, bent)?;
            let rise = b.mul(x, rise)?;
            b.add(tanh, rise)?
        }
        Unary::HardSwish => {
            // Between -3 and 3: x / 3 + 1/2.
            let middle = b.scaled(x, 1.0 / 3.0)?;
            let middle = b.shifted(middle, 0.5)?;
            let (zero, one) = (b.scalar(0.0)?, b.scalar(1.0)?);
            let above = b.compared(Binary::Greater, x, -3.0)?;
            let below = b.compared(Binary::Less, x, 3.0)?;
            let inner = b.choose(below, middle, one)?;
            b.choose(above, inner, zero)?
        }
        Unary::Relu => above(b, x, 0.0, 1.0, 0.0)?,
        Unary::LeakyRelu { alpha } => above(b, x, 0.0, 1.0, alpha.get())?,
        Unary::ThresholdedRelu { alpha } => above(b, x, alpha.get(), 1.0, 0.0)?,
        Unary::HardSigmoid { alpha, .. } => {
            // y is inside of its bounds where x counts.
            let least = b.compared(Binary::Greater, y, 0.0)?;
            let most = b.compared(Binary::Less, y, 1.0)?;
            let (zero, slope) = (b.scalar(0.0)?, b.scalar(alpha.get())?);
            let inner = b.choose(most, slope, zero)?;
            b.choose(least, inner, zero)?
        }
        Unary::Clip { min, max } => {
            let least = b.compared(Binary::GreaterOrEqual, x, min.get())?;
            let most = b.compared(Binary::LessOrEqual, x, max.get())?;
            let (zero, one) = (b.scalar(0.0)?, b.scalar(1.0)?);
            let inner = b.choose(most, one, zero)?;
            b.choose(least, inner, zero)?
        }
        Unary::Shrink { lambd, .. } => {
            let size = b.unary(Unary::Abs, x)?;
            above(b, size, lambd.get(), 1.0, 0.0)?
        }
        Unary::Elu { alpha } => curved(b, x, 1.0, alpha.get(), 1.0)?,
        Unary::Celu { alpha } => curved(b, x, 1.0, 1.0, 1.0 / alpha.get())?,
        Unary::Selu { alpha, gamma } => curved(b, x, gamma.get(), gamma.get() * alpha.get(), 1.0)?,
    }))
}

/// Of `x s` with `s = sigmoid(alpha x)`: `s (1 + alpha x (1 - s))`.
fn swish(b: &mut Builder, x: ValueId, alpha: f32) -> Result<ValueId, GradientError> {
    let inner = if alpha == 1.0 { x } else { b.scaled(x, alpha)? };
    let s = b.unary(Unary::Sigmoid, inner)?;
    let rest = b.rest(1.0, s)?;
    let rise = b.mul(inner, rest)?;
    let rise = b.shifted(rise, 1.0)?;
    b.mul(s, rise)
}

/// `1 / sqrt(factor x² + offset)`
fn inverse_root(b: &mut Builder, x: ValueId, factor: f32, offset: f32) -> Result<ValueId, GradientError> {
    let square = b.square(x)?;
    let square = b.scaled(square, factor)?;
    let square = b.shifted(square, offset)?;
    let root = b.unary(Unary::Sqrt, square)?;
    b.unary(Unary::Reciprocal, root)
}

/// One number above a threshold, another elsewhere.
fn above(b: &mut Builder, x: ValueId, threshold: f32, high: f32, low: f32) -> Result<ValueId, GradientError> {
    let condition = b.compared(Binary::Greater, x, threshold)?;
    let (high, low) = (b.scalar(high)?, b.scalar(low)?);
    b.choose(condition, high, low)
}

/// A number above 0, `factor · e^(rate x)` below.
fn curved(b: &mut Builder, x: ValueId, high: f32, factor: f32, rate: f32) -> Result<ValueId, GradientError> {
    // Above 0 the other branch is not to overflow: LN_2 keeps it small.
    let cut = b.scalar(LN_2)?;
    let inner = b.scaled(x, rate)?;
    let inner = b.binary(Binary::Min, inner, cut)?;
    let low = b.unary(Unary::Exp, inner)?;
    let low = b.scaled(low, factor)?;
    let condition = b.compared(Binary::Greater, x, 0.0)?;
    let high = b.scalar(high)?;
    b.choose(condition, high, low)
}
