//! Element-wise operators.

use core_tensor::op::{Binary, Scalar, Unary};
use core_tensor::{DType, Tensor};

use super::ExportError;
use super::nodes::{Writer, float, int, text};

impl Writer<'_> {
    /// A function of one operand.
    pub(super) fn unary(&mut self, unary: Unary, dtype: DType, x: &str, y: &str) -> Result<(), ExportError> {
        let number = |name: &str, value: Scalar| float(name, value.get());
        let (op, attributes) = match unary {
            Unary::Neg => ("Neg", vec![]),
            Unary::Abs => ("Abs", vec![]),
            Unary::Exp => ("Exp", vec![]),
            Unary::Log => ("Log", vec![]),
            Unary::Sqrt => ("Sqrt", vec![]),
            Unary::Reciprocal => ("Reciprocal", vec![]),
            Unary::Tanh => ("Tanh", vec![]),
            Unary::Sigmoid => ("Sigmoid", vec![]),
            Unary::Relu => ("Relu", vec![]),
            Unary::Erf => ("Erf", vec![]),
            Unary::Sin => ("Sin", vec![]),
            Unary::Cos => ("Cos", vec![]),
            Unary::Tan => ("Tan", vec![]),
            Unary::Asin => ("Asin", vec![]),
            Unary::Acos => ("Acos", vec![]),
            Unary::Atan => ("Atan", vec![]),
            Unary::Sinh => ("Sinh", vec![]),
            Unary::Cosh => ("Cosh", vec![]),
            Unary::Asinh => ("Asinh", vec![]),
            Unary::Acosh => ("Acosh", vec![]),
            Unary::Atanh => ("Atanh", vec![]),
            Unary::Floor => ("Floor", vec![]),
            Unary::Ceil => ("Ceil", vec![]),
            Unary::Round => ("Round", vec![]),
            Unary::Sign => ("Sign", vec![]),
            Unary::Softplus => ("Softplus", vec![]),
            Unary::Softsign => ("Softsign", vec![]),
            Unary::Mish => ("Mish", vec![]),
            Unary::HardSwish => ("HardSwish", vec![]),
            Unary::IsNan => ("IsNaN", vec![]),
            Unary::Not => ("Not", vec![]),
            Unary::BitwiseNot => ("BitwiseNot", vec![]),
            Unary::Gelu => ("Gelu", vec![]),
            Unary::GeluTanh => ("Gelu", vec![text("approximate", "tanh")]),
            Unary::HardSigmoid { alpha, beta } => ("HardSigmoid", vec![number("alpha", alpha), number("beta", beta)]),
            Unary::LeakyRelu { alpha } => ("LeakyRelu", vec![number("alpha", alpha)]),
            Unary::Elu { alpha } => ("Elu", vec![number("alpha", alpha)]),
            Unary::Celu { alpha } => ("Celu", vec![number("alpha", alpha)]),
            Unary::Selu { alpha, gamma } => ("Selu", vec![number("alpha", alpha), number("gamma", gamma)]),
            Unary::ThresholdedRelu { alpha } => ("ThresholdedRelu", vec![number("alpha", alpha)]),
            Unary::Shrink { lambd, bias } => ("Shrink", vec![number("lambd", lambd), number("bias", bias)]),
            Unary::IsInf { negative, positive } => {
                ("IsInf", vec![int("detect_negative", negative.into()), int("detect_positive", positive.into())])
            }
            Unary::Clip { min, max } => {
                let (min, max) = (self.limit(min, dtype)?, self.limit(max, dtype)?);
                self.node("Clip", &[x, &min, &max], &[y], Vec::new());
                return Ok(());
            }
            // x * sigmoid(alpha x)
            Unary::Silu | Unary::GeluQuick | Unary::Swish { .. } => {
                let inner = match unary {
                    Unary::Silu => x.to_owned(),
                    _ => {
                        let alpha = if let Unary::Swish { alpha } = unary { alpha.get() } else { 1.702 };
                        let alpha = self.float(alpha)?;
                        self.step("Mul", &[x, &alpha], Vec::new())
                    }
                };
                let gate = self.step("Sigmoid", &[&inner], Vec::new());
                self.node("Mul", &[x, &gate], &[y], Vec::new());
                return Ok(());
            }
        };
        self.node(op, &[x], &[y], attributes);
        Ok(())
    }

    /// A limit as a scalar of a dtype; an infinite one of integers is left out.
    fn limit(&mut self, limit: Scalar, dtype: DType) -> Result<String, ExportError> {
        if dtype.is_int() && limit.get().is_infinite() {
            return Ok(String::new());
        }
        let tensor = Tensor::from_slice(&[], &[limit.get()]).map_err(|error| self.refuse(error.to_string()))?;
        let cast = core_tensor::op::Op::Cast(core_tensor::op::Cast { to: dtype });
        let cast = core_tensor::evaluate(&cast, &[Some(tensor)], &core_tensor::Bindings::new());
        let cast = cast.map_err(|error| self.refuse(error.to_string()))?.into_iter().next();
        let cast = cast.ok_or_else(|| self.refuse("a limit without value"))?;
        Ok(self.constant(cast))
    }
}

/// A function of two operands: ONNX's operator with its attributes.
pub(super) fn binary(binary: Binary) -> (&'static str, Vec<crate::proto::AttributeProto>) {
    match binary {
        Binary::Add => ("Add", vec![]),
        Binary::Sub => ("Sub", vec![]),
        Binary::Mul => ("Mul", vec![]),
        Binary::Div => ("Div", vec![]),
        Binary::Min => ("Min", vec![]),
        Binary::Max => ("Max", vec![]),
        Binary::Pow => ("Pow", vec![]),
        Binary::Mod => ("Mod", vec![]),
        Binary::Fmod => ("Mod", vec![int("fmod", 1)]),
        Binary::PRelu => ("PRelu", vec![]),
        Binary::Equal => ("Equal", vec![]),
        Binary::Less => ("Less", vec![]),
        Binary::LessOrEqual => ("LessOrEqual", vec![]),
        Binary::Greater => ("Greater", vec![]),
        Binary::GreaterOrEqual => ("GreaterOrEqual", vec![]),
        Binary::And => ("And", vec![]),
        Binary::Or => ("Or", vec![]),
        Binary::Xor => ("Xor", vec![]),
        Binary::BitwiseAnd => ("BitwiseAnd", vec![]),
        Binary::BitwiseOr => ("BitwiseOr", vec![]),
        Binary::BitwiseXor => ("BitwiseXor", vec![]),
        Binary::ShiftLeft => ("BitShift", vec![text("direction", "LEFT")]),
        Binary::ShiftRight => ("BitShift", vec![text("direction", "RIGHT")]),
    }
}
