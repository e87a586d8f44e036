//! Operators that order the elements along the last extent.

use crate::op::numbers::NAN_KEY;
use crate::op::shape::plain;
use crate::op::{Evaluation, Inference, Numbers, OpError, Operator, split_last};
use crate::{DType, Dim, Tensor, ValueType};

/// Dtype and shape of an input of plain numbers.
fn numbers<'a>(cx: &Inference<'a>) -> Result<(DType, &'a [Dim]), OpError> {
    let (dtype, shape) = cx.tensor(0)?;
    plain(dtype, 0)?;
    Ok((dtype, shape))
}

/// For each row, the places (in the whole tensor) of its elements in order, equal ones as they stand, NaN last.
fn sorted(x: &Tensor, descending: bool) -> Result<Vec<usize>, OpError> {
    let keys = Numbers::load(x)?.keys();
    let floats = x.dtype().is_float();
    let key = |at: usize| match keys[at] {
        NAN_KEY if floats => (true, 0),
        key => (false, if descending { -key } else { key }),
    };
    let mut places: Vec<usize> = (0..keys.len()).collect();
    let n = x.shape().last().copied().unwrap_or(1);
    places.chunks_mut(n.max(1)).for_each(|row| row.sort_by_key(|at| key(*at)));
    Ok(places)
}

/// The bytes of the elements at some places.
fn elements(x: &Tensor, places: &[usize]) -> Vec<u8> {
    let size = x.dtype().packing().1;
    places.iter().flat_map(|at| &x.bytes()[at * size..][..size]).copied().collect()
}

/// Index of the largest element along the last extent, the first of equals. Input: a number or bool `[..., n]`, n > 0; output: i32
/// `[...]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgMax;

impl Operator for ArgMax {
    fn name(&self) -> &'static str {
        "ArgMax"
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (rest, last) = split_last(numbers(cx)?.1)?;
        if *last == Dim::Num(0) {
            return Err(OpError::Shape("no element to choose from".into()));
        }
        Ok(vec![ValueType::tensor(DType::I32, rest)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        cx.output_shape(0)?;
        let n = cx.last_extent(0)?.max(1);
        // What is no number is never larger than anything, unless it comes first.
        fn best<T: PartialOrd>(x: &[T], n: usize) -> Vec<i32> {
            x.chunks(n)
                .map(|row| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as i32)
                .collect()
        }
        let y = match Numbers::load(cx.tensor(0)?)? {
            Numbers::F32(x) => best(&x, n),
            Numbers::F64(x) => best(&x, n),
            Numbers::Int(x) => best(&x, n),
        };
        cx.put(0, &y)
    }
}

/// The `k` largest elements along the last extent, largest first, the first of equals first; what is no number comes last (ONNX TopK with
/// `largest` and `sorted`).
///
/// Input: a number `[..., n]` with n ≥ k. Outputs: the elements `[..., k]`, of the same dtype; their indices, i32 `[..., k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// How many; at least 1.
    pub k: usize,
}

impl TopK {
    /// Which of two elements, with their indices, comes first.
    #[must_use]
    pub fn order(a: (f32, usize), b: (f32, usize)) -> std::cmp::Ordering {
        let key = |x: f32| if x.is_nan() { None } else { Some(if x == 0.0 { 0.0 } else { x }) };
        let values = match (key(a.0), key(b.0)) {
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        values.then(a.1.cmp(&b.1))
    }
}

impl Operator for TopK {
    fn name(&self) -> &'static str {
        "TopK"
    }

    fn attributes(&self) -> String {
        format!(" {{k={}}}", self.k)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = numbers(cx)?;
        let (rest, last) = split_last(shape)?;
        if self.k == 0 || last.as_num().is_some_and(|n| n < self.k) {
            return Err(OpError::Attribute { name: "k", reason: format!("{} of {last} elements", self.k) });
        }
        let shape: Vec<Dim> = rest.iter().cloned().chain([Dim::Num(self.k)]).collect();
        Ok(vec![ValueType::tensor(dtype, &shape), ValueType::Tensor { dtype: DType::I32, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let n = cx.last_extent(0)?;
        if n < self.k {
            return Err(OpError::Attribute { name: "k", reason: format!("{} of {n} elements", self.k) });
        }
        let sorted = sorted(cx.tensor(0)?, true)?;
        let kept: Vec<usize> = sorted.chunks(n).flat_map(|row| &row[..self.k]).copied().collect();
        let bytes = elements(cx.tensor(0)?, &kept);
        let indices: Vec<i32> = kept.iter().map(|at| (at % n) as i32).collect();
        cx.put_bytes(0, &bytes)?;
        cx.put(1, &indices)
    }
}

/// Sorts along the last extent, equal elements in the order in which they are (stable); NaN last.
///
/// Input: a plain numeric dtype `[..., n]`. Outputs: the sorted elements; their indices, i64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Largest first.
    pub descending: bool,
}

impl Operator for Sort {
    fn name(&self) -> &'static str {
        "Sort"
    }

    fn attributes(&self) -> String {
        format!(" {{descending={}}}", self.descending)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = numbers(cx)?;
        split_last(shape)?;
        Ok(vec![ValueType::tensor(dtype, shape), ValueType::tensor(DType::I64, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let n = cx.last_extent(0)?;
        let places = sorted(cx.tensor(0)?, self.descending)?;
        let bytes = elements(cx.tensor(0)?, &places);
        let indices: Vec<i64> = places.iter().map(|at| (at % n) as i64).collect();
        cx.put_bytes(0, &bytes)?;
        cx.put(1, &indices)
    }
}
