//! Carriers: packets that bring a client's packet, as it is, to the node of the backend that was chosen
//! for it.
//!
//! ```text
//! IP: node → backend │ UDP: hash → port │ GUE: 1 word of our own data │ the client's packet
//! ```
//!
//! The destination is the backend's own address, so a carrier takes every way that packets to pods
//! take, and its data names the backend's port: the node there chooses nothing. GUE is generic UDP
//! encapsulation, variant 0. Not for: who may be sent so, and what is believed of a carrier.

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

/// By how many bytes a carrier of the family is longer than what it carries.
#[inline(always)]
#[must_use]
pub const fn overhead<A: Address>() -> usize {
    A::HEADER + UDP_AND_GUE as usize
}

/// What the headers of a carrier say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Carrier<A> {
    /// Length of the packet that is carried, in bytes.
    pub length: u16,
    /// Its type of service or traffic class: congestion is told of by the packet (RFC 6040).
    pub class: u8,
    /// Source and destination: this node, and the backend.
    pub ends: [A; 2],
    /// Port of the backend.
    pub target: BePort,
    /// Port that carriers go to.
    pub port: BePort,
    /// See [`src_port`].
    pub src_port: BePort,
}

impl<A: Address> Carrier<A> {
    /// The headers as they lie in memory; the first [`overhead`] bytes count.
    #[inline(always)]
    #[must_use]
    pub fn headers(&self) -> [u32; WORDS] {
        let Self { ends: [src, dst], target, port, src_port, .. } = *self;
        let [a, b, c, d] = A::pair(&src, &dst).map(halves);
        let udp_length = self.length.saturating_add(UDP_AND_GUE);
        let udp = [both(src_port.0, port.0), both(udp_length.to_be(), 0)];
        let gue = [gue::<A>(), both(TAG.to_be(), target.0)];
        if A::HEADER == Ipv4::HEADER {
            let [first, second, third] = self.ipv4(udp_length);
            [first, second, third, a[0], a[1], udp[0], udp[1], gue[0], gue[1], 0, 0, 0, 0, 0]
        } else {
            let first = (0x6000_0000 | u32::from(self.class) << 20).to_be();
            let next = u16::from_be_bytes([L4Proto::UDP.0, TTL]).to_be();
            let second = both(udp_length.to_be(), next);
            [
                first, second, a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1], udp[0], udp[1],
                gue[0], gue[1],
            ]
        }
    }

    /// The words of an IPv4 header before its addresses.
    #[inline(always)]
    fn ipv4(&self, udp_length: u16) -> [u32; 3] {
        let [src, dst] = self.ends;
        let version_and_class = u16::from_be_bytes([0x45, self.class]).to_be();
        let length = udp_length.saturating_add(IPV4_HEADER).to_be();
        let ttl_and_protocol = u16::from_be_bytes([TTL, L4Proto::UDP.0]).to_be();
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
    let within = if A::HEADER == Ipv4::HEADER { IPV4_WITHIN } else { IPV6_WITHIN };
    u32::from_be_bytes([CONTROL, within, 0, 0]).to_be()
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

    fn bytes<A: Address>(ends: [A; 2]) -> Vec<u8> {
        let (target, port) = (BePort::new(8080), BePort::new(PORT));
        let src_port = src_port(0xffff_0007);
        let carrier = Carrier { length: 53, class: 0x2e, ends, target, port, src_port };
        carrier.headers().as_bytes()[..overhead::<A>()].to_vec()
    }

    #[test]
    fn a_carrier_of_ipv4_is_36_bytes_longer() {
        let ends = [Ipv4Addr::new(172, 20, 0, 11), Ipv4Addr::new(10, 248, 2, 50)].map(Ipv4::from);
        let bytes = bytes(ends);
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
        let [src, dst] = ["fd00:20::11", "fd00:248:2::50"].map(|text| text.parse().unwrap());
        let bytes = bytes::<Ipv6>([Ipv6Addr::into(src), Ipv6Addr::into(dst)]);
        assert_eq!(bytes[..8], [0x62, 0xe0, 0, 0, 0, 69, 17, 64]);
        assert_eq!(bytes[8..24], src.octets());
        assert_eq!(bytes[24..40], dst.octets());
        assert_eq!(
            bytes[40..],
            [0xc0, 7, 0x17, 0xc0, 0, 69, 0, 0, 1, 41, 0, 0, 0x6c, 0x62, 0x1f, 0x90]
        );
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
