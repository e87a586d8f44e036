//! Operators that move elements.

use super::numbers::Numbers;
use super::{Evaluation, Inference, Op, OpError, Operator, axis, room, show};
use crate::{Bindings, DType, Dim, Shape as Extents, Tensor, ValueType};

/// The same elements under another shape. Inputs: a tensor of a plain dtype, of as many elements; optionally the shape as an i64 vector, which
/// then decides those extents of `shape` that are symbols without a value (data-dependent ones).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshape {
    /// The shape.
    pub shape: Extents,
}

/// The product of extents, as an expression.
pub(crate) fn product(shape: &[Dim]) -> Dim {
    // Numbers first, then the other factors in order, so that products of the same extents in another grouping are equal.
    let mut factors = Vec::new();
    shape.iter().for_each(|dim| dim.factors(&mut factors));
    let numbers = factors.iter().filter_map(|dim| dim.as_num()).fold(Dim::Num(1), |n, m| n.mul(Dim::Num(m)));
    let mut rest: Vec<&Dim> = factors.into_iter().filter(|dim| dim.as_num().is_none()).collect();
    rest.sort();
    rest.into_iter().fold(numbers, |product, dim| product.mul(dim.clone()))
}

pub(crate) fn bind(shape: &[Dim], bindings: &Bindings) -> Extents {
    shape.iter().map(|dim| dim.bind(bindings)).collect()
}

/// Reads a shape from an i64 vector.
fn read_shape(tensor: &Tensor) -> Result<Vec<usize>, OpError> {
    let extents = tensor.to_vec::<i64>()?;
    let outside = |n: i64| OpError::Shape(format!("{n} is no extent"));
    extents.iter().map(|n| usize::try_from(*n).map_err(|_| outside(*n))).collect()
}

fn shape_input(cx: &Inference<'_>, input: usize, rank: usize) -> Result<(), OpError> {
    if !cx.has(input) {
        return Ok(());
    }
    match cx.typed(input, &[DType::I64], "an i64 vector")? {
        [extent] if !extent.differs(&Dim::Num(rank)) => Ok(()),
        shape => Err(OpError::Shape(format!("input {input} is {}, {rank} extents are expected", show(shape)))),
    }
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn attributes(&self) -> String {
        format!(" {{shape={}}}", show(&self.shape))
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=2, "1 or 2")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        shape_input(cx, 1, self.shape.len())?;
        let (from, to) = (product(shape), product(&self.shape));
        // Without a shape input the product must be known to be the same, or be unknowable.
        let wrong = if cx.has(1) { from.differs(&to) } else { from != to && !is_open(&from) && !is_open(&to) };
        if from.differs(&to) || wrong {
            return Err(OpError::Shape(format!("{} cannot be reshaped to {}", show(shape), show(&self.shape))));
        }
        Ok(vec![ValueType::tensor(dtype, &self.shape)])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Reshape(Reshape { shape: bind(&self.shape, bindings) }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = if cx.has(1) { read_shape(cx.tensor(1)?)? } else { cx.output_shape(0)? };
        let tensor = cx.tensor(0)?.reshaped(&shape)?;
        cx.put_tensor(0, tensor)
    }
}

/// Whether a product of extents holds more than numbers and symbols multiplied: divisions and the like, whose value cannot be compared by form.
fn is_open(dim: &Dim) -> bool {
    let mut factors = Vec::new();
    dim.factors(&mut factors);
    factors.iter().any(|factor| matches!(factor, Dim::Expr(_)))
}

/// Permutes extents: extent `i` of the output is extent `perm[i]` of the input. Input: a tensor of a plain dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transpose {
    /// The permutation.
    pub perm: Vec<usize>,
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn attributes(&self) -> String {
        format!(" {{perm={:?}}}", self.perm)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..shape.len()) {
            return Err(OpError::Attribute {
                name: "perm",
                reason: format!("{:?} is no permutation of the extents of {}", self.perm, show(shape)),
            });
        }
        let shape: Vec<Dim> = self.perm.iter().map(|i| shape[*i].clone()).collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let input = cx.tensor(0)?.clone();
        let out_shape = cx.output_shape(0)?;
        let size = input.dtype().packing().1;
        let mut strides = vec![1; input.shape().len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * input.shape()[i];
        }
        let mut bytes = Vec::with_capacity(input.bytes().len());
        for index in 0..input.len() {
            let (mut rest, mut at) = (index, 0);
            for i in (0..out_shape.len()).rev() {
                at += rest % out_shape[i] * strides[self.perm[i]];
                rest /= out_shape[i];
            }
            bytes.extend_from_slice(&input.bytes()[at * size..(at + 1) * size]);
        }
        cx.put_bytes(0, &bytes)
    }
}

pub(crate) fn plain(dtype: DType, input: usize) -> Result<(), OpError> {
    if dtype.packing().0 == 1 {
        return Ok(());
    }
    Err(OpError::DType { input, expected: "a plain dtype of whole bytes", found: dtype.to_string() })
}

/// Elements of one extent: `start`, `start + step`, … , `len` of them. Input: a tensor of a plain dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// The first element.
    pub start: Dim,
    /// How many.
    pub len: Dim,
    /// From one to the next: not 0, negative to go backwards.
    pub step: isize,
}

impl Slice {
    /// Elements `start..end`, `start <= end`.
    #[must_use]
    pub fn range(axis: isize, start: usize, end: usize) -> Slice {
        Slice { axis, start: Dim::Num(start), len: Dim::Num(end.saturating_sub(start)), step: 1 }
    }

    /// First element and count, if they are numbers and the step is 1: a run of elements.
    #[must_use]
    pub fn as_range(&self) -> Option<(usize, usize)> {
        match (&self.start, &self.len, self.step) {
            (Dim::Num(start), Dim::Num(len), 1) => Some((*start, *len)),
            _ => None,
        }
    }

    /// Whether elements lie inside of an extent.
    fn fits(&self, extent: usize) -> bool {
        let (Dim::Num(start), Dim::Num(len)) = (&self.start, &self.len) else { return true };
        let last = |len: usize| (len - 1).checked_mul(self.step.unsigned_abs());
        match *len {
            0 => true,
            len if self.step > 0 => last(len).and_then(|d| d.checked_add(*start)).is_some_and(|last| last < extent),
            len => *start < extent && last(len).is_some_and(|d| d <= *start),
        }
    }
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn attributes(&self) -> String {
        let step = if self.step == 1 { String::new() } else { format!(", step={}", self.step) };
        match self.as_range() {
            Some((start, len)) => format!(" {{axis={}, start={start}, end={}}}", self.axis, start.saturating_add(len)),
            None => format!(" {{axis={}, start={}, len={}{step}}}", self.axis, self.start, self.len),
        }
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let axis = axis(self.axis, shape.len())?;
        if self.step == 0 {
            return Err(OpError::Attribute { name: "step", reason: "it is 0".into() });
        }
        if let Dim::Num(extent) = shape[axis]
            && !self.fits(extent)
        {
            return Err(OpError::Shape(format!(
                "{} elements from {} on by steps of {} are not in an extent of {extent}",
                self.len, self.start, self.step
            )));
        }
        let mut shape = shape.to_vec();
        shape[axis] = self.len.clone();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Slice(Slice { start: self.start.bind(bindings), len: self.len.bind(bindings), ..self.clone() }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let input = cx.tensor(0)?.clone();
        let axis = axis(self.axis, input.shape().len())?;
        let inner = input.shape()[axis + 1..].iter().product::<usize>() * input.dtype().packing().1;
        let extent = input.shape()[axis];
        let outer: usize = input.shape()[..axis].iter().product();
        let (start, len) = (self.start.eval(cx.bindings())?, self.len.eval(cx.bindings())?);
        let mut bytes = Vec::new();
        for i in 0..outer {
            for j in 0..len {
                let at = (start as isize + j as isize * self.step) as usize;
                bytes.extend_from_slice(&input.bytes()[(i * extent + at) * inner..][..inner]);
            }
        }
        cx.put_bytes(0, &bytes)
    }
}

/// Joins tensors of one plain dtype along one extent. Inputs: one or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concat {
    /// The extent; negative counts from the end.
    pub axis: isize,
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn attributes(&self) -> String {
        format!(" {{axis={}}}", self.axis)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=usize::MAX, "1 or more")?;
        let (dtype, first) = cx.tensor(0)?;
        plain(dtype, 0)?;
        let axis = axis(self.axis, first.len())?;
        let mut shape = first.to_vec();
        for input in 1..cx.inputs.len() {
            let other = cx.typed(input, &[dtype], "of the first input's dtype")?;
            let fits =
                other.len() == first.len() && (0..first.len()).all(|i| i == axis || !other[i].differs(&first[i]));
            if !fits {
                return Err(OpError::Shape(format!("{} and {} cannot be joined", show(first), show(other))));
            }
            for (i, dim) in other.iter().enumerate() {
                if i == axis {
                    shape[i] = shape[i].clone().add(dim.clone());
                } else if dim.as_num().is_some() {
                    shape[i] = dim.clone();
                }
            }
        }
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let parts: Vec<_> = (0..cx.input_count()).map(|i| cx.tensor(i).cloned()).collect::<Result<_, _>>()?;
        let axis = axis(self.axis, parts[0].shape().len())?;
        let outer: usize = parts[0].shape()[..axis].iter().product();
        let all = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.bytes().len()));
        let mut bytes = room(&[all.unwrap_or(usize::MAX)])?;
        for i in 0..outer {
            for part in &parts {
                let run = part.bytes().len() / outer;
                bytes.extend_from_slice(&part.bytes()[i * run..(i + 1) * run]);
            }
        }
        cx.put_bytes(0, &bytes)
    }
}

/// Converts the element type, between all plain dtypes of whole bytes. Floats become integers by truncation (saturating), integers wrap around,
/// what is not zero is true; floats are rounded to the nearest, halves to even. Block formats become floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The target.
    pub to: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "Cast"
    }

    fn attributes(&self) -> String {
        format!(" {{to={}}}", self.to)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        if matches!(dtype, DType::I4 | DType::U4) {
            return Err(OpError::DType { input: 0, expected: "a dtype of whole bytes", found: dtype.to_string() });
        }
        if self.to.packing().0 != 1 {
            return Err(OpError::Attribute { name: "to", reason: format!("no conversion to {}", self.to) });
        }
        Ok(vec![ValueType::tensor(self.to, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        if x.dtype() == self.to {
            return cx.put_tensor(0, x);
        }
        let result = match self.to {
            DType::F8E4M3 | DType::F8E5M2 => {
                let bytes: Vec<u8> =
                    x.to_f32()?.into_iter().map(|v| super::quantize::float8(v, self.to, true)).collect();
                Tensor::from_bytes(self.to, x.shape(), &bytes)?
            }
            _ => Numbers::load(&x)?.store(self.to, x.shape())?,
        };
        cx.put_tensor(0, result)
    }
}

/// Broadcasts to a shape as in NumPy (ONNX Expand, where the result is the broadcast of both shapes: the importer has computed it).
///
/// Inputs: a tensor of a plain dtype; optionally the result's shape as an i64 vector, which then decides data-dependent extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// The result's shape; each extent of the input is the same or 1.
    pub shape: Extents,
}

impl Operator for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }

    fn attributes(&self) -> String {
        format!(" {{shape={}}}", show(&self.shape))
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=2, "1 or 2")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        shape_input(cx, 1, self.shape.len())?;
        let fits = shape.len() <= self.shape.len()
            && shape.iter().rev().zip(self.shape.iter().rev()).all(|(a, b)| *a == Dim::Num(1) || !a.differs(b));
        if !fits {
            return Err(OpError::Shape(format!("{} cannot be expanded to {}", show(shape), show(&self.shape))));
        }
        Ok(vec![ValueType::tensor(dtype, &self.shape)])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Expand(Expand { shape: bind(&self.shape, bindings) }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        let shape = if cx.has(1) { read_shape(cx.tensor(1)?)? } else { cx.output_shape(0)? };
        let fits = x.shape().len() <= shape.len()
            && x.shape().iter().rev().zip(shape.iter().rev()).all(|(a, b)| a == b || *a == 1);
        if !fits {
            return Err(OpError::Shape(format!("{:?} cannot be expanded to {shape:?}", x.shape())));
        }
        let size = x.dtype().packing().1;
        let mut y = Tensor::zeroed(x.dtype(), &shape)?;
        if let Some(bytes) = y.bytes_mut() {
            for (i, out) in bytes.chunks_exact_mut(size).enumerate() {
                let at = super::elementwise::broadcast_index(i, &shape, x.shape()) * size;
                out.copy_from_slice(&x.bytes()[at..at + size]);
            }
        }
        cx.put_tensor(0, y)
    }
}

/// What padding is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PadMode {
    /// A constant: the second input, or 0.
    Constant,
    /// The nearest element.
    Edge,
    /// The elements mirrored at the first and last, which are not repeated.
    Reflect,
    /// The elements from the other end.
    Wrap,
}

/// Adds elements before and after each extent (ONNX Pad; importers turn negative pads into slices).
///
/// Inputs: a tensor of a plain dtype; optionally the constant, a scalar of the same dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pad {
    /// What is added before and after each extent.
    pub pads: Vec<(Dim, Dim)>,
    /// What with.
    pub mode: PadMode,
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn attributes(&self) -> String {
        let pads: Vec<String> = self.pads.iter().map(|(a, b)| format!("{a}+{b}")).collect();
        format!(" {{pads=[{}], mode={:?}}}", pads.join(", "), self.mode)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=2, "1 or 2")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        if cx.has(1) && product(cx.typed(1, &[dtype], "of the first input's dtype")?).differs(&Dim::Num(1)) {
            return Err(OpError::Shape("the constant is no single element".into()));
        }
        if self.pads.len() != shape.len() {
            return Err(OpError::Attribute {
                name: "pads",
                reason: format!("{} of them for {}", self.pads.len(), show(shape)),
            });
        }
        for ((before, after), extent) in self.pads.iter().zip(shape) {
            if let (Dim::Num(before), Dim::Num(after), Dim::Num(extent)) = (before, after, extent) {
                let most = match self.mode {
                    PadMode::Reflect => extent.saturating_sub(1),
                    PadMode::Wrap => *extent,
                    PadMode::Edge => {
                        if *extent == 0 {
                            0
                        } else {
                            usize::MAX
                        }
                    }
                    PadMode::Constant => usize::MAX,
                };
                // Exporters reflect only once; more would mirror again and again.
                if (*before).max(*after) > most && !(self.mode == PadMode::Reflect && *extent > 1) {
                    return Err(OpError::Attribute {
                        name: "pads",
                        reason: format!("{before} and {after} of an extent of {extent} by {:?}", self.mode),
                    });
                }
            }
        }
        let padded =
            |((before, after), extent): (&(Dim, Dim), &Dim)| before.clone().add(extent.clone()).add(after.clone());
        let shape = self.pads.iter().zip(shape).map(padded).collect();
        Ok(vec![ValueType::Tensor { dtype, shape }])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        let pads = self.pads.iter().map(|(a, b)| (a.bind(bindings), b.bind(bindings))).collect();
        Some(Op::Pad(Pad { pads, mode: self.mode }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        let size = x.dtype().packing().1;
        let constant = if cx.has(1) { cx.tensor(1)?.bytes().to_vec() } else { vec![0; size] };
        let shape = cx.output_shape(0)?;
        let before: Vec<usize> =
            self.pads.iter().map(|(before, _)| before.eval(cx.bindings())).collect::<Result<_, _>>()?;
        let mut y = Tensor::zeroed(x.dtype(), &shape)?;
        let Some(bytes) = y.bytes_mut() else { return Ok(()) };
        for (index, out) in bytes.chunks_exact_mut(size).enumerate() {
            let (mut rest, mut at, mut stride, mut inside) = (index, 0, 1, true);
            for i in (0..shape.len()).rev() {
                let n = x.shape()[i] as isize;
                let mut c = (rest % shape[i]) as isize - before[i] as isize;
                rest /= shape[i];
                if !(0..n).contains(&c) {
                    match self.mode {
                        PadMode::Constant => inside = false,
                        PadMode::Edge => c = c.clamp(0, n - 1),
                        PadMode::Wrap => c = c.rem_euclid(n.max(1)),
                        PadMode::Reflect => {
                            let period = (2 * (n - 1)).max(1);
                            let m = c.rem_euclid(period);
                            c = if m < n { m } else { period - m };
                        }
                    }
                }
                at = if inside { at + c as usize * stride } else { 0 };
                stride *= x.shape()[i];
            }
            out.copy_from_slice(if inside { &x.bytes()[at * size..][..size] } else { &constant[..size] });
        }
        cx.put_tensor(0, y)
    }
}

/// Extents as numbers: no inputs; output: i64 `[n]`. What importers make of ONNX Shape and Size and of arithmetic on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentValues {
    /// The extents.
    pub dims: Vec<Dim>,
}

impl Operator for ExtentValues {
    fn name(&self) -> &'static str {
        "ExtentValues"
    }

    fn attributes(&self) -> String {
        format!(" {{dims={}}}", show(&self.dims))
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(0..=0, "no")?;
        Ok(vec![ValueType::tensor(DType::I64, &[Dim::Num(self.dims.len())])])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::ExtentValues(ExtentValues { dims: bind(&self.dims, bindings) }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let dims: Vec<i64> =
            self.dims.iter().map(|dim| dim.eval(cx.bindings()).map(|n| n as i64)).collect::<Result<_, _>>()?;
        cx.put(0, &dims)
    }
}

/// `start, start + delta, …` below (above, where delta is negative) `limit` (ONNX Range).
///
/// Inputs: start, limit, delta: scalars (or single elements) of one float or integer dtype. Output: `[len]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// How many there are: known by the importer, or a symbol that gets its value when the node has run.
    pub len: Dim,
}

impl Operator for Range {
    fn name(&self) -> &'static str {
        "Range"
    }

    fn attributes(&self) -> String {
        format!(" {{len={}}}", self.len)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=3, "3")?;
        let (dtype, _) = cx.tensor(0)?;
        if !(dtype.is_float() || dtype.is_int()) {
            return Err(OpError::DType { input: 0, expected: "a number", found: dtype.to_string() });
        }
        for input in 0..3 {
            let shape = cx.typed(input, &[dtype], "of the first input's dtype")?;
            if product(shape).differs(&Dim::Num(1)) {
                return Err(OpError::Shape(format!("input {input} is {}, no single number", show(shape))));
            }
        }
        Ok(vec![ValueType::tensor(dtype, std::slice::from_ref(&self.len))])
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(Op::Range(Range { len: self.len.bind(bindings) }))
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        /// More is no range but an attack on memory.
        const MOST: usize = 1 << 28;
        let dtype = cx.tensor(0)?.dtype();
        let one = |input: usize| Numbers::load(cx.tensor(input)?);
        let check = |n: f64| {
            let n = n.max(0.0);
            if n.is_nan() || n > MOST as f64 {
                return Err(OpError::Shape(format!("a range of {n} elements")));
            }
            Ok(n as usize)
        };
        let result = match (one(0)?, one(1)?, one(2)?) {
            (Numbers::Int(a), Numbers::Int(b), Numbers::Int(d)) => {
                let (a, b, d) = (a[0], b[0], d[0]);
                if d == 0 {
                    return Err(OpError::Shape("a range by steps of 0".into()));
                }
                let count = check(((b - a) as f64 / d as f64).ceil())?;
                let mut values = room(&[count])?;
                values.extend((0..count as i128).map(|i| a + i * d));
                Numbers::Int(values)
            }
            (a, b, d) => {
                let (a, b, d) = (a.to_f64()[0], b.to_f64()[0], d.to_f64()[0]);
                let count = check(((b - a) / d).ceil())?;
                Numbers::F64((0..count).map(|i| a + i as f64 * d).collect())
            }
        };
        let tensor = result.store(dtype, &[result.len()])?;
        cx.put_tensor(0, tensor)
    }
}

/// Keeps the elements on one side of a diagonal of the last two extents and makes the others 0 (ONNX Trilu). Input: a plain dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trilu {
    /// Whether the upper side stays.
    pub upper: bool,
    /// Which diagonal: 0 the main one, above it positive.
    pub k: i64,
}

impl Operator for Trilu {
    fn name(&self) -> &'static str {
        "Trilu"
    }

    fn attributes(&self) -> String {
        format!(" {{upper={}, k={}}}", self.upper, self.k)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(1..=1, "1")?;
        let (dtype, shape) = cx.tensor(0)?;
        plain(dtype, 0)?;
        if shape.len() < 2 {
            return Err(OpError::Shape(format!("{} is no matrix", show(shape))));
        }
        Ok(vec![ValueType::tensor(dtype, shape)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let x = cx.tensor(0)?.clone();
        let size = x.dtype().packing().1;
        let [.., rows, cols] = *x.shape() else { return Err(OpError::Shape("no matrix".into())) };
        let mut bytes = x.bytes().to_vec();
        for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
            let (row, col) = ((i / cols % rows) as i64, (i % cols) as i64);
            let distance = i128::from(col - row);
            let kept = if self.upper { distance >= i128::from(self.k) } else { distance <= i128::from(self.k) };
            if !kept {
                element.fill(0);
            }
        }
        cx.put_bytes(0, &bytes)
    }
}
