//! What is remembered of a flow: an entry for each direction, and a port where SNAT needs one.

use lb_common::{
    abi::{Address, Backend, BePort, CachedFlow, Counter, CtAction, CtEntry, CtKey},
    conntrack::{CtState, End, silence},
    flow,
};

use super::{
    first::{Choice, Client},
    hinted,
    known::is_silent,
};
use crate::{
    parse::Headers,
    tables::{CtRef, Tables},
};

/// Ports that are tried before SNAT gives up.
const SNAT_TRIES: u32 = 8;
/// Ticks for which a flow that nobody goes on with keeps its port.
const OPENING: u32 = 3;
/// Distance between two ports that are tried, in a range that is larger.
const SNAT_STEP: u32 = 61;

/// Remembers a translation of the destination alone.
///
/// # Errors
///
/// Never: there is always room for one entry.
#[inline(always)]
pub(super) fn dnat<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    client: Client,
    decision: &mut CachedFlow<A>,
) -> Result<(), Counter> {
    let (forward, reply, device) = match client {
        Client::Host => (CtAction::FORWARD_FROM_HOST, CtAction::REPLY_TO_HOST, tables.device()),
        Client::Outside | Client::Pod => (CtAction::FORWARD, CtAction::REPLY, 0),
    };
    let reply_flow = reply_flow(headers, &choice.backend);
    decision.set(&headers.flow, &reply_flow.reversed(), forward);
    if client != Client::Host && !tables.may_remember() {
        hinted::keep(headers, tables, choice, decision);
        return Ok(());
    }
    let seen = (tables.now(), first_state(headers));
    let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
    scratch.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
    tables.track(&reply_flow, scratch);
    let ends = reply_flow.reversed();
    scratch.set(entry(&ends, choice, forward, seen));
    tables.track(&headers.flow, scratch);
    Ok(())
}

/// Claims a source port and remembers a translation of both ends. A host process keeps its address,
/// which is this node's already.
///
/// # Errors
///
/// Without a route, a source address, or a free port.
#[inline(always)]
pub(super) fn snat<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    client: Client,
    decision: &mut CachedFlow<A>,
) -> Result<(), Counter> {
    let backend = &choice.backend;
    let mut ends = CtKey { dst: backend.address, dst_port: backend.port, ..headers.flow };
    let (mut forward, mut reply, mut device) =
        (CtAction::FORWARD_FROM_HOST, CtAction::REPLY_TO_HOST, tables.device());
    if client != Client::Host {
        let hop = tables.route(headers.flow.src, backend.address).ok_or(Counter::NoRoute)?;
        ends.src = tables.source_at(hop.device).ok_or(Counter::NoSourceAddress)?;
        (forward, reply, device) = (CtAction::FORWARD_SNAT, CtAction::REPLY_SNAT, 0);
    }
    let seen = (tables.now(), first_state(headers));
    let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
    scratch.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
    let state;
    (ends.src_port, state) = claim_port(headers, tables, &ends, scratch)?;
    decision.set(&headers.flow, &ends, forward);
    let is_proven = !state.is_half_open() || state.is_proven_by(headers.flags);
    if client == Client::Host || is_proven || tables.may_remember() {
        let state = if is_proven { state.proven() } else { state };
        scratch.set(entry(&ends, choice, forward, (seen.0, state)));
        tables.track(&headers.flow, scratch);
    }
    // Its answers' entry follows with the next packet, which finds this one.
    Ok(())
}

/// Does the reply flow of a plain translation belong to a living flow through another frontend?
#[inline(always)]
pub(super) fn is_reply_flow_taken<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    backend: &Backend<A>,
) -> bool {
    let reply_flow = reply_flow(headers, backend);
    let Some(back) = tables.conntrack(&reply_flow) else { return false };
    if !back.leads_to(&headers.flow) && !is_free(headers, tables, back) {
        return true;
    }
    // What is written next may be kept apart from it, and would be hidden by it.
    tables.forget(&reply_flow);
    false
}

/// Finds a port towards the backend that no living flow uses, and writes `back` for its replies, unless
/// they have an entry of this flow already; tells its state.
///
/// Looks before it claims: an insert into a full LRU map frees an innocent entry even if it fails.
#[inline(always)]
fn claim_port<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    ends: &CtKey<A>,
    back: CtRef<A>,
) -> Result<(BePort, CtState), Counter> {
    let (first, count) = tables.snat_range();
    let step = if count > SNAT_STEP { SNAT_STEP } else { 1 };
    let mut offset = flow::slot(flow::hash(&headers.flow), count);
    let (fresh, _) = back.seen();
    for _ in 0..SNAT_TRIES {
        #[allow(clippy::cast_possible_truncation, reason = "the agent checks the range")]
        let src_port = BePort::new((first + offset) as u16);
        let reply_flow = CtKey { src_port, ..*ends }.reversed();
        let mut is_open = true;
        if let Some(old) = tables.conntrack(&reply_flow) {
            let is_own = old.leads_to(&headers.flow);
            if is_own && !headers.flags.opens() {
                let (state, _) = old.seen();
                // It is used again, and nobody else's to take.
                old.touch(state, tables.now());
                return Ok((src_port, state));
            }
            is_open = is_own || is_free(headers, tables, old);
            if is_open {
                tables.forget(&reply_flow);
            }
        }
        // A claim alone does not tell: the port's owner may be in the other table.
        if is_open && tables.claim(&reply_flow, back) {
            return Ok((src_port, fresh));
        }
        offset += step;
        if offset >= count {
            offset -= count;
        }
    }
    Err(Counter::SnatPortsExhausted)
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
