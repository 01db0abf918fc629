//! How long to wait before something that failed is tried again: twice as long each time, a
//! random part of it, so that a thousand nodes do not come back at once.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

/// The waits.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Something worked: the next wait is the first one.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next wait: from half of it to all of it.
    pub(super) fn wait(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        let random = RandomState::new().build_hasher().finish() % 1000;
        let part = u32::try_from(random).unwrap_or_default();
        whole / 2 + whole * part / 2000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 8 * second);
        for whole in [1, 2, 4, 8, 8] {
            let wait = backoff.wait();
            assert!(wait >= whole * second / 2 && wait <= whole * second, "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= second);
    }
}
