//! Softmax from exponentials and sums.

use core_tensor::op::{Binary, LogSoftmax, Op, Reduce, ReduceKind, Softmax, Unary};

use crate::rule::{Pattern, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let x = || Pattern::value("x");
    let shifted = Pattern::optional(x(), |x| Pattern::binary(Binary::Sub, x.clone(), reduce(ReduceKind::Max, x)));
    let e = Pattern::unary(Unary::Exp, shifted).named("e");
    vec![
        Rule::new(
            "softmax",
            "e^x / Σ e^x becomes softmax(x)",
            Pattern::binary(Binary::Div, e, reduce(ReduceKind::Sum, Pattern::value("e"))),
            |r| {
                let x = r.input("x")?;
                r.add(Op::Softmax(Softmax), &[x])
            },
        ),
        Rule::new(
            "log-softmax",
            "ln(softmax(x)) becomes one function",
            Pattern::unary(Unary::Log, Pattern::node("Softmax", |op| matches!(op, Op::Softmax(_)), [x()])),
            |r| {
                let x = r.input("x")?;
                r.add(Op::LogSoftmax(LogSoftmax), &[x])
            },
        ),
    ]
}

fn reduce(kind: ReduceKind, x: Pattern) -> Pattern {
    let what = Op::Reduce(Reduce { kind }).name();
    Pattern::node(what, move |op| matches!(op, Op::Reduce(found) if found.kind == kind), [x])
}
