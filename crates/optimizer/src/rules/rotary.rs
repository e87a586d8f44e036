//! Rotary position embedding, as exporters write it.
//!
//! `RotaryEmbedding` computes its angles from integer positions of one sequence, `[tokens, heads, head_dim]`. Exported graphs multiply
//! `[batch, heads, tokens, head_dim]` with tables of cosines and sines that other nodes made. No operator takes these, so the rule
//! finds the place and says what runs instead; the element-wise nodes are fused by the backends.

use core_tensor::op::{Op, Unary};

use crate::rule::{Pattern, Reject, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let slice = |x| Pattern::node("Slice", |op| matches!(op, Op::Slice(_)), [x]);
    let x = || Pattern::value("x");
    let rotated =
        Pattern::node("Concat", |op| matches!(op, Op::Concat(_)), [Pattern::unary(Unary::Neg, slice(x())), slice(x())]);
    let pattern =
        Pattern::sum(Pattern::product(x(), Pattern::value("cos")), Pattern::product(rotated, Pattern::value("sin")));
    vec![Rule::new("rotary-embedding", "x cos + rotate(x) sin becomes RotaryEmbedding", pattern, |_| {
        Err(Reject::because(
            "cosines and sines come as tables, and RotaryEmbedding computes them from positions: it runs as written",
        ))
    })]
}
