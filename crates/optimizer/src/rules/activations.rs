//! Activations from the primitives that exporters write.

use core_tensor::op::{Binary, Op, Scalar, Unary};

use crate::rule::{Pattern, Reject, Rewrite, Rule};
use core_tensor::ValueId;

/// Constants of formulas: files in half precision round them.
const ROUNDED: f32 = 1e-3;

pub(crate) fn rules() -> Vec<Rule> {
    let x = || Pattern::value("x");
    vec![
        becomes("sigmoid", "1 / (1 + e^-x) becomes sigmoid(x)", sigmoid_written_out(), Unary::Sigmoid),
        becomes(
            "silu",
            "x * sigmoid(x) becomes silu(x)",
            Pattern::either([
                Pattern::product(x(), Pattern::unary(Unary::Sigmoid, x())),
                Pattern::binary(Binary::Div, x(), one_plus_exp_minus()),
            ]),
            Unary::Silu,
        ),
        becomes(
            "gelu-quick",
            "x * sigmoid(1.702 x) becomes one function",
            Pattern::product(x(), Pattern::unary(Unary::Sigmoid, Pattern::product(x(), Pattern::near(1.702, ROUNDED)))),
            Unary::GeluQuick,
        ),
        Rule::new(
            "swish",
            "x * sigmoid(a x) becomes one function",
            Pattern::product(x(), Pattern::unary(Unary::Sigmoid, Pattern::product(x(), Pattern::uniform("a")))),
            |r| {
                let a = r.found("a")?;
                let alpha = Scalar::new(r.number(a)?);
                unary(r, Unary::Swish { alpha })
            },
        ),
        becomes("gelu", "x * (1 + erf(x / √2)) / 2 becomes gelu(x)", gelu(), Unary::Gelu),
        becomes("gelu-tanh", "the approximation of gelu by tanh becomes one function", gelu_tanh(), Unary::GeluTanh),
        becomes(
            "softplus",
            "ln(1 + e^x) becomes softplus(x), which does not overflow",
            Pattern::unary(Unary::Log, Pattern::sum(Pattern::unary(Unary::Exp, x()), Pattern::scalar(1.0))),
            Unary::Softplus,
        ),
        becomes(
            "mish",
            "x * tanh(softplus(x)) becomes mish(x)",
            Pattern::product(x(), Pattern::unary(Unary::Tanh, Pattern::unary(Unary::Softplus, x()))),
            Unary::Mish,
        ),
        becomes(
            "hard-sigmoid",
            "clip(x + 3, 0, 6) / 6 becomes one function",
            Pattern::product(clip_to_six(), Pattern::near(1.0 / 6.0, ROUNDED)),
            Unary::HardSigmoid { alpha: Scalar::new(1.0 / 6.0), beta: Scalar::new(0.5) },
        ),
        becomes(
            "hard-swish",
            "x * clip(x + 3, 0, 6) / 6 becomes one function",
            Pattern::either([
                Pattern::product(Pattern::product(x(), clip_to_six()), Pattern::near(1.0 / 6.0, ROUNDED)),
                Pattern::product(Pattern::product(x(), Pattern::near(1.0 / 6.0, ROUNDED)), clip_to_six()),
                Pattern::product(x(), Pattern::node("HardSigmoid", is_hard_sigmoid, [x()])),
            ]),
            Unary::HardSwish,
        ),
        Rule::new(
            "leaky-relu",
            "max(x, a x) with 0 < a < 1 becomes one function",
            Pattern::binary(Binary::Max, x(), Pattern::product(x(), Pattern::uniform("a"))),
            |r| {
                let a = r.found("a")?;
                let alpha = r.number(a)?;
                if !(0.0..1.0).contains(&alpha) {
                    return Err(Reject::because(format!("the factor is {alpha}, not between 0 and 1")));
                }
                unary(r, Unary::LeakyRelu { alpha: Scalar::new(alpha) })
            },
        ),
        becomes(
            "relu",
            "max(x, 0) becomes relu(x)",
            Pattern::binary(Binary::Max, x(), Pattern::scalar(0.0)),
            Unary::Relu,
        ),
    ]
}

/// A rule that puts one function of `x` in place of a pattern.
fn becomes(name: &'static str, doc: &'static str, pattern: Pattern, function: Unary) -> Rule {
    Rule::new(name, doc, pattern, move |r| unary(r, function))
}

fn unary(r: &mut Rewrite<'_, '_>, function: Unary) -> Result<ValueId, Reject> {
    let x = r.input("x")?;
    r.add(Op::Unary(function), &[x])
}

/// `1 + e^-x`
fn one_plus_exp_minus() -> Pattern {
    let exp = Pattern::unary(Unary::Exp, Pattern::unary(Unary::Neg, Pattern::value("x")));
    Pattern::sum(exp, Pattern::scalar(1.0))
}

fn sigmoid_written_out() -> Pattern {
    Pattern::either([
        Pattern::unary(Unary::Reciprocal, one_plus_exp_minus()),
        Pattern::binary(Binary::Div, Pattern::scalar(1.0), one_plus_exp_minus()),
    ])
}

/// `x * gate * 1/2` in all orders.
fn half_gated(gate: &Pattern) -> Pattern {
    let (x, half) = (Pattern::value("x"), Pattern::scalar(0.5));
    Pattern::either([
        Pattern::product(Pattern::product(x.clone(), gate.clone()), half.clone()),
        Pattern::product(Pattern::product(x.clone(), half.clone()), gate.clone()),
        Pattern::product(x, Pattern::product(gate.clone(), half)),
    ])
}

fn gelu() -> Pattern {
    let x = || Pattern::value("x");
    let scaled = Pattern::either([
        Pattern::product(x(), Pattern::near(std::f32::consts::FRAC_1_SQRT_2, ROUNDED)),
        Pattern::binary(Binary::Div, x(), Pattern::near(std::f32::consts::SQRT_2, ROUNDED)),
    ]);
    half_gated(&Pattern::sum(Pattern::unary(Unary::Erf, scaled), Pattern::scalar(1.0)))
}

/// Hendrycks and Gimpel 2016: `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
fn gelu_tanh() -> Pattern {
    let x = || Pattern::value("x");
    let factor = || Pattern::near(0.797_884_6, ROUNDED);
    let cubic = || Pattern::near(0.044_715, ROUNDED);
    let square = Pattern::square(&x());
    let cube = Pattern::either([
        Pattern::binary(Binary::Pow, x(), Pattern::scalar(3.0)),
        Pattern::product(square.clone(), x()),
    ]);
    let cubic_term = Pattern::either([
        Pattern::product(cube, cubic()),
        Pattern::product(Pattern::product(square.clone(), cubic()), x()),
        Pattern::product(Pattern::product(x(), cubic()), square.clone()),
        Pattern::product(Pattern::product(Pattern::product(x(), cubic()), x()), x()),
    ]);
    let inner = Pattern::either([
        Pattern::product(Pattern::sum(x(), cubic_term), factor()),
        // x √(2/π) (1 + 0.044715 x²)
        Pattern::product(
            Pattern::product(x(), factor()),
            Pattern::sum(Pattern::product(square, cubic()), Pattern::scalar(1.0)),
        ),
    ]);
    half_gated(&Pattern::sum(Pattern::unary(Unary::Tanh, inner), Pattern::scalar(1.0)))
}

/// `clip(x + 3, 0, 6)`
fn clip_to_six() -> Pattern {
    let clip = |op: &Op| match op {
        Op::Unary(Unary::Clip { min, max }) => min.get() == 0.0 && max.get() == 6.0,
        _ => false,
    };
    Pattern::node("Clip to 0..6", clip, [Pattern::sum(Pattern::value("x"), Pattern::scalar(3.0))])
}

fn is_hard_sigmoid(op: &Op) -> bool {
    match op {
        Op::Unary(Unary::HardSigmoid { alpha, beta }) => {
            (alpha.get() - 1.0 / 6.0).abs() < 1e-4 && (beta.get() - 0.5).abs() < 1e-4
        }
        _ => false,
    }
}
