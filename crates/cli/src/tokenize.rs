//! `polaris tokenize`: text to token ids.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use loader_gguf::Gguf;
use models::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::json;

use crate::failure::Failure;
use crate::generate::read_text;
use crate::model::ModelFile;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  polaris tokenize -m model.gguf -p 'The capital of France is'
  polaris tokenize -m model.gguf -p '<|im_start|>' --no-special --ids
  polaris tokenize -m model.gguf -f notes.txt --json | jq .count

Without --ids or --json: one token per line, its id and its text, quoted.";

/// Turn text into token ids
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("input").required(true))]
pub(crate) struct Arguments {
    #[command(flatten)]
    file: ModelFile,
    /// The text
    #[arg(short, long, visible_alias = "text", value_name = "TEXT", group = "input", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Take the text from a file as it is, '-' for standard input
    #[arg(short = 'f', long, value_name = "FILE", group = "input")]
    prompt_file: Option<PathBuf>,
    /// Print the ids on one line, separated by spaces
    #[arg(long)]
    ids: bool,
    /// Print one JSON object: tokens, pieces, count
    #[arg(long, conflicts_with = "ids")]
    json: bool,
    /// Do not add the tokens that begin and end a text
    #[arg(long)]
    no_bos: bool,
    /// Take the text of control tokens, such as <|im_start|>, as plain text
    #[arg(long)]
    no_special: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let text = match (&arguments.prompt, &arguments.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => String::new(),
    };
    let gguf = Gguf::open(&arguments.file.model, arguments.file.access())?;
    let tokenizer = models::llama::tokenizer(&gguf)?;
    let options = EncodeOptions { add_special: !arguments.no_bos, parse_special: !arguments.no_special };
    let ids = tokenizer.encode(&text, options);
    if arguments.json {
        let pieces: Vec<String> = ids.iter().map(|id| piece(&tokenizer, *id)).collect();
        return output::write_json(&json!({ "tokens": ids, "pieces": pieces, "count": ids.len() }));
    }
    if arguments.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        return output::write(&format!("{}\n", ids.join(" ")));
    }
    let mut lines = String::new();
    for id in &ids {
        let _ = writeln!(lines, "{id:>7}  {:?}", piece(&tokenizer, *id));
    }
    output::write(&lines)
}

/// What a token adds to a text; a control token's name.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match bytes.is_empty() {
        true => tokenizer.token_text(id).unwrap_or_default().to_owned(),
        false => String::from_utf8_lossy(&bytes).into_owned(),
    }
}
