//! Reads the headers of a packet once, for all paths.

use lb_common::{
    abi::{Address, BePort, CtKey, Ipv4, Ipv6, L4Proto, PlainIpv4, PlainIpv6},
    conntrack::TcpFlags,
};

use crate::{
    extension::Chain,
    packet::{Bytes, ETHERNET_HEADER, ETHERTYPE_OFFSET},
};

/// Where the IP header begins.
pub const L3: usize = ETHERNET_HEADER;
const TCP_FLAGS_OFFSET: usize = 13;
/// The type of the first chunk, behind the common header (RFC 9260, 3).
const SCTP_CHUNK_OFFSET: usize = 12;
const IPV4_ID: usize = L3 + 4;
const IPV4_FRAGMENT: usize = L3 + 6;
/// The offset in fragments of eight bytes (RFC 791, 3.1).
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// What is set in fragments, the first one and later ones.
pub const ANY_FRAGMENT: u16 = FRAGMENT_OFFSET | MORE_FRAGMENTS;
/// Version and length of an IPv4 header without options.
pub(crate) const WITHOUT_OPTIONS: u8 = 0x45;

/// What the paths need to know of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers<A> {
    /// The flow as it stands on the wire; without ports in a later fragment.
    pub flow: CtKey<A>,
    /// Offset of the transport header: a byte, whose bounds the verifier knows wherever it is read; zero
    /// in a later fragment.
    l4: u8,
    /// Offset of the identification in a fragment; zero if it is a whole packet.
    id: u8,
    /// TCP flags, or what an SCTP chunk says in their words; none for UDP.
    pub flags: TcpFlags,
    /// Time to live or hop limit.
    pub ttl: u8,
}

impl<A: Address> Headers<A> {
    /// Offset of the transport header.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4)
    }

    /// Is this the first fragment of a packet, whose rest follows?
    #[inline(always)]
    pub fn has_rest(&self) -> bool {
        self.id != 0 && !self.is_later()
    }

    /// Is this a fragment that is not the first one?
    #[inline(always)]
    pub fn is_later(&self) -> bool {
        self.l4 == 0
    }

    /// The identification of a fragment, which has been moved by so many bytes, in network order.
    #[inline(always)]
    pub fn identification(&self, packet: &impl Bytes, moved: usize) -> Option<u32> {
        let place = usize::from(self.id) + moved;
        if A::HEADER == Ipv4::HEADER {
            packet.read::<u16>(place).map(u32::from)
        } else {
            packet.read(place)
        }
    }

    /// May the packet be the first of its flow? A TCP segment other than a SYN never is, nor an SCTP
    /// packet other than an INIT.
    #[inline(always)]
    pub fn begins(&self) -> bool {
        !self.flow.protocol.has_connections() || self.flags.opens()
    }
}

/// Why a packet is not one of a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoFlow {
    /// Another protocol.
    Other,
    /// Headers that end too early.
    Truncated,
}

/// The EtherType of a packet, in host order.
#[inline(always)]
pub fn ethertype(packet: &impl Bytes) -> u16 {
    packet.read::<u16>(ETHERTYPE_OFFSET).map_or(0, u16::from_be)
}

/// What is done with the headers of a packet.
///
/// A function to call and not an answer to return: where branches meet again with headers that
/// only some of them have read, the compiler leaves registers unset that the kernel's verifier then
/// sees used. A trait and not a closure, so that it can be inlined for certain.
pub trait Next<A, P> {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run(self, packet: &mut P, headers: &Headers<A>) -> Self::Output;
}

/// How a family's header tells what follows it.
pub trait Header: Address {
    /// Goes on with the headers of a packet of TCP or UDP that is whole and has nothing between IP header
    /// and transport header, as most packets; `None` of any other.
    fn plain<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Option<N::Output>;

    /// Goes on with the headers of a packet of any flow, or of a later fragment.
    ///
    /// # Errors
    ///
    /// Why there is no flow to go on with.
    fn parse<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Result<N::Output, NoFlow>;
}

impl Header for Ipv4 {
    #[inline(always)]
    fn plain<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Option<N::Output> {
        let plain = packet.read::<PlainIpv4>(L3)?;
        let is_whole = u16::from_be(plain.fragment) & ANY_FRAGMENT == 0;
        if plain.version_and_length != WITHOUT_OPTIONS || !is_whole {
            return None;
        }
        let PlainIpv4 { ttl, protocol, src, dst, ports, .. } = plain;
        go_on(packet, [src, dst], (ports, L4Proto(protocol), ttl), next)
    }

    #[inline(always)]
    fn parse<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Result<N::Output, NoFlow> {
        let first = packet.read::<u8>(L3).ok_or(NoFlow::Truncated)?;
        let fragment = packet.read::<u16>(IPV4_FRAGMENT).ok_or(NoFlow::Truncated)?;
        let fragment = u16::from_be(fragment);
        let [ttl, protocol] = packet.read::<[u8; 2]>(L3 + 8).ok_or(NoFlow::Truncated)?;
        // One with another version is no longer one.
        let options = first.wrapping_sub(WITHOUT_OPTIONS);
        if options > 10 {
            return Err(NoFlow::Truncated);
        }
        let is_later = fragment & FRAGMENT_OFFSET != 0;
        let l4 = if is_later { 0 } else { L3 + Self::HEADER + usize::from(options) * 4 };
        let is_whole = fragment & ANY_FRAGMENT == 0;
        let id = if is_whole { 0 } else { IPV4_ID };
        transport(packet, [l4, id], (L4Proto(protocol), ttl), next)
    }
}

impl Header for Ipv6 {
    #[inline(always)]
    fn plain<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Option<N::Output> {
        let PlainIpv6 { protocol, ttl, src, dst, ports, .. } = packet.read(L3)?;
        go_on(packet, [src, dst], (ports, L4Proto(protocol), ttl), next)
    }

    #[inline(always)]
    fn parse<P: Bytes, N: Next<Self, P>>(packet: &mut P, next: N) -> Result<N::Output, NoFlow> {
        let [protocol, ttl] = packet.read::<[u8; 2]>(L3 + 6).ok_or(NoFlow::Truncated)?;
        let mut chain = Chain::none(protocol);
        if chain.goes_on() {
            chain.walk(packet)?;
        }
        let l4 = if chain.is_later { 0 } else { chain.l4 };
        transport(packet, [l4, chain.id], (L4Proto(chain.protocol), ttl), next)
    }
}

/// Goes on with a plain packet.
#[inline(always)]
fn go_on<A: Address, P: Bytes, N: Next<A, P>>(
    packet: &mut P,
    [src, dst]: [A; 2],
    ([src_port, dst_port], protocol, ttl): ([BePort; 2], L4Proto, u8),
    next: N,
) -> Option<N::Output> {
    let l4 = L3 + A::HEADER;
    let mut flags = TcpFlags::default();
    if protocol == L4Proto::TCP {
        flags = TcpFlags(packet.read(l4 + TCP_FLAGS_OFFSET)?);
    } else if protocol != L4Proto::UDP {
        return None;
    }
    let flow = CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] };
    #[allow(clippy::cast_possible_truncation, reason = "54 at most")]
    let l4 = l4 as u8;
    Some(next.run(packet, &Headers { flow, l4, id: 0, flags, ttl }))
}

/// A byte at `offset`; zero in a first fragment that ends before it, whose ports tell whose the rest is.
#[inline(always)]
fn told(packet: &impl Bytes, offset: usize, id: usize) -> Result<u8, NoFlow> {
    packet.read(offset).or((id != 0).then_some(0)).ok_or(NoFlow::Truncated)
}

#[inline(always)]
fn transport<A: Address, P: Bytes, N: Next<A, P>>(
    packet: &mut P,
    [l4, id]: [usize; 2],
    (protocol, ttl): (L4Proto, u8),
    next: N,
) -> Result<N::Output, NoFlow> {
    if !matches!(protocol, L4Proto::TCP | L4Proto::UDP | L4Proto::SCTP) {
        return Err(NoFlow::Other);
    }
    let addresses = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET);
    let [src, dst] = addresses.ok_or(NoFlow::Truncated)?;
    let mut ports = [BePort(0); 2];
    let mut flags = TcpFlags::default();
    if l4 != 0 {
        ports = packet.read(l4).ok_or(NoFlow::Truncated)?;
        if protocol == L4Proto::TCP {
            flags = TcpFlags(told(packet, l4 + TCP_FLAGS_OFFSET, id)?);
        } else if protocol == L4Proto::SCTP {
            flags = TcpFlags::of_chunk(told(packet, l4 + SCTP_CHUNK_OFFSET, id)?);
        }
    }
    let [src_port, dst_port] = ports;
    let flow = CtKey { src, dst, src_port, dst_port, protocol, pad: [0; 3] };
    #[allow(clippy::cast_possible_truncation, reason = "IPv4's at most 14 + 60, IPv6's 190 + 8")]
    let (l4, id) = (l4 as u8, id as u8);
    Ok(next.run(packet, &Headers { flow, l4, id, flags, ttl }))
}
