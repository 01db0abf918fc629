//! Packets that come in by a device: from clients, and from backends back to this node.

use lb_common::{
    abi::{Address, Counter, CtAction, CtEntry, L4Proto},
    conntrack::{CtState, is_expired},
};

use super::{PathResult, Verdict, first, forward, is_of_a_later_flow, note, refuse, translated};
use crate::{
    packet::Packet,
    parse::Headers,
    rewrite,
    tables::{CtRef, Tables},
};

/// Translates a packet for a Service, or the reply to one under SNAT; leaves all others alone.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn ingress<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
) -> PathResult<A> {
    let verdict = judge(packet, headers, tables)?;
    refuse::answer(packet, headers, verdict)
}

/// The same but for refusals, which the packet has yet to become ([`refuse::refuse`]).
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn judge<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
) -> PathResult<A> {
    if let Some(entry) = tables.conntrack(&headers.flow)
        && let Some(verdict) = known(packet, headers, tables, entry)?
    {
        return Ok(verdict);
    }
    let Some(frontend) = first::frontend(headers, tables) else {
        return Ok(Verdict::Pass);
    };
    let client = if tables.is_uplink() { first::Client::Outside } else { first::Client::Pod };
    first::first(packet, headers, tables, (&frontend, client))
}

/// A packet of a known flow; `None` if its backend must be chosen again.
#[inline(always)]
fn known<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry_ref: CtRef<A>,
) -> Result<Option<Verdict<A>>, Counter> {
    let entry = entry_ref.get();
    let is_for_stack = matches!(entry.action, CtAction::FORWARD | CtAction::REPLY_TO_HOST);
    if is_for_stack && !tables.reaches_stack() {
        return Ok(Some(Verdict::Pass));
    }
    let is_forward = matches!(entry.action, CtAction::FORWARD | CtAction::FORWARD_SNAT);
    if is_forward && must_choose_again(headers, tables, &entry) {
        return Ok(None);
    }
    if is_forward && is_cut_off(headers, tables, &entry) {
        return Ok(Some(Verdict::Answer(Counter::BackendRemoved)));
    }
    let ends = translated(&entry, &headers.flow);
    let verdict = match entry.action {
        CtAction::FORWARD => {
            rewrite::rewrite(packet, headers, &ends)?;
            Verdict::Continue
        }
        CtAction::REPLY_TO_HOST if is_of_a_later_flow(tables, headers, &entry) => Verdict::Pass,
        CtAction::REPLY_TO_HOST => {
            rewrite::rewrite(packet, headers, &ends)?;
            delivery(tables, entry.device)
        }
        CtAction::FORWARD_SNAT | CtAction::REPLY_SNAT => forward(packet, headers, tables, &ends)?,
        // Reverse translation belongs to egress: here the packet is one of pod and client.
        _ => return Ok(Some(Verdict::Pass)),
    };
    note(tables, headers, entry_ref);
    Ok(Some(verdict))
}

/// A reply to a host process must come in by the device that its request left by, or reverse path
/// filtering (RFC 3704) drops it.
#[inline(always)]
pub(super) fn delivery<A: Address>(tables: &impl Tables<A>, device: u32) -> Verdict<A> {
    if device == tables.device() { Verdict::Continue } else { Verdict::Deliver(device) }
}

/// Does a packet of a known flow begin another one, or has its backend stopped serving?
///
/// TCP and SCTP stay with a removed backend until the connection ends (S12), but begin none with it: the
/// end of a node that fails is never seen. Datagrams leave a backend that no longer serves at once
/// (S11).
#[inline(always)]
pub(super) fn must_choose_again<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry: &CtEntry<A>,
) -> bool {
    if headers.flow.protocol.has_connections() {
        if !headers.flags.opens() {
            return false;
        }
        if CtState(entry.state).is_closing() {
            return true;
        }
    }
    !serves(tables, entry) || is_expired(headers.flow.protocol, entry.last_seen, tables.now())
}

/// Does the backend of a flow still serve?
#[inline(always)]
fn serves<A: Address>(tables: &impl Tables<A>, entry: &CtEntry<A>) -> bool {
    tables.backend(entry.backend).is_some_and(|backend| backend.serves(entry.generation))
}

/// Is it a connection whose backend was removed, and are those to be reset? Its client is told.
#[inline(always)]
pub(super) fn is_cut_off<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry: &CtEntry<A>,
) -> bool {
    tables.resets_removed()
        && headers.flow.protocol == L4Proto::TCP
        && !headers.flags.resets()
        && !serves(tables, entry)
}
