//! Ctrl-C, and being told to end (SIGTERM): stops what is going on, and only then the program.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

/// What Ctrl-C does. While something is busy, the first one asks it to stop, and the next one ends the process; while nothing is
/// busy, it ends the process.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    idle: Arc<AtomicBool>,
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    fn new() -> Interrupt {
        Interrupt { idle: Arc::new(AtomicBool::new(true)), requested: Arc::default() }
    }

    /// Takes Ctrl-C over for the rest of the process, and SIGTERM where there is one.
    pub(crate) fn install() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt::new();
        #[cfg(unix)]
        interrupt.install_term().map_err(|error| Failure::Runtime(format!("SIGTERM cannot be handled: {error}")))?;
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            if handler.idle.load(Ordering::SeqCst) || handler.requested.swap(true, Ordering::SeqCst) {
                process::exit(i32::from(Failure::Interrupted.exit_code()));
            }
        })
        .map_err(|error| Failure::Runtime(format!("Ctrl-C cannot be handled: {error}")))?;
        Ok(interrupt)
    }

    #[cfg(unix)]
    fn install_term(&self) -> std::io::Result<()> {
        use signal_hook::consts::SIGTERM;
        use signal_hook::flag;

        // What a shell tells of a process that SIGTERM ended.
        const ENDED: i32 = 128 + SIGTERM;
        flag::register_conditional_shutdown(SIGTERM, ENDED, self.idle.clone())?;
        // In this order: the first one only asks.
        flag::register_conditional_shutdown(SIGTERM, ENDED, self.requested.clone())?;
        flag::register(SIGTERM, self.requested.clone()).map(drop)
    }

    /// Marks the start of something that stops when asked to, until what is returned is dropped. A request from before is forgotten.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.requested.store(false, Ordering::SeqCst);
        self.idle.store(false, Ordering::SeqCst);
        Busy(self)
    }

    /// Whether Ctrl-C was pressed since something got busy.
    pub(crate) fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// The flag itself, for a pipeline to look at.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.requested.clone()
    }
}

/// Something that Ctrl-C stops instead of the program.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Interrupt);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.idle.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lasts_until_the_next_thing_gets_busy() {
        let interrupt = Interrupt::new();
        let busy = interrupt.busy();
        interrupt.flag().store(true, Ordering::SeqCst);
        drop(busy);
        assert!(interrupt.requested());
        let _busy = interrupt.busy();
        assert!(!interrupt.requested());
    }
}
