//! Generating text.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{
    CANDIDATES, ContextFull, FinishReason, GenerateOptions, Generation, Llama, MAX_ROWS, Piece, Row, Sequences, Timings,
};
use crate::Error;
use crate::sampler::{Sampler, StopMatcher};
use crate::tokenizer::StreamDecoder;

/// Generates into one slot of a session.
pub(super) struct Generator<'g, 'm> {
    model: &'m Llama,
    sequences: &'g mut Sequences<'m>,
    slot: usize,
    options: &'g GenerateOptions,
    sampler: Sampler,
    /// The logits after the last evaluated token; minus infinity where they are not among the highest and nobody needs them.
    logits: Vec<f32>,
    /// Tokens whose logits are in there, where only the highest are.
    candidates: Vec<i32>,
    /// Whether the highest logits are enough: the sampler looks at no others, and the device is far.
    few: bool,
    text: TextStream<'g>,
}

/// Text that comes out of tokens, and stops.
struct TextStream<'g> {
    decoder: StreamDecoder,
    matcher: StopMatcher,
    stops: &'g [String],
    text: String,
}

impl<'g, 'm> Generator<'g, 'm> {
    /// # Errors
    /// When a sampling option is out of range.
    pub(super) fn new(
        model: &'m Llama,
        sequences: &'g mut Sequences<'m>,
        slot: usize,
        options: &'g GenerateOptions,
    ) -> Result<Generator<'g, 'm>, Error> {
        let text = TextStream {
            decoder: StreamDecoder::new(),
            matcher: StopMatcher::new(options.stop.iter().cloned()),
            stops: &options.stop,
            text: String::new(),
        };
        let sampler = Sampler::new(options.sampling.clone())?;
        let few = model.runtime().backend().is_remote() && options.sampling.needs_at_most(CANDIDATES);
        let (logits, candidates) = (Vec::new(), Vec::new());
        Ok(Generator { model, sequences, slot, options, sampler, logits, candidates, few, text })
    }

    /// Continues `prompt`, whose first tokens the slot may hold already (as many as it is long).
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, or a step fails.
    pub(super) fn run(
        mut self,
        prompt: &[u32],
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let start = Instant::now();
        let context = self.model.context();
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(Error::PromptTooLong { tokens: prompt.len(), context, room: context - 1 });
        }
        let held = self.sequences.len(self.slot)?.min(prompt.len() - 1);
        let mut timings = Timings {
            load_seconds: self.model.load_seconds(),
            prompt_evaluated: prompt.len() - held,
            ..Timings::default()
        };
        let mut tokens = Vec::new();
        let finish = if self.evaluate(&prompt[held..])? {
            timings.prompt_seconds = start.elapsed().as_secs_f64();
            self.decode(prompt, &mut tokens, &mut timings, on_piece)?
        } else {
            FinishReason::Cancelled
        };
        if timings.first_token_seconds == 0.0 {
            timings.first_token_seconds = start.elapsed().as_secs_f64();
        } else {
            timings.first_token_seconds += timings.prompt_seconds;
        }
        let rest = self.text.finish(&finish);
        if !rest.is_empty() {
            // The generation is over; what the caller answers changes nothing.
            let _ = on_piece(Piece { token: None, text: &rest });
        }
        Ok(Generation { prompt_tokens: prompt.to_vec(), tokens, text: self.text.text, finish, timings })
    }

    fn decode(
        &mut self,
        prompt: &[u32],
        tokens: &mut Vec<u32>,
        timings: &mut Timings,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<FinishReason, Error> {
        let start = Instant::now();
        let mut history = prompt.to_vec();
        // What the slot's positions hold; shorter than the history once the context was shifted.
        let mut held = prompt.to_vec();
        loop {
            if tokens.len() >= self.options.max_tokens {
                return Ok(FinishReason::MaxTokens);
            }
            let token = self.sampler.sample(&self.logits, &history)?;
            if tokens.is_empty() {
                timings.first_token_seconds = start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
            }
            tokens.push(token);
            history.push(token);
            if self.model.tokenizer().is_end_of_generation(token) && !self.options.ignore_end {
                return Ok(FinishReason::EndOfText(token));
            }
            let (text, stop) = self.text.push(self.model, token);
            let flow = on_piece(Piece { token: Some(token), text: &text });
            if let Some(stop) = stop {
                return Ok(FinishReason::StopString(stop));
            }
            if flow.is_break() || self.is_cancelled() {
                return Ok(FinishReason::Cancelled);
            }
            if tokens.len() >= self.options.max_tokens {
                return Ok(FinishReason::MaxTokens);
            }
            if held.len() >= self.model.context() {
                match self.options.context_full {
                    ContextFull::Stop => return Ok(FinishReason::ContextFull),
                    ContextFull::Shift { keep } => {
                        timings.shifts += 1;
                        if !self.shift(&mut held, keep)? {
                            return Ok(FinishReason::Cancelled);
                        }
                    }
                }
            }
            held.push(token);
            self.evaluate(&[token])?;
            timings.decoded += 1;
            timings.decode_seconds = start.elapsed().as_secs_f64();
        }
    }

    /// Evaluates tokens in steps and keeps the last one's logits. False if the caller cancelled in between; single tokens are not
    /// cancelled.
    fn evaluate(&mut self, tokens: &[u32]) -> Result<bool, Error> {
        let slot = self.slot;
        let mut rest = tokens;
        while !rest.is_empty() {
            if tokens.len() > 1 && self.is_cancelled() {
                return Ok(false);
            }
            let (now, later) = rest.split_at(rest.len().min(MAX_ROWS));
            let last = now.len() - 1;
            let row = |(i, token): (usize, &u32)| Row { slot, token: *token, logits: later.is_empty() && i == last };
            let rows: Vec<Row> = now.iter().enumerate().map(row).collect();
            let logits = &mut self.logits;
            if self.few {
                let candidates = &mut self.candidates;
                logits.resize(self.model.config().vocabulary, f32::NEG_INFINITY);
                self.sequences.evaluate_candidates(&rows, &mut |highest, tokens| {
                    candidates.iter().for_each(|token| logits[*token as usize] = f32::NEG_INFINITY);
                    candidates.clear();
                    candidates.extend_from_slice(tokens);
                    for (token, logit) in tokens.iter().zip(highest) {
                        logits[*token as usize] = *logit;
                    }
                    Ok(())
                })?;
            } else {
                self.sequences.evaluate(&rows, &mut |row| {
                    logits.clear();
                    logits.extend_from_slice(row);
                    Ok(())
                })?;
            }
            rest = later;
        }
        Ok(true)
    }

    /// Keeps the first `keep` tokens and the newer half of the others, and evaluates those again. False if the caller cancelled.
    fn shift(&mut self, held: &mut Vec<u32>, keep: usize) -> Result<bool, Error> {
        // At least a quarter of the context becomes free.
        let keep = keep.min(held.len() / 2);
        let dropped = (held.len() - keep).div_ceil(2);
        held.drain(keep..keep + dropped);
        tracing::debug!(keep, dropped, "the context is full: shifting");
        let keep = if self.sequences.truncate(self.slot, keep).is_ok() { keep } else { 0 };
        self.sequences.truncate(self.slot, keep)?;
        self.evaluate(&held[keep..])
    }

    fn is_cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

impl TextStream<'_> {
    /// The text that a token makes certain, and the stop string that it completes.
    fn push(&mut self, model: &Llama, token: u32) -> (String, Option<String>) {
        let piece = self.decoder.push(model.tokenizer(), token);
        let stopped = self.matcher.push(&piece);
        self.text.push_str(&stopped.text);
        (stopped.text, stopped.stop.and_then(|index| self.stops.get(index).cloned()))
    }

    /// What was held back and is text after all.
    fn finish(&mut self, finish: &FinishReason) -> String {
        if matches!(finish, FinishReason::StopString(_)) {
            return String::new();
        }
        // The rest of a character may complete a stop string only if that ends in U+FFFD; it is text either way.
        let mut rest = self.matcher.push(&self.decoder.finish()).text;
        rest.push_str(&self.matcher.finish());
        self.text.push_str(&rest);
        rest
    }
}
