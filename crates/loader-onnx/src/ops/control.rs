//! Control flow, sequences and optionals.

use std::rc::Rc;

use core_tensor::{DType, Dim};

use super::shape::ranged;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axis};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::subgraph::Iteration;
use crate::lower::sym_int::{SymInt, quotient};

pub(super) const OPERATORS: &[Entry] = &[
    ("If", 1, branch),
    ("Loop", 1, repeat),
    ("Scan", 9, scan),
    ("ConcatFromSequence", 11, concat_from_sequence),
    ("Optional", 15, optional),
    ("OptionalGetElement", 15, optional_get_element),
    ("OptionalHasElement", 15, optional_has_element),
    ("SequenceAt", 11, sequence_at),
    ("SequenceConstruct", 11, sequence_construct),
    ("SequenceEmpty", 11, sequence_empty),
    ("SequenceErase", 11, sequence_erase),
    ("SequenceInsert", 11, sequence_insert),
    ("SequenceLength", 11, sequence_length),
    ("SequenceMap", 17, sequence_map),
    ("SplitToSequence", 11, split_to_sequence),
];

/// Iterations that are written out one after the other, at most.
const MAX_UNROLLED: i64 = 256;

fn branch<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let condition = call.input(0)?.clone();
    let (then_graph, else_graph) = (call.attributes.graph("then_branch")?, call.attributes.graph("else_branch")?);
    match condition.ints().as_deref() {
        Some([SymInt::Num(0)]) => lower.inline(else_graph, call, &[]),
        Some([SymInt::Num(_)]) => lower.inline(then_graph, call, &[]),
        // `x.squeeze(i)` as exporters write it where the extent is not known: squeezed if it is 1, and as it is otherwise. The number of extents
        // cannot depend on a run; the graph holds where the extent is 1, and says so where it is not.
        _ if squeezes(then_graph) && keeps(else_graph) => lower.inline(then_graph, call, &[]),
        _ if squeezes(else_graph) && keeps(then_graph) => lower.inline(else_graph, call, &[]),
        _ => lower.branches(call, &condition, then_graph, else_graph),
    }
}

fn only(graph: &crate::proto::GraphProto, operators: &[&str]) -> bool {
    graph.node.iter().all(|node| operators.contains(&node.op_type()))
}

fn squeezes(graph: &crate::proto::GraphProto) -> bool {
    only(graph, &["Constant", "Squeeze"]) && graph.node.iter().any(|node| node.op_type() == "Squeeze")
}

fn keeps(graph: &crate::proto::GraphProto) -> bool {
    only(graph, &["Identity"])
}

fn repeat<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let body = call.attributes.graph("body")?;
    let most = call.optional(0)?.cloned();
    let condition = call.optional(1)?.cloned();
    let given: Vec<Value> =
        call.inputs.iter().skip(2).map(|value| value.clone().unwrap_or(Value::Optional(None))).collect();
    let known = |operand: &Option<Operand>| match operand.as_ref().map(Operand::ints) {
        Some(Some(ints)) => ints.first().and_then(SymInt::as_num),
        _ => None,
    };
    let endless = condition.is_none() || known(&condition) == Some(1);
    if given.iter().any(|value| !matches!(value, Value::Tensor(_))) {
        return match known(&most) {
            Some(count) if endless && count <= MAX_UNROLLED => unrolled(lower, call, body, count, given),
            _ => fail("sequences are carried, and the number of iterations is not known"),
        };
    }
    let first: Vec<Operand> = given.iter().filter_map(|value| value.operand().cloned()).collect();
    let most = match most {
        Some(most) => {
            let most = lower.cast(&most, DType::I64)?;
            Some(lower.reshape(&most, &[])?)
        }
        None => None,
    };
    let condition = condition.map(|condition| lower.reshape(&condition, &[])).transpose()?;
    // A body that gives a condition which is always true runs as often as it is told to.
    let len = match most.as_ref().and_then(Operand::ints).as_deref() {
        Some([count]) if endless => count.as_dim().filter(|_| gives_true(body)),
        _ => None,
    };
    let count = first.len();
    let mut lower_body = |lower: &mut Lower<'a>, iteration: &Operand, going: &Operand, carried: &[Operand]| {
        let values: Vec<Value> = [iteration, going].into_iter().chain(carried).cloned().map(Value::Tensor).collect();
        let outputs = lower.inline(body, call, &values)?;
        let mut outputs = outputs.iter().map(|value| match value {
            Value::Tensor(operand) => Ok(operand.clone()),
            other => fail(format!("its body gives {}", other.kind())),
        });
        let condition = outputs.next().unwrap_or_else(|| fail("its body gives nothing"))?;
        let outputs: Vec<Operand> = outputs.collect::<Res<_>>()?;
        if outputs.len() < count {
            return fail("its body gives fewer values than are carried");
        }
        let (carried, scanned) = outputs.split_at(count);
        Ok(Iteration { condition, carried: carried.to_vec(), scanned: scanned.to_vec() })
    };
    let outputs = lower.iterate(most.as_ref(), condition.as_ref(), &first, len, &mut lower_body)?;
    Ok(outputs.into_iter().map(Value::from).collect())
}

/// Whether a body's condition is the one that it is given, or a constant: plain cases that exporters write.
fn gives_true(body: &crate::proto::GraphProto) -> bool {
    let Some(mut name) = body.output.first().map(|output| output.name()) else { return false };
    for _ in 0..4 {
        if body.input.get(1).is_some_and(|input| input.name() == name) {
            return true;
        }
        let Some(node) = body.node.iter().find(|node| node.output.first().is_some_and(|output| output == name)) else {
            return false;
        };
        match (node.op_type(), node.input.first()) {
            ("Identity" | "Cast", Some(input)) => name = input,
            _ => return false,
        }
    }
    false
}

fn unrolled<'a>(
    lower: &mut Lower<'a>,
    call: &Call<'a>,
    body: &'a crate::proto::GraphProto,
    count: i64,
    mut carried: Vec<Value>,
) -> Res<Vec<Value>> {
    let mut scanned: Vec<Vec<Operand>> = Vec::new();
    for iteration in 0..count.max(0) {
        let (index, going) = (lower.scalar(DType::I64, iteration as f64)?, lower.scalar(DType::Bool, 1.0)?);
        let values: Vec<Value> =
            [Value::Tensor(index), Value::Tensor(going)].into_iter().chain(carried.iter().cloned()).collect();
        let mut outputs = lower.inline(body, call, &values)?.into_iter();
        let condition = outputs.next();
        let known = condition.as_ref().and_then(Value::operand).and_then(Operand::ints);
        for value in &mut carried {
            *value = outputs.next().ok_or_else(|| Fail::from("its body gives too few values"))?;
        }
        for (i, value) in outputs.enumerate() {
            let Some(operand) = value.operand() else { return fail("a sequence is scanned") };
            let operand = lower.unsqueeze(operand, &[0])?;
            match scanned.get_mut(i) {
                Some(list) => list.push(operand),
                None => scanned.push(vec![operand]),
            }
        }
        match known.as_deref() {
            Some([SymInt::Num(0)]) => break,
            Some([SymInt::Num(_)]) => {}
            _ => return fail("sequences are carried, and the number of iterations is not known"),
        }
    }
    for list in scanned {
        carried.push(lower.concat(&list, 0)?.into());
    }
    Ok(carried)
}

fn scan<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let body = call.attributes.graph("body")?;
    let inputs = call.all()?;
    let scans = call.attributes.count("num_scan_inputs", 0)?;
    let Some(states) = inputs.len().checked_sub(scans).filter(|_| scans > 0) else {
        return fail(format!("{scans} scan inputs of {}", inputs.len()));
    };
    let Some(outputs) = body.output.len().checked_sub(states) else { return fail("its body gives too few values") };
    let list = |name: &str, len: usize| -> Res<Vec<i64>> {
        let all = call.attributes.ints(name)?.map_or_else(|| vec![0; len], <[i64]>::to_vec);
        if all.len() == len { Ok(all) } else { fail(format!("attribute {name} has {} elements, not {len}", all.len())) }
    };
    let (input_axes, output_axes) = (list("scan_input_axes", scans)?, list("scan_output_axes", outputs)?);
    let (input_ways, output_ways) = (list("scan_input_directions", scans)?, list("scan_output_directions", outputs)?);
    let (first, scanned) = inputs.split_at(states);
    let places: Vec<usize> = scanned.iter().zip(&input_axes).map(|(x, at)| axis(*at, x.rank())).collect::<Res<_>>()?;
    let len = scanned[0].shape()[places[0]].clone();
    let most = lower.integers(DType::I64, &[], vec![SymInt::of(len.clone())])?;
    let last = lower.integers(DType::I64, &[], vec![SymInt::of(len.clone()).sub(&SymInt::Num(1))])?;
    let mut lower_body = |lower: &mut Lower<'a>, iteration: &Operand, going: &Operand, carried: &[Operand]| {
        let mut values: Vec<Value> = carried.iter().cloned().map(Value::Tensor).collect();
        for (i, x) in scanned.iter().enumerate() {
            let index = if input_ways[i] == 0 { iteration.clone() } else { lower.sub(&last, iteration)? };
            values.push(lower.gather(x, places[i], &index)?.into());
        }
        let outputs = lower.inline(body, call, &values)?;
        let all: Option<Vec<Operand>> = outputs.iter().map(|value| value.operand().cloned()).collect();
        let Some(all) = all else { return fail("its body gives a sequence") };
        let (carried, scanned) = all.split_at(states);
        Ok(Iteration { condition: going.clone(), carried: carried.to_vec(), scanned: scanned.to_vec() })
    };
    let mut results = lower.iterate(Some(&most), None, first, Some(len.clone()), &mut lower_body)?;
    for (i, y) in results[states..].iter_mut().enumerate() {
        if output_ways[i] != 0 {
            let end = len.clone().sub(Dim::Num(1));
            *y = super::shape::strided(lower, y, 0, end, len.clone(), -1)?;
        }
        let at = axis(output_axes[i], y.rank())?;
        let perm: Vec<usize> = (1..=at).chain([0]).chain(at + 1..y.rank()).collect();
        *y = lower.transpose(y, &perm)?;
    }
    Ok(results.into_iter().map(Value::from).collect())
}

fn sequence(call: &Call<'_>, input: usize) -> Res<Rc<Vec<Value>>> {
    fn unwrap(value: &Value) -> Option<Rc<Vec<Value>>> {
        match value {
            Value::Sequence(all) => Some(all.clone()),
            Value::Optional(Some(value)) => unwrap(value),
            _ => None,
        }
    }
    call.value(input).and_then(unwrap).ok_or_else(|| format!("input {input} must be a sequence").into())
}

/// A position in a sequence; `end` is one past the last that is allowed.
fn position(call: &Call<'_>, input: usize, len: usize, end: usize) -> Res<usize> {
    let [at] = call.input(input)?.numbers("position")?[..] else { return fail("position must be one number") };
    let index = if at < 0 { at.checked_add_unsigned(len as u64) } else { Some(at) };
    let index = index.and_then(|index| usize::try_from(index).ok()).filter(|index| *index < end);
    index.ok_or_else(|| format!("position {at} is outside of a sequence of {len}").into())
}

fn sequence_construct<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let all: Option<Vec<Value>> = call.inputs.iter().cloned().collect();
    match all {
        Some(all) => Ok(vec![Value::Sequence(all.into())]),
        None => fail("an input is missing"),
    }
}

fn sequence_empty<'a>(_: &mut Lower<'a>, _: &Call<'a>) -> Res<Vec<Value>> {
    Ok(vec![Value::Sequence(Vec::new().into())])
}

fn sequence_at<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let all = sequence(call, 0)?;
    Ok(vec![all[position(call, 1, all.len(), all.len())?].clone()])
}

fn sequence_insert<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let mut all = sequence(call, 0)?.to_vec();
    let at = match call.optional(2)? {
        Some(_) => position(call, 2, all.len(), all.len() + 1)?,
        None => all.len(),
    };
    match call.value(1) {
        Some(value) => all.insert(at, value.clone()),
        None => return fail("the value is missing"),
    }
    Ok(vec![Value::Sequence(all.into())])
}

fn sequence_erase<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let mut all = sequence(call, 0)?.to_vec();
    let at = match call.optional(1)? {
        Some(_) => position(call, 1, all.len(), all.len())?,
        None if all.is_empty() => return fail("the sequence is empty"),
        None => all.len() - 1,
    };
    all.remove(at);
    Ok(vec![Value::Sequence(all.into())])
}

fn sequence_length<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let len = sequence(call, 0)?.len();
    one(lower.scalar(DType::I64, len as f64)?)
}

fn concat_from_sequence<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let all = sequence(call, 0)?;
    let new = call.attributes.flag("new_axis", false)?;
    let mut parts = Vec::new();
    let Some(at) = call.attributes.int("axis")? else { return fail("attribute axis is missing") };
    for value in all.iter() {
        let Some(operand) = value.operand() else { return fail("an element is no tensor") };
        let part = if new {
            let at = axis(at, operand.rank() + 1)?;
            lower.unsqueeze(operand, &[at])?
        } else {
            operand.clone()
        };
        parts.push(part);
    }
    let Some(first) = parts.first() else { return fail("the sequence is empty") };
    let at = axis(at, first.rank())?;
    one(super::shape::joined(lower, &parts, at)?)
}

fn split_to_sequence<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = axis(call.attributes.int_or("axis", 0)?, x.rank())?;
    let keep = call.optional(1)?.is_some() || call.attributes.flag("keepdims", true)?;
    let extent = x.shape()[at].clone();
    let parts: Vec<Dim> = match call.optional(1)? {
        Some(split) if split.rank() > 0 => {
            let ints = split.int_vector("split")?;
            let known = |int: &SymInt| int.as_dim().ok_or_else(|| Fail::from("the lengths of the parts must be known"));
            ints.iter().map(known).collect::<Res<_>>()?
        }
        given => {
            let each = match given {
                Some(split) => split.numbers("split")?.first().copied().unwrap_or(1),
                None => 1,
            };
            let (Dim::Num(n), Ok(each)) = (&extent, usize::try_from(each)) else {
                return fail("the number of parts must be known");
            };
            if each == 0 {
                return fail("parts of no elements");
            }
            (0..n.div_ceil(each)).map(|i| Dim::Num((n - i * each).min(each))).collect()
        }
    };
    let mut start = Dim::Num(0);
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let mut piece = ranged(lower, &x, at, start.clone(), part.clone())?;
        if !keep {
            piece = lower.squeeze(&piece, &[at])?;
        }
        all.push(Value::Tensor(piece));
        start = start.add(part);
    }
    // An extent of parts that add up to it.
    let _ = quotient(&[extent], &[Dim::Num(1)]);
    Ok(vec![Value::Sequence(all.into())])
}

fn sequence_map<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let body = call.attributes.graph("body")?;
    let first = sequence(call, 0)?;
    let mut results: Vec<Vec<Value>> = vec![Vec::new(); body.output.len()];
    for i in 0..first.len() {
        let mut values = Vec::with_capacity(call.inputs.len());
        for (j, input) in call.inputs.iter().enumerate() {
            values.push(match input {
                Some(Value::Sequence(all)) => match all.get(i) {
                    Some(value) => value.clone(),
                    None => return fail(format!("input {j} has fewer elements than input 0")),
                },
                Some(value) => value.clone(),
                None => return fail(format!("input {j} is missing")),
            });
        }
        for (result, value) in results.iter_mut().zip(lower.inline(body, call, &values)?) {
            result.push(value);
        }
    }
    Ok(results.into_iter().map(|all| Value::Sequence(all.into())).collect())
}

fn optional<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    Ok(vec![Value::Optional(call.value(0).cloned().map(Rc::new))])
}

fn optional_has_element<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let there = !matches!(call.value(0), None | Some(Value::Optional(None)));
    one(lower.scalar(DType::Bool, f64::from(u8::from(there)))?)
}

fn optional_get_element<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    match call.value(0) {
        Some(Value::Optional(Some(value))) => Ok(vec![(**value).clone()]),
        None | Some(Value::Optional(None)) => fail("the optional has no element"),
        Some(value) => Ok(vec![value.clone()]),
    }
}
