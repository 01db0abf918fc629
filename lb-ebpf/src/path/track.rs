//! What is remembered of a flow: an entry for each direction, and a port where SNAT needs one.

use lb_common::{
    abi::{Address, Backend, BePort, CachedFlow, Counter, CtAction, CtEntry, CtKey},
    conntrack::{CtState, End},
    flow,
};

use super::{
    first::{Choice, Client},
    known::is_silent,
};
use crate::{
    parse::Headers,
    tables::{CtRef, Tables},
};

/// Ports that are tried before SNAT gives up.
const SNAT_TRIES: u32 = 8;
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
        Client::Carried | Client::Outside | Client::Pod => (CtAction::FORWARD, CtAction::REPLY, 0),
    };
    let seen = (tables.now(), first_state(headers));
    let reply_flow = reply_flow(headers, &choice.backend);
    let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
    scratch.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
    tables.track(&reply_flow, scratch);
    let ends = reply_flow.reversed();
    scratch.set(entry(&ends, choice, forward, seen));
    tables.track(&headers.flow, scratch);
    decision.set(&headers.flow, &ends, forward);
    Ok(())
}

/// Claims a source port and remembers a translation of both ends. A process of this node keeps its
/// address, which is this node's already, and gets its replies by the device of its packets.
///
/// Of a flow that `is_carried` to another node, no port is claimed, and replies are never seen: it counts as
/// answered, or it would be forgotten before a silent client goes on.
///
/// # Errors
///
/// Without a route, a source address, or a free port.
#[inline(always)]
pub(super) fn snat<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    (client, is_carried): (Client, bool),
    decision: &mut CachedFlow<A>,
) -> Result<(), Counter> {
    let backend = &choice.backend;
    let mut ends = CtKey { dst: backend.address, dst_port: backend.port, ..headers.flow };
    let (mut forward, mut reply, mut device) =
        (CtAction::FORWARD_FROM_HOST, CtAction::REPLY_TO_HOST, tables.device());
    if client == Client::Carried {
        forward = CtAction::FORWARD_SNAT;
    } else if client != Client::Host {
        let hop = tables.route(headers.flow.src, backend.address).ok_or(Counter::NoRoute)?;
        ends.src = tables.source_at(hop.device).ok_or(Counter::NoSourceAddress)?;
        (forward, reply, device) = (CtAction::FORWARD_SNAT, CtAction::REPLY_SNAT, 0);
    }
    let mut seen = (tables.now(), first_state(headers));
    let scratch = tables.scratch().ok_or(Counter::RewriteFailed)?;
    if is_carried {
        (forward, seen.1) = (CtAction::FORWARD_DSR, seen.1.with(CtState::ANSWERED));
    } else {
        scratch.set(CtEntry { device, ..entry(&headers.flow.reversed(), choice, reply, seen) });
        ends.src_port = claim_port(headers, tables, &ends, scratch)?;
    }
    scratch.set(entry(&ends, choice, forward, seen));
    tables.track(&headers.flow, scratch);
    decision.set(&headers.flow, &ends, forward);
    Ok(())
}

/// Does the reply flow of a plain translation belong to a living flow through another frontend?
#[inline(always)]
pub(super) fn is_reply_flow_taken<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    backend: &Backend<A>,
) -> bool {
    let back = tables.conntrack(&reply_flow(headers, backend));
    back.is_some_and(|back| !is_free(headers, tables, &back.get()))
}

/// Finds a port towards the backend that no living flow uses, and writes `back` for its replies.
///
/// Looks before it claims: an insert into a full LRU map frees an innocent entry even if it fails.
#[inline(always)]
fn claim_port<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    ends: &CtKey<A>,
    back: CtRef<A>,
) -> Result<BePort, Counter> {
    let (first, count) = tables.snat_range();
    let step = if count > SNAT_STEP { SNAT_STEP } else { 1 };
    let mut offset = flow::slot(flow::hash(&headers.flow), count);
    for _ in 0..SNAT_TRIES {
        #[allow(clippy::cast_possible_truncation, reason = "the agent checks the range")]
        let src_port = BePort::new((first + offset) as u16);
        let reply_flow = CtKey { src_port, ..*ends }.reversed();
        match tables.conntrack(&reply_flow) {
            None if tables.claim(&reply_flow, back) => return Ok(src_port),
            Some(old) if is_free(headers, tables, &old.get()) => {
                tables.track(&reply_flow, back);
                return Ok(src_port);
            }
            _ => {}
        }
        offset += step;
        if offset >= count {
            offset -= count;
        }
    }
    Err(Counter::SnatPortsExhausted)
}

/// May the reply entry `back` be written anew: it is this flow's own, or its flow has ended?
#[inline(always)]
fn is_free<A: Address>(headers: &Headers<A>, tables: &impl Tables<A>, back: &CtEntry<A>) -> bool {
    let flow = &headers.flow;
    let is_own = back.src == flow.dst
        && back.dst == flow.src
        && back.src_port == flow.dst_port
        && back.dst_port == flow.src_port;
    is_own || CtState(back.state).is_closed() || is_silent(headers, tables, back)
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
    if headers.begins() { CtState::NEW } else { CtState::NEW.next(headers.flags, End::Client) }
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
