//! Gathering and scattering.

use core_tensor::op::{
    Binary, GatherElements, GatherNd, NonMaxSuppression, NonZero, Op, ScatterElements, ScatterNd, ScatterReduction,
    Unique, Where,
};
use core_tensor::{DType, Dim};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axis};
use crate::lower::fail::{Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::SymInt;

pub(super) const OPERATORS: &[Entry] = &[
    ("Compress", 9, compress),
    ("Gather", 1, gather),
    ("GatherElements", 11, gather_elements),
    ("GatherND", 11, gather_nd),
    ("NonMaxSuppression", 10, non_max_suppression),
    ("NonZero", 9, non_zero),
    ("OneHot", 9, one_hot),
    ("ReverseSequence", 10, reverse_sequence),
    ("Scatter", 9, scatter_elements),
    ("ScatterElements", 11, scatter_elements),
    ("ScatterND", 11, scatter_nd),
    ("TensorScatter", 24, tensor_scatter),
    ("Unique", 11, unique),
];

fn gather<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices) = (call.input(0)?.clone(), call.input(1)?.clone());
    let at = axis(call.attributes.int_or("axis", 0)?, x.rank())?;
    // Elements of vectors of integers that follow from extents.
    if x.rank() == 1
        && !x.is_constant()
        && let (Some(ints), Some(places)) = (x.ints(), indices.ints())
    {
        let pick = |place: &SymInt| {
            let n = place.as_num()?;
            let n = if n < 0 { n + ints.len() as i64 } else { n };
            ints.get(usize::try_from(n).ok()?).cloned()
        };
        if let Some(picked) = places.iter().map(pick).collect::<Option<Vec<_>>>() {
            if !picked.contains(&SymInt::Unknown) {
                return one(lower.integers(x.dtype(), indices.shape(), picked)?);
            }
            let y = lower.gather(&x, at, &indices)?;
            return one(lower.with_ints(y, Some(picked)));
        }
    }
    one(lower.gather(&x, at, &indices)?)
}

fn gather_elements<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices) = (call.input(0)?.clone(), call.input(1)?.clone());
    let axis = call.attributes.int_or("axis", 0)? as isize;
    one(lower.op(Op::GatherElements(GatherElements { axis }), &[&x, &indices])?)
}

fn gather_nd<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices) = (call.input(0)?.clone(), call.input(1)?.clone());
    let batch_dims = call.attributes.count("batch_dims", 0)?;
    one(lower.op(Op::GatherNd(GatherNd { batch_dims }), &[&x, &indices])?)
}

fn reduction(call: &Call<'_>) -> Res<ScatterReduction> {
    Ok(match call.attributes.text_or("reduction", "none")? {
        "none" => ScatterReduction::None,
        "add" => ScatterReduction::Add,
        "mul" => ScatterReduction::Mul,
        "min" => ScatterReduction::Min,
        "max" => ScatterReduction::Max,
        other => return fail(format!("attribute reduction is '{other}'")),
    })
}

fn scatter_elements<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices, updates) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let axis = call.attributes.int_or("axis", 0)? as isize;
    let op = ScatterElements { axis, reduction: reduction(call)? };
    one(lower.op(Op::ScatterElements(op), &[&x, &indices, &updates])?)
}

fn scatter_nd<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices, updates) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let op = ScatterNd { reduction: reduction(call)? };
    one(lower.op(Op::ScatterNd(op), &[&x, &indices, &updates])?)
}

/// Where elements are not zero: i64 `[rank, count]`.
pub(super) fn places_of(lower: &mut Lower<'_>, x: &Operand) -> Res<Operand> {
    let count = lower.fresh(&format!("{}.count", lower.name));
    lower.op(Op::NonZero(NonZero { count }), &[x])
}

fn non_zero<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    one(places_of(lower, &x)?)
}

fn compress<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, condition) = (call.input(0)?.clone(), call.input(1)?.clone());
    let places = places_of(lower, &condition)?;
    let count = places.shape().last().cloned().unwrap_or(Dim::Num(0));
    let places = lower.reshape(&places, &[count])?;
    match call.attributes.int("axis")? {
        Some(at) => {
            let at = axis(at, x.rank())?;
            one(lower.gather(&x, at, &places)?)
        }
        None => {
            let count = x.count();
            let flat = lower.reshape(&x, &[count])?;
            one(lower.gather(&flat, 0, &places)?)
        }
    }
}

fn unique<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let axis = call.attributes.int("axis")?.map(|axis| axis as isize);
    let sorted = call.attributes.flag("sorted", true)?;
    let count = lower.fresh(&format!("{}.count", lower.name));
    let outputs = lower.ops(Op::Unique(Unique { axis, sorted, count }), &[Some(&x)])?;
    Ok(outputs.into_iter().map(Value::from).collect())
}

fn non_max_suppression<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let mut inputs = Vec::new();
    for i in 0..5 {
        inputs.push(call.optional(i)?.cloned());
    }
    let center_point_box = call.attributes.flag("center_point_box", false)?;
    let count = lower.fresh(&format!("{}.count", lower.name));
    let inputs: Vec<Option<&Operand>> = inputs.iter().map(Option::as_ref).collect();
    let op = Op::NonMaxSuppression(NonMaxSuppression { center_point_box, count });
    match lower.ops(op, &inputs)?.pop() {
        Some(y) => one(y),
        None => fail("no result"),
    }
}

fn one_hot<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (indices, depth, values) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let rank = indices.rank() + 1;
    let at = axis(call.attributes.int_or("axis", -1)?, rank)?;
    let depth = lower.cast(&depth, DType::I64)?;
    let len = match depth.ints().as_deref() {
        Some([int]) if *int != SymInt::Unknown => {
            int.as_dim().ok_or_else(|| crate::lower::fail::Fail::from("a negative depth"))?
        }
        _ => lower.fresh(&format!("{}.{at}", lower.name)),
    };
    let (zero, step) = (lower.scalar(DType::I64, 0.0)?, lower.scalar(DType::I64, 1.0)?);
    let depth = lower.reshape(&depth, &[])?;
    let classes = match &len {
        Dim::Num(_) => lower.iota(len.clone())?,
        _ => lower.op(Op::Range(core_tensor::op::Range { len: len.clone() }), &[&zero, &depth, &step])?,
    };
    let mut shape = vec![Dim::Num(1); rank];
    shape[at] = len;
    let classes = lower.reshape(&classes, &shape)?;
    let indices = lower.cast(&indices, DType::I64)?;
    let negative = lower.binary(Binary::Less, &indices, &zero)?;
    let shifted = lower.add(&indices, &depth)?;
    let indices = lower.op(Op::Where(Where), &[&negative, &shifted, &indices])?;
    let indices = lower.unsqueeze(&indices, &[at])?;
    let hot = lower.binary(Binary::Equal, &indices, &classes)?;
    let off = lower.slice(&values, 0, Dim::Num(0), Dim::Num(1))?;
    let on = lower.slice(&values, 0, Dim::Num(1), Dim::Num(1))?;
    one(lower.op(Op::Where(Where), &[&hot, &on, &off])?)
}

fn reverse_sequence<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, lens) = (call.input(0)?.clone(), call.input(1)?.clone());
    let time = axis(call.attributes.int_or("time_axis", 0)?, x.rank())?;
    let batch = axis(call.attributes.int_or("batch_axis", 1)?, x.rank())?;
    if time + batch != 1 {
        return fail("time_axis and batch_axis must be 0 and 1");
    }
    // Element t of a sequence of length n comes from n - 1 - t where t < n, from t otherwise.
    let steps = lower.iota(x.shape()[time].clone())?;
    let place = |i: usize| if i == 0 { [1] } else { [0] };
    let steps = lower.unsqueeze(&steps, &place(time))?;
    let lens = lower.cast(&lens, DType::I64)?;
    let lens = lower.unsqueeze(&lens, &place(batch))?;
    let inside = lower.binary(Binary::Less, &steps, &lens)?;
    let single = lower.scalar(DType::I64, 1.0)?;
    let last = lower.sub(&lens, &single)?;
    let mirrored = lower.sub(&last, &steps)?;
    let mut from = lower.op(Op::Where(Where), &[&inside, &mirrored, &steps])?;
    for _ in 2..x.rank() {
        from = lower.unsqueeze(&from, &[from.rank()])?;
    }
    let from = lower.expand(&from, x.shape())?;
    one(lower.op(Op::GatherElements(GatherElements { axis: time as isize }), &[&x, &from])?)
}

/// Writes rows into a cache at an index of each batch (ONNX TensorScatter).
fn tensor_scatter<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (past, update) = (call.input(0)?.clone(), call.input(1)?.clone());
    let at = axis(call.attributes.int_or("axis", -2)?, past.rank())?;
    let circular = match call.attributes.text_or("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => return fail(format!("attribute mode is '{other}'")),
    };
    let rank = past.rank();
    if at == 0 {
        return fail("the axis must not be that of the batch");
    }
    let steps = lower.iota(update.shape()[at].clone())?;
    let mut shape = vec![Dim::Num(1); rank];
    shape[at] = update.shape()[at].clone();
    let mut places = lower.reshape(&steps, &shape)?;
    if let Some(first) = call.optional(2)? {
        let first = lower.cast(&first.clone(), DType::I64)?;
        let mut shape = vec![Dim::Num(1); rank];
        shape[0] = past.shape()[0].clone();
        let first = lower.reshape(&first, &shape)?;
        places = lower.add(&places, &first)?;
    }
    if circular {
        let len = lower.integers(DType::I64, &[], vec![SymInt::of(past.shape()[at].clone())])?;
        places = lower.binary(Binary::Mod, &places, &len)?;
    }
    let places = lower.expand(&places, update.shape())?;
    let op = ScatterElements { axis: at as isize, reduction: ScatterReduction::None };
    one(lower.op(Op::ScatterElements(op), &[&past, &places, &update])?)
}
