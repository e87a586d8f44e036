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
//! thirty times gets its gigabyte, until its time is over.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value, filters};
use serde::Serialize;

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

/// How many bytes or items a filter or method may make.
const LARGEST_VALUE: usize = 16 << 20;

/// How many parts of a value may be written at once, and how deep they may nest.
const MOST_PARTS: usize = 1 << 20;
const DEEPEST_PART: usize = 20_000;

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

/// Puts limits before the filters that make much of little.
fn bound_filters(environment: &mut Environment<'_>) {
    let mut bound = |name: &'static str, filter: Value, size: fn(&[Value]) -> usize| {
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            within_limit(size(&arguments))?;
            filter.call(state, &arguments)
        });
    };
    bound("replace", Value::from_function(filters::replace), replaced_size);
    bound("join", Value::from_function(filters::join), |arguments| match arguments {
        [items, joiner, ..] => joined_size(items, joiner),
        [items] => joined_size(items, &Value::from("")),
        [] => 0,
    });
    bound("indent", Value::from_function(filters::indent), |arguments| {
        let [text, ..] = arguments else { return 0 };
        let lines = text.as_str().map_or(1, |text| 1 + text.matches('\n').count());
        lines.saturating_mul(number(arguments, 1, "width"))
    });
    // Each part is a list.
    const PART: usize = 64;
    bound("batch", Value::from_function(filters::batch), |arguments| {
        number(arguments, 1, "count").saturating_mul(PART)
    });
    bound("slice", Value::from_function(filters::slice), |arguments| {
        number(arguments, 1, "count").saturating_mul(PART)
    });
    bound("format", Value::from_function(filters::format), |arguments| arguments.first().map_or(0, widths));
    for (name, filter) in
        [("string", Value::from_function(filters::string)), ("pprint", Value::from_function(filters::pprint))]
    {
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<Value>| {
            arguments.first().map_or(Ok(()), writable)?;
            filter.call(state, &arguments)
        });
    }
}

/// The methods of Python's types, with the same limits.
fn method(state: &State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, minijinja::Error> {
    let size = match (name, arguments) {
        ("replace", [from, to, ..]) => replaced_size(&[value.clone(), from.clone(), to.clone()]),
        ("join", [items, ..]) => joined_size(items, value),
        ("format", _) => widths(value),
        _ => 0,
    };
    within_limit(size)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn within_limit(size: usize) -> Result<(), minijinja::Error> {
    if size <= LARGEST_VALUE {
        return Ok(());
    }
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "the result is too large"))
}

fn replaced_size(arguments: &[Value]) -> usize {
    let length = |at: usize| arguments.get(at).and_then(Value::as_str).map_or(0, str::len);
    let (text, from, to) = (length(0), length(1), length(2));
    // Nothing is found before each character and at the end.
    let found = text.checked_div(from).unwrap_or(text + 1);
    found.saturating_mul(to).saturating_add(text)
}

fn joined_size(items: &Value, joiner: &Value) -> usize {
    let between = joiner.as_str().map_or(0, str::len).saturating_mul(items.len().unwrap_or(0));
    let own = match items.kind() {
        ValueKind::Seq => items.try_iter().map_or(0, |items| items.map(|item| item.as_str().map_or(0, str::len)).sum()),
        _ => 0usize,
    };
    between.saturating_add(own)
}

/// The number of an argument that may have a name; 0 where there is none.
fn number(arguments: &[Value], at: usize, name: &str) -> usize {
    let named = || Kwargs::try_from(arguments.last()?.clone()).ok()?.peek::<usize>(name).ok();
    arguments.get(at).and_then(Value::as_usize).or_else(named).unwrap_or(0)
}

/// What the widths in a format come to: no text that is meant for a model is padded by more than three digits.
fn widths(format: &Value) -> usize {
    let is_wide =
        |text: &str| text.contains('*') || text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if format.as_str().is_some_and(is_wide) { usize::MAX } else { 0 }
}

/// Refuses what has too many parts, or none that is the innermost: a namespace may hold itself.
fn writable(value: &Value) -> Result<(), minijinja::Error> {
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map);
    if !is_list(value) {
        return Ok(());
    }
    let mut waiting = vec![(value.clone(), 0)];
    let mut parts = 0;
    while let Some((value, depth)) = waiting.pop() {
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            parts += 1;
            if parts > MOST_PARTS || depth > DEEPEST_PART {
                return Err(invalid("a value with too many parts to be written"));
            }
            let item = if is_map { value.get_item(&item)? } else { item };
            if is_list(&item) {
                waiting.push((item, depth + 1));
            }
        }
    }
    Ok(())
}

/// As in Python, where nothing cannot be iterated over (minijinja takes it for an empty list):
/// templates ask this of the tools, of which there are none.
fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || value.as_str().is_some() || !value.is_none() && value.try_iter().is_ok()
}

fn strftime(time: &Zoned, format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, time).map_err(invalid)
}

/// `json.dumps` of Python as `apply_chat_template` calls it, with `indent` and `separators`. The
/// other arguments of Python have no effect on what templates put out.
fn to_json(value: &Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<(String, String)> =
        arguments.get::<Option<Value>>("separators")?.map_or(Ok(None), |pair| {
            let item = |at| pair.get_item_by_index(at).map(|item| item.to_string());
            Ok::<_, minijinja::Error>(Some((item(0)?, item(1)?)))
        })?;
    for ignored in ["ensure_ascii", "sort_keys"] {
        let _: Option<Value> = arguments.get(ignored)?;
    }
    arguments.assert_all_used()?;
    writable(value)?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((item.to_owned(), ": ".to_owned()));
    let mut json = Vec::new();
    // The widest indentation that a template could mean; each line repeats it.
    let indent = indent.map(|width| " ".repeat(width.min(16)));
    let format = PythonJson { item, key, indent, depth: 0, empty: true };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, format)).map_err(invalid)?;
    String::from_utf8(json).map_err(invalid)
}

/// The layout of Python's `json.dumps`.
struct PythonJson {
    item: String,
    key: String,
    indent: Option<String>,
    depth: usize,
    /// Whether the innermost list has no entries yet.
    empty: bool,
}

impl PythonJson {
    fn begin<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn entry<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.new_line(writer)
    }

    fn end<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !std::mem::take(&mut self.empty) {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn new_line<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
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
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, ChatTemplateError> {
        ChatTemplate::new(source)?.render(&[Message::new("user", "a<b")], &RenderOptions::default())
    }

    fn failed(result: Result<String, ChatTemplateError>) -> (Option<usize>, String) {
        match result {
            Err(ChatTemplateError::Failed { line, message }) => (line, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_are_trimmed_and_nothing_is_escaped() {
        let source =
            "{% for message in messages %}\n  {% if true %}\n{{ message['content'] }}\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source).unwrap(), "a<b\n");
    }

    #[test]
    fn the_last_line_end_of_the_template_is_dropped() {
        assert_eq!(render("x\n\n").unwrap(), "x\n");
    }

    #[test]
    fn tokens_are_defined_only_where_they_are_given() {
        let template = ChatTemplate::new("{{ bos_token }}|{{ eos_token is defined }}").unwrap();
        let options = RenderOptions { bos_token: Some("<s>".into()), ..RenderOptions::default() };
        assert_eq!(template.render(&[], &options).unwrap(), "<s>|False");
    }

    #[test]
    fn variables_reach_the_template_and_do_not_hide_the_messages() {
        let template = ChatTemplate::new("{{ enable_thinking }} {{ messages | length }}").unwrap();
        let variables = [("enable_thinking", false.into()), ("messages", "none".into())];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        let options = RenderOptions { variables, ..RenderOptions::default() };
        assert_eq!(template.render(&[], &options).unwrap(), "False 0");
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{% for m in messages %}{% if loop.first %}{{ ' x '.strip() + m.get('role').upper() }}{% break %}{% endif %}{% endfor %}";
        assert_eq!(render(source).unwrap(), "xUSER");
    }

    #[test]
    fn json_is_laid_out_as_python_does() {
        let value = "{% set v = {'b': [1, 2.5, none, []], 'a': '<é\"'} %}";
        let json = |filter: &str| render(&format!("{value}{{{{ v | {filter} }}}}")).unwrap();
        assert_eq!(json("tojson"), r#"{"b": [1, 2.5, null, []], "a": "<é\""}"#);
        assert_eq!(
            json("tojson(indent=2)"),
            "{\n  \"b\": [\n    1,\n    2.5,\n    null,\n    []\n  ],\n  \"a\": \"<é\\\"\"\n}"
        );
        assert_eq!(json("tojson(separators=(',', ':'))"), r#"{"b":[1,2.5,null,[]],"a":"<é\""}"#);
    }

    #[test]
    fn the_date_is_that_of_the_clock_given() {
        let template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %-d, %Y') }}").unwrap();
        let noon = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_709_208_000);
        let text = template.with_time(noon).render(&[], &RenderOptions::default()).unwrap();
        assert_eq!(text, "29 Feb 2024 February 29, 2024");
        assert!(failed(render("{{ strftime_now('%') }}")).1.contains('%'));
    }

    #[test]
    fn marks_for_training_are_without_effect() {
        assert_eq!(render("a{% generation %}b{% endgeneration %}c").unwrap(), "abc");
        assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c{% set generation = 1 %}").unwrap(), "abc");
        assert!(matches!(render("a{% generation"), Err(ChatTemplateError::Syntax { .. })));
    }

    #[test]
    fn a_template_refuses_messages_in_its_own_words() {
        let result = render("{% if messages[0].role != 'system' %}{{ raise_exception('System first!') }}{% endif %}");
        assert_eq!(result.unwrap_err().to_string(), "the chat template refuses the messages: System first!");
    }

    #[test]
    fn faults_name_their_line() {
        let error = render("a\n{% if %}").unwrap_err();
        assert!(matches!(error, ChatTemplateError::Syntax { line: Some(2), .. }), "{error}");
        assert!(error.to_string().starts_with("the chat template does not parse (line 2): syntax error: "));
        let (line, message) = failed(render("a\n\n{{ messages[0].nothing.at_all }}"));
        assert_eq!((line, message.is_empty()), (Some(3), false));
        assert_eq!(ChatTemplate::from_metadata(None).unwrap_err(), ChatTemplateError::Missing);
    }

    #[test]
    fn templates_that_run_away_are_stopped() {
        let long = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert_eq!(render(long), Err(ChatTemplateError::TooManySteps { steps: most_steps(1) }));
        let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(failed(render(deep)).1.contains("recursion"));
        let much = "{% set x = 'x' * 1000000 %}{% for a in range(100) %}{{ x }}{% endfor %}";
        assert_eq!(render(much), Err(ChatTemplateError::TooMuchText));
        let bytes = LONGEST_SOURCE + 1;
        assert_eq!(render(&" ".repeat(bytes)), Err(ChatTemplateError::TooLong { bytes }));
    }

    #[test]
    fn values_that_grow_without_end_are_stopped() {
        let nested = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
        for source in [
            "{{ ('a' * 100000).replace('', 'b' * 100000) | length }}",
            "{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}",
            "{{ range(99999) | join('a' * 10000) | length }}",
            "{{ ('a' * 10000).join(['b'] * 99999) | length }}",
            "{{ 'a\nb' | indent(100000000000) }}",
            "{{ 'a\nb' | indent(width=100000000000) }}",
            "{{ [1] | batch(100000000000, 'x') | list | length }}",
            "{{ [1] | slice(1000000000, 'x') | list | length }}",
            "{{ '%1000000000d' | format(1) }}",
            "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
            "{% set n = namespace() %}{% set n.x = [n] %}{{ n | tojson }}",
            "{% set n = namespace() %}{% set n.x = n %}{{ n | string }}",
            &format!("{nested}{{{{ n.x }}}}"),
            &format!("{nested}{{{{ n.x | tojson | length }}}}"),
        ] {
            let (_, message) = failed(render(source));
            assert!(message.contains("too "), "{source}: {message}");
        }
        assert_eq!(
            render("{{ 'a\nb' | indent(2) }} {{ '%5d' | format(1) }} {{ 'a.b'.replace('.', '-') }}").unwrap(),
            "a\n  b     1 a-b"
        );
        assert_eq!(
            render("{{ [1, 2, 3] | batch(2) | list }} {{ ['a', 'b'] | join(', ') }}").unwrap(),
            "[[1, 2], [3]] a, b"
        );
    }

    #[test]
    fn work_that_takes_too_long_is_left_alone() {
        let limit = Duration::from_millis(20);
        let result = on_stack_for(1, limit, || thread::sleep(Duration::from_secs(5)));
        assert_eq!(result, Err(ChatTemplateError::TooMuchTime { limit }));
    }

    #[test]
    fn what_a_template_says_is_fit_for_a_terminal() {
        let error = render("{{ raise_exception('no\x1b[31m' + 'x' * 100000) }}").unwrap_err().to_string();
        assert!(error.len() < 1100 && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn deep_nesting_does_not_overflow_the_stack() {
        let length = LONGEST_SOURCE - 100;
        for (start, unit, end) in [
            ("{{ ", "(", ""),
            ("{{ ", "-", "1 }}"),
            ("{{ 1", "+1", " }}"),
            ("{{ 1", "~1", " }}"),
            ("{{ x", ".a", " }}"),
            ("{{ x", "|e", " }}"),
            ("{% if x %}", "{%elif x%}", "{% endif %}"),
        ] {
            let source = [start, &unit.repeat(length / unit.len()), end].concat();
            let _either_way = render(&source);
        }
        // Ten levels for each round of the loop.
        let nest = "{% set n = namespace(x=[]) %}{% for i in range(1200) %}{% set n.x = [[[[[[[[[[n.x]]]]]]]]]] %}{% endfor %}";
        for (use_it, length) in
            [("", 0), ("{{ n.x }}", 24_002), ("{{ n.x | tojson }}", 24_002), ("{{ n.x == [n.x] }}", 5)]
        {
            assert_eq!(render(&format!("{nest}{use_it}")).map(|text| text.len()), Ok(length), "{use_it}");
        }
    }

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        assert!(failed(render("{% for m in [][::-1] %}{% endfor %}")).1.contains("engine"));
    }
}
