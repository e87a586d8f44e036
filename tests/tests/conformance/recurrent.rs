//! Recurrent layers.

use core_tensor::op::{Cell, Direction, Gate, Op, Recurrent, Scalar};
use core_tensor::{Bindings, DType, Dim, Graph, ValueId};
use proptest::prelude::*;

use crate::compare::Case;
use crate::random::{Random, ints};

/// A layer and what it is given.
#[derive(Clone, Debug)]
struct Shape {
    cell: Cell,
    direction: Direction,
    hidden: usize,
    input: usize,
    clip: Option<f32>,
    bias: bool,
    initial: bool,
    peepholes: bool,
    /// Steps and sequences of each run.
    sizes: Vec<(usize, usize)>,
    lens: bool,
}

const LSTM: Cell = Cell::Lstm { input_forget: false };

impl Shape {
    fn new(cell: Cell, direction: Direction, input: usize, hidden: usize) -> Shape {
        Shape {
            cell,
            direction,
            hidden,
            input,
            clip: None,
            bias: true,
            initial: false,
            peepholes: false,
            sizes: vec![(5, 2), (1, 1), (17, 1)],
            lens: false,
        }
    }

    fn case(&self, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let mut graph = Graph::new("recurrent");
        let (gates, per_direction) = match self.cell {
            Cell::Rnn => (1, vec![Gate::Tanh]),
            Cell::Gru { .. } => (3, vec![Gate::Sigmoid, Gate::Tanh]),
            Cell::Lstm { .. } => (4, vec![Gate::Sigmoid, Gate::Tanh, Gate::Tanh]),
        };
        let d = if self.direction == Direction::Bidirectional { 2 } else { 1 };
        let [steps, batch] = ["steps", "batch"].map(Dim::sym);
        let x = graph.input("x", DType::F32, &[steps, batch.clone(), self.input.into()]);
        let (n, rows) = (self.hidden, gates * self.hidden);
        let w = graph.weight("w", random.weight(DType::F32, &[d, rows, self.input]));
        let r = graph.weight("r", random.weight(DType::F32, &[d, rows, n]));
        let bias = self.bias.then(|| graph.weight("b", random.weight(DType::F32, &[d, 2 * rows])));
        let lens = self.lens.then(|| graph.input("lens", DType::I32, std::slice::from_ref(&batch)));
        let state = [d.into(), batch, n.into()];
        let is_lstm = matches!(self.cell, Cell::Lstm { .. });
        let h = self.initial.then(|| graph.input("h", DType::F32, &state));
        let c = (self.initial && is_lstm).then(|| graph.input("c", DType::F32, &state));
        let p = (self.peepholes && is_lstm).then(|| graph.weight("p", random.weight(DType::F32, &[d, 3 * n])));
        let op = Recurrent {
            cell: self.cell,
            hidden: n,
            direction: self.direction,
            activations: (0..d).flat_map(|_| per_direction.clone()).collect(),
            clip: self.clip.map(Scalar::new),
        };
        let mut inputs: Vec<Option<ValueId>> = vec![Some(x), Some(w), Some(r), bias, lens, h];
        if is_lstm {
            inputs.extend([c, p]);
        }
        let outputs = graph.add_node("y", Op::Recurrent(op), inputs).expect("a layer");
        outputs.into_iter().for_each(|y| graph.output(y));
        let mut runs = Vec::new();
        for (steps, batch) in &self.sizes {
            let mut inputs = vec![random.f32(&[*steps, *batch, self.input])];
            if self.lens {
                let lens: Vec<i32> = (0..*batch).map(|i| (steps - i.min(*steps)) as i32).collect();
                inputs.push(ints(&lens));
            }
            for _ in 0..usize::from(h.is_some()) + usize::from(c.is_some()) {
                inputs.push(random.f32(&[d, *batch, n]));
            }
            runs.push(inputs);
        }
        Case::new(graph, Bindings::new().with("steps", 18).with("batch", 3), runs)
    }
}

const CELLS: [Cell; 5] = [
    Cell::Rnn,
    Cell::Gru { linear_before_reset: false },
    Cell::Gru { linear_before_reset: true },
    LSTM,
    Cell::Lstm { input_forget: true },
];

#[test]
fn every_cell_agrees_in_every_direction() {
    let mut seed = 0;
    for cell in CELLS {
        for direction in [Direction::Forward, Direction::Reverse, Direction::Bidirectional] {
            seed += 1;
            Shape::new(cell, direction, 20, 24).case(seed).check();
        }
    }
}

#[test]
fn odd_sizes_agree() {
    for (i, cell) in CELLS.into_iter().enumerate() {
        for (j, (input, hidden)) in [(1, 1), (3, 17), (40, 16), (33, 50)].into_iter().enumerate() {
            let seed = 100 + (10 * i + j) as u64;
            Shape { bias: j % 2 == 0, ..Shape::new(cell, Direction::Forward, input, hidden) }.case(seed).check();
        }
    }
}

#[test]
fn initial_states_lengths_limits_and_peepholes_count() {
    for (i, cell) in CELLS.into_iter().enumerate() {
        let shape = Shape {
            initial: true,
            lens: true,
            sizes: vec![(6, 3), (2, 2)],
            ..Shape::new(cell, Direction::Bidirectional, 9, 18)
        };
        shape.case(200 + i as u64).check();
        Shape { clip: Some(0.5), ..shape.clone() }.case(210 + i as u64).check();
        Shape { peepholes: true, ..shape }.case(220 + i as u64).check();
    }
}

proptest! {
    #![proptest_config(crate::random::proptest_config(8))]

    #[test]
    fn layers_of_any_size_agree(
        which in 0usize..5,
        input in 1usize..40,
        hidden in 1usize..40,
        initial: bool,
        size in (1usize..18, 1usize..4),
        seed: u64,
    ) {
        let shape = Shape::new(CELLS[which], Direction::Forward, input, hidden);
        Shape { initial, sizes: vec![size], ..shape }.case(seed).check();
    }
}
