//! Packets in fragments. The first one holds the ports and goes the way of any packet; what became of
//! it is remembered for the rest, which is translated by addresses alone.
//!
//! A later fragment that comes before the first one cannot be told to whom it belongs, and nothing
//! here can hold it: at an address of Services it is dropped and counted, anywhere else it is left to the
//! stack.

use lb_common::abi::{
    Address, BePort, CachedFlow, Counter, CtKey, Fragment, FragmentAction, FragmentKey,
};

use super::{Direction, Origin, PathResult, Verdict};
use crate::{
    packet::{Bytes, Packet},
    parse::{Headers, L3},
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
pub fn remember<A: Address>(
    packet: &impl Packet,
    tables: &impl Fragments<A>,
    headers: &Headers<A>,
    direction: Direction,
    (mut action, detail): (FragmentAction, u32),
) {
    let Some(id) = headers.identification(packet, 0) else { return };
    let Some([src, dst]) = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET) else { return };
    let old = [headers.flow.src, headers.flow.dst];
    let key = key(headers, id, direction);
    if action == FragmentAction::CONTINUE && old == [src, dst] {
        if tables.fragment(&key).is_none() && !tables.has_frontends(dst) {
            return;
        }
        action = FragmentAction::PASS;
    }
    tables.keep_fragment(&key, &Fragment { src, dst, action, detail, seen: tables.now() });
}

/// Remembers that a first fragment is carried, as `decision` says: it is in its carrier by now.
#[inline(always)]
pub fn remember_carried<A: Address>(
    packet: &impl Packet,
    tables: &impl Fragments<A>,
    headers: &Headers<A>,
    decision: &CachedFlow<A>,
) {
    let overhead = tables.carrier_kind().overhead::<A>();
    let Some(id) = headers.identification(packet, overhead) else { return };
    let ports = [decision.src_port, decision.dst_port].map(|port| u32::from(port.0));
    let fragment = Fragment {
        src: decision.src,
        dst: decision.dst,
        action: FragmentAction::CARRY,
        detail: ports[0] << 16 | ports[1],
        seen: tables.now(),
    };
    tables.keep_fragment(&key(headers, id, Direction::Ingress), &fragment);
}

/// Does with a later fragment what was done with the first one; writes `decision` for one that is to be
/// carried.
///
/// # Errors
///
/// Why it ends here; nothing if that is counted already.
#[inline(always)]
pub fn later<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> Result<Verdict, Option<Counter>> {
    match judge(packet, headers, tables, (origin, decision)) {
        // Nothing of what is carried here may go on as it is.
        Ok(Verdict::Pass) if origin == Origin::Carried => Err(Some(Counter::CarrierRefused)),
        verdict => verdict,
    }
}

#[inline(always)]
fn judge<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> Result<Verdict, Option<Counter>> {
    let direction = origin.direction();
    let Some(id) = headers.identification(packet, 0) else { return Ok(Verdict::Pass) };
    let first = tables.fragment(&key(headers, id, direction));
    let Some(first) = first.filter(|first| first.is_fresh(tables.now())) else {
        let is_ours = origin != Origin::Forwarded && tables.has_frontends(headers.flow.dst);
        return if is_ours { Err(Some(Counter::FragmentOutOfOrder)) } else { Ok(Verdict::Pass) };
    };
    match first.action {
        FragmentAction::DROP => return Err(None),
        FragmentAction::PASS => return Ok(Verdict::Pass),
        FragmentAction::CARRY if origin == Origin::Carried => return Ok(Verdict::Pass),
        FragmentAction::CARRY => {
            #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
            let [src_port, dst_port] =
                [first.detail >> 16, first.detail].map(|it| BePort(it as u16));
            let ends = CtKey { src: first.src, dst: first.dst, src_port, dst_port, ..headers.flow };
            let asker = headers.flow.src;
            return Ok(super::carrier::follow(tables, (&ends, asker), decision)?);
        }
        _ => {}
    }
    let old = [headers.flow.src, headers.flow.dst];
    Ok(follow(packet, tables, old, &first, direction)?)
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
        FragmentAction::DELIVER => Verdict::Deliver(first.detail),
        FragmentAction::REDIRECT => {
            let [asker, _] = ends;
            let src = if first.detail == 0 { first.src } else { asker };
            let hop = tables.route(src, first.dst).ok_or(Counter::NoRoute)?;
            if !packet.fits(hop.mtu) {
                return Err(Counter::PacketTooBig);
            }
            if direction == Direction::Ingress {
                // In place of the stack, as the first one.
                let ttl = packet.read(L3 + A::TTL_OFFSET).ok_or(Counter::RewriteFailed)?;
                rewrite::decrement_ttl::<A>(packet, L3, ttl)?;
            }
            Verdict::Route
        }
        _ => Verdict::Continue,
    };
    rewrite::rewrite_rest(packet, ends, [first.src, first.dst])?;
    Ok(verdict)
}

/// Was the first fragment of a packet translated to lead to this address?
#[inline(always)]
pub(super) fn leads_to<A: Address>(
    packet: &impl Bytes,
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    address: A,
) -> bool {
    let Some(id) = headers.identification(packet, 0) else { return false };
    let first = tables.fragment(&key(headers, id, Direction::Ingress));
    first.is_some_and(|first| first.dst == address && first.is_fresh(tables.now()))
}

#[inline(always)]
fn key<A: Address>(headers: &Headers<A>, id: u32, direction: Direction) -> FragmentKey<A> {
    FragmentKey {
        src: headers.flow.src,
        dst: headers.flow.dst,
        id,
        protocol: headers.flow.protocol,
        hook: u8::from(direction == Direction::Egress),
        pad: [0; 2],
    }
}
