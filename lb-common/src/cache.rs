//! The flow cache: where a flow stands in it, and whether an element can be believed.
//!
//! `FLOWS` is an array without locks in front of conntrack. An element carries a sum over all that it
//! says, keyed by a secret, by time and by an epoch. One that two CPUs wrote at once, one from an
//! earlier second, and one from before the agent's last change do not add up: one comparison finds
//! all three, and the packet asks conntrack.

use crate::abi::{Address, CachedFlow, CtKey};

/// Odd numbers without a pattern: the first digits of pi and e, by 64 bits.
const FACTORS: [u64; 14] = [
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
/// Units of a tick: 2^8 jiffies, between a quarter of a second and 2.6 s, as the kernel was built.
const TICK_SHIFT: u32 = 8;

/// What an element depends on besides what it says.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Random, even: nobody outside can make two elements whose mixture adds up.
    pub secret: u64,
    /// See [`Control`](crate::abi::Control).
    pub epoch: u32,
    /// The kernel's jiffies.
    pub jiffies: u64,
}

impl Stamp {
    #[inline(always)]
    const fn factor(&self, number: usize) -> u64 {
        #[allow(clippy::indexing_slicing, reason = "constants within the table")]
        let factor = FACTORS[number];
        factor ^ self.secret
    }

    /// Hash of a flow: the first addends of its element's sum.
    #[inline(always)]
    #[must_use]
    pub fn hash<A: Address>(&self, flow: &CtKey<A>) -> u64 {
        let ports = u64::from(flow.src_port.0)
            | u64::from(flow.dst_port.0) << 16
            | u64::from(flow.protocol.0) << 32;
        flow.src
            .multiply([self.factor(0), self.factor(1)])
            .wrapping_add(flow.dst.multiply([self.factor(2), self.factor(3)]))
            .wrapping_add(ports.wrapping_mul(self.factor(4)))
    }

    /// The sum of an element whose flow has this hash.
    ///
    /// Flows become due at different jiffies, so that not all ask conntrack at once.
    #[inline(always)]
    #[must_use]
    pub fn sum<A: Address>(&self, element: &CachedFlow<A>, hash: u64) -> u64 {
        let tick = self.jiffies.wrapping_add(hash & 0xff) >> TICK_SHIFT;
        let time = tick << 32 | u64::from(self.epoch);
        let [a, b, c, d, e, f] = element.hop.macs.map(u64::from);
        let hop = u64::from(element.hop.device) | u64::from(element.hop.mtu) << 32 | a << 48;
        let ports = u64::from(element.src_port.0)
            | u64::from(element.dst_port.0) << 16
            | u64::from(element.action.0) << 32;
        hash.wrapping_add(element.src.multiply([self.factor(5), self.factor(6)]))
            .wrapping_add(element.dst.multiply([self.factor(7), self.factor(8)]))
            .wrapping_add(ports.wrapping_mul(self.factor(9)))
            .wrapping_add(hop.wrapping_mul(self.factor(10)))
            .wrapping_add((b | c << 16 | d << 32 | e << 48).wrapping_mul(self.factor(11)))
            .wrapping_add((f | u64::from(element.service) << 32).wrapping_mul(self.factor(12)))
            .wrapping_add(time.wrapping_mul(self.factor(13)))
    }

    /// Does an element tell of this flow, whose hash it is, and can it be believed?
    #[inline(always)]
    #[must_use]
    pub fn vouches<A: Address>(&self, element: &CachedFlow<A>, flow: &CtKey<A>, hash: u64) -> bool {
        element.flow == *flow && element.check == self.sum(element, hash)
    }
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
    const STAMP: Stamp = Stamp { secret: 0x1234_5678_9abc_def0, epoch: 7, jiffies: 1 << 20 };

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
        let hop = NextHop { device: 3, mtu: 1500, macs: [1, 2, 3, 4, 5, 6], pad: 0 };
        let mut element = CachedFlow { hop, service: 9, ..CachedFlow::zeroed() };
        element.set_ends(&flow, &flow.reversed(), CtAction::FORWARD_SNAT);
        element.check = STAMP.sum(&element, STAMP.hash(&flow));
        element
    }

    #[test]
    fn an_element_is_a_cache_line() {
        assert_eq!(size_of::<CachedFlow<Ipv4>>(), 64);
        assert_eq!(size_of::<CachedFlow<Ipv6>>(), 112);
    }

    #[test]
    fn ports_in_a_row_spread_over_the_elements() {
        let mut used = [false; 1 << 12];
        for port in 0..4096 {
            used[place(STAMP.hash(&flow(port)), SHIFT) as usize] = true;
        }
        let used = used.iter().filter(|used| **used).count();
        assert!(used > 4096 / 2, "{used}");
    }

    #[test]
    fn time_and_epoch_end_what_is_cached() {
        let (flow, element) = (flow(40000), element(flow(40000)));
        let hash = STAMP.hash(&flow);
        let vouches = |stamp: Stamp| stamp.vouches(&element, &flow, hash);
        assert!(vouches(STAMP));
        assert!(!vouches(Stamp { epoch: 8, ..STAMP }));
        assert!(!vouches(Stamp { secret: 2, ..STAMP }));
        let after = |jiffies| Stamp { jiffies: STAMP.jiffies + jiffies, ..STAMP };
        assert!(!vouches(after(256)));
        let due = (0..256).filter(|jiffies| !vouches(after(*jiffies))).count();
        assert!(due > 0 && due < 256, "due somewhere within the tick: {due}");
    }

    #[test]
    fn an_element_tells_of_its_own_flow_alone() {
        let (mine, other) = (flow(40000), flow(40001));
        assert!(!STAMP.vouches(&element(mine), &other, STAMP.hash(&other)));
    }

    proptest! {
        #[test]
        fn a_mixture_of_two_elements_does_not_add_up(word in 0..8_usize, port in 1_u16..) {
            let first = element(flow(40000));
            let mut second = element(flow(40000));
            second.src_port = BePort::new(port);
            second.dst = Ipv4(port.into());
            second.service = port.into();
            second.hop = NextHop { device: port.into(), mtu: port, macs: [port; 6], pad: 0 };
            second.check = STAMP.sum(&second, STAMP.hash(&second.flow));
            let at = word * 8;
            let mixed = [&first.as_bytes()[..at], &second.as_bytes()[at..]].concat();
            let mixed = CachedFlow::from_bytes(&mixed).unwrap();
            let is_one = mixed == first || mixed == second;
            prop_assert_eq!(STAMP.vouches(&mixed, &first.flow, STAMP.hash(&first.flow)), is_one);
        }
    }
}
