//! How many flows a CPU remembers before they are proven.

/// In ticks after one in which more began than are remembered, one of so many is: what a flood leaves behind
/// throws others out, and marks places in vain.
const FLOOD_SHARE: u32 = 64;

/// Flows that began on one CPU, by ticks of 2^30 ns.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Opening {
    tick: u32,
    /// How many in that tick, remembered or not.
    count: u32,
    /// How many of them are remembered.
    most: u32,
}

impl Opening {
    /// None yet.
    pub const NONE: Self = Self { tick: 0, count: 0, most: 0 };

    /// Counts one more flow; is it one of the `rate` that are remembered in a tick?
    #[inline(always)]
    #[must_use]
    pub const fn admit(&mut self, now: u32, rate: u32) -> bool {
        if self.tick != now {
            let is_flood = self.count > rate && now.wrapping_sub(self.tick) == 1;
            self.most = if is_flood { rate / FLOOD_SHARE } else { rate };
            self.tick = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_remembered_less_while_it_lasts() {
        let mut opening = Opening::NONE;
        let mut tick = |now, begin: u32| (0..begin).filter(|_| opening.admit(now, 6400)).count();
        assert_eq!(tick(10, 6400), 6400, "as many as there is room for");
        assert_eq!(tick(11, 10_000), 6400, "the first of a flood");
        assert_eq!(tick(12, 10_000), 100);
        assert_eq!(tick(13, 6400), 100);
        assert_eq!(tick(14, 6400), 6400, "it is over");
        assert_eq!(tick(15, 10_000), 6400);
        assert_eq!(tick(17, 10_000), 6400, "after a tick without any");
    }
}
