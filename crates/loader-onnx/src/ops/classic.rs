//! Operators of `ai.onnx.ml` that need no strings and no trees.

use core_tensor::op::Binary;
use core_tensor::{DType, Dim};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Res, fail};
use crate::lower::operand::Value;

pub(super) const OPERATORS: &[Entry] =
    &[("ArrayFeatureExtractor", 1, array_feature_extractor), ("Binarizer", 1, binarizer)];

fn array_feature_extractor<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let (x, indices) = (call.input(0)?.clone(), call.input(1)?.clone());
    if x.rank() == 0 {
        return fail("its input has no features");
    }
    let count = indices.count();
    let indices = lower.reshape(&indices, std::slice::from_ref(&count))?;
    let y = lower.gather(&x, x.rank() - 1, &indices)?;
    if x.rank() == 1 { one(lower.reshape(&y, &[Dim::Num(1), count])?) } else { one(y) }
}

fn binarizer<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    let threshold = lower.scalar(x.dtype(), f64::from(call.attributes.float_or("threshold", 0.0)?))?;
    let above = lower.binary(Binary::Greater, &x, &threshold)?;
    let dtype = if x.dtype() == DType::Bool { DType::F32 } else { x.dtype() };
    one(lower.cast(&above, dtype)?)
}
