//! Element-wise functions.

use core_tensor::op::{Binary, Op, Unary};
use core_tensor::{BackendError, DType, Dim, ValueId};

use super::nodes::known;
use super::{Compiler, ELEMENT_THREADS, Waiting};
use crate::elementwise::{Function, binary_code, cast_code, gate_code, integer_code, integer_function, truth_code};
use crate::plan::{Access, Dispatch, Memory};
use crate::step::product;
use crate::walk::{MOST_EXTENTS, Walk};

impl Compiler<'_> {
    pub(super) fn unary(&mut self, i: usize, op: Unary) -> Result<(), BackendError> {
        let y = self.graph.nodes()[i].outputs[0];
        if self.tensor(y)?.0 == DType::F32 && self.feeds_products(y) && Function::of(op).is_some_and(Function::fuses) {
            // What brings it into the tiles of the products applies it on its way.
            self.waiting.insert(y, Waiting::Unary(i));
            return Ok(());
        }
        self.unary_now(i)
    }

    /// The same by a kernel of its own.
    pub(super) fn unary_now(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::Unary(op) = node.op else { return Err(BackendError::Mismatch("function and node")) };
        let (x, y) = (self.input(node, 0)?, node.outputs[0]);
        self.settle(x)?;
        let (from, count) = (self.memory(x), self.count(y)?);
        if let Some((dtype, code)) = truth_code(op) {
            let to = self.memory(y);
            self.convert(&node.name, (known(cast_code(dtype))?, code), &count, from, to);
            return Ok(());
        }
        if self.tensor(x)?.0 != DType::F32 {
            let codes = known(integer_function(op, self.tensor(x)?.0))?;
            let shape = self.tensor(x)?.1;
            return self.integers(i, codes, Walk::broadcast(&shape, &[&shape, &shape]), [x, x]);
        }
        let function = known(Function::of(op))?;
        self.in_place(y, x, i);
        let dispatch = Dispatch::new(&node.name, "unary", ELEMENT_THREADS)
            .constant(1, function.code)
            .read(1, from)
            .write(2, self.memory(y))
            .push([self.values.word(&count), function.p.to_bits(), function.q.to_bits()])
            .grid(self.linear_grid(&count));
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn gated(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let (gate, up, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let count = self.count(y)?;
        let dispatch = Dispatch::new(&node.name, "gated", ELEMENT_THREADS)
            .constant(1, known(gate_code(op.activation))?)
            .write(3, self.memory(y))
            .push([self.values.word(&count)])
            .grid(self.linear_grid(&count));
        let dispatch = self.reads(dispatch, 1, gate)?;
        let dispatch = self.reads(dispatch, 2, up)?;
        self.emit(dispatch);
        Ok(())
    }

    /// Push constants of a walk.
    fn walk_words(&mut self, walk: &Walk) -> Vec<u32> {
        let mut push = vec![self.values.word(&product(&walk.dims))];
        for list in std::iter::once(&walk.dims).chain(&walk.strides) {
            push.extend((0..MOST_EXTENTS).map(|d| list.get(d).map_or(1, |dim| self.values.word(dim))));
        }
        push
    }

    pub(super) fn binary(&mut self, i: usize, op: Binary) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (a, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        self.settle(a)?;
        self.settle(b)?;
        let (dtype, a_shape) = self.tensor(a)?;
        let (b_shape, y_shape) = (self.tensor(b)?.1, self.tensor(y)?.1);
        let walk = Walk::broadcast(&y_shape, &[&a_shape, &b_shape]);
        let Some((kind, code)) = binary_code(op, dtype) else {
            return self.integers(i, known(integer_code(op, dtype))?, walk, [a, b]);
        };
        let (left, right) = (self.memory(a), self.memory(b));
        // Only one operand can be taken over, whose elements are read where the result's are written; bytes are read and written four at once.
        if a != b && left != right && kind != 3 {
            let same = |x: ValueId| self.graph.tensor_type(x) == self.graph.tensor_type(y);
            if same(a) && self.dies_at(a, i) {
                self.in_place(y, a, i);
            } else {
                self.in_place(y, b, i);
            }
        }
        let count = product(&y_shape);
        let items = if code >= 16 { count.div_ceil(4.into()) } else { count };
        let push = self.walk_words(&walk);
        let dispatch = Dispatch::new(&node.name, format!("binary.{kind}"), ELEMENT_THREADS)
            .constant(1, code)
            .constant(2, walk.dims.len() as u32)
            .read(1, left)
            .read(2, right)
            .write(3, self.memory(y))
            .push(push)
            .grid(self.linear_grid(&items));
        self.emit(dispatch);
        Ok(())
    }

    /// A function of integers of any size.
    fn integers(
        &mut self,
        i: usize,
        (kind, code): (u32, u32),
        walk: Walk,
        operands: [ValueId; 2],
    ) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let y = node.outputs[0];
        let (dtype, shape) = self.tensor(y)?;
        let mut push = self.walk_words(&walk);
        push.insert(1, kind);
        let mut dispatch = Dispatch::new(&node.name, "binary_integer", ELEMENT_THREADS)
            .constant(1, code)
            .constant(2, walk.dims.len() as u32)
            .write(3, Memory::Value(y))
            .bind(7, Memory::Status, Access::ReadWrite)
            .push(push)
            .grid(self.word_grid(&product(&shape), dtype.packing().1));
        for (binding, id) in (1..).zip(operands) {
            dispatch = self.reads(dispatch, binding, id)?;
        }
        self.emit(dispatch);
        Ok(())
    }

    pub(super) fn choose(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (c, a, b) = (self.input(node, 0)?, self.input(node, 1)?, self.input(node, 2)?);
        let y = node.outputs[0];
        let (dtype, shape) = self.tensor(y)?;
        let shapes = [self.tensor(c)?.1, self.tensor(a)?.1, self.tensor(b)?.1];
        let walk = Walk::broadcast(&shape, &[&shapes[0], &shapes[1], &shapes[2]]);
        let walk = walk.in_words(dtype.packing().1 / 4, &[true, false, false]);
        let count: Dim = product(&walk.dims);
        let push = self.walk_words(&walk);
        let mut dispatch = Dispatch::new(&node.name, "where", ELEMENT_THREADS)
            .constant(2, walk.dims.len() as u32)
            .write(4, self.memory(y))
            .push(push)
            .grid(self.linear_grid(&count));
        for (binding, id) in (1..).zip([c, a, b]) {
            dispatch = self.reads(dispatch, binding, id)?;
        }
        self.emit(dispatch);
        Ok(())
    }
}
