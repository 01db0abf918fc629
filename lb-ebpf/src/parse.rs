//! Reads the headers of a packet once, for all paths.

use lb_common::{
    abi::{Address, BePort, CtKey, Ipv4, Ipv6, L4Proto},
    conntrack::TcpFlags,
};

use crate::packet::{ETHERNET_HEADER, Packet};

/// Where the IP header begins.
pub const L3: usize = ETHERNET_HEADER;
const ETHERTYPE_OFFSET: usize = 12;
const TCP_FLAGS_OFFSET: usize = 13;
/// More fragments, or a fragment offset (RFC 791, 3.1).
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV6_FRAGMENT: u8 = 44;

/// What the paths need to know of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers<A> {
    /// The flow as it stands on the wire.
    pub flow: CtKey<A>,
    /// Offset of the TCP or UDP header.
    pub l4: usize,
    /// TCP flags; none for UDP.
    pub flags: TcpFlags,
    /// Time to live or hop limit.
    pub ttl: u8,
}

/// What a packet is to us.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<A> {
    /// A fragment: without ports, or with more to follow that have none.
    Fragment,
    /// One packet of a flow.
    Packet(Headers<A>),
    /// Another protocol.
    Other,
    /// Headers that end too early.
    Truncated,
}

/// The EtherType of a packet, in host order.
#[inline(always)]
pub fn ethertype(packet: &impl Packet) -> u16 {
    packet.read::<u16>(ETHERTYPE_OFFSET).map_or(0, u16::from_be)
}

/// How a family's header tells what follows it.
pub trait Header: Address {
    /// Reads the header behind the Ethernet header.
    fn parse(packet: &impl Packet) -> Parsed<Self>;
}

impl Header for Ipv4 {
    #[inline(always)]
    fn parse(packet: &impl Packet) -> Parsed<Self> {
        let (Some(first), Some(fragment)) = (packet.read::<u8>(L3), packet.read::<u16>(L3 + 6))
        else {
            return Parsed::Truncated;
        };
        let (Some(ttl), Some(protocol)) = (packet.read(L3 + 8), packet.read(L3 + 9)) else {
            return Parsed::Truncated;
        };
        let l3_length = usize::from(first & 0x0f) * 4;
        if l3_length < Self::HEADER {
            return Parsed::Truncated;
        }
        if u16::from_be(fragment) & IPV4_FRAGMENT != 0 {
            return Parsed::Fragment;
        }
        transport(packet, L3 + l3_length, L4Proto(protocol), ttl)
    }
}

impl Header for Ipv6 {
    #[inline(always)]
    fn parse(packet: &impl Packet) -> Parsed<Self> {
        let (Some(next), Some(ttl)) = (packet.read::<u8>(L3 + 6), packet.read(L3 + 7)) else {
            return Parsed::Truncated;
        };
        if next == IPV6_FRAGMENT {
            return Parsed::Fragment;
        }
        transport(packet, L3 + Self::HEADER, L4Proto(next), ttl)
    }
}

#[inline(always)]
fn transport<A: Address>(packet: &impl Packet, l4: usize, protocol: L4Proto, ttl: u8) -> Parsed<A> {
    let flags = match protocol {
        L4Proto::TCP => packet.read(l4 + TCP_FLAGS_OFFSET).map(TcpFlags),
        L4Proto::UDP => Some(TcpFlags::default()),
        _ => return Parsed::Other,
    };
    let addresses = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET);
    let ports = packet.read::<[BePort; 2]>(l4);
    let (Some(flags), Some([src, dst]), Some([src_port, dst_port])) = (flags, addresses, ports)
    else {
        return Parsed::Truncated;
    };
    let flow = CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] };
    Parsed::Packet(Headers { flow, l4, flags, ttl })
}
