//! Recurrent layers: the products with the input for all steps at once, then step by step those with the state, sixteen elements of it at a time.
//!
//! Rows of the weights are packed per gate in blocks of 16 elements of the state (the last one filled with zeros), so that all gates of an element
//! are sums in the same lane of as many vectors.

use core_tensor::op::{Cell, Direction, OpError, Recurrent, Unary};
use core_tensor::{AlignedBytes, ValueId};

use crate::conv::image::BLOCK;
use crate::conv::tile::{IN_A_ROW, Tile, tile_pixels};
use crate::math;
use crate::program::{RunContext, Step};
use crate::simd::{Kernel, Simd};

/// Most gates of a cell.
const MAX_GATES: usize = 4;

/// The weights of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecurrentId {
    pub(crate) w: ValueId,
    pub(crate) r: ValueId,
    pub(crate) b: Option<ValueId>,
    pub(crate) p: Option<ValueId>,
    pub(crate) cell: Cell,
}

/// Gates of a cell.
pub(crate) fn gates(cell: Cell) -> usize {
    match cell {
        Cell::Rnn => 1,
        Cell::Gru { .. } => 3,
        Cell::Lstm { .. } => 4,
    }
}

/// Packed weights of a layer.
pub(crate) struct PackedRecurrent {
    pub(crate) directions: usize,
    pub(crate) input: usize,
    pub(crate) hidden: usize,
    gates: usize,
    data: AlignedBytes,
}

/// Weights of a layer as f32: `[d, gates · hidden, input]`, `[d, gates · hidden, hidden]`, `[d, 2 · gates · hidden]`, `[d, 3 · hidden]`.
pub(crate) struct Plain<'a> {
    pub(crate) w: &'a [f32],
    pub(crate) r: &'a [f32],
    pub(crate) b: Option<&'a [f32]>,
    pub(crate) p: Option<&'a [f32]>,
}

impl PackedRecurrent {
    /// Packs weights of `[directions, gates · hidden, input]` and so on; `None` when there is no memory.
    pub(crate) fn pack(plain: &Plain<'_>, cell: Cell, directions: usize, input: usize, hidden: usize) -> Option<Self> {
        let gates = gates(cell);
        let mut packed = PackedRecurrent { directions, input, hidden, gates, data: AlignedBytes::zeroed(0)? };
        let floats = directions * packed.direction_floats();
        packed.data = AlignedBytes::zeroed(floats.checked_mul(4)?)?;
        // SAFETY: the buffer is aligned, that long and just made.
        let data = unsafe { std::slice::from_raw_parts_mut(packed.data.as_mut_ptr().cast::<f32>(), floats) };
        let (padded, rows) = (hidden.next_multiple_of(BLOCK), gates * hidden);
        for (d, data) in data.chunks_mut(packed_floats(gates, input, hidden).max(1)).enumerate() {
            let (w, data) = data.split_at_mut(gates * padded * input);
            let (r, data) = data.split_at_mut(gates * padded * hidden);
            let (bias, data) = data.split_at_mut(gates * padded);
            let (recurrent_bias, peepholes) = data.split_at_mut(padded);
            for gate in 0..gates {
                for i in 0..hidden {
                    let (row, block) = (d * rows + gate * hidden + i, gate * padded / BLOCK + i / BLOCK);
                    for k in 0..input {
                        w[(block * input + k) * BLOCK + i % BLOCK] = plain.w[row * input + k];
                    }
                    for k in 0..hidden {
                        r[(block * hidden + k) * BLOCK + i % BLOCK] = plain.r[row * hidden + k];
                    }
                    if let Some(b) = plain.b {
                        let (of_w, of_r) =
                            (b[d * 2 * rows + gate * hidden + i], b[(2 * d + 1) * rows + gate * hidden + i]);
                        // A reset gate may come between the product with the state and its bias, and the rest.
                        if matches!(cell, Cell::Gru { .. }) && gate == 2 {
                            (bias[gate * padded + i], recurrent_bias[i]) = (of_w, of_r);
                        } else {
                            bias[gate * padded + i] = of_w + of_r;
                        }
                    }
                }
            }
            if let Some(p) = plain.p {
                for (gate, peepholes) in peepholes.chunks_mut(padded).enumerate() {
                    let first = (d * 3 + gate) * hidden;
                    peepholes[..hidden].copy_from_slice(&p[first..first + hidden]);
                }
            }
        }
        Some(packed)
    }

    fn direction_floats(&self) -> usize {
        packed_floats(self.gates, self.input, self.hidden)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// A direction's weights of the input, those of the state, biases, the recurrent bias and the peepholes.
    fn parts(&self, direction: usize) -> Parts {
        let padded = self.hidden.next_multiple_of(BLOCK);
        let w = self.data.as_ptr().cast::<f32>().wrapping_add(direction * self.direction_floats());
        let r = w.wrapping_add(self.gates * padded * self.input);
        let bias = r.wrapping_add(self.gates * padded * self.hidden);
        let recurrent_bias = bias.wrapping_add(self.gates * padded);
        Parts { w, r, bias, recurrent_bias, peepholes: recurrent_bias.wrapping_add(padded) }
    }
}

/// Elements of a direction.
fn packed_floats(gates: usize, input: usize, hidden: usize) -> usize {
    hidden.next_multiple_of(BLOCK) * (gates * (input + hidden + 1) + 4)
}

#[derive(Clone, Copy)]
struct Parts {
    w: *const f32,
    r: *const f32,
    bias: *const f32,
    recurrent_bias: *const f32,
    peepholes: *const f32,
}

/// A recurrent layer.
pub(crate) struct RecurrentStep {
    pub(crate) op: Recurrent,
    pub(crate) weights: RecurrentId,
    pub(crate) x: ValueId,
    pub(crate) lens: Option<ValueId>,
    pub(crate) initial: [Option<ValueId>; 2],
    pub(crate) y: ValueId,
    pub(crate) last: [Option<ValueId>; 2],
    /// Gates of all steps before the state has its say: `[d][gate][block][step · batch][16]`.
    pub(crate) sums: usize,
    /// Packed activations, [`pack_bytes`] for each thread.
    pub(crate) packed: usize,
    /// States, [`state_bytes`] for each sequence of each direction.
    pub(crate) states: usize,
    pub(crate) counter: usize,
}

/// Bytes of packed activations of a thread.
pub(crate) fn pack_bytes(input: usize) -> usize {
    crate::conv::tile::MAX_PIXELS * input.next_multiple_of(BLOCK) * 4
}

/// Bytes of all steps' gates.
pub(crate) fn sum_bytes(cell: Cell, directions: usize, hidden: usize, rows: usize) -> usize {
    directions * gates(cell) * hidden.next_multiple_of(BLOCK) * rows * 4
}

/// Bytes of one sequence's states: old and new hidden state, cell state, hidden state behind the reset gate.
pub(crate) fn state_bytes(hidden: usize) -> usize {
    4 * hidden.next_multiple_of(BLOCK) * 4
}

impl Step for RecurrentStep {
    fn describe(&self) -> String {
        format!("{:?} {:?} {} * {} -> {}", self.op.cell, self.op.direction, self.x, self.weights.w, self.y)
    }

    fn run(&self, cx: &RunContext<'_>) {
        let Some(weights) = cx.weights.recurrents.get(&self.weights) else { return };
        let &[steps, batch, input] = cx.view(self.x).shape else { return };
        let rows = steps * batch;
        let blocks = weights.gates * weights.hidden.div_ceil(BLOCK);
        let sums: *mut f32 = cx.scratch(self.sums).cast();
        let tile = cx.level.run(TileRows);
        let tiles = rows.div_ceil(tile);
        // With few rows the blocks of weights are divided among the threads, too.
        let parts = cx.worker.count.div_ceil((tiles * weights.directions).max(1)).min(blocks).max(1);
        let part = blocks.div_ceil(parts);
        let x = cx.view(self.x).f32();
        let packed = cx.scratch(self.packed).wrapping_add(cx.worker.index * pack_bytes(input)).cast();
        while let Some(unit) = cx.claim(self.counter, weights.directions * tiles * parts) {
            let (direction, unit) = (unit / (tiles * parts), unit % (tiles * parts));
            let (first, from) = (unit / parts * tile, unit % parts * part);
            cx.level.run(Projection {
                parts: weights.parts(direction),
                input,
                x,
                rows,
                tile: first..(first + tile).min(rows),
                blocks: from..(from + part).min(blocks),
                sums: sums.wrapping_add(direction * blocks * rows * BLOCK),
                packed,
            });
        }
        cx.worker.barrier();
        let lens = self.lens.map(|lens| cx.ints(lens));
        for sequence in cx.worker.share(weights.directions * batch) {
            let (direction, at) = (sequence / batch, sequence % batch);
            let len = lens.map_or(steps as i64, |lens| i64::from(lens[at]));
            let Some(len) = usize::try_from(len).ok().filter(|len| *len <= steps) else {
                let len = steps.saturating_add(1);
                let index = lens.map_or(0, |lens| i64::from(lens[at]));
                cx.fail(OpError::Index { what: "steps of a sequence", index, len });
                continue;
            };
            let per = self.op.activations.len() / weights.directions;
            let states = cx.scratch(self.states).wrapping_add(sequence * state_bytes(weights.hidden));
            let state = |id: Option<ValueId>| {
                id.map_or(std::ptr::null_mut(), |id| cx.view(id).f32().wrapping_add(sequence * weights.hidden))
            };
            cx.level.run(Sequence {
                op: &self.op,
                activations: &self.op.activations[direction * per..(direction + 1) * per],
                hidden: weights.hidden,
                parts: weights.parts(direction),
                sums: sums.wrapping_add((direction * blocks * rows + at) * BLOCK),
                rows,
                batch,
                steps,
                len,
                backwards: self.op.direction == Direction::Reverse || direction == 1,
                initial: self.initial.map(|id| state(id).cast_const()),
                y: cx.view(self.y).f32().wrapping_add((direction * batch + at) * weights.hidden),
                step_apart: weights.directions * batch * weights.hidden,
                last: self.last.map(state),
                states: states.cast(),
            });
        }
    }
}

/// Rows of activations that a level multiplies at a time.
struct TileRows;

impl Kernel for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        tile_pixels(S::LANES, usize::MAX)
    }
}

/// Products of some rows of the input with some blocks of weights.
struct Projection {
    parts: Parts,
    input: usize,
    x: *const f32,
    rows: usize,
    tile: std::ops::Range<usize>,
    blocks: std::ops::Range<usize>,
    sums: *mut f32,
    packed: *mut f32,
}

impl Kernel for Projection {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let segments = self.input.div_ceil(BLOCK);
        let mut row = self.tile.start;
        while row < self.tile.end {
            let n = tile_pixels(S::LANES, self.tile.end - row);
            for c in 0..n {
                let from = self.x.wrapping_add((row + c) * self.input);
                for segment in 0..segments {
                    let count = (self.input - segment * BLOCK).min(BLOCK);
                    let to = self.packed.wrapping_add((segment * n + c) * BLOCK);
                    // SAFETY: the row has these elements, the packed tile room for all.
                    unsafe { std::ptr::copy_nonoverlapping(from.add(segment * BLOCK), to, count) };
                }
            }
            let mut block = self.blocks.start;
            while block < self.blocks.end {
                let count = (self.blocks.end - block).min(2);
                let tile = Tile {
                    weights: self.parts.w.wrapping_add(block * self.input * BLOCK),
                    apart: self.input * BLOCK,
                    blocks: count,
                    x: self.packed,
                    segments,
                    x_apart: n * BLOCK,
                    phase: 0,
                    per_tap: segments,
                    last: self.input - segments.saturating_sub(1) * BLOCK,
                    bias: self.parts.bias.wrapping_add(block * BLOCK),
                    lanes: 2 * BLOCK,
                    y: self.sums.wrapping_add((block * self.rows + row) * BLOCK),
                    y_apart: self.rows * BLOCK,
                    at: &IN_A_ROW,
                    pixels: n,
                    accumulate: false,
                    epilogue: None,
                };
                // SAFETY: the tile was packed above, weights, biases and sums have these blocks and rows.
                unsafe { tile.run::<S, false>(s) };
                block += count;
            }
            row += n;
        }
    }
}

/// All steps of one sequence in one direction.
struct Sequence<'a> {
    op: &'a Recurrent,
    activations: &'a [Unary],
    hidden: usize,
    parts: Parts,
    /// Sums of the first block at step 0; `rows` vectors from one block to the next, `batch` from one step to the next.
    sums: *const f32,
    rows: usize,
    batch: usize,
    steps: usize,
    len: usize,
    backwards: bool,
    initial: [*const f32; 2],
    y: *mut f32,
    step_apart: usize,
    last: [*mut f32; 2],
    states: *mut f32,
}

impl Kernel for Sequence<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let padded = self.hidden.next_multiple_of(BLOCK);
        let state = |i: usize| self.states.wrapping_add(i * padded);
        let (mut old, mut new, c, kept) = (state(0), state(1), state(2), state(3));
        // SAFETY: each state has `padded` elements, values of states and of one step `hidden`.
        unsafe {
            std::ptr::write_bytes(self.states, 0, 4 * padded);
            for (to, initial) in [old, c].into_iter().zip(self.initial) {
                if !initial.is_null() {
                    std::ptr::copy_nonoverlapping(initial, to, self.hidden);
                }
            }
            for step in 0..self.len {
                let step = if self.backwards { self.len - 1 - step } else { step };
                match self.op.cell {
                    Cell::Rnn => self.rnn(s, step, old, new),
                    Cell::Gru { linear_before_reset } => self.gru(s, step, old, new, kept, linear_before_reset),
                    Cell::Lstm { input_forget } => self.lstm(s, step, old, new, c, input_forget),
                }
                std::ptr::copy_nonoverlapping(new, self.y.add(step * self.step_apart), self.hidden);
                (old, new) = (new, old);
            }
            for step in self.len..self.steps {
                std::ptr::write_bytes(self.y.add(step * self.step_apart), 0, self.hidden);
            }
            for (from, last) in [old, c].into_iter().zip(self.last) {
                if !last.is_null() {
                    std::ptr::copy_nonoverlapping(from, last, self.hidden);
                }
            }
        }
    }
}

impl Sequence<'_> {
    /// Sums of `N` gates from `first` on for a vector of elements of the state.
    #[inline(always)]
    unsafe fn sums<S: Simd, const N: usize>(
        &self,
        s: S,
        start: [S::F; N],
        first: usize,
        block: usize,
        lane: usize,
        h: *const f32,
    ) -> [S::F; N] {
        let blocks = self.hidden.div_ceil(BLOCK);
        let w: [*const f32; N] = std::array::from_fn(|gate| {
            self.parts.r.wrapping_add(((first + gate) * blocks + block) * self.hidden * BLOCK + lane)
        });
        // Two sums each, which hide more of the latency.
        let mut even = start;
        let mut odd = [s.f_splat(0.0); N];
        let mut k = 0;
        // SAFETY: a block has `hidden` rows of 16 weights, the state as many elements.
        unsafe {
            while k + 2 <= self.hidden {
                let (a, b) = (s.f_broadcast(h.add(k)), s.f_broadcast(h.add(k + 1)));
                for gate in 0..N {
                    even[gate] = s.f_fma(s.f_load(w[gate].add(k * BLOCK)), a, even[gate]);
                    odd[gate] = s.f_fma(s.f_load(w[gate].add((k + 1) * BLOCK)), b, odd[gate]);
                }
                k += 2;
            }
            if k < self.hidden {
                let a = s.f_broadcast(h.add(k));
                for gate in 0..N {
                    even[gate] = s.f_fma(s.f_load(w[gate].add(k * BLOCK)), a, even[gate]);
                }
            }
        }
        for gate in 0..N {
            even[gate] = s.f_add(even[gate], odd[gate]);
        }
        even
    }

    /// What the input and the biases come to for a vector of elements of the state and a gate.
    #[inline(always)]
    unsafe fn input<S: Simd>(&self, s: S, step: usize, gate: usize, block: usize, lane: usize) -> S::F {
        let blocks = self.hidden.div_ceil(BLOCK);
        let at = ((gate * blocks + block) * self.rows + step * self.batch) * BLOCK + lane;
        // SAFETY: the sums of all gates, blocks and steps are there.
        unsafe { s.f_load(self.sums.add(at)) }
    }

    #[inline(always)]
    fn activate<S: Simd>(&self, s: S, which: usize, x: S::F) -> S::F {
        let x = match self.op.clip {
            Some(clip) => s.f_min(s.f_splat(clip.get()), s.f_max(s.f_splat(-clip.get()), x)),
            None => x,
        };
        match self.activations[which] {
            Unary::Sigmoid => math::sigmoid(s, x),
            Unary::Tanh => math::tanh(s, x),
            Unary::Relu => s.f_max(x, s.f_splat(0.0)),
            other => math::unary(s, other, x),
        }
    }

    #[inline(always)]
    unsafe fn rnn<S: Simd>(&self, s: S, step: usize, old: *const f32, new: *mut f32) {
        for element in (0..self.hidden).step_by(S::LANES) {
            let (block, lane) = (element / BLOCK, element % BLOCK);
            // SAFETY: states are padded to whole blocks.
            unsafe {
                let [sum] = self.sums(s, [self.input(s, step, 0, block, lane)], 0, block, lane, old);
                s.f_store(new.add(element), self.activate(s, 0, sum));
            }
        }
    }

    #[inline(always)]
    unsafe fn lstm<S: Simd>(&self, s: S, step: usize, old: *const f32, new: *mut f32, c: *mut f32, coupled: bool) {
        let padded = self.hidden.next_multiple_of(BLOCK);
        for element in (0..self.hidden).step_by(S::LANES) {
            let (block, lane) = (element / BLOCK, element % BLOCK);
            // SAFETY: states and peepholes are padded to whole blocks.
            unsafe {
                let start: [S::F; MAX_GATES] = std::array::from_fn(|gate| self.input(s, step, gate, block, lane));
                let [i, o, f, g] = self.sums(s, start, 0, block, lane, old);
                let peephole = |gate: usize| s.f_load(self.parts.peepholes.add(gate * padded + element));
                let cell = s.f_load(c.add(element));
                let input = self.activate(s, 0, s.f_fma(peephole(0), cell, i));
                let forget = if coupled {
                    s.f_sub(s.f_splat(1.0), input)
                } else {
                    self.activate(s, 0, s.f_fma(peephole(2), cell, f))
                };
                let cell = s.f_fma(forget, cell, s.f_mul(input, self.activate(s, 1, g)));
                let output = self.activate(s, 0, s.f_fma(peephole(1), cell, o));
                s.f_store(c.add(element), cell);
                s.f_store(new.add(element), s.f_mul(output, self.activate(s, 2, cell)));
            }
        }
    }

    #[inline(always)]
    unsafe fn gru<S: Simd>(
        &self,
        s: S,
        step: usize,
        old: *const f32,
        new: *mut f32,
        kept: *mut f32,
        linear_before_reset: bool,
    ) {
        for element in (0..self.hidden).step_by(S::LANES) {
            let (block, lane) = (element / BLOCK, element % BLOCK);
            // SAFETY: states are padded to whole blocks; what is stored for later lies in buffers that this step does not read otherwise.
            unsafe {
                let (z, r) = (self.input(s, step, 0, block, lane), self.input(s, step, 1, block, lane));
                let h = s.f_load(old.add(element));
                if linear_before_reset {
                    let bias = s.f_load(self.parts.recurrent_bias.add(element));
                    let [z, r, product] = self.sums(s, [z, r, bias], 0, block, lane, old);
                    let (z, r) = (self.activate(s, 0, z), self.activate(s, 0, r));
                    let sum = s.f_fma(r, product, self.input(s, step, 2, block, lane));
                    self.blend(s, new.add(element), z, h, sum);
                } else {
                    let [z, r] = self.sums(s, [z, r], 0, block, lane, old);
                    s.f_store(new.add(element), self.activate(s, 0, z));
                    s.f_store(kept.add(element), s.f_mul(self.activate(s, 0, r), h));
                }
            }
        }
        if linear_before_reset {
            return;
        }
        for element in (0..self.hidden).step_by(S::LANES) {
            let (block, lane) = (element / BLOCK, element % BLOCK);
            // SAFETY: as above.
            unsafe {
                let bias = s.f_load(self.parts.recurrent_bias.add(element));
                let start = s.f_add(self.input(s, step, 2, block, lane), bias);
                let [sum] = self.sums(s, [start], 2, block, lane, kept);
                let z = s.f_load(new.add(element));
                self.blend(s, new.add(element), z, s.f_load(old.add(element)), sum);
            }
        }
    }

    /// `(1 - z) · g(sum) + z · h`
    #[inline(always)]
    unsafe fn blend<S: Simd>(&self, s: S, out: *mut f32, z: S::F, h: S::F, sum: S::F) {
        let candidate = self.activate(s, 1, sum);
        let value = s.f_fma(z, h, s.f_mul(s.f_sub(s.f_splat(1.0), z), candidate));
        // SAFETY: says the caller.
        unsafe { s.f_store(out, value) };
    }
}
