//! Nodes added to a graph as terms of a formula.

use std::collections::HashMap;

use core_tensor::op::{Binary, Expand, MatMul, Op, Reduce, ReduceKind, Reshape, Transpose, Unary};
use core_tensor::{DType, Dim, Graph, GraphError, Shape, Tensor, ValueId, Weight};

use crate::GradientError;

/// A graph that grows.
pub(crate) struct Builder {
    pub(crate) graph: Graph,
    /// What new nodes are named after.
    pub(crate) part: String,
    constants: HashMap<u32, ValueId>,
}

type Made = Result<ValueId, GradientError>;

impl Builder {
    pub(crate) fn new(graph: Graph) -> Builder {
        Builder { graph, part: "gradient".into(), constants: HashMap::new() }
    }

    pub(crate) fn shape(&self, id: ValueId) -> Shape {
        self.graph.tensor_type(id).map(|(_, shape)| shape.to_vec()).unwrap_or_default()
    }

    pub(crate) fn op(&mut self, op: Op, inputs: &[ValueId]) -> Made {
        Ok(self.graph.add(&self.part, op, inputs)?)
    }

    /// A number, of rank 0.
    pub(crate) fn scalar(&mut self, value: f32) -> Made {
        if let Some(id) = self.constants.get(&value.to_bits()) {
            return Ok(*id);
        }
        let tensor = self.constant(&[], &[value])?;
        let id = self.graph.weight(&format!("gradient.constant.{value}"), Weight::stored(tensor));
        self.constants.insert(value.to_bits(), id);
        Ok(id)
    }

    fn constant(&self, shape: &[usize], values: &[f32]) -> Result<Tensor, GradientError> {
        let failed = |error: core_tensor::TensorError| GraphError::Op {
            node: self.part.clone(),
            op: "constant",
            source: error.into(),
        };
        Ok(Tensor::from_slice(shape, values).map_err(failed)?)
    }

    /// A vector of numbers; `what` they are, for its name.
    pub(crate) fn vector(&mut self, what: &str, values: &[f32]) -> Made {
        let tensor = self.constant(&[values.len()], values)?;
        Ok(self.graph.weight(&format!("{}.{what}", self.part), Weight::stored(tensor)))
    }

    pub(crate) fn unary(&mut self, op: Unary, x: ValueId) -> Made {
        self.op(Op::Unary(op), &[x])
    }

    pub(crate) fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> Made {
        self.op(Op::Binary(op), &[a, b])
    }

    pub(crate) fn add(&mut self, a: ValueId, b: ValueId) -> Made {
        self.binary(Binary::Add, a, b)
    }

    pub(crate) fn sub(&mut self, a: ValueId, b: ValueId) -> Made {
        self.binary(Binary::Sub, a, b)
    }

    pub(crate) fn mul(&mut self, a: ValueId, b: ValueId) -> Made {
        self.binary(Binary::Mul, a, b)
    }

    pub(crate) fn div(&mut self, a: ValueId, b: ValueId) -> Made {
        self.binary(Binary::Div, a, b)
    }

    pub(crate) fn square(&mut self, x: ValueId) -> Made {
        self.mul(x, x)
    }

    /// `x` times a number.
    pub(crate) fn scaled(&mut self, x: ValueId, factor: f32) -> Made {
        let factor = self.scalar(factor)?;
        self.mul(x, factor)
    }

    /// `x` and a number.
    pub(crate) fn shifted(&mut self, x: ValueId, offset: f32) -> Made {
        let offset = self.scalar(offset)?;
        self.add(x, offset)
    }

    /// A number less `x`.
    pub(crate) fn rest(&mut self, of: f32, x: ValueId) -> Made {
        let of = self.scalar(of)?;
        self.sub(of, x)
    }

    /// Compares `x` with a number; bool.
    pub(crate) fn compared(&mut self, op: Binary, x: ValueId, with: f32) -> Made {
        let with = self.scalar(with)?;
        self.binary(op, x, with)
    }

    /// `a` where a condition holds, else `b`.
    pub(crate) fn choose(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Made {
        self.op(Op::Where(core_tensor::op::Where), &[condition, a, b])
    }

    pub(crate) fn reduce(&mut self, kind: ReduceKind, x: ValueId) -> Made {
        self.op(Op::Reduce(Reduce { kind }), &[x])
    }

    pub(crate) fn matmul(&mut self, a: ValueId, b: ValueId, transpose_b: bool) -> Made {
        self.op(Op::MatMul(MatMul { transpose_b }), &[a, b])
    }

    /// The same elements in another shape.
    pub(crate) fn reshape(&mut self, x: ValueId, shape: &[Dim]) -> Made {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op(Op::Reshape(Reshape { shape: shape.to_vec() }), &[x])
    }

    pub(crate) fn transpose(&mut self, x: ValueId, perm: Vec<usize>) -> Made {
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(x);
        }
        self.op(Op::Transpose(Transpose { perm }), &[x])
    }

    /// The last two extents exchanged.
    pub(crate) fn transpose_last(&mut self, x: ValueId) -> Made {
        let rank = self.shape(x).len();
        let mut perm: Vec<usize> = (0..rank).collect();
        if let [.., a, b] = &mut perm[..] {
            std::mem::swap(a, b);
        }
        self.transpose(x, perm)
    }

    /// Broadcast to a shape.
    pub(crate) fn expand(&mut self, x: ValueId, shape: &[Dim]) -> Made {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op(Op::Expand(Expand { shape: shape.to_vec() }), &[x])
    }

    /// f32 from whatever float or block dtype a constant has.
    pub(crate) fn floats(&mut self, x: ValueId) -> Made {
        match self.graph.tensor_type(x) {
            Some((dtype, _)) if dtype != DType::F32 => {
                self.op(Op::Cast(core_tensor::op::Cast { to: DType::F32 }), &[x])
            }
            _ => Ok(x),
        }
    }

    /// Sums over the extents that broadcasting has expanded from a shape: what the gradient by a broadcast operand is.
    ///
    /// `ambiguous` makes the error where it is not known whether an extent was expanded.
    pub(crate) fn sum_to(&mut self, x: ValueId, shape: &[Dim], ambiguous: impl Fn(String) -> GradientError) -> Made {
        let from = self.shape(x);
        if from == shape {
            return Ok(x);
        }
        let Some(added) = from.len().checked_sub(shape.len()) else {
            // One extent less, by an operator whose gradient has a row of one.
            return self.reshape(x, shape);
        };
        let (mut kept, mut summed): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..added).collect());
        for (i, (have, want)) in from[added..].iter().zip(shape).enumerate() {
            let i = i + added;
            match (have == want, want) {
                (true, _) => kept.push(i),
                (false, Dim::Num(1)) => summed.push(i),
                // Both are the same number when the program runs: shape rules have seen to it.
                (false, Dim::Num(_)) => kept.push(i),
                _ if have.as_num().is_some_and(|n| n != 1) => {
                    return Err(ambiguous(format!("whether the extent {want} is 1 or {have} is not known")));
                }
                _ => return Err(ambiguous(format!("the extents {want} and {have} may differ"))),
            }
        }
        if summed.is_empty() {
            return self.reshape(x, shape);
        }
        let mut rows: Shape = kept.iter().map(|i| from[*i].clone()).collect();
        rows.push(summed.iter().fold(Dim::Num(1), |product, i| product.mul(from[*i].clone())));
        let x = self.transpose(x, kept.into_iter().chain(summed).collect())?;
        let x = self.reshape(x, &rows)?;
        let x = self.reduce(ReduceKind::Sum, x)?;
        self.reshape(x, shape)
    }
}
