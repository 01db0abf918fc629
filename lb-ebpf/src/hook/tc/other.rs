//! The steps for fragments, and for packets that are not of a flow.

use aya_ebpf::programs::TcContext;
use lb_common::abi::{Address, Counter, FragmentAction, NextHop};
use lb_ebpf::{
    packet::Bytes as _,
    parse::Headers,
    path::{
        Direction, Origin, Verdict, answer,
        fragment::{self, Later},
        hold,
        icmp::{self, Icmp},
        narrow,
    },
    tables::Tables as _,
};

use super::{
    NEXT, SHOT,
    hold::Holding,
    step,
    verdict::{end, last, perform, send_back},
};
use crate::{
    hook::{
        route::{self, Routing},
        skb::Skb,
        tables::BpfTables,
    },
    maps::{self, Maps, fragments::FragmentMaps},
};

/// Headers of ICMP that a path may touch, as far as the quoted ports: an IPv6 redirect with a link-layer
/// address is the longest, longer than an error with two IPv4 headers that are full of options.
pub(super) const QUOTED_HEADERS: u32 = 14 + 40 + 40 + 16 + 40 + 8 + 4;
/// Headers of an error that quotes a carrier of IPv6, as far as what is carried is read.
const CARRIED_HEADERS: u32 = 14 + 40 + 8 + 56 + 40 + 20;

#[inline(always)]
pub(super) fn icmp<A: Icmp + Maps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = Origin::of(from);
    if A::header(&skb).is_none() {
        return if origin == Origin::Carried { end(Counter::CarrierRefused) } else { NEXT };
    }
    skb.pull(QUOTED_HEADERS);
    let Some(decision) = A::decision() else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let verdict = icmp::icmp(&mut skb, &tables, (origin, decision));
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, origin.direction()))
}

/// Answers with [`step::HOLD`] if the fragment is to wait.
#[inline(always)]
pub(super) fn later<A: Address + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = Origin::of(from);
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let verdict = match fragment::later(&mut skb, headers, &tables, (origin, decision)) {
        Ok(Later::By(verdict)) => Ok(verdict),
        Ok(Later::Ended) => return SHOT,
        Ok(Later::Hold) => return step::HOLD,
        Err(counter) => Err(counter),
    };
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, origin.direction()))
}

/// Answers with [`step::WAKE`] if fragments wait for this one.
#[inline(always)]
pub(super) fn note<A: Holding>(skb: Skb, from: u32, code: i32) -> i32 {
    let origin = Origin::of(from);
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let old = [headers.flow.src, headers.flow.dst];
    let (ends, rest) = match code {
        step::DECIDED => ([decision.src, decision.dst], fragment::decided(&tables, decision)),
        NEXT => (old, (FragmentAction::CONTINUE, 0)),
        _ => (old, (FragmentAction::DROP, 0)),
    };
    // Those that wait for one that ends here end with it.
    let is_waited_for = fragment::remember(&skb, &tables, (headers, origin), ends, rest)
        && rest.0 != FragmentAction::DROP
        && hold::is_waited_for(&skb, headers, &tables, origin);
    if is_waited_for { step::WAKE } else { NEXT }
}

#[inline(always)]
pub(super) fn ping<A: Icmp + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = Origin::of(from);
    skb.pull(QUOTED_HEADERS);
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    match answer::ping(&mut skb, &tables, origin) {
        Ok(true) => {
            maps::count(Counter::Ping);
            send_back(&mut skb, origin.direction())
        }
        Ok(false) if narrow::may_be(&skb, &tables, origin) => step::NARROW,
        Ok(false) => step::OTHER,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
pub(super) fn tell<A: Icmp + FragmentMaps + Routing>(mut skb: Skb, from: u32, code: i32) -> i32 {
    let verdict = last(code);
    let direction = Origin::of(from).direction();
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return verdict };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return verdict };
    let narrow = (code != step::TTL_EXPIRED).then_some(decision.hop.mtu);
    match answer::tell(&mut skb, &tables, headers, (narrow, direction)) {
        Ok(true) if code == step::NARROW => to_sender(&mut skb, headers, &tables),
        Ok(true) => send_back(&mut skb, direction),
        _ => verdict,
    }
}

/// Sends what a client is told of its packet, which did not come in here.
#[inline(always)]
fn to_sender<A: Address + Maps + Routing>(
    skb: &mut Skb,
    headers: &Headers<A>,
    tables: &BpfTables<A, TcContext>,
) -> i32 {
    let way = tables.route(headers.flow.dst, headers.flow.src);
    let verdict = way.map(|_| Verdict::Route).ok_or(Counter::NoRoute);
    perform(skb, verdict, (&NextHop::of(0), route::redirect::<A>, Direction::Ingress))
}

/// Makes an error about a carrier the client's packet that was in it, for [`tell`].
#[inline(always)]
pub(super) fn narrow<A: Icmp + Maps + Routing>(mut skb: Skb) -> i32 {
    skb.pull(CARRIED_HEADERS);
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let keep = |found: &Headers<A>| *headers = *found;
    match narrow::reveal(&mut skb, &tables, (keep, decision)) {
        Ok(true) => step::NARROW,
        Ok(false) => NEXT,
        Err(counter) => end(counter),
    }
}
