//! A link between nodes that is too narrow for a carrier: its router tells this node, and this node the client.
//!
//! ```text
//! router ─► error: IP │ ICMP, MTU │ quote: IP (│ UDP │ GUE) │ the client's packet
//! client ◄─ error: IP │ ICMP, MTU less the carrier's headers │ quote: the client's packet
//! ```
//!
//! Routers quote enough for that, as RFC 1812 and RFC 4443 want it. An error of which conntrack does not know that
//! the client's packets are carried, to where it says, is left to the stack.

use lb_common::{
    abi::{Address, BePort, CachedFlow, Counter, Ipv4, L4Proto},
    carrier::{Kind, within},
};

use super::{
    Origin,
    icmp::{HEADER as ICMP_HEADER, Icmp},
    ipip::Within,
};
use crate::{
    packet::{Bytes, Packet},
    parse::{Headers, L3, Next},
    tables::Tables,
};

/// Offset of the MTU in an error, of 32 bits; those of IPv4 count less.
const MTU: usize = 4;

/// Where the quoted carrier begins, less [`L3`].
#[inline(always)]
const fn quote<A: Address>() -> usize {
    A::HEADER + ICMP_HEADER
}

/// May a packet be an error that tells so?
#[inline(always)]
pub fn may_be<A: Icmp>(packet: &impl Bytes, tables: &impl Tables<A>, origin: Origin) -> bool {
    origin == Origin::Incoming
        && A::header(packet) == Some(L3 + A::HEADER)
        && packet.read::<[u8; 2]>(L3 + A::HEADER) == Some(A::TOO_BIG)
        && kind(packet, tables).is_some()
}

/// What kind of a carrier an error quotes; it has no options.
#[inline(always)]
fn kind<A: Icmp>(packet: &impl Bytes, tables: &impl Tables<A>) -> Option<Kind> {
    let l3 = L3 + quote::<A>();
    let (protocol, l4) = A::quoted(packet, l3)?;
    let is_plain = l4 == l3 + A::HEADER;
    if is_plain && protocol.0 == within::<A>() {
        return Some(Kind::Ipip);
    }
    let port = packet.read::<[BePort; 2]>(l3 + A::HEADER)?[1];
    let is_gue = protocol == L4Proto::UDP && port == tables.carrier_port() && port != BePort(0);
    (is_plain && is_gue).then_some(Kind::Gue)
}

/// Makes an error the client's packet that it is about, as far as it is quoted, and notes its headers and, in
/// `decision`, the MTU that is left for it; false if it is about no packet that is carried from here, and left
/// as it is.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] if the kernel refuses.
#[inline(always)]
pub fn reveal<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    (keep, decision): (impl FnOnce(&Headers<A>), &mut CachedFlow<A>),
) -> Result<bool, Counter> {
    let Some(kind) = kind(packet, tables) else { return Ok(false) };
    let ends = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET);
    let quoted = packet.read::<[A; 2]>(L3 + quote::<A>() + A::SOURCE_OFFSET);
    let mtu = packet.read::<u32>(L3 + A::HEADER + MTU).map_or(0, u32::from_be);
    let (Some([_, node]), Some([from, backend])) = (ends, quoted) else { return Ok(false) };
    let Some(left) = room::<A>(mtu, kind).filter(|_| node == from) else { return Ok(false) };
    let length = quote::<A>() + kind.overhead::<A>();
    let judge = Judge { tables, backend, keep };
    if A::parse(&mut Within(packet, length), judge) != Ok(true) {
        return Ok(false);
    }
    packet.remove_before(length)?;
    decision.hop.mtu = left;
    Ok(true)
}

/// What a carrier leaves of an MTU; none of one that says nothing.
#[inline(always)]
fn room<A: Address>(mtu: u32, kind: Kind) -> Option<u16> {
    let mtu = if A::HEADER == Ipv4::HEADER { mtu & 0xffff } else { mtu };
    #[allow(clippy::cast_possible_truncation, reason = "56 at most")]
    let overhead = kind.overhead::<A>() as u32;
    u16::try_from(mtu.checked_sub(overhead)?).ok().filter(|left| *left > 0)
}

/// Judges the headers of a client's packet, and keeps them.
struct Judge<'a, A, T, K> {
    tables: &'a T,
    backend: A,
    keep: K,
}

impl<A: Address, P, T: Tables<A>, K: FnOnce(&Headers<A>)> Next<A, P> for Judge<'_, A, T, K> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: &mut P, headers: &Headers<A>) -> bool {
        let Self { tables, backend, keep } = self;
        keep(headers);
        tables
            .conntrack(&headers.flow)
            .is_some_and(|entry| entry.action().carries() && entry.get().dst == backend)
    }
}
