//! Signal processing.

use super::{Evaluation, Inference, OpError, Operator};
use crate::{Dim, ValueType};

/// Discrete Fourier transform along one extent (ONNX DFT).
///
/// Input: f32 `[..., n, ..., 1]` (real) or `[..., n, ..., 2]` (complex), the transformed extent first cut or filled with zeros to `length`.
/// Output: f32 `[..., m, ..., 2]`, m = length, or `length / 2 + 1` if `onesided`; the inverse of a onesided spectrum is real `[..., 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dft {
    /// The extent; negative counts from the end.
    pub axis: isize,
    /// Points.
    pub length: Dim,
    /// Whether it goes back (divided by `length`).
    pub inverse: bool,
    /// Whether only the first half of the spectrum is given (or, inverse, taken).
    pub onesided: bool,
}

super::pending!(Dft, "DFT", length);
