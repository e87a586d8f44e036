//! `polaris completions`: completions for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  polaris completions bash > ~/.local/share/bash-completion/completions/polaris
  polaris completions zsh > ~/.zfunc/_polaris
  polaris completions fish > ~/.config/fish/completions/polaris.fish";

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), "polaris", &mut script);
    output::write(&String::from_utf8_lossy(&script))
}
