//! Recurrent layers.

use super::{Evaluation, Inference, OpError, Operator, expect_shape, filled, show};
use crate::{DType, Dim, ValueType};

/// Which way a recurrent layer goes through the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first step on.
    Forward,
    /// From the last step on.
    Reverse,
    /// Both, side by side.
    Bidirectional,
}

/// Activation of a gate: an element-wise function.
pub type Gate = super::Unary;

/// The kind of cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// ONNX RNN.
    Rnn,
    /// ONNX GRU; whether the reset gate applies after the product (linear_before_reset).
    Gru {
        /// ONNX linear_before_reset.
        linear_before_reset: bool,
    },
    /// ONNX LSTM; whether input and forget gate are coupled.
    Lstm {
        /// ONNX input_forget.
        input_forget: bool,
    },
}

/// A recurrent layer (ONNX RNN, GRU, LSTM), gates in ONNX's order (LSTM i o f c, GRU z r h). d = directions, g = gates (1, 3, 4).
///
/// Inputs: x f32 `[steps, batch, input]`; W `[d, g·hidden, input]`; R `[d, g·hidden, hidden]`; optionally B `[d, 2·g·hidden]`; optionally
/// sequence_lens i32 `[batch]`; optionally initial_h `[d, batch, hidden]`; LSTM only: optionally initial_c `[d, batch, hidden]` and peepholes P
/// `[d, 3·hidden]` (i o f). Outputs: Y `[steps, d, batch, hidden]`; Y_h `[d, batch, hidden]`; LSTM only: Y_c `[d, batch, hidden]`.
/// (layout = 1 is lowered to transposes by the importer.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurrent {
    /// The kind of cell.
    pub cell: Cell,
    /// Length of the hidden state.
    pub hidden: usize,
    /// Which way.
    pub direction: Direction,
    /// Activations: per direction 1 (RNN: f), 2 (GRU: f, g) or 3 (LSTM: f, g, h).
    pub activations: Vec<Gate>,
    /// Limits cell inputs to ±clip.
    pub clip: Option<super::Scalar>,
}

impl Cell {
    /// Rows of W and R per element of the hidden state.
    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 3,
            Cell::Lstm { .. } => 4,
        }
    }

    /// Activations per direction.
    fn activations(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru { .. } => 2,
            Cell::Lstm { .. } => 3,
        }
    }
}

/// One direction's weights.
struct Weights<'a> {
    w: &'a [f32],
    r: &'a [f32],
    /// Biases of W, then those of R.
    b: &'a [f32],
    peepholes: &'a [f32],
    activations: &'a [Gate],
}

impl Recurrent {
    fn directions(&self) -> usize {
        if self.direction == Direction::Bidirectional { 2 } else { 1 }
    }

    fn is_lstm(&self) -> bool {
        matches!(self.cell, Cell::Lstm { .. })
    }

    fn activate(&self, activation: Gate, x: f32) -> f32 {
        activation.apply(self.clip.map_or(x, |clip| x.max(-clip.get()).min(clip.get())))
    }

    /// One step of one sequence: the new hidden (and cell) state.
    fn step(&self, weights: &Weights<'_>, x: &[f32], h: &mut [f32], c: &mut [f32]) {
        let n = self.hidden;
        let gates = self.cell.gates();
        let rows = |matrix: &[f32], v: &[f32], bias: &[f32]| -> Vec<f32> {
            let dot = |row: usize| (0..v.len()).map(|i| matrix[row * v.len() + i] * v[i]).sum::<f32>();
            (0..gates * n).map(|row| dot(row) + bias[row]).collect()
        };
        let (w_bias, r_bias) = weights.b.split_at(gates * n);
        let (xs, hs) = (rows(weights.w, x, w_bias), rows(weights.r, h, r_bias));
        let act = |which: usize, x: f32| self.activate(weights.activations[which], x);
        match self.cell {
            Cell::Rnn => (0..n).for_each(|i| h[i] = act(0, xs[i] + hs[i])),
            Cell::Gru { linear_before_reset } => {
                let gate = |g: usize, i: usize| act(0, xs[g * n + i] + hs[g * n + i]);
                let update: Vec<f32> = (0..n).map(|i| gate(0, i)).collect();
                let reset: Vec<f32> = (0..n).map(|i| gate(1, i)).collect();
                let kept: Vec<f32> = h.iter().zip(&reset).map(|(h, r)| h * r).collect();
                for i in 0..n {
                    let row = 2 * n + i;
                    let recurrent = if linear_before_reset {
                        reset[i] * hs[row]
                    } else {
                        kept.iter().zip(&weights.r[row * n..]).map(|(h, r)| h * r).sum::<f32>() + r_bias[row]
                    };
                    h[i] = (1.0 - update[i]) * act(1, xs[row] + recurrent) + update[i] * h[i];
                }
            }
            Cell::Lstm { input_forget } => {
                for i in 0..n {
                    let sum = |g: usize| xs[g * n + i] + hs[g * n + i];
                    let peephole = |g: usize| weights.peepholes[g * n + i];
                    let input = act(0, sum(0) + peephole(0) * c[i]);
                    let forget = if input_forget { 1.0 - input } else { act(0, sum(2) + peephole(2) * c[i]) };
                    c[i] = forget * c[i] + input * act(1, sum(3));
                    let output = act(0, sum(1) + peephole(1) * c[i]);
                    h[i] = output * act(2, c[i]);
                }
            }
        }
    }
}

impl Operator for Recurrent {
    fn name(&self) -> &'static str {
        match self.cell {
            Cell::Rnn => "RNN",
            Cell::Gru { .. } => "GRU",
            Cell::Lstm { .. } => "LSTM",
        }
    }

    fn attributes(&self) -> String {
        let clip = self.clip.map_or(String::new(), |clip| format!(", clip={clip:?}"));
        let (cell, direction) = (self.cell, self.direction);
        let (hidden, activations) = (self.hidden, &self.activations);
        format!(" {{cell={cell:?}, hidden={hidden}, direction={direction:?}, activations={activations:?}{clip}}}")
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        if self.is_lstm() {
            cx.arity(3..=8, "3 to 8")?
        } else {
            cx.arity(3..=6, "3 to 6")?
        }
        let d = self.directions();
        let wrong = |name, reason: String| OpError::Attribute { name, reason };
        let gates = self.cell.gates().checked_mul(self.hidden).filter(|n| *n > 0 && n.checked_mul(2).is_some());
        let gates = gates.ok_or_else(|| wrong("hidden", format!("{} elements", self.hidden)))?;
        let pointless = |gate: &Gate| gate.is_predicate() || *gate == Gate::BitwiseNot;
        if self.activations.len() != d * self.cell.activations() || self.activations.iter().any(pointless) {
            return Err(wrong("activations", format!("{:?}", self.activations)));
        }
        let x = cx.f32(0)?;
        let [steps, batch, input] = x else {
            return Err(OpError::Shape(format!("x must be [steps, batch, input], it is {}", show(x))));
        };
        let (d, gates, hidden) = (Dim::Num(d), Dim::Num(gates), Dim::Num(self.hidden));
        expect_shape(cx.float(1)?, &[d.clone(), gates.clone(), input.clone()], "W")?;
        expect_shape(cx.float(2)?, &[d.clone(), gates.clone(), hidden.clone()], "R")?;
        let state = [d.clone(), batch.clone(), hidden.clone()];
        if cx.has(3) {
            expect_shape(cx.float(3)?, &[d.clone(), gates.mul(Dim::Num(2))], "B")?;
        }
        if cx.has(4) {
            let lens = cx.typed(4, &[DType::I32], "i32")?;
            expect_shape(lens, std::slice::from_ref(batch), "sequence_lens")?;
        }
        for input in [5, 6] {
            if cx.has(input) {
                expect_shape(cx.f32(input)?, &state, "the initial state")?;
            }
        }
        if cx.has(7) {
            expect_shape(cx.float(7)?, &[d.clone(), hidden.clone().mul(Dim::Num(3))], "P")?;
        }
        let mut outputs = vec![
            ValueType::tensor(DType::F32, &[steps.clone(), d, batch.clone(), hidden]),
            ValueType::tensor(DType::F32, &state),
        ];
        if self.is_lstm() {
            outputs.push(ValueType::tensor(DType::F32, &state));
        }
        Ok(outputs)
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let shape = cx.output_shape(0)?;
        let (steps, d, batch, n) = (shape[0], shape[1], shape[2], self.hidden);
        let (x, w, r) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?);
        let input = cx.last_extent(0)?;
        let rows = self.cell.gates() * n;
        let given = |input: usize, shape: &[usize]| if cx.has(input) { cx.f32(input) } else { filled(shape, 0.0) };
        let b = given(3, &[d, 2 * rows])?;
        let mut h = given(5, &[d, batch, n])?;
        let mut c = given(6, &[d, batch, n])?;
        let peepholes = given(7, &[d, 3, n])?;
        let lens = if cx.has(4) { cx.i32(4)? } else { vec![steps as i32; batch] };
        let mut y = filled(&shape, 0.0f32)?;
        for direction in 0..d {
            let per = self.cell.activations();
            let weights = Weights {
                w: &w[direction * rows * input..][..rows * input],
                r: &r[direction * rows * n..][..rows * n],
                b: &b[direction * 2 * rows..][..2 * rows],
                peepholes: &peepholes[direction * 3 * n..][..3 * n],
                activations: &self.activations[direction * per..][..per],
            };
            let backwards = self.direction == Direction::Reverse || direction == 1;
            for (sequence, len) in lens.iter().enumerate() {
                let len = usize::try_from(*len).ok().filter(|len| *len <= steps).ok_or(OpError::Index {
                    what: "steps of a sequence",
                    index: i64::from(*len),
                    len: steps.saturating_add(1),
                })?;
                let at = (direction * batch + sequence) * n;
                let (h, c) = (&mut h[at..at + n], &mut c[at..at + n]);
                for step in 0..len {
                    let step = if backwards { len - 1 - step } else { step };
                    self.step(&weights, &x[(step * batch + sequence) * input..][..input], h, c);
                    y[((step * d + direction) * batch + sequence) * n..][..n].copy_from_slice(h);
                }
            }
        }
        cx.put_f32(0, &y)?;
        cx.put_f32(1, &h)?;
        if self.is_lstm() { cx.put_f32(2, &c) } else { Ok(()) }
    }
}
