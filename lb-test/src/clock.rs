//! The clock that the kernel programs read.

/// The time in units of 2^30 ns, as conntrack entries have it.
///
/// # Panics
///
/// On a kernel without `CLOCK_MONOTONIC`.
pub fn ticks() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills in a structure of its own layout.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    assert_eq!(answer, 0, "CLOCK_MONOTONIC");
    let nanoseconds = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
    u32::try_from(nanoseconds >> 30).expect("a time within 146 years")
}
