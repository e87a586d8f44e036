//! Convolutions.

use core_tensor::op::{Conv, ConvInteger, ConvTranspose, DeformConv, Op, PadMode, Window};
use core_tensor::{DType, Dim};

use super::shape::padded;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::SymInt;

pub(super) const OPERATORS: &[Entry] = &[
    ("Conv", 1, conv),
    ("ConvInteger", 10, conv_integer),
    ("ConvTranspose", 1, conv_transpose),
    ("DeformConv", 19, deform_conv),
];

/// One entry per spatial extent, or the default.
fn per_extent(call: &Call<'_>, name: &str, rank: usize, default: usize) -> Res<Vec<usize>> {
    match call.attributes.counts(name)? {
        Some(all) if all.len() == rank => Ok(all),
        Some(all) => fail(format!("attribute {name} has {} elements for {rank} spatial extents", all.len())),
        None => Ok(vec![default; rank]),
    }
}

/// Strides and dilations, without pads.
pub(super) fn window(call: &Call<'_>, rank: usize) -> Res<Window> {
    Ok(Window {
        strides: per_extent(call, "strides", rank, 1)?,
        dilations: per_extent(call, "dilations", rank, 1)?,
        pads_begin: vec![0; rank],
        pads_end: vec![0; rank],
    })
}

/// The spatial extents of a window: an attribute, or those of the weight.
pub(super) fn kernel(call: &Call<'_>, weight: Option<&Operand>, rank: usize) -> Res<Vec<usize>> {
    if let Some(kernel) = call.attributes.counts("kernel_shape")? {
        return if kernel.len() == rank {
            Ok(kernel)
        } else {
            fail(format!("attribute kernel_shape has {} elements for {rank} spatial extents", kernel.len()))
        };
    }
    let extents: Option<Vec<usize>> =
        weight.and_then(|weight| weight.shape().get(2..)).and_then(|dims| dims.iter().map(Dim::as_num).collect());
    extents.filter(|kernel| kernel.len() == rank).ok_or_else(|| "the extents of its kernel are not known".into())
}

/// What is padded before and after each spatial extent, from `pads` or `auto_pad`.
pub(super) fn pads(call: &Call<'_>, spatial: &[Dim], kernel: &[usize], window: &Window) -> Res<Vec<(SymInt, SymInt)>> {
    let rank = spatial.len();
    let upper = match call.attributes.text_or("auto_pad", "NOTSET")? {
        "NOTSET" | "" => {
            let Some(all) = call.attributes.ints("pads")? else {
                return Ok(vec![(SymInt::Num(0), SymInt::Num(0)); rank]);
            };
            if all.len() != 2 * rank {
                return fail(format!("attribute pads has {} elements for {rank} spatial extents", all.len()));
            }
            return Ok((0..rank).map(|i| (SymInt::Num(all[i]), SymInt::Num(all[rank + i]))).collect());
        }
        "VALID" => return Ok(vec![(SymInt::Num(0), SymInt::Num(0)); rank]),
        "SAME_UPPER" => true,
        "SAME_LOWER" => false,
        other => return fail(format!("attribute auto_pad is '{other}'")),
    };
    let mut result = Vec::with_capacity(rank);
    for i in 0..rank {
        let (stride, span) = (window.strides[i], span(kernel[i], window.dilations[i])?);
        // (ceil(n / stride) - 1) · stride + span - n
        let n = SymInt::of(spatial[i].clone());
        let covered = SymInt::of(spatial[i].clone().div_ceil(Dim::Num(stride)).mul(Dim::Num(stride)));
        let offset = SymInt::Num(span as i64 - stride as i64);
        let total = if stride == 1 { offset } else { covered.sub(&n).add(&offset) };
        let total = total.max(&SymInt::Num(0));
        let half = total.div(&SymInt::Num(2));
        let rest = total.sub(&half);
        result.push(if upper { (half, rest) } else { (rest, half) });
    }
    Ok(result)
}

/// Elements from the first to the last of a window, both counted.
fn span(kernel: usize, dilation: usize) -> Res<usize> {
    let span = kernel.checked_sub(1).and_then(|n| n.checked_mul(dilation)).and_then(|n| n.checked_add(1));
    span.filter(|span| *span < i32::MAX as usize).ok_or_else(|| "an empty or too large kernel".into())
}

/// Puts pads into the window where they are numbers, and otherwise around the input.
pub(super) fn place_pads(
    lower: &mut Lower<'_>,
    x: &Operand,
    pads: &[(SymInt, SymInt)],
    window: &mut Window,
    fill: Option<&Operand>,
) -> Res<Operand> {
    let plain: Option<Vec<(usize, usize)>> =
        pads.iter().map(|(before, after)| Some((before.as_dim()?.as_num()?, after.as_dim()?.as_num()?))).collect();
    if let Some(plain) = plain {
        window.pads_begin = plain.iter().map(|(before, _)| *before).collect();
        window.pads_end = plain.iter().map(|(_, after)| *after).collect();
        return Ok(x.clone());
    }
    let none = (SymInt::Num(0), SymInt::Num(0));
    let all: Vec<_> = [none.clone(), none].into_iter().chain(pads.iter().cloned()).collect();
    padded(lower, x, &all, PadMode::Constant, fill)
}

pub(super) fn spatial(x: &Operand) -> Res<&[Dim]> {
    x.shape().get(2..).filter(|dims| !dims.is_empty()).ok_or_else(|| "its input has no spatial extents".into())
}

fn conv<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let groups = call.attributes.count("group", 1)?;
    one(convolve(lower, call, &x, &w, b.as_ref(), groups)?)
}

/// Convolution in f32.
pub(super) fn convolve<'a>(
    lower: &mut Lower<'a>,
    call: &Call<'a>,
    x: &Operand,
    w: &Operand,
    b: Option<&Operand>,
    groups: usize,
) -> Res<Operand> {
    let dtype = x.dtype();
    let x = lower.f32(x)?;
    let w = if w.dtype() == DType::F64 { lower.f32(w)? } else { w.clone() };
    let b = b.map(|b| lower.f32(b)).transpose()?;
    let mut window = window(call, spatial(&x)?.len())?;
    let kernel = kernel(call, Some(&w), spatial(&x)?.len())?;
    let pads = pads(call, spatial(&x)?, &kernel, &window)?;
    let x = place_pads(lower, &x, &pads, &mut window, None)?;
    let inputs = [Some(&x), Some(&w), b.as_ref()];
    let inputs = if b.is_some() { &inputs[..] } else { &inputs[..2] };
    let Some(y) = lower.ops_with(Op::Conv(Conv { window, groups }), inputs, &[1])?.pop() else {
        return fail("no result");
    };
    lower.back(y, dtype)
}

fn conv_integer<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w) = (call.input(0)?.clone(), call.input(1)?.clone());
    let (x_zero, w_zero) = (call.optional(2)?.cloned(), call.optional(3)?.cloned());
    one(convolve_integers(lower, call, &x, &w, x_zero.as_ref(), w_zero.as_ref())?)
}

/// The exact convolution of integers, i32.
pub(super) fn convolve_integers<'a>(
    lower: &mut Lower<'a>,
    call: &Call<'a>,
    x: &Operand,
    w: &Operand,
    x_zero: Option<&Operand>,
    w_zero: Option<&Operand>,
) -> Res<Operand> {
    let mut window = window(call, spatial(x)?.len())?;
    let kernel = kernel(call, Some(w), spatial(x)?.len())?;
    let pads = pads(call, spatial(x)?, &kernel, &window)?;
    let x = place_pads(lower, x, &pads, &mut window, x_zero)?;
    let op = Op::ConvInteger(ConvInteger { window, groups: call.attributes.count("group", 1)? });
    let inputs: &[Option<&Operand>] = match (x_zero, w_zero) {
        (None, None) => &[Some(&x), Some(w)],
        (zero, None) => &[Some(&x), Some(w), zero],
        (zero, other) => &[Some(&x), Some(w), zero, other],
    };
    lower.ops(op, inputs)?.pop().ok_or_else(|| "no result".into())
}

fn conv_transpose<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, w, b) = (call.input(0)?.clone(), call.input(1)?.clone(), call.optional(2)?.cloned());
    let dtype = x.dtype();
    let x = lower.f32(&x)?;
    let b = b.map(|b| lower.f32(&b)).transpose()?;
    let rank = spatial(&x)?.len();
    let mut window = window(call, rank)?;
    let kernel = kernel(call, Some(&w), rank)?;
    let mut output_padding = per_extent(call, "output_padding", rank, 0)?;
    let auto = call.attributes.text_or("auto_pad", "NOTSET")?;
    let wanted = call.attributes.counts("output_shape")?;
    let mut cut: Vec<(SymInt, SymInt)> = vec![(SymInt::Num(0), SymInt::Num(0)); rank];
    if wanted.is_none() && matches!(auto, "NOTSET" | "" | "VALID") {
        let given = pads(call, spatial(&x)?, &kernel, &window)?;
        for (i, (before, after)) in given.into_iter().enumerate() {
            match (before.as_num(), after.as_num()) {
                (Some(a), Some(b)) if a >= 0 && b >= 0 => {
                    window.pads_begin[i] = a as usize;
                    window.pads_end[i] = b as usize;
                }
                // Negative pads add to the result.
                _ => cut[i] = (before.neg(), after.neg()),
            }
        }
    } else {
        for i in 0..rank {
            let (stride, span) = (window.strides[i] as i64, span(kernel[i], window.dilations[i])? as i64);
            let full = |n: i64| stride * (n - 1) + output_padding[i] as i64 + span;
            let total = match (&wanted, &spatial(&x)?[i]) {
                (Some(wanted), Dim::Num(n)) => {
                    // Some files name batch and channels, too.
                    let skip = wanted.len().checked_sub(rank).ok_or_else(|| Fail::from("attribute output_shape"))?;
                    full(*n as i64) - wanted[skip + i] as i64
                }
                (Some(_), _) => return fail("output_shape for an extent that is not known"),
                // The result is `stride` times as long as the input.
                (None, _) => full(0),
            };
            if total < 0 {
                output_padding[i] += (-total) as usize;
                continue;
            }
            let (small, large) = ((total / 2) as usize, (total - total / 2) as usize);
            let upper = auto == "SAME_UPPER";
            (window.pads_begin[i], window.pads_end[i]) = if upper { (small, large) } else { (large, small) };
        }
    }
    let groups = call.attributes.count("group", 1)?;
    let inputs = [Some(&x), Some(&w), b.as_ref()];
    let inputs = if b.is_some() { &inputs[..] } else { &inputs[..2] };
    let op = Op::ConvTranspose(ConvTranspose { window, groups, output_padding });
    let Some(y) = lower.ops_with(op, inputs, &[1])?.pop() else { return fail("no result") };
    let none = (SymInt::Num(0), SymInt::Num(0));
    let all: Vec<_> = [none.clone(), none].into_iter().chain(cut).collect();
    let y = padded(lower, &y, &all, PadMode::Constant, None)?;
    one(lower.back(y, dtype)?)
}

fn deform_conv<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let dtype = call.input(0)?.dtype();
    let mut inputs = Vec::new();
    for i in 0..call.inputs.len() {
        inputs.push(match call.optional(i)?.cloned() {
            Some(x) => Some(lower.f32(&x)?),
            None => None,
        });
    }
    let (Some(Some(x)), Some(Some(w))) = (inputs.first(), inputs.get(1)) else { return fail("inputs are missing") };
    let mut window = window(call, spatial(x)?.len())?;
    let kernel = kernel(call, Some(w), spatial(x)?.len())?;
    let pads = pads(call, spatial(x)?, &kernel, &window)?;
    for (i, (before, after)) in pads.iter().enumerate() {
        let (Some(Dim::Num(before)), Some(Dim::Num(after))) = (before.as_dim(), after.as_dim()) else {
            return fail("its pads are not known");
        };
        (window.pads_begin[i], window.pads_end[i]) = (before, after);
    }
    let op = DeformConv {
        window,
        groups: call.attributes.count("group", 1)?,
        offset_groups: call.attributes.count("offset_group", 1)?,
    };
    let inputs: Vec<Option<&Operand>> = inputs.iter().map(Option::as_ref).collect();
    let Some(y) = lower.ops(Op::DeformConv(op), &inputs)?.pop() else { return fail("no result") };
    one(lower.back(y, dtype)?)
}
