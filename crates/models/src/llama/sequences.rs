//! Several sequences side by side.

use core_tensor::{Bindings, SlotSnapshot, StateError, Tensor};
use polaris_runtime::Session;

use super::graph::output;
use super::{Llama, MAX_ROWS};
use crate::Error;

/// Bytes of logits that one step computes at most.
const LOGIT_BYTES: usize = 64 << 20;

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

/// Told a row's highest logits and their tokens.
pub type EachCandidates<'a> = dyn FnMut(&[f32], &[i32]) -> Result<(), Error> + 'a;

/// Told a step's outputs and the number of a row in them.
type EachRow<'a> = dyn FnMut(&[Tensor], usize) -> Result<(), Error> + 'a;

/// Sequences that share one session: every step may carry tokens of any of them.
#[derive(Debug)]
pub struct Sequences<'a> {
    model: &'a Llama,
    session: Session,
}

impl<'a> Sequences<'a> {
    pub(super) fn new(model: &'a Llama, slots: usize) -> Result<Sequences<'a>, Error> {
        if slots == 0 || i32::try_from(slots).is_err() {
            return Err(Error::Option { name: "slots", reason: format!("{slots} sequences cannot be held") });
        }
        let session = model.runtime().session(slots, &Bindings::new())?;
        Ok(Sequences { model, session })
    }

    /// Evaluates tokens; each continues its sequence at the position that follows. Gives the logits of the rows that asked for
    /// them, in order. More rows than fit a step are evaluated in several.
    ///
    /// # Errors
    /// When a slot or token is out of range, a sequence has no room left, or the backend fails; sequences are then as before (a sliding
    /// window that has moved on leaves its sequence empty).
    pub fn step(&mut self, rows: &[Row]) -> Result<Vec<Vec<f32>>, Error> {
        let mut all = Vec::new();
        self.evaluate(rows, &mut |logits| {
            all.push(logits.to_vec());
            Ok(())
        })?;
        Ok(all)
    }

    /// As [`Sequences::step`], and hands the logits to `each` instead of copying them.
    ///
    /// # Errors
    /// As [`Sequences::step`], and what `each` returns.
    pub fn evaluate(&mut self, rows: &[Row], each: &mut dyn FnMut(&[f32]) -> Result<(), Error>) -> Result<(), Error> {
        self.evaluate_for(rows, &[output::LOGITS], &mut |outputs, row| {
            let logits = outputs[0].elements::<f32>()?;
            let width = self::row(&logits, outputs[0].shape());
            each(&logits[row * width..][..width])
        })
    }

    /// As [`Sequences::evaluate`], and gives of each row's logits the highest alone, [`super::CANDIDATES`] at most, with their tokens: best first, of
    /// equal logits the lower token first. A device far from the host sends no more than these.
    ///
    /// # Errors
    /// As [`Sequences::evaluate`].
    pub fn evaluate_candidates(&mut self, rows: &[Row], each: &mut EachCandidates<'_>) -> Result<(), Error> {
        self.evaluate_for(rows, &[output::CANDIDATE_LOGITS, output::CANDIDATES], &mut |outputs, row| {
            let (logits, tokens) = (outputs[0].elements::<f32>()?, outputs[1].elements::<i32>()?);
            let width = self::row(&logits, outputs[0].shape());
            each(&logits[row * width..][..width], &tokens[row * width..][..width])
        })
    }

    /// Evaluates rows and hands some of the graph's outputs to `each` for every row that asked for logits, with its number in them.
    fn evaluate_for(&mut self, rows: &[Row], outputs: &[usize], each: &mut EachRow<'_>) -> Result<(), Error> {
        let before = self.check(rows)?;
        let mut rest = rows;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.rows_of_a_step(rest));
            if let Err(error) = self.run(now, outputs, each) {
                self.rewind(&before);
                return Err(error);
            }
            rest = later;
        }
        Ok(())
    }

    /// Slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.session.slots()
    }

    /// Positions that a sequence holds.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn len(&self, slot: usize) -> Result<usize, StateError> {
        self.session.len(slot)
    }

    /// Forgets all positions of a sequence from `len` on.
    ///
    /// # Errors
    /// When it holds fewer, or a sliding window has moved past what would be needed.
    pub fn truncate(&mut self, slot: usize, len: usize) -> Result<(), StateError> {
        self.session.truncate(slot, len)
    }

    /// Makes sequence `to` a copy of sequence `from`.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn copy_slot(&mut self, from: usize, to: usize) -> Result<(), StateError> {
        self.session.copy_slot(from, to)
    }

    /// What a sequence holds, to restore it later.
    ///
    /// # Errors
    /// When there is no such slot.
    pub fn save_slot(&self, slot: usize) -> Result<SlotSnapshot, StateError> {
        self.session.save_slot(slot)
    }

    /// Makes a sequence hold what was saved.
    ///
    /// # Errors
    /// When it does not fit; the sequence is then unchanged.
    pub fn restore_slot(&mut self, slot: usize, snapshot: &SlotSnapshot) -> Result<(), StateError> {
        self.session.restore_slot(slot, snapshot)
    }

    /// Checks all rows before any is evaluated. Gives the lengths of all sequences.
    fn check(&self, rows: &[Row]) -> Result<Vec<usize>, Error> {
        let before: Vec<usize> = (0..self.slots()).map(|slot| self.len(slot)).collect::<Result<_, _>>()?;
        let mut after = before.clone();
        for row in rows {
            let slots = after.len();
            let len = after.get_mut(row.slot).ok_or(StateError::Slot { slot: row.slot, slots })?;
            *len += 1;
            if row.token as usize >= self.model.config().vocabulary {
                return Err(Error::Token { token: row.token, vocabulary: self.model.config().vocabulary });
            }
        }
        let context = self.model.context();
        match after.iter().zip(&before).find(|(after, _)| **after > context) {
            Some((after, before)) => {
                Err(Error::PromptTooLong { tokens: after - before, context, room: context.saturating_sub(*before) })
            }
            None => Ok(before),
        }
    }

    /// How many of the rows the next step takes: up to its bound of rows, and of logits up to their budget.
    fn rows_of_a_step(&self, rows: &[Row]) -> usize {
        let most = (LOGIT_BYTES / (4 * self.model.config().vocabulary).max(1)).max(1);
        let mut logits = 0;
        let fits = |row: &&Row| {
            logits += usize::from(row.logits);
            logits <= most
        };
        rows.iter().take(MAX_ROWS).take_while(fits).count()
    }

    /// Evaluates rows, [`MAX_ROWS`] at a time, and hands some of the graph's outputs to `each` after every step.
    pub(super) fn outputs(
        &mut self,
        rows: &[Row],
        outputs: &[usize],
        each: &mut dyn FnMut(&[Tensor]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.check(rows)?;
        for step in rows.chunks(MAX_ROWS) {
            let result = self.run_step(step, outputs).and_then(|(outputs, _)| each(&outputs));
            if let Err(error) = result {
                self.rewind(&before);
                return Err(error);
            }
        }
        Ok(())
    }

    fn run(&mut self, rows: &[Row], outputs: &[usize], each: &mut EachRow<'_>) -> Result<(), Error> {
        let (outputs, wanted) = self.run_step(rows, outputs)?;
        (0..wanted).try_for_each(|row| each(&outputs, row))
    }

    /// Some of the outputs of a step, and how many rows asked for logits.
    fn run_step(&mut self, rows: &[Row], outputs: &[usize]) -> Result<(Vec<Tensor>, usize), Error> {
        let mut next: Vec<usize> = (0..self.slots()).map(|slot| self.len(slot)).collect::<Result<_, _>>()?;
        let mut positions = Vec::with_capacity(rows.len());
        for row in rows {
            positions.push(next[row.slot] as i32);
            next[row.slot] += 1;
        }
        let mut asked: Vec<i32> = (0..rows.len()).filter(|row| rows[*row].logits).map(|row| row as i32).collect();
        let wanted = asked.len();
        if wanted == 0 {
            // A graph always gives some logits; one row's are cheap beside the rest.
            asked.push(rows.len() as i32 - 1);
        }
        let ints = |values: &[i32]| Tensor::from_slice(&[values.len()], values);
        let tokens: Vec<i32> = rows.iter().map(|row| row.token as i32).collect();
        let slots: Vec<i32> = rows.iter().map(|row| row.slot as i32).collect();
        let inputs = [ints(&tokens)?, ints(&positions)?, ints(&slots)?, ints(&asked)?];
        Ok((self.model.runtime().step_for(&mut self.session, &inputs, outputs)?, wanted))
    }

    /// Undoes the steps of an evaluation that failed half-way.
    fn rewind(&mut self, before: &[usize]) {
        for (slot, len) in before.iter().enumerate() {
            if self.session.truncate(slot, *len).is_err() {
                // Emptying a slot that exists cannot fail.
                let _ = self.session.truncate(slot, 0);
            }
        }
    }
}

/// Elements of a row of an output.
fn row(elements: &[f32], shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(elements.len())
}
