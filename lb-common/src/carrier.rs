//! Carriers: packets that bring a client's packet, as it is, to the node of the backend that was chosen
//! for it.
//!
//! ```text
//! GUE:   IP: node → backend │ UDP: hash → port │ GUE: 1 word of our own data │ the client's packet
//! IPIP:  IP: node → backend │ the client's packet
//! ```
//!
//! The destination is the backend's own address, so a carrier takes every way that packets to pods
//! take. By GUE (generic UDP encapsulation, variant 0) its data names the backend's port; by IPIP, 16 bytes
//! less, the Service port that the client asks tells whose backend at the address is meant. Either way the
//! node there chooses nothing. Not for: who may be sent so, and what is believed of a carrier.

use crate::{
    abi::{Address, BePort, Ipv4, L4Proto},
    checksum::fold,
};

/// The port that carriers go to, unless another one is asked for: GUE's.
pub const PORT: u16 = 6080;
/// Bytes of a UDP header and a GUE header.
const UDP_AND_GUE: u16 = 8 + 8;
/// Words of 32 bits that the headers of a carrier of IPv6 take; those of IPv4 take less.
pub const WORDS: usize = 14;
/// Begins our data.
const TAG: u16 = u16::from_be_bytes(*b"lb");
/// Variant 0, one word of data.
const CONTROL: u8 = 1;
/// Numbers of an IPv4 and an IPv6 packet that is carried (RFC 2003, RFC 2473).
const IPV4_WITHIN: u8 = 4;
const IPV6_WITHIN: u8 = 41;
const IPV4_HEADER: u16 = 20;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// What stands between the IP header of a carrier and the packet in it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// UDP and GUE.
    #[default]
    Gue,
    /// Nothing (RFC 2003, RFC 2473).
    Ipip,
}

impl Kind {
    /// By how many bytes a carrier of the family is longer than what it carries.
    #[inline(always)]
    #[must_use]
    pub const fn overhead<A: Address>(self) -> usize {
        match self {
            Self::Gue => A::HEADER + UDP_AND_GUE as usize,
            Self::Ipip => A::HEADER,
        }
    }
}

/// The number of a packet of the family within another one.
#[inline(always)]
#[must_use]
pub const fn within<A: Address>() -> u8 {
    if A::HEADER == Ipv4::HEADER { IPV4_WITHIN } else { IPV6_WITHIN }
}

/// What the headers of a carrier say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Carrier<A> {
    /// What else stands before the packet.
    pub kind: Kind,
    /// Length of the packet that is carried, in bytes.
    pub length: u16,
    /// Its type of service or traffic class: congestion is told of by the packet (RFC 6040).
    pub class: u8,
    /// Source and destination: this node, and the backend.
    pub ends: [A; 2],
    /// Port of the backend; for GUE, as are those that follow.
    pub target: BePort,
    /// Port that carriers go to.
    pub port: BePort,
    /// See [`src_port`].
    pub src_port: BePort,
}

impl<A: Address> Carrier<A> {
    /// The headers as they lie in memory; the first [`Kind::overhead`] bytes count.
    #[inline(always)]
    #[must_use]
    pub fn headers(&self) -> [u32; WORDS] {
        let Self { ends: [src, dst], target, port, src_port, .. } = *self;
        let [a, b, c, d] = A::pair(&src, &dst).map(halves);
        let (protocol, length) = match self.kind {
            Kind::Gue => (L4Proto::UDP.0, self.length.saturating_add(UDP_AND_GUE)),
            Kind::Ipip => (within::<A>(), self.length),
        };
        let udp = [both(src_port.0, port.0), both(length.to_be(), 0)];
        let gue = [gue::<A>(), both(TAG.to_be(), target.0)];
        if A::HEADER == Ipv4::HEADER {
            let [first, second, third] = self.ipv4(protocol, length);
            [first, second, third, a[0], a[1], udp[0], udp[1], gue[0], gue[1], 0, 0, 0, 0, 0]
        } else {
            let first = (0x6000_0000 | u32::from(self.class) << 20).to_be();
            let next = u16::from_be_bytes([protocol, TTL]).to_be();
            let second = both(length.to_be(), next);
            [
                first, second, a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1], udp[0], udp[1],
                gue[0], gue[1],
            ]
        }
    }

    /// The words of an IPv4 header before its addresses, with so many bytes behind it.
    #[inline(always)]
    fn ipv4(&self, protocol: u8, length: u16) -> [u32; 3] {
        let [src, dst] = self.ends;
        let version_and_class = u16::from_be_bytes([0x45, self.class]).to_be();
        let length = length.saturating_add(IPV4_HEADER).to_be();
        let ttl_and_protocol = u16::from_be_bytes([TTL, protocol]).to_be();
        let fragment = DONT_FRAGMENT.to_be();
        let sum = u32::from(version_and_class)
            + u32::from(length)
            + u32::from(fragment)
            + u32::from(ttl_and_protocol)
            + src.sum()
            + dst.sum();
        [both(version_and_class, length), both(0, fragment), both(ttl_and_protocol, !fold(sum))]
    }
}

/// The source port of a flow's carriers, by its hash: routers balance by it (RFC 6335, 6).
#[inline(always)]
#[must_use]
pub const fn src_port(hash: u32) -> BePort {
    BePort::new(0xc000 | (hash & 0x3fff) as u16)
}

/// The port that a GUE header names, as 16-bit words in memory order; `None` if the header is none of
/// ours.
#[inline(always)]
#[must_use]
pub fn target<A: Address>([control, flags, tag, target]: [u16; 4]) -> Option<BePort> {
    let is_ours = both(control, flags) == gue::<A>() && tag == TAG.to_be();
    is_ours.then_some(BePort(target))
}

/// The first word of the GUE header, as it lies in memory.
#[inline(always)]
const fn gue<A: Address>() -> u32 {
    u32::from_be_bytes([CONTROL, within::<A>(), 0, 0]).to_be()
}

/// Two words of 16 bits as one of 32, as they lie in memory one after the other.
#[inline(always)]
const fn both(first: u16, second: u16) -> u32 {
    first as u32 | (second as u32) << 16
}

/// The words of 32 bits that one of 64 is made of.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::abi::{Abi, Ipv6};

    fn bytes<A: Address>(kind: Kind, ends: [A; 2]) -> Vec<u8> {
        let (target, port) = (BePort::new(8080), BePort::new(PORT));
        let src_port = src_port(0xffff_0007);
        let carrier = Carrier { kind, length: 53, class: 0x2e, ends, target, port, src_port };
        carrier.headers().as_bytes()[..kind.overhead::<A>()].to_vec()
    }

    fn v4() -> [Ipv4; 2] {
        [Ipv4Addr::new(172, 20, 0, 11), Ipv4Addr::new(10, 248, 2, 50)].map(Ipv4::from)
    }

    fn v6() -> [Ipv6; 2] {
        ["fd00:20::11", "fd00:248:2::50"].map(|text| text.parse::<Ipv6Addr>().unwrap().into())
    }

    #[test]
    fn a_carrier_of_ipv4_is_36_bytes_longer() {
        let bytes = bytes(Kind::Gue, v4());
        let ip =
            [0x45, 0x2e, 0, 89, 0, 0, 0x40, 0, 64, 17, 0x81, 0x1d, 172, 20, 0, 11, 10, 248, 2, 50];
        assert_eq!(bytes[..20], ip);
        assert_eq!(
            bytes[20..],
            [0xff - 0x3f, 7, 0x17, 0xc0, 0, 69, 0, 0, 1, 4, 0, 0, 0x6c, 0x62, 0x1f, 0x90]
        );
    }

    #[test]
    fn a_carrier_of_ipv6_is_56_bytes_longer() {
        let bytes = bytes(Kind::Gue, v6());
        assert_eq!(bytes[..8], [0x62, 0xe0, 0, 0, 0, 69, 17, 64]);
        assert_eq!(bytes[8..40], *v6().as_bytes());
        assert_eq!(
            bytes[40..],
            [0xc0, 7, 0x17, 0xc0, 0, 69, 0, 0, 1, 41, 0, 0, 0x6c, 0x62, 0x1f, 0x90]
        );
    }

    #[test]
    fn one_by_ipip_has_nothing_but_an_ip_header() {
        let ip =
            [0x45, 0x2e, 0, 73, 0, 0, 0x40, 0, 64, 4, 0x81, 0x3a, 172, 20, 0, 11, 10, 248, 2, 50];
        assert_eq!(bytes(Kind::Ipip, v4()), ip);
        let ip = [&[0x62, 0xe0, 0, 0, 0, 53, 41, 64], v6().as_bytes()].concat();
        assert_eq!(bytes(Kind::Ipip, v6()), ip);
    }

    #[test]
    fn the_backend_s_port_is_read_back_and_other_headers_are_left() {
        let words = |bytes: [u8; 8]| <[u16; 4]>::from_bytes(&bytes).unwrap();
        let ours = [1, 4, 0, 0, 0x6c, 0x62, 0x1f, 0x90];
        assert_eq!(target::<Ipv4>(words(ours)), Some(BePort::new(8080)));
        assert_eq!(target::<Ipv6>(words(ours)), None, "IPv4 within");
        for place in 0..6 {
            let mut other = ours;
            other[place] ^= 1;
            assert_eq!(target::<Ipv4>(words(other)), None, "byte {place}");
        }
    }
}
