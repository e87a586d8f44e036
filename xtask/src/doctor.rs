//! `cargo xtask doctor`: what this machine lacks, and the command that installs it.

use std::thread;

use crate::arguments::Arguments;
use crate::cache;
use crate::tools::TOOLS;

/// The subcommand; fails when a tool that is needed for more than the benchmarks is missing.
pub(crate) fn main(arguments: Arguments) -> Result<(), String> {
    arguments.end()?;
    let mut missing = Vec::new();
    for tool in TOOLS {
        match tool.version() {
            Some(version) => println!("ok       {:<9} {version}", tool.name),
            None => {
                println!("missing  {:<9} needed for {}: {}", tool.name, tool.needed_for, tool.install_command());
                if tool.needed_for != "bench" {
                    missing.push(tool.name);
                }
            }
        }
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("         cores     {cores}");
    println!("         cache     {}", cache::directory()?.display());
    if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", "))) }
}
