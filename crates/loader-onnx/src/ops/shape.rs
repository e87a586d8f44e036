//! Operators that move elements, and shape arithmetic.

use core_tensor::op::{Op, Pad, PadMode, Range, Slice, Trilu};
use core_tensor::{DType, Dim};

use super::constant::{expand_to, shape_of};
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axes, axis};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{MAX_INTS, Operand, Value};
use crate::lower::sym_int::{SymInt, difference, product, quotient};

pub(super) const OPERATORS: &[Entry] = &[
    ("CenterCropPad", 18, center_crop_pad),
    ("Concat", 4, concat),
    ("DepthToSpace", 1, depth_to_space),
    ("Expand", 8, expand),
    ("Flatten", 1, flatten),
    ("Pad", 2, pad),
    ("Range", 11, range),
    ("Reshape", 5, reshape),
    ("Shape", 1, shape),
    ("Size", 1, size),
    ("Slice", 1, slice),
    ("SpaceToDepth", 1, space_to_depth),
    ("Split", 2, split),
    ("Squeeze", 1, squeeze),
    ("Tile", 6, tile),
    ("Transpose", 1, transpose),
    ("Trilu", 14, trilu),
    ("Unsqueeze", 1, unsqueeze),
];

fn shape<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?;
    let rank = x.rank() as i64;
    let clamp = |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
    let start = clamp(call.attributes.int_or("start", 0)?);
    let end = clamp(call.attributes.int_or("end", rank)?);
    let dims = x.shape().get(start..end).unwrap_or_default().to_vec();
    one(lower.extents(&dims)?)
}

fn size<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let count = call.input(0)?.count();
    one(lower.integers(DType::I64, &[], vec![SymInt::of(count)])?)
}

fn reshape<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, shape) = (call.input(0)?.clone(), call.input(1)?.clone());
    let spec = shape.int_vector("shape")?;
    let keep_zero = call.attributes.flag("allowzero", false)?;
    let mut unknown = Vec::new();
    let mut open = None;
    let mut dims = Vec::with_capacity(spec.len());
    for (i, int) in spec.iter().enumerate() {
        dims.push(match int {
            SymInt::Num(0) if !keep_zero => match x.shape().get(i) {
                Some(dim) => dim.clone(),
                None => return fail(format!("extent {i} of the shape is 0, but {} has no such extent", x.rank())),
            },
            SymInt::Num(-1) if open.is_none() => {
                open = Some(i);
                Dim::Num(1)
            }
            SymInt::Unknown => {
                unknown.push(i);
                Dim::Num(1)
            }
            int => int.as_dim().ok_or_else(|| Fail::from(format!("extent {i} of the shape is negative")))?,
        });
    }
    // What one extent must be follows from the others, be it computed or not.
    if open.is_none() && unknown.len() == 1 {
        open = unknown.pop();
    }
    for i in &unknown {
        dims[*i] = lower.fresh(&format!("{}.{i}", lower.name));
    }
    if let Some(i) = open {
        let others: Vec<Dim> = dims.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, dim)| dim.clone()).collect();
        dims[i] =
            if unknown.is_empty() { quotient(x.shape(), &others) } else { lower.fresh(&format!("{}.{i}", lower.name)) };
        if product(&others) == Dim::Num(0) {
            return fail("an extent of -1 beside one of 0");
        }
    }
    if unknown.is_empty() {
        return one(lower.reshape(&x, &dims)?);
    }
    // The sizes are computed when the graph runs; -1 and 0 are resolved there, too.
    let spec = lower.cast(&shape, DType::I64)?;
    let spec = resolved(lower, &x, &spec, keep_zero)?;
    let y = lower.op(Op::Reshape(core_tensor::op::Reshape { shape: dims }), &[&x, &spec])?;
    one(lower.declare(&y, x.dtype())?)
}

/// A computed shape with 0 and -1 replaced by what they stand for.
fn resolved(lower: &mut Lower<'_>, x: &Operand, spec: &Operand, keep_zero: bool) -> Res<Operand> {
    use core_tensor::op::{Binary, ReduceKind, Where};
    let rank = spec.shape().first().and_then(Dim::as_num).unwrap_or(0);
    let zero = lower.scalar(DType::I64, 0.0)?;
    let mut spec = spec.clone();
    if !keep_zero {
        let dims: Vec<Dim> = (0..rank).map(|i| x.shape().get(i).cloned().unwrap_or(Dim::Num(1))).collect();
        let own = lower.extents(&dims)?;
        let is_zero = lower.binary(Binary::Equal, &spec, &zero)?;
        spec = lower.op(Op::Where(Where), &[&is_zero, &own, &spec])?;
    }
    let negative = lower.binary(Binary::Less, &spec, &zero)?;
    let single = lower.scalar(DType::I64, 1.0)?;
    let others = lower.op(Op::Where(Where), &[&negative, &single, &spec])?;
    let others = lower.reduce_last(ReduceKind::Prod, &others)?;
    // A shape without -1 may have no elements.
    let others = lower.binary(Binary::Max, &others, &single)?;
    let count = lower.integers(DType::I64, &[Dim::Num(1)], vec![SymInt::of(x.count())])?;
    let rest = lower.div(&count, &others)?;
    lower.op(Op::Where(Where), &[&negative, &rest, &spec])
}

fn flatten<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = call.attributes.int_or("axis", 1)?;
    let at = if at == x.rank() as i64 { x.rank() } else { axis(at, x.rank())? };
    one(flattened(lower, &x, at)?)
}

/// As a matrix: the extents before a place, and those from it on.
pub(super) fn flattened(lower: &mut Lower<'_>, x: &Operand, at: usize) -> Res<Operand> {
    let (rows, columns) = x.shape().split_at(at);
    lower.reshape(x, &[product(rows), product(columns)])
}

fn squeeze<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let places = match call.axes("axes", 1, 13)? {
        Some(all) => axes(&all, x.rank())?,
        None => (0..x.rank()).filter(|i| x.shape()[*i] == Dim::Num(1)).collect(),
    };
    one(lower.squeeze(&x, &places)?)
}

fn unsqueeze<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let Some(all) = call.axes("axes", 1, 13)? else { return fail("axes are missing") };
    let places = axes(&all, x.rank() + all.len())?;
    one(lower.unsqueeze(&x, &places)?)
}

fn transpose<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let perm = call.attributes.counts("perm")?.unwrap_or_else(|| (0..x.rank()).rev().collect());
    one(lower.transpose(&x, &perm)?)
}

fn concat<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let all = call.all()?;
    let Some(first) = all.first() else { return fail("it has no inputs") };
    let at = axis(call.attributes.int_or("axis", 1)?, first.rank())?;
    one(joined(lower, &all, at)?)
}

/// Joined along an extent; vectors of integers that follow from extents stay such.
pub(super) fn joined(lower: &mut Lower<'_>, all: &[Operand], at: usize) -> Res<Operand> {
    let mut ints = None;
    if at == 0 && all.iter().all(|x| x.rank() == 1) && all.iter().any(|x| x.symbolic().is_some()) {
        let parts: Option<Vec<Vec<SymInt>>> = all.iter().map(|x| x.int_vector("").ok()).collect();
        ints = parts.map(|parts| parts.concat()).filter(|ints| ints.len() <= MAX_INTS);
    }
    if let Some(ints) = &ints
        && !ints.contains(&SymInt::Unknown)
    {
        return lower.integers(all[0].dtype(), &[Dim::Num(ints.len())], ints.clone());
    }
    // Empty vectors of another type stand for nothing in some exporters' past_key_values.
    let y = lower.concat(all, at)?;
    Ok(lower.with_ints(y, ints))
}

fn slice<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let number = |all: &[i64]| all.iter().copied().map(SymInt::Num).collect::<Vec<_>>();
    let (starts, ends, places, steps);
    if call.opset < 10 {
        let attributes = &call.attributes;
        starts = number(attributes.ints("starts")?.unwrap_or_default());
        ends = number(attributes.ints("ends")?.unwrap_or_default());
        places = attributes.ints("axes")?.map(<[i64]>::to_vec);
        steps = vec![1; starts.len()];
    } else {
        starts = call.input(1)?.int_vector("starts")?;
        ends = call.input(2)?.int_vector("ends")?;
        places = call.optional(3)?.map(|axes| axes.numbers("axes")).transpose()?;
        steps = match call.optional(4)? {
            Some(steps) => steps.numbers("steps")?,
            None => vec![1; starts.len()],
        };
    }
    let places = places.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let places = axes(&places, x.rank())?;
    if ends.len() != starts.len() || places.len() != starts.len() || steps.len() != starts.len() {
        return fail("starts, ends, axes and steps differ in length");
    }
    let mut y = x;
    for (i, place) in places.iter().enumerate() {
        y = if starts[i] == SymInt::Unknown || ends[i] == SymInt::Unknown {
            if call.opset < 10 {
                return fail("a slice without bounds");
            }
            let (starts, ends) = (call.input(1)?.clone(), call.input(2)?.clone());
            slice_at_run_time(lower, &y, *place, i, &starts, &ends, steps[i])?
        } else {
            slice_one(lower, &y, *place, &starts[i], &ends[i], steps[i])?
        };
    }
    one(y)
}

/// Where a bound of a slice lies: clamped, negative ones counted from the end.
fn bound(n: &SymInt, extent: &Dim, low: i64, high: &SymInt) -> SymInt {
    let extent = SymInt::of(extent.clone());
    let from_end = match n {
        SymInt::Num(n) if *n < 0 => extent.add(&SymInt::Num((*n).max(-i64::from(i32::MAX)))),
        SymInt::Neg(_) => extent.add(n),
        n => n.clone(),
    };
    match (&from_end, &extent) {
        // An extent minus a number may be below zero: it cannot be said in extents but by keeping the larger of the two.
        (SymInt::Dim(_), SymInt::Dim(whole)) if matches!(n, SymInt::Num(..0)) => {
            let SymInt::Num(n) = n else { return SymInt::Unknown };
            let least = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
            if least >= i32::MAX as usize {
                return SymInt::Num(low.max(0));
            }
            // max(extent, least) - least
            SymInt::of(difference(&whole.clone().max(Dim::Num(least)), &Dim::Num(least)))
        }
        _ => from_end.max(&SymInt::Num(low)).min(high),
    }
}

fn slice_one(
    lower: &mut Lower<'_>,
    x: &Operand,
    place: usize,
    start: &SymInt,
    end: &SymInt,
    step: i64,
) -> Res<Operand> {
    let extent = x.shape()[place].clone();
    let whole = SymInt::of(extent.clone());
    let (start, len) = if step > 0 {
        let start = bound(start, &extent, 0, &whole);
        let end = bound(end, &extent, 0, &whole);
        let len = match (&start, &end) {
            (a, b) if a == b => SymInt::Num(0),
            (SymInt::Num(0), end) => end.clone(),
            _ => end.sub(&start).max(&SymInt::Num(0)),
        };
        let len = match len.as_dim() {
            Some(len) if step == 1 => SymInt::of(len),
            Some(len) => SymInt::of(len.div_ceil(Dim::Num(step as usize))),
            None => SymInt::Unknown,
        };
        (start, len)
    } else if step < 0 {
        let last = whole.sub(&SymInt::Num(1));
        let start = match start {
            // From the end.
            SymInt::Num(n) if *n == -1 || *n >= i64::from(i32::MAX) => last.clone(),
            start => bound(start, &extent, 0, &last),
        };
        // One below zero is where such a slice ends when it takes all.
        let below = match (end, &extent) {
            (SymInt::Num(n), _) if *n <= -i64::from(i32::MAX) => SymInt::Num(-1),
            (SymInt::Num(n), Dim::Num(e)) if *n < 0 => SymInt::Num((n + *e as i64).max(-1)),
            (SymInt::Num(n), Dim::Num(e)) => SymInt::Num((*n).min(*e as i64 - 1)),
            (end, _) => bound(end, &extent, -1, &last),
        };
        let distance = start.sub(&below).max(&SymInt::Num(0));
        let len = match distance.as_dim() {
            Some(len) => SymInt::of(len.div_ceil(Dim::Num(step.unsigned_abs() as usize))),
            None => SymInt::Unknown,
        };
        (start, len)
    } else {
        return fail("a step of 0");
    };
    let (Some(from), Some(count)) = (start.as_dim(), len.as_dim()) else {
        return match (&len, start) {
            // Nothing of nothing: the start of an empty extent backwards is -1.
            (SymInt::Num(0), _) => lower.slice(x, place, Dim::Num(0), Dim::Num(0)),
            _ => fail("the bounds of the slice cannot be followed"),
        };
    };
    if let Some(ints) = x.ints()
        && x.rank() == 1
        && !x.is_constant()
        && let (Dim::Num(from), Dim::Num(count)) = (&from, &count)
    {
        let picked: Option<Vec<SymInt>> = (0..*count)
            .map(|i| {
                let at = (*from as i64).checked_add((i as i64).checked_mul(step)?)?;
                ints.get(usize::try_from(at).ok()?).cloned()
            })
            .collect();
        if let Some(picked) = picked {
            if !picked.contains(&SymInt::Unknown) {
                return lower.integers(x.dtype(), &[Dim::Num(*count)], picked);
            }
            let y = strided(lower, x, place, Dim::Num(*from), Dim::Num(*count), step)?;
            return Ok(lower.with_ints(y, Some(picked)));
        }
    }
    strided(lower, x, place, from, count, step)
}

/// Elements of an extent at equal distances.
pub(super) fn strided(
    lower: &mut Lower<'_>,
    x: &Operand,
    place: usize,
    start: Dim,
    len: Dim,
    step: i64,
) -> Res<Operand> {
    if step == 1 || len == Dim::Num(1) || len == Dim::Num(0) {
        return lower.slice(x, place, start, len);
    }
    let step = isize::try_from(step).unwrap_or(if step < 0 { isize::MIN } else { isize::MAX });
    lower.op(Op::Slice(Slice { axis: place as isize, start, len, step }), &[x])
}

/// A slice whose bounds only the graph's run knows: elements gathered by a range.
fn slice_at_run_time(
    lower: &mut Lower<'_>,
    x: &Operand,
    place: usize,
    index: usize,
    starts: &Operand,
    ends: &Operand,
    step: i64,
) -> Res<Operand> {
    use core_tensor::op::{Binary, Where};
    let extent = lower.integers(DType::I64, &[Dim::Num(1)], vec![SymInt::of(x.shape()[place].clone())])?;
    let zero = lower.vector(&[0i64])?;
    let mut bounds = Vec::new();
    for (is_start, bound) in [(true, starts), (false, ends)] {
        let bound = lower.cast(bound, DType::I64)?;
        let bound = lower.slice(&bound, 0, Dim::Num(index), Dim::Num(1))?;
        let negative = lower.binary(Binary::Less, &bound, &zero)?;
        let shifted = lower.add(&bound, &extent)?;
        let bound = lower.op(Op::Where(Where), &[&negative, &shifted, &bound])?;
        let (low, high) = match (step > 0, is_start) {
            (true, _) => (0i64, 0i64),
            (false, true) => (0, -1),
            (false, false) => (-1, -1),
        };
        let (low, high) = (lower.vector(&[low])?, lower.vector(&[high])?);
        let high = lower.add(&extent, &high)?;
        let bound = lower.binary(Binary::Max, &bound, &low)?;
        bounds.push(lower.binary(Binary::Min, &bound, &high)?);
    }
    let step = lower.vector(&[step])?;
    let len = lower.fresh(&format!("{}.{place}", lower.name));
    let indices = lower.op(Op::Range(Range { len }), &[&bounds[0], &bounds[1], &step])?;
    lower.gather(x, place, &indices)
}

fn split<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = axis(call.attributes.int_or("axis", 0)?, x.rank())?;
    let parts: Option<Vec<SymInt>> = if call.opset < 13 {
        call.attributes.ints("split")?.map(|all| all.iter().copied().map(SymInt::Num).collect())
    } else {
        call.optional(1)?.map(|all| all.int_vector("split")).transpose()?
    };
    let extent = x.shape()[at].clone();
    let parts: Vec<Dim> = match parts {
        Some(parts) => {
            let part = |int: &SymInt| int.as_dim().ok_or_else(|| Fail::from("the lengths of the parts must be known"));
            parts.iter().map(part).collect::<Res<_>>()?
        }
        None => {
            let count = call.attributes.count("num_outputs", call.outputs())?;
            if count == 0 {
                return fail("it has no outputs");
            }
            if let Dim::Num(n) = extent {
                // Equal parts; the last one may be shorter.
                let each = n.div_ceil(count);
                (0..count).map(|i| Dim::Num(n.saturating_sub(i * each).min(each))).collect()
            } else {
                vec![quotient(std::slice::from_ref(&extent), &[Dim::Num(count)]); count]
            }
        }
    };
    let mut start = Dim::Num(0);
    let mut outputs = Vec::with_capacity(parts.len());
    for part in parts {
        outputs.push(ranged(lower, &x, at, start.clone(), part.clone())?.into());
        start = start.add(part);
    }
    Ok(outputs)
}

/// A run of one extent; vectors of integers that follow from extents stay such.
pub(super) fn ranged(lower: &mut Lower<'_>, x: &Operand, at: usize, start: Dim, len: Dim) -> Res<Operand> {
    match (SymInt::of(start.clone()), SymInt::of(start.clone()).add(&SymInt::of(len.clone()))) {
        (SymInt::Num(a), SymInt::Num(b)) => slice_one(lower, x, at, &SymInt::Num(a), &SymInt::Num(b), 1),
        _ => lower.slice(x, at, start, len),
    }
}

fn expand<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, shape) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (target, known) = shape_of(lower, &shape)?;
    let rank = target.len().max(x.rank());
    let mut dims = vec![Dim::Num(1); rank];
    for (i, dim) in dims.iter_mut().enumerate() {
        let own = (i + x.rank()).checked_sub(rank).map(|i| x.shape()[i].clone()).unwrap_or(Dim::Num(1));
        let wanted = (i + target.len()).checked_sub(rank).map(|i| target[i].clone()).unwrap_or(Dim::Num(1));
        *dim = match (own, wanted) {
            (a, b) if a == b => a,
            (Dim::Num(1), b) => b,
            (a, Dim::Num(1)) => a,
            (a, b) if a.differs(&b) => return fail(format!("{a} does not broadcast to {b}")),
            (a @ Dim::Num(_), _) => a,
            (_, b) => b,
        };
    }
    if let Some(ints) = x.ints()
        && known
        && ints.len() == 1
        && x.dtype().is_int()
        && let Some(n) = dims.iter().try_fold(1usize, |n, dim| n.checked_mul(dim.as_num()?)).filter(|n| *n <= MAX_INTS)
        && ints[0] != SymInt::Unknown
    {
        return one(lower.integers(x.dtype(), &dims, vec![ints[0].clone(); n])?);
    }
    if known {
        return one(lower.expand(&x, &dims)?);
    }
    // The larger extents of both.
    let own = vec![Dim::Num(1); rank - x.rank()].into_iter().chain(x.shape().iter().cloned()).collect::<Vec<_>>();
    let own = lower.extents(&own)?;
    let mut wanted = lower.cast(&shape, DType::I64)?;
    if target.len() < rank {
        let ones = lower.vector(&vec![1i64; rank - target.len()])?;
        wanted = lower.concat(&[ones, wanted], 0)?;
    }
    let sizes = lower.binary(core_tensor::op::Binary::Max, &own, &wanted)?;
    one(expand_to(lower, &x, &dims, Some(&sizes))?)
}

fn tile<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let repeats = call.input(1)?.int_vector("repeats")?;
    if repeats.len() != x.rank() {
        return fail(format!("{} repeats for a rank of {}", repeats.len(), x.rank()));
    }
    let mut dims = Vec::with_capacity(repeats.len());
    for (i, repeat) in repeats.iter().enumerate() {
        dims.push(match repeat {
            SymInt::Unknown => return tile_at_run_time(lower, call, &x),
            repeat => repeat.as_dim().ok_or_else(|| Fail::from(format!("repeat {i} is negative")))?,
        });
    }
    one(tiled(lower, &x, &dims)?)
}

/// Repeated along each extent: `[a, b]` by way of `[ra, a, rb, b]`.
pub(super) fn tiled(lower: &mut Lower<'_>, x: &Operand, repeats: &[Dim]) -> Res<Operand> {
    if repeats.iter().all(|repeat| *repeat == Dim::Num(1)) {
        return Ok(x.clone());
    }
    let (mut apart, mut wide, mut result) = (Vec::new(), Vec::new(), Vec::new());
    for (dim, repeat) in x.shape().iter().zip(repeats) {
        if *repeat != Dim::Num(1) {
            apart.push(Dim::Num(1));
            wide.push(repeat.clone());
        }
        apart.push(dim.clone());
        wide.push(dim.clone());
        result.push(product(&[repeat.clone(), dim.clone()]));
    }
    let x = lower.reshape(x, &apart)?;
    let x = lower.expand(&x, &wide)?;
    lower.reshape(&x, &result)
}

/// Repeats that only the graph's run knows: each extent is gathered by a range modulo its length.
fn tile_at_run_time<'a>(lower: &mut Lower<'a>, call: &Call<'a>, x: &Operand) -> Res<Vec<Value>> {
    let repeats = lower.cast(&call.input(1)?.clone(), DType::I64)?;
    let (zero, step) = (lower.vector(&[0i64])?, lower.vector(&[1i64])?);
    let mut y = x.clone();
    for place in 0..x.rank() {
        let extent = lower.integers(DType::I64, &[Dim::Num(1)], vec![SymInt::of(x.shape()[place].clone())])?;
        let repeat = lower.slice(&repeats, 0, Dim::Num(place), Dim::Num(1))?;
        let limit = lower.mul(&extent, &repeat)?;
        let len = lower.fresh(&format!("{}.{place}", lower.name));
        let indices = lower.op(Op::Range(Range { len }), &[&zero, &limit, &step])?;
        let indices = lower.binary(core_tensor::op::Binary::Mod, &indices, &extent)?;
        y = lower.gather(&y, place, &indices)?;
    }
    one(y)
}

fn pad<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let mode = match call.attributes.text_or("mode", "constant")? {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return fail(format!("attribute mode is '{other}'")),
    };
    let (pads, value, places) = if call.opset < 11 {
        let pads = call.attributes.ints("pads")?.unwrap_or_default().iter().copied().map(SymInt::Num).collect();
        let value = call.attributes.float_or("value", 0.0)?;
        let value = if value == 0.0 { None } else { Some(lower.scalar(x.dtype(), f64::from(value))?) };
        (pads, value, None)
    } else {
        let pads: Vec<SymInt> = call.input(1)?.int_vector("pads")?;
        let value = call.optional(2)?.cloned();
        let places = call.optional(3)?.map(|axes| axes.numbers("axes")).transpose()?;
        (pads, value, places)
    };
    let places = match places {
        Some(all) => axes(&all, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if pads.len() != 2 * places.len() {
        return fail(format!("{} pads for {} extents", pads.len(), places.len()));
    }
    let (before, after) = pads.split_at(places.len());
    let mut all = vec![(SymInt::Num(0), SymInt::Num(0)); x.rank()];
    for (i, place) in places.iter().enumerate() {
        all[*place] = (before[i].clone(), after[i].clone());
    }
    one(padded(lower, &x, &all, mode, value.as_ref())?)
}

/// Padded; what is negative is cut away.
pub(super) fn padded(
    lower: &mut Lower<'_>,
    x: &Operand,
    pads: &[(SymInt, SymInt)],
    mode: PadMode,
    value: Option<&Operand>,
) -> Res<Operand> {
    let mut y = x.clone();
    let mut positive = Vec::with_capacity(pads.len());
    for (i, (before, after)) in pads.iter().enumerate() {
        let cut = |int: &SymInt| match int {
            SymInt::Num(..0) | SymInt::Neg(_) => int.neg(),
            SymInt::Unknown => SymInt::Unknown,
            _ => SymInt::Num(0),
        };
        let (from, to) = (cut(before), cut(after));
        if from != SymInt::Num(0) || to != SymInt::Num(0) {
            let len = SymInt::of(y.shape()[i].clone()).sub(&from).sub(&to);
            let (Some(from), Some(len)) = (from.as_dim(), len.as_dim()) else {
                return fail("pads must be known when the model is imported");
            };
            y = lower.slice(&y, i, from, len)?;
        }
        let dim = |int: &SymInt| int.as_dim().unwrap_or(Dim::Num(0));
        positive.push((dim(before), dim(after)));
    }
    if positive.iter().all(|(before, after)| *before == Dim::Num(0) && *after == Dim::Num(0)) {
        return Ok(y);
    }
    let op = Op::Pad(Pad { pads: positive, mode });
    match value {
        Some(value) if mode == PadMode::Constant => lower.op(op, &[&y, value]),
        _ => lower.op(op, &[&y]),
    }
}

fn range<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (start, limit, step) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let single = |x: &Operand| x.ints().and_then(|ints| if let [int] = &ints[..] { Some(int.clone()) } else { None });
    let len = match (single(&start), single(&limit), single(&step)) {
        (Some(a), Some(b), Some(SymInt::Num(step))) if start.dtype().is_int() && step != 0 => {
            let distance = if step > 0 { b.sub(&a) } else { a.sub(&b) };
            let distance = match (&a, &b, distance) {
                (SymInt::Num(0), SymInt::Dim(dim), _) if step > 0 => SymInt::of(dim.clone()),
                (_, _, distance) => distance.max(&SymInt::Num(0)),
            };
            distance.as_dim().map(|distance| {
                let step = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
                if step == 1 { distance } else { distance.div_ceil(Dim::Num(step)) }
            })
        }
        _ => None,
    };
    let len = match len {
        Some(len) => len,
        None => lower.fresh(&format!("{}.0", lower.name)),
    };
    if let (Some(SymInt::Num(a)), Some(SymInt::Num(step)), Dim::Num(n)) = (single(&start), single(&step), &len)
        && *n <= MAX_INTS
        && start.dtype().is_int()
    {
        let all: Option<Vec<SymInt>> =
            (0..*n as i64).map(|i| Some(SymInt::Num(a.checked_add(i.checked_mul(step)?)?))).collect();
        if let Some(all) = all {
            return one(lower.integers(start.dtype(), std::slice::from_ref(&len), all)?);
        }
    }
    // Constants fold where the length is known; data-dependent ones get it when the node has run.
    let y = lower.op(Op::Range(Range { len }), &[&start, &limit, &step])?;
    one(lower.declare(&y, start.dtype())?)
}

fn trilu<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let upper = call.attributes.flag("upper", true)?;
    let Some(k) = call.optional(1)? else { return one(lower.op(Op::Trilu(Trilu { upper, k: 0 }), &[&x])?) };
    if let Ok([k]) = k.numbers("k").as_deref() {
        return one(lower.op(Op::Trilu(Trilu { upper, k: *k }), &[&x])?);
    }
    // A diagonal that only the graph's run knows: rows and columns compared.
    let (k, rank) = (k.clone(), x.rank());
    if rank < 2 {
        return fail("its input is no matrix");
    }
    let (row, col) = (lower.iota(x.shape()[rank - 2].clone())?, lower.iota(x.shape()[rank - 1].clone())?);
    let row = lower.unsqueeze(&row, &[1])?;
    let k = lower.reshape(&k, &[])?;
    let row = lower.add(&row, &k)?;
    let op = if upper { core_tensor::op::Binary::GreaterOrEqual } else { core_tensor::op::Binary::LessOrEqual };
    let kept = lower.binary(op, &col, &row)?;
    let zero = lower.scalar(x.dtype(), 0.0)?;
    one(lower.op(Op::Where(core_tensor::op::Where), &[&kept, &x, &zero])?)
}

fn depth_to_space<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let block = call.attributes.count("blocksize", 0)?;
    let [n, c, h, w] = x.shape() else { return fail("its input must have 4 extents") };
    let b = Dim::Num(block);
    let depth = quotient(std::slice::from_ref(c), &[Dim::Num(block * block)]);
    let (apart, perm) = match call.attributes.text_or("mode", "DCR")? {
        "DCR" => ([n.clone(), b.clone(), b.clone(), depth.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n.clone(), depth.clone(), b.clone(), b.clone(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3]),
        other => return fail(format!("attribute mode is '{other}'")),
    };
    let shape = [n.clone(), depth, product(&[h.clone(), b.clone()]), product(&[w.clone(), b])];
    let y = lower.reshape(&x, &apart)?;
    let y = lower.transpose(&y, &perm)?;
    one(lower.reshape(&y, &shape)?)
}

fn space_to_depth<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let block = call.attributes.count("blocksize", 0)?;
    let [n, c, h, w] = x.shape() else { return fail("its input must have 4 extents") };
    let b = Dim::Num(block);
    let (rows, cols) = (
        quotient(std::slice::from_ref(h), std::slice::from_ref(&b)),
        quotient(std::slice::from_ref(w), std::slice::from_ref(&b)),
    );
    let shape = [n.clone(), product(&[c.clone(), b.clone(), b.clone()]), rows.clone(), cols.clone()];
    let y = lower.reshape(&x, &[n.clone(), c.clone(), rows, b.clone(), cols, b])?;
    let y = lower.transpose(&y, &[0, 3, 5, 1, 2, 4])?;
    one(lower.reshape(&y, &shape)?)
}

fn center_crop_pad<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let target = call.input(1)?.numbers("shape")?;
    let places = match call.attributes.ints("axes")? {
        Some(all) => axes(all, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if places.len() != target.len() {
        return fail(format!("{} extents for {} axes", target.len(), places.len()));
    }
    let mut pads = vec![(SymInt::Num(0), SymInt::Num(0)); x.rank()];
    for (place, wanted) in places.iter().zip(&target) {
        let Dim::Num(extent) = x.shape()[*place] else { return fail("its input's extents must be known") };
        let extent = extent as i64;
        // What is cut away begins with the half rounded down, and so does what is added.
        let missing = wanted - extent;
        let before = if missing < 0 { -((-missing) / 2) } else { missing / 2 };
        pads[*place] = (SymInt::Num(before), SymInt::Num(missing - before));
    }
    one(padded(lower, &x, &pads, PadMode::Constant, None)?)
}
