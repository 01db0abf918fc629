//! The steps for packets of flows.

use lb_common::abi::{Abi as _, Address, CachedFlow, Counter};
use lb_ebpf::{
    packet::Bytes as _,
    parse::{Header, Headers, Next, NoFlow},
    path::{self, Found, Origin, Verdict, carrier, ipip, refuse},
};

use super::{
    CARRIED, NEXT, step,
    verdict::{end, perform, send_back},
};
use crate::{
    hook::{
        route::{self, Routing},
        skb::Skb,
        tables::BpfTables,
    },
    maps::{self, Maps, fragments::FragmentMaps},
};

/// Headers that a path may touch where there are options: Ethernet, IPv4 with all of them, TCP.
const LONG_HEADERS: u32 = 14 + 60 + 20;

#[inline(always)]
pub(super) fn look<A: Header + Maps + Routing>(mut skb: Skb, from: u32) -> i32 {
    A::plain(&mut skb, Look(Origin::of(from))).unwrap_or(step::READ)
}

/// Goes on with the headers of a plain packet.
struct Look(Origin);

impl<A: Address + Maps + Routing> Next<A, Skb> for Look {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        let Self(origin) = self;
        let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
        if carrier::may_be(skb, headers, &tables, origin) {
            return step::CARRIER;
        }
        let mut decision = CachedFlow::zeroed();
        match path::look(headers, &tables, origin, &mut decision) {
            path::Look::Act if decision.action.carries() => {
                let Some(kept) = A::decision() else { return NEXT };
                *kept = decision;
                keep(headers, step::CARRY_ON)
            }
            path::Look::Act => {
                let verdict = path::act(skb, headers, &tables, &decision, Verdict::Send);
                match perform(skb, verdict, (&decision.hop, |_, _| None, origin.direction())) {
                    // Once more, with all that is needed to tell the sender.
                    step::TOO_BIG | step::TTL_EXPIRED => keep(headers, step::KNOWN),
                    code => code,
                }
            }
            path::Look::Ask => keep(headers, step::KNOWN),
            path::Look::Leave => NEXT,
        }
    }
}

/// Keeps the headers for the steps that follow: they would take a sixth of the stack.
#[inline(always)]
fn keep<A: Maps + Copy>(headers: &Headers<A>, code: i32) -> i32 {
    let Some(kept) = A::headers() else { return NEXT };
    *kept = *headers;
    code
}

#[inline(always)]
pub(super) fn read<A: Header + Maps + Routing>(mut skb: Skb, from: u32) -> i32 {
    skb.pull(LONG_HEADERS);
    match A::parse(&mut skb, Read(Origin::of(from))) {
        Ok(code) => code,
        Err(NoFlow::Other) if ipip::may_be::<A>(&skb, Origin::of(from)) => step::IPIP,
        Err(NoFlow::Other) => step::OTHER,
        Err(NoFlow::Truncated) if from == CARRIED => end(Counter::CarrierRefused),
        Err(NoFlow::Truncated) => end(Counter::Truncated),
    }
}

/// Goes on with the headers of any packet.
struct Read(Origin);

impl<A: Address + Maps + Routing> Next<A, Skb> for Read {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        let Self(origin) = self;
        if headers.is_later() {
            return keep(headers, step::LATER);
        }
        if headers.has_rest() {
            return keep(headers, step::KNOWN_AND_NOTE);
        }
        let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
        if origin != Origin::Carried && !path::may_be_ours(headers, &tables, origin) {
            return NEXT;
        }
        keep(headers, step::KNOWN)
    }
}

#[inline(always)]
pub(super) fn known<A: Address + Maps + Routing>(skb: Skb, from: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::known(headers, &tables, Origin::of(from), decision))
}

#[inline(always)]
pub(super) fn hinted<A: Address + Maps + Routing>(skb: Skb, from: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(Ok(path::hinted(headers, &tables, Origin::of(from), decision)))
}

#[inline(always)]
pub(super) fn begin<A: Address + Maps + Routing>(skb: Skb, from: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::begin(headers, &tables, Origin::of(from), decision))
}

#[inline(always)]
pub(super) fn claim<A: Address + Maps + Routing>(skb: Skb, number: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    next(path::claim(headers, &tables, decision, number))
}

/// The step that follows from what was found.
#[inline(always)]
pub(super) fn next(found: Result<Found, Counter>) -> i32 {
    match found {
        Ok(Found::Answer(counter)) => step::REFUSE - counter as i32,
        Ok(Found::Claim) => step::CLAIM,
        Ok(Found::Decided) => step::DECIDED,
        Ok(Found::New) => step::BEGIN,
        Ok(Found::Nothing) => NEXT,
        Ok(Found::Unknown) => step::HINTED,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
pub(super) fn act<A: Address + FragmentMaps + Routing>(mut skb: Skb, from: u32, code: i32) -> i32 {
    let direction = Origin::of(from).direction();
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    if code <= step::REFUSE {
        if let Err(counter) = refuse::refuse(&mut skb, headers, &tables) {
            return end(counter);
        }
        maps::count_number((step::REFUSE - code).cast_unsigned());
        return send_back(&mut skb, direction);
    }
    let verdict = path::act(&mut skb, headers, &tables, decision, Verdict::Route);
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, direction))
}
