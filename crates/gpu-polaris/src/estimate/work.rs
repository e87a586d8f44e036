//! What each dispatch of a program asks of a card.

use std::collections::BTreeMap;

use core_tensor::op::Op;
use core_tensor::{BackendError, Bindings, Graph, StateId, ValueType};

use super::figures::{Figures, Loop};
use super::model::Work;
use crate::compile::Compiled;
use crate::plan::{Access, Dispatch, Memory, place};
use crate::step::Grid;

/// Bytes of the cache that all compute units share.
const CACHE: u64 = 2 << 20;

/// Vector instructions per multiply-add of a product whose figures are missing: of one column, where weights are unpacked for a single use, and of more.
const PRODUCT: [f64; 2] = [3.0, 1.3];

/// Vector instructions per multiply-add of attention, where its figures tell no unit of work.
const ATTENTION: f64 = 4.0;

/// Multiply-adds between two waits for memory, where figures are missing.
const BETWEEN_WAITS: f64 = 16.0;

/// Vector instructions per element of a kernel that goes over elements.
const ELEMENT: f64 = 16.0;

/// Waves that a SIMD holds, where figures are missing.
const OCCUPANCY: f64 = 4.0;

/// What a step does: so many rows after so many positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) past: usize,
}

impl Rows {
    /// Pairs of a row and a position that it sees.
    fn seen(self, window: Option<usize>) -> f64 {
        let seen = |row: usize| (self.past + row + 1).min(window.unwrap_or(usize::MAX));
        (0..self.rows).map(|row| seen(row) as f64).sum()
    }

    /// Positions that some row sees.
    fn touched(self, window: Option<usize>) -> f64 {
        let all = self.past + self.rows;
        all.min(window.map_or(usize::MAX, |window| window.saturating_add(self.rows))) as f64
    }
}

/// Turns dispatches into work.
pub(super) struct Works<'a> {
    graph: &'a Graph,
    compiled: &'a Compiled,
    figures: &'a Figures,
    step: Rows,
    words: Vec<u32>,
    /// Heads and window of the attention that reads a state.
    readers: BTreeMap<StateId, (usize, Option<usize>)>,
}

impl<'a> Works<'a> {
    /// # Errors
    /// When a symbol has no value.
    pub(super) fn new(
        graph: &'a Graph,
        compiled: &'a Compiled,
        figures: &'a Figures,
        bounds: &Bindings,
        step: Rows,
    ) -> Result<Works<'a>, BackendError> {
        let mut bytes = vec![0; compiled.values.len() * 4];
        compiled.values.eval(bounds, &mut bytes).map_err(core_tensor::GraphError::from)?;
        let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut readers = BTreeMap::new();
        for node in graph.nodes() {
            let Op::Attention(op) = &node.op else { continue };
            let input = |i: usize| node.inputs.get(i).copied().flatten();
            let shape = input(0).and_then(|q| graph.tensor_type(q)).map(|(_, shape)| shape);
            let heads = shape.and_then(|shape| shape.get(1)).and_then(|heads| heads.as_num()).unwrap_or(1);
            for id in [input(1), input(2)].into_iter().flatten() {
                if let ValueType::Token(state) = graph.value(id).ty {
                    readers.insert(state, (heads, op.window));
                }
            }
        }
        Ok(Works { graph, compiled, figures, step, words, readers })
    }

    fn groups(&self, grid: Grid) -> [f64; 3] {
        match grid {
            Grid::Fixed(groups) => groups.map(f64::from),
            Grid::Step(word) => std::array::from_fn(|i| self.words.get(word + i).map_or(1.0, |n| f64::from(*n))),
        }
    }

    /// Bytes of what a dispatch binds; a state's are those that the step sees.
    fn bytes(&self, memory: Memory) -> f64 {
        match memory {
            Memory::Value(_) | Memory::Scratch(_) => {
                let compiled = self.compiled;
                place(&compiled.places, &compiled.plan, compiled.guard, memory).map_or(0.0, |(_, len)| len as f64)
            }
            Memory::Weights(extent) => extent.len as f64,
            Memory::Rope(i) => self.compiled.ropes.get(i).map_or(0.0, |table| table.bytes as f64),
            Memory::State(id) => {
                let decl = self.graph.state(id);
                let head = decl.row.last().and_then(|dim| decl.dtype.row_bytes(*dim)).unwrap_or(0);
                let heads = decl.row.first().copied().unwrap_or(1);
                self.step.touched(self.window(id)) * (head * heads) as f64
            }
            // Scales are counted with their state; the rest is small, or the host's.
            Memory::StateScales(_) | Memory::Input(_) | Memory::Status | Memory::Output(_) | Memory::Unused => 0.0,
        }
    }

    fn window(&self, id: StateId) -> Option<usize> {
        self.readers.get(&id).and_then(|(_, window)| *window)
    }

    /// The work of a dispatch, and whether its figures are missing, so that a default stands for them.
    pub(super) fn of(&self, dispatch: &Dispatch) -> (Work, bool) {
        let groups = self.groups(dispatch.grid);
        let threads = dispatch.constants.iter().find(|(id, _)| *id == 0).map_or(64, |(_, threads)| *threads);
        let waves = (groups.iter().product::<f64>() * (f64::from(threads) / 64.0).ceil()).max(1.0);
        let figure = self.figures.find(&dispatch.shader, &dispatch.constants);
        let occupancy = figure.map_or(OCCUPANCY, |figure| figure.waves);
        let main = figure.and_then(|figure| figure.main.as_ref());
        let family = dispatch.shader.split('.').next().unwrap_or_default();
        let reads_state = dispatch
            .operands
            .iter()
            .any(|operand| operand.access == Access::Read && matches!(operand.memory, Memory::State(_)));
        if dispatch.work > 0.0 && family != "gather" && !reads_state {
            let columns = columns(&dispatch.shader, self.step.rows);
            let default = PRODUCT[usize::from(columns > 1.0)];
            let bytes = self.product_bytes(dispatch, groups[1]);
            let macs = dispatch.work * padding(columns, groups[1], self.step.rows);
            (multiply_adds(bytes, waves, occupancy, macs, columns, main, default), main.is_none())
        } else if reads_state {
            let (mut bytes, mut macs) = (0.0, 0.0);
            for operand in &dispatch.operands {
                bytes += self.bytes(operand.memory);
                if let Memory::State(id) = operand.memory {
                    let dim = self.graph.state(id).row.last().copied().unwrap_or(0);
                    let (heads, window) = self.readers.get(&id).copied().unwrap_or((1, None));
                    macs += self.step.seen(window) * (heads * dim) as f64;
                }
            }
            let work = multiply_adds(bytes, waves, occupancy, macs, 1.0, main, ATTENTION);
            (work, main.is_none())
        } else {
            (self.elements(dispatch, family, waves, occupancy), figure.is_none())
        }
    }

    /// Weights are read again for each tile of columns if they do not stay in the cache.
    fn product_bytes(&self, dispatch: &Dispatch, column_tiles: f64) -> f64 {
        let weights: f64 = dispatch
            .operands
            .iter()
            .filter(|operand| matches!(operand.memory, Memory::Weights(_)))
            .map(|operand| self.bytes(operand.memory))
            .sum();
        let others: f64 = dispatch.operands.iter().map(|operand| self.bytes(operand.memory)).sum::<f64>() - weights;
        let times = if weights as u64 > CACHE { column_tiles.max(1.0) } else { 1.0 };
        weights * times + others
    }

    /// Kernels that go over elements, rows or blocks once.
    fn elements(&self, dispatch: &Dispatch, family: &str, waves: f64, occupancy: f64) -> Work {
        let sizes = dispatch.operands.iter().filter(|operand| {
            // Of a table only as many rows are read as come out; what is written to a state is small beside what is read for it.
            let table = family == "gather" && matches!(operand.memory, Memory::Weights(_));
            !table && !matches!(operand.memory, Memory::State(_))
        });
        let sizes: Vec<f64> = sizes.map(|operand| self.bytes(operand.memory)).collect();
        let moved = sizes.iter().sum::<f64>();
        let bytes = if family == "gather" { 2.0 * moved } else { moved };
        let elements = sizes.iter().copied().fold(0.0, f64::max) / 4.0;
        let per_lane = (elements / (waves * 64.0)).ceil().max(1.0);
        let vector_clocks = per_lane * ELEMENT * 4.0;
        // Reductions and stores wait once more.
        Work { bytes, waves, vector_clocks, issue_clocks: 2.0 * vector_clocks, waits: per_lane + 1.0, occupancy }
    }
}

/// Columns that a product's kernel takes at once, by the end of its name: `matmul.q4_0.3x32` takes 32.
fn columns(shader: &str, rows: usize) -> f64 {
    let told = shader.rsplit('.').next().and_then(|shape| shape.split_once('x')?.1.parse::<u32>().ok());
    told.filter(|columns| *columns > 0).map_or(rows.clamp(1, 32) as f64, f64::from)
}

/// Columns that are computed for each that is wanted. A product of other rows than the step's (logits) has no tile to spare.
fn padding(columns: f64, tiles: f64, rows: usize) -> f64 {
    let rows = rows.max(1) as f64;
    if tiles == (rows / columns).ceil() { tiles * columns / rows } else { 1.0 }
}

fn multiply_adds(
    bytes: f64,
    waves: f64,
    occupancy: f64,
    macs: f64,
    columns: f64,
    main: Option<&Loop>,
    default: f64,
) -> Work {
    let lane = macs / (waves * 64.0);
    match main {
        Some(main) => {
            let trips = lane / main.work(columns);
            let (vector_clocks, issue_clocks) = (trips * main.vector_clocks, trips * main.issue_clocks);
            Work { bytes, waves, vector_clocks, issue_clocks, waits: trips.ceil(), occupancy }
        }
        None => {
            let vector_clocks = lane * default * 4.0;
            let waits = (lane / (BETWEEN_WAITS * columns)).ceil();
            Work { bytes, waves, vector_clocks, issue_clocks: 2.0 * vector_clocks, waits, occupancy }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_what_is_before_them_and_no_more_than_their_window() {
        let prompt = Rows { rows: 4, past: 0 };
        assert_eq!(prompt.seen(None), 10.0);
        assert_eq!(prompt.seen(Some(2)), 7.0);
        let token = Rows { rows: 1, past: 99 };
        assert_eq!((token.seen(None), token.touched(None)), (100.0, 100.0));
        assert_eq!((token.seen(Some(10)), token.touched(Some(10))), (10.0, 11.0));
    }

    #[test]
    fn the_columns_of_a_kernel_are_in_its_name() {
        assert_eq!(columns("matmul.q4_0.3x32", 512), 32.0);
        assert_eq!(columns("matmul.q4_0.2x1", 1), 1.0);
        assert_eq!(columns("gemm.q4_0", 1), 1.0);
        assert_eq!(padding(32.0, 16.0, 512), 1.0);
        assert_eq!(padding(32.0, 1.0, 16), 2.0);
        assert_eq!(padding(1.0, 1.0, 512), 1.0);
    }
}
