//! Running a program under observation: when its first output comes, how long it takes, how much memory it needs.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::command;

/// Time between two looks at a process's memory. Its peak is kept by the system, so only what it takes in its very
/// last moments can be missed.
const INTERVAL: Duration = Duration::from_millis(4);

/// What was seen of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    /// From just before the process was started to the first byte on its stdout, if there was one.
    pub(crate) first_output: Option<Duration>,
    /// From just before the process was started until it ended.
    pub(crate) total: Duration,
    pub(crate) memory: Memory,
    pub(crate) stdout: String,
}

/// The peak memory of a process, in bytes; `None` where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Everything that is resident, pages of mapped files included (Linux: `VmHWM`).
    pub(crate) resident: Option<u64>,
    /// Of this, what no file backs, at its highest (Linux: `RssAnon`).
    pub(crate) anonymous: Option<u64>,
}

impl Memory {
    /// Brings the peaks up to date from a process's `/proc/PID/status`.
    fn update(&mut self, status: &str) {
        self.resident = self.resident.max(kibibytes(status, "VmHWM:"));
        self.anonymous = self.anonymous.max(kibibytes(status, "RssAnon:"));
    }
}

fn kibibytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(number * 1024)
}

/// Runs a command to its end; it must succeed.
pub(crate) fn run(command: &mut Command) -> Result<Run, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| command::not_started(command, &error))?;
    let mut run = Run::default();
    let (ended, end) = mpsc::channel::<()>();
    let status_file = format!("/proc/{}/status", child.id());
    let stderr = thread::scope(|scope| {
        let memory = scope.spawn(move || watch(&status_file, &end));
        let stderr = child.stderr.take();
        let stderr = scope.spawn(move || {
            let mut text = Vec::new();
            let read = stderr.map(|mut stderr| stderr.read_to_end(&mut text));
            read.map(|_| text).unwrap_or_default()
        });
        (run.first_output, run.stdout) = read_output(&mut child, start);
        // The output is closed: the process is about to end, or has.
        let status = child.wait();
        run.total = start.elapsed();
        drop(ended);
        run.memory = memory.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        status.map(|status| (status, stderr))
    });
    match stderr {
        Ok((status, _)) if status.success() => Ok(run),
        Ok((status, stderr)) => {
            let stderr = String::from_utf8_lossy(&stderr);
            let lines: Vec<&str> = stderr.lines().collect();
            let tail = lines[lines.len().saturating_sub(10)..].join("\n");
            Err(format!("`{}` failed: {status}\n{tail}", command::shown(command)))
        }
        Err(error) => Err(format!("`{}`: {error}", command::shown(command))),
    }
}

/// Looks at a process's memory until the channel is closed.
fn watch(status_file: &str, end: &mpsc::Receiver<()>) -> Memory {
    let mut memory = Memory::default();
    loop {
        if let Ok(status) = fs::read_to_string(status_file) {
            memory.update(&status);
        }
        if end.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return memory;
        }
    }
}

fn read_output(child: &mut Child, start: Instant) -> (Option<Duration>, String) {
    let mut first = None;
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.as_mut() {
        let mut buffer = [0; 4096];
        while let Ok(length) = stdout.read(&mut buffer)
            && length > 0
        {
            first.get_or_insert_with(|| start.elapsed());
            bytes.extend_from_slice(&buffer[..length]);
        }
    }
    (first, String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits until others leave the processors alone, but not for long.
pub(crate) fn wait_for_quiet(limit: f64) {
    const LOOK: Duration = Duration::from_millis(500);
    const LOOKS: u32 = 40;
    for _ in 0..LOOKS {
        let load = Load::start();
        thread::sleep(LOOK);
        if load.foreign_share().is_none_or(|share| share <= limit) {
            return;
        }
    }
}

/// How busy the machine's processors are, and with whose work.
#[derive(Debug)]
pub(crate) struct Load {
    start: Option<Ticks>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    busy: f64,
    total: f64,
    own: f64,
}

impl Load {
    pub(crate) fn start() -> Self {
        Self { start: ticks() }
    }

    /// The share of all processor time since the start that went to other programs than this one and those that it ran
    /// (Linux).
    pub(crate) fn foreign_share(&self) -> Option<f64> {
        share(self.start?, ticks()?)
    }
}

fn share(from: Ticks, to: Ticks) -> Option<f64> {
    let total = to.total - from.total;
    let foreign = (to.busy - from.busy) - (to.own - from.own);
    (total > 0.0).then(|| (foreign / total).clamp(0.0, 1.0))
}

fn ticks() -> Option<Ticks> {
    parse_ticks(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
}

/// From `/proc/stat` and `/proc/self/stat` (proc(5)); both count in the same unit.
fn parse_ticks(machine: &str, own: &str) -> Option<Ticks> {
    let line = machine.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<f64> = line.split_whitespace().take(8).filter_map(|text| text.parse().ok()).collect();
    let total: f64 = times.iter().sum();
    let idle = times.get(3)? + times.get(4)?;
    // After the command's name, which may contain anything, come the fields from the third on: 14 to 17 are the times
    // of this process and of the children that it waited for.
    let (_, fields) = own.rsplit_once(')')?;
    let own = fields.split_whitespace().skip(11).take(4).filter_map(|text| text.parse::<f64>().ok()).sum();
    Some(Ticks { busy: total - idle, total, own })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_output_and_times_are_seen() {
        let mut shell = Command::new("sh");
        let run = run(shell.args(["-c", "printf a; sleep 0.05; printf b"])).unwrap();
        assert_eq!(run.stdout, "ab");
        assert!(run.first_output.unwrap() < run.total);
        assert!(run.total >= Duration::from_millis(50));
        if cfg!(target_os = "linux") {
            assert!(run.memory.resident.unwrap() > 0);
        }
    }

    #[test]
    fn a_failed_run_shows_what_it_said() {
        let mut shell = Command::new("sh");
        let error = run(shell.args(["-c", "echo no such model >&2; exit 3"])).unwrap_err();
        assert!(error.contains("no such model") && error.contains('3'), "{error}");
    }

    #[test]
    fn memory_peaks_only_rise() {
        let mut memory = Memory::default();
        memory.update("VmHWM:\t    20 kB\nRssAnon:\t 8 kB\n");
        memory.update("VmHWM:\t    24 kB\nRssAnon:\t 4 kB\n");
        memory.update("State:\tZ (zombie)\n");
        assert_eq!(memory, Memory { resident: Some(24 * 1024), anonymous: Some(8 * 1024) });
    }

    #[test]
    fn the_foreign_share_is_what_is_busy_and_not_our_own() {
        let own = |time| format!("7 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 {time} 0 10 0 20 0 1");
        let from = parse_ticks("cpu  100 0 0 900 0 0 0 0 0 0\ncpu0 1", &own(0)).unwrap();
        let to = parse_ticks("cpu  170 0 0 930 0 0 0 0 0 0\ncpu0 1", &own(50)).unwrap();
        assert_eq!(from.own, 10.0);
        assert_eq!(share(from, to), Some(0.2));
    }
}
