//! Verdicts as return codes.

use aya_ebpf::{bindings::BPF_F_INGRESS, helpers::bpf_redirect};
use lb_common::abi::{Counter, CounterKind, NextHop};
use lb_ebpf::{
    packet::Packet,
    path::{Direction, PathResult, Verdict},
};

use super::{NEXT, SHOT, step};
use crate::{globals::MARK, hook::skb::Skb, maps};

/// Performs a verdict.
#[inline(always)]
pub(super) fn perform(
    skb: &mut Skb,
    verdict: PathResult,
    (hop, route, direction): (&NextHop, impl FnOnce(&Skb, Direction) -> Option<i32>, Direction),
) -> i32 {
    match verdict {
        Ok(Verdict::Carry) => step::CARRY,
        Ok(Verdict::Continue) => {
            if direction == Direction::Ingress {
                skb.set_mark(MARK.load());
            }
            NEXT
        }
        Ok(Verdict::Deliver(device)) => deliver(skb, device),
        Ok(Verdict::Pass) => NEXT,
        Ok(Verdict::Route) => {
            skb.set_mark(MARK.load());
            route(skb, direction).unwrap_or(SHOT)
        }
        Ok(Verdict::Send) => send(skb, hop),
        Err(counter) => end(counter),
    }
}

/// Counts a packet under a reason, and does with it what the reason says; leaves that to the last step
/// where the sender can be told.
#[inline(always)]
pub(super) fn end(counter: Counter) -> i32 {
    match counter {
        Counter::PacketTooBig => return step::TOO_BIG,
        Counter::TtlExpired => return step::TTL_EXPIRED,
        _ => maps::count(counter),
    }
    match counter.kind() {
        CounterKind::Pass | CounterKind::Serve => NEXT,
        CounterKind::Answer | CounterKind::Drop | CounterKind::Reject => SHOT,
    }
}

/// Makes what a step answers a verdict: no other step follows.
#[inline(always)]
pub(super) fn last(code: i32) -> i32 {
    match code {
        step::NARROW | step::TOO_BIG => maps::count(Counter::PacketTooBig),
        step::TTL_EXPIRED => maps::count(Counter::TtlExpired),
        verdict => return verdict,
    }
    SHOT
}

/// Sends the packet to a next hop.
#[inline(always)]
fn send(skb: &mut Skb, hop: &NextHop) -> i32 {
    if skb.write(0, &hop.macs).is_err() {
        return end(Counter::RewriteFailed);
    }
    skb.set_mark(MARK.load());
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(hop.device, 0) as i32 }
}

/// Returns an answer to where its question came from.
#[inline(always)]
pub(super) fn send_back(skb: &mut Skb, direction: Direction) -> i32 {
    skb.set_mark(MARK.load());
    let flags = if direction == Direction::Egress { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(skb.device(), flags) as i32 }
}

/// Hands the packet to the stack as if it had come in by another device.
#[inline(always)]
fn deliver(skb: &mut Skb, device: u32) -> i32 {
    let Some(target) = maps::device(device) else {
        return end(Counter::NoRoute);
    };
    if skb.write(0, &target.mac).is_err() {
        return end(Counter::RewriteFailed);
    }
    skb.set_mark(MARK.load());
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(device, u64::from(BPF_F_INGRESS)) as i32 }
}
