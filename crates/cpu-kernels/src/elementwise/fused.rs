//! Chains of element-wise operators as one step: blocks of elements that stay in the cache's first level pass through all of them.

use core_tensor::ValueId;
use core_tensor::op::{Binary, Unary};

use super::{BinaryRun, UnaryRows};
use crate::integer::image::{Pixels, pixel_bytes};
use crate::integer::quantize::{DequantizeRun, QuantizeRows, zero_at};
use crate::program::{RunContext, Step};

/// What an expression reads.
#[derive(Clone, Debug)]
pub(crate) enum Leaf {
    /// f32 of the result's extents.
    Floats(ValueId),
    /// One f32.
    Number(ValueId),
    /// One f32 for each index of the last extent.
    Row(ValueId),
    /// Bytes of the result's extents with one scale.
    Bytes(Bytes),
}

/// Bytes, and what they are worth.
#[derive(Clone, Debug)]
pub(crate) struct Bytes {
    pub(crate) value: ValueId,
    /// Where an image lies by pixels; plain without it.
    pub(crate) pixels: Option<Pixels>,
    pub(crate) signed: bool,
    pub(crate) scale: ValueId,
    pub(crate) zero: Option<ValueId>,
}

impl Bytes {
    fn numbers(&self, cx: &RunContext<'_>) -> (f32, i32, bool) {
        let scale = cx.floats(self.scale)[0];
        match &self.pixels {
            Some(pixels) => (scale, pixels.zero(cx, self.zero), false),
            None => (scale, zero_at(self.zero.map(|zero| cx.view(zero)), 0, self.signed), self.signed),
        }
    }

    fn ptr(&self, cx: &RunContext<'_>) -> *mut u8 {
        self.pixels.map_or(cx.view(self.value).ptr, |pixels| pixels.ptr(cx))
    }
}

/// A tree of operators.
#[derive(Clone, Debug)]
pub(crate) enum Expression {
    Leaf(Leaf),
    Unary(Unary, Box<Expression>),
    Binary(Binary, Box<[Expression; 2]>),
}

impl Expression {
    pub(crate) fn leaves<'a>(&'a self, found: &mut Vec<&'a Leaf>) {
        match self {
            Expression::Leaf(leaf) => found.push(leaf),
            Expression::Unary(_, x) => x.leaves(found),
            Expression::Binary(_, both) => both.iter().for_each(|x| x.leaves(found)),
        }
    }

    /// Operators, those that only convert counted, too.
    pub(crate) fn operators(&self) -> usize {
        match self {
            Expression::Leaf(Leaf::Bytes(_)) => 1,
            Expression::Leaf(_) => 0,
            Expression::Unary(_, x) => 1 + x.operators(),
            Expression::Binary(_, both) => 1 + both.iter().map(Expression::operators).sum::<usize>(),
        }
    }

    /// Blocks that are needed at a time.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Expression::Leaf(_) => 1,
            Expression::Unary(_, x) => x.depth(),
            Expression::Binary(_, both) => both[0].depth().max(1 + both[1].depth()),
        }
    }

    fn text(&self) -> String {
        match self {
            Expression::Leaf(Leaf::Bytes(bytes)) => format!("float({})", bytes.value),
            Expression::Leaf(Leaf::Floats(id) | Leaf::Number(id) | Leaf::Row(id)) => id.to_string(),
            Expression::Unary(op, x) => format!("{op:?}({})", x.text()),
            Expression::Binary(op, both) => format!("{op:?}({}, {})", both[0].text(), both[1].text()),
        }
    }
}

/// Where results go.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Floats(ValueId),
    Bytes(Bytes),
}

/// `y = expression`.
pub(crate) struct Fused {
    pub(crate) expression: Expression,
    pub(crate) y: Target,
    /// Scratch of each thread: [`BLOCK`] f32 for each level of the expression.
    pub(crate) scratch: usize,
}

/// Elements that pass through all operators at a time.
pub(crate) const BLOCK: usize = 1024;

/// Most blocks of a thread.
pub(crate) const MAX_DEPTH: usize = 5;

/// Bytes of scratch for one thread.
pub(crate) const fn scratch_bytes() -> usize {
    4 * BLOCK * MAX_DEPTH
}

/// A run of elements: where it begins, also in its row, and how many.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    column: usize,
    n: usize,
}

/// An operand of a run: where it begins, and whether it advances.
type Place = (*const f32, bool);

impl Step for Fused {
    fn describe(&self) -> String {
        match &self.y {
            Target::Floats(y) => format!("Fused {} -> {y}", self.expression.text()),
            Target::Bytes(bytes) => format!("Fused {} quantized -> {}", self.expression.text(), bytes.value),
        }
    }

    fn run(&self, cx: &RunContext<'_>) {
        let (y, pixels) = match &self.y {
            Target::Floats(y) => (*y, None),
            Target::Bytes(bytes) => (bytes.value, bytes.pixels),
        };
        let y = cx.view(y);
        let (len, cols) = match pixels {
            // What fills pixels up is computed, too.
            Some(pixels) => {
                let extent = pixels.extent(cx);
                (extent.batch * extent.pixels() * pixel_bytes(extent.channels), 0)
            }
            None => (y.len(), y.cols()),
        };
        let mut leaves = Vec::new();
        self.expression.leaves(&mut leaves);
        // Runs end with rows only where an operand is a row.
        let rows = leaves.iter().any(|leaf| matches!(leaf, Leaf::Row(_)));
        let blocks: *mut f32 = cx.scratch(self.scratch).wrapping_add(cx.worker.index * scratch_bytes()).cast();
        let mut share = cx.worker.share(len);
        while !share.is_empty() {
            let column = if rows { share.start % cols } else { 0 };
            let mut n = share.len().min(BLOCK);
            if rows {
                n = n.min(cols - column);
            }
            let run = Run { start: share.start, column, n };
            let out = match &self.y {
                Target::Floats(_) => y.f32().wrapping_add(run.start),
                Target::Bytes(_) => blocks,
            };
            let (x, advances) = self.value(cx, &self.expression, run, blocks, out);
            if let Target::Bytes(bytes) = &self.y {
                let (scale, zero, signed) = bytes.numbers(cx);
                let y = bytes.ptr(cx).wrapping_add(run.start);
                debug_assert!(advances, "an expression of the result's extents");
                cx.level.run(QuantizeRows { x, y, rows: 1, strides: [0, 0], n, scale, zero, signed });
            }
            share.start += n;
        }
    }
}

impl Fused {
    /// A run of an expression's elements: where they lie, or are brought to (`out`, by the last operator). `blocks` are free.
    fn value(&self, cx: &RunContext<'_>, e: &Expression, run: Run, blocks: *mut f32, out: *mut f32) -> Place {
        let Run { start, column, n } = run;
        match e {
            Expression::Leaf(Leaf::Floats(id)) => (cx.view(*id).f32().wrapping_add(start), true),
            Expression::Leaf(Leaf::Number(id)) => (cx.view(*id).f32(), false),
            Expression::Leaf(Leaf::Row(id)) => (cx.view(*id).f32().wrapping_add(column), true),
            Expression::Leaf(Leaf::Bytes(bytes)) => {
                let (scale, zero, signed) = bytes.numbers(cx);
                let x = bytes.ptr(cx).wrapping_add(start);
                cx.level.run(DequantizeRun { x, y: out, n, scale, zero, signed });
                (out, true)
            }
            Expression::Unary(op, x) => {
                let (x, _) = self.value(cx, x, run, blocks, blocks);
                cx.level.run(UnaryRows { op: *op, x, y: out, rows: 1, stride: 0, n });
                (out, true)
            }
            Expression::Binary(op, both) => {
                let (a, a_step) = self.value(cx, &both[0], run, blocks, blocks);
                let rest = blocks.wrapping_add(BLOCK);
                let (b, b_step) = self.value(cx, &both[1], run, rest, rest);
                cx.level.run(BinaryRun { op: *op, a, a_step, b, b_step, y: out, n });
                (out, true)
            }
        }
    }
}
