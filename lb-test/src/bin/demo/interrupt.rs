//! Ctrl-C and SIGTERM: the first asks the story to stop, which takes down what it made; the second
//! ends the process at once, and the next demo takes down what was left.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static RECEIVED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    RECEIVED.store(true, Ordering::Relaxed);
}

/// Begins to listen.
pub(crate) fn listen() -> Result<()> {
    let flags = SaFlags::SA_RESTART | SaFlags::SA_RESETHAND;
    let action = SigAction::new(SigHandler::Handler(note), flags, SigSet::empty());
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does one atomic store, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether a signal has come.
pub(crate) fn received() -> bool {
    RECEIVED.load(Ordering::Relaxed)
}

/// Fails once a signal has come.
pub(crate) fn check() -> Result<()> {
    ensure!(!received(), "interrupted");
    Ok(())
}
