//! Scaled dot-product attention from products and softmax.
//!
//! Exporters write `softmax(q kᵀ · scale + mask) v` on `[batch, heads, tokens, head_dim]` with transposes around it. `TensorAttention` works on
//! `[batch, tokens, heads, head_dim]`: the rule adds transposes there and back, which cancel with the exporter's. Found are: factors before or after the
//! product, on either operand; division instead of multiplication; soft caps; masks that are added or chosen by a condition; guards against rows that see nothing;
//! keys and values repeated for grouped queries; three extents instead of four (one head, or heads within the batch).

use core_tensor::op::{Binary, Op, TensorAttention, Unary, Where};
use core_tensor::{Dim, Node, ValueId};

use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    let softmax = Pattern::node("Softmax", |op| matches!(op, Op::Softmax(_)), [Pattern::value("scores")]);
    // `isnan(p) ? 0 : p`: TensorAttention gives zeros there by itself.
    let guarded = Pattern::either([
        Pattern::node(
            "Where",
            |op| matches!(op, Op::Where(_)),
            [Pattern::unary(Unary::IsNan, softmax.clone().named("p")), Pattern::scalar(0.0), Pattern::value("p")],
        ),
        softmax,
    ]);
    let pattern = Pattern::node("MatMul", |op| matches!(op, Op::MatMul(_)), [guarded, Pattern::value("v")]);
    vec![Rule::new("attention", "softmax(q kᵀ · scale + mask) v becomes TensorAttention", pattern, build)]
}

/// The scores, taken apart from the softmax upwards.
struct Scores {
    q: ValueId,
    k: ValueId,
    /// Whether k is `[..., n, head_dim]`.
    k_rows: bool,
    scale: f32,
    softcap: Option<f32>,
    mask: Mask,
}

enum Mask {
    None,
    Added(ValueId),
    /// A condition; whether true means seen; what the score is where it is not.
    Chosen(ValueId, bool, f32),
}

/// Scores below this are no scores: their weights vanish next to any other's.
const NOT_SEEN: f32 = -1e4;
/// What is added in their place: a number that takes any score in, so that a row that sees nothing attends to all keys alike, as it did.
const HIDDEN: f32 = -1e30;

fn build(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let (scores, v) = (r.found("scores")?, r.found("v")?);
    let Op::MatMul(product) = r.root().op else { return Err(Reject::nothing_to_do()) };
    let mut parts = take_apart(r, scores)?;
    let (rank, v_rank) = (r.shape(parts.q)?.len(), r.shape(v)?.len());
    if !(3..=4).contains(&rank) || r.shape(parts.k)?.len() != rank || v_rank != rank {
        return Err(Reject::because(format!("q, k and v must have 3 or 4 extents, q has {rank}, v {v_rank}")));
    }
    if r.shape(scores)?.len() != rank {
        return Err(Reject::because("the mask has more extents than the scores"));
    }
    // Factors on the operands.
    let q = peel_factor(r, parts.q, &mut parts.scale);
    let k = peel_factor(r, parts.k, &mut parts.scale);
    let (k_repeated, v_repeated) = (repeated(r, k.inner, k.moves.is_empty()), repeated(r, v, true));
    let grouped = match (k_repeated, v_repeated) {
        (Some((k, k_heads)), Some((v, v_heads))) if parts.k_rows && !product.transpose_b && k_heads == v_heads => {
            Some((k, v, k_heads))
        }
        _ => None,
    };
    let new_q = place(r, &q, true)?;
    let (new_k, new_v) = match grouped {
        Some((k, v, heads)) => (ungrouped(r, k, &heads)?, ungrouped(r, v, &heads)?),
        None => {
            let v = Peeled { inner: v, moves: Vec::new() };
            (place(r, &k, parts.k_rows)?, place(r, &v, !product.transpose_b)?)
        }
    };
    let mut inputs = vec![new_q, new_k, new_v];
    inputs.extend(mask(r, &parts, rank)?);
    let op = TensorAttention { scale: parts.scale, causal: false, softcap: parts.softcap };
    let y = r.add(Op::TensorAttention(op), &inputs)?;
    if rank == 4 {
        return r.transpose(y, &[0, 2, 1, 3]);
    }
    let shape = r.shape(r.root().outputs[0])?;
    r.reshape(y, shape)
}

/// The input of a node that has one.
fn only(node: &Node) -> Option<ValueId> {
    match node.inputs[..] {
        [Some(x)] => Some(x),
        _ => None,
    }
}

/// A node of two operands whose one is a number: the other, the number, and whether the number comes second.
fn with_number(r: &Rewrite<'_, '_>, node: &Node) -> Option<(ValueId, f32, bool)> {
    let [Some(a), Some(b)] = node.inputs[..] else { return None };
    match (r.number(a), r.number(b)) {
        (_, Ok(number)) => Some((a, number, true)),
        (Ok(number), Err(_)) => Some((b, number, false)),
        _ => None,
    }
}

fn take_apart(r: &Rewrite<'_, '_>, scores: ValueId) -> Result<Scores, Reject> {
    let mut at = scores;
    let mut mask = Mask::None;
    let mut scale = 1.0f32;
    let mut softcap = None;
    // From the softmax to the product of q and k: mask first, then cap and factors.
    loop {
        let node = r.producer(at).ok_or_else(|| Reject::because("the scores are not computed from q and k"))?;
        if at != scores && r.uses(at) > 1 {
            return Err(Reject::because(format!(
                "the result of {} {:?} is used elsewhere, too",
                node.op.name(),
                node.name
            )));
        }
        let unscaled = scale == 1.0 && softcap.is_none();
        match &node.op {
            Op::MatMul(product) => {
                let [Some(q), Some(k)] = node.inputs[..] else { return Err(Reject::nothing_to_do()) };
                return Ok(Scores { q, k, k_rows: product.transpose_b, scale, softcap, mask });
            }
            Op::Binary(Binary::Mul | Binary::Div) => {
                let divides = matches!(node.op, Op::Binary(Binary::Div));
                match with_number(r, node) {
                    Some((x, number, second)) if number != 0.0 && (second || !divides) => {
                        scale *= if divides { 1.0 / number } else { number };
                        at = x;
                    }
                    _ => return Err(Reject::because("the scores are multiplied with what is no number")),
                }
            }
            Op::Unary(Unary::Tanh) if softcap.is_none() => {
                // cap * tanh(factor * dot), where the operator has cap * tanh(dot * scale / cap): scale is factor * cap.
                softcap = Some(scale);
                at = only(node).ok_or_else(Reject::nothing_to_do)?;
            }
            Op::Binary(Binary::Add) if unscaled && matches!(mask, Mask::None) => {
                let [Some(a), Some(b)] = node.inputs[..] else { return Err(Reject::nothing_to_do()) };
                let (inner, added) = if leads_to_product(r, a, 0) { (a, b) } else { (b, a) };
                mask = Mask::Added(added);
                at = inner;
            }
            Op::Where(_) if unscaled && matches!(mask, Mask::None) => {
                let [Some(condition), Some(a), Some(b)] = node.inputs[..] else { return Err(Reject::nothing_to_do()) };
                let (inner, number, seen) = match (r.number(a), r.number(b)) {
                    (Err(_), Ok(number)) => (a, number, true),
                    (Ok(number), Err(_)) => (b, number, false),
                    _ => return Err(Reject::because("a choice of scores is not between scores and a number")),
                };
                if number > NOT_SEEN {
                    return Err(Reject::because(format!("scores that are not seen become {number}, not very small")));
                }
                mask = Mask::Chosen(condition, seen, number);
                at = inner;
            }
            Op::Binary(Binary::Add) | Op::Where(_) => {
                return Err(Reject::because("a mask is applied before the scores are scaled, or there are two"));
            }
            _ => {
                let what = format!("{} {:?}", node.op.name(), node.name);
                return Err(Reject::because(format!("{what} stands between softmax and the product of q and k")));
            }
        }
    }
}

/// Whether a value is a product of matrices, or one times numbers.
fn leads_to_product(r: &Rewrite<'_, '_>, id: ValueId, depth: usize) -> bool {
    let Some(node) = r.producer(id).filter(|_| depth < 6) else { return false };
    match &node.op {
        Op::MatMul(_) => true,
        Op::Binary(Binary::Mul | Binary::Div) => {
            with_number(r, node).is_some_and(|(x, _, _)| leads_to_product(r, x, depth + 1))
        }
        Op::Unary(Unary::Tanh) => only(node).is_some_and(|x| leads_to_product(r, x, depth + 1)),
        Op::Where(_) => node.inputs.iter().flatten().any(|x| leads_to_product(r, *x, depth + 1)),
        _ => false,
    }
}

/// An operand without its factor: the value below, and the transposes and reshapes that stood between, from the operand down.
struct Peeled {
    inner: ValueId,
    moves: Vec<Op>,
}

/// Takes a factor off an operand, also below transposes and reshapes.
fn peel_factor(r: &Rewrite<'_, '_>, id: ValueId, scale: &mut f32) -> Peeled {
    let (mut at, mut moves) = (id, Vec::new());
    while let Some(node) = r.producer(at).filter(|_| r.uses(at) == 1) {
        match &node.op {
            Op::Binary(Binary::Mul) => {
                let same = |x: ValueId| matches!((r.shape(x), r.shape(at)), (Ok(x), Ok(at)) if x == at);
                let Some((x, number, _)) = with_number(r, node).filter(|(x, _, _)| same(*x)) else { break };
                *scale *= number;
                return Peeled { inner: x, moves };
            }
            Op::Transpose(_) | Op::Reshape(_) => {
                let Some(x) = only(node) else { break };
                moves.push(node.op.clone());
                at = x;
            }
            _ => break,
        }
    }
    Peeled { inner: id, moves: Vec::new() }
}

/// An operand as `[batch, rows, heads, dim]`; `rows_first`: it is `[batch, heads, rows, dim]`, and not `[batch, heads, dim, rows]`.
fn place(r: &mut Rewrite<'_, '_>, operand: &Peeled, rows_first: bool) -> Result<ValueId, Reject> {
    let mut new = r.new_value(operand.inner);
    for op in operand.moves.iter().rev() {
        new = r.add(op.clone(), &[new])?;
    }
    let shape = r.new_shape(new)?;
    match &shape[..] {
        [_, _, _, _] => r.transpose(new, if rows_first { &[0, 2, 1, 3] } else { &[0, 3, 1, 2] }),
        [batch, a, b] => {
            if !rows_first {
                new = r.transpose(new, &[0, 2, 1])?;
            }
            let (rows, dim) = if rows_first { (a, b) } else { (b, a) };
            r.reshape(new, &[batch.clone(), rows.clone(), Dim::Num(1), dim.clone()])
        }
        _ => Err(Reject::nothing_to_do()),
    }
}

/// What a value `[batch, heads, n, dim]` repeats for grouped queries: the value before it was expanded from `[batch, n_kv, 1, n, dim]`, and that shape.
fn repeated(r: &Rewrite<'_, '_>, id: ValueId, plain: bool) -> Option<(ValueId, Vec<Dim>)> {
    let reshape = r.producer(id).filter(|node| plain && matches!(node.op, Op::Reshape(_)))?;
    let wide = only(reshape)?;
    let expand = r.producer(wide).filter(|node| matches!(node.op, Op::Expand(_)))?;
    let narrow = *expand.inputs.first()?.as_ref()?;
    let (full, wide, narrow_shape) = (r.shape(id).ok()?, r.shape(wide).ok()?, r.shape(narrow).ok()?);
    let ([b, h, n, d], [wb, wkv, wg, wn, wd], [nb, nkv, ng, nn, nd]) = (full, wide, narrow_shape) else { return None };
    let same = (wb, wkv, wn, wd) == (nb, nkv, nn, nd) && (b, n, d) == (wb, wn, wd) && *ng == Dim::Num(1);
    (same && wkv.clone().mul(wg.clone()) == *h).then(|| (narrow, narrow_shape.to_vec()))
}

/// `[batch, n_kv, 1, n, dim]` as `[batch, n, n_kv, dim]`.
fn ungrouped(r: &mut Rewrite<'_, '_>, narrow: ValueId, shape: &[Dim]) -> Result<ValueId, Reject> {
    let [batch, heads, _, n, dim] = shape else { return Err(Reject::nothing_to_do()) };
    let new = r.new_value(narrow);
    let new = r.reshape(new, &[batch.clone(), heads.clone(), n.clone(), dim.clone()])?;
    r.transpose(new, &[0, 2, 1, 3])
}

/// The mask as the operator takes it: added, of up to four extents.
fn mask(r: &mut Rewrite<'_, '_>, parts: &Scores, rank: usize) -> Result<Option<ValueId>, Reject> {
    let mask = match &parts.mask {
        Mask::None => return Ok(None),
        Mask::Added(id) => r.new_value(*id),
        Mask::Chosen(condition, seen, number) => {
            // Added rather than chosen.
            let condition = r.new_value(*condition);
            let (zero, below) =
                (r.add_constant("zero", &[1], &[0.0])?, r.add_constant("not seen", &[1], &[number.min(HIDDEN)])?);
            let inputs = if *seen { [condition, zero, below] } else { [condition, below, zero] };
            r.add(Op::Where(Where), &inputs)?
        }
    };
    let shape = r.new_shape(mask)?;
    if shape.len() > rank {
        return Err(Reject::because("the mask has more extents than the scores"));
    }
    if rank == 3
        && let [batch, tokens, n] = &shape[..]
    {
        let wide = [batch.clone(), Dim::Num(1), tokens.clone(), n.clone()];
        return Ok(Some(r.reshape(mask, &wide)?));
    }
    Ok(Some(mask))
}
