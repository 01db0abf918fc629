//! Conditions of the machine that a test needs; a test that can't run says so and is counted.

use std::fs::OpenOptions;
use std::io::Write;

use nix::sched::{CloneFlags, unshare};

/// Ends the test as skipped when the condition does not hold.
///
/// The skip is written as `SKIP test: reason` to the file that `LB_TEST_SKIPS` names, else to
/// stderr.
#[macro_export]
macro_rules! require {
    ($condition:expr, $reason:expr) => {
        if !$condition {
            $crate::require::record_skip($reason);
            return;
        }
    };
}

/// Ends the test as skipped where namespaces and cgroups can't be made.
#[macro_export]
macro_rules! require_topology {
    () => {
        $crate::require!($crate::require::root(), "needs root");
        $crate::require!($crate::require::namespaces(), "needs network namespaces");
        $crate::require!($crate::cgroup::root().is_ok(), "needs cgroup v2");
    };
}

/// Whether the process runs as root.
#[must_use]
pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the process may make network namespaces.
#[must_use]
pub fn namespaces() -> bool {
    let attempt = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok());
    attempt.join().unwrap_or(false)
}

/// Writes down that the calling test was skipped, and why.
pub fn record_skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP {}: {reason}\n", thread.name().unwrap_or("unnamed test"));
    let file = std::env::var_os("LB_TEST_SKIPS")
        .and_then(|path| OpenOptions::new().append(true).create(true).open(path).ok());
    // One write, so that lines of tests in parallel do not mix.
    if file.is_none_or(|mut file| file.write_all(line.as_bytes()).is_err()) {
        eprint!("{line}");
    }
}
