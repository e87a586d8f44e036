//! Matrix products with what comes before and after them.

use core_tensor::op::{Binary, MatMul, Op};
use core_tensor::{BackendError, Dim, ValueId};

use super::{Compiler, ELEMENT_THREADS, Waiting};
use crate::analysis::producer;
use super::nodes::known;
use crate::elementwise::unary_code;
use crate::layout::BLOCK;
use crate::matmul::{Epilogue, columns};
use crate::plan::{Dispatch, Memory};
use crate::step::product;

impl Compiler<'_> {
    /// Whether a value goes into matrix products only, as their activations.
    pub(super) fn feeds_products(&self, y: ValueId) -> bool {
        let readers = &self.readers[y.index()];
        !readers.is_empty()
            && readers.iter().all(|reader| {
                self.graph.nodes().get(*reader).is_some_and(|node| {
                    matches!(node.op, Op::MatMul(_)) && node.inputs[0] == Some(y) && node.inputs[1] != Some(y)
                })
            })
    }

    /// Computes a value that waits, where somebody needs it as it is.
    pub(super) fn settle(&mut self, id: ValueId) -> Result<(), BackendError> {
        // An alias of what waits has its root's memory.
        let root = self.root[id.index()];
        let Some(waiting) = self.waiting.remove(&root) else { return Ok(()) };
        match waiting {
            Waiting::Norm(i) => self.norm(i),
            Waiting::Gated(i) => self.gated(i),
            Waiting::Turned(i) => self.turn(i),
            Waiting::Written(i) => self.write_now(i),
            Waiting::Pair(i, both) => {
                let node = &self.graph.nodes()[i];
                let y = node.outputs[0];
                self.pack_pair(&node.name.clone(), i, both, 1, Memory::Value(y))
            }
        }
    }

    /// The activations of a product, in tiles of `columns` rows, padded with zeros along k.
    pub(super) fn packed(&mut self, x: ValueId, columns: usize) -> Result<Memory, BackendError> {
        if let Some(memory) = self.packed.get(&(x, columns)) {
            return Ok(*memory);
        }
        let (rows, k) = self.rows(x)?;
        let name = self.graph.value(x).name.clone();
        let whole = k.as_num().is_some_and(|k| k.is_multiple_of(BLOCK));
        if columns == 1 && whole {
            self.settle(x)?;
            return Ok(self.memory(x));
        }
        let tiles = rows.clone().div_ceil(columns.into());
        let padded = k.clone().div_ceil(BLOCK.into()).mul(BLOCK.into());
        let bytes = self.bound(&product(&[tiles, padded, columns.into()]))? * 4;
        let memory = self.scratch(&format!("{name}, packed"), bytes);
        // What waits for products has no other readers, and those take the same tiles: nobody will ask for it as it is.
        match self.waiting.get(&x).copied() {
            Some(Waiting::Norm(i)) => self.pack_norm(&name, i, columns, memory)?,
            Some(Waiting::Gated(i)) => self.pack_gated(&name, i, columns, memory)?,
            Some(Waiting::Pair(i, both)) => self.pack_pair(&name, i, both, columns, memory)?,
            Some(Waiting::Turned(_) | Waiting::Written(_)) | None => {
                self.settle(x)?;
                let from = [self.memory(x), Memory::Unused, Memory::Unused, Memory::Unused];
                self.pack(&name, 0, 0, (&rows, &k, &k), from, columns, memory)?;
            }
        }
        self.waiting.remove(&x);
        self.packed.insert((x, columns), memory);
        Ok(memory)
    }

    fn pack_norm(&mut self, name: &str, i: usize, columns: usize, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::RmsNormalization(op) = node.op else { return Err(BackendError::Mismatch("normalization and node")) };
        let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
        self.settle(x)?;
        self.settle(w)?;
        let (rows, k) = self.rows(x)?;
        let factor = self.scratch(&format!("{name}, factors"), self.bound(&rows)? * 4);
        let words = [self.values.word(&rows), self.values.word(&k), op.epsilon.to_bits()];
        let dispatch = Dispatch::new(name, "norm", ELEMENT_THREADS)
            .constant(1, 0)
            .read(1, self.memory(x))
            .read(2, self.memory(w))
            .write(3, factor)
            .push(words)
            .grid(self.row_grid(&rows));
        self.emit(dispatch);
        let from = [self.memory(x), factor, self.memory(w), Memory::Unused];
        self.pack(name, 1, 0, (&rows, &k, &k), from, columns, to)
    }

    fn pack_gated(&mut self, name: &str, i: usize, columns: usize, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let (gate, up) = (self.input(node, 0)?, self.input(node, 1)?);
        self.settle(gate)?;
        self.settle(up)?;
        let (rows, k) = self.rows(gate)?;
        let from = [self.memory(gate), Memory::Unused, Memory::Unused, self.memory(up)];
        self.pack(name, 2, known(unary_code(op.activation))?, (&rows, &k, &k), from, columns, to)
    }

    fn pack_pair(
        &mut self,
        name: &str,
        i: usize,
        both: Memory,
        columns: usize,
        to: Memory,
    ) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let (rows, k) = self.rows(node.outputs[0])?;
        let stride = k.clone().div_ceil(64.into()).mul(128.into());
        let from = [both, Memory::Unused, Memory::Unused, Memory::Unused];
        // Row by row as others read it, without padding, if nobody asks for tiles.
        let own = matches!(to, Memory::Value(_));
        self.pack_as(name, 3, known(unary_code(op.activation))?, (&rows, &k, &stride), from, columns, to, !own)
    }

    #[allow(clippy::too_many_arguments)]
    fn pack(
        &mut self,
        name: &str,
        mode: u32,
        activation: u32,
        extents: (&Dim, &Dim, &Dim),
        from: [Memory; 4],
        columns: usize,
        to: Memory,
    ) -> Result<(), BackendError> {
        self.pack_as(name, mode, activation, extents, from, columns, to, true)
    }

    #[allow(clippy::too_many_arguments)]
    fn pack_as(
        &mut self,
        name: &str,
        mode: u32,
        activation: u32,
        (rows, k, stride): (&Dim, &Dim, &Dim),
        from: [Memory; 4],
        columns: usize,
        to: Memory,
        pad: bool,
    ) -> Result<(), BackendError> {
        let padded = if pad { k.clone().div_ceil(BLOCK.into()).mul(BLOCK.into()) } else { k.clone() };
        let words: Vec<u32> = [rows, k, &padded, stride].map(|dim| self.values.word(dim)).into();
        let tiles = rows.clone().div_ceil(columns.into());
        let grid = self.values.grid([padded.div_ceil(64.into()), tiles, 1.into()]);
        let mut dispatch = Dispatch::new(name, format!("pack.{columns}"), 64).constant(1, mode).constant(2, activation);
        for (memory, binding) in from.into_iter().zip(1..) {
            dispatch = dispatch.read(binding, memory);
        }
        self.emit(dispatch.write(5, to).push(words).grid(grid));
        Ok(())
    }

    /// A matrix product, with the bias and the residual that are added to it.
    pub(super) fn mat_mul(&mut self, i: usize, op: MatMul) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (x, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let (rows, _) = self.rows(x)?;
        let tile = columns(self.bound(&rows)?);
        let Some(matrix) = self.matrix(b, None, !op.transpose_b).filter(|_| graph.weight_of(b).is_some()) else {
            self.settle(b)?;
            let (w, n, blocks) = self.computed_matrix(&node.name, b, op.transpose_b)?;
            let x = self.packed(x, tile)?;
            return self.computed_product(&node.name, w, &n, &blocks, x, &rows, tile, Memory::Value(y));
        };
        let packed = self.packed(x, tile)?;
        let (y, bias) = self.take_bias(y)?;
        let (y, residual) = self.take_residual(y, i)?;
        let bias = bias.map(|id| self.memory(id));
        let epilogue = Epilogue { bias, residual, gated: 0 };
        let y = self.memory(y);
        self.product(&node.name, &matrix, packed, &rows, tile, epilogue, y)
    }

    /// The two products of a gated activation that are computed as one.
    pub(super) fn pair_of(&self, y: ValueId) -> Option<(ValueId, ValueId)> {
        self.weights.analysis.pairs.get(&y).copied()
    }

    /// A gated pair of products as one.
    pub(super) fn pair(&mut self, i: usize, gate: ValueId, up: ValueId) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let missing = || BackendError::Mismatch("products and graph");
        let (gate, up) = (producer(graph, gate).ok_or_else(missing)?, producer(graph, up).ok_or_else(missing)?);
        let x = self.input(gate, 0)?;
        let (weight, second) = (self.input(gate, 1)?, self.input(up, 1)?);
        let matrix = self.matrix(weight, Some(second), false).ok_or(BackendError::Mismatch("weights and graph"))?;
        let (rows, _) = self.rows(x)?;
        let tile = columns(self.bound(&rows)?);
        let packed = self.packed(x, tile)?;
        let y = node.outputs[0];
        if tile <= 8 {
            let epilogue = Epilogue { gated: known(unary_code(op.activation))? + 1, ..Epilogue::default() };
            return self.product(&node.name, &matrix, packed, &rows, tile, epilogue, Memory::Value(y));
        }
        let bytes = self.bound(&rows)?.saturating_mul(matrix.tiles() * 64 * 4);
        let both = self.scratch(&format!("{}, both sides", node.name), bytes);
        self.product(&node.name, &matrix, packed, &rows, tile, Epilogue::default(), both)?;
        self.waiting.insert(y, Waiting::Pair(i, both));
        if !self.feeds_products(y) {
            self.settle(y)?;
        }
        Ok(())
    }

    /// The addition that alone reads a value, and its other operand.
    fn sole_addition(&self, y: ValueId) -> Option<(usize, ValueId)> {
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

    /// Takes over an addition of a bias to a product that nothing else reads.
    fn take_bias(&mut self, y: ValueId) -> Result<(ValueId, Option<ValueId>), BackendError> {
        let Some((reader, bias)) = self.sole_addition(y) else { return Ok((y, None)) };
        let n = self.graph.tensor_type(y).and_then(|(_, shape)| shape.last().cloned());
        let fits = self.graph.weight_of(bias).is_some()
            && self.graph.tensor_type(bias).is_some_and(|(_, shape)| shape.len() == 1 && shape.first() == n.as_ref());
        if !fits {
            return Ok((y, None));
        }
        self.taken.insert(reader);
        Ok((self.graph.nodes()[reader].outputs[0], Some(bias)))
    }

    /// Takes over the addition of a value that is there already; the sum may take over its buffer.
    fn take_residual(&mut self, y: ValueId, i: usize) -> Result<(ValueId, Option<Memory>), BackendError> {
        let Some((reader, residual)) = self.sole_addition(y) else { return Ok((y, None)) };
        let sum = self.graph.nodes()[reader].outputs[0];
        let alike = self.graph.tensor_type(sum) == self.graph.tensor_type(residual)
            && self.graph.tensor_type(sum) == self.graph.tensor_type(y);
        let root = self.root[residual.index()];
        // Computed before this node, or never: given, or a weight.
        let ready = match self.graph.value(root).source {
            core_tensor::ValueSource::Node => {
                let computed = self.graph.nodes()[..i].iter().any(|node| node.outputs.contains(&residual));
                computed && !self.waiting.contains_key(&root)
            }
            _ => self.memory(residual) != Memory::Unused,
        };
        if !alike || !ready {
            return Ok((y, None));
        }
        self.taken.insert(reader);
        let memory = self.memory(residual);
        // Nothing may read the old contents afterwards but this kernel, element by element.
        let dies = self.dies_at(residual, reader)
            && self
                .graph
                .value_ids()
                .filter(|v| self.root[v.index()] == root)
                .all(|v| self.readers[v.index()].iter().all(|r| *r == reader || *r < i));
        if dies {
            self.root[sum.index()] = root;
        }
        Ok((sum, Some(memory)))
    }
}
