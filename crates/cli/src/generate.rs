//! `polaris generate`: continues a prompt.

use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use models::llama::{ChatOptions, FinishReason, GenerateOptions, Generation, Llama, Piece};
use serde::Serialize;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::model::{self, Compute, ModelFile};
use crate::output;
use crate::sampling::{self, Generating};

const EXAMPLES: &str = "\
Examples:
  polaris generate -m model.gguf -p 'The capital of France is'
  polaris generate -m model.gguf --chat -p 'What is the capital of France?' --temperature 0
  polaris generate -m model.gguf --prompt-file notes.txt -n 500 --seed 7
  git diff | polaris generate -m model.gguf --chat --system 'Write a commit message.' --prompt-file -
  polaris generate -m model.gguf -p 'Once upon a time' --json | jq .timings

The text goes to standard output, statistics go to standard error. Ctrl-C ends the text; the exit code is then 130.
The text of control tokens in the prompt, such as <|im_start|>, stands for those tokens.";

/// Continue a prompt
///
/// The tokens that begin a text are added if the model asks for them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("input").required(true))]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", group = "input", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Take the prompt from a file, '-' for standard input; one line break at its end is left out
    #[arg(long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Let the model answer the prompt: put it into the model's chat template as the user's message
    #[arg(long)]
    chat: bool,
    /// What the model is told before the user's message
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// Chat template (Jinja) to use instead of the model's
    #[arg(long, value_name = "FILE", requires = "chat")]
    chat_template: Option<PathBuf>,
    /// Print one JSON object: prompt_tokens, tokens, text, timings, stop_reason
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    generating: Generating,
    #[command(flatten)]
    compute: Compute,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interrupt = Interrupt::install()?;
    let mut options = arguments.generating.options(&interrupt)?;
    let prompt = arguments.prompt()?;
    let template = arguments.chat_template.as_deref().map(read_text).transpose()?;
    let model = model::open(&arguments.file, &arguments.compute, arguments.generating.context, &interrupt)?;
    options.context_full = arguments.generating.context_full(&model);

    let _busy = interrupt.busy();
    let mut failure = None;
    let generation = arguments.generate(&model, &prompt, template, &options, &mut |piece| {
        if arguments.json || piece.text.is_empty() {
            return ControlFlow::Continue(());
        }
        match output::write(piece.text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if arguments.json {
        output::write_json(&Answer::new(&model, &generation))?;
    } else {
        if !generation.text.ends_with('\n') {
            output::write("\n")?;
        }
        report(&model, &generation, &options);
    }
    match generation.finish {
        FinishReason::Cancelled => Err(Failure::Interrupted),
        _ => Ok(()),
    }
}

impl Arguments {
    fn prompt(&self) -> Result<String, Failure> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(path)) => {
                let mut text = read_text(path)?;
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Ok(text)
            }
            (None, None) => Ok(String::new()),
        }
    }

    fn generate(
        &self,
        model: &Llama,
        prompt: &str,
        template: Option<String>,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, Failure> {
        if self.chat {
            let mut chat = model.chat(ChatOptions { system: self.system.clone(), template })?;
            return Ok(chat.send(prompt, options, on_piece)?);
        }
        Ok(model.generate(prompt, options, on_piece)?)
    }
}

/// Reads a text file, `-` for standard input.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    // More than any context holds; a device that never ends must not fill the memory.
    const LONGEST: u64 = 256 << 20;
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        let read = io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes);
        read.map_err(|error| Failure::Runtime(format!("standard input: {error}")))?;
        "standard input".to_owned()
    } else {
        let read = fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
        read.map_err(|error| Failure::file(path, &error))?;
        path.display().to_string()
    };
    if bytes.len() as u64 > LONGEST {
        return Err(Failure::Runtime(format!("{name}: a text of more than {} MiB", LONGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::Runtime(format!("{name}: not UTF-8 text (byte {at})"))
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
    timings: AnswerTimings,
    stop_reason: &'static str,
}

/// How long it took, in seconds and in tokens per second.
#[derive(Serialize)]
struct AnswerTimings {
    load_seconds: f64,
    prompt_tokens: usize,
    prompt_seconds: f64,
    prompt_tokens_per_second: f64,
    first_token_seconds: f64,
    decode_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: f64,
}

impl<'a> Answer<'a> {
    fn new(model: &Llama, generation: &'a Generation) -> Answer<'a> {
        let timings = &generation.timings;
        Answer {
            prompt_tokens: &generation.prompt_tokens,
            tokens: &generation.tokens,
            text: &generation.text,
            timings: AnswerTimings {
                load_seconds: model.load_seconds(),
                prompt_tokens: timings.prompt_evaluated,
                prompt_seconds: timings.prompt_seconds,
                prompt_tokens_per_second: timings.prompt_tokens_per_second(),
                first_token_seconds: timings.first_token_seconds,
                decode_tokens: timings.decoded,
                decode_seconds: timings.decode_seconds,
                decode_tokens_per_second: timings.decode_tokens_per_second(),
            },
            stop_reason: sampling::finish_name(&generation.finish),
        }
    }
}

fn report(model: &Llama, generation: &Generation, options: &GenerateOptions) {
    let seed = match options.sampling.temperature > 0.0 {
        true => format!("; seed {}", options.sampling.seed),
        false => String::new(),
    };
    output::note(&format!(
        "\nloaded in {:.0} ms on {}\n{}\nstopped: {}{seed}",
        model.load_seconds() * 1e3,
        model.device(),
        sampling::speeds(&generation.timings, generation.tokens.len()),
        sampling::finish(&generation.finish),
    ));
}
