//! Values while a model is lowered.

use std::rc::Rc;

use core_tensor::{DType, Dim, Tensor};

use super::fail::{Res, fail};
use super::sym_int::{SymInt, product};

/// Elements of an integer tensor that is followed symbolically, at most.
pub(crate) const MAX_INTS: usize = 64;

/// A value of the model.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A tensor.
    Tensor(Operand),
    /// A sequence, whose length is known.
    Sequence(Rc<Vec<Value>>),
    /// A value, or none.
    Optional(Option<Rc<Value>>),
    /// Strings, which nothing computes with.
    Strings,
}

/// A tensor: a value of a graph, a constant, or integers that follow from extents. The latter two become values of a graph where they are used.
#[derive(Clone, Debug)]
pub(crate) struct Operand(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    key: u32,
    dtype: DType,
    shape: Vec<Dim>,
    constant: Option<Tensor>,
    ints: Option<Vec<SymInt>>,
    name: String,
}

/// The dtype in which the graph holds what the model declares: half precision is computed in f32, 4-bit integers lie in bytes.
pub(crate) fn held(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        DType::I4 => DType::I8,
        DType::U4 => DType::U8,
        other => other,
    }
}

impl Operand {
    /// What a node gives.
    pub(crate) fn node(key: u32, dtype: DType, shape: Vec<Dim>, ints: Option<Vec<SymInt>>) -> Operand {
        Operand(Rc::new(Inner { key, dtype, shape, constant: None, ints, name: String::new() }))
    }

    /// A constant. Its dtype is the declared one, or the one in which that is held.
    pub(crate) fn constant(key: u32, dtype: DType, tensor: Tensor, name: &str) -> Operand {
        let shape = tensor.shape().iter().map(|n| Dim::Num(*n)).collect();
        Operand(Rc::new(Inner { key, dtype, shape, constant: Some(tensor), ints: None, name: name.to_owned() }))
    }

    /// Who this is: values of graphs are found by it.
    pub(crate) fn key(&self) -> u32 {
        self.0.key
    }

    /// The dtype that the model declares.
    pub(crate) fn dtype(&self) -> DType {
        self.0.dtype
    }

    pub(crate) fn shape(&self) -> &[Dim] {
        &self.0.shape
    }

    pub(crate) fn rank(&self) -> usize {
        self.0.shape.len()
    }

    /// The number of elements.
    pub(crate) fn count(&self) -> Dim {
        product(&self.0.shape)
    }

    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        self.0.constant.as_ref()
    }

    /// The name of a constant.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// The symbols, where all elements are known as such and nothing else is.
    pub(crate) fn symbolic(&self) -> Option<&[SymInt]> {
        self.0.ints.as_deref()
    }

    /// The elements of an integer (or bool) tensor of at most [`MAX_INTS`] elements, as far as they are known.
    pub(crate) fn ints(&self) -> Option<Vec<SymInt>> {
        if let Some(ints) = &self.0.ints {
            return Some(ints.clone());
        }
        let tensor = self.0.constant.as_ref()?;
        if tensor.len() > MAX_INTS {
            return None;
        }
        let bytes = tensor.bytes();
        let all = |size: usize, read: &dyn Fn(&[u8]) -> Option<i64>| {
            bytes.chunks_exact(size).map(|chunk| read(chunk).map_or(SymInt::Unknown, SymInt::Num)).collect()
        };
        Some(match tensor.dtype() {
            DType::I64 => all(8, &|b| Some(i64::from_le_bytes(b.try_into().ok()?))),
            DType::I32 => all(4, &|b| Some(i64::from(i32::from_le_bytes(b.try_into().ok()?)))),
            DType::U8 | DType::Bool => all(1, &|b| b.first().map(|b| i64::from(*b))),
            DType::I8 => all(1, &|b| b.first().map(|b| i64::from(*b as i8))),
            DType::I16 => all(2, &|b| Some(i64::from(i16::from_le_bytes(b.try_into().ok()?)))),
            DType::U16 => all(2, &|b| Some(i64::from(u16::from_le_bytes(b.try_into().ok()?)))),
            DType::U32 => all(4, &|b| Some(i64::from(u32::from_le_bytes(b.try_into().ok()?)))),
            DType::U64 => all(8, &|b| i64::try_from(u64::from_le_bytes(b.try_into().ok()?)).ok()),
            _ => return None,
        })
    }

    /// The elements of an integer vector (or scalar), unknown ones as such. The number of elements must be known.
    pub(crate) fn int_vector(&self, what: &str) -> Res<Vec<SymInt>> {
        if self.rank() > 1 {
            return fail(format!("{what} must be a vector, it has {} extents", self.rank()));
        }
        if let Some(ints) = self.ints() {
            return Ok(ints);
        }
        match self.count() {
            Dim::Num(n) if n <= MAX_INTS => Ok(vec![SymInt::Unknown; n]),
            _ => fail(format!("{what}: its length must be known")),
        }
    }

    /// The elements of an integer vector (or scalar) that must be known numbers.
    pub(crate) fn numbers(&self, what: &str) -> Res<Vec<i64>> {
        let ints = match (self.ints(), self.tensor()) {
            (Some(ints), _) => ints,
            (None, Some(tensor)) if tensor.dtype() == DType::I64 => return Ok(tensor.to_vec()?),
            _ => return fail(format!("{what} must be constant")),
        };
        let known: Option<Vec<i64>> = ints.iter().map(SymInt::as_num).collect();
        known.ok_or_else(|| format!("{what} must be constant").into())
    }

    /// The floats of a constant.
    pub(crate) fn floats(&self, what: &str) -> Res<Vec<f32>> {
        match self.tensor() {
            Some(tensor) => Ok(tensor.to_f32()?),
            None => fail(format!("{what} must be constant")),
        }
    }

    /// The one float of a constant.
    pub(crate) fn float(&self, what: &str) -> Res<f32> {
        match self.floats(what)?[..] {
            [x] => Ok(x),
            _ => fail(format!("{what} must be one number")),
        }
    }

    /// Whether this is a constant.
    pub(crate) fn is_constant(&self) -> bool {
        self.0.constant.is_some()
    }
}

impl Value {
    /// The tensor, if this is one.
    pub(crate) fn operand(&self) -> Option<&Operand> {
        match self {
            Value::Tensor(operand) => Some(operand),
            Value::Optional(Some(value)) => value.operand(),
            _ => None,
        }
    }

    /// What this is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Tensor(_) => "a tensor",
            Value::Sequence(_) => "a sequence",
            Value::Optional(_) => "an optional",
            Value::Strings => "strings",
        }
    }
}

impl From<Operand> for Value {
    fn from(operand: Operand) -> Value {
        Value::Tensor(operand)
    }
}
