//! Packets in fragments. The first one holds the ports and goes the way of any packet; what became of
//! it is remembered for the rest, which is translated by addresses alone.
//!
//! A later fragment that comes before the first one cannot be told to whom it belongs, and nothing
//! here can hold it: at an address of Services it is dropped and counted, anywhere else it is left to the
//! stack.

use lb_common::abi::{Address, Counter, Fragment, FragmentAction, FragmentKey, L4Proto};

use super::{Direction, Origin, PathResult, Verdict};
use crate::{
    packet::Packet,
    parse::{Header, Headers, L3},
    rewrite,
    tables::Tables,
};

/// What is remembered of packets in fragments.
pub trait Fragments<A: Address>: Tables<A> {
    /// What became of a packet's first fragment.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<Fragment<A>>;

    /// Remembers it.
    fn keep_fragment(&self, key: &FragmentKey<A>, fragment: &Fragment<A>);

    /// Does this address have frontends, and is it none of the node's own?
    fn has_frontends(&self, address: A) -> bool;
}

/// Remembers what became of a first fragment, which is what it has become already: sent, delivered by
/// a device, dropped, or passed on.
///
/// Of one that is left alone nothing is remembered, unless its rest would be taken for another packet's.
#[inline(always)]
pub fn remember<A: Header>(
    packet: &mut impl Packet,
    tables: &impl Fragments<A>,
    headers: &Headers<A>,
    direction: Direction,
    (mut action, device): (FragmentAction, u32),
) {
    let Some((id, protocol)) = A::fragment(packet) else { return };
    let Some([src, dst]) = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET) else { return };
    let old = [headers.flow.src, headers.flow.dst];
    let key = key(old, (id, protocol), direction);
    if action == FragmentAction::CONTINUE && old == [src, dst] {
        if tables.fragment(&key).is_none() && !tables.has_frontends(dst) {
            return;
        }
        action = FragmentAction::PASS;
    }
    tables.keep_fragment(&key, &Fragment { src, dst, action, device, seen: tables.now() });
}

/// Does with a later fragment what was done with the first one.
///
/// # Errors
///
/// Why it ends here; nothing if that is counted already.
#[inline(always)]
pub fn later<A: Header>(
    packet: &mut impl Packet,
    tables: &impl Fragments<A>,
    origin: Origin,
) -> Result<Verdict, Option<Counter>> {
    let direction = origin.direction();
    let Some((id, protocol)) = A::fragment(packet) else { return Ok(Verdict::Pass) };
    let Some(ends) = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET) else {
        return Ok(Verdict::Pass);
    };
    let first = tables.fragment(&key(ends, (id, protocol), direction));
    let Some(first) = first.filter(|first| first.is_fresh(tables.now())) else {
        let is_ours =
            origin != Origin::Forwarded && has_ports(protocol) && tables.has_frontends(ends[1]);
        return if is_ours { Err(Some(Counter::FragmentOutOfOrder)) } else { Ok(Verdict::Pass) };
    };
    match first.action {
        FragmentAction::DROP => return Err(None),
        FragmentAction::PASS => return Ok(Verdict::Pass),
        _ => {}
    }
    Ok(follow(packet, tables, ends, &first, direction)?)
}

/// Translates a later fragment as the first one was.
#[inline(always)]
fn follow<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    ends: [A; 2],
    first: &Fragment<A>,
    direction: Direction,
) -> PathResult {
    let verdict = match first.action {
        FragmentAction::DELIVER => Verdict::Deliver(first.device),
        FragmentAction::REDIRECT => {
            let hop = tables.route(first.src, first.dst).ok_or(Counter::NoRoute)?;
            if !packet.fits(hop.mtu) {
                return Err(Counter::PacketTooBig);
            }
            if direction == Direction::Ingress {
                // In place of the stack, as the first one.
                let ttl = packet.read(L3 + A::TTL_OFFSET).ok_or(Counter::RewriteFailed)?;
                rewrite::decrement_ttl::<A>(packet, ttl)?;
            }
            Verdict::Route
        }
        _ => Verdict::Continue,
    };
    rewrite::rewrite_rest(packet, ends, [first.src, first.dst])?;
    Ok(verdict)
}

/// Only packets with ports can be a Service's.
#[inline(always)]
fn has_ports(protocol: L4Proto) -> bool {
    matches!(protocol, L4Proto::TCP | L4Proto::UDP | L4Proto::SCTP)
}

#[inline(always)]
fn key<A: Address>(
    [src, dst]: [A; 2],
    (id, protocol): (u32, L4Proto),
    direction: Direction,
) -> FragmentKey<A> {
    FragmentKey {
        src,
        dst,
        id,
        protocol,
        hook: u8::from(direction == Direction::Egress),
        pad: [0; 2],
    }
}
