//! Matrix products with what comes before and after them.

use core_tensor::op::{Binary, MatMul, Op};
use core_tensor::{BackendError, Dim, ValueId};

use super::nodes::known;
use super::{Compiler, Waiting};
use crate::analysis::{is_matrix, producer};
use crate::elementwise::{Function, gate_code};
use crate::layout::BLOCK;
use crate::matmul::{ComputedMatrix, Epilogue, columns};
use crate::plan::{Dispatch, Memory};
use crate::step::product;
use crate::walk::Walk;

/// How activations are brought into tiles.
pub(super) struct Packing {
    /// What is done on the way, and with which function; numbers of `pack.comp`.
    pub(super) mode: u32,
    pub(super) function: Function,
    /// Rows of a matrix, and their elements; `stride` floats from row to row.
    pub(super) rows: Dim,
    pub(super) k: Dim,
    pub(super) stride: Dim,
    pub(super) from: [Memory; 4],
    /// Rows of a tile.
    pub(super) columns: usize,
    /// Whether rows are padded to whole blocks.
    pub(super) padded: bool,
    pub(super) matrices: Dim,
}

impl Packing {
    fn new(mode: u32, rows: &Dim, k: &Dim, columns: usize) -> Packing {
        Packing {
            mode,
            function: Function { code: 0, p: 0.0, q: 0.0 },
            rows: rows.clone(),
            k: k.clone(),
            stride: k.clone(),
            from: [Memory::Unused; 4],
            columns,
            padded: true,
            matrices: 1.into(),
        }
    }
}

/// What follows a product or a convolution and is computed by its kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// The value that the kernel gives.
    pub(super) y: ValueId,
    pub(super) residual: Option<Memory>,
    pub(super) function: Option<Function>,
    /// Whether the function comes before the residual.
    pub(super) function_first: bool,
}

impl Tail {
    /// Bits of an epilogue, without the bias.
    pub(super) fn flags(&self) -> u32 {
        u32::from(self.residual.is_some()) << 1 | u32::from(self.function_first) << 2
    }

    /// The function's number as an epilogue has it.
    pub(super) fn activation(&self) -> u32 {
        self.function.map_or(0, |function| function.code + 1)
    }
}

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
            Waiting::Unary(i) => self.unary_now(i),
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
            Some(Waiting::Unary(i)) => self.pack_unary(&name, i, columns, memory)?,
            Some(Waiting::Gated(i)) => self.pack_gated(&name, i, columns, memory)?,
            Some(Waiting::Pair(i, both)) => self.pack_pair(&name, i, both, columns, memory)?,
            Some(Waiting::Turned(_) | Waiting::Written(_)) | None => {
                self.settle(x)?;
                let mut packing = Packing::new(0, &rows, &k, columns);
                packing.from[0] = self.memory(x);
                self.pack(&name, &packing, memory)?;
            }
        }
        self.waiting.remove(&x);
        self.packed.insert((x, columns), memory);
        Ok(memory)
    }

    fn pack_norm(&mut self, name: &str, i: usize, columns: usize, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (x, w) = (self.input(node, 0)?, self.input(node, 1)?);
        self.settle(x)?;
        self.settle(w)?;
        let (rows, k) = self.rows(x)?;
        let per_row = if matches!(node.op, Op::LayerNormalization(_)) { 8 } else { 4 };
        let factor = self.scratch(&format!("{name}, factors"), self.bound(&rows)?.saturating_mul(per_row));
        self.norm_into(i, false, factor)?;
        let mut packing = Packing::new(1, &rows, &k, columns);
        packing.from = [self.memory(x), factor, self.memory(w), Memory::Unused];
        if let Op::LayerNormalization(_) = node.op {
            let b = self.input(node, 2)?;
            self.settle(b)?;
            packing.mode = 5;
            packing.from[3] = self.memory(b);
        }
        self.pack(name, &packing, to)
    }

    fn pack_unary(&mut self, name: &str, i: usize, columns: usize, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::Unary(op) = node.op else { return Err(BackendError::Mismatch("function and node")) };
        let x = self.input(node, 0)?;
        self.settle(x)?;
        let (rows, k) = self.rows(x)?;
        let mut packing = Packing::new(4, &rows, &k, columns);
        packing.from[0] = self.memory(x);
        packing.function = known(Function::of(op))?;
        self.pack(name, &packing, to)
    }

    fn pack_gated(&mut self, name: &str, i: usize, columns: usize, to: Memory) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::GatedActivation(op) = node.op else { return Err(BackendError::Mismatch("activation and node")) };
        let (gate, up) = (self.input(node, 0)?, self.input(node, 1)?);
        self.settle(gate)?;
        self.settle(up)?;
        let (rows, k) = self.rows(gate)?;
        let mut packing = Packing::new(2, &rows, &k, columns);
        packing.from = [self.memory(gate), Memory::Unused, Memory::Unused, self.memory(up)];
        packing.function.code = known(gate_code(op.activation))?;
        self.pack(name, &packing, to)
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
        let mut packing = Packing::new(3, &rows, &k, columns);
        packing.stride = k.clone().div_ceil(64.into()).mul(128.into());
        packing.from[0] = both;
        packing.function.code = known(gate_code(op.activation))?;
        // Row by row as others read it, without padding, if nobody asks for tiles.
        packing.padded = !matches!(to, Memory::Value(_));
        self.pack(name, &packing, to)
    }

    pub(super) fn pack(&mut self, name: &str, packing: &Packing, to: Memory) -> Result<(), BackendError> {
        let Packing { mode, function, rows, k, stride, from, columns, padded, matrices } = packing;
        let width = if *padded { k.clone().div_ceil(BLOCK.into()).mul(BLOCK.into()) } else { k.clone() };
        let words: Vec<u32> = [rows, k, &width, stride].map(|dim| self.values.word(dim)).into();
        let tiles = rows.clone().div_ceil((*columns).into());
        let grid = self.values.grid([width.div_ceil(64.into()), tiles, matrices.clone()]);
        let mut dispatch =
            Dispatch::new(name, format!("pack.{columns}"), 64).constant(1, *mode).constant(2, function.code);
        for (memory, binding) in from.iter().zip(1..) {
            dispatch = dispatch.read(binding, *memory);
        }
        self.emit(dispatch.write(5, to).push(words).push([function.p.to_bits(), function.q.to_bits()]).grid(grid));
        Ok(())
    }

    /// A matrix product, with the bias, the function and the residual that follow it.
    pub(super) fn mat_mul(&mut self, i: usize, op: MatMul) -> Result<(), BackendError> {
        let graph = self.graph;
        let node = &graph.nodes()[i];
        let (x, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let Some(matrix) = self.matrix(b, None, !op.transpose_b).filter(|_| is_matrix(graph, b)) else {
            return self.computed_mat_mul(i, op);
        };
        let (rows, _) = self.rows(x)?;
        let tile = self.columns_of(x)?;
        let packed = self.packed(x, tile)?;
        let (y, bias) = self.take_bias(y)?;
        let allowed = if tile == 1 { Function::fuses } else { Function::is_light };
        let tail = self.take_tail(y, i, allowed)?;
        let bias = bias.map(|id| self.memory(id));
        let epilogue = Epilogue {
            bias,
            residual: tail.residual,
            gated: 0,
            function: tail.function,
            function_first: tail.function_first,
        };
        let y = self.memory(tail.y);
        self.product(&node.name, &matrix, packed, &rows, tile, epilogue, y)
    }

    /// Rows of activations that products with a value take at once: the same for all, so that they share its tiles. They run side by side.
    fn columns_of(&self, x: ValueId) -> Result<usize, BackendError> {
        let (rows, _) = self.rows(x)?;
        let mut tiles = 0usize;
        for reader in &self.readers[x.index()] {
            let Some(node) = self.graph.nodes().get(*reader) else { continue };
            let Op::MatMul(MatMul { transpose_b }) = node.op else { continue };
            let weight = node.inputs.get(1).copied().flatten().filter(|_| node.inputs[0] == Some(x));
            let Some([.., first, second]) = weight.and_then(|b| self.graph.tensor_type(b)).map(|(_, shape)| shape)
            else {
                continue;
            };
            let n = self.bound(if transpose_b { first } else { second })?;
            tiles = tiles.saturating_add(n.div_ceil(64));
        }
        Ok(columns(self.bound(&rows)?, tiles, self.target_waves))
    }

    /// A product with matrices that are computed, or several of them.
    fn computed_mat_mul(&mut self, i: usize, op: MatMul) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let (a, b, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        self.settle(b)?;
        let (b_dtype, b_shape) = self.tensor(b)?;
        let (_, a_shape) = self.tensor(a)?;
        let (b_batch, b_last) = b_shape.split_at(b_shape.len() - 2);
        if product(b_batch) == Dim::Num(1) {
            // One matrix: the rows of all of A's are multiplied by it.
            let (rows, _) = self.rows(a)?;
            let tile = self.columns_of(a)?;
            let from = self.memory(b);
            let matrix = self.computed_matrix(&node.name, (from, b_dtype), b_last, op.transpose_b, Dim::Num(1))?;
            let x = self.packed(a, tile)?;
            return self.computed_product(&node.name, &matrix, (x, &rows, false), tile, Memory::Value(y));
        }
        self.settle(a)?;
        let (y_batch, m) = match a_shape.len() {
            0 | 1 => (b_batch.to_vec(), Dim::Num(1)),
            rank => (self.tensor(y)?.1[..b_shape.len().max(rank) - 2].to_vec(), a_shape[rank - 2].clone()),
        };
        let a_batch = &a_shape[..a_shape.len().saturating_sub(2)];
        let matrices = product(&y_batch);
        let k = a_shape.last().cloned().unwrap_or(Dim::Num(1));
        // Matrices that are shared by all others need not be there more than once; those that are shared by some are.
        let (a_from, a_count) = self.spread(&node.name, a, a_batch, &y_batch, m.clone().mul(k.clone()))?;
        let (b_from, b_count) = self.spread(&node.name, b, b_batch, &y_batch, product(b_last))?;
        let n = &b_last[usize::from(!op.transpose_b)];
        let tiles = self.bound(&n.clone().mul(matrices.clone()))?.div_ceil(64);
        let tile = columns(self.bound(&m)?, tiles, self.target_waves);
        let matrix = self.computed_matrix(&node.name, (b_from, b_dtype), b_last, op.transpose_b, b_count)?;
        let padded = k.clone().div_ceil(BLOCK.into()).mul(BLOCK.into());
        let row_tiles = m.clone().div_ceil(tile.into());
        let len = product(&[a_count.clone(), row_tiles, padded, tile.into()]);
        let packed = self.scratch(&format!("{}, packed", node.name), self.bound(&len)?.saturating_mul(4));
        let mut packing = Packing::new(0, &m, &k, tile);
        packing.from[0] = a_from;
        packing.matrices = a_count.clone();
        self.pack(&node.name, &packing, packed)?;
        let shared = a_count == Dim::Num(1);
        let matrix = ComputedMatrix { matrices, ..matrix };
        self.computed_product(&node.name, &matrix, (packed, &m, shared), tile, Memory::Value(y))
    }

    /// Where the matrices of an operand lie, as many as the result has or one, and how many these are.
    pub(super) fn spread(
        &mut self,
        name: &str,
        id: ValueId,
        batch: &[Dim],
        to: &[Dim],
        len: Dim,
    ) -> Result<(Memory, Dim), BackendError> {
        let from = self.memory(id);
        if product(batch) == Dim::Num(1) {
            return Ok((from, Dim::Num(1)));
        }
        let missing = to.len().saturating_sub(batch.len());
        let as_is = to[..missing].iter().all(|dim| *dim == Dim::Num(1)) && to[missing..] == *batch;
        if as_is {
            return Ok((from, product(to)));
        }
        let whole = |batch: &[Dim]| -> Vec<Dim> { batch.iter().cloned().chain([len.clone()]).collect() };
        let size = self.tensor(id)?.0.packing().1;
        let count = product(&whole(to));
        let spread = self.scratch(&format!("{name}, spread"), self.bound(&count)?.saturating_mul(size));
        self.view_into(name, (from, size), Walk::broadcast(&whole(to), &[&whole(batch)]), 0, Dim::Num(0), spread);
        Ok((spread, product(to)))
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
        let tile = self.columns_of(x)?;
        let packed = self.packed(x, tile)?;
        let y = node.outputs[0];
        if tile <= 8 {
            let epilogue = Epilogue { gated: known(gate_code(op.activation))? + 1, ..Epilogue::default() };
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

    /// Takes over what follows a product: a function and the addition of a value that is there already, in this order or the other.
    pub(super) fn take_tail(
        &mut self,
        y: ValueId,
        i: usize,
        allowed: fn(Function) -> bool,
    ) -> Result<Tail, BackendError> {
        let (y, first) = self.take_function(y, allowed);
        let (y, residual) = self.take_residual(y, i)?;
        let (y, function) = if first.is_some() { (y, first) } else { self.take_function(y, allowed) };
        Ok(Tail { y, residual, function, function_first: first.is_some() && residual.is_some() })
    }

    /// Takes over a function of a value that nothing else reads; its result lies where the value would.
    fn take_function(&mut self, y: ValueId, allowed: fn(Function) -> bool) -> (ValueId, Option<Function>) {
        let Some(reader) = self.sole_reader(y) else { return (y, None) };
        let node = &self.graph.nodes()[reader];
        let Op::Unary(op) = node.op else { return (y, None) };
        let Some(function) = Function::of(op).filter(|f| f.fuses() && allowed(*f)) else { return (y, None) };
        self.taken.insert(reader);
        let result = node.outputs[0];
        self.root[result.index()] = self.root[y.index()];
        (result, Some(function))
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
