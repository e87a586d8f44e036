//! Several sequences side by side.

use super::Llama;
use crate::Error;

/// A token to evaluate: which sequence it continues, and whether its logits are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sequence.
    pub slot: usize,
    /// The token.
    pub token: u32,
    /// Whether the logits after it are wanted.
    pub logits: bool,
}

/// Sequences that share one session: every step may carry tokens of any of them.
pub struct Sequences<'a> {
    pub(super) model: &'a Llama,
}

impl Sequences<'_> {
    /// Evaluates tokens; each continues its sequence at the position that follows. Gives the logits of the rows that asked for
    /// them, in order.
    ///
    /// # Errors
    /// When a slot or token is out of range, a sequence has no room left, or the backend fails; sequences are then as before.
    pub fn step(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, Error> {
        let _ = (self.model, rows);
        todo!()
    }
}
