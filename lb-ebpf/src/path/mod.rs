//! What happens to a packet: one way for both hooks, and one place that rewrites.
//!
//! ```text
//!       look              known            hinted           begin              act
//! filter ─► cached? ────────────────────────────────────────────────────► rewrite, send
//!              └─────► conntrack? ─────────────────────────────────────►  ▲
//!                           └────► hint? ──────────────────────────────►  │
//!                                     └────► frontend: choose, track ─────┘
//! ```
//!
//! A *decision* says what becomes of the packets of a flow: their new ends, and where they go. [`known`](fn@known),
//! [`hinted`](fn@hinted) or [`begin`] writes one (with [`claim`] for its source port), the cache keeps it for those that follow, and
//! [`act`](fn@act) carries it out, or [`carrier::pack`].
//! All are functions of their own in the kernel, which the verifier reads one by one.

mod act;
pub mod answer;
pub mod carrier;
pub mod first;
pub mod fragment;
mod hinted;
pub mod hold;
pub mod icmp;
pub mod ipip;
mod known;
pub mod narrow;
pub mod refuse;
mod track;

use lb_common::abi::{Address, CachedFlow, Counter, CtAction};

pub use act::act;
pub use track::{SNAT_TRIES, claim};

use carrier::Named;

use crate::{parse::Headers, tables::Tables};

/// Which hook a packet is at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// It leaves by a device.
    Egress,
    /// It comes in by a device.
    Ingress,
}

/// Which hook a packet is at, and how it got there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Origin {
    /// It came in by a device, in a carrier.
    Carried,
    /// It leaves by a device and came in by another.
    Forwarded,
    /// It leaves by a device; a socket of this node sent it.
    Host,
    /// It comes in by a device.
    Incoming,
}

impl Origin {
    /// The origin of this number.
    ///
    /// Without a branch: the verifier would walk through all that follows once for each.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        // SAFETY: there are four, and they are numbered from zero on.
        unsafe { core::mem::transmute(number & 3) }
    }

    /// The hook.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Forwarded | Self::Host => Direction::Egress,
            Self::Carried | Self::Incoming => Direction::Ingress,
        }
    }
}

/// What the hook must do with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Verdict {
    /// To be put into a carrier.
    Carry,
    /// Translated: on to the stack, and not to be looked at again.
    Continue,
    /// Translated: deliver it as if it had come in by this device.
    Deliver(u32),
    /// Not ours: leave it alone.
    Pass,
    /// Translated: send it as the routing table has just answered.
    Route,
    /// Translated: send it to the next hop of the decision.
    Send,
}

/// A path's answer: a verdict, or why the packet ends here.
pub type PathResult = Result<Verdict, Counter>;

/// What the filter and the cache say of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Look {
    /// There is a decision, cached earlier.
    Act,
    /// Perhaps it is ours.
    Ask,
    /// It is not ours.
    Leave,
}

/// What was found out about a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Found {
    /// It is to be refused.
    Answer(Counter),
    /// There is a decision that lacks a source port.
    Claim,
    /// There is a decision, made for this packet.
    Decided,
    /// Nobody knows its flow, and it may be for a frontend.
    New,
    /// It is not ours.
    Nothing,
    /// Nobody knows its flow yet.
    Unknown,
}

/// The first step, for a plain packet: most need no other to be left alone, or to be decided on.
#[inline(always)]
pub fn look<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    decision: &mut CachedFlow<A>,
) -> Look {
    if !may_be_ours(headers, tables, origin) {
        return Look::Leave;
    }
    if !headers.flags.is_plain() || !tables.recall(&headers.flow, decision) {
        return Look::Ask;
    }
    match decision.action {
        CtAction::NONE => Look::Leave,
        action if is_here(action, origin) => Look::Act,
        _ if origin == Origin::Host => Look::Ask,
        _ => Look::Leave,
    }
}

/// Can an end of a packet be a Service's? Of most others that is not even asked.
///
/// What another device let in, and did not translate there, can only be an answer of a backend.
#[inline(always)]
pub fn may_be_ours<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
) -> bool {
    let is_forwarded = origin == Origin::Forwarded;
    let may_be_asked = !is_forwarded && tables.may_be_to_frontend(&headers.flow);
    may_be_asked || tables.may_be_from_backend(&headers.flow)
}

/// The second step: what conntrack says; writes `decision`.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn known<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let named = Named::of(decision);
    let is_carried = origin == Origin::Carried;
    if is_carried {
        let is_cached = headers.flags.is_plain() && tables.recall(&headers.flow, decision);
        if is_cached && named.is_meant_by(decision) {
            return Ok(Found::Decided);
        }
    }
    if let Some(entry) = tables.conntrack(&headers.flow)
        && (!is_carried || named.is_of(tables, entry))
        && let Some(found) = known::known(headers, tables, origin, entry, decision)?
    {
        return Ok(found);
    }
    if is_carried {
        named.keep(decision);
    }
    Ok(Found::Unknown)
}

/// The third step: what hints say of a flow that conntrack does not know; writes `decision`.
#[inline(always)]
pub fn hinted<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    decision: &mut CachedFlow<A>,
) -> Found {
    let named = Named::of(decision);
    let is_carried = origin == Origin::Carried;
    // A connection that opens is given its backend by hash, whatever is hinted.
    if !headers.flags.opens()
        && tables.hint(&headers.flow, decision)
        && (!is_carried || named.is_meant_by(decision))
        && let Some(found) = hinted::hinted(headers, tables, origin, decision)
    {
        return found;
    }
    if is_carried {
        named.keep(decision);
        return Found::New;
    }
    if !tables.may_be_to_frontend(&headers.flow) {
        leave_alone(headers, tables, decision);
        return Found::Nothing;
    }
    if origin == Origin::Forwarded { Found::Nothing } else { Found::New }
}

/// The fourth step, for a flow that is new: what the frontends say; writes `decision`.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub fn begin<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    if let Some(frontend) = first::frontend(headers, tables) {
        return first::first(headers, tables, (&frontend, origin), decision);
    }
    leave_alone(headers, tables, decision);
    Ok(Found::Nothing)
}

/// Caches that packets of a flow are not ours: those that a backend sends to somebody directly, as a
/// rule.
#[inline(always)]
fn leave_alone<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    decision: &mut CachedFlow<A>,
) {
    decision.set(&headers.flow, &headers.flow, CtAction::NONE);
    tables.cache(decision);
}

/// Is an action carried out at this hook?
#[inline(always)]
fn is_here(action: CtAction, origin: Origin) -> bool {
    action.is_at_egress() == (origin.direction() == Direction::Egress)
}
