//! Signal processing.

use core_tensor::op::{Dft, Op};
use core_tensor::{DType, Dim, Tensor};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::{Call, axis};
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value, held};
use crate::lower::sym_int::SymInt;

pub(super) const OPERATORS: &[Entry] = &[
    ("BlackmanWindow", 17, window),
    ("DFT", 17, dft),
    ("HammingWindow", 17, window),
    ("HannWindow", 17, window),
    ("MelWeightMatrix", 17, mel_weight_matrix),
    ("STFT", 17, stft),
];

fn number(operand: &Operand, what: &str) -> Res<i64> {
    match operand.numbers(what)?[..] {
        [n] => Ok(n),
        _ => fail(format!("{what} must be one number")),
    }
}

fn one_dim(operand: &Operand, what: &str) -> Res<Dim> {
    match &operand.int_vector(what)?[..] {
        [int] => int.as_dim().ok_or_else(|| format!("{what} must be known").into()),
        _ => fail(format!("{what} must be one number")),
    }
}

fn dft<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let at = if call.opset < 20 {
        call.attributes.int_or("axis", 1)?
    } else {
        call.optional(2)?.map_or(Ok(-2), |axis| number(axis, "axis"))?
    };
    let at = axis(at, x.rank())?;
    let length = match call.optional(1)? {
        Some(length) => one_dim(length, "dft_length")?,
        None => x.shape()[at].clone(),
    };
    let inverse = call.attributes.flag("inverse", false)?;
    let onesided = call.attributes.flag("onesided", false)?;
    let dtype = x.dtype();
    let x = if dtype == DType::F64 { x } else { lower.f32(&x)? };
    let y = lower.op(Op::Dft(Dft { axis: at as isize, length, inverse, onesided }), &[&x])?;
    one(lower.back(y, dtype)?)
}

fn stft<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let step = usize::try_from(number(call.input(1)?, "frame_step")?).map_err(|_| Fail::from("frame_step"))?;
    let window = call.optional(2)?.cloned();
    let length = match (call.optional(3)?, &window) {
        (Some(length), _) => one_dim(length, "frame_length")?,
        (None, Some(window)) => window.count(),
        (None, None) => x.shape().get(1).cloned().unwrap_or(Dim::Num(0)),
    };
    let Dim::Num(length) = length else { return fail("frame_length must be known") };
    if step == 0 || length == 0 || x.rank() < 2 {
        return fail("frames of no length");
    }
    let dtype = x.dtype();
    let mut x = if dtype == DType::F64 { x } else { lower.f32(&x)? };
    if x.rank() == 2 {
        x = lower.unsqueeze(&x, &[2])?;
    }
    // Frame f has the elements f · step .. f · step + length.
    let samples = x.shape()[1].clone();
    let frames = SymInt::of(samples).sub(&SymInt::Num(length as i64)).div(&SymInt::Num(step as i64));
    let frames = frames.add(&SymInt::Num(1)).as_dim().ok_or_else(|| Fail::from("the signal is too short"))?;
    let (starts, places) = (lower.iota(frames.clone())?, lower.iota(Dim::Num(length))?);
    let step = lower.scalar(DType::I64, step as f64)?;
    let starts = lower.mul(&starts, &step)?;
    let starts = lower.unsqueeze(&starts, &[1])?;
    let indices = lower.add(&starts, &places)?;
    let mut y = lower.gather(&x, 1, &indices)?;
    if let Some(window) = window {
        let window = lower.cast(&window, held(y.dtype()))?;
        let window = lower.unsqueeze(&window, &[1])?;
        y = lower.mul(&y, &window)?;
    }
    let onesided = call.attributes.flag("onesided", true)?;
    let op = Dft { axis: 2, length: Dim::Num(length), inverse: false, onesided };
    let y = lower.op(Op::Dft(op), &[&y])?;
    one(lower.back(y, dtype)?)
}

fn window<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    /// A window of more elements is no window.
    const LONGEST: i64 = 1 << 24;
    let size = number(call.input(0)?, "size")?;
    if !(0..=LONGEST).contains(&size) {
        return fail(format!("a window of {size}"));
    }
    let dtype = call.attributes.dtype("output_datatype")?.unwrap_or(DType::F32);
    let n = if call.attributes.flag("periodic", true)? { size } else { size - 1 } as f64;
    let value = |i: i64| {
        let angle = i as f64 * std::f64::consts::TAU / n;
        match call.proto.op_type() {
            "HannWindow" => 0.5 - 0.5 * angle.cos(),
            "HammingWindow" => 25.0 / 46.0 - 21.0 / 46.0 * angle.cos(),
            _ => 0.42 - 0.5 * angle.cos() + 0.08 * (2.0 * angle).cos(),
        }
    };
    let all: Vec<f64> = (0..size).map(value).collect();
    let y = lower.vector(&all)?;
    one(lower.cast(&y, dtype)?)
}

fn mel_weight_matrix<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let bins = number(call.input(0)?, "num_mel_bins")?;
    let length = number(call.input(1)?, "dft_length")?;
    let rate = number(call.input(2)?, "sample_rate")? as f64;
    let (low, high) = (call.input(3)?.float("lower_edge_hertz")?, call.input(4)?.float("upper_edge_hertz")?);
    let (Ok(bins), Ok(length)) = (usize::try_from(bins), usize::try_from(length)) else { return fail("sizes") };
    let rows = length / 2 + 1;
    if rows.checked_mul(bins.saturating_add(2)).is_none_or(|n| n > 1 << 26) {
        return fail("the matrix is too large");
    }
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let (low, high) = (mel(f64::from(low)), mel(f64::from(high)));
    let step = (high - low) / (bins + 2) as f64;
    let edge = |i: usize| {
        let hertz = 700.0 * (10f64.powf((i as f64 * step + low) / 2595.0) - 1.0);
        ((length + 1) as f64 * hertz / rate).floor() as usize
    };
    let mut matrix = vec![0f32; rows * bins];
    for bin in 0..bins {
        let (left, center, right) = (edge(bin), edge(bin + 1), edge(bin + 2));
        let mut set = |row: usize, value: f64| {
            if let Some(cell) = matrix.get_mut(row.saturating_mul(bins).saturating_add(bin)).filter(|_| row < rows) {
                *cell = value as f32;
            }
        };
        if left == center {
            set(center, 1.0);
        } else {
            for row in left..=center.min(rows) {
                set(row, (row - left) as f64 / (center as f64 - left as f64));
            }
        }
        for row in center..right.min(rows) {
            set(row, (right - row) as f64 / (right - center) as f64);
        }
    }
    let y = lower.constant(Tensor::from_slice(&[rows, bins], &matrix)?, "");
    let dtype = call.attributes.dtype("output_datatype")?.unwrap_or(DType::F32);
    one(lower.cast(&y, dtype)?)
}
