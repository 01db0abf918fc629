//! What happens to a packet, one file a path.

pub mod egress;
pub mod first;
pub mod icmp;
pub mod ingress;
pub mod refuse;
mod track;

use lb_common::{
    abi::{Address, Counter, CtAction, CtEntry, CtKey},
    conntrack::{CtState, End, is_expired},
};

use crate::{
    packet::Packet,
    parse::Headers,
    rewrite,
    tables::{CtRef, Route, Tables},
};

/// Which hook a packet is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// It leaves by a device.
    Egress,
    /// It comes in by a device.
    Ingress,
}

/// What the hook must do with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Verdict<A> {
    /// It is to be refused; has become its own refusal where a path is done with it: send it back to
    /// where it came from.
    Answer(Counter),
    /// Translated: on to the stack, and not to be looked at again.
    Continue,
    /// Translated: deliver it as if it had come in by this device.
    Deliver(u32),
    /// Not ours: leave it alone.
    Pass,
    /// Translated: send it to this neighbour.
    Redirect(Route<A>),
}

/// A path's answer: a verdict, or why the packet ends here.
pub type PathResult<A> = Result<Verdict<A>, Counter>;

/// The flow that an entry makes of its packets.
#[inline(always)]
fn translated<A: Address>(entry: &CtEntry<A>, flow: &CtKey<A>) -> CtKey<A> {
    CtKey {
        src: entry.src,
        dst: entry.dst,
        src_port: entry.src_port,
        dst_port: entry.dst_port,
        ..*flow
    }
}

/// Notes a packet in its flow, at once; in the other direction's entry when it ends the connection
/// or time has passed, so that a flow that only asks does not lose its way back to another one.
///
/// Reads the entry again: a copy that is kept until here takes stack.
#[inline(always)]
fn note<A: Address>(tables: &impl Tables<A>, headers: &Headers<A>, entry_ref: CtRef<A>) {
    let entry = entry_ref.get();
    let from = if entry.action.is_forward() { End::Client } else { End::Backend };
    let next = CtState(entry.state).next(headers.flags, from);
    let now = tables.now();
    entry_ref.touch(next, now);
    if entry.last_seen == now && !headers.flags.closes() {
        return;
    }
    let peer = entry.peer(headers.flow.protocol);
    match tables.conntrack(&peer) {
        Some(peer) => peer.touch(next.with(CtState(peer.get().state)), now),
        None if next.is_closed() => {}
        None => mend(tables, headers, entry_ref, &peer),
    }
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
    let action = entry_ref.action().opposite();
    let device = if action == CtAction::REPLY_TO_HOST { tables.device() } else { 0 };
    scratch.set_opposite(entry_ref, &headers.flow, (action, device));
    // If it got one meanwhile, that is as good.
    let _ = tables.claim(peer, scratch);
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
        headers.flags.answers_opening() && CtState(entry.state).is_closing()
    } else {
        is_expired(headers.flow.protocol, entry.last_seen, tables.now())
    };
    if is_later {
        tables.forget(&headers.flow);
    }
    is_later
}

/// Translates a packet and sends it on to where its new destination is.
#[inline(always)]
fn send<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    ends: &CtKey<A>,
) -> PathResult<A> {
    let route = tables.route(ends.src, ends.dst).ok_or(Counter::NoRoute)?;
    rewrite::rewrite(packet, headers, ends)?;
    Ok(Verdict::Redirect(route))
}

/// The same in place of the stack, as a router does it. Asks for the way before it writes: a packet
/// without one is left as it was.
#[inline(always)]
fn forward<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    ends: &CtKey<A>,
) -> PathResult<A> {
    let route = tables.route(ends.src, ends.dst).ok_or(Counter::NoRoute)?;
    rewrite::decrement_ttl::<A>(packet, headers.ttl)?;
    rewrite::rewrite(packet, headers, ends)?;
    Ok(Verdict::Redirect(route))
}
