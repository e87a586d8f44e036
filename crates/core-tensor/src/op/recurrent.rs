//! Recurrent layers.

use super::{Evaluation, Inference, OpError, Operator};
use crate::ValueType;

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

super::pending!(Recurrent, "Recurrent");
