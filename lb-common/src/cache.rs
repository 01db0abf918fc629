//! The flow cache: where a flow stands in it, and whether an element can be believed.
//!
//! `FLOWS` is an array without locks in front of conntrack. An element carries a sum over all that it
//! says, keyed by secret factors, by time and by an epoch. One that two CPUs wrote at once, one from
//! an earlier second, and one from before the agent's last change do not add up: one comparison finds
//! all three, and the packet asks conntrack.

use crate::abi::{Address, CachedFlow, CtKey};

/// Factors that sums are keyed by: random, so that nobody outside can make two flows of one place, or
/// two elements whose mixture adds up.
pub type Factors = [u64; FACTORS];
/// One for each word of an element of IPv6, where time takes the place of the sum itself.
pub const FACTORS: usize = 14;
/// Units of a tick: 2^8 jiffies, between a quarter of a second and 2.6 s, as the kernel was built.
const TICK_SHIFT: u32 = 8;

/// What an element depends on besides what it says.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// Random.
    pub factors: &'a Factors,
    /// See [`Control`](crate::abi::Control).
    pub epoch: u32,
    /// The kernel's jiffies.
    pub jiffies: u64,
}

/// A flow as its element begins: words, and their sum.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    words: [u64; 5],
    /// The first addends of the element's sum.
    pub hash: u64,
}

impl<'a> Stamp<'a> {
    /// That of hints: what was decided on a flow that nothing else remembers, in a flood of first packets.
    ///
    /// The slow way asks for them; the fast one never believes them, and they stay for a minute or two
    /// whatever the agent changes. `now` is in units of 2^30 ns.
    #[inline(always)]
    #[must_use]
    pub const fn of_hints(factors: &'a Factors, now: u32) -> Self {
        // The kernel's jiffies begin five minutes before 2^32.
        Self { factors, epoch: now >> 7, jiffies: 0 }
    }

    #[inline(always)]
    fn factor(&self, number: usize) -> u64 {
        self.factors.get(number).copied().unwrap_or_default()
    }

    /// The beginning of a flow's element.
    #[inline(always)]
    #[must_use]
    pub fn key<A: Address>(&self, flow: &CtKey<A>) -> Key {
        let [first, second, third, fourth] = A::pair(&flow.src, &flow.dst);
        let ports = u64::from(flow.src_port.0)
            | u64::from(flow.dst_port.0) << 16
            | u64::from(flow.protocol.0) << 32;
        let words = if A::PAIR_WORDS == 1 {
            [first, ports, 0, 0, 0]
        } else {
            [first, second, third, fourth, ports]
        };
        let mut hash = 0_u64;
        for (number, word) in words.into_iter().enumerate() {
            if number <= A::PAIR_WORDS {
                hash = hash.wrapping_add(word.wrapping_mul(self.factor(number)));
            }
        }
        Key { words, hash }
    }

    /// The sum of an element that begins with `key`.
    ///
    /// Flows become due at different jiffies, so that not all ask conntrack at once.
    #[inline(always)]
    #[must_use]
    pub fn sum<A: Address>(&self, element: &CachedFlow<A>, key: &Key) -> u64 {
        let tick = self.jiffies.wrapping_add(key.hash & 0xff) >> TICK_SHIFT;
        let time = tick << 32 | u64::from(self.epoch);
        let mut sum = key.hash.wrapping_add(time.wrapping_mul(self.factor(FACTORS - 1)));
        for number in A::PAIR_WORDS + 1..CachedFlow::<A>::WORDS - 1 {
            sum = sum.wrapping_add(element.word(number).wrapping_mul(self.factor(number)));
        }
        sum
    }

    /// Does an element tell of the flow that begins it by `key`, and can it be believed?
    #[inline(always)]
    #[must_use]
    pub fn vouches<A: Address>(&self, element: &CachedFlow<A>, key: &Key) -> bool {
        for (number, word) in key.words.into_iter().enumerate() {
            if number <= A::PAIR_WORDS && element.word(number) != word {
                return false;
            }
        }
        element.check == self.sum(element, key)
    }
}

/// The hash that a flow's element has its place by, and its mark (`presence`): whatever the time is.
#[inline(always)]
#[must_use]
pub fn hash<A: Address>(factors: &Factors, flow: &CtKey<A>) -> u64 {
    Stamp { factors, epoch: 0, jiffies: 0 }.key(flow).hash
}

/// Which of `2^(64 - shift)` elements a hash leads to.
#[inline(always)]
#[must_use]
pub const fn place(hash: u64, shift: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "the agent makes at most 2^32 elements")]
    let place = (hash >> (shift & 63)) as u32;
    place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi::{Abi, BePort, CtAction, Ipv4, Ipv6, L4Proto, NextHop};

    const SHIFT: u32 = 64 - 12;
    const RANDOM: Factors = [
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7345,
        0xa409_3822_299f_31d1,
        0x082e_fa98_ec4e_6c89,
        0x4528_21e6_38d0_1377,
        0xbe54_66cf_34e9_0c6d,
        0xc0ac_29b7_c97c_50dd,
        0x3f84_d5b5_b547_0917,
        0x9216_d5d9_8979_fb1b,
        0xd131_0ba6_98df_b5ad,
        0x2ffd_72db_d01a_dfb7,
        0xb8e1_afed_6a26_7e97,
        0xba7c_9045_f12c_7f99,
        0x24a1_9947_b391_6cf7,
    ];
    const STAMP: Stamp<'_> = Stamp { factors: &RANDOM, epoch: 7, jiffies: 1 << 20 };

    fn flow(src_port: u16) -> CtKey<Ipv4> {
        CtKey {
            src: Ipv4(0x0200_15ac),
            dst: Ipv4(0x0b00_14ac),
            src_port: BePort::new(src_port),
            dst_port: BePort::new(80),
            protocol: L4Proto::TCP,
            pad: [0; 3],
        }
    }

    fn element(flow: CtKey<Ipv4>) -> CachedFlow<Ipv4> {
        let hop = NextHop { mtu: 1500, macs: [1, 2, 3], ..NextHop::of(3) };
        let mut element = CachedFlow { hop, ..CachedFlow::zeroed() };
        element.set(&flow, &flow.reversed(), CtAction::FORWARD_SNAT);
        element.check = STAMP.sum(&element, &STAMP.key(&flow));
        element
    }

    #[test]
    fn an_element_is_a_cache_line_and_has_a_factor_for_each_word() {
        assert_eq!(size_of::<CachedFlow<Ipv4>>(), 64);
        assert_eq!(CachedFlow::<Ipv6>::WORDS, FACTORS);
    }

    #[test]
    fn ports_in_a_row_spread_over_the_elements() {
        let mut used = [false; 1 << 12];
        for port in 0..4096 {
            used[place(STAMP.key(&flow(port)).hash, SHIFT) as usize] = true;
        }
        let used = used.iter().filter(|used| **used).count();
        assert!(used > 4096 / 2, "{used}");
    }

    #[test]
    fn time_and_epoch_end_what_is_cached() {
        let element = element(flow(40000));
        let vouches = |stamp: Stamp<'_>| stamp.vouches(&element, &stamp.key(&flow(40000)));
        assert!(vouches(STAMP));
        assert!(!vouches(Stamp { epoch: 8, ..STAMP }));
        let mut factors = RANDOM;
        factors[13] += 2;
        assert!(!vouches(Stamp { factors: &factors, ..STAMP }));
        let after = |jiffies| Stamp { jiffies: STAMP.jiffies + jiffies, ..STAMP };
        assert!(!vouches(after(256)));
        let due = (0..256).filter(|jiffies| !vouches(after(*jiffies))).count();
        assert!(due > 0 && due < 256, "due somewhere within the tick: {due}");
    }

    #[test]
    fn a_hint_is_no_cached_flow_and_stays_for_a_minute() {
        let (mut hint, key) = (element(flow(40000)), STAMP.key(&flow(40000)));
        let at = |now| Stamp::of_hints(&RANDOM, now);
        assert!(!at(100).vouches(&hint, &key));
        hint.check = at(100).sum(&hint, &key);
        assert!(at(100).vouches(&hint, &key) && at(127).vouches(&hint, &key));
        assert!(!at(128).vouches(&hint, &key) && !STAMP.vouches(&hint, &key));
    }

    #[test]
    fn an_element_tells_of_its_own_flow_alone() {
        let (mine, other) = (flow(40000), flow(40001));
        assert!(!STAMP.vouches(&element(mine), &STAMP.key(&other)));
        let v6 = |last| CtKey {
            src: Ipv6([1, 2, 3, 4]),
            dst: Ipv6([5, 6, 7, last]),
            src_port: BePort::new(1),
            dst_port: BePort::new(2),
            protocol: L4Proto::UDP,
            pad: [0; 3],
        };
        let mut element = CachedFlow::zeroed();
        element.set(&v6(8), &v6(9), CtAction::FORWARD);
        element.check = STAMP.sum(&element, &STAMP.key(&v6(8)));
        assert!(STAMP.vouches(&element, &STAMP.key(&v6(8))));
        assert!(!STAMP.vouches(&element, &STAMP.key(&v6(9))));
    }

    proptest! {
        #[test]
        fn a_mixture_of_two_elements_does_not_add_up(word in 0..8_usize, port in 1_u16..) {
            let first = element(flow(40000));
            let mut second = element(flow(40000));
            second.src_port = BePort::new(port);
            second.dst = Ipv4(port.into());
            second.hop = NextHop { mtu: port, macs: [port.into(); 3], ..NextHop::of(port.into()) };
            second.check = STAMP.sum(&second, &STAMP.key(&second.flow));
            let at = word * 8;
            let mixed = [&first.as_bytes()[..at], &second.as_bytes()[at..]].concat();
            let mixed = CachedFlow::from_bytes(&mixed).unwrap();
            let is_one = mixed == first || mixed == second;
            prop_assert_eq!(STAMP.vouches(&mixed, &STAMP.key(&first.flow)), is_one);
        }
    }
}
