//! Conversations.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{GenerateOptions, Generation, Llama, Piece};
use crate::Error;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the template knows besides.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of a role.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }
}

/// How a conversation is held.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// The system message that it begins with.
    pub system: Option<String>,
    /// A template (Jinja) instead of the file's.
    pub template: Option<String>,
}

/// A conversation: its messages, and a sequence whose KV cache is kept between turns, so that only what is new is evaluated.
pub struct Chat<'a> {
    pub(super) model: &'a Llama,
}

impl Chat<'_> {
    /// Adds the user's message and generates the answer, which is added, too (also if it was stopped half-way).
    ///
    /// # Errors
    /// When the template fails, the conversation does not fit the context, or the backend fails; the conversation is
    /// then as it was before.
    pub fn send(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        let _ = (self.model, text, options, on_piece);
        todo!()
    }

    /// The messages so far.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        todo!()
    }

    /// Positions that the conversation takes in the context.
    #[must_use]
    pub fn context_used(&self) -> usize {
        todo!()
    }

    /// Forgets all messages but the system message.
    pub fn clear(&mut self) {
        todo!()
    }
}
