//! Attention over states: what is turned and written before it, and which kernels compute it.

use core_tensor::op::{Attention, Op, RotaryEmbedding};
use core_tensor::{BackendError, DType, Dim, StateId, ValueId, ValueType};

use super::supports::{roles, units};
use super::{Compiler, ELEMENT_THREADS, Waiting};
use crate::plan::{Dispatch, Memory};
use crate::state::TILE;
use crate::step::{least, product};

/// Rows up to which each takes workgroups of its own.
const FEW_ROWS: usize = 8;
/// Heads that a workgroup of `attention_decode` computes at most: what registers hold.
const DECODE_HEADS: usize = 8;
/// Parts that `attention_combine` joins at most.
const MOST_PARTS: usize = 64;
/// The window of an attention that sees all positions: more than there are.
const NO_WINDOW: u32 = 1 << 31;
/// Threads of the kernels that compute attention.
const THREADS: u32 = 64;

/// What the choice of a kernel depends on.
#[derive(Clone, Copy, Debug)]
struct AttentionShape {
    /// Rows of a step, at most.
    rows: usize,
    kv_heads: usize,
    /// Heads that share a key.
    group: usize,
    key_dim: usize,
    value_dim: usize,
    /// Positions that a row sees, at most.
    positions: usize,
}

/// How an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// `attention.comp`: any shape.
    General,
    /// `attention_decode.comp`: a group of heads in so many passes of `heads`, the context in so many parts.
    Decode { heads: usize, passes: usize, parts: usize },
    /// `attention_prefill.comp`: tiles of so many times eight rows.
    Prefill { row_groups: usize },
}

impl Kernel {
    /// The kernel for a shape on a device that `target_waves` keep busy.
    fn of(shape: &AttentionShape, target_waves: usize) -> Kernel {
        // Scalar loads take eight floats of a query; lanes take four elements of a value.
        let fits = shape.key_dim.is_multiple_of(8) && shape.value_dim.is_multiple_of(8);
        if !fits || shape.value_dim > 256 {
            return Kernel::General;
        }
        if shape.rows > FEW_ROWS {
            return Kernel::Prefill { row_groups: if shape.value_dim <= 128 { 2 } else { 1 } };
        }
        let passes = shape.group.div_ceil(DECODE_HEADS);
        let waves = shape.kv_heads * passes * shape.rows;
        // A part of less than two tiles costs more to join than it saves.
        let most = shape.positions.div_ceil(2 * TILE).clamp(1, MOST_PARTS);
        let parts = target_waves.div_ceil(waves.max(1)).clamp(1, most);
        Kernel::Decode { heads: shape.group.div_ceil(passes), passes, parts }
    }

    /// Rows of a tile that queries are put in; 0: they stay row by row.
    fn query_tile(self) -> usize {
        if let Kernel::Prefill { row_groups } = self { 8 * row_groups } else { 0 }
    }
}

/// A rotation on the way.
#[derive(Clone, Copy, Debug)]
struct Turn {
    op: RotaryEmbedding,
    table: Memory,
}

/// Queries that are turned, or put in tiles.
#[derive(Clone, Copy, Debug)]
struct QueryJob {
    from: Memory,
    to: Memory,
    heads: usize,
    dim: usize,
    turn: Option<Turn>,
    tile: usize,
    factor: f32,
}

/// Rows that are written into a state.
#[derive(Clone, Copy, Debug)]
struct WriteJob {
    from: Memory,
    state: StateId,
    dtype: DType,
    heads: usize,
    dim: usize,
    capacity: usize,
    ring: bool,
    positions: ValueId,
    slots: ValueId,
    turn: Option<Turn>,
}

impl WriteJob {
    /// Whether another one's rows go to the same places: one dispatch may do both.
    fn beside(&self, other: &WriteJob) -> bool {
        let places = |job: &WriteJob| (job.heads, job.capacity, job.ring, job.positions, job.slots);
        places(self) == places(other)
    }

    /// Items of a row that threads take.
    fn items(&self) -> usize {
        self.heads * if self.dtype.is_block() { self.dim / 32 } else { self.dim.div_ceil(2) }
    }
}

/// What one dispatch of `state.comp` does.
#[derive(Clone, Copy, Debug, Default)]
struct Jobs {
    queries: Option<QueryJob>,
    keys: Option<WriteJob>,
    values: Option<WriteJob>,
}

impl Compiler<'_> {
    /// Turns rows, or leaves that to the kernel that brings them to their only reader: a state or an attention.
    pub(super) fn rotate(&mut self, i: usize) -> Result<(), BackendError> {
        let y = self.graph.nodes()[i].outputs[0];
        let reader = self.sole_reader(y).and_then(|reader| self.graph.nodes().get(reader));
        let fused = reader.is_some_and(|reader| match &reader.op {
            Op::StateWrite(op) => reader.inputs.first() == Some(&Some(y)) && roles(self.graph, op.state).0,
            Op::Attention(_) => reader.inputs.first() == Some(&Some(y)),
            _ => false,
        });
        if fused {
            self.waiting.insert(y, Waiting::Turned(i));
            return Ok(());
        }
        self.turn(i)
    }

    /// Turns rows by a kernel of its own.
    pub(super) fn turn(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::RotaryEmbedding(op) = node.op else { return Err(BackendError::Mismatch("rotation and node")) };
        let (x, positions, y) = (self.input(node, 0)?, self.input(node, 1)?, node.outputs[0]);
        let table = self.rope_table(op, positions, node.inputs.get(2).copied().flatten())?;
        let (_, shape) = self.tensor(x)?;
        let dim = self.bound(&shape[2])?;
        self.settle(x)?;
        let from = self.memory(x);
        self.in_place(y, x, i);
        let words = [self.values.word(&shape[0]), self.values.word(&shape[1])];
        let count = product(&[shape[0].clone(), shape[1].clone(), dim.div_ceil(2).into()]);
        let dispatch = Dispatch::new(&node.name, "rope", ELEMENT_THREADS)
            .constant(1, u32::from(op.interleaved))
            .read(1, from)
            .read(2, table)
            .write(3, self.memory(y))
            .push(words)
            .push([dim as u32, op.rotary_dims as u32])
            .grid(self.linear_grid(&count));
        self.emit(dispatch);
        Ok(())
    }

    /// Writes rows into a state, or leaves that to the only attention that reads what was written.
    pub(super) fn state_write(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::StateWrite(op) = &node.op else { return Err(BackendError::Mismatch("write and node")) };
        let token = node.outputs[0];
        let nodes = self.graph.nodes();
        let read = self.sole_reader(token).is_some_and(|reader| matches!(nodes[reader].op, Op::Attention(_)));
        // Effects stay in order: nobody else touches the state meanwhile.
        let own = |id: &Option<ValueId>| {
            id.is_none_or(|id| id == token || self.graph.value(id).ty != ValueType::Token(op.state))
        };
        let alone = nodes.iter().enumerate().all(|(at, node)| match &node.op {
            Op::StateWrite(other) => at == i || other.state != op.state,
            _ => node.inputs.iter().all(own),
        });
        if read && alone {
            self.waiting.insert(token, Waiting::Written(i));
            return Ok(());
        }
        self.write_now(i)
    }

    /// Writes rows into a state by a dispatch of its own.
    pub(super) fn write_now(&mut self, i: usize) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let name = node.name.clone();
        let rows = self.tensor(self.input(node, 0)?)?.1[0].clone();
        let job = self.write_job(i)?;
        let jobs = if roles(self.graph, job.state).0 {
            Jobs { keys: Some(job), ..Jobs::default() }
        } else {
            Jobs { values: Some(job), ..Jobs::default() }
        };
        self.prepare(&name, &rows, jobs)
    }

    /// What writes the rows of a node; a rotation that waits is done on the way.
    fn write_job(&mut self, i: usize) -> Result<WriteJob, BackendError> {
        let node = &self.graph.nodes()[i];
        let Op::StateWrite(op) = &node.op else { return Err(BackendError::Mismatch("write and node")) };
        let rows = self.input(node, 0)?;
        let (positions, slots) = (self.input(node, 1)?, self.input(node, 2)?);
        let decl = self.graph.state(op.state);
        let (heads, dim) = (decl.row[0], decl.row[1]);
        if units(decl.dtype, dim).is_none() {
            return Err(BackendError::Unsupported {
                node: node.name.clone(),
                op: node.op.name(),
                reason: format!("no kernel writes {} rows of {dim} elements", decl.dtype),
            });
        }
        let (from, turn) = self.turned(rows)?;
        let capacity = self.bound(&decl.capacity)?;
        let (dtype, ring) = (decl.dtype, decl.window.is_some());
        Ok(WriteJob { from, state: op.state, dtype, heads, dim, capacity, ring, positions, slots, turn })
    }

    /// Where rows lie, and the rotation that they still need.
    fn turned(&mut self, rows: ValueId) -> Result<(Memory, Option<Turn>), BackendError> {
        let Some(Waiting::Turned(i)) = self.waiting.get(&rows).copied() else {
            self.settle(rows)?;
            return Ok((self.memory(rows), None));
        };
        self.waiting.remove(&rows);
        let node = &self.graph.nodes()[i];
        let Op::RotaryEmbedding(op) = node.op else { return Err(BackendError::Mismatch("rotation and node")) };
        let (x, positions) = (self.input(node, 0)?, self.input(node, 1)?);
        let table = self.rope_table(op, positions, node.inputs.get(2).copied().flatten())?;
        self.settle(x)?;
        Ok((self.memory(x), Some(Turn { op, table })))
    }

    /// Emits what goes before an attention.
    fn prepare(&mut self, name: &str, rows: &Dim, jobs: Jobs) -> Result<(), BackendError> {
        let Jobs { queries, keys, values } = jobs;
        if let (Some(k), Some(v)) = (&keys, &values)
            && !k.beside(v)
        {
            self.prepare(name, rows, Jobs { values, ..Jobs::default() })?;
            return self.prepare(name, rows, Jobs { queries, keys, ..Jobs::default() });
        }
        let write = keys.or(values);
        // Bindings for results that this dispatch does not have go where its results are.
        let some = match (queries, write) {
            (Some(job), _) => job.to,
            (None, Some(job)) => Memory::State(job.state),
            (None, None) => return Ok(()),
        };
        let dtypes = [keys, values].map(|job| job.or(write).map_or(DType::F16, |job| job.dtype));
        let shader = format!("state.{}x{}", kv_name(dtypes[0]), kv_name(dtypes[1]));
        let present = [(1, queries.is_some()), (2, keys.is_some()), (3, values.is_some())];
        let present = present.iter().filter(|(_, present)| *present);
        let job_map = present.clone().enumerate().fold(0, |map, (at, (job, _))| map | job << (2 * at));
        let rotary = |turn: Option<Turn>| turn.map_or(0, |turn| turn.op.rotary_dims as u32);
        let interleaved = |turn: Option<Turn>| u32::from(turn.is_some_and(|turn| turn.op.interleaved));
        let query_turn = queries.and_then(|job| job.turn);
        let key_turn = keys.and_then(|job| job.turn);
        let key_dim = queries.map(|job| job.dim).or(keys.map(|job| job.dim)).unwrap_or(2);
        let constants = [
            job_map,
            queries.map_or(1, |job| job.heads) as u32,
            rotary(query_turn),
            interleaved(query_turn),
            queries.map_or(0, |job| job.tile) as u32,
            write.map_or(1, |job| job.heads) as u32,
            key_dim as u32,
            rotary(key_turn),
            interleaved(key_turn),
            values.map_or(2, |job| job.dim) as u32,
        ];
        let n = self.values.word(rows);
        let mut dispatch = Dispatch::new(name, shader, ELEMENT_THREADS).push([
            n,
            write.map_or(1, |job| job.capacity) as u32,
            u32::from(write.is_some_and(|job| job.ring)),
            queries.map_or(1.0, |job| job.factor).to_bits(),
        ]);
        for (id, value) in (1..).zip(constants) {
            dispatch = dispatch.constant(id, value);
        }
        if let Some(job) = write {
            dispatch = self.reads(dispatch, 1, job.positions)?;
            dispatch = self.reads(dispatch, 2, job.slots)?;
        }
        let tables = [(3, query_turn), (4, key_turn)];
        for (binding, turn) in tables.into_iter().filter_map(|(binding, turn)| Some((binding, turn?))) {
            dispatch = dispatch.read(binding, turn.table);
        }
        let sources =
            [(5, queries.map(|job| job.from)), (6, keys.map(|job| job.from)), (7, values.map(|job| job.from))];
        for (binding, from) in sources.into_iter().filter_map(|(binding, from)| Some((binding, from?))) {
            dispatch = dispatch.read(binding, from);
        }
        let state = |job: Option<WriteJob>| job.map_or(some, |job| Memory::State(job.state));
        dispatch = dispatch.write(8, queries.map_or(some, |job| job.to)).write(9, state(keys)).write(10, state(values));
        for (binding, job, dtype) in [(11, keys, dtypes[0]), (12, values, dtypes[1])] {
            if dtype.is_block() {
                dispatch = dispatch.write(binding, job.map_or(some, |job| Memory::StateScales(job.state)));
            }
        }
        let query_items = queries.map_or(0, |job| job.heads * job.dim.div_ceil(2));
        let items = [keys, values].into_iter().flatten().map(|job| job.items()).fold(query_items, usize::max);
        let groups = rows.clone().mul(items.into()).div_ceil((ELEMENT_THREADS as usize).into());
        let most = self.gpu.limits().max_groups as usize;
        let grid = self.values.grid([least(groups, most), present.count().into(), 1.into()]);
        self.emit(dispatch.grid(grid));
        Ok(())
    }

    pub(super) fn attention(&mut self, i: usize, op: &Attention) -> Result<(), BackendError> {
        let node = &self.graph.nodes()[i];
        let state = |id: ValueId| match self.graph.value(id).ty {
            ValueType::Token(state) => Ok(state),
            ValueType::Tensor { .. } => Err(BackendError::Mismatch("attention and its states")),
        };
        let (q, y) = (self.input(node, 0)?, node.outputs[0]);
        let (k_token, v_token) = (self.input(node, 1)?, self.input(node, 2)?);
        let (k, v) = (state(k_token)?, state(v_token)?);
        let (keys, values) = (self.graph.state(k).clone(), self.graph.state(v).clone());
        let (_, extents) = self.tensor(q)?;
        let (rows, heads) = (extents[0].clone(), self.bound(&extents[1])?);
        let (kv_heads, key_dim, value_dim) = (keys.row[0], keys.row[1], values.row[1]);
        let unknown = || BackendError::Unsupported {
            node: node.name.clone(),
            op: node.op.name(),
            reason: format!("no kernel reads {} keys or {} values", keys.dtype, values.dtype),
        };
        let key_units = units(keys.dtype, key_dim).ok_or_else(unknown)?;
        let value_units = units(values.dtype, value_dim).ok_or_else(unknown)?;
        let capacity = self.bound(&keys.capacity)?;
        let positions = op.window.map_or(capacity, |window| window.min(capacity));
        let bound = self.bound(&rows)?;
        let shape = AttentionShape { rows: bound, kv_heads, group: heads / kv_heads, key_dim, value_dim, positions };
        let kernel = Kernel::of(&shape, self.target_waves);

        let mut jobs = Jobs::default();
        for (token, job) in [(k_token, &mut jobs.keys), (v_token, &mut jobs.values)] {
            if let Some(Waiting::Written(write)) = self.waiting.remove(&token) {
                *job = Some(self.write_job(write)?);
            }
        }
        let (from, turn) = self.turned(q)?;
        let mut query = from;
        let tile = kernel.query_tile();
        let factor = op.scale * if op.softcap.is_none() { std::f32::consts::LOG2_E } else { 1.0 };
        if tile > 0 || turn.is_some() {
            if tile > 0 {
                let bytes = bound.next_multiple_of(tile) * heads * key_dim * 4;
                query = self.scratch(&format!("{}, in tiles", node.name), bytes);
            } else {
                self.turn_in_place(q, i)?;
                query = self.memory(q);
            }
            jobs.queries = Some(QueryJob { from, to: query, heads, dim: key_dim, turn, tile, factor });
        }
        self.prepare(&node.name, &rows, jobs)?;

        let n = self.values.word(&rows);
        let types = format!("{}x{}", kv_name(keys.dtype), kv_name(values.dtype));
        let window = op.window.and_then(|n| u32::try_from(n).ok()).filter(|n| *n < NO_WINDOW);
        let work = bound as f64 * heads as f64 * positions as f64 * (key_dim + value_dim) as f64;
        let ring = u32::from(keys.window.is_some());
        let shader = match kernel {
            Kernel::General => format!("attention.{types}"),
            Kernel::Decode { .. } => format!("attention_decode.{types}"),
            Kernel::Prefill { .. } => format!("attention_prefill.{types}"),
        };
        let mut dispatch = Dispatch::new(&node.name, shader, THREADS)
            .read(1, query)
            .read(4, Memory::State(k))
            .read(5, Memory::State(v))
            .push([n])
            .work(work);
        if keys.dtype.is_block() {
            dispatch = dispatch.read(6, Memory::StateScales(k));
        }
        if values.dtype.is_block() {
            dispatch = dispatch.read(7, Memory::StateScales(v));
        }
        dispatch = self.reads(dispatch, 2, self.input(node, 3)?)?;
        dispatch = self.reads(dispatch, 3, self.input(node, 4)?)?;
        let softcap = op.softcap.unwrap_or(0.0).to_bits();
        if kernel == Kernel::General {
            let grid = self.values.grid([heads.into(), rows, 1.into()]);
            let sizes = [heads, kv_heads, key_dim, value_dim, key_units, value_units, capacity];
            let dispatch = dispatch
                .write(8, Memory::Value(y))
                .push(sizes.map(|n| n as u32))
                .push([ring, window.unwrap_or(0), op.scale.to_bits(), softcap])
                .grid(grid);
            self.emit(dispatch);
            return Ok(());
        }
        dispatch = dispatch
            .constant(1, key_dim as u32)
            .constant(2, value_dim as u32)
            .constant(3, u32::from(op.softcap.is_some()))
            .push([heads, kv_heads, heads / kv_heads, capacity].map(|n| n as u32))
            .push([ring, window.unwrap_or(NO_WINDOW), factor.to_bits(), softcap]);
        match kernel {
            Kernel::Decode { heads: here, passes, parts } => {
                let to = if parts == 1 {
                    Memory::Value(y)
                } else {
                    // Beside the sums of values their largest score and the sum of weights.
                    let bytes = bound * heads * parts * (value_dim + 4) * 4;
                    self.scratch(&format!("{}, parts", node.name), bytes)
                };
                let grid = self.values.grid([(kv_heads * passes * parts).into(), rows.clone(), 1.into()]);
                let dispatch = dispatch
                    .constant(4, here as u32)
                    .constant(5, passes as u32)
                    .constant(6, parts as u32)
                    .write(8, to)
                    .grid(grid);
                self.emit(dispatch);
                if parts > 1 {
                    let grid = self.values.grid([heads.into(), rows, 1.into()]);
                    let dispatch = Dispatch::new(&node.name, "attention_combine", THREADS)
                        .constant(1, value_dim as u32)
                        .constant(2, parts as u32)
                        .read(1, to)
                        .write(2, Memory::Value(y))
                        .push([n, heads as u32])
                        .grid(grid);
                    self.emit(dispatch);
                }
            }
            Kernel::Prefill { row_groups } => {
                let grid = self.values.grid([heads.into(), rows.div_ceil((8 * row_groups).into()), 1.into()]);
                self.emit(dispatch.constant(4, row_groups as u32).write(8, Memory::Value(y)).grid(grid));
            }
            Kernel::General => {}
        }
        Ok(())
    }

    /// Lets turned queries lie where they were before, if nobody else needs those.
    fn turn_in_place(&mut self, q: ValueId, i: usize) -> Result<(), BackendError> {
        let node = self.graph.nodes().iter().find(|node| node.outputs.first() == Some(&q));
        let x = self.input(node.ok_or(BackendError::Mismatch("rotation and node"))?, 0)?;
        self.in_place(q, x, i);
        Ok(())
    }
}

/// A state's type in names of shaders.
fn kv_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "kv_f32",
        DType::F16 => "kv_f16",
        _ => "kv_q8_0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: AttentionShape =
        AttentionShape { rows: 1, kv_heads: 8, group: 4, key_dim: 128, value_dim: 128, positions: 4096 };

    #[test]
    fn few_rows_split_the_context_as_far_as_the_device_needs() {
        assert_eq!(Kernel::of(&LLAMA, 512), Kernel::Decode { heads: 4, passes: 1, parts: 32 });
        assert_eq!(Kernel::of(&LLAMA, 4), Kernel::Decode { heads: 4, passes: 1, parts: 1 });
        let short = AttentionShape { positions: 256, ..LLAMA };
        assert_eq!(Kernel::of(&short, 512), Kernel::Decode { heads: 4, passes: 1, parts: 2 });
        let eight = AttentionShape { rows: 8, ..LLAMA };
        assert_eq!(Kernel::of(&eight, 512), Kernel::Decode { heads: 4, passes: 1, parts: 8 });
        let long = AttentionShape { positions: 1 << 20, kv_heads: 1, ..LLAMA };
        assert_eq!(Kernel::of(&long, 512), Kernel::Decode { heads: 4, passes: 1, parts: 64 });
    }

    #[test]
    fn large_groups_take_several_passes() {
        let group = |group| Kernel::of(&AttentionShape { group, ..LLAMA }, 1);
        assert_eq!(group(8), Kernel::Decode { heads: 8, passes: 1, parts: 1 });
        assert_eq!(group(9), Kernel::Decode { heads: 5, passes: 2, parts: 1 });
        assert_eq!(group(71), Kernel::Decode { heads: 8, passes: 9, parts: 1 });
    }

    #[test]
    fn many_rows_go_in_tiles_and_odd_heads_one_by_one() {
        let rows = |rows, value_dim| Kernel::of(&AttentionShape { rows, value_dim, ..LLAMA }, 512);
        assert_eq!(rows(9, 128), Kernel::Prefill { row_groups: 2 });
        assert_eq!(rows(512, 256), Kernel::Prefill { row_groups: 1 });
        assert_eq!(rows(512, 264), Kernel::General);
        assert_eq!(rows(1, 33), Kernel::General);
        assert_eq!(Kernel::of(&AttentionShape { key_dim: 20, ..LLAMA }, 512), Kernel::General);
    }
}
