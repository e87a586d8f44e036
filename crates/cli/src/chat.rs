//! `polaris chat`: a conversation.

use std::io::{self, BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use models::llama::{Chat, ChatOptions, FinishReason, GenerateOptions};
use rustyline::error::ReadlineError;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::interrupt::Interrupt;
use crate::model::{self, Compute, ModelFile};
use crate::output;
use crate::sampling::{self, Generating};

const EXAMPLES: &str = "\
Examples:
  polaris chat -m model.gguf
  polaris chat -m model.gguf --system 'You answer in French.' --temperature 0.3 -n 500
  printf 'Hi!\\nWho are you?\\n' | polaris chat -m model.gguf

In the conversation:
  Ctrl-C stops the answer, Ctrl-D leaves; the arrow keys edit the line and bring earlier ones back.
  A line that ends with a backslash goes on in the next one.
  /reset begins anew, /exit leaves, /help shows this.
Without a terminal, each line of standard input is a message.";

const HELP: &str = "\
/reset  begin anew
/exit   leave (also Ctrl-D)
/help   show this
Ctrl-C stops the answer. A line that ends with a backslash goes on in the next one.";

/// Hold a conversation with a model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Chat template (Jinja) to use instead of the model's
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    #[command(flatten)]
    generating: Generating,
    #[command(flatten)]
    compute: Compute,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let mut options = arguments.generating.options(&interrupt)?;
    let template = arguments.chat_template.as_deref().map(read_text).transpose()?;
    let model = model::open(&arguments.file, &arguments.compute, arguments.generating.context, &interrupt)?;
    options.context_full = arguments.generating.context_full(&model);
    let mut chat = model.chat(ChatOptions { system: arguments.system.clone(), template })?;

    let mut input = Input::open()?;
    if input.is_terminal() {
        output::note(&format!("{}, context {}. /help shows the commands.", model.device(), model.context()));
    }
    while let Some(line) = input.read()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/help" => output::note(HELP),
            "/reset" => {
                chat.clear();
                output::note("The conversation begins anew.");
            }
            // A path, say, is a message; a lone word is a mistyped command.
            word if word.starts_with('/') && !word[1..].contains(['/', ' ', '\n']) => {
                output::note(&format!("There is no command {word}; /help shows those there are."));
            }
            _ => answer(&mut chat, &line, &options, &interrupt, input.is_terminal())?,
        }
    }
    Ok(())
}

/// Sends a message and shows the answer. A message that fails (one that is too long, say) leaves the conversation as it was: on a
/// terminal it goes on.
fn answer(
    chat: &mut Chat<'_>,
    message: &str,
    options: &GenerateOptions,
    interrupt: &Interrupt,
    terminal: bool,
) -> Result<(), Failure> {
    let busy = interrupt.busy();
    let mut failure = None;
    let generation = chat.send(message, options, &mut |piece| {
        if piece.text.is_empty() {
            return ControlFlow::Continue(());
        }
        match output::write(piece.text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    drop(busy);
    if let Some(failure) = failure {
        return Err(failure);
    }
    let generation = match generation.map_err(Failure::from) {
        Ok(generation) => generation,
        Err(failure) if terminal => {
            output::note(&format!("error: {}", failure.message().unwrap_or("interrupted")));
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    output::write("\n")?;
    match generation.finish {
        FinishReason::Cancelled if !terminal => return Err(Failure::Interrupted),
        FinishReason::EndOfText(_) if !terminal => {}
        _ => output::note(&format!(
            "[{}; stopped: {}]",
            sampling::speeds(&generation.timings, generation.tokens.len()),
            sampling::finish(&generation.finish)
        )),
    }
    Ok(())
}

/// Where messages come from.
enum Input {
    Terminal(Box<rustyline::DefaultEditor>),
    Lines(io::StdinLock<'static>),
}

impl Input {
    fn open() -> Result<Input, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Lines(io::stdin().lock()));
        }
        let editor = rustyline::DefaultEditor::new();
        Ok(Input::Terminal(Box::new(editor.map_err(|error| Failure::Runtime(format!("terminal: {error}")))?)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next message; `None` when there is none to come.
    fn read(&mut self) -> Result<Option<String>, Failure> {
        let mut message = String::new();
        loop {
            let prompt = if message.is_empty() { "> " } else { "… " };
            let Some(line) = self.line(prompt)? else {
                return Ok((!message.is_empty()).then_some(message));
            };
            match line.strip_suffix('\\') {
                Some(part) => {
                    message.push_str(part);
                    message.push('\n');
                }
                None => {
                    message.push_str(&line);
                    return Ok(Some(message));
                }
            }
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>, Failure> {
        match self {
            Input::Terminal(editor) => loop {
                match editor.readline(prompt) {
                    Ok(line) => {
                        // A line that cannot be remembered can still be answered.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => output::note("Ctrl-D or /exit leaves."),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(Failure::Runtime(format!("terminal: {error}"))),
                }
            },
            Input::Lines(stdin) => {
                let mut line = String::new();
                match stdin.read_line(&mut line) {
                    Ok(0) => Ok(None),
                    Ok(_) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
                    Err(error) => Err(Failure::Runtime(format!("standard input: {error}"))),
                }
            }
        }
    }
}
