//! What is remembered of a flow: an entry for each direction, and a port where SNAT needs one.

use lb_common::{
    abi::{Address, Backend, BePort, CachedFlow, Counter, CtAction, CtEntry, CtKey, NextHop},
    conntrack::{CtState, End, silence},
    flow,
};

use super::{
    Found, carrier,
    first::{Choice, Client},
    hinted,
    known::is_silent,
};
use crate::{
    parse::Headers,
    tables::{CtRef, Tables},
};

/// Ports that are tried before SNAT gives up.
pub const SNAT_TRIES: u32 = 8;
/// Ticks for which a flow that nobody goes on with keeps its port.
const OPENING: u32 = 3;
/// Distance between two ports that are tried, in a range that is larger.
const SNAT_STEP: u32 = 61;

/// Remembers a translation of the destination alone.
///
/// # Errors
///
/// Without a route, where the packet is sent on by it.
#[inline(always)]
pub(super) fn dnat<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    client: Client,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let (forward, reply, device) = match client {
        Client::Host => (CtAction::FORWARD_FROM_HOST, CtAction::REPLY_TO_HOST, tables.device()),
        Client::Carried | Client::Outside | Client::Pod => (CtAction::FORWARD, CtAction::REPLY, 0),
    };
    let reply_flow = reply_flow(headers, &choice.backend);
    decision.set(&headers.flow, &reply_flow.reversed(), forward);
    if client != Client::Host && !tables.may_remember() {
        hinted::keep(headers, tables, choice, decision);
        return Ok(Found::Decided);
    }
    if client == Client::Host {
        decision.hop = hop(headers, tables, &choice.backend)?;
    }
    let seen = (tables.now(), first_state(headers));
    let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
    scratch.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
    tables.track(&reply_flow, scratch);
    let ends = reply_flow.reversed();
    scratch.set(entry(&ends, choice, forward, seen));
    tables.track(&headers.flow, scratch);
    Ok(Found::Decided)
}

/// Decides on a translation of both ends, but for the source port: that is for [`claim`]. A process
/// of this node keeps its address, and gets its replies by the device of its packets.
///
/// # Errors
///
/// Without a route or a source address, or from that address.
#[inline(always)]
pub(super) fn snat<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    client: Client,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let backend = &choice.backend;
    decision.hop = hop(headers, tables, backend)?;
    let mut ends = CtKey { dst: backend.address, dst_port: backend.port, ..headers.flow };
    let (mut forward, mut reply, mut device) =
        (CtAction::FORWARD_FROM_HOST, CtAction::REPLY_TO_HOST, tables.device());
    if client == Client::Carried {
        forward = CtAction::FORWARD_SNAT;
    } else if client != Client::Host {
        ends.src = source(headers, tables, decision.hop)?;
        (forward, reply, device) = (CtAction::FORWARD_SNAT, CtAction::REPLY_SNAT, 0);
    }
    let seen = (tables.now(), first_state(headers));
    let back = tables.scratch().ok_or(Counter::RewriteFailed)?;
    back.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
    decision.set(&headers.flow, &ends, forward);
    Ok(Found::Claim)
}

/// Decides that the packets of a flow are carried to the node of their backend, and remembers that, but in a
/// flood: the backend is found again. Replies are never seen; the flow counts as answered, or it
/// would be forgotten before a silent client goes on.
///
/// # Errors
///
/// Without a route or a source address, or from that address.
#[inline(always)]
pub(super) fn dsr<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let Backend { address, port, .. } = choice.backend;
    decision.hop = hop(headers, tables, &choice.backend)?;
    carrier::narrow(tables, &mut decision.hop);
    let src = source(headers, tables, decision.hop)?;
    let src_port = lb_common::carrier::src_port(flow::hash(&headers.flow));
    let ends = CtKey { src, dst: address, src_port, dst_port: port, ..headers.flow };
    decision.set(&headers.flow, &ends, CtAction::FORWARD_DSR);
    if tables.may_remember() {
        let seen = (tables.now(), first_state(headers).with(CtState::ANSWERED));
        let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
        scratch.set(entry(&ends, choice, CtAction::FORWARD_DSR, seen));
        tables.track(&headers.flow, scratch);
    }
    Ok(Found::Decided)
}

/// The way to a backend: by who asks, as the stack would go.
#[inline(always)]
fn hop<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    backend: &Backend<A>,
) -> Result<NextHop, Counter> {
    tables.route(headers.flow.src, backend.address).ok_or(Counter::NoRoute)
}

/// The address of this node that packets to a next hop come from; they did not yet.
#[inline(always)]
fn source<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    hop: NextHop,
) -> Result<A, Counter> {
    let source = tables.source_at(hop.device).ok_or(Counter::NoSourceAddress)?;
    if source == headers.flow.src { Err(Counter::Martian) } else { Ok(source) }
}

/// Tries one source port for what [`snat`] has decided: no living flow towards the backend may use it.
/// [`Found::Claim`] if one does.
///
/// Looks before it claims: an insert into a full LRU map frees an innocent entry even if it fails.
///
/// # Errors
///
/// Never: the map of one entry has it.
#[inline(always)]
pub fn claim<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    decision: &mut CachedFlow<A>,
    number: u32,
) -> Result<Found, Counter> {
    let ends = CtKey { src_port: port(headers, tables, number), ..decision.becomes() };
    let reply_flow = ends.reversed();
    let back = tables.scratch().ok_or(Counter::RewriteFailed)?;
    let (mut state, _) = back.seen();
    let mut is_there = false;
    if let Some(old) = tables.conntrack(&reply_flow) {
        let is_own = old.leads_to(&headers.flow);
        if !is_own && !is_free(headers, tables, old) {
            return Ok(Found::Claim);
        }
        is_there = is_own && !headers.flags.opens();
        if is_there {
            (state, _) = old.seen();
            back.touch(state, tables.now());
        } else {
            // What is written next may be kept apart from it, and would be hidden by it.
            tables.forget(&reply_flow);
        }
    }
    if !is_there && !tables.claim(&reply_flow, back) {
        return Ok(Found::Claim);
    }
    decision.set(&headers.flow, &ends, decision.action);
    let is_proven = !state.is_half_open() || state.is_proven_by(headers.flags);
    if is_proven {
        back.set_proven();
    }
    if is_there {
        // It is used again, by the backend as it is now, and nobody else's to take.
        tables.track(&reply_flow, back);
    }
    if is_proven {
        tables.forget_half_open(&reply_flow);
    }
    if decision.action == CtAction::FORWARD_FROM_HOST || is_proven || tables.may_remember() {
        // Else it follows with the packet that proves the flow.
        back.set_opposite(back, &reply_flow, (decision.action, 0));
        tables.track(&headers.flow, back);
    }
    Ok(Found::Decided)
}

/// The source port of a flow's try of this number: they follow from the flow.
#[inline(always)]
fn port<A: Address>(headers: &Headers<A>, tables: &impl Tables<A>, number: u32) -> BePort {
    let (first, count) = tables.snat_range();
    let step = if count > SNAT_STEP { SNAT_STEP } else { 1 };
    let offset = flow::port_offset(flow::hash(&headers.flow), count) + number * step;
    let offset = offset.checked_rem(count).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, reason = "the agent checks the range")]
    let port = (first + offset) as u16;
    BePort::new(port)
}

/// Does the reply flow of a plain translation belong to a living flow through another frontend?
#[inline(always)]
pub(super) fn is_reply_flow_taken<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    backend: &Backend<A>,
) -> bool {
    let reply_flow = reply_flow(headers, backend);
    // A hint, or the end of one, is written there next.
    tables.fetch(&reply_flow);
    let Some(back) = tables.conntrack(&reply_flow) else { return false };
    if !back.leads_to(&headers.flow) && !is_free(headers, tables, back) {
        return true;
    }
    // What is written next may be kept apart from it, and would be hidden by it.
    tables.forget(&reply_flow);
    false
}

/// May the reply entry `back` be written anew: has its flow ended, or never really begun?
///
/// Answered or not: a backend answers a SYN from an address that is made up, too. A datagram and its
/// answer are a whole flow, which more answers may follow.
#[inline(always)]
fn is_free<A: Address>(headers: &Headers<A>, tables: &impl Tables<A>, back: CtRef<A>) -> bool {
    let (state, last_seen) = back.seen();
    let is_whole = !headers.flow.protocol.has_connections() && state.has(CtState::ANSWERED);
    let is_opening = state.is_half_open() && !is_whole;
    state.is_closed()
        || is_opening && silence(last_seen, tables.now()) > OPENING
        || is_silent(headers, tables, &back.get())
}

/// The flow of the replies if only the destination is translated.
#[inline(always)]
fn reply_flow<A: Address>(headers: &Headers<A>, backend: &Backend<A>) -> CtKey<A> {
    CtKey {
        src: backend.address,
        dst: headers.flow.src,
        src_port: backend.port,
        dst_port: headers.flow.src_port,
        ..headers.flow
    }
}

/// The state after a packet that has no entry: one of a connection that is older than its entry
/// does not open it.
#[inline(always)]
fn first_state<A: Address>(headers: &Headers<A>) -> CtState {
    let state = CtState::HALF_OPEN;
    if headers.begins() { state } else { state.next(headers.flags, End::Client) }
}

/// An entry that turns its packets into `ends`.
#[inline(always)]
fn entry<A: Address>(
    ends: &CtKey<A>,
    choice: &Choice<A>,
    action: CtAction,
    (now, CtState(state)): (u32, CtState),
) -> CtEntry<A> {
    CtEntry {
        src: ends.src,
        dst: ends.dst,
        src_port: ends.src_port,
        dst_port: ends.dst_port,
        action,
        state,
        pad: 0,
        service: choice.backend.service,
        backend: choice.id,
        generation: choice.backend.generation,
        last_seen: now,
        device: 0,
    }
}
