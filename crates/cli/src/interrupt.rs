//! Ctrl-C: stops what is going on, and only then the program.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

/// What Ctrl-C does. While something is busy, the first one asks it to stop, and the next one ends the process; while nothing is
/// busy, it ends the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt {
    busy: Arc<AtomicBool>,
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes Ctrl-C over for the rest of the process.
    pub(crate) fn install() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            if !handler.busy.load(Ordering::SeqCst) || handler.requested.swap(true, Ordering::SeqCst) {
                process::exit(i32::from(Failure::Interrupted.exit_code()));
            }
        })
        .map_err(|error| Failure::Runtime(format!("Ctrl-C cannot be handled: {error}")))?;
        Ok(interrupt)
    }

    /// Marks the start of something that stops when asked to, until what is returned is dropped. A request from before is forgotten.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.requested.store(false, Ordering::SeqCst);
        self.busy.store(true, Ordering::SeqCst);
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
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_lasts_until_the_next_thing_gets_busy() {
        let interrupt = Interrupt::default();
        let busy = interrupt.busy();
        interrupt.flag().store(true, Ordering::SeqCst);
        drop(busy);
        assert!(interrupt.requested());
        let _busy = interrupt.busy();
        assert!(!interrupt.requested());
    }
}
