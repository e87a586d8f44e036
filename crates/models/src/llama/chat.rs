//! Conversations.

use std::ops::ControlFlow;

use super::generation::Generator;
use super::{ContextFull, GenerateOptions, Generation, Llama, Piece, Sequences};
use crate::Error;
use crate::chat_template::{ChatTemplate, Message, RenderOptions};
use crate::tokenizer::EncodeOptions;

/// How a conversation is held.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// The system message that it begins with.
    pub system: Option<String>,
    /// A template (Jinja) instead of the file's.
    pub template: Option<String>,
}

/// A conversation: its messages, and a sequence whose KV cache is kept between turns, so that only what is new is evaluated.
#[derive(Debug)]
pub struct Chat<'a> {
    model: &'a Llama,
    sequences: Sequences<'a>,
    template: ChatTemplate,
    messages: Vec<Message>,
    /// Messages after the system message that no longer fit the context and are not rendered.
    dropped: usize,
    /// The tokens that the sequence's positions hold.
    held: Vec<u32>,
}

impl<'a> Chat<'a> {
    pub(super) fn new(model: &'a Llama, options: ChatOptions) -> Result<Chat<'a>, Error> {
        let source = options.template.as_deref().or(model.chat_template());
        Ok(Chat {
            model,
            sequences: model.sequences(1)?,
            template: ChatTemplate::from_metadata(source)?,
            messages: options.system.iter().map(|text| Message::new("system", text.as_str())).collect(),
            dropped: 0,
            held: Vec::new(),
        })
    }

    /// Adds the user's message and generates the answer, which is added, too (also if it was stopped half-way). `options.encode` is
    /// not looked at: the template writes what is special.
    ///
    /// When the conversation no longer fits the context, [`ContextFull::Shift`] leaves its oldest turns out, and
    /// [`ContextFull::Stop`] makes it an error.
    ///
    /// # Errors
    /// When the template fails, the conversation does not fit the context, or the backend fails; the messages are
    /// then as they were before.
    pub fn send(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let dropped = self.dropped;
        self.messages.push(Message::new("user", text));
        let answer = self.answer(options, on_piece);
        match &answer {
            Ok(generation) => self.messages.push(Message::new("assistant", generation.text.as_str())),
            Err(_) => {
                self.messages.pop();
                self.dropped = dropped;
                // What the sequence holds after a failed step is not known for certain: begin again.
                self.held.clear();
                self.sequences.truncate(0, 0)?;
            }
        }
        answer
    }

    fn answer(
        &mut self,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let prompt = self.prompt(options)?;
        // The last token is evaluated in any case: its logits are needed.
        let common = self.held.iter().zip(&prompt[..prompt.len().saturating_sub(1)]);
        let mut common = common.take_while(|(held, new)| held == new).count();
        if self.sequences.truncate(0, common).is_err() {
            // A sliding window has moved past the place: evaluate everything again.
            common = 0;
            self.sequences.truncate(0, 0)?;
        }
        self.held.truncate(common);
        let generation = Generator::new(self.model, &mut self.sequences, 0, options)?.run(&prompt, on_piece)?;
        // The last token is not evaluated. After a shift the positions hold something else than the conversation.
        let all: Vec<u32> = generation.prompt_tokens.iter().chain(&generation.tokens).copied().collect();
        let len = self.sequences.len(0)?;
        self.held = match generation.timings.shifts {
            0 => all.into_iter().take(len).collect(),
            _ => {
                self.sequences.truncate(0, 0)?;
                Vec::new()
            }
        };
        Ok(generation)
    }

    /// The tokens of the conversation, without its oldest turns if it does not fit and may be shifted.
    fn prompt(&mut self, options: &GenerateOptions) -> Result<Vec<u32>, Error> {
        loop {
            let tokens = self.render()?;
            let (system, rest) = self.split();
            let is_last = self.dropped + 1 >= rest;
            if tokens.len() < self.model.context() || is_last || options.context_full == ContextFull::Stop {
                return Ok(tokens);
            }
            // A question goes with its answer, so that the roles still alternate.
            self.dropped += 1;
            let at = system + self.dropped;
            self.dropped += usize::from(self.messages.get(at).is_some_and(|message| message.role == "assistant"));
            tracing::debug!(dropped = self.dropped, "the conversation no longer fits the context");
        }
    }

    /// How many system messages begin the conversation, and how many messages follow.
    fn split(&self) -> (usize, usize) {
        let system = usize::from(self.messages.first().is_some_and(|message| message.role == "system"));
        (system, self.messages.len() - system)
    }

    fn render(&self) -> Result<Vec<u32>, Error> {
        let (system, _) = self.split();
        let messages: Vec<Message> =
            self.messages[..system].iter().chain(&self.messages[system + self.dropped..]).cloned().collect();
        let tokenizer = self.model.tokenizer();
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
        let render = RenderOptions {
            bos_token: token(tokenizer.bos()),
            eos_token: token(tokenizer.eos()),
            ..RenderOptions::default()
        };
        let text = self.template.render(&messages, &render)?;
        // Templates that write the first token themselves must not get it twice.
        let begun = render.bos_token.is_some_and(|bos| !bos.is_empty() && text.starts_with(&bos));
        Ok(self.model.tokenize(&text, EncodeOptions { add_special: !begun, parse_special: true }))
    }

    /// The messages so far.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Positions that the conversation takes in the context.
    #[must_use]
    pub fn context_used(&self) -> usize {
        self.held.len()
    }

    /// Forgets all messages but the system message.
    pub fn clear(&mut self) {
        let (system, _) = self.split();
        self.messages.truncate(system);
        self.dropped = 0;
        // The next turn keeps what it has in common with what is held.
    }
}
