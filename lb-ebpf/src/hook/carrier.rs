//! TC: the step that takes a packet out of its carrier and decides on it.

use lb_common::abi::{Address, Counter};
use lb_ebpf::{
    packet::Packet,
    parse::{Header, Headers, Next, NoFlow},
    path::carrier,
};

use super::{
    route::Routing,
    skb::Skb,
    tables::BpfTables,
    tc::{HEADERS, NEXT, SHOT, end, next, pass, step},
};
use crate::maps::{Maps, targets::TargetMaps};

#[inline(always)]
pub(super) fn unpack<A: Header + TargetMaps + Routing>(mut skb: Skb, _from: u32) -> i32 {
    match A::parse(&mut skb, Unpack) {
        Ok(Ok(true)) => {}
        Ok(Err(counter)) => return end(counter),
        _ => return NEXT,
    }
    skb.pull(HEADERS);
    match A::parse(&mut skb, Accept) {
        Ok(code) => code,
        Err(NoFlow::Truncated) => end(Counter::CarrierRefused),
        Err(reason) => pass(reason),
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

/// Decides on a packet that was carried here.
struct Accept;

impl<A: Address + TargetMaps + Routing> Next<A, Skb> for Accept {
    type Output = i32;

    #[inline(always)]
    fn run(self, skb: &mut Skb, headers: &Headers<A>) -> i32 {
        let (Some(kept), Some(decision)) = (A::headers(), A::decision()) else { return SHOT };
        let Some(tables) = BpfTables::new(skb.context()) else { return SHOT };
        *kept = *headers;
        match next(carrier::accept(headers, &tables, decision)) {
            step::DECIDED if headers.has_rest() => step::DECIDED_AND_NOTE,
            code => code,
        }
    }
}
