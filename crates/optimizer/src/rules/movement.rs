//! Transposes and reshapes: cancelled, or moved towards the outputs until they meet and cancel.
//!
//! They sink through element-wise operators, concatenations, slices and padding, always from inputs to outputs, so that the rules come to an end.
//! Which memory layout a kernel likes (NCHW, NHWC, blocked) is not decided here: that is a matter of each backend's weights and costs, which
//! see a graph in which the transposes that are left are needed.

use core_tensor::op::{Concat, Gather, Op, Pad, PadMode, Reshape, Slice, Transpose};
use core_tensor::{DType, Dim, ValueId};

use crate::rule::{Pattern, Reject, Rewrite, Rule};

pub(crate) fn rules() -> Vec<Rule> {
    vec![
        Rule::new(
            "transpose-transpose",
            "two transposes become one, or none",
            transpose(transpose(Pattern::value("x")).shared().named("inner")),
            |r| {
                let inner = r.found("inner")?;
                let (first, second) = (perm_of(r, inner)?, root_perm(r)?);
                let perm: Vec<usize> = second.iter().map(|i| first[*i]).collect();
                let x = r.input("x")?;
                if perm.iter().copied().eq(0..perm.len()) { Ok(x) } else { r.transpose(x, &perm) }
            },
        ),
        Rule::new(
            "transpose-of-ones",
            "a transpose that moves only extents of 1 becomes a reshape",
            transpose(Pattern::value("x")),
            |r| {
                let x = r.found("x")?;
                let (shape, perm) = (r.shape(x)?, root_perm(r)?);
                let moved: Vec<usize> = perm.iter().copied().filter(|i| shape[*i] != Dim::Num(1)).collect();
                if !moved.is_sorted() || perm.is_sorted() {
                    return Err(Reject::nothing_to_do());
                }
                let to: Vec<Dim> = perm.iter().map(|i| shape[*i].clone()).collect();
                let x = r.new_value(x);
                r.add(Op::Reshape(Reshape { shape: to }), &[x])
            },
        ),
        Rule::new(
            "transpose-of-merged",
            "transposing what a reshape merged becomes a transpose of what it merges, and a reshape",
            transpose(reshape(Pattern::value("x")).shared().named("merged")),
            |r| {
                let (x, merged) = (r.found("x")?, r.found("merged")?);
                let groups = merged_groups(r.shape(x)?, r.shape(merged)?).ok_or_else(Reject::nothing_to_do)?;
                let perm: Vec<usize> = root_perm(r)?.iter().flat_map(|i| groups[*i].clone()).collect();
                let x = r.new_value(x);
                let y = r.transpose(x, &perm)?;
                let shape = r.shape(r.root().outputs[0])?;
                r.reshape(y, shape)
            },
        ),
        Rule::new(
            "sink-transpose",
            "f(transpose(x)) becomes transpose(f(x)) for f of one operand",
            elementwise(transpose(Pattern::value("x")).named("moved")),
            |r| {
                let (moved, x) = (r.found("moved")?, r.input("x")?);
                let y = r.add(r.root().op.clone(), &[x])?;
                let perm = perm_of(r, moved)?;
                r.transpose(y, &perm)
            },
        ),
        Rule::new(
            "sink-reshape",
            "f(reshape(x)) becomes reshape(f(x)) for f of one operand",
            elementwise(reshape(Pattern::value("x")).named("moved")),
            |r| {
                let (moved, x) = (r.found("moved")?, r.input("x")?);
                let y = r.add(r.root().op.clone(), &[x])?;
                let shape = r.shape(moved)?;
                r.reshape(y, shape)
            },
        ),
        Rule::new(
            "sink-transpose-of-two",
            "f(transpose(x), transpose(y)) becomes transpose(f(x, y)); constants are transposed",
            binary(transpose(Pattern::any()).named("moved"), Pattern::value("other")),
            sink_transpose_of_two,
        ),
        Rule::new(
            "sink-reshape-of-two",
            "f(reshape(x), reshape(y)) becomes reshape(f(x, y)); constants that broadcast stay",
            binary(reshape(Pattern::any()).named("moved"), Pattern::value("other")),
            sink_reshape_of_two,
        ),
        Rule::new(
            "sink-transpose-of-slice",
            "slice(transpose(x)) becomes transpose(slice(x))",
            Pattern::node(
                "Slice",
                |op| matches!(op, Op::Slice(_)),
                [transpose(Pattern::value("x")).shared().named("moved")],
            ),
            |r| {
                // Parts that are transposed one by one cost what the whole does, if they are all that is read.
                let moved = r.found("moved")?;
                let parts = r.users(moved).filter(|node| matches!(node.op, Op::Slice(_))).count();
                if parts != r.uses(moved) {
                    return Err(Reject::because("the whole transpose is read, too"));
                }
                let perm = perm_of_found(r)?;
                let Op::Slice(slice) = &r.root().op else { return Err(Reject::nothing_to_do()) };
                let axis = axis_index(slice.axis, perm.len())?;
                let x = r.input("x")?;
                let y = r.add(Op::Slice(Slice { axis: perm[axis] as isize, ..slice.clone() }), &[x])?;
                r.transpose(y, &perm)
            },
        ),
        Rule::new(
            "sink-transpose-of-padding",
            "pad(transpose(x)) becomes transpose(pad(x))",
            Pattern::node("Pad", |op| matches!(op, Op::Pad(_)), [transpose(Pattern::value("x")).named("moved")])
                .and_more_inputs(),
            |r| {
                let perm = perm_of_found(r)?;
                let Op::Pad(pad) = &r.root().op else { return Err(Reject::nothing_to_do()) };
                let mut pads = pad.pads.clone();
                for (to, from) in perm.iter().enumerate() {
                    pads[*from] = pad.pads[to].clone();
                }
                let mut inputs = vec![Some(r.input("x")?)];
                for id in &r.root().inputs[1..] {
                    let id = id.map(|id| r.new_value(id));
                    inputs.push(id);
                }
                let y = r.add_with(Op::Pad(Pad { pads, mode: pad.mode }), inputs)?;
                r.transpose(y, &perm)
            },
        ),
        Rule::new(
            "sink-transpose-of-concat",
            "concat(transpose(x), transpose(y)) becomes transpose(concat(x, y))",
            Pattern::node(
                "Concat",
                |op| matches!(op, Op::Concat(_)),
                [transpose(Pattern::any()).named("moved"), transpose(Pattern::any())],
            )
            .and_more_inputs(),
            sink_transpose_of_concat,
        ),
        Rule::new(
            "broadcast-expand",
            "an expansion whose user broadcasts anyway is left out",
            Pattern::node(
                "an operator that broadcasts",
                |op| matches!(op, Op::Binary(_) | Op::Where(_)),
                [Pattern::value("a"), Pattern::value("b")],
            )
            .and_more_inputs(),
            |r| {
                let root = r.root();
                let mut inputs = Vec::new();
                let mut dropped = false;
                for id in root.inputs.iter().flatten() {
                    let source = r.producer(*id).filter(|node| matches!(node.op, Op::Expand(_)));
                    // The second input of an Expand decides data-dependent extents.
                    let source = source.filter(|node| node.inputs.len() == 1).and_then(|node| node.inputs[0]);
                    dropped |= source.is_some();
                    let id = r.new_value(source.unwrap_or(*id));
                    inputs.push(Some(id));
                }
                if !dropped {
                    return Err(Reject::nothing_to_do());
                }
                r.add_with(root.op.clone(), inputs)
            },
        ),
        Rule::new(
            "gather-one",
            "gathering one known index becomes a slice",
            Pattern::node("Gather", |op| matches!(op, Op::Gather(_)), [Pattern::value("x"), Pattern::uniform("index")]),
            |r| {
                let Op::Gather(Gather { axis }) = r.root().op else { return Err(Reject::nothing_to_do()) };
                let (x, index) = (r.found("x")?, r.found("index")?);
                let (dtype, shape) = r.ty(x)?;
                let axis = axis_index(axis, shape.len())?;
                let one = r.weight(index)?.shape().iter().all(|n| *n == 1);
                // Half precision and blocks become f32 on the way; a table is better read than cut.
                let plain = dtype.packing().0 == 1 && !matches!(dtype, DType::F16 | DType::BF16);
                let Some(extent) = shape[axis].as_num().filter(|_| one && plain && r.weight(x).is_err()) else {
                    return Err(Reject::nothing_to_do());
                };
                let index = r.number(index)?;
                let at = if index < 0.0 { index + extent as f32 } else { index };
                if !(0.0..extent as f32).contains(&at) {
                    return Err(Reject::because(format!("the index {index} is outside of {extent}")));
                }
                let x = r.new_value(x);
                let part = r.add(Op::Slice(Slice::range(axis as isize, at as usize, at as usize + 1)), &[x])?;
                r.reshape(part, r.shape(r.root().outputs[0])?)
            },
        ),
        Rule::new(
            "known-shape",
            "a shape that is known is not computed",
            Pattern::node(
                "Reshape or Expand with a shape",
                |op| matches!(op, Op::Reshape(_) | Op::Expand(_)),
                [Pattern::value("x"), Pattern::any()],
            ),
            |r| {
                let known = match &r.root().op {
                    Op::Reshape(op) => op.shape.iter().all(|dim| dim.as_num().is_some()),
                    Op::Expand(op) => op.shape.iter().all(|dim| dim.as_num().is_some()),
                    _ => false,
                };
                if !known {
                    return Err(Reject::nothing_to_do());
                }
                let x = r.input("x")?;
                r.add(r.root().op.clone(), &[x])
            },
        ),
    ]
}

pub(crate) fn transpose(x: Pattern) -> Pattern {
    Pattern::node("Transpose", |op| matches!(op, Op::Transpose(_)), [x])
}

pub(crate) fn reshape(x: Pattern) -> Pattern {
    Pattern::node("Reshape", |op| matches!(op, Op::Reshape(_)), [x])
}

/// Operators that work on each element alone.
fn elementwise(x: Pattern) -> Pattern {
    Pattern::node("an element-wise operator", |op| matches!(op, Op::Unary(_) | Op::Cast(_)), [x])
}

/// An element-wise operator of two operands, of which `moved` is either one.
fn binary(moved: Pattern, other: Pattern) -> Pattern {
    Pattern::node("an element-wise operator", |op| matches!(op, Op::Binary(_)), [moved, other]).in_any_order()
}

fn perm_of(r: &Rewrite<'_, '_>, id: ValueId) -> Result<Vec<usize>, Reject> {
    match r.producer(id).map(|node| &node.op) {
        Some(Op::Transpose(Transpose { perm })) => Ok(perm.clone()),
        _ => Err(Reject::nothing_to_do()),
    }
}

fn perm_of_found(r: &Rewrite<'_, '_>) -> Result<Vec<usize>, Reject> {
    perm_of(r, r.found("moved")?)
}

fn root_perm(r: &Rewrite<'_, '_>) -> Result<Vec<usize>, Reject> {
    perm_of(r, r.root().outputs[0])
}

/// An axis that may count from the end.
pub(crate) fn axis_index(axis: isize, rank: usize) -> Result<usize, Reject> {
    let index = if axis < 0 { axis.checked_add_unsigned(rank) } else { Some(axis) };
    let index = index.and_then(|index| usize::try_from(index).ok()).filter(|index| *index < rank);
    index.ok_or_else(Reject::nothing_to_do)
}

/// The one input of a Transpose or Reshape that nobody else uses.
fn behind(r: &Rewrite<'_, '_>, id: ValueId) -> Option<ValueId> {
    let node = r.producer(id)?;
    match node.inputs[..] {
        [Some(x)] => Some(x),
        _ => None,
    }
}

/// For each extent of a reshaped value the run of extents that it merges; `None`, if the reshape does more than merging.
fn merged_groups(from: &[Dim], to: &[Dim]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut groups = Vec::with_capacity(to.len());
    let mut at = 0;
    for (i, extent) in to.iter().enumerate() {
        let start = at;
        let mut product = Dim::Num(1);
        while product != *extent || at == start {
            product = product.mul(from.get(at)?.clone());
            at += 1;
        }
        // The last extent takes what is left of ones.
        while i + 1 == to.len() && from.get(at) == Some(&Dim::Num(1)) {
            at += 1;
        }
        groups.push(start..at);
    }
    (at == from.len() && from.len() > to.len()).then_some(groups)
}

fn sink_transpose_of_two(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let (moved, other) = (r.found("moved")?, r.found("other")?);
    let perm = perm_of(r, moved)?;
    let Some(x) = behind(r, moved) else { return Err(Reject::nothing_to_do()) };
    let same = r.shape(moved)? == r.shape(r.root().outputs[0])?;
    if !same {
        return Err(Reject::nothing_to_do());
    }
    let new_other = match perm_of(r, other) {
        Ok(other_perm) => {
            let y = behind(r, other).ok_or_else(Reject::nothing_to_do)?;
            if other_perm != perm || (other != moved && r.uses(other) > 1) {
                return Err(Reject::nothing_to_do());
            }
            r.new_value(y)
        }
        Err(_) => unmoved_constant(r, other, &perm)?,
    };
    let new_x = r.new_value(x);
    let operands = ordered(r, moved, new_x, new_other);
    let y = r.add(r.root().op.clone(), &operands)?;
    r.transpose(y, &perm)
}

/// A constant as it broadcasts against a value before that is transposed.
fn unmoved_constant(r: &mut Rewrite<'_, '_>, id: ValueId, perm: &[usize]) -> Result<ValueId, Reject> {
    if r.weight(id).is_err() {
        return Err(Reject::nothing_to_do());
    }
    let rank = perm.len();
    let shape: Vec<usize> = r.weight(id)?.shape().to_vec();
    if shape.iter().all(|n| *n == 1) && shape.len() <= rank {
        return Ok(r.new_value(id));
    }
    if shape.len() > rank {
        return Err(Reject::nothing_to_do());
    }
    let full: Vec<usize> = std::iter::repeat_n(1, rank - shape.len()).chain(shape).collect();
    let mut inverse = vec![0; rank];
    perm.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
    let before: Vec<Dim> = inverse.iter().map(|i| Dim::Num(full[*i])).collect();
    // Extents of 1 move freely: mostly this is a vector, and nothing is computed.
    let solid: Vec<usize> = inverse.iter().copied().filter(|i| full[*i] != 1).collect();
    if solid.is_sorted() {
        return r.fold(&Op::Reshape(Reshape { shape: before }), &[id]);
    }
    let full_dims = full.iter().map(|n| Dim::Num(*n)).collect();
    let wide = r.fold(&Op::Reshape(Reshape { shape: full_dims }), &[id])?;
    let tensor = r.new_tensor(wide)?;
    let op = Op::Transpose(Transpose { perm: inverse });
    let moved = core_tensor::evaluate(&op, &[Some(tensor)], &core_tensor::Bindings::new())
        .map_err(|error| Reject::because(error.to_string()))?;
    let moved = moved.into_iter().next().ok_or_else(Reject::nothing_to_do)?;
    let name = r.graph().value(id).name.clone();
    Ok(r.add_weight(&name, core_tensor::Weight::stored(moved)))
}

/// Operands in the root's order.
fn ordered(r: &Rewrite<'_, '_>, moved: ValueId, new_moved: ValueId, other: ValueId) -> [ValueId; 2] {
    if r.root().inputs[0] == Some(moved) { [new_moved, other] } else { [other, new_moved] }
}

fn sink_reshape_of_two(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let (moved, other) = (r.found("moved")?, r.found("other")?);
    let Some(x) = behind(r, moved) else { return Err(Reject::nothing_to_do()) };
    let (from, to) = (r.shape(x)?, r.shape(moved)?);
    if to != r.shape(r.root().outputs[0])? || from.is_empty() {
        return Err(Reject::nothing_to_do());
    }
    let reshaped = r.producer(other).is_some_and(|node| matches!(node.op, Op::Reshape(_)));
    let new_other = if reshaped {
        let y = behind(r, other).ok_or_else(Reject::nothing_to_do)?;
        if r.shape(y)? != from || r.shape(other)? != to || (other != moved && r.uses(other) > 1) {
            return Err(Reject::nothing_to_do());
        }
        r.new_value(y)
    } else {
        let Ok(weight) = r.weight(other) else { return Err(Reject::nothing_to_do()) };
        // One number, or a vector along a last extent that the reshape keeps.
        let vector = match weight.shape() {
            [ones @ .., n] => {
                ones.iter().all(|n| *n == 1) && from.last() == to.last() && to.last() == Some(&Dim::Num(*n))
            }
            [] => true,
        };
        if !(vector || weight.shape().iter().all(|n| *n == 1)) {
            return Err(Reject::nothing_to_do());
        }
        let last: Vec<Dim> = weight.shape().last().map(|n| Dim::Num(*n)).into_iter().collect();
        r.fold(&Op::Reshape(Reshape { shape: last }), &[other])?
    };
    let new_x = r.new_value(x);
    let operands = ordered(r, moved, new_x, new_other);
    let y = r.add(r.root().op.clone(), &operands)?;
    r.reshape(y, to)
}

fn sink_transpose_of_concat(r: &mut Rewrite<'_, '_>) -> Result<ValueId, Reject> {
    let perm = perm_of_found(r)?;
    let Op::Concat(Concat { axis }) = r.root().op else { return Err(Reject::nothing_to_do()) };
    let axis = axis_index(axis, perm.len())?;
    let mut parts = Vec::new();
    for id in r.root().inputs.iter().flatten() {
        let same = perm_of(r, *id).is_ok_and(|other| other == perm) && r.uses(*id) == 1;
        let x = behind(r, *id).filter(|_| same).ok_or_else(Reject::nothing_to_do)?;
        parts.push(r.new_value(x));
    }
    let y = r.add(Op::Concat(Concat { axis: perm[axis] as isize }), &parts)?;
    r.transpose(y, &perm)
}

/// Whether padding adds zeros that a convolution adds as well.
pub(crate) fn pads_zeros(r: &Rewrite<'_, '_>, pad: &Pad, constant: Option<ValueId>) -> bool {
    pad.mode == PadMode::Constant && constant.is_none_or(|id| r.number(id).is_ok_and(|number| number == 0.0))
}
