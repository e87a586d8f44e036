//! Joins an activation with the product that follows it.

use core_tensor::op::{GatedActivation, Op, Unary};

use crate::rule::{Pattern, Reject, Rule};

/// `activation(gate) * up` with equal shapes becomes a [`GatedActivation`], if nothing else uses the activation: what SwiGLU and GeGLU networks
/// are full of, and what kernels compute in one go.
pub(crate) fn rules() -> Vec<Rule> {
    let activation =
        Pattern::node("an activation", |op| matches!(op, Op::Unary(unary) if gates(*unary)), [Pattern::value("gate")]);
    let pattern = Pattern::product(activation.named("activation"), Pattern::value("up"));
    vec![Rule::new("gated-activation", "activation(gate) * up becomes one node", pattern, |r| {
        let (gate, up, activation) = (r.found("gate")?, r.found("up")?, r.found("activation")?);
        if r.ty(gate)? != r.ty(up)? {
            return Err(Reject::because("gate and up have different shapes"));
        }
        let activation = match r.producer(activation).map(|node| &node.op) {
            Some(Op::Unary(unary)) => *unary,
            _ => return Err(Reject::nothing_to_do()),
        };
        let inputs = [r.new_value(gate), r.new_value(up)];
        r.add(Op::GatedActivation(GatedActivation { activation }), &inputs)
    })]
}

/// The functions that gated networks use (Shazeer 2020).
fn gates(unary: Unary) -> bool {
    matches!(unary, Unary::Silu | Unary::Gelu | Unary::GeluTanh | Unary::GeluQuick | Unary::Relu | Unary::Sigmoid)
}
