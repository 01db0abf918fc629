//! Packets of flows that nothing but a hint remembers: those that began in a flood.
//!
//! So many flows a tick are remembered before they are proven; of more, the flow cache keeps a hint for
//! each direction, which later ones overwrite. The client's packets find their backend without it, by
//! hash; an answer finds its way back by it. A packet of the client after an answer proves the
//! flow.

use lb_common::{
    abi::{Address, CachedFlow, CtAction, CtEntry, Hinted},
    conntrack::CtState,
};

use super::{Direction, Found, Origin, first::Choice, is_here};
use crate::{parse::Headers, tables::Tables};

/// Keeps a hint of a decision on the destination alone, for the answers. The client's packets need none before
/// there is one, which keeps it: over what may still be hinted of an earlier flow.
#[inline(always)]
pub(super) fn keep<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    decision: &mut CachedFlow<A>,
) {
    tables.count_unremembered();
    let hinted = Hinted {
        service: choice.backend.service,
        backend: choice.id,
        generation: choice.backend.generation,
        is_answered: false,
    };
    let ends = decision.becomes();
    decision.hop = hinted.into();
    decision.set(&ends.reversed(), &headers.flow.reversed(), CtAction::REPLY);
    tables.keep_hint(decision);
    decision.set(&headers.flow, &ends, CtAction::FORWARD);
}

/// Decides on a packet by the hint that is in `decision`; `None` if a client must be given a backend anew.
#[inline(always)]
pub(super) fn hinted<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    decision: &mut CachedFlow<A>,
) -> Option<Found> {
    if !is_here(decision.action, origin) {
        return (origin.direction() == Direction::Ingress).then_some(Found::Nothing);
    }
    let hinted = Hinted::from(decision.hop);
    if decision.action == CtAction::REPLY {
        if !headers.flags.resets() {
            answer(headers, tables, decision);
        }
        return Some(Found::Decided);
    }
    let backend = tables.backend(hinted.backend)?;
    if !hinted.is_answered || !headers.flags.is_plain() || !backend.serves(hinted.generation) {
        return None;
    }
    if !prove(headers, tables, decision) {
        return None;
    }
    Some(Found::Decided)
}

/// Notes in the hint for the client's packets that its backend has answered.
#[inline(always)]
fn answer<A: Address>(headers: &Headers<A>, tables: &impl Tables<A>, decision: &mut CachedFlow<A>) {
    let ends = decision.becomes();
    decision.hop = Hinted { is_answered: true, ..decision.hop.into() }.into();
    decision.set(&ends.reversed(), &headers.flow.reversed(), CtAction::FORWARD);
    tables.keep_hint(decision);
    decision.set(&headers.flow, &ends, CtAction::REPLY);
}

/// Writes both entries of a flow; false if its answers are another one's by now.
#[inline(always)]
fn prove<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    decision: &CachedFlow<A>,
) -> bool {
    let Some(scratch) = tables.scratch() else { return true };
    let hinted = Hinted::from(decision.hop);
    let ends = decision.becomes();
    let reply_flow = ends.reversed();
    if let Some(back) = tables.conntrack(&reply_flow) {
        if !back.leads_to(&headers.flow) {
            return false;
        }
        tables.forget_half_open(&reply_flow);
    }
    scratch.set(CtEntry {
        src: ends.src,
        dst: ends.dst,
        src_port: ends.src_port,
        dst_port: ends.dst_port,
        action: CtAction::FORWARD,
        state: CtState::ESTABLISHED.with(CtState::ANSWERED).0,
        pad: 0,
        service: hinted.service,
        backend: hinted.backend,
        generation: hinted.generation,
        last_seen: tables.now(),
        device: 0,
    });
    tables.track(&headers.flow, scratch);
    scratch.set_opposite(scratch, &headers.flow, (CtAction::REPLY, 0));
    tables.track(&reply_flow, scratch);
    true
}
