//! Writing states.

use super::{Evaluation, Inference, OpError, Operator, show};
use crate::{Dim, StateId, ValueType};

/// Writes one row per token into a state, at each row's slot and position.
///
/// Inputs: rows f32 `[tokens, ...row]`; positions i32 `[tokens]`; slots i32 `[tokens]`; optionally the token of an earlier write to the same
/// state. Output: the state's token, which later reads consume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// The state.
    pub state: StateId,
}

impl Operator for StateWrite {
    fn name(&self) -> &'static str {
        "StateWrite"
    }

    fn attributes(&self) -> String {
        format!(" {{state={}}}", self.state)
    }

    fn infer(&self, cx: &Inference<'_>) -> Result<Vec<ValueType>, OpError> {
        cx.arity(3..=4, "3 or 4")?;
        let rows = cx.f32(0)?;
        let Some(state) = cx.states.get(self.state.index()) else {
            return Err(OpError::Attribute { name: "state", reason: format!("{} is not declared", self.state) });
        };
        let (positions, slots) = (cx.i32_vector(1)?, cx.i32_vector(2)?);
        let fits = rows.len() == state.row.len() + 1
            && rows[1..].iter().zip(&state.row).all(|(dim, extent)| *dim == Dim::Num(*extent))
            && rows[0] == *positions
            && rows[0] == *slots;
        if !fits {
            return Err(OpError::Shape(format!(
                "rows {} with {positions} positions and {slots} slots do not fit a state of rows {:?}",
                show(rows),
                state.row
            )));
        }
        if cx.has(3) && cx.token(3)?.0 != self.state {
            return Err(OpError::DType { input: 3, expected: "the same state's token", found: "another's".into() });
        }
        Ok(vec![ValueType::Token(self.state)])
    }

    fn eval(&self, cx: &mut Evaluation<'_>) -> Result<(), OpError> {
        let rows = cx.f32(0)?;
        let (positions, slots) = (cx.i32(1)?, cx.i32(2)?);
        let row_len: usize = cx.states.row_shape(self.state).iter().product();
        for (token, (position, slot)) in positions.iter().zip(&slots).enumerate() {
            cx.states.write(self.state, *slot, *position, &rows[token * row_len..][..row_len])?;
        }
        Ok(())
    }
}
