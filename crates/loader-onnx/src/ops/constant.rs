//! Constants, and operators that do nothing when a model is run.

use core_tensor::op::{Distribution, Op, Random};
use core_tensor::{DType, Dim, Tensor};

use super::{Entry, one};
use crate::lower::Lower;
use crate::lower::call::Call;
use crate::lower::fail::{Fail, Res, fail};
use crate::lower::operand::{Operand, Value};
use crate::lower::sym_int::SymInt;

pub(super) const OPERATORS: &[Entry] = &[
    ("Constant", 1, constant),
    ("ConstantOfShape", 9, constant_of_shape),
    ("Identity", 1, identity),
    ("Dropout", 6, dropout),
    ("EyeLike", 9, eye_like),
    ("RandomNormal", 1, random),
    ("RandomUniform", 1, random),
    ("RandomNormalLike", 1, random),
    ("RandomUniformLike", 1, random),
    ("Bernoulli", 15, bernoulli),
];

fn constant<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let name = call.proto.output.first().map_or("", |name| name);
    if let Some(proto) = attributes.tensor("value")? {
        let data = lower.model.tensors().read(proto)?;
        return Ok(vec![lower.data(data, name)?]);
    }
    if let Some(proto) = attributes.sparse_tensor("sparse_value")? {
        let tensor = lower.model.tensors().sparse(proto)?;
        return one(lower.constant(tensor, name));
    }
    let tensor = if let Some(x) = attributes.float("value_float")? {
        Tensor::from_slice(&[], &[x])?
    } else if let Some(all) = attributes.floats("value_floats")? {
        Tensor::from_slice(&[all.len()], all)?
    } else if let Some(x) = attributes.int("value_int")? {
        Tensor::from_slice(&[], &[x])?
    } else if let Some(all) = attributes.ints("value_ints")? {
        Tensor::from_slice(&[all.len()], all)?
    } else if attributes.get("value_string").or(attributes.get("value_strings")).is_some() {
        return Ok(vec![Value::Strings]);
    } else {
        return fail("it has no value");
    };
    one(lower.constant(tensor, name))
}

/// The extents that an integer vector names; those that are not known are symbols of their own.
pub(super) fn shape_of(lower: &mut Lower<'_>, shape: &Operand) -> Res<(Vec<Dim>, bool)> {
    let ints = shape.int_vector("shape")?;
    let mut known = true;
    let mut dims = Vec::with_capacity(ints.len());
    for (i, int) in ints.iter().enumerate() {
        dims.push(match int {
            SymInt::Unknown => {
                known = false;
                lower.fresh(&format!("{}.{i}", lower.name))
            }
            int => int.as_dim().ok_or_else(|| Fail::from("an extent is negative"))?,
        });
    }
    Ok((dims, known))
}

fn constant_of_shape<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let value = match call.attributes.tensor("value")? {
        Some(proto) => {
            let tensor = lower.model.tensors().tensor(proto)?;
            if tensor.len() != 1 {
                return fail("its value is no single element");
            }
            let tensor = tensor.reshaped(&[])?;
            lower.constant(tensor, "")
        }
        None => lower.scalar(DType::F32, 0.0)?,
    };
    let shape = call.input(0)?.clone();
    one(filled(lower, &value, &shape)?)
}

/// A scalar, broadcast to a shape that is an integer vector.
pub(super) fn filled(lower: &mut Lower<'_>, value: &Operand, shape: &Operand) -> Res<Operand> {
    let (dims, known) = shape_of(lower, shape)?;
    if let Some([int]) = value.ints().as_deref()
        && let Some(n) = dims.iter().try_fold(1usize, |n, dim| n.checked_mul(dim.as_num()?))
        && n <= crate::lower::operand::MAX_INTS
        && value.dtype().is_int()
    {
        return lower.integers(value.dtype(), &dims, vec![int.clone(); n]);
    }
    expand_to(lower, value, &dims, (!known).then_some(shape))
}

/// Broadcast to a shape, some of whose extents only the graph's run knows.
pub(super) fn expand_to(lower: &mut Lower<'_>, x: &Operand, dims: &[Dim], runtime: Option<&Operand>) -> Res<Operand> {
    match runtime {
        None => lower.expand(x, dims),
        Some(shape) => {
            let shape = lower.cast(shape, DType::I64)?;
            let op = Op::Expand(core_tensor::op::Expand { shape: dims.to_vec() });
            let y = lower.op(op, &[x, &shape])?;
            lower.declare(&y, x.dtype())
        }
    }
}

fn identity<'a>(_: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    match call.value(0) {
        Some(value) => Ok(vec![value.clone()]),
        None => Ok(vec![Value::Optional(None)]),
    }
}

fn dropout<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?.clone();
    if let Some(training) = call.optional(2)?
        && training.ints().is_none_or(|ints| ints != [SymInt::Num(0)])
    {
        let zero = call.optional(1)?.is_some_and(|ratio| ratio.float("ratio").is_ok_and(|ratio| ratio == 0.0));
        if !zero {
            return fail("training mode is not supported");
        }
    }
    let mut outputs = vec![Value::Tensor(x.clone())];
    if call.wants(1) {
        // Up to version 9 the mask was of the data's type.
        let dtype = if call.opset < 10 { x.dtype() } else { DType::Bool };
        let truth = lower.scalar(dtype, 1.0)?;
        outputs.push(lower.expand(&truth, x.shape())?.into());
    }
    Ok(outputs)
}

fn eye_like<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let x = call.input(0)?;
    let dtype = call.attributes.dtype("dtype")?.unwrap_or(x.dtype());
    let k = call.attributes.int_or("k", 0)?;
    let [rows, cols] = x.shape() else { return fail("its input is no matrix") };
    let (rows, cols) = (rows.clone(), cols.clone());
    let row = lower.iota(rows)?;
    let k = lower.scalar(DType::I64, k as f64)?;
    let row = lower.add(&row, &k)?;
    let row = lower.unsqueeze(&row, &[1])?;
    let col = lower.iota(cols)?;
    let equal = lower.binary(core_tensor::op::Binary::Equal, &row, &col)?;
    one(lower.cast(&equal, dtype)?)
}

/// The seed of a node: its own, or one made of its name, so that two nodes differ and two runs do not.
fn seed(lower: &Lower<'_>, call: &Call<'_>) -> Res<u64> {
    Ok(match call.attributes.float("seed")? {
        Some(seed) => u64::from(seed.to_bits()),
        None => lower
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
    })
}

fn random<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let attributes = &call.attributes;
    let name = call.proto.op_type();
    let distribution = if name.starts_with("RandomNormal") {
        Distribution::Normal { mean: attributes.float_or("mean", 0.0)?, scale: attributes.float_or("scale", 1.0)? }
    } else {
        Distribution::Uniform { low: attributes.float_or("low", 0.0)?, high: attributes.float_or("high", 1.0)? }
    };
    let given = attributes.dtype("dtype")?;
    let (dtype, shape) = if name.ends_with("Like") {
        let x = call.input(0)?;
        (given.unwrap_or(x.dtype()), x.shape().to_vec())
    } else {
        let Some(shape) = attributes.counts("shape")? else { return fail("attribute shape is missing") };
        (given.unwrap_or(DType::F32), shape.into_iter().map(Dim::Num).collect())
    };
    let held = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let y = lower.op(Op::Random(Random { distribution, seed: seed(lower, call)?, dtype: held, shape }), &[])?;
    one(lower.cast(&y, dtype)?)
}

fn bernoulli<'a>(lower: &mut Lower<'a>, call: &Call<'a>) -> Res<Vec<Value>> {
    let p = call.input(0)?.clone();
    let dtype = call.attributes.dtype("dtype")?.unwrap_or(p.dtype());
    let distribution = Distribution::Uniform { low: 0.0, high: 1.0 };
    let (seed, shape) = (seed(lower, call)?, p.shape().to_vec());
    let drawn = lower.op(Op::Random(Random { distribution, seed, dtype: DType::F32, shape }), &[])?;
    let p = lower.f32(&p)?;
    let p = lower.declare(&p, DType::F32)?;
    let less = lower.binary(core_tensor::op::Binary::Less, &drawn, &p)?;
    one(lower.cast(&less, dtype)?)
}
