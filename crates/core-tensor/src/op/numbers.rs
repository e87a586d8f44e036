//! Elements as numbers, for reference implementations that serve many dtypes.

use crate::op::OpError;
use crate::{DType, Tensor};

/// The elements of a tensor in the arithmetic in which operators on its dtype are defined: f64 in f64, shorter floats in f32, integers and
/// booleans exactly.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    /// f32 and shorter floats.
    F32(Vec<f32>),
    /// f64.
    F64(Vec<f64>),
    /// Integers of any width, and booleans as 0 and 1.
    Int(Vec<i128>),
}

impl Numbers {
    /// Reads all elements.
    pub(crate) fn load(tensor: &Tensor) -> Result<Numbers, OpError> {
        fn ints<T: crate::Element + Into<i128>>(tensor: &Tensor) -> Result<Numbers, OpError> {
            Ok(Numbers::Int(tensor.to_vec::<T>()?.into_iter().map(Into::into).collect()))
        }
        match tensor.dtype() {
            DType::F64 => Ok(Numbers::F64(tensor.to_vec()?)),
            DType::I64 => ints::<i64>(tensor),
            DType::I32 => ints::<i32>(tensor),
            DType::I16 => ints::<i16>(tensor),
            DType::I8 => ints::<i8>(tensor),
            DType::U64 => ints::<u64>(tensor),
            DType::U32 => ints::<u32>(tensor),
            DType::U16 => ints::<u16>(tensor),
            DType::U8 => ints::<u8>(tensor),
            DType::Bool => Ok(Numbers::Int(tensor.bytes().iter().map(|b| i128::from(*b != 0)).collect())),
            _ => Ok(Numbers::F32(tensor.to_f32()?)),
        }
    }

    /// A tensor of these numbers; integers wrap around, floats become integers by truncation that saturates, anything but zero is true.
    pub(crate) fn store(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, OpError> {
        macro_rules! convert {
            ($t:ty) => {
                match self {
                    Numbers::F32(v) => v.iter().map(|x| *x as $t).collect::<Vec<$t>>(),
                    Numbers::F64(v) => v.iter().map(|x| *x as $t).collect::<Vec<$t>>(),
                    Numbers::Int(v) => v.iter().map(|x| *x as $t).collect::<Vec<$t>>(),
                }
            };
        }
        let tensor = match dtype {
            DType::F64 => Tensor::from_slice(shape, &convert!(f64)),
            DType::F32 => Tensor::from_slice(shape, &convert!(f32)),
            DType::F16 => {
                let halves: Vec<half::f16> = match self {
                    Numbers::F64(v) => v.iter().map(|x| half::f16::from_f64(*x)).collect(),
                    _ => convert!(f32).into_iter().map(half::f16::from_f32).collect(),
                };
                Tensor::from_slice(shape, &halves)
            }
            DType::BF16 => {
                let halves: Vec<half::bf16> = convert!(f32).into_iter().map(half::bf16::from_f32).collect();
                Tensor::from_slice(shape, &halves)
            }
            DType::I64 => Tensor::from_slice(shape, &convert!(i64)),
            DType::I32 => Tensor::from_slice(shape, &convert!(i32)),
            DType::I16 => Tensor::from_slice(shape, &convert!(i16)),
            DType::I8 => Tensor::from_slice(shape, &convert!(i8)),
            DType::U64 => Tensor::from_slice(shape, &convert!(u64)),
            DType::U32 => Tensor::from_slice(shape, &convert!(u32)),
            DType::U16 => Tensor::from_slice(shape, &convert!(u16)),
            DType::U8 => Tensor::from_slice(shape, &convert!(u8)),
            DType::Bool => {
                let bytes: Vec<u8> = match self {
                    Numbers::F32(v) => v.iter().map(|x| u8::from(*x != 0.0)).collect(),
                    Numbers::F64(v) => v.iter().map(|x| u8::from(*x != 0.0)).collect(),
                    Numbers::Int(v) => v.iter().map(|x| u8::from(*x != 0)).collect(),
                };
                Tensor::from_bytes(DType::Bool, shape, &bytes)
            }
            other => return Err(crate::TensorError::Conversion { from: DType::F32, to: other }.into()),
        };
        Ok(tensor?)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Numbers::F32(v) => v.len(),
            Numbers::F64(v) => v.len(),
            Numbers::Int(v) => v.len(),
        }
    }

    /// All as f64 (exact but for large integers).
    pub(crate) fn to_f64(&self) -> Vec<f64> {
        match self {
            Numbers::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            Numbers::F64(v) => v.clone(),
            Numbers::Int(v) => v.iter().map(|x| *x as f64).collect(),
        }
    }

    /// Keys that order the elements as integers: -0 is 0, every NaN comes after +∞ and equals the others.
    pub(crate) fn keys(&self) -> Vec<i128> {
        match self {
            Numbers::F32(v) => v.iter().map(|x| key(f64::from(*x))).collect(),
            Numbers::F64(v) => v.iter().map(|x| key(*x)).collect(),
            Numbers::Int(v) => v.clone(),
        }
    }
}

/// What `key` gives for NaN.
pub(crate) const NAN_KEY: i128 = i64::MAX as i128;

fn key(x: f64) -> i128 {
    if x.is_nan() {
        return NAN_KEY;
    }
    // Floats of one sign are ordered as their bits are.
    let bits = (if x == 0.0 { 0.0 } else { x }).to_bits() as i64;
    i128::from(if bits < 0 { i64::MIN.wrapping_sub(bits) } else { bits })
}
