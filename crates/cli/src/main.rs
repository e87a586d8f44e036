//! The `polaris` command.

mod bench;
mod chat;
mod classify;
mod compare;
mod completions;
mod devices;
mod doctor;
mod embed;
mod encoder;
mod estimate;
mod failure;
mod fill_mask;
mod generate;
mod graph;
mod imatrix;
mod inspect;
mod inspect_graph;
mod interrupt;
mod manifest;
mod mixed;
mod model;
mod npy;
mod optimize;
mod output;
mod perplexity;
mod prune;
mod quantize;
mod quantize_graph;
mod reconstruct;
mod run;
mod sampling;
mod self_test;
mod tokenize;
mod verify;

use std::env;
use std::panic;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  polaris chat -m model.gguf
  polaris generate -m model.gguf -p 'The capital of France is'
  polaris inspect model.gguf

`polaris COMMAND --help` has more for each command.
Exit codes: 0 success, 1 the command failed, 2 the command line is wrong, 3 `compare` missed a threshold, 130 Ctrl-C.
POLARIS_LOG=debug (or target=level,...) writes what goes on inside to standard error.";

/// Run language models from the file you already have
#[derive(Debug, Parser)]
#[command(name = "polaris", version, after_help = EXAMPLES, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Arguments),
    Chat(chat::Arguments),
    Embed(embed::Arguments),
    Classify(classify::Arguments),
    FillMask(fill_mask::Arguments),
    Run(run::Arguments),
    Compare(compare::Arguments),
    Optimize(optimize::Arguments),
    Inspect(inspect::Arguments),
    Tokenize(tokenize::Arguments),
    Perplexity(perplexity::Arguments),
    Quantize(quantize::Arguments),
    Prune(prune::Arguments),
    Verify(verify::Arguments),
    Imatrix(imatrix::Arguments),
    Bench(bench::Arguments),
    Devices(devices::Arguments),
    Doctor(doctor::Arguments),
    Estimate(estimate::Arguments),
    Completions(completions::Arguments),
}

fn main() -> ExitCode {
    panic::set_hook(Box::new(report_panic));
    let arguments = Arguments::parse();
    // What a panic unwinds through is not used again.
    let result = panic::catch_unwind(panic::AssertUnwindSafe(|| run(&arguments)));
    let failure = match result {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        // The hook has told.
        Err(_) => return ExitCode::FAILURE,
    };
    if let Some(message) = failure.message() {
        // Names and paths come from files.
        let lines: Vec<String> = message.lines().map(output::shown).collect();
        output::note(&format!("error: {}", lines.join("\n")));
    }
    ExitCode::from(failure.exit_code())
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    log()?;
    match &arguments.command {
        Command::Generate(arguments) => generate::run(arguments),
        Command::Chat(arguments) => chat::run(arguments),
        Command::Embed(arguments) => embed::run(arguments),
        Command::Classify(arguments) => classify::run(arguments),
        Command::FillMask(arguments) => fill_mask::run(arguments),
        Command::Run(arguments) => run::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::Optimize(arguments) => optimize::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Tokenize(arguments) => tokenize::run(arguments),
        Command::Perplexity(arguments) => perplexity::run(arguments),
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Prune(arguments) => prune::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Imatrix(arguments) => imatrix::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Devices(arguments) => devices::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Estimate(arguments) => estimate::run(arguments),
        Command::Completions(arguments) => completions::run(arguments),
    }
}

/// Writes events to standard error if `POLARIS_LOG` asks for them.
fn log() -> Result<(), Failure> {
    let Some(filter) = env::var_os("POLARIS_LOG").filter(|filter| !filter.is_empty()) else {
        return Ok(());
    };
    let filter = filter.to_string_lossy();
    let targets: Targets = filter
        .parse()
        .map_err(|error| Failure::Usage(format!("POLARIS_LOG={filter}: {error} (for example: debug)")))?;
    let events = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(targets).with(events).init();
    Ok(())
}

/// One line instead of a backtrace: a panic is a defect of this program, and whoever runs it can only report it.
fn report_panic(info: &panic::PanicHookInfo<'_>) {
    // It comes back as an error of the template or of the tokenizer's file.
    if [models::chat_template::THREAD_NAME, models::bert::THREAD_NAME]
        .map(Some)
        .contains(&std::thread::current().name())
    {
        return;
    }
    let payload = info.payload();
    let what = payload.downcast_ref::<&str>().copied();
    let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
    let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
    output::note(&format!(
        "error: internal error: {}{place}; please report this at {}/issues",
        what.replace('\n', " "),
        env!("CARGO_PKG_REPOSITORY")
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_defined() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        let command = Arguments::command();
        for command in command.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("polaris {}", command.get_name())), "{}: {help:?}", command.get_name());
        }
    }
}
