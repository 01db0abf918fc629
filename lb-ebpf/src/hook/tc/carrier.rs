//! The steps for packets that are carried to another node, or were carried here.

use lb_common::abi::{Address, Counter};
use lb_ebpf::{
    packet::Bytes as _,
    parse::{Header, Headers, Next},
    path::{Direction, Verdict, carrier, icmp::Icmp, ipip},
};

use super::{
    NEXT, SHOT,
    flow::next,
    other::QUOTED_HEADERS,
    step,
    verdict::{end, perform},
};
use crate::{
    hook::{
        route::{self, Routing},
        skb::Skb,
        tables::BpfTables,
    },
    maps::{Maps, fragments::FragmentMaps, targets::TargetMaps},
};

#[inline(always)]
pub(super) fn carry<A: Address + Maps + Routing>(mut skb: Skb, code: i32) -> i32 {
    let Some(decision) = A::decision() else { return NEXT };
    let Some(tables) = BpfTables::new(skb.context()) else { return NEXT };
    let send = if code == step::CARRY_ON { Verdict::Send } else { Verdict::Route };
    let verdict = carrier::pack(&mut skb, &tables, decision, send);
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, Direction::Ingress))
}

/// Answers with [`step::READ`] for what is no carrier of ours, and a packet like any other.
#[inline(always)]
pub(super) fn unpack<A: Header + TargetMaps + Routing>(mut skb: Skb) -> i32 {
    match A::plain(&mut skb, Unpack) {
        Some(Ok(true)) => step::UNPACKED,
        Some(Err(counter)) => end(counter),
        _ => step::READ,
    }
}

/// Takes a packet out of its carrier.
struct Unpack;

impl<A: Address + Maps + Routing> Next<A, Skb> for Unpack {
    type Output = Result<bool, Counter>;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> Self::Output {
        let Some(tables) = BpfTables::new(skb.context()) else { return Ok(false) };
        let Some(decision) = A::decision() else { return Ok(false) };
        carrier::unpack(skb, headers, &tables, decision)
    }
}

/// Answers with [`step::UNPACKED`], or passes on what is no carrier of ours.
#[inline(always)]
pub(super) fn ipip<A: Icmp + FragmentMaps + TargetMaps + Routing>(mut skb: Skb) -> i32 {
    skb.pull(A::HEADER as u32 + QUOTED_HEADERS);
    let Some(decision) = A::decision() else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    match ipip::unpack(&mut skb, &tables, decision) {
        Ok(true) => step::UNPACKED,
        Ok(false) => NEXT,
        Err(counter) => end(counter),
    }
}

#[inline(always)]
pub(super) fn accept<A: Address + TargetMaps + Routing>(skb: Skb) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return SHOT };
    let Some(tables) = BpfTables::new(skb.context()) else { return SHOT };
    next(carrier::accept(headers, &tables, decision))
}
