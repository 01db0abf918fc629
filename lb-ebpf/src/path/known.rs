//! Packets of flows that conntrack knows.

use lb_common::{
    abi::{Address, CachedFlow, Counter, CtAction, CtEntry, CtKey, L4Proto, NextHop},
    conntrack::{CtState, is_expired, silence},
};

use super::{Direction, Found, Origin, carrier, is_here};
use crate::{
    parse::Headers,
    tables::{CtRef, Tables},
};

/// Decides on a packet whose flow has an entry; `None` if the entry says nothing about it.
///
/// # Errors
///
/// [`Counter::NoRoute`] if there is no way to where it belongs.
#[inline(always)]
pub(super) fn known<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    entry_ref: CtRef<A>,
    decision: &mut CachedFlow<A>,
) -> Result<Option<Found>, Counter> {
    let entry = entry_ref.get();
    let action = entry.action;
    if !is_here(action, origin) {
        // Reverse translation belongs to egress: coming in, the packet is one of pod and client.
        return Ok((origin.direction() == Direction::Ingress).then_some(Found::Nothing));
    }
    if action.is_forward() {
        if must_choose_again(headers, tables, &entry) {
            tables.forget(&headers.flow);
            return Ok(None);
        }
        if is_cut_off(headers, tables, &entry) {
            return Ok(Some(Found::Answer(Counter::BackendRemoved)));
        }
    } else if action != CtAction::REPLY_SNAT && is_of_a_later_flow(tables, headers, &entry) {
        return Ok(Some(Found::Nothing));
    }
    decision.set(&headers.flow, &entry.peer(headers.flow.protocol).reversed(), action);
    decision.hop = if action.redirects() {
        let src = if action.is_forward() { headers.flow.src } else { entry.src };
        tables.route(src, entry.dst).ok_or(Counter::NoRoute)?
    } else {
        NextHop::of(entry.device)
    };
    if action.carries() {
        carrier::narrow(tables, &mut decision.hop);
    }
    let is_whole = note(tables, headers, entry_ref);
    if !is_whole && action.is_forward() {
        // Its answers are somebody else's by now.
        return Ok(None);
    }
    let is_proven = is_whole && is_proven(tables, headers, entry_ref);
    if is_proven && (!action.redirects() || decision.hop.is_known()) {
        tables.cache(decision);
    }
    Ok(Some(Found::Decided))
}

/// Does a flow belong with those that are proven, or does this packet prove it, so that it may be cached?
///
/// A stream of datagrams that nobody answers is as good: nothing but an answer would change its entry.
#[inline(always)]
fn is_proven<A: Address>(
    tables: &impl Tables<A>,
    headers: &Headers<A>,
    entry_ref: CtRef<A>,
) -> bool {
    let (state, _) = entry_ref.seen();
    if !state.is_half_open() {
        // An ended one may lose its port at any time.
        return !state.is_closed();
    }
    if !entry_ref.action().is_forward() {
        return false;
    }
    if state.is_proven_by(headers.flags) {
        prove(tables, headers, entry_ref);
        return true;
    }
    !headers.flow.protocol.has_connections() && !state.has(CtState::ANSWERED)
}

/// Moves both entries of a flow to those that are proven.
#[inline(always)]
fn prove<A: Address>(tables: &impl Tables<A>, headers: &Headers<A>, entry_ref: CtRef<A>) {
    let Some(scratch) = tables.scratch() else { return };
    if !entry_ref.action().carries() {
        let peer = entry_ref.get().peer(headers.flow.protocol);
        set_opposite(tables, headers, (entry_ref, scratch));
        scratch.set_proven();
        tables.track(&peer, scratch);
        tables.forget_half_open(&peer);
    }
    scratch.set(entry_ref.get());
    scratch.set_proven();
    tables.track(&headers.flow, scratch);
    tables.forget_half_open(&headers.flow);
}

/// Notes a packet in its flow, at once; in the other direction's entry when it ends the connection
/// or time has passed, so that a flow that only asks does not lose its way back to another one. False
/// if it has: then the flow is forgotten.
///
/// Reads the entry again: a copy that is kept until here takes stack.
#[inline(always)]
fn note<A: Address>(tables: &impl Tables<A>, headers: &Headers<A>, entry_ref: CtRef<A>) -> bool {
    let entry = entry_ref.get();
    let next = CtState(entry.state).next(headers.flags, entry.action.end());
    let now = tables.now();
    entry_ref.touch(next, now);
    if entry.last_seen != now {
        tables.note_use(&headers.flow);
    }
    if entry.action.carries() {
        return true;
    }
    // The client's next packet is to see that it was answered.
    let is_first_answer = next.is_half_open() && next != CtState(entry.state);
    // Nobody takes anything from a flow that is proven and open.
    let may_be_taken = next.is_half_open() || next.is_closing();
    if entry.last_seen == now && !may_be_taken {
        return true;
    }
    let peer = entry.peer(headers.flow.protocol);
    if is_first_answer || headers.flags.closes() {
        tables.uncache(&peer);
    }
    if headers.flags.closes() {
        tables.uncache(&headers.flow);
    }
    match tables.conntrack(&peer) {
        Some(entry) if !entry.leads_to(&headers.flow) => {
            tables.forget(&headers.flow);
            return false;
        }
        Some(entry) => {
            entry.touch(next.with(CtState(entry.get().state)), now);
            tables.note_use(&peer);
        }
        None if next.is_closed() => {}
        None => mend(tables, headers, entry_ref, &peer),
    }
    true
}

/// Writes the other direction's entry again, which a full table has thrown out.
#[inline(always)]
fn mend<A: Address>(
    tables: &impl Tables<A>,
    headers: &Headers<A>,
    entry_ref: CtRef<A>,
    peer: &CtKey<A>,
) {
    let Some(scratch) = tables.scratch() else { return };
    set_opposite(tables, headers, (entry_ref, scratch));
    // If it got one meanwhile, that is as good.
    let _ = tables.claim(peer, scratch);
}

/// Makes `to` the other direction's entry.
#[inline(always)]
fn set_opposite<A: Address>(
    tables: &impl Tables<A>,
    headers: &Headers<A>,
    (entry_ref, to): (CtRef<A>, CtRef<A>),
) {
    let mut action = entry_ref.action().opposite();
    if action == CtAction::REPLY_SNAT && entry_ref.get().src == headers.flow.src {
        // A process of this node, whose packets another node carries here.
        action = CtAction::REPLY_TO_HOST;
    }
    let device = if action == CtAction::REPLY_TO_HOST { tables.device() } else { 0 };
    to.set_opposite(entry_ref, &headers.flow, (action, device));
}

/// Does a reply belong to a flow that came after the one its entry tells of, past this node's
/// frontends? A client may reach a backend directly from a port that it used for a Service before.
///
/// Then the entry goes, and the packet is left alone.
#[inline(always)]
fn is_of_a_later_flow<A: Address>(
    tables: &impl Tables<A>,
    headers: &Headers<A>,
    entry: &CtEntry<A>,
) -> bool {
    let is_later = if headers.flow.protocol.has_connections() {
        headers.flags.answers_opening() && is_past(tables, entry)
    } else {
        is_silent(headers, tables, entry)
    };
    if is_later {
        tables.forget(&headers.flow);
    }
    is_later
}

/// Is a connection over, or did it never begin, so that what opens one opens another?
#[inline(always)]
fn is_past<A: Address>(tables: &impl Tables<A>, entry: &CtEntry<A>) -> bool {
    let state = CtState(entry.state);
    state.is_closing() || state.is_outdated(silence(entry.last_seen, tables.now()))
}

/// Has a flow of datagrams been silent for too long to keep its backend?
#[inline(always)]
pub(super) fn is_silent<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry: &CtEntry<A>,
) -> bool {
    let silent = silence(entry.last_seen, tables.now());
    is_expired(headers.flow.protocol, silent, tables.udp_timeout())
}

/// Does a packet of a known flow begin another one, or has its backend stopped serving?
///
/// TCP and SCTP stay with a removed backend until the connection ends (S12), but begin none with it: the
/// end of a node that fails is never seen. Datagrams leave a backend that no longer serves at once
/// (S11).
#[inline(always)]
fn must_choose_again<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry: &CtEntry<A>,
) -> bool {
    if headers.flow.protocol.has_connections() {
        if !headers.flags.opens() {
            return false;
        }
        if is_past(tables, entry) {
            return true;
        }
    }
    !serves(tables, entry) || is_silent(headers, tables, entry)
}

/// Does the backend of a flow still serve?
#[inline(always)]
fn serves<A: Address>(tables: &impl Tables<A>, entry: &CtEntry<A>) -> bool {
    tables.backend(entry.backend).is_some_and(|backend| backend.serves(entry.generation))
}

/// Is it a connection whose backend was removed, and are those to be reset? Its client is told.
#[inline(always)]
fn is_cut_off<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    entry: &CtEntry<A>,
) -> bool {
    tables.resets_removed()
        && headers.flow.protocol == L4Proto::TCP
        && !headers.flags.resets()
        && !serves(tables, entry)
}
