//! Waiting on conditions, never on time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// For what takes far less than a second, on a machine whose CPUs others use, too.
pub const PATIENT: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(5);

/// Tries `attempt` until it succeeds, and returns what it gave.
///
/// # Panics
/// After `timeout`, with `what` was waited for and the last error.
#[track_caller]
pub fn eventually<T>(timeout: Duration, what: &str, attempt: impl FnMut() -> Result<T>) -> T {
    match try_eventually(timeout, what, attempt) {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

/// Tries `attempt` until it succeeds, and returns what it gave.
///
/// # Errors
/// After `timeout`, with `what` was waited for and the last error.
pub fn try_eventually<T>(
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("no {what} within {timeout:?}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Runs a case that measures time, until it holds or has not three times: other work on the machine may
/// slow it now and then, and a fault does each time.
///
/// # Panics
/// As the third try does.
pub fn hold_once(case: impl Fn()) {
    for _ in 0..2 {
        if catch_unwind(AssertUnwindSafe(&case)).is_ok() {
            return;
        }
        eprintln!("it is tried again");
    }
    case();
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn the_last_error_is_in_the_message() {
        let mut tries = 0;
        let result: Result<()> = try_eventually(Duration::from_millis(30), "answer", || {
            tries += 1;
            Err(anyhow!("try {tries} refused"))
        });
        let message = format!("{:#}", result.unwrap_err());
        assert_eq!(message, format!("no answer within 30ms: try {tries} refused"));
    }

    #[test]
    fn it_is_tried_until_it_succeeds() {
        let mut tries = 0;
        let result = try_eventually(PATIENT, "answer", || {
            tries += 1;
            if tries < 3 { Err(anyhow!("try {tries} refused")) } else { Ok(tries) }
        });
        assert_eq!(result.unwrap(), 3);
    }

    #[test]
    fn a_case_may_fail_twice() {
        for failures in 0..4 {
            let tries = std::cell::Cell::new(0);
            let case = || {
                tries.set(tries.get() + 1);
                assert!(tries.get() > failures, "try {}", tries.get());
            };
            let holds = catch_unwind(AssertUnwindSafe(|| hold_once(case))).is_ok();
            assert_eq!((holds, tries.get()), (failures < 3, 3.min(failures + 1)));
        }
    }

    #[test]
    fn the_first_success_ends_the_wait() {
        let mut tries = 0;
        let value = eventually(Duration::from_secs(5), "third try", || {
            tries += 1;
            if tries < 3 { Err(anyhow!("early")) } else { Ok(tries) }
        });
        assert_eq!(value, 3);
    }
}
