//! Waiting on conditions, never on time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
        assert!(tries > 1);
        assert_eq!(message, format!("no answer within 30ms: try {tries} refused"));
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
