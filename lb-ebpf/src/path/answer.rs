//! Answers that this node makes in place of what is behind an address of Services: to pings, and to
//! packets that it cannot forward.
//!
//! They go back to where the question came from, and are few ([`lb_common::limit`]).

use lb_common::{
    abi::{Address, Counter, CtKey, Ipv4},
    checksum::Difference,
};

use super::{Direction, Origin, fragment::Fragments, icmp::Icmp, refuse};
use crate::{
    packet::Packet,
    parse::{Headers, L3},
    rewrite,
};

const TTL: u8 = 64;
/// Offset of the checksum in an ICMP message.
const CHECKSUM: usize = 2;

/// What answers need to know.
pub trait Answers<A: Address>: Fragments<A> {
    /// May one more answer be made now?
    fn may_answer(&self) -> bool;
}

/// Makes an echo request to an address of Services its own reply, and says whether it has; leaves all
/// else alone.
///
/// # Errors
///
/// [`Counter::PingUnanswered`] if it must not be answered.
#[inline(always)]
pub fn ping<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Answers<A>,
    origin: Origin,
) -> Result<bool, Counter> {
    let icmp = L3 + A::HEADER;
    // Options of an IP header may lead the answer elsewhere.
    if A::header(packet) != Some(icmp) || !A::is_whole(packet) {
        return Ok(false);
    }
    let Some([src, dst]) = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET) else {
        return Ok(false);
    };
    let is_request = packet.read::<[u8; 2]>(icmp) == Some([A::ECHO_REQUEST, 0]);
    if !is_request || origin == Origin::Forwarded || !tables.has_frontends(dst) {
        return Ok(false);
    }
    if !may_be_told(packet, tables, [src, dst], origin.direction()) || !tables.may_answer() {
        return Err(Counter::PingUnanswered);
    }
    reply::<A>(packet, [src, dst]).map(|()| true)
}

#[inline(always)]
fn reply<A: Icmp>(packet: &mut impl Packet, [src, dst]: [A; 2]) -> Result<(), Counter> {
    let [to, from] = packet.read::<[[u16; 3]; 2]>(0).ok_or(Counter::RewriteFailed)?;
    let ttl = packet.read::<u8>(L3 + A::TTL_OFFSET).ok_or(Counter::RewriteFailed)?;
    let icmp = L3 + A::HEADER;
    packet.write(0, &[from, to])?;
    packet.write(L3 + A::SOURCE_OFFSET, &[dst, src])?;
    packet.write(L3 + A::TTL_OFFSET, &TTL)?;
    packet.write(icmp, &[A::ECHO_REPLY, 0])?;
    let change = |old: u8, new: u8| {
        let word = |byte| u32::from(u16::from_ne_bytes([byte, 0]));
        Difference::new(word(old), word(new))
    };
    if A::HEADER == Ipv4::HEADER {
        rewrite::change_checksum(packet, L3 + rewrite::IPV4_CHECKSUM, change(ttl, TTL))?;
    }
    rewrite::change_checksum(packet, icmp + CHECKSUM, change(A::ECHO_REQUEST, A::ECHO_REPLY))
}

/// Makes a packet whose time to live has ended, or that does not fit a `narrow` MTU, the error that
/// tells its sender; says whether it has.
///
/// # Errors
///
/// As for [`refuse::tell`].
#[inline(always)]
pub fn tell<A: Icmp>(
    packet: &mut impl Packet,
    tables: &impl Answers<A>,
    headers: &Headers<A>,
    (narrow, direction): (Option<u16>, Direction),
) -> Result<bool, Counter> {
    let (kind, rest) = match narrow {
        Some(mtu) => (A::TOO_BIG, u32::from(mtu)),
        None => (A::TIME_EXCEEDED, 0),
    };
    let flow = &headers.flow;
    // A process of the node would not believe its own address; nobody else is told by another's.
    let src = match direction {
        Direction::Egress => Some(flow.dst),
        Direction::Ingress => tables.source_at(tables.device()),
    };
    let Some(src) = src else { return Ok(false) };
    if !may_be_told(packet, tables, [flow.src, flow.dst], direction) || !tables.may_answer() {
        return Ok(false);
    }
    let ends = CtKey { src, dst: flow.src, ..*flow };
    refuse::tell(packet, headers, &ends, (A::ICMP, kind, rest)).map(|()| true)
}

/// May a packet with these ends be answered? Not if its source is many, nobody or this node, which
/// somebody else pretends to be, nor if it was sent to many.
#[inline(always)]
fn may_be_told<A: Address>(
    packet: &impl Packet,
    tables: &impl Answers<A>,
    [src, dst]: [A; 2],
    direction: Direction,
) -> bool {
    let is_own = direction == Direction::Ingress && tables.source_at(tables.device()) == Some(src);
    is_for_one(packet) && src.is_one_host() && src != dst && !is_own
}

/// Was a packet sent to one link-layer address, and not to a group?
#[inline(always)]
pub(super) fn is_for_one(packet: &impl Packet) -> bool {
    packet.read::<[u8; 2]>(0).is_some_and(|[first, _]| first & 1 == 0)
}
