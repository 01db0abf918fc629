//! Packets in fragments. The first one holds the ports and goes the way of any packet; what became of
//! it is remembered for the rest, which is translated by addresses alone.
//!
//! A later fragment that comes before the first one cannot be told to whom it belongs, and nothing
//! here can hold it: at an address of Services it is dropped and counted, anywhere else it is left to the
//! stack.

use lb_common::{
    abi::{
        Address, BePort, CachedFlow, Counter, Fragment, FragmentAction, FragmentKey, Ipv4, L4Proto,
    },
    carrier, flow,
};

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
    (mut action, detail): (FragmentAction, u32),
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
    let place = headers.id() + carrier::overhead::<A>();
    let id = if A::HEADER == Ipv4::HEADER {
        packet.read::<u16>(place).map(u32::from)
    } else {
        packet.read::<u32>(place)
    };
    let (Some(id), flow) = (id, &headers.flow) else { return };
    let hash = flow::hash(flow) & 0xffff;
    let fragment = Fragment {
        src: decision.src,
        dst: decision.dst,
        action: FragmentAction::CARRY,
        detail: hash << 16 | u32::from(decision.dst_port.0),
        seen: tables.now(),
    };
    let key = key([flow.src, flow.dst], (id, flow.protocol), Direction::Ingress);
    tables.keep_fragment(&key, &fragment);
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
    match judge(packet, tables, origin) {
        // Nothing of what is carried here may go on as it is.
        Ok(Verdict::Pass) if origin == Origin::Carried => Err(Some(Counter::CarrierRefused)),
        verdict => verdict,
    }
}

#[inline(always)]
fn judge<A: Header>(
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
        FragmentAction::CARRY if origin == Origin::Carried => return Ok(Verdict::Pass),
        FragmentAction::CARRY => {
            #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
            let target = BePort(first.detail as u16);
            let ends = [first.src, first.dst];
            return Ok(super::carrier::carry(packet, tables, ends, (target, first.detail >> 16))?);
        }
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
