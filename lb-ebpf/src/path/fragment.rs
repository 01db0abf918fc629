//! Packets in fragments. The first one holds the ports and goes the way of any packet; what becomes of
//! it is remembered for the rest, which is translated by addresses alone.
//!
//! A later fragment that comes before the first one cannot be told to whom it belongs: it waits for that
//! ([`hold`](super::hold)).

use lb_common::abi::{
    Address, BePort, CachedFlow, Counter, CtAction, CtKey, Fragment, FragmentAction, FragmentKey,
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

/// What becomes of the rest of a packet whose first fragment goes the way that a decision says.
#[inline(always)]
pub fn decided<A: Address>(
    tables: &impl Tables<A>,
    decision: &CachedFlow<A>,
) -> (FragmentAction, u32) {
    let ports = [decision.src_port, decision.dst_port].map(|port| u32::from(port.0));
    match decision.action {
        action if action.carries() => (FragmentAction::CARRY, ports[0] << 16 | ports[1]),
        CtAction::REPLY_TO_HOST if decision.hop.device != tables.device() => {
            (FragmentAction::DELIVER, decision.hop.device)
        }
        CtAction::REPLY_TO_HOST => (FragmentAction::CONTINUE, 0),
        action if action.redirects() => (FragmentAction::REDIRECT, u32::from(action.is_forward())),
        _ => (FragmentAction::CONTINUE, 0),
    }
}

/// Remembers what becomes of a first fragment, which gets these ends, for the rest; false if there is no need.
///
/// Of one that is left alone nothing is remembered, unless its rest would be taken for another packet's, or
/// would wait for it.
#[inline(always)]
pub fn remember<A: Address>(
    packet: &impl Packet,
    tables: &impl Fragments<A>,
    (headers, origin): (&Headers<A>, Origin),
    [src, dst]: [A; 2],
    (mut action, detail): (FragmentAction, u32),
) -> bool {
    let Some(id) = headers.identification(packet, 0) else { return false };
    let old = [headers.flow.src, headers.flow.dst];
    let key = key(headers, id, origin.direction());
    if action == FragmentAction::CONTINUE && old == [src, dst] {
        if tables.fragment(&key).is_none() && !may_be_ours(tables, dst, origin) {
            return false;
        }
        action = FragmentAction::PASS;
    }
    tables.keep_fragment(&key, &Fragment { src, dst, action, detail, seen: tables.now() });
    true
}

/// May the ports of a packet to this address, which are not known, be a Service's?
#[inline(always)]
fn may_be_ours<A: Address>(tables: &impl Fragments<A>, dst: A, origin: Origin) -> bool {
    // The node's own at an uplink: of a node port, or where replies to SNAT come to.
    let is_own =
        || tables.is_uplink() && tables.source_at(tables.device()).is_some_and(|it| it == dst);
    tables.has_frontends(dst) || origin == Origin::Incoming && is_own()
}

/// What is to be done with a later fragment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Later {
    /// What was done with the first one.
    By(Verdict),
    /// It ends here, and is counted already.
    Ended,
    /// Nothing is known yet: it is to wait.
    Hold,
}

/// It is left alone.
const PASS: Result<Later, Counter> = Ok(Later::By(Verdict::Pass));

/// Does with a later fragment what was done with the first one; writes `decision` for one that is to be
/// carried.
///
/// # Errors
///
/// Why it ends here.
#[inline(always)]
pub fn later<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> Result<Later, Counter> {
    match judge(packet, headers, tables, (origin, decision)) {
        // Nothing of what is carried here may go on as it is.
        Ok(Later::By(Verdict::Pass)) if origin == Origin::Carried => Err(Counter::CarrierRefused),
        verdict => verdict,
    }
}

#[inline(always)]
fn judge<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    (origin, decision): (Origin, &mut CachedFlow<A>),
) -> Result<Later, Counter> {
    let direction = origin.direction();
    let Some(id) = headers.identification(packet, 0) else { return PASS };
    let first = tables.fragment(&key(headers, id, direction));
    let Some(first) = first.filter(|first| first.is_fresh(tables.now())) else {
        return unknown(headers, tables, origin);
    };
    match first.action {
        FragmentAction::DROP => return Ok(Later::Ended),
        FragmentAction::PASS => return PASS,
        FragmentAction::CARRY if origin == Origin::Carried => return PASS,
        FragmentAction::CARRY => {
            #[allow(clippy::cast_possible_truncation, reason = "both halves are taken")]
            let [src_port, dst_port] =
                [first.detail >> 16, first.detail].map(|it| BePort(it as u16));
            let ends = CtKey { src: first.src, dst: first.dst, src_port, dst_port, ..headers.flow };
            let asker = headers.flow.src;
            return super::carrier::follow(tables, (&ends, asker), decision).map(Later::By);
        }
        _ => {}
    }
    let old = [headers.flow.src, headers.flow.dst];
    follow(packet, tables, old, &first, direction).map(Later::By)
}

/// What becomes of a later fragment that comes before its first one. Those of this node's own stack come in
/// order, and those in carriers in the order that they were put into them.
#[inline(always)]
fn unknown<A: Address>(
    headers: &Headers<A>,
    tables: &impl Fragments<A>,
    origin: Origin,
) -> Result<Later, Counter> {
    let dst = headers.flow.dst;
    match origin {
        Origin::Incoming if may_be_ours(tables, dst, origin) => Ok(Later::Hold),
        Origin::Carried | Origin::Host if tables.has_frontends(dst) => {
            Err(Counter::FragmentOutOfOrder)
        }
        _ => PASS,
    }
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
    first.is_some_and(|first| {
        let is_translated =
            matches!(first.action, FragmentAction::CONTINUE | FragmentAction::REDIRECT);
        is_translated && first.dst == address && first.is_fresh(tables.now())
    })
}

/// What the fragments of one packet have in common.
#[inline(always)]
pub(super) fn key<A: Address>(
    headers: &Headers<A>,
    id: u32,
    direction: Direction,
) -> FragmentKey<A> {
    FragmentKey {
        src: headers.flow.src,
        dst: headers.flow.dst,
        id,
        protocol: headers.flow.protocol,
        hook: u8::from(direction == Direction::Egress),
        pad: [0; 2],
    }
}
