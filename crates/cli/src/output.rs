//! Standard output, without the panic that `print!` ends in when nobody reads any more.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Writes text to standard output at once, so that whoever reads sees it as it comes.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| failure(&error))
}

/// Writes one JSON value on a line of its own.
pub(crate) fn write_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Failure::Runtime(format!("the result cannot be written as JSON: {error}")))?;
    text.push('\n');
    write(&text)
}

/// Writes a line to standard error. That nobody reads it is no reason to stop.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Runtime(format!("standard output: {error}")),
    }
}

/// Bytes for people: `98.4 MB`, with powers of 1000, as disks and files are sold.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A count for people: `134.5 M`.
pub(crate) fn count(count: u64) -> String {
    match count {
        0..1_000 => count.to_string(),
        1_000..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

/// Text that came from a file, safe to show on a terminal: control characters are escaped.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control();
            escape.then(|| c.escape_default()).into_iter().flatten().chain((!escape).then_some(c))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_unit_that_keeps_them_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 kB");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn control_characters_from_a_file_do_not_reach_the_terminal() {
        assert_eq!(shown("a\u{1b}[31mé\n"), "a\\u{1b}[31mé\\n");
    }
}
