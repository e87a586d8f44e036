//! `cargo xtask demo`: a small real model answers a question.

use std::process::Command;

use crate::arguments::Arguments;
use crate::{command, fetch};

const QUESTION: &str = "Explain in three sentences why the sky is blue.";

/// The subcommand: fetches the model, builds the release binary and lets it answer.
pub(crate) fn main(mut arguments: Arguments) -> Result<(), String> {
    let question = arguments.value(&["-p", "--prompt"])?;
    let device = arguments.value(&["--device"])?;
    arguments.end()?;
    let model = fetch::model(fetch::SMALL_MODEL)?;
    let polaris = command::build_polaris()?;
    let mut generate = Command::new(polaris);
    generate.arg("generate").arg("-m").arg(model);
    generate.args(["-p", &chat(question.as_deref().unwrap_or(QUESTION))]);
    generate.args(["-n", "256", "--temperature", "0"]);
    generate.args(["--device", device.as_deref().unwrap_or("auto")]);
    command::run(&mut generate)
}

/// The question as the one turn of a conversation, in the ChatML form that the model was tuned on. The model's own
/// template (`--chat`) would add a system message in front, with which this small model answers worse.
fn chat(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}
