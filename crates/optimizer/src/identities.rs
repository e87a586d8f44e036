//! Drops nodes that give back what they are given.

use core_tensor::op::{Binary, Op, Reshape};
use core_tensor::{Dim, Graph, GraphError, Node, Rewriter, ValueId};

use crate::Rewritten;
use crate::rule::uniform;

/// Removes: a reshape to the same shape, a cast to the same dtype, a transpose that permutes nothing, a slice of everything, a concatenation
/// of one, `x + 0`, `x - 0`, `x * 1`, `x / 1`, `x ^ 1` (also with the constant on the left where that commutes; `-0 + 0` is then
/// `-0`). A reshape of a reshape becomes one.
pub(crate) fn run(graph: &Graph) -> Result<Rewritten, GraphError> {
    let mut rewriter = Rewriter::new(graph);
    let mut changed = 0;
    // For values that a reshape made: what it was made from.
    let mut reshaped: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    for node in graph.nodes() {
        let same = passes_through(graph, node);
        if let (Some(input), [output]) = (same, &node.outputs[..]) {
            let new = rewriter.get(input);
            rewriter.map(*output, new);
            reshaped[output.index()] = reshaped[input.index()];
            changed += 1;
            continue;
        }
        if let (Op::Reshape(Reshape { shape }), [Some(input)], [output]) =
            (&node.op, &node.inputs[..], &node.outputs[..])
        {
            let origin = reshaped[input.index()].unwrap_or(*input);
            reshaped[output.index()] = Some(origin);
            if origin != *input {
                let from = rewriter.get(origin);
                let op = Op::Reshape(Reshape { shape: shape.clone() });
                let new = rewriter.graph().add(&node.name, op, &[from])?;
                rewriter.map(*output, new);
                changed += 1;
                continue;
            }
        }
        rewriter.copy(node)?;
    }
    Ok((changed > 0).then(|| (rewriter.finish(), changed)))
}

/// The input that equals the node's only output.
fn passes_through(graph: &Graph, node: &Node) -> Option<ValueId> {
    let [output] = node.outputs[..] else { return None };
    let same_type = |input: ValueId| graph.value(input).ty == graph.value(output).ty;
    let unary = match node.inputs[..] {
        [Some(input)] => Some(input),
        _ => None,
    };
    match &node.op {
        Op::Slice(slice) if slice.step < 0 => None,
        Op::Pad(pad) => {
            let none = |dim: &Dim| *dim == Dim::Num(0);
            node.inputs[0].filter(|input| same_type(*input) && pad.pads.iter().all(|(a, b)| none(a) && none(b)))
        }
        Op::Reshape(_) | Op::Expand(_) if node.inputs.len() <= 2 => node.inputs[0].filter(|input| same_type(*input)),
        Op::Cast(_) | Op::Slice(_) | Op::Concat(_) => unary.filter(|input| same_type(*input)),
        Op::Transpose(transpose) if transpose.perm.iter().copied().eq(0..transpose.perm.len()) => unary,
        Op::Binary(binary) => {
            let [Some(a), Some(b)] = node.inputs[..] else { return None };
            let is = |id: ValueId, neutral: f32| graph.weight_of(id).is_some_and(|w| uniform(w) == Some(neutral));
            let (neutral, commutes) = match binary {
                Binary::Add => (0.0, true),
                Binary::Sub => (0.0, false),
                Binary::Mul => (1.0, true),
                Binary::Div | Binary::Pow => (1.0, false),
                _ => return None,
            };
            if same_type(a) && is(b, neutral) {
                return Some(a);
            }
            (commutes && same_type(b) && is(a, neutral)).then_some(b)
        }
        _ => None,
    }
}
