//! Running other programs: shown, checked, and with an error that says what to do.

use std::env;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools;

/// The repository's root, where every command runs.
pub(crate) fn repository() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => repository().join(directory),
        None => repository().join("target"),
    }
}

/// Builds the release binary and says where it is.
pub(crate) fn build_polaris() -> Result<PathBuf, String> {
    run(cargo().args(["build", "--release", "--package", "polaris-infer"]))?;
    Ok(target_directory().join("release").join(format!("polaris{}", env::consts::EXE_SUFFIX)))
}

/// The cargo that runs this program, in the repository's root.
pub(crate) fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(repository());
    command
}

/// The command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut text = name.to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        text.push(' ');
        if argument.contains([' ', '\n', '"', '|']) || argument.is_empty() {
            text.push_str(&format!("{:?}", argument));
        } else {
            text.push_str(&argument);
        }
    }
    text
}

/// What to say when a command could not be started.
pub(crate) fn not_started(command: &Command, error: &std::io::Error) -> String {
    let program = command.get_program().to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        tools::missing_program(&program)
    } else {
        format!("cannot run {program}: {error}")
    }
}

/// Runs a command whose output the user sees; fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    eprintln!("$ {}", shown(command));
    let status = command.stdin(Stdio::null()).status().map_err(|error| not_started(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed: {status}", shown(command))) }
}

/// Runs a command and returns what it wrote to stdout; its stderr is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let tail = lines[lines.len().saturating_sub(15)..].join("\n");
    Err(format!("`{}` failed: {}\n{tail}", shown(command), output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run(&mut Command::new("polaris-no-such-program"));
        assert_eq!(error, Err("polaris-no-such-program is missing".into()));
    }

    #[test]
    fn a_command_is_shown_with_its_arguments_quoted_where_needed() {
        let mut command = Command::new("/usr/bin/polaris");
        command.args(["-p", "a b", "-n", "1"]);
        assert_eq!(shown(&command), "polaris -p \"a b\" -n 1");
    }
}
