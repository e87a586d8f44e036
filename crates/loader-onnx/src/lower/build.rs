//! Making nodes: constants are computed at once, integers that follow from extents stay symbolic, everything else becomes nodes.

use core_tensor::op::{
    Binary, Cast, Concat, Expand, ExtentValues, Gather, Inference, Op, Reduce, ReduceKind, Reshape, Slice, Transpose,
    Unary,
};
use core_tensor::{Bindings, DType, Dim, Tensor, ValueId, ValueType, Weight, byte_len, evaluate};

use super::Lower;
use super::fail::{Res, fail};
use super::operand::{MAX_INTS, Operand, held};
use super::sym_int::{MAX_EXTENT_TERMS, SymInt, is_short};

/// Elements of the inputs of a node whose result is computed when the model is imported, at most, and of its outputs.
const MAX_FOLDED_INPUTS: usize = 1 << 18;
const MAX_FOLDED_OUTPUT: usize = 1 << 16;
/// Elements that are computed so in all.
const MAX_FOLDED: usize = 1 << 26;
/// Constants of half precision up to this are stored as f32, larger ones as they are.
const SMALL: usize = 4096;

impl<'a> Lower<'a> {
    /// The operand's value in the innermost graph, in the dtype in which it is held.
    pub(crate) fn id(&mut self, operand: &Operand) -> Res<ValueId> {
        self.id_at(self.levels.len().saturating_sub(1), operand)
    }

    fn id_at(&mut self, level: usize, operand: &Operand) -> Res<ValueId> {
        let Some(here) = self.levels.get_mut(level) else { return fail("a value of no graph") };
        if let Some(id) = here.known.get(&operand.key()) {
            return Ok(*id);
        }
        let id = if let Some(tensor) = operand.tensor() {
            let half = matches!(tensor.dtype(), DType::F16 | DType::BF16);
            if half && tensor.len() > SMALL {
                let stored = self.stored_at(level, operand, tensor)?;
                let name = self.name.clone();
                self.levels[level].graph.add(&name, Op::Cast(Cast { to: DType::F32 }), &[stored])?
            } else {
                let tensor = held_tensor(tensor)?;
                self.weight_at(level, operand, tensor)
            }
        } else if let Some(ints) = operand.symbolic() {
            let (ints, dtype, shape) = (ints.to_vec(), operand.dtype(), operand.shape().to_vec());
            self.extent_values(level, &ints, dtype, &shape)?
        } else {
            let Some(outer) = level.checked_sub(1) else { return fail("a value is used outside of its graph") };
            self.id_at(outer, operand)?;
            let here = &mut self.levels[level];
            here.capture(operand)
        };
        self.levels[level].known.insert(operand.key(), id);
        Ok(id)
    }

    fn weight_at(&mut self, level: usize, operand: &Operand, tensor: Tensor) -> ValueId {
        let here = &mut self.levels[level];
        let mut name = operand.name().to_owned();
        if name.is_empty() {
            name = format!("{}.constant", self.name);
        }
        if !here.names.insert(name.clone()) {
            name = format!("{name}.{}", operand.key());
            here.names.insert(name.clone());
        }
        here.graph.weight(&name, Weight::stored(tensor))
    }

    fn stored_at(&mut self, level: usize, operand: &Operand, tensor: &Tensor) -> Res<ValueId> {
        if let Some(id) = self.levels[level].stored.get(&operand.key()) {
            return Ok(*id);
        }
        let id = self.weight_at(level, operand, tensor.clone());
        self.levels[level].stored.insert(operand.key(), id);
        Ok(id)
    }

    /// The operand's value for operators that take weights of any float dtype.
    pub(crate) fn weight(&mut self, operand: &Operand) -> Res<ValueId> {
        match operand.tensor() {
            Some(tensor) if matches!(tensor.dtype(), DType::F16 | DType::BF16) => {
                let tensor = tensor.clone();
                self.stored_at(self.levels.len().saturating_sub(1), operand, &tensor)
            }
            _ => self.id(operand),
        }
    }

    /// Integers that follow from extents, as a value.
    fn extent_values(&mut self, level: usize, ints: &[SymInt], dtype: DType, shape: &[Dim]) -> Res<ValueId> {
        let name = self.name.clone();
        let magnitude = |int: &SymInt| match int {
            SymInt::Num(n) => usize::try_from(n.unsigned_abs()).ok().map(|n| (Dim::Num(n), n == 0 || ints.is_empty())),
            SymInt::Dim(dim) | SymInt::Neg(dim) => Some((dim.clone(), false)),
            SymInt::Unknown => None,
        };
        let dims: Option<Vec<Dim>> = ints.iter().map(|int| magnitude(int).map(|(dim, _)| dim)).collect();
        let Some(dims) = dims else { return fail("a value that is not known is used as one") };
        let count = ints.len();
        let graph = &mut self.levels[level].graph;
        let mut id = graph.add(&name, Op::ExtentValues(ExtentValues { dims }), &[])?;
        if ints.iter().any(|int| matches!(int, SymInt::Neg(_) | SymInt::Num(..0))) {
            let sign = |int: &SymInt| if matches!(int, SymInt::Neg(_) | SymInt::Num(..0)) { -1i64 } else { 1 };
            let signs: Vec<i64> = ints.iter().map(sign).collect();
            let signs = graph.weight(&format!("{name}.signs"), Weight::stored(Tensor::from_slice(&[count], &signs)?));
            id = graph.add(&name, Op::Binary(Binary::Mul), &[id, signs])?;
        }
        if shape.len() != 1 {
            id = graph.add(&name, Op::Reshape(Reshape { shape: shape.to_vec() }), &[id])?;
        }
        if held(dtype) != DType::I64 {
            id = graph.add(&name, Op::Cast(Cast { to: held(dtype) }), &[id])?;
        }
        Ok(id)
    }

    /// A node with one output.
    pub(crate) fn op(&mut self, op: Op, inputs: &[&Operand]) -> Res<Operand> {
        let inputs: Vec<Option<&Operand>> = inputs.iter().copied().map(Some).collect();
        self.ops(op, &inputs)?.into_iter().next().ok_or_else(|| "the operator gives nothing".into())
    }

    /// A node with any number of inputs and outputs. Results are declared as the first float input is, where that is of half precision.
    pub(crate) fn ops(&mut self, op: Op, inputs: &[Option<&Operand>]) -> Res<Vec<Operand>> {
        self.ops_with(op, inputs, &[])
    }

    /// The same, where some inputs may be weights of any float dtype.
    pub(crate) fn ops_with(&mut self, op: Op, inputs: &[Option<&Operand>], weights: &[usize]) -> Res<Vec<Operand>> {
        let half = inputs.iter().flatten().map(|x| x.dtype()).find(|dtype| matches!(dtype, DType::F16 | DType::BF16));
        let declare = |dtype: DType| match half {
            Some(half) if dtype == DType::F32 => half,
            _ => dtype,
        };
        if let Some(tensors) = self.fold(&op, inputs)? {
            let constant = |tensor: Tensor| {
                let key = self.next_key();
                Operand::constant(key, declare(tensor.dtype()), tensor, "")
            };
            return Ok(tensors.into_iter().map(constant).collect());
        }
        let mut ids = Vec::with_capacity(inputs.len());
        for (i, input) in inputs.iter().enumerate() {
            ids.push(match input {
                None => None,
                Some(operand) if weights.contains(&i) => Some(self.weight(operand)?),
                Some(operand) => Some(self.id(operand)?),
            });
        }
        let name = self.name.clone();
        let outputs = self.level().graph.add_node(&name, op, ids)?;
        let mut all = Vec::with_capacity(outputs.len());
        for id in outputs {
            let Some((dtype, shape)) = self.level().graph.tensor_type(id) else { return fail("a state token") };
            let (dtype, shape) = (declare(dtype), shape.to_vec());
            if !shape.iter().all(|dim| is_short(dim, MAX_EXTENT_TERMS)) {
                return fail("its extents are expressions of too many terms");
            }
            all.push(self.known(id, dtype, shape, None));
        }
        Ok(all)
    }

    /// The results of a node of constants, if they are small.
    fn fold(&mut self, op: &Op, inputs: &[Option<&Operand>]) -> Res<Option<Vec<Tensor>>> {
        let foreign = matches!(op, Op::Random(_) | Op::If(_) | Op::Loop(_) | Op::DequantizeLinear(_) | Op::Custom(_));
        if foreign || op.has_effect() || inputs.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut count = 0usize;
        for input in inputs.iter().flatten() {
            let Some(tensor) = input.tensor() else { return Ok(None) };
            count = count.saturating_add(tensor.len());
        }
        if count > MAX_FOLDED_INPUTS {
            return Ok(None);
        }
        let types: Vec<Option<ValueType>> =
            inputs.iter().map(|input| input.map(|x| ValueType::tensor(held(x.dtype()), x.shape()))).collect();
        let types: Vec<Option<&ValueType>> = types.iter().map(Option::as_ref).collect();
        let outputs = match op.infer(&Inference { inputs: &types, states: &[] }) {
            Ok(outputs) => outputs,
            Err(error) => return fail(format!("{}: {error}", op.name())),
        };
        let mut size = 0usize;
        for output in &outputs {
            let shape: Option<Vec<usize>> =
                output.as_tensor().and_then(|(_, shape)| shape.iter().map(Dim::as_num).collect());
            // Data-dependent extents are known when the values are; they are no larger than what they come from, but for ranges.
            let Some(shape) = shape else {
                if matches!(op, Op::Range(_)) {
                    return Ok(None);
                }
                continue;
            };
            size = size.saturating_add(byte_len(DType::U8, &shape).unwrap_or(usize::MAX));
        }
        if size > MAX_FOLDED_OUTPUT || self.folded.saturating_add(size) > MAX_FOLDED {
            return Ok(None);
        }
        self.folded += size + 1;
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            tensors.push(match input.and_then(|input| input.tensor()) {
                Some(tensor) => Some(held_tensor(tensor)?),
                None => None,
            });
        }
        // What cannot be computed now is computed, or fails, when the graph runs.
        Ok(evaluate(op, &tensors, &Bindings::new()).ok())
    }

    /// Integers that follow from extents: a constant if all are numbers.
    pub(crate) fn integers(&mut self, dtype: DType, shape: &[Dim], ints: Vec<SymInt>) -> Res<Operand> {
        let known: Option<Vec<i64>> = ints.iter().map(SymInt::as_num).collect();
        let extents: Option<Vec<usize>> = shape.iter().map(Dim::as_num).collect();
        if let (Some(known), Some(extents)) = (known, extents) {
            let tensor = Tensor::from_slice(&extents, &known)?;
            let tensor = if dtype == DType::I64 { tensor } else { cast_tensor(tensor, held(dtype))? };
            let key = self.next_key();
            return Ok(Operand::constant(key, dtype, tensor, ""));
        }
        if ints.contains(&SymInt::Unknown) || !(dtype.is_int() || dtype == DType::Bool) {
            return fail("integers that are not known");
        }
        let key = self.next_key();
        Ok(Operand::node(key, dtype, shape.to_vec(), Some(ints)))
    }

    /// A vector of extents, i64.
    pub(crate) fn extents(&mut self, dims: &[Dim]) -> Res<Operand> {
        let ints = dims.iter().cloned().map(SymInt::of).collect();
        self.integers(DType::I64, &[Dim::Num(dims.len())], ints)
    }

    /// An operand with what is known of its elements.
    pub(crate) fn with_ints(&self, operand: Operand, ints: Option<Vec<SymInt>>) -> Operand {
        match ints {
            Some(ints) if !operand.is_constant() && ints.iter().any(|int| *int != SymInt::Unknown) => {
                Operand::node(operand.key(), operand.dtype(), operand.shape().to_vec(), Some(ints))
            }
            _ => operand,
        }
    }

    /// The same value declared with another dtype that is held alike.
    pub(crate) fn declare(&mut self, operand: &Operand, dtype: DType) -> Res<Operand> {
        if operand.dtype() == dtype {
            return Ok(operand.clone());
        }
        if let Some(tensor) = operand.tensor() {
            let tensor = held_tensor(tensor)?;
            let key = self.next_key();
            return Ok(Operand::constant(key, dtype, tensor, operand.name()));
        }
        let id = self.id(operand)?;
        Ok(self.known(id, dtype, operand.shape().to_vec(), None))
    }

    /// A vector constant.
    pub(crate) fn vector<T: core_tensor::Element>(&mut self, elements: &[T]) -> Res<Operand> {
        let tensor = Tensor::from_slice(&[elements.len()], elements)?;
        Ok(self.constant(tensor, ""))
    }

    /// A scalar constant of a dtype.
    pub(crate) fn scalar(&mut self, dtype: DType, value: f64) -> Res<Operand> {
        let tensor = match dtype {
            DType::I64 => Tensor::from_slice(&[], &[value as i64])?,
            DType::F32 => Tensor::from_slice(&[], &[value as f32])?,
            _ => cast_tensor(Tensor::from_slice(&[], &[value])?, held(dtype))?,
        };
        let key = self.next_key();
        Ok(Operand::constant(key, dtype, tensor, ""))
    }

    /// `a op b`, of one dtype.
    pub(crate) fn binary(&mut self, op: Binary, a: &Operand, b: &Operand) -> Res<Operand> {
        self.op(Op::Binary(op), &[a, b])
    }

    pub(crate) fn add(&mut self, a: &Operand, b: &Operand) -> Res<Operand> {
        self.binary(Binary::Add, a, b)
    }

    pub(crate) fn sub(&mut self, a: &Operand, b: &Operand) -> Res<Operand> {
        self.binary(Binary::Sub, a, b)
    }

    pub(crate) fn mul(&mut self, a: &Operand, b: &Operand) -> Res<Operand> {
        self.binary(Binary::Mul, a, b)
    }

    pub(crate) fn div(&mut self, a: &Operand, b: &Operand) -> Res<Operand> {
        self.binary(Binary::Div, a, b)
    }

    pub(crate) fn unary(&mut self, op: Unary, x: &Operand) -> Res<Operand> {
        self.op(Op::Unary(op), &[x])
    }

    /// Another shape for the same elements.
    pub(crate) fn reshape(&mut self, x: &Operand, shape: &[Dim]) -> Res<Operand> {
        if x.shape() == shape {
            return Ok(x.clone());
        }
        if let Some(ints) = x.symbolic()
            && !ints.contains(&SymInt::Unknown)
        {
            return self.integers(x.dtype(), shape, ints.to_vec());
        }
        if let Some(tensor) = x.tensor()
            && let Some(extents) = shape.iter().map(Dim::as_num).collect::<Option<Vec<_>>>()
            && let Ok(tensor) = tensor.reshaped(&extents)
        {
            let key = self.next_key();
            return Ok(Operand::constant(key, x.dtype(), tensor, x.name()));
        }
        let y = self.op(Op::Reshape(Reshape { shape: shape.to_vec() }), &[x])?;
        Ok(self.with_ints(y, x.ints()))
    }

    /// Extents of one at these places (of the result).
    pub(crate) fn unsqueeze(&mut self, x: &Operand, places: &[usize]) -> Res<Operand> {
        let rank = x.rank() + places.len();
        let mut old = x.shape().iter();
        let shape: Vec<Dim> = (0..rank)
            .map(|i| if places.contains(&i) { Dim::Num(1) } else { old.next().cloned().unwrap_or(Dim::Num(1)) })
            .collect();
        self.reshape(x, &shape)
    }

    /// Without the extents at these places, which must be 1.
    pub(crate) fn squeeze(&mut self, x: &Operand, places: &[usize]) -> Res<Operand> {
        for place in places {
            if x.shape().get(*place).is_some_and(|dim| dim.differs(&Dim::Num(1))) {
                return fail(format!("extent {place} is {}, not 1", x.shape()[*place]));
            }
        }
        let kept = x.shape().iter().enumerate().filter(|(i, _)| !places.contains(i));
        let shape: Vec<Dim> = kept.map(|(_, dim)| dim.clone()).collect();
        self.reshape(x, &shape)
    }

    /// Permutes extents.
    pub(crate) fn transpose(&mut self, x: &Operand, perm: &[usize]) -> Res<Operand> {
        if perm.iter().copied().eq(0..x.rank()) {
            return Ok(x.clone());
        }
        self.op(Op::Transpose(Transpose { perm: perm.to_vec() }), &[x])
    }

    /// One extent moved to the end; the permutation that undoes it comes with it.
    pub(crate) fn axis_last(&mut self, x: &Operand, axis: usize) -> Res<(Operand, Vec<usize>)> {
        let rank = x.rank();
        let perm: Vec<usize> = (0..rank).filter(|i| *i != axis).chain([axis]).collect();
        let back: Vec<usize> = (0..axis).chain([rank - 1]).chain(axis..rank - 1).collect();
        Ok((self.transpose(x, &perm)?, back))
    }

    /// The same numbers in another dtype.
    pub(crate) fn cast(&mut self, x: &Operand, to: DType) -> Res<Operand> {
        if x.dtype() == to {
            return Ok(x.clone());
        }
        if let Some(ints) = x.symbolic()
            && matches!(to, DType::I64 | DType::I32)
            && !ints.contains(&SymInt::Unknown)
        {
            return self.integers(to, x.shape(), ints.to_vec());
        }
        if held(x.dtype()) == held(to) && !x.dtype().is_int() && matches!(to, DType::F32) {
            return self.declare(x, to);
        }
        let y = match to {
            // Rounded, then held in f32.
            DType::F16 | DType::BF16 => {
                let rounded = self.op(Op::Cast(Cast { to }), &[x])?;
                if let Some(tensor) = rounded.tensor() {
                    let key = self.next_key();
                    Operand::constant(key, to, tensor.clone(), "")
                } else {
                    let id = self.id(&rounded)?;
                    let name = self.name.clone();
                    let id = self.level().graph.add(&name, Op::Cast(Cast { to: DType::F32 }), &[id])?;
                    self.known(id, to, x.shape().to_vec(), None)
                }
            }
            _ => {
                let id_free = x.clone();
                let y = self.op_plain(Op::Cast(Cast { to: held(to) }), &id_free)?;
                self.declare(&y, to)?
            }
        };
        let kept = match to {
            DType::I64 | DType::I32 if x.dtype().is_int() || x.dtype() == DType::Bool => x.ints(),
            _ => None,
        };
        Ok(self.with_ints(y, kept))
    }

    /// A node whose result is declared as what it is.
    fn op_plain(&mut self, op: Op, x: &Operand) -> Res<Operand> {
        let y = self.op(op, &[x])?;
        self.declare(&y, held(y.dtype()))
    }

    /// In f32, if it is of another float type.
    pub(crate) fn f32(&mut self, x: &Operand) -> Res<Operand> {
        if held(x.dtype()) == DType::F32 { Ok(x.clone()) } else { self.cast(x, DType::F32) }
    }

    /// Back to the dtype that a model declares, after [`Lower::f32`].
    pub(crate) fn back(&mut self, y: Operand, dtype: DType) -> Res<Operand> {
        if held(dtype) == held(y.dtype()) { self.declare(&y, dtype) } else { self.cast(&y, dtype) }
    }

    /// Broadcast to a shape.
    pub(crate) fn expand(&mut self, x: &Operand, shape: &[Dim]) -> Res<Operand> {
        if x.shape() == shape {
            return Ok(x.clone());
        }
        self.op(Op::Expand(Expand { shape: shape.to_vec() }), &[x])
    }

    /// Joined along an extent.
    pub(crate) fn concat(&mut self, parts: &[Operand], axis: usize) -> Res<Operand> {
        match parts {
            [] => fail("nothing to join"),
            [one] => Ok(one.clone()),
            _ => {
                let inputs: Vec<&Operand> = parts.iter().collect();
                self.op(Op::Concat(Concat { axis: axis as isize }), &inputs)
            }
        }
    }

    /// `len` elements of an extent from `start` on.
    pub(crate) fn slice(&mut self, x: &Operand, axis: usize, start: Dim, len: Dim) -> Res<Operand> {
        if start == Dim::Num(0) && x.shape().get(axis) == Some(&len) {
            return Ok(x.clone());
        }
        self.op(Op::Slice(Slice { axis: axis as isize, start, len, step: 1 }), &[x])
    }

    /// Elements of an extent by index.
    pub(crate) fn gather(&mut self, x: &Operand, axis: usize, indices: &Operand) -> Res<Operand> {
        let mut y = self.ops_with(Op::Gather(Gather { axis: axis as isize }), &[Some(x), Some(indices)], &[0])?;
        match y.pop() {
            Some(y) => self.declare(&y, x.dtype()),
            None => fail("nothing is gathered"),
        }
    }

    /// Reduces the last extent to 1.
    pub(crate) fn reduce_last(&mut self, kind: ReduceKind, x: &Operand) -> Res<Operand> {
        self.op(Op::Reduce(Reduce { kind }), &[x])
    }

    /// Numbers `0..len`, i64.
    pub(crate) fn iota(&mut self, len: Dim) -> Res<Operand> {
        if let Dim::Num(n) = len
            && n <= MAX_INTS
        {
            let all: Vec<i64> = (0..n as i64).collect();
            return self.vector(&all);
        }
        let (zero, one) = (self.scalar(DType::I64, 0.0)?, self.scalar(DType::I64, 1.0)?);
        let limit = self.integers(DType::I64, &[], vec![SymInt::of(len.clone())])?;
        self.op(Op::Range(core_tensor::op::Range { len }), &[&zero, &limit, &one])
    }
}

/// The tensor in the dtype in which it is held.
pub(crate) fn held_tensor(tensor: &Tensor) -> Res<Tensor> {
    Ok(match tensor.dtype() {
        DType::F16 | DType::BF16 => Tensor::from_slice(tensor.shape(), &tensor.to_f32()?)?,
        DType::I4 | DType::U4 => crate::tensor::unpack(tensor.dtype(), tensor.shape(), tensor.bytes())?,
        _ => tensor.clone(),
    })
}

/// The same numbers in another dtype.
pub(crate) fn cast_tensor(tensor: Tensor, to: DType) -> Res<Tensor> {
    let all = evaluate(&Op::Cast(Cast { to }), &[Some(tensor)], &Bindings::new());
    match all.map(|mut all| all.pop()) {
        Ok(Some(tensor)) => Ok(tensor),
        Ok(None) => fail("no conversion"),
        Err(error) => fail(error.to_string()),
    }
}
