//! The steps for fragments that overtake the first one of their packet.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_clone_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use lb_common::abi::{Address, Counter};
use lb_ebpf::{
    packet::{ETHERNET_HEADER, Packet as _},
    path::{
        Direction,
        hold::{self, Held, Slot, Waiting},
    },
    tables::Tables as _,
};

use super::{NEXT, SHOT, step, verdict::perform};
use crate::{
    hook::{
        route::{self, Routing},
        skb::Skb,
        tables::{BpfTables, Context},
    },
    maps::{
        self,
        fragments::FragmentMaps,
        held::{self, HeldMaps},
    },
};

/// A family whose fragments can wait.
pub(super) trait Holding: Address + FragmentMaps + HeldMaps + Routing {}

impl<A: Address + FragmentMaps + HeldMaps + Routing> Holding for A {}

/// Answers with [`step::HOLD`] if it is to be tried once more, with [`step::LATER`] if the packet is known by
/// now.
#[inline(always)]
pub(super) fn hold<A: Holding>(mut skb: Skb, is_last_try: u32) -> i32 {
    let (Some(headers), Some(decision)) = (A::headers(), A::decision()) else { return NEXT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return NEXT };
    match hold::hold(&skb, headers, &tables) {
        Held::Kept => {
            maps::count(Counter::FragmentHeld);
            return SHOT;
        }
        Held::Known => return step::LATER,
        Held::Taken if is_last_try == 0 => return step::HOLD,
        Held::NoRoom | Held::Taken => {}
    }
    let verdict = hold::refuse(headers, &tables);
    perform(&mut skb, verdict, (&decision.hop, route::redirect::<A>, Direction::Ingress))
}

/// Sends a first fragment in again; answers with the number of slots that others may wait in.
#[inline(always)]
pub(super) fn again<A: Holding>(mut skb: Skb) -> i32 {
    let Some(headers) = A::headers() else { return 0 };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return 0 };
    hold::again(&mut skb, headers, &tables) as i32
}

/// Answers with [`step::WAKE`] if there may be more of them.
#[inline(always)]
pub(super) fn wake<A: Holding>(mut skb: Skb, number: u32, given: i32) -> i32 {
    if number as i32 >= given {
        return SHOT;
    }
    let Some(headers) = A::headers() else { return SHOT };
    let Some(tables) = BpfTables::<A, _>::new(skb.context()) else { return SHOT };
    if hold::wake(&mut skb, headers, &tables, number) {
        maps::count(Counter::FragmentReleased);
    }
    step::WAKE
}

impl<A: Holding, C: Context> Waiting<A, Skb> for BpfTables<A, C> {
    #[inline(always)]
    fn waits_since(&self, slot: &Slot<A>) -> Option<u32> {
        A::held(slot).map(|held| held.since)
    }

    #[inline(always)]
    fn given(&self, first: &Slot<A>) -> u32 {
        A::held(first).map_or(0, |held| held.given)
    }

    #[inline(always)]
    fn give(&self, first: &Slot<A>) -> u32 {
        A::give(first)
    }

    #[inline(always)]
    fn let_wait(&self, skb: &Skb, slot: &Slot<A>) -> bool {
        let Some(room) = held::room() else { return false };
        room.given = 1;
        (room.since, room.last) =
            (self.now(), skb.length().wrapping_sub(ETHERNET_HEADER as u32 + 1));
        let Some(length) = room.length() else { return false };
        // SAFETY: the context is valid, and there is room for so many bytes.
        let answer = unsafe {
            bpf_skb_load_bytes(
                skb.as_ptr().cast(),
                ETHERNET_HEADER as u32,
                room.bytes.as_mut_ptr().cast(),
                length,
            )
        };
        answer == 0 && A::put_held(slot, room)
    }

    #[inline(always)]
    fn fence(&self, slot: &Slot<A>) {
        // Whoever takes a lock has written before what was to be written: for want of an instruction that does
        // nothing else.
        A::remove_held(&Slot { number: u32::MAX, ..*slot });
    }

    #[inline(always)]
    fn fill(&self, skb: &mut Skb, slot: &Slot<A>) -> bool {
        let Some(held) = A::held(slot) else { return false };
        let Some(length) = held.length() else { return false };
        if skb.resize(ETHERNET_HEADER + length as usize).is_err() {
            return false;
        }
        // SAFETY: the context is valid, and so many bytes are there.
        let answer = unsafe {
            bpf_skb_store_bytes(
                skb.as_ptr().cast(),
                ETHERNET_HEADER as u32,
                held.bytes.as_ptr().cast(),
                length,
                u64::from(BPF_F_RECOMPUTE_CSUM),
            )
        };
        answer == 0
    }

    #[inline(always)]
    fn empty(&self, slot: &Slot<A>) -> bool {
        A::remove_held(slot)
    }

    #[inline(always)]
    fn send_in(&self, skb: &mut Skb) -> bool {
        let ctx = skb.context();
        // SAFETY: the context is valid for as long as the program runs.
        unsafe {
            bpf_clone_redirect(ctx.as_ptr().cast(), skb.device(), u64::from(BPF_F_INGRESS)) == 0
        }
    }
}
