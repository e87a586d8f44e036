//! Pooling.

use core_tensor::DType;
use core_tensor::op::{Op, PadMode, Pool, PoolKind, ReduceKind, RoiAlign, ScatterElements, ScatterReduction};

use super::conv::{kernel, pads, place_pads, spatial, window};
use super::reduce::reduce;
use super::shape::padded;
use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::{SymInt, product};

pub(super) const OPERATORS: &[Entry] = &[
    ("AveragePool", 1, pool),
    ("GlobalAveragePool", 1, global),
    ("GlobalLpPool", 1, global),
    ("GlobalMaxPool", 1, global),
    ("LpPool", 1, pool),
    ("MaxPool", 1, pool),
    ("MaxUnpool", 9, max_unpool),
    ("RoiAlign", 10, roi_align),
];

fn pool<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    pooled(lower, call, &x)
}

/// The mean over windows that the node's attributes describe.
pub(super) fn average<'a>(lower: &mut Lower<'a>, call: &Call<'a>, x: &Operand) -> Res<Operand> {
    match pooled(lower, call, x)?.into_iter().next() {
        Some(Value::Tensor(y)) => Ok(y),
        _ => fail("no result"),
    }
}

fn pooled<'a>(lower: &mut Lower<'a>, call: &Call<'a>, x: &Operand) -> Res<Vec<Value>> {
    let x = x.clone();
    let attributes = &call.attributes;
    let kind = match call.proto.op_type() {
        "MaxPool" => PoolKind::Max,
        "AveragePool" | "QLinearAveragePool" => {
            PoolKind::Average { count_include_pad: attributes.flag("count_include_pad", false)? }
        }
        "LpPool" => match u32::try_from(attributes.int_or("p", 2)?) {
            Ok(p) if p > 0 => PoolKind::Lp { p },
            _ => return fail("attribute p must be positive"),
        },
        _ => return Err(Fail::Unsupported),
    };
    let dtype = x.dtype();
    let exact = matches!(kind, PoolKind::Max) && matches!(dtype, DType::I8 | DType::U8 | DType::F64);
    let x = if exact { x } else { lower.f32(&x)? };
    let rank = spatial(&x)?.len();
    let mut window = window(call, rank)?;
    let kernel = kernel(call, None, rank)?;
    let pads = pads(call, spatial(&x)?, &kernel, &window)?;
    let fill = match kind {
        PoolKind::Max if !exact => Some(lower.scalar(x.dtype(), f64::NEG_INFINITY)?),
        PoolKind::Average { count_include_pad: false }
            if pads.iter().any(|(a, b)| a.as_num().is_none() || b.as_num().is_none()) =>
        {
            return fail("automatic pads of an average over extents that are not known");
        }
        _ => None,
    };
    let indices = call.wants(1);
    let x = place_pads(lower, &x, &pads, &mut window, fill.as_ref())?;
    let op = Pool {
        kind,
        kernel,
        window,
        ceil_mode: attributes.flag("ceil_mode", false)?,
        indices,
        column_major: attributes.flag("storage_order", false)?,
    };
    let mut outputs = lower.ops(Op::Pool(op), &[Some(&x)])?.into_iter();
    let mut results = Vec::new();
    if let Some(y) = outputs.next() {
        results.push(lower.back(y, dtype)?.into());
    }
    results.extend(outputs.map(Value::from));
    Ok(results)
}

fn global<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let kind = match call.proto.op_type() {
        "GlobalAveragePool" => ReduceKind::Mean,
        "GlobalMaxPool" => ReduceKind::Max,
        _ => match call.attributes.int_or("p", 2)? {
            1 => ReduceKind::L1,
            2 => ReduceKind::L2,
            other => return fail(format!("attribute p is {other}")),
        },
    };
    let places: Vec<usize> = (2..x.rank()).collect();
    one(reduce(lower, kind, &x, &places, true)?)
}

fn max_unpool<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices) = (call.input(0)?.clone(), call.input(1)?.clone());
    let rank = spatial(&x)?.len();
    let window = window(call, rank)?;
    let kernel = kernel(call, None, rank)?;
    let pads = pads(call, spatial(&x)?, &kernel, &window)?;
    let mut shape = x.shape()[..2].to_vec();
    for (i, dim) in spatial(&x)?.iter().enumerate() {
        let n = SymInt::of(dim.clone()).sub(&SymInt::Num(1)).mul(&SymInt::Num(window.strides[i] as i64));
        let n = n.add(&SymInt::Num(kernel[i] as i64)).sub(&pads[i].0).sub(&pads[i].1);
        shape.push(n.as_dim().ok_or_else(|| Fail::from("the extents of its result are not known"))?);
    }
    // The indices count in the result without what output_shape adds.
    let count = product(&shape);
    let zero = lower.scalar(x.dtype(), 0.0)?;
    let zeros = lower.expand(&zero, &[count])?;
    let flat = x.count();
    let (updates, places) =
        (lower.reshape(&x, std::slice::from_ref(&flat))?, lower.reshape(&indices, std::slice::from_ref(&flat))?);
    let op = Op::ScatterElements(ScatterElements { axis: 0, reduction: ScatterReduction::None });
    let y = lower.op(op, &[&zeros, &places, &updates])?;
    let y = lower.reshape(&y, &shape)?;
    let Some(wanted) = call.optional(2)? else { return one(y) };
    let wanted = wanted.int_vector("output_shape")?;
    if wanted.len() != shape.len() {
        return fail("output_shape does not fit");
    }
    let pads: Vec<(SymInt, SymInt)> =
        wanted.iter().zip(&shape).map(|(wanted, dim)| (SymInt::Num(0), wanted.sub(&SymInt::of(dim.clone())))).collect();
    one(padded(lower, &y, &pads, PadMode::Constant, None)?)
}

fn roi_align<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, rois, batch) = (call.input(0)?.clone(), call.input(1)?.clone(), call.input(2)?.clone());
    let attributes = &call.attributes;
    let default = if call.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half_pixel = match attributes.text_or("coordinate_transformation_mode", default)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return fail(format!("attribute coordinate_transformation_mode is '{other}'")),
    };
    let op = RoiAlign {
        output_height: attributes.count("output_height", 1)?,
        output_width: attributes.count("output_width", 1)?,
        sampling_ratio: attributes.count("sampling_ratio", 0)?,
        spatial_scale: attributes.float_or("spatial_scale", 1.0)?,
        half_pixel,
        max: match attributes.text_or("mode", "avg")? {
            "avg" => false,
            "max" => true,
            other => return fail(format!("attribute mode is '{other}'")),
        },
    };
    let dtype = x.dtype();
    let (x, rois) = (lower.f32(&x)?, lower.f32(&rois)?);
    let batch = lower.cast(&batch, DType::I64)?;
    let y = lower.op(Op::RoiAlign(op), &[&x, &rois, &batch])?;
    one(lower.back(y, dtype)?)
}
