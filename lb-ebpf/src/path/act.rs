//! Carries a decision out: the one place that translates packets of flows.

use lb_common::abi::{Address, CachedFlow, Counter, CtAction};

use super::{PathResult, Verdict};
use crate::{packet::Packet, parse::Headers, rewrite, tables::Tables};

/// Gives a packet the ends that `decision` says; `send` is the verdict for one that is sent on.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn act<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    decision: &CachedFlow<A>,
    send: Verdict,
) -> PathResult {
    let action = decision.action;
    if action.carries() {
        return Ok(Verdict::Carry);
    }
    if action.redirects() && !packet.fits(decision.hop.mtu) {
        return Err(Counter::PacketTooBig);
    }
    rewrite::rewrite(packet, headers, decision)?;
    Ok(match action {
        CtAction::REPLY_TO_HOST => delivery(tables, decision.hop.device),
        _ if action.redirects() => send,
        _ => Verdict::Continue,
    })
}

/// A reply to a host process must come in by the device that its request left by, or reverse path
/// filtering (RFC 3704) drops it.
#[inline(always)]
pub(super) fn delivery<A: Address>(tables: &impl Tables<A>, device: u32) -> Verdict {
    if device == tables.device() { Verdict::Continue } else { Verdict::Deliver(device) }
}
