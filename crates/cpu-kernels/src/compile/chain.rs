//! Chains of element-wise operators that become one step.
//!
//! A node whose result one other of the kind alone reads, at the same extents, waits for it: the last of a chain computes them all. What such nodes
//! read stays until then; and should another step take the last one over, it is computed before that.

use core_tensor::op::{Granularity, Op};
use core_tensor::{BackendError, DType, Dim, Node, ValueId};

use super::integer::converts_bytes;
use super::{Compiler, Deal, Memory};
use crate::elementwise::fused::{self, Bytes, Expression, Fused, Leaf, Target};

/// Operators of a chain, at most.
const MOST: usize = 12;

impl Compiler<'_> {
    /// Whether a node is element by element over f32 of its result's extents, numbers and rows, or between these and bytes.
    fn is_elementwise(&self, node: &Node) -> bool {
        let graph = self.graph;
        let Some((_, extents)) = graph.tensor_type(node.outputs[0]) else { return false };
        let fits = |id: &Option<ValueId>| {
            let ty = id.and_then(|id| graph.tensor_type(id));
            ty.is_some_and(|(dtype, shape)| dtype == DType::F32 && broadcasts(shape, extents))
        };
        match &node.op {
            Op::Unary(op) => !op.is_predicate() && fits(&node.inputs[0]) && !extents.is_empty(),
            Op::Binary(op) => !op.is_comparison() && node.inputs.iter().all(fits) && !extents.is_empty(),
            Op::QuantizeLinear(op) => op.granularity == Granularity::Tensor && converts_bytes(graph, node),
            Op::DequantizeLinear(op) => op.granularity == Granularity::Tensor && converts_bytes(graph, node),
            _ => false,
        }
    }

    /// Leaves a node to the only one that reads its result, if that is element-wise, too. `false` where it must be computed.
    fn defer(&mut self, i: usize) -> bool {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let y = node.outputs[0];
        let Some(reader) = self.sole_reader(y).filter(|reader| !self.taken.contains(reader)) else { return false };
        let next = &graph.nodes()[reader];
        let same =
            graph.tensor_type(next.outputs[0]).map(|(_, shape)| shape) == graph.tensor_type(y).map(|(_, shape)| shape);
        // The scale of a quantization is no operand of the kind.
        let operand = !matches!(next.op, Op::QuantizeLinear(_) | Op::DequantizeLinear(_)) || next.inputs[0] == Some(y);
        let floats = matches!(graph.tensor_type(y), Some((DType::F32, _)));
        if !(floats && same && operand && self.is_elementwise(next)) {
            return false;
        }
        self.deferred.insert(i);
        true
    }

    /// Compiles a node of a chain, or leaves it to a later one; `false` where another kernel has to.
    pub(super) fn chain_node(&mut self, i: usize) -> Result<bool, BackendError> {
        let node = &self.graph.nodes()[i];
        if !self.is_elementwise(node) {
            return Ok(false);
        }
        let expression = self.expression(i);
        if expression.as_ref().is_some_and(|e| e.operators() < MOST && e.depth() < fused::MAX_DEPTH) && self.defer(i) {
            return Ok(true);
        }
        self.compute_chain(i)
    }

    /// Computes what a step reads, should it have been left to a later one.
    pub(super) fn materialize(&mut self, id: ValueId) -> Result<(), BackendError> {
        let graph = self.graph;
        let root = self.root[id.index()];
        let waiting = self.deferred.iter().copied().find(|i| {
            let y = graph.nodes()[*i].outputs[0];
            y == id || self.root[y.index()] == root
        });
        let Some(i) = waiting else { return Ok(()) };
        self.deferred.remove(&i);
        if !self.compute_chain(i)? {
            self.node_alone(i)?;
        }
        Ok(())
    }

    /// Drafts a step for node `i` and all that were left to it; `false` if it is one operator alone, or cannot be had in one step.
    fn compute_chain(&mut self, i: usize) -> Result<bool, BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let Some(mut expression) = self.expression(i) else { return Ok(false) };
        let quantize = matches!(node.op, Op::QuantizeLinear(_));
        if expression.operators() + usize::from(quantize) < 2 || expression.depth() > fused::MAX_DEPTH {
            return Ok(false);
        }
        let y = node.outputs[0];
        self.undefer(i);
        let mut leaves = Vec::new();
        expression.leaves(&mut leaves);
        // Images of bytes stay as they lie, if all do and the result is one.
        let lies = |leaf: &&Leaf| match leaf {
            Leaf::Bytes(bytes) => self.unplain.contains(&bytes.value) && self.blocked.contains_key(&bytes.value),
            Leaf::Number(_) => true,
            Leaf::Floats(_) | Leaf::Row(_) => false,
        };
        let any = leaves.iter().any(|leaf| matches!(leaf, Leaf::Bytes(_)));
        let by_pixels = quantize && any && leaves.iter().all(lies) && self.is_byte_image(y);
        let reads: Vec<ValueId> = leaves
            .iter()
            .flat_map(|leaf| match leaf {
                Leaf::Floats(id) | Leaf::Number(id) | Leaf::Row(id) => vec![*id],
                Leaf::Bytes(bytes) => {
                    let value = (!by_pixels).then_some(bytes.value);
                    [bytes.scale].into_iter().chain(bytes.zero).chain(value).collect()
                }
            })
            .chain(if quantize { node.inputs[1..].iter().copied().flatten().collect() } else { Vec::new() })
            .collect();
        let mut images = Vec::new();
        if by_pixels {
            self.set_pixels(&mut expression, &mut images)?;
        }
        let target = if quantize {
            let (scale, zero) = (self.input(node, 1)?, node.inputs.get(2).copied().flatten());
            let signed = matches!(graph.tensor_type(y), Some((DType::I8, _)));
            let pixels = if by_pixels { Some(self.new_pixels(y)?) } else { None };
            Target::Bytes(Bytes { value: y, pixels, signed, scale, zero })
        } else {
            let same = |leaf: &&Leaf| match leaf {
                Leaf::Floats(id) => self.dies_at(*id, i),
                _ => false,
            };
            let mut leaves = Vec::new();
            expression.leaves(&mut leaves);
            if let Some(Leaf::Floats(id)) = leaves.iter().copied().find(|leaf| same(leaf)) {
                let id = *id;
                // Another operand of the same buffer would be of other extents.
                let alone = reads.iter().all(|other| {
                    self.memory(*other) != self.memory(id) || graph.tensor_type(*other) == graph.tensor_type(y)
                });
                if alone {
                    self.in_place(y, id, i);
                }
            }
            Target::Floats(y)
        };
        let result = match &target {
            Target::Bytes(Bytes { pixels: Some(pixels), .. }) => Some(pixels.scratch),
            _ => None,
        };
        let scratch = self.scratch("blocks of elements", fused::scratch_bytes() * self.threads);
        let writes: Vec<ValueId> = if result.is_none() { vec![y] } else { Vec::new() };
        self.draft(Fused { expression, y: target, scratch }, &reads, &writes, Deal::Own);
        images.into_iter().for_each(|image| self.last_reads(Memory::Scratch(image)));
        result.into_iter().chain([scratch]).for_each(|buffer| self.last_writes(Memory::Scratch(buffer)));
        Ok(true)
    }

    /// Reads bytes by pixels.
    fn set_pixels(&mut self, e: &mut Expression, images: &mut Vec<usize>) -> Result<(), BackendError> {
        match e {
            Expression::Leaf(Leaf::Bytes(bytes)) => {
                let pixels = self.pixels(bytes.value)?;
                images.push(pixels.scratch);
                bytes.pixels = Some(pixels);
            }
            Expression::Leaf(_) => {}
            Expression::Unary(_, x) => self.set_pixels(x, images)?,
            Expression::Binary(_, both) => {
                for x in both.iter_mut() {
                    self.set_pixels(x, images)?;
                }
            }
        }
        Ok(())
    }

    /// Nodes that were left to node `i` are done with it.
    fn undefer(&mut self, i: usize) {
        let graph = self.graph;
        for id in graph.nodes()[i].inputs.iter().flatten() {
            let made = graph.nodes().iter().position(|node| node.outputs.contains(id));
            if let Some(made) = made.filter(|made| self.deferred.remove(made)) {
                self.undefer(made);
            }
        }
    }

    /// The expression that a node and those left to it compute.
    fn expression(&self, i: usize) -> Option<Expression> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (_, extents) = graph.tensor_type(node.outputs[0])?;
        let operand = |at: usize| self.operand(node.inputs.get(at).copied().flatten()?, extents);
        match &node.op {
            Op::Unary(op) => Some(Expression::Unary(*op, Box::new(operand(0)?))),
            Op::Binary(op) => Some(Expression::Binary(*op, Box::new([operand(0)?, operand(1)?]))),
            Op::QuantizeLinear(_) => operand(0),
            Op::DequantizeLinear(_) => {
                let value = node.inputs[0]?;
                let signed = matches!(graph.tensor_type(value), Some((DType::I8, _)));
                let (scale, zero) = (node.inputs[1]?, node.inputs.get(2).copied().flatten());
                Some(Expression::Leaf(Leaf::Bytes(Bytes { value, pixels: None, signed, scale, zero })))
            }
            _ => None,
        }
    }

    fn operand(&self, id: ValueId, extents: &[Dim]) -> Option<Expression> {
        let graph = self.graph;
        let made = self.deferred.iter().copied().find(|made| graph.nodes()[*made].outputs.contains(&id));
        if let Some(made) = made {
            return self.expression(made);
        }
        let (_, shape) = graph.tensor_type(id)?;
        Some(Expression::Leaf(match shape {
            shape if shape == extents => Leaf::Floats(id),
            shape if shape.iter().all(|dim| *dim == Dim::Num(1)) => Leaf::Number(id),
            _ => Leaf::Row(id),
        }))
    }
}

/// Whether an operand is of the result's extents, one number, or a row.
fn broadcasts(shape: &[Dim], extents: &[Dim]) -> bool {
    let single = |shape: &[Dim]| shape.iter().all(|dim| *dim == Dim::Num(1));
    let row = |shape: &[Dim]| match shape.split_last() {
        Some((last, outer)) => Some(last) == extents.last() && single(outer) && shape.len() <= extents.len(),
        None => false,
    };
    shape == extents || single(shape) || row(shape)
}
