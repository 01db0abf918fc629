//! How many answers of its own a node makes, so that it is of no use to one who floods others.

/// Answers a second, on each CPU: as many as Linux sends errors of ICMP (`icmp_msgs_per_sec`).
pub const PER_SECOND: u64 = 1000;
/// Answers at once, after as many milliseconds without any.
pub const BURST: u64 = 100;
const INTERVAL: u64 = 1_000_000_000 / PER_SECOND;

/// May one more answer be made at `now`, in ns? `next` is when the last one was due or, without a
/// pause between them, would have been; the answer is what to keep in its place.
#[inline(always)]
#[must_use]
pub const fn admit(next: u64, now: u64) -> Option<u64> {
    let due = if next > now { next } else { now };
    if due - now > (BURST - 1) * INTERVAL { None } else { Some(due + INTERVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers to questions at these times, in ns.
    fn admitted(next: &mut u64, times: impl Iterator<Item = u64>) -> u64 {
        let mut count = 0;
        for now in times {
            if let Some(kept) = admit(*next, now) {
                (*next, count) = (kept, count + 1);
            }
        }
        count
    }

    #[test]
    fn a_burst_is_answered_and_then_so_many_a_second() {
        let (mut next, second) = (0, 1_000_000_000);
        assert_eq!(admitted(&mut next, std::iter::repeat_n(second, 1000)), BURST);
        let flood = (0..100_000).map(|number| second + number * (second / 100_000));
        assert_eq!(admitted(&mut next, flood), PER_SECOND - 1);
        assert_eq!(admitted(&mut next, std::iter::repeat_n(10 * second, 1000)), BURST);
    }
}
