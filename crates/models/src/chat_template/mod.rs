//! Chat templates: from messages to the text that a model was trained to answer.
//!
//! A GGUF file carries the template of its model (`tokenizer.chat_template`) in the dialect of
//! Jinja that Hugging Face's `apply_chat_template` defines. Here minijinja runs it, with that
//! environment around it: blocks trimmed, `raise_exception`, `strftime_now`, the `tojson` of
//! Python, the methods of Python's strings and dictionaries, and `{% generation %}`.
//!
//! ```
//! use models::chat_template::{CHATML, ChatTemplate, Message, RenderOptions};
//!
//! let template = ChatTemplate::new(CHATML)?;
//! let text = template.render(&[Message::new("user", "Hi!")], &RenderOptions::default())?;
//! assert_eq!(text, "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n");
//! # Ok::<(), models::chat_template::ChatTemplateError>(())
//! ```
//!
//! A template is a program that came with a file. It can reach nothing but its arguments and the
//! date. Its length, its steps, its nesting, its output, the values that filters and methods make,
//! and its time are limited, and it runs on a stack of its own that is as deep as it can nest. What
//! minijinja has no limit for is what `+` and `~` make: a template that joins a string with itself
//! thirty times gets its gigabyte, until its time is over, and one that joins a list with itself often
//! enough ends the process for want of memory. Who runs templates of strangers in a process that has to
//! live renders them in another one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;

mod bounds;
mod json;

use bounds::{bound_filters, method, writable};
use json::to_json;

/// The template that most models follow that have none in their file.
pub const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The name of the threads that templates run on. What panics there is the template engine, and becomes an error: panic hooks can
/// leave it out.
pub const THREAD_NAME: &str = "chat template";

/// How many bytes a template may have: four times the longest that is known.
const LONGEST_SOURCE: usize = 64 << 10;

/// How many steps a template may take. Of 70 published ones most take 400 and then 80 for each
/// message, and the one that looks at all messages for each takes 4 for each pair.
fn most_steps(messages: usize) -> u64 {
    20_000 + 2_000 * messages as u64
}

/// How deep calls of macros and loops may nest.
const RECURSION: usize = 100;

/// How many bytes a template may write.
const LONGEST_OUTPUT: usize = 64 << 20;

/// How long a template may take. Published ones take less than a millisecond.
fn longest_time(messages: usize) -> Duration {
    Duration::from_secs(3) + Duration::from_millis(5) * u32::try_from(messages).unwrap_or(u32::MAX).min(10_000)
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: "system", "user" or "assistant" in nearly all templates.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a template gets besides the messages.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// The text of the token that begins a text, if the vocabulary has one.
    pub bos_token: Option<String>,
    /// The text of the token that ends a text, if the vocabulary has one.
    pub eos_token: Option<String>,
    /// Whether the text ends with the start of the model's next turn.
    pub add_generation_prompt: bool,
    /// Variables that some templates ask for, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for RenderOptions {
    /// No tokens and no variables, and the start of the model's turn.
    fn default() -> Self {
        RenderOptions { bos_token: None, eos_token: None, add_generation_prompt: true, variables: BTreeMap::new() }
    }
}

/// Why there is no text. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The file has no chat template.
    #[error("the file has no chat template")]
    Missing,
    /// The template is no valid Jinja, or uses what is not supported.
    #[error("the chat template does not parse{}: {message}", at_line(.line))]
    Syntax {
        /// Where.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// The template itself refuses these messages.
    #[error("the chat template refuses the messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template fails.
    #[error("the chat template fails{}: {message}", at_line(.line))]
    Failed {
        /// Where.
        line: Option<usize>,
        /// Why.
        message: String,
    },
    /// The template is longer than templates are.
    #[error("the chat template has {bytes} bytes, more than {LONGEST_SOURCE}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The template takes more steps than a template needs.
    #[error("the chat template was stopped after {steps} steps")]
    TooManySteps {
        /// How many it had.
        steps: u64,
    },
    /// The template writes more text than any model reads.
    #[error("the chat template was stopped after {LONGEST_OUTPUT} bytes of text")]
    TooMuchText,
    /// The template takes more time than a template needs. What it holds is given back when it ends, if it does.
    #[error("the chat template was stopped after {} seconds", .limit.as_secs())]
    TooMuchTime {
        /// How long it had.
        limit: Duration,
    },
}

fn at_line(line: &Option<usize>) -> String {
    line.map(|line| format!(" (line {line})")).unwrap_or_default()
}

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// The only template in its environment.
const NAME: &str = "chat";

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`ChatTemplateError::Syntax`] if it is none.
    pub fn new(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_recursion_limit(RECURSION);
        environment.set_formatter(|output, state, value| {
            writable(value)?;
            minijinja::escape_formatter(output, state, value)
        });
        environment.set_unknown_method_callback(method);
        bound_filters(&mut environment);
        // Writes all that there is, and is not of the dialect.
        environment.remove_global("debug");
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| strftime(&Zoned::now(), format));
        if source.len() > LONGEST_SOURCE {
            return Err(ChatTemplateError::TooLong { bytes: source.len() });
        }
        let source = without_generation_tags(source).into_owned();
        let add = move || environment.add_template_owned(NAME, source).map(|()| environment);
        let added = on_stack_for(LONGEST_SOURCE, longest_time(0), add)?;
        let environment = added.map_err(|error| {
            let message = description(&error);
            ChatTemplateError::Syntax { line: error.line(), message }
        })?;
        Ok(ChatTemplate { environment })
    }

    /// Parses the template of a file that may have none.
    ///
    /// # Errors
    /// [`ChatTemplateError::Missing`] without one, else those of [`ChatTemplate::new`].
    pub fn from_metadata(source: Option<&str>) -> Result<ChatTemplate, ChatTemplateError> {
        ChatTemplate::new(source.ok_or(ChatTemplateError::Missing)?)
    }

    /// Shows the template another time than now, in the local time zone: for texts that are to be
    /// the same every day.
    pub fn with_time(mut self, time: SystemTime) -> ChatTemplate {
        self.environment.add_function("strftime_now", move |format: &str| {
            let timestamp = Timestamp::try_from(time).map_err(invalid)?;
            strftime(&timestamp.to_zoned(TimeZone::system()), format)
        });
        self
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`ChatTemplateError::Refused`] if the template does not take such messages (many want user and
    /// assistant to alternate), others if it fails or runs away.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, ChatTemplateError> {
        let steps = most_steps(messages.len());
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        // A step can nest a list one deeper.
        let levels = usize::try_from(steps).unwrap_or(usize::MAX);
        let (messages, options) = (messages.to_vec(), options.clone());
        let limit = longest_time(messages.len());
        on_stack_for(levels, limit, move || run(&environment, &messages, &options, steps))?
    }
}

/// Renders the template of `environment`, which has `steps` to go.
fn run(
    environment: &Environment<'_>,
    messages: &[Message],
    options: &RenderOptions,
    steps: u64,
) -> Result<String, ChatTemplateError> {
    let failure = |error: minijinja::Error| failure(&error, steps);
    let template = environment.get_template(NAME).map_err(failure)?;
    let mut context: BTreeMap<&str, Value> =
        options.variables.iter().map(|(name, value)| (name.as_str(), Value::from_serialize(value))).collect();
    // Without a token its name is missing, too: templates ask whether it is defined.
    let tokens = [("bos_token", &options.bos_token), ("eos_token", &options.eos_token)];
    context.extend(tokens.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_ref()?)))));
    context.extend([
        ("messages", Value::from_serialize(messages)),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(options.add_generation_prompt)),
    ]);
    let mut output = Output::default();
    match template.render_captured_to(context, &mut output) {
        _ if output.full => Err(ChatTemplateError::TooMuchText),
        Err(error) => Err(failure(error)),
        Ok(_) => String::from_utf8(output.text).map_err(|error| without_line(&error)),
    }
}

/// Runs `work` with a stack for `levels` of nesting.
///
/// minijinja reads, compares, prints and drops what is nested by recursion. A level takes 400 bytes
/// of stack in an optimized build and 1,700 in one that is not. Memory that is not touched is not
/// taken.
///
/// Work that takes longer than `limit` is left alone: nothing can end a thread from outside.
fn on_stack_for<T: Send + 'static>(
    levels: usize,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ChatTemplateError> {
    const LEVEL: usize = 2 << 10;
    const OTHERS: usize = 16 << 20;
    const MOST: usize = if usize::BITS < 64 { 256 << 20 } else { 1 << 30 };
    let bytes = levels.saturating_mul(LEVEL).saturating_add(OTHERS).min(MOST);
    let (sender, receiver) = mpsc::channel();
    let builder = thread::Builder::new().name(THREAD_NAME.into()).stack_size(bytes);
    let running = builder
        .spawn(move || {
            let _nobody_waits_any_more = sender.send(work());
        })
        .map_err(|error| without_line(&error))?;
    match receiver.recv_timeout(limit) {
        Ok(result) => {
            // The thread still has to go: what it borrowed of the process's memory goes with it.
            let _sent_and_done = running.join();
            Ok(result)
        }
        Err(RecvTimeoutError::Timeout) => Err(ChatTemplateError::TooMuchTime { limit }),
        // minijinja panics on some expressions, such as the reverse of an empty list.
        Err(RecvTimeoutError::Disconnected) => {
            Err(without_line(&"an expression that the template engine has no answer to"))
        }
    }
}

fn without_line(message: &dyn fmt::Display) -> ChatTemplateError {
    ChatTemplateError::Failed { line: None, message: message.to_string() }
}

/// Text up to the limit.
#[derive(Default)]
struct Output {
    text: Vec<u8>,
    full: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > LONGEST_OUTPUT {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template says with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(message: &str) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned());
    Err(error.with_source(Raised(message.to_owned())))
}

/// Sorts out why rendering failed.
fn failure(error: &minijinja::Error, steps: u64) -> ChatTemplateError {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
    if let Some(raised) = causes.find_map(|cause| cause.downcast_ref::<Raised>()) {
        return ChatTemplateError::Refused { message: printable(&raised.0) };
    }
    match error.kind() {
        ErrorKind::OutOfFuel => ChatTemplateError::TooManySteps { steps },
        _ => ChatTemplateError::Failed { line: error.line(), message: description(error) },
    }
}

/// Foreign words, fit for one message on a terminal: no control characters, and not too many.
fn printable(text: &str) -> String {
    const LONGEST: usize = 1000;
    let mut result: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        result.push('…');
    }
    result
}

fn description(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {}", error.kind(), printable(detail)),
        None => error.kind().to_string(),
    }
}

fn invalid(error: impl fmt::Display) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string())
}

/// As in Python, where nothing cannot be iterated over (minijinja takes it for an empty list):
/// templates ask this of the tools, of which there are none.
fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || value.as_str().is_some() || !value.is_none() && value.try_iter().is_ok()
}

fn strftime(time: &Zoned, format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, time).map_err(invalid)
}

/// Replaces `{% generation %}` and its end, which mark for training what the model says and
/// have no effect on the text, by a condition that holds.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    let mut result = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(open) = source[at..].find("{%") {
        let start = at + open + 2;
        let Some(length) = source[start..].find("%}") else {
            break;
        };
        let statement = &source[start..start + length];
        let word = statement.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        if let Some(replacement) = replacement {
            let place = start + statement.find(word).unwrap_or(0);
            result.push_str(&source[copied..place]);
            result.push_str(replacement);
            copied = place + word.len();
        }
        at = start + length + 2;
    }
    match copied {
        0 => Cow::Borrowed(source),
        _ => Cow::Owned(result + &source[copied..]),
    }
}

#[cfg(test)]
mod tests;
