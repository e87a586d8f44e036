//! Resampling.

use core_tensor::op::{
    Col2Im, CoordinateMode, GridMode, GridPadding, GridSample, NearestMode, Op, Resize, ResizeMode, Scalar, Window,
};
use core_tensor::{DType, Dim};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axes};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};

pub(super) const OPERATORS: &[Entry] = &[
    ("AffineGrid", 20, affine_grid),
    ("Col2Im", 18, col2im),
    ("GridSample", 16, grid_sample),
    ("Resize", 10, resize),
    ("Upsample", 6, upsample),
];

/// An extent times a factor, rounded down. Factors that are fractions of small numbers keep symbols.
fn scaled(dim: &Dim, scale: f32) -> Res<Dim> {
    if let Dim::Num(n) = dim {
        return Ok(Dim::Num((*n as f64 * f64::from(scale)).floor() as usize));
    }
    for under in 1..=64u32 {
        let over = f64::from(scale) * f64::from(under);
        if (over - over.round()).abs() < 1e-6 * over.abs() && over >= 1.0 {
            return Ok(dim.clone().mul(Dim::Num(over.round() as usize)).div(Dim::Num(under as usize)));
        }
    }
    fail(format!("an extent that is not known, times {scale}"))
}

fn upsample<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let scales = if call.opset < 9 {
        call.attributes.floats("scales")?.map(<[f32]>::to_vec).ok_or_else(|| Fail::from("scales are missing"))?
    } else {
        call.input(1)?.floats("scales")?
    };
    let mode = mode(call, NearestMode::Floor, 0.0)?;
    one(by_factors(lower, &x, mode, CoordinateMode::Asymmetric, scales)?)
}

fn mode(call: &Call<'_>, nearest: NearestMode, coefficient: f32) -> Res<ResizeMode> {
    Ok(match call.attributes.text_or("mode", "nearest")? {
        "nearest" => ResizeMode::Nearest(nearest),
        "linear" | "bilinear" => ResizeMode::Linear,
        "cubic" => ResizeMode::Cubic(Scalar::new(coefficient)),
        other => return fail(format!("attribute mode is '{other}'")),
    })
}

fn by_factors(
    lower: &mut Lower<'_>,
    x: &Operand,
    mode: ResizeMode,
    coordinates: CoordinateMode,
    scales: Vec<f32>,
) -> Res<Operand> {
    if scales.len() != x.rank() {
        return fail(format!("{} scales for {} extents", scales.len(), x.rank()));
    }
    let shape = x.shape().iter().zip(&scales).map(|(dim, scale)| scaled(dim, *scale)).collect::<Res<_>>()?;
    let op = Resize {
        mode,
        coordinates,
        shape,
        scales: Some(scales),
        antialias: false,
        exclude_outside: false,
        extrapolation_value: 0.0,
    };
    resample(lower, x, op, None)
}

fn resample(lower: &mut Lower<'_>, x: &Operand, op: Resize, roi: Option<&Operand>) -> Res<Operand> {
    let dtype = x.dtype();
    let x = if matches!(op.mode, ResizeMode::Nearest(_)) { x.clone() } else { lower.f32(x)? };
    // A resize of integers rounds as its reference does: towards zero, by way of the cast.
    let x = if x.dtype().is_float() || matches!(op.mode, ResizeMode::Nearest(_)) {
        x
    } else {
        lower.cast(&x, DType::F32)?
    };
    let y = match roi {
        Some(roi) => lower.op(Op::Resize(op), &[&x, roi])?,
        None => lower.op(Op::Resize(op), &[&x])?,
    };
    lower.back(y, dtype)
}

fn resize<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let attributes = &call.attributes;
    if call.opset < 11 {
        let scales = call.input(1)?.floats("scales")?;
        let mode = mode(call, NearestMode::Floor, 0.0)?;
        return one(by_factors(lower, &x, mode, CoordinateMode::Asymmetric, scales)?);
    }
    let nearest = match attributes.text_or("nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => NearestMode::RoundPreferFloor,
        "round_prefer_ceil" => NearestMode::RoundPreferCeil,
        "floor" => NearestMode::Floor,
        "ceil" => NearestMode::Ceil,
        other => return fail(format!("attribute nearest_mode is '{other}'")),
    };
    let coordinates = match attributes.text_or("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => CoordinateMode::HalfPixel,
        "half_pixel_symmetric" => CoordinateMode::HalfPixelSymmetric,
        "pytorch_half_pixel" => CoordinateMode::PytorchHalfPixel,
        "align_corners" => CoordinateMode::AlignCorners,
        "asymmetric" => CoordinateMode::Asymmetric,
        "tf_crop_and_resize" => CoordinateMode::TfCropAndResize,
        other => return fail(format!("attribute coordinate_transformation_mode is '{other}'")),
    };
    let places = match attributes.ints("axes")? {
        Some(all) => axes(all, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let given = |operand: Option<&Operand>| operand.filter(|operand| operand.count() != Dim::Num(0)).cloned();
    let (roi, scales, sizes) = (given(call.optional(1)?), given(call.optional(2)?), given(call.optional(3)?));
    let mut shape = x.shape().to_vec();
    let mut factors = None;
    if let Some(sizes) = sizes {
        let sizes = sizes.int_vector("sizes")?;
        if sizes.len() != places.len() {
            return fail(format!("{} sizes for {} extents", sizes.len(), places.len()));
        }
        match attributes.text_or("keep_aspect_ratio_policy", "stretch")? {
            "stretch" => {
                for (place, size) in places.iter().zip(&sizes) {
                    shape[*place] = size.as_dim().ok_or_else(|| Fail::from("its sizes are not known"))?;
                }
            }
            policy @ ("not_larger" | "not_smaller") => {
                let mut ratios = Vec::new();
                for (place, size) in places.iter().zip(&sizes) {
                    match (&x.shape()[*place], size.as_num()) {
                        (Dim::Num(n), Some(size)) => ratios.push(size as f64 / *n as f64),
                        _ => return fail("its extents and sizes must be known"),
                    }
                }
                let pick = if policy == "not_larger" { f64::min } else { f64::max };
                let ratio = ratios.into_iter().reduce(pick).unwrap_or(1.0);
                let mut all = vec![1.0; x.rank()];
                for place in &places {
                    let n = x.shape()[*place].as_num().unwrap_or(0) as f64;
                    shape[*place] = Dim::Num((n * ratio + 0.5).floor() as usize);
                    all[*place] = ratio as f32;
                }
                factors = Some(all);
            }
            other => return fail(format!("attribute keep_aspect_ratio_policy is '{other}'")),
        }
    } else if let Some(scales) = scales {
        let given = scales.floats("scales")?;
        if given.len() != places.len() {
            return fail(format!("{} scales for {} extents", given.len(), places.len()));
        }
        let mut all = vec![1.0; x.rank()];
        for (place, scale) in places.iter().zip(given) {
            all[*place] = scale;
            shape[*place] = scaled(&x.shape()[*place], scale)?;
        }
        if coordinates == CoordinateMode::TfCropAndResize
            && let Some(roi) = &roi
        {
            // The extents of what is cut out count.
            let roi = roi.floats("roi")?;
            for (i, place) in places.iter().enumerate() {
                let (Some(from), Some(to)) = (roi.get(i), roi.get(i + places.len())) else { return fail("roi") };
                let Dim::Num(n) = x.shape()[*place] else { return fail("its extents must be known") };
                shape[*place] = Dim::Num((n as f32 * (to - from) * all[*place]).floor() as usize);
            }
        }
        factors = Some(all);
    } else {
        return fail("it has neither scales nor sizes");
    }
    let roi = match (coordinates, roi) {
        (CoordinateMode::TfCropAndResize, Some(roi)) => {
            let given = roi.floats("roi")?;
            if given.len() != 2 * places.len() {
                return fail(format!("a roi of {} for {} extents", given.len(), places.len()));
            }
            let mut all = vec![0.0f32; x.rank()];
            all.extend(vec![1.0; x.rank()]);
            for (i, place) in places.iter().enumerate() {
                all[*place] = given[i];
                all[x.rank() + *place] = given[places.len() + i];
            }
            Some(lower.vector(&all)?)
        }
        (CoordinateMode::TfCropAndResize, None) => return fail("its roi is missing"),
        _ => None,
    };
    let op = Resize {
        mode: mode(call, nearest, attributes.float_or("cubic_coeff_a", -0.75)?)?,
        coordinates,
        shape,
        scales: factors,
        antialias: attributes.flag("antialias", false)?,
        exclude_outside: attributes.flag("exclude_outside", false)?,
        extrapolation_value: attributes.float_or("extrapolation_value", 0.0)?,
    };
    one(resample(lower, &x, op, roi.as_ref())?)
}

fn grid_sample<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, grid) = (call.input(0)?.clone(), call.input(1)?.clone());
    let op = GridSample {
        mode: match call.attributes.text_or("mode", "linear")? {
            "linear" | "bilinear" => GridMode::Linear,
            "nearest" => GridMode::Nearest,
            "cubic" | "bicubic" => GridMode::Cubic,
            other => return fail(format!("attribute mode is '{other}'")),
        },
        padding: match call.attributes.text_or("padding_mode", "zeros")? {
            "zeros" => GridPadding::Zeros,
            "border" => GridPadding::Border,
            "reflection" => GridPadding::Reflection,
            other => return fail(format!("attribute padding_mode is '{other}'")),
        },
        align_corners: call.attributes.flag("align_corners", false)?,
    };
    let dtype = x.dtype();
    let (x, grid) = (lower.f32(&x)?, lower.f32(&grid)?);
    let y = lower.op(Op::GridSample(op), &[&x, &grid])?;
    one(lower.back(y, dtype)?)
}

fn affine_grid<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let theta = call.input(0)?.clone();
    let corners = call.attributes.flag("align_corners", false)?;
    let size = call.input(1)?.int_vector("size")?;
    let dims: Option<Vec<Dim>> = size.iter().map(|int| int.as_dim()).collect();
    let Some(dims) = dims.filter(|dims| matches!(dims.len(), 4 | 5)) else { return fail("its size is not known") };
    let (batch, spatial) = (dims[0].clone(), &dims[2..]);
    let rank = spatial.len();
    // Coordinates of each place, the last extent first, then 1: [places, rank + 1].
    let mut columns = Vec::new();
    for (i, dim) in spatial.iter().enumerate().rev() {
        let steps = lower.iota(dim.clone())?;
        let steps = lower.cast(&steps, DType::F32)?;
        let n = lower.integers(DType::I64, &[], vec![crate::lower::sym_int::SymInt::of(dim.clone())])?;
        let n = lower.cast(&n, DType::F32)?;
        let (single, double) = (lower.scalar(DType::F32, 1.0)?, lower.scalar(DType::F32, 2.0)?);
        let steps = lower.mul(&steps, &double)?;
        let line = if corners {
            let last = lower.sub(&n, &single)?;
            let line = lower.div(&steps, &last)?;
            lower.sub(&line, &single)?
        } else {
            let line = lower.add(&steps, &single)?;
            let line = lower.div(&line, &n)?;
            lower.sub(&line, &single)?
        };
        let mut shape = vec![Dim::Num(1); rank];
        shape[i] = dim.clone();
        let line = lower.reshape(&line, &shape)?;
        let wide = lower.expand(&line, spatial)?;
        columns.push(lower.unsqueeze(&wide, &[rank])?);
    }
    let single = lower.scalar(DType::F32, 1.0)?;
    let shape: Vec<Dim> = spatial.iter().cloned().chain([Dim::Num(1)]).collect();
    columns.push(lower.expand(&single, &shape)?);
    let places = lower.concat(&columns, rank)?;
    let count = crate::lower::sym_int::product(spatial);
    let places = lower.reshape(&places, &[Dim::Num(1), count, Dim::Num(rank + 1)])?;
    let wide = [batch.clone(), places.shape()[1].clone(), Dim::Num(rank + 1)];
    let places = lower.expand(&places, &wide)?;
    let dtype = theta.dtype();
    let theta = lower.f32(&theta)?;
    let y = super::matmul::multiply(lower, &places, &theta, true)?;
    let shape: Vec<Dim> = [batch].into_iter().chain(spatial.iter().cloned()).chain([Dim::Num(rank)]).collect();
    let y = lower.reshape(&y, &shape)?;
    one(lower.back(y, dtype)?)
}

fn col2im<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let known = |input: usize, what: &str| -> Res<Vec<usize>> {
        let all = call.input(input)?.numbers(what)?;
        all.iter().map(|n| usize::try_from(*n).map_err(|_| Fail::from(format!("{what} has {n}")))).collect()
    };
    let (image, block) = (known(1, "image_shape")?, known(2, "block_shape")?);
    let rank = image.len();
    let mut window: Window = super::conv::window(call, rank)?;
    if let Some(pads) = call.attributes.counts("pads")? {
        if pads.len() != 2 * rank {
            return fail("attribute pads does not fit");
        }
        window.pads_begin = pads[..rank].to_vec();
        window.pads_end = pads[rank..].to_vec();
    }
    let dtype = x.dtype();
    let x = lower.f32(&x)?;
    let y = lower.op(Op::Col2Im(Col2Im { image, block, window }), &[&x])?;
    one(lower.back(y, dtype)?)
}
