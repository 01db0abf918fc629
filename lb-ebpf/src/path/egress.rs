//! Packets that leave by a device: from backends to clients, and from the host itself.

use lb_common::abi::{Address, Counter, CtAction};

use super::{
    PathResult, Verdict, first,
    ingress::{is_cut_off, must_choose_again},
    is_of_a_later_flow, note, refuse, send, translated,
};
use crate::{packet::Packet, parse::Headers, rewrite, tables::Tables};

/// Where a packet at egress comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// It came in by a device and is forwarded.
    Forwarded,
    /// A socket of this node sent it.
    Host,
}

/// Gives the reply of a backend its Service's address; translates what a host process sends to a
/// Service; leaves all others alone.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn egress<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
) -> PathResult<A> {
    let verdict = judge(packet, headers, tables, origin)?;
    refuse::answer(packet, headers, verdict)
}

#[inline(always)]
fn judge<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
) -> PathResult<A> {
    if let Some(entry_ref) = tables.conntrack(&headers.flow) {
        let entry = entry_ref.get();
        let ends = translated(&entry, &headers.flow);
        if entry.action == CtAction::REPLY && !is_of_a_later_flow(tables, headers, &entry) {
            rewrite::rewrite(packet, headers, &ends)?;
            note(tables, headers, entry_ref);
            return Ok(Verdict::Continue);
        }
        if entry.action == CtAction::FORWARD_FROM_HOST
            && !must_choose_again(headers, tables, &entry)
        {
            if is_cut_off(headers, tables, &entry) {
                return Ok(Verdict::Answer(Counter::BackendRemoved));
            }
            let verdict = send(packet, headers, tables, &ends)?;
            note(tables, headers, entry_ref);
            return Ok(verdict);
        }
    }
    if origin == Origin::Forwarded {
        return Ok(Verdict::Pass);
    }
    let Some(frontend) = first::frontend(headers, tables) else {
        return Ok(Verdict::Pass);
    };
    first::first(packet, headers, tables, (&frontend, first::Client::Host))
}
