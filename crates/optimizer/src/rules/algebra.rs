//! Arithmetic: fewer and cheaper operators for the same numbers.
//!
//! Rules here change results by rounding at most. `x / c` becomes `x * (1/c)`, chains of constants become one constant; they
//! are left alone where the folded constant would overflow or vanish.

use core_tensor::op::{Binary, Op, Unary};
use core_tensor::{DType, Tensor, ValueId};

use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let x = || Pattern::value("x");
    let y = || Pattern::value("y");
    vec![
        Rule::new(
            "double-negation",
            "-(-x) and not(not(x)) are x",
            Pattern::either(
                [Unary::Neg, Unary::Not, Unary::BitwiseNot]
                    .map(|op| Pattern::unary(op, Pattern::unary(op, x()).shared())),
            ),
            |r| r.input("x"),
        ),
        Rule::new(
            "idempotent",
            "relu(relu(x)) is relu(x), likewise abs, floor, ceil, round, sign",
            Pattern::either(
                [Unary::Relu, Unary::Abs, Unary::Floor, Unary::Ceil, Unary::Round, Unary::Sign]
                    .map(|op| Pattern::unary(op, Pattern::unary(op, Pattern::any()).shared().named("x"))),
            ),
            |r| r.input("x"),
        ),
        Rule::new(
            "subtract-constant",
            "x - c becomes x + (-c)",
            Pattern::binary(Binary::Sub, x(), Pattern::constant("c")),
            |r| {
                let c = r.found("c")?;
                float(r, c)?;
                let c = r.fold(&Op::Unary(Unary::Neg), &[c])?;
                let x = r.input("x")?;
                r.add(Op::Binary(Binary::Add), &[x, c])
            },
        ),
        Rule::new(
            "divide-by-constant",
            "x / c becomes x * (1/c)",
            Pattern::binary(Binary::Div, x(), Pattern::constant("c")),
            |r| {
                let c = r.found("c")?;
                float(r, c)?;
                let y = r.root().outputs[0];
                if !is_power_of_two(r, c)? && meets_step(r, y, STEP_DEPTH) {
                    return Err(Reject::because(
                        "the quotient is rounded later, where a last bit makes a difference of one",
                    ));
                }
                let c = folded(r, &Op::Unary(Unary::Reciprocal), &[c])?;
                let x = r.input("x")?;
                r.add(Op::Binary(Binary::Mul), &[x, c])
            },
        ),
        Rule::new(
            "one-over",
            "1 / x becomes reciprocal(x)",
            Pattern::binary(Binary::Div, Pattern::scalar(1.0), x()),
            |r| {
                let x = r.found("x")?;
                float(r, x)?;
                unary(r, Unary::Reciprocal)
            },
        ),
        Rule::new(
            "multiply-by-reciprocal",
            "x * reciprocal(y) becomes x / y",
            Pattern::product(x(), Pattern::unary(Unary::Reciprocal, y())),
            |r| binary(r, Binary::Div),
        ),
        Rule::new(
            "add-negated",
            "x + (-y) becomes x - y, x - (-y) becomes x + y",
            Pattern::either([
                Pattern::sum(x(), Pattern::unary(Unary::Neg, y())),
                Pattern::binary(Binary::Sub, x(), Pattern::unary(Unary::Neg, y())),
            ]),
            |r| {
                let sum = matches!(r.root().op, Op::Binary(Binary::Add));
                binary(r, if sum { Binary::Sub } else { Binary::Add })
            },
        ),
        Rule::new(
            "subtract-from-zero",
            "0 - x becomes -x",
            Pattern::binary(Binary::Sub, Pattern::scalar(0.0), x()),
            |r| unary(r, Unary::Neg),
        ),
        Rule::new(
            "multiply-negated",
            "(-x) * c becomes x * (-c)",
            Pattern::product(Pattern::unary(Unary::Neg, x()), Pattern::constant("c")),
            |r| {
                let c = r.found("c")?;
                float(r, c)?;
                let c = r.fold(&Op::Unary(Unary::Neg), &[c])?;
                let x = r.input("x")?;
                r.add(Op::Binary(Binary::Mul), &[x, c])
            },
        ),
        chain("multiply-constants", "(x * a) * b becomes x * (a b)", Binary::Mul),
        chain("add-constants", "(x + a) + b becomes x + (a + b)", Binary::Add),
        Rule::new(
            "add-constant-last",
            "(x + c) + y becomes (x + y) + c where c is one number, so that constants meet",
            Pattern::sum(Pattern::sum(x(), Pattern::uniform("c")), y()),
            |r| {
                let (x, c, y) = (r.found("x")?, r.found("c")?, r.found("y")?);
                let constant = |id: ValueId| r.graph().weight_of(id).is_some();
                if constant(x) || constant(y) || r.number(c)? == 0.0 || r.ty(x)? != r.ty(y)? {
                    return Err(Reject::nothing_to_do());
                }
                // Only where the constants do meet.
                let meets = r.producer(y).is_some_and(|node| {
                    matches!(node.op, Op::Binary(Binary::Add))
                        && node.inputs.iter().flatten().any(|id| r.graph().weight_of(*id).is_some())
                });
                if !meets || r.uses(y) > 1 {
                    return Err(Reject::nothing_to_do());
                }
                let (x, y, c) = (r.new_value(x), r.new_value(y), r.new_value(c));
                let sum = r.add(Op::Binary(Binary::Add), &[x, y])?;
                r.add(Op::Binary(Binary::Add), &[sum, c])
            },
        ),
        Rule::new("square", "x ^ 2 becomes x * x", power(2.0), |r| {
            let x = r.input("x")?;
            r.add(Op::Binary(Binary::Mul), &[x, x])
        }),
        Rule::new("square-root", "x ^ 0.5 becomes sqrt(x)", power(0.5), |r| unary(r, Unary::Sqrt)),
        Rule::new("power-of-minus-one", "x ^ -1 becomes reciprocal(x)", power(-1.0), |r| unary(r, Unary::Reciprocal)),
        Rule::new("reciprocal-square-root", "x ^ -0.5 becomes reciprocal(sqrt(x))", power(-0.5), |r| {
            let root = unary(r, Unary::Sqrt)?;
            r.add(Op::Unary(Unary::Reciprocal), &[root])
        }),
        Rule::new(
            "constant-condition",
            "a choice by a constant condition becomes what it chooses",
            Pattern::node("Where", |op| matches!(op, Op::Where(_)), [Pattern::uniform("c"), x(), y()]),
            |r| {
                let condition = r.found("c")?;
                let chosen = if r.number(condition)? != 0.0 { "x" } else { "y" };
                r.input(chosen)
            },
        ),
        Rule::new(
            "choice-of-equals",
            "a choice between x and x is x",
            Pattern::node("Where", |op| matches!(op, Op::Where(_)), [Pattern::any(), x(), x()]),
            |r| r.input("x"),
        ),
        Rule::new(
            "negated-condition",
            "not(c) ? x : y becomes c ? y : x",
            Pattern::node(
                "Where",
                |op| matches!(op, Op::Where(_)),
                [Pattern::unary(Unary::Not, Pattern::value("c")).shared(), x(), y()],
            ),
            |r| {
                let inputs = [r.input("c")?, r.input("y")?, r.input("x")?];
                r.add(Op::Where(core_tensor::op::Where), &inputs)
            },
        ),
    ]
}

fn power(exponent: f32) -> Pattern {
    Pattern::binary(Binary::Pow, Pattern::value("x"), Pattern::scalar(exponent))
}

/// Two operations with constants become one.
fn chain(name: &'static str, doc: &'static str, op: Binary) -> Rule {
    let inner = Pattern::binary(op, Pattern::value("x"), Pattern::constant("a"));
    Rule::new(name, doc, Pattern::binary(op, inner, Pattern::constant("b")), move |r| {
        let (a, b) = (r.found("a")?, r.found("b")?);
        float(r, a)?;
        let x = r.found("x")?;
        if r.graph().weight_of(x).is_some() {
            return Err(Reject::nothing_to_do());
        }
        let constant = folded(r, &Op::Binary(op), &[a, b])?;
        if op == Binary::Add && cancels(r, a, b)? {
            return Err(Reject::because("the constants cancel: adding one and taking it away again rounds x"));
        }
        let x = r.new_value(x);
        r.add(Op::Binary(op), &[x, constant])
    })
}

/// How many operators after a division are looked at for one that rounds.
const STEP_DEPTH: usize = 6;

/// Whether a value comes to an operator that jumps, through such as work on single elements.
fn meets_step(r: &Rewrite<'_, '_>, id: ValueId, depth: usize) -> bool {
    r.users(id).any(|node| match &node.op {
        Op::Unary(Unary::Floor | Unary::Ceil | Unary::Round | Unary::Sign)
        | Op::QuantizeLinear(_)
        | Op::ArgMax(_)
        | Op::Sort(_)
        | Op::TopK(_) => true,
        Op::Binary(op) if op.is_comparison() || *op == Binary::Mod || *op == Binary::Fmod => true,
        Op::Cast(cast) if !cast.to.is_float() => true,
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Where(_)
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Slice(_) => depth == 0 || node.outputs.iter().any(|id| meets_step(r, *id, depth - 1)),
        _ => false,
    })
}

/// Whether division by a constant and multiplication with its reciprocal are the same.
fn is_power_of_two(r: &Rewrite<'_, '_>, id: ValueId) -> Result<bool, Reject> {
    let all = r.tensor(id)?.to_f32().map_err(|error| Reject::because(error.to_string()))?;
    Ok(all.iter().all(|x| x.is_normal() && x.to_bits() << 9 == 0))
}

/// Whether the sum of two constants is small next to them somewhere.
fn cancels(r: &Rewrite<'_, '_>, a: ValueId, b: ValueId) -> Result<bool, Reject> {
    let values = |id| r.tensor(id)?.to_f32().map_err(|error| Reject::because(error.to_string()));
    let (a, b) = (values(a)?, values(b)?);
    // (Broadcast as they may be: a pair that does not meet is compared for nothing.)
    let largest = |all: &[f32]| all.iter().fold(0f32, |most, x| most.max(x.abs()));
    let opposite = a.iter().any(|x| *x < 0.0) && b.iter().any(|x| *x > 0.0)
        || a.iter().any(|x| *x > 0.0) && b.iter().any(|x| *x < 0.0);
    const ROUNDING: f32 = 1e5;
    Ok(opposite && largest(&a).min(largest(&b)) > ROUNDING)
}

fn unary(r: &mut Rewrite<'_, '_>, op: Unary) -> Result<ValueId, Reject> {
    let x = r.input("x")?;
    r.add(Op::Unary(op), &[x])
}

fn binary(r: &mut Rewrite<'_, '_>, op: Binary) -> Result<ValueId, Reject> {
    let inputs = [r.input("x")?, r.input("y")?];
    r.add(Op::Binary(op), &inputs)
}

fn float(r: &Rewrite<'_, '_>, id: ValueId) -> Result<(), Reject> {
    if r.ty(id)?.0 == DType::F32 { Ok(()) } else { Err(Reject::nothing_to_do()) }
}

/// Folds, unless a result overflows or vanishes whose operands do not.
fn folded(r: &mut Rewrite<'_, '_>, op: &Op, inputs: &[ValueId]) -> Result<ValueId, Reject> {
    let new = r.fold(op, inputs)?;
    let normal = |tensor: &Tensor| tensor.to_f32().is_ok_and(|all| all.iter().all(|x| x.is_normal() || *x == 0.0));
    let zeros = |tensor: &Tensor| tensor.to_f32().map_or(0, |all| all.iter().filter(|x| **x == 0.0).count());
    let result = r.new_tensor(new)?;
    let mut had_zeros = false;
    for id in inputs {
        let tensor = r.tensor(*id)?;
        if !normal(&tensor) {
            return Err(Reject::because("a constant is infinite, tiny or no number"));
        }
        had_zeros |= zeros(&tensor) > 0;
    }
    let sums = matches!(op, Op::Binary(Binary::Add));
    if !normal(&result) || (!sums && zeros(&result) > 0 && !had_zeros) {
        return Err(Reject::because("the folded constant would overflow or vanish"));
    }
    Ok(new)
}
