//! Addresses, ports and protocols, in network order.

use core::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::Abi;

/// An address family, by its address: one code for both, with a dense layout for each.
///
/// Implemented by [`Ipv4`] and [`Ipv6`] alone.
pub trait Address: Abi + Copy + Debug + Eq {
    /// EtherType of its packets, in host order.
    const ETHERTYPE: u16;
    /// Length of its header without options, in bytes.
    const HEADER: usize;
    /// Offset of the source address in the header; the destination follows it.
    const SOURCE_OFFSET: usize;
    /// Protocol number of its ICMP.
    const ICMP: L4Proto;
    /// Offset of the time to live or hop limit in the header.
    const TTL_OFFSET: usize;

    /// May this be the source of a packet that asks for an answer? Not an address of many, of the
    /// host itself, or of nobody.
    fn is_one_host(&self) -> bool;

    /// Folds the address into one word that depends on every bit.
    fn fold(&self) -> u32;

    /// Words of 64 bits that two addresses take.
    const PAIR_WORDS: usize;

    /// Two addresses as such words; the rest is zero.
    fn pair(first: &Self, second: &Self) -> [u64; 4];

    /// The same address as an IPv6 one; an IPv4 address becomes IPv4-mapped (RFC 4291, 2.5.5.2).
    fn to_mapped(&self) -> Ipv6;

    /// 16-bit words of the address in memory order, summed (for checksums; RFC 1071).
    fn sum(&self) -> u32;
}

/// An IPv4 address in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Ipv4(pub u32);

/// An IPv6 address in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Ipv6(pub [u32; 4]);

// SAFETY: transparent over an integer.
unsafe impl Abi for Ipv4 {}
// SAFETY: transparent over an array of integers.
unsafe impl Abi for Ipv6 {}

/// Two words of 32 bits as one of 64, as they would lie in memory one after the other.
#[inline(always)]
fn word(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[inline(always)]
fn sum_word(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

impl Address for Ipv4 {
    const ETHERTYPE: u16 = 0x0800;
    const HEADER: usize = 20;
    const ICMP: L4Proto = L4Proto::ICMP;
    const SOURCE_OFFSET: usize = 12;
    const PAIR_WORDS: usize = 1;
    const TTL_OFFSET: usize = 8;

    /// Neither 0.0.0.0/8, nor 127.0.0.0/8, nor 224.0.0.0/4, nor 255.255.255.255 (RFC 6890). Linux takes what
    /// is reserved besides, and so do networks.
    #[inline(always)]
    fn is_one_host(&self) -> bool {
        let first = u32::from_be(self.0) >> 24;
        first != 0 && first != 127 && first >> 4 != 0xe && self.0 != u32::MAX
    }

    #[inline(always)]
    fn fold(&self) -> u32 {
        self.0
    }

    #[inline(always)]
    fn pair(first: &Self, second: &Self) -> [u64; 4] {
        [word(first.0, second.0), 0, 0, 0]
    }

    #[inline(always)]
    fn to_mapped(&self) -> Ipv6 {
        Ipv6([0, 0, 0xffff_u32.to_be(), self.0])
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        sum_word(self.0)
    }
}

impl Address for Ipv6 {
    const ETHERTYPE: u16 = 0x86dd;
    const HEADER: usize = 40;
    const ICMP: L4Proto = L4Proto::ICMPV6;
    const SOURCE_OFFSET: usize = 8;
    const PAIR_WORDS: usize = 4;
    const TTL_OFFSET: usize = 7;

    /// RFC 4291, 2.4: neither `::`, nor `::1`, nor `ff00::/8`.
    #[inline(always)]
    fn is_one_host(&self) -> bool {
        let Self([a, b, c, d]) = *self;
        let is_low = a | b | c == 0 && u32::from_be(d) <= 1;
        !is_low && u32::from_be(a) >> 24 != 0xff
    }

    #[inline(always)]
    fn fold(&self) -> u32 {
        let Self([a, b, c, d]) = *self;
        let high = a.wrapping_mul(0x9e37_79b1) ^ b.rotate_left(15);
        let low = c.wrapping_mul(0x85eb_ca77) ^ d.rotate_left(7);
        high.wrapping_mul(0xc2b2_ae3d) ^ low
    }

    #[inline(always)]
    fn pair(first: &Self, second: &Self) -> [u64; 4] {
        let (Self(first), Self(second)) = (first, second);
        let (low, high) = (|of: &[u32; 4]| word(of[0], of[1]), |of: &[u32; 4]| word(of[2], of[3]));
        [low(first), high(first), low(second), high(second)]
    }

    #[inline(always)]
    fn to_mapped(&self) -> Ipv6 {
        *self
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        let Self([a, b, c, d]) = *self;
        sum_word(a) + sum_word(b) + sum_word(c) + sum_word(d)
    }
}

impl Ipv6 {
    /// The IPv4 address within an IPv4-mapped one.
    #[inline(always)]
    #[must_use]
    pub fn mapped(&self) -> Option<Ipv4> {
        let Self([a, b, c, d]) = *self;
        (a == 0 && b == 0 && c == 0xffff_u32.to_be()).then_some(Ipv4(d))
    }
}

impl From<Ipv4Addr> for Ipv4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(u32::from(address).to_be())
    }
}

impl From<Ipv4> for Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        u32::from_be(address.0).into()
    }
}

impl From<Ipv6Addr> for Ipv6 {
    fn from(address: Ipv6Addr) -> Self {
        let bits = address.to_bits();
        #[allow(clippy::cast_possible_truncation, reason = "each word is cut out on purpose")]
        let word = |shift: u32| ((bits >> shift) as u32).to_be();
        Self([word(96), word(64), word(32), word(0)])
    }
}

impl From<Ipv6> for Ipv6Addr {
    fn from(address: Ipv6) -> Self {
        let bits =
            address.0.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
        Self::from_bits(bits)
    }
}

impl From<Ipv4> for IpAddr {
    fn from(address: Ipv4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Ipv6> for IpAddr {
    fn from(address: Ipv6) -> Self {
        Self::V6(address.into())
    }
}

/// A port in network order.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct BePort(pub u16);

// SAFETY: transparent over an integer.
unsafe impl Abi for BePort {}

impl BePort {
    /// From host order.
    #[inline(always)]
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// In host order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// A transport protocol by its number (RFC 5237).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct L4Proto(pub u8);

// SAFETY: transparent over an integer.
unsafe impl Abi for L4Proto {}

impl L4Proto {
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);

    /// Do its packets say themselves whether they begin or end something? Asked of TCP, SCTP and
    /// UDP alone.
    #[inline(always)]
    #[must_use]
    pub const fn has_connections(self) -> bool {
        self.0 != Self::UDP.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_survive_the_way_to_the_kernel_and_back(v4: u32, v6: u128, port: u16) {
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
            prop_assert_eq!(Ipv4Addr::from(Ipv4::from(v4)), v4);
            prop_assert_eq!(Ipv6Addr::from(Ipv6::from(v6)), v6);
            let (k4, k6, be) = (Ipv4::from(v4), Ipv6::from(v6), BePort::new(port));
            prop_assert_eq!(k4.as_bytes(), v4.octets());
            prop_assert_eq!(k6.as_bytes(), v6.octets());
            prop_assert_eq!(be.as_bytes(), port.to_be_bytes());
            prop_assert_eq!(BePort::new(port).get(), port);
        }

        #[test]
        fn a_mapped_address_gives_its_ipv4_address_back(v4: u32) {
            let v4 = Ipv4Addr::from(v4);
            prop_assert_eq!(Ipv6Addr::from(Ipv4::from(v4).to_mapped()), v4.to_ipv6_mapped());
            prop_assert_eq!(Ipv4::from(v4).to_mapped().mapped(), Some(Ipv4::from(v4)));
        }
    }

    #[test]
    fn a_native_ipv6_address_is_not_mapped() {
        assert_eq!(Ipv6::from("fd00:10:96::1".parse::<Ipv6Addr>().unwrap()).mapped(), None);
        assert_eq!(Ipv6::from(Ipv6Addr::LOCALHOST).mapped(), None);
    }
}
