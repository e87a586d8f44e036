//! Matrix products with what comes before and after them, as one step.

use std::collections::HashSet;

use core_tensor::op::{Binary, Op, Unary};
use core_tensor::{BackendError, DType, Node, ValueId};

use super::{Compiler, Deal, Memory};
use crate::linear::{Linear, Part, Prologue, Target};
use crate::matmul::{ActivationKind, PackedMatrix};
use crate::norm::Norm;
use crate::weights::MatrixId;

impl Compiler<'_> {
    /// Whether a matrix product is the first to read a normalized value, as its activations: that is then computed while they are packed.
    pub(super) fn is_prologue(&self, y: ValueId) -> bool {
        self.readers[y.index()].iter().min().is_some_and(|reader| self.is_product_of(*reader, y))
    }

    /// Whether a reader of a value is a matrix product with it as activations.
    fn is_product_of(&self, reader: usize, y: ValueId) -> bool {
        let node = self.graph.nodes().get(reader);
        node.is_some_and(|node| super::is_linear(self.graph, node) && node.inputs[0] == Some(y))
    }

    /// The normalization that a node is.
    pub(super) fn norm(&self, node: &Node) -> Option<Norm> {
        let input = |i: usize| node.inputs.get(i).copied().flatten();
        match node.op {
            Op::RmsNormalization(op) => Some(Norm::Rms { w: input(1)?, epsilon: op.epsilon }),
            Op::LayerNormalization(op) => Some(Norm::Layer { w: input(1), b: input(2), epsilon: op.epsilon }),
            _ => None,
        }
    }

    /// One step for all matrix products over the same activations as node `i`'s.
    pub(super) fn linear(&mut self, i: usize) -> Result<(), BackendError> {
        let graph = self.graph;
        let x = self.input(&graph.nodes()[i], 0)?;
        let siblings: Vec<usize> = self.readers[x.index()]
            .iter()
            .copied()
            .filter(|j| {
                graph.nodes().get(*j).is_some_and(|node| {
                    super::is_linear(graph, node) && node.inputs[0] == Some(x) && !self.taken.contains(j)
                })
            })
            .collect();
        let producer = graph.nodes().iter().find(|node| node.outputs.contains(&x));
        let (source, norm) = match producer {
            Some(node) if self.is_prologue(x) && self.norm(node).is_some() => {
                // Readers besides these products find the rows where they expect them.
                let store = self.readers[x.index()].iter().any(|reader| !self.is_product_of(*reader, x)).then_some(x);
                (self.input(node, 0)?, self.norm(node).map(|norm| Prologue { norm, store }))
            }
            _ => (x, None),
        };
        let norm_reads: Vec<ValueId> = norm.iter().flat_map(|prologue| prologue.norm.reads()).collect();
        let store = norm.and_then(|prologue| prologue.store);
        let mut parts: Vec<Part> = Vec::new();
        let mut reads = vec![source];
        let mut writes = Vec::new();
        reads.extend(&norm_reads);
        writes.extend(store);
        let mut done = HashSet::new();
        for j in &siblings {
            if !done.insert(*j) {
                continue;
            }
            self.taken.insert(*j);
            let weight = self.matrix(&graph.nodes()[*j])?;
            let (y, bias) = self.take_bias(graph.nodes()[*j].outputs[0]);
            let target = match self.take_gated(y, *j, &siblings, &mut done)? {
                Some(target) => target,
                None => match self.take_activation(y) {
                    (y, Some(activation)) => Target::Store(y, Some(activation)),
                    (y, None) => {
                        let used: Vec<ValueId> = [source].into_iter().chain(store).chain(norm_reads.clone()).collect();
                        self.take_residual(y, i, &used).map_or(Target::Store(y, None), Target::Accumulate)
                    }
                },
            };
            reads.extend(bias);
            match target {
                Target::Store(y, _) => writes.push(y),
                Target::Accumulate(y) => {
                    reads.push(y);
                    writes.push(y);
                }
                Target::Gated { up_bias, y, .. } => {
                    reads.extend(up_bias);
                    writes.push(y);
                }
            }
            parts.push(Part { weight, bias, target });
        }
        let (_, k) = self.matrix_shape(parts[0].weight)?;
        let rows = self.bound_rows(x)?;
        let mut kinds: Vec<(ActivationKind, usize)> = Vec::new();
        let mut part_kinds = Vec::new();
        for part in &parts {
            // Both weights of a gated part are of a kind.
            let kind = self.kind(part.weight);
            let known = kinds.iter().position(|(k, _)| *k == kind);
            part_kinds.push(known.unwrap_or(kinds.len()));
            if known.is_none() {
                let bytes = Linear::packed_bytes(kind, rows, k, self.threads);
                let name = if kind == ActivationKind::Q8 { "8-bit activations" } else { "packed activations" };
                kinds.push((kind, self.scratch(name, bytes)));
            }
        }
        let matrices = parts.iter().map(|part| self.weights.matrices.get(&part.weight));
        let groups: Vec<usize> = matrices.map(|matrix| matrix.map_or(0, PackedMatrix::groups)).collect();
        let units = [true, false].map(|few_rows| Linear::units(&groups, self.threads, few_rows));
        let scratch = self.scratch("linear tiles", Linear::scratch_bytes(k) * self.threads);
        let counter = self.counter();
        let buffers: Vec<usize> = kinds.iter().map(|(_, buffer)| *buffer).chain([scratch]).collect();
        let step = Linear { x: source, k, norm, parts, kinds, part_kinds, scratch, counter, units };
        self.draft(step, &reads, &writes, Deal::Own);
        buffers.into_iter().for_each(|buffer| self.last_writes(Memory::Scratch(buffer)));
        Ok(())
    }

    /// The matrix that a product multiplies with.
    fn matrix(&self, node: &Node) -> Result<MatrixId, BackendError> {
        let transposed = matches!(node.op, Op::MatMul(op) if !op.transpose_b);
        Ok(MatrixId { weight: self.input(node, 1)?, transposed })
    }

    /// What a weight is multiplied with.
    fn kind(&self, weight: MatrixId) -> ActivationKind {
        let matrix = self.weights.matrices.get(&weight);
        let fastest = matrix.map_or(ActivationKind::F32, PackedMatrix::fastest_kind);
        let bytes = matrix.is_some_and(|matrix| matches!(matrix.dtype(), DType::I8 | DType::U8));
        // Who writes down to dequantize asks for f32, unless 8 bits were asked for.
        match (if bytes { self.dequantized } else { self.activations }, fastest) {
            (ActivationKind::F32, _) | (ActivationKind::I16, ActivationKind::Q8) => ActivationKind::F32,
            (_, fastest) => fastest,
        }
    }

    fn matrix_shape(&self, weight: MatrixId) -> Result<(usize, usize), BackendError> {
        let matrix = self.weights.matrices.get(&weight).ok_or(BackendError::Mismatch("weights and graph"))?;
        Ok((matrix.n(), matrix.k()))
    }

    /// Takes over an addition of a bias to a product that nothing else reads.
    pub(super) fn take_bias(&mut self, y: ValueId) -> (ValueId, Option<ValueId>) {
        let Some((reader, bias)) = self.bias_addition(y) else { return (y, None) };
        self.taken.insert(reader);
        (self.graph.nodes()[reader].outputs[0], Some(bias))
    }

    /// The addition of a bias that alone reads a product, and the bias.
    fn bias_addition(&self, y: ValueId) -> Option<(usize, ValueId)> {
        let (reader, other) = self.sole_addition(y)?;
        let n = self.graph.tensor_type(y).and_then(|(_, shape)| shape.last().cloned());
        let is_bias = self.graph.weight_of(other).is_some()
            && self.graph.tensor_type(other).is_some_and(|(_, shape)| shape.len() == 1 && shape.first() == n.as_ref());
        is_bias.then_some((reader, other))
    }

    /// The addition that alone reads a value, and its other operand.
    pub(super) fn sole_addition(&self, y: ValueId) -> Option<(usize, ValueId)> {
        let reader = self.sole_reader(y)?;
        let node = &self.graph.nodes()[reader];
        if !matches!(node.op, Op::Binary(Binary::Add)) || self.taken.contains(&reader) {
            return None;
        }
        match node.inputs[..] {
            [Some(a), Some(b)] if a == y && b != y => Some((reader, b)),
            [Some(a), Some(b)] if b == y => Some((reader, a)),
            _ => None,
        }
    }

    /// Takes over a gated activation of this product and a sibling.
    fn take_gated(
        &mut self,
        y: ValueId,
        j: usize,
        siblings: &[usize],
        done: &mut HashSet<usize>,
    ) -> Result<Option<Target>, BackendError> {
        let graph = self.graph;
        let Some(reader) = self.sole_reader(y) else { return Ok(None) };
        let node = &graph.nodes()[reader];
        let Op::GatedActivation(op) = &node.op else { return Ok(None) };
        // Only the gate's side takes it: the products come in the order of the graph, so the up side may come first and waits.
        let [Some(gate), Some(up)] = node.inputs[..] else { return Ok(None) };
        if gate != y || gate == up {
            return Ok(None);
        }
        for sibling in siblings.iter().filter(|sibling| **sibling != j && !done.contains(sibling)) {
            let product = graph.nodes()[*sibling].outputs[0];
            let addition = self.bias_addition(product);
            let value = addition.map_or(product, |(reader, _)| graph.nodes()[reader].outputs[0]);
            if value != up || self.sole_reader(value) != Some(reader) {
                continue;
            }
            let weight = self.matrix(&graph.nodes()[*sibling])?;
            let own = self.matrix(&graph.nodes()[j])?;
            if self.kind(weight) != self.kind(own) || self.matrix_shape(weight)?.0 != self.matrix_shape(own)?.0 {
                continue;
            }
            let (_, up_bias) = self.take_bias(product);
            done.insert(*sibling);
            self.taken.insert(*sibling);
            self.taken.insert(reader);
            let target = Target::Gated { up: weight, up_bias, activation: op.activation, y: node.outputs[0] };
            return Ok(Some(target));
        }
        Ok(None)
    }

    /// Takes over a function of a product that nothing else reads.
    pub(super) fn take_activation(&mut self, y: ValueId) -> (ValueId, Option<Unary>) {
        let Some(reader) = self.sole_reader(y) else { return (y, None) };
        let node = &self.graph.nodes()[reader];
        match node.op {
            Op::Unary(op) if !op.is_predicate() && !self.taken.contains(&reader) => {
                self.taken.insert(reader);
                (node.outputs[0], Some(op))
            }
            _ => (y, None),
        }
    }

    /// Takes over the addition of a residual that dies there: the product accumulates into the residual's buffer. `used` is what the step itself
    /// reads and keeps.
    pub(super) fn take_residual(&mut self, y: ValueId, i: usize, used: &[ValueId]) -> Option<ValueId> {
        let (reader, residual) = self.sole_addition(y)?;
        let sum = self.graph.nodes()[reader].outputs[0];
        let root = self.root[residual.index()];
        let same = self.graph.tensor_type(sum) == self.graph.tensor_type(residual)
            && self.graph.tensor_type(sum) == self.graph.tensor_type(y);
        // All that reads the residual must have run before this step, which stands at node `i`; and the step itself must not read it as its
        // activations.
        let free = self
            .graph
            .value_ids()
            .filter(|v| self.root[v.index()] == root)
            .all(|v| self.readers[v.index()].iter().all(|r| *r == reader || (*r < i && !self.waits(*r))));
        let made = self.graph.nodes()[..i].iter().position(|node| node.outputs.contains(&residual));
        let written = made.is_some_and(|made| !self.deferred.contains(&made));
        let apart = used.iter().all(|id| self.root[id.index()] != root);
        if !(same && free && written && apart && self.is_arena(residual)) {
            return None;
        }
        self.taken.insert(reader);
        self.root[sum.index()] = root;
        Some(sum)
    }

    /// Whether a node is left to a later step: a normalization to a linear one, an element-wise operator to the last of its chain.
    pub(super) fn waits(&self, node: usize) -> bool {
        if self.deferred.contains(&node) {
            return true;
        }
        let Some(node) = self.graph.nodes().get(node) else { return true };
        let y = node.outputs[0];
        self.norm(node).is_some()
            && self.is_prologue(y)
            && self.readers[y.index()]
                .iter()
                .any(|reader| self.is_product_of(*reader, y) && !self.taken.contains(reader))
    }
}
