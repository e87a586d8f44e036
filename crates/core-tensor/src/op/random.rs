//! Pseudo-random numbers.

use super::{Evaluation, Inference, OpError, Operator};
use crate::{DType, Dim, ValueType};

/// What numbers are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Between two numbers.
    Uniform {
        /// From.
        low: f32,
        /// To.
        high: f32,
    },
    /// Bell curve.
    Normal {
        /// Center.
        mean: f32,
        /// Standard deviation.
        scale: f32,
    },
}

/// Random numbers (ONNX RandomNormal, RandomUniform), the same in every run: the seed is part of the graph. No inputs. Output: dtype and shape given.
/// (Numbers differ from other runtimes': ONNX leaves the generator open.)
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    /// What they are drawn from.
    pub distribution: Distribution,
    /// The seed.
    pub seed: u64,
    /// f32 or f64.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<Dim>,
}

super::pending!(Random, "Random", [shape]);
