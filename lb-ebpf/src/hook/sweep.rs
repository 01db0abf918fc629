//! Iterators: remove the entries of flows that are to be forgotten, count those there are, and mark their
//! places.
//!
//! Removed where they are found: the agent would come too late for a flow that has begun again.
//! Not for: how long a flow is kept (`lb_common::conntrack`).

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use lb_common::{
    abi::{Address, CtEntry, CtKey, FrontendKey, L4Proto, Swept},
    conntrack::{CtState, TICK_SHIFT, Timeouts, silence},
};

use super::stale::{Meta, NEXT, serves, write};
use crate::{
    globals::{CT_TCP_CLOSE_WAIT, CT_TCP_ESTABLISHED, CT_UDP, CT_UDP_STREAM},
    maps::{Maps, cache, presence, rebuild},
};

/// `struct bpf_iter__bpf_map_elem`: one entry of a conntrack map.
#[repr(C)]
pub struct FlowVisit<A> {
    meta: *const Meta,
    map: *const c_void,
    flow: *const CtKey<A>,
    entry: *const CtEntry<A>,
}

/// Ticks for which a flow counts as seen lately.
const LATELY: u32 = 10;

/// What becomes of an entry.
enum Fate {
    /// Silent for too long: removed.
    Expired,
    /// Kept.
    Lives,
    /// Leads where it no longer should: removed.
    Stale,
}

/// Removes a flow's entry if it is stale or silent for too long; writes a [`Swept`] after the last one.
#[inline(always)]
pub fn flow<A: Address + Maps>(visit: &FlowVisit<A>) -> i32 {
    let Some((swept, flow, entry)) = visited(visit) else { return NEXT };
    swept.entries += 1;
    let flow = *flow;
    match fate(&flow, entry, swept.begun as u32) {
        Fate::Expired => {
            A::forget(&flow);
            swept.expired += 1;
        }
        Fate::Lives => {
            if let Some(control) = cache::control() {
                rebuild::note_ends(control, &flow, entry);
                presence::mark(control, &flow);
            }
        }
        Fate::Stale => {
            A::forget(&flow);
            swept.stale += 1;
        }
    }
    NEXT
}

/// Marks the place of a flow that is not proven; writes how many of those there are that were seen lately.
/// None is removed: the table makes room by itself.
#[inline(always)]
pub fn half_open<A: Address + Maps>(visit: &FlowVisit<A>) -> i32 {
    let Some((swept, flow, entry)) = visited(visit) else { return NEXT };
    let Some(control) = cache::control() else { return NEXT };
    swept.entries += u64::from(silence(entry.last_seen, swept.begun as u32) <= LATELY);
    presence::mark(control, flow);
    NEXT
}

/// What is found so far, and the entry that is visited; begins with the first one, and writes what was found after
/// the last.
#[inline(always)]
fn visited<A: Maps>(visit: &FlowVisit<A>) -> Option<(&'static mut Swept, &CtKey<A>, &CtEntry<A>)> {
    let swept = A::swept()?;
    // SAFETY: the kernel gives a valid description of the iteration.
    if unsafe { (*visit.meta).number } == 0 {
        *swept = Swept { entries: 0, stale: 0, expired: 0, begun: begun() };
    }
    // SAFETY: the kernel gives valid pointers, or none after the last element.
    let (Some(flow), Some(entry)) = (unsafe { (visit.flow.as_ref(), visit.entry.as_ref()) }) else {
        write(visit.meta, swept);
        return None;
    };
    Some((swept, flow, entry))
}

#[inline(always)]
fn fate<A: Address + Maps>(flow: &CtKey<A>, entry: &CtEntry<A>, now: u32) -> Fate {
    if is_stale(flow, entry) {
        Fate::Stale
    } else if is_over(flow, entry, now) {
        Fate::Expired
    } else {
        Fate::Lives
    }
}

/// Do datagrams go to a backend that no longer serves, or not for the Service that has the address
/// (S11)? Connections stay (S12).
#[inline(always)]
fn is_stale<A: Address + Maps>(flow: &CtKey<A>, entry: &CtEntry<A>) -> bool {
    if flow.protocol != L4Proto::UDP {
        return false;
    }
    let frontend = if entry.action.is_forward() {
        FrontendKey::new(flow.dst, flow.dst_port, flow.protocol)
    } else {
        FrontendKey::new(entry.src, entry.src_port, flow.protocol)
    };
    !serves((entry.backend, entry.generation), &frontend)
}

/// Is a flow silent for too long, both ways?
///
/// Looks its other entry up only if this one alone says so: to be looked up counts as to be used,
/// and keeps an entry in a full table.
#[inline(always)]
fn is_over<A: Address + Maps>(flow: &CtKey<A>, entry: &CtEntry<A>, now: u32) -> bool {
    let timeouts = timeouts();
    let (protocol, mut state) = (flow.protocol, CtState(entry.state));
    let silent = silence(entry.last_seen, now);
    if entry.action.carries() {
        state = state.of_client_alone();
    }
    if !timeouts.is_over(protocol, state, silent) {
        return false;
    }
    let peer = entry.peer(protocol);
    let Some(peer) = A::conntrack(&peer) else { return true };
    // One that does not lead back is of another flow.
    if !peer.leads_to(flow) {
        return true;
    }
    let (other, last_seen) = peer.seen();
    timeouts.is_over(protocol, state.with(other), silent.min(silence(last_seen, now)))
}

/// The time in ticks. By the exact clock: iterators have no other.
#[inline(always)]
fn begun() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() >> TICK_SHIFT }
}

#[inline(always)]
fn timeouts() -> Timeouts {
    Timeouts {
        tcp_established: CT_TCP_ESTABLISHED.load(),
        tcp_close_wait: CT_TCP_CLOSE_WAIT.load(),
        udp: CT_UDP.load(),
        udp_stream: CT_UDP_STREAM.load(),
    }
}
