//! The steps for fragments, and for packets that are not of a flow.

use lb_common::abi::{Address, Counter, CtAction, FragmentAction};
use lb_ebpf::{
    packet::Bytes as _,
    path::{
        Origin, answer, fragment,
        icmp::{self, Icmp},
    },
};

use super::{
    NEXT, SHOT, step,
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
const TC_ACT_REDIRECT: i32 = 7;

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

#[inline(always)]
pub(super) fn later<A: Address + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = Origin::of(from);
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let verdict = match fragment::later(&mut skb, headers, &tables, (origin, decision)) {
        Ok(verdict) => Ok(verdict),
        Err(Some(counter)) => Err(counter),
        Err(None) => return SHOT,
    };
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, origin.direction()))
}

#[inline(always)]
pub(super) fn note<A: Address + FragmentMaps + Routing>(skb: Skb, from: u32, code: i32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    let rest = match code {
        TC_ACT_REDIRECT if decision.action.carries() => {
            fragment::remember_carried(&skb, &tables, headers, decision);
            return NEXT;
        }
        NEXT => (FragmentAction::CONTINUE, 0),
        TC_ACT_REDIRECT if decision.action == CtAction::REPLY_TO_HOST => {
            (FragmentAction::DELIVER, decision.hop.device)
        }
        TC_ACT_REDIRECT => (FragmentAction::REDIRECT, u32::from(decision.action.is_forward())),
        _ => (FragmentAction::DROP, 0),
    };
    fragment::remember(&skb, &tables, headers, Origin::of(from).direction(), rest);
    NEXT
}

#[inline(always)]
pub(super) fn ping<A: Icmp + FragmentMaps + Routing>(mut skb: Skb, from: u32) -> i32 {
    let origin = Origin::of(from);
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    match answer::ping(&mut skb, &tables, origin) {
        Ok(true) => {
            maps::count(Counter::Ping);
            send_back(&mut skb, origin.direction())
        }
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
    let narrow = (code == step::TOO_BIG).then_some(decision.hop.mtu);
    match answer::tell(&mut skb, &tables, headers, (narrow, direction)) {
        Ok(true) => send_back(&mut skb, direction),
        _ => verdict,
    }
}
