//! Direct server return: a client's packet is carried to the node of its backend, which answers the
//! client itself.
//!
//! ```text
//! this node:  client → frontend ─► remembered by its forward entry alone ─► carried
//! the other:  carrier ─► unpacked, believed? ─► both entries of a local flow ─► stack
//! ```
//!
//! The other node chooses nothing: the carrier says to which backend. It is believed if that is on that
//! node and of the Service port that the client asks. What was carried once is never sent to another
//! node again.

use lb_common::{
    abi::{
        Address, Backend, BackendFlags, BePort, CachedFlow, Counter, CtAction, CtEntry, CtKey,
        Frontend, FrontendFlags, FrontendKey, Ipv4, L4Proto, NextHop, Target,
    },
    carrier::{self, Carrier, Kind},
};

use super::{
    Found, Origin, PathResult, Verdict,
    first::{self, Choice, Client},
    track,
};
use crate::{
    packet::{Packet, UDP_HEADER},
    parse::{Headers, L3},
    rewrite,
    tables::{CtRef, Tables},
};

/// Two bits of a type of service or traffic class: the packet met congestion (RFC 3168, section 5).
const CONGESTED: u8 = 3;

/// What carriers ask for, besides what all paths do.
pub trait Targets<A: Address>: Tables<A> {
    /// The id of a backend on this node: without a port, the lowest one of the Service port's at the
    /// address; with one, another.
    fn target(&self, target: &Target<A>) -> Option<u32>;
}

/// Is a client of such a frontend carried to this backend?
#[inline(always)]
pub(super) fn is_due<A: Address>(
    backend: &Backend<A>,
    (client, flags): (Client, FrontendFlags),
) -> bool {
    client == Client::Outside
        && flags.has(FrontendFlags::DSR)
        && !flags.has(FrontendFlags::MASQUERADE)
        && !backend.flags.has(BackendFlags::LOCAL)
}

/// Makes a hop one of packets that are to be carried.
#[inline(always)]
pub(super) fn narrow<A: Address>(tables: &impl Tables<A>, hop: &mut NextHop) {
    #[allow(clippy::cast_possible_truncation, reason = "56 at most")]
    let overhead = tables.carrier_kind().overhead::<A>() as u16;
    hop.mtu = hop.mtu.saturating_sub(overhead);
}

/// Decides that a packet is carried after those of its flow, from one of the `ends` to the other: an error
/// about one, or a later fragment. It takes the flow's way: by who asks.
///
/// # Errors
///
/// [`Counter::NoRoute`] if there is no way.
#[inline(always)]
pub(super) fn follow<A: Address>(
    tables: &impl Tables<A>,
    (ends, asker): (&CtKey<A>, A),
    decision: &mut CachedFlow<A>,
) -> PathResult {
    decision.set(ends, ends, CtAction::FORWARD_DSR);
    decision.hop = tables.route(asker, ends.dst).ok_or(Counter::NoRoute)?;
    narrow(tables, &mut decision.hop);
    Ok(Verdict::Carry)
}

/// Puts a packet into a carrier, as `decision` says; `send` is the verdict for one that is sent on.
///
/// # Errors
///
/// Why the packet ends here: [`Counter::RewriteFailed`] or [`Counter::PacketTooBig`] before anything is written
/// to it.
#[inline(always)]
pub fn pack<A: Address>(
    packet: &mut impl Packet,
    tables: &impl Tables<A>,
    decision: &CachedFlow<A>,
    send: Verdict,
) -> PathResult {
    if !packet.fits(decision.hop.mtu) {
        return Err(Counter::PacketTooBig);
    }
    let ttl = packet.read(L3 + A::TTL_OFFSET).ok_or(Counter::RewriteFailed)?;
    if ttl <= 1 {
        return Err(Counter::TtlExpired);
    }
    let (length, class) = length_and_class::<A>(packet)?;
    let kind = tables.carrier_kind();
    let carrier = Carrier {
        kind,
        length,
        class,
        ends: [decision.src, decision.dst],
        target: decision.dst_port,
        port: tables.carrier_port(),
        src_port: decision.src_port,
    };
    packet.put_before::<A>(&carrier.headers(), kind, decision.hop.mtu)?;
    rewrite::decrement_ttl::<A>(packet, L3 + kind.overhead::<A>(), ttl)?;
    Ok(send)
}

/// Length and class of a packet. A length may be wrong where the kernel cuts the packet later: it then
/// writes that of each piece.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "a header is short, a class has eight bits")]
fn length_and_class<A: Address>(packet: &impl Packet) -> Result<(u16, u8), Counter> {
    let [first, second] = packet.read::<[u16; 2]>(L3).ok_or(Counter::RewriteFailed)?;
    let first = u16::from_be(first);
    if A::HEADER == Ipv4::HEADER {
        return Ok((u16::from_be(second), first as u8));
    }
    let payload = packet.read::<u16>(L3 + 4).ok_or(Counter::RewriteFailed)?;
    let length = u16::from_be(payload).saturating_add(A::HEADER as u16);
    Ok((length, (first >> 4) as u8))
}

/// May a packet be a carrier of GUE? Of other datagrams to the port, only their first bytes are read. (Of IPIP:
/// [`ipip`](super::ipip).)
#[inline(always)]
pub fn may_be<A: Address>(
    packet: &impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    origin: Origin,
) -> bool {
    let port = tables.carrier_port();
    headers.flow.dst_port == port
        && headers.flow.protocol == L4Proto::UDP
        && port != BePort(0)
        && origin == Origin::Incoming
        && target::<A>(packet).is_some()
}

/// The port of the backend that a carrier names; none if the packet is no carrier of ours.
#[inline(always)]
fn target<A: Address>(packet: &impl Packet) -> Option<BePort> {
    carrier::target::<A>(packet.read::<[u16; 4]>(L3 + A::HEADER + UDP_HEADER)?)
}

/// Takes a packet out of its carrier of GUE, and notes the backend as the destination of `decision`; false
/// if it is no carrier of ours, and left as it is.
///
/// # Errors
///
/// As of [`take_off`].
#[inline(always)]
pub fn unpack<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    decision: &mut CachedFlow<A>,
) -> Result<bool, Counter> {
    if !tables.is_uplink() {
        return Ok(false);
    }
    let Some(target) = target::<A>(packet) else { return Ok(false) };
    (decision.dst, decision.dst_port) = (headers.flow.dst, target);
    take_off::<A>(packet, Kind::Gue)?;
    Ok(true)
}

/// Takes the headers of a carrier off a packet, which is told of the congestion that the carrier met (RFC 6040,
/// section 4.2).
///
/// # Errors
///
/// [`Counter::CarrierCongested`] if it can't be told, [`Counter::RewriteFailed`] if the kernel refuses.
#[inline(always)]
pub(super) fn take_off<A: Address>(packet: &mut impl Packet, kind: Kind) -> Result<(), Counter> {
    let (_, class) = length_and_class::<A>(packet)?;
    packet.remove_before(kind.overhead::<A>())?;
    let is_told = class & CONGESTED != CONGESTED || packet.mark_congested();
    if is_told { Ok(()) } else { Err(Counter::CarrierCongested) }
}

/// The backend that a packet was carried here for: the destination of what is decided on it. Its port is
/// zero if the carrier does not name it.
#[derive(Clone, Copy)]
pub(super) struct Named<A>(A, BePort);

impl<A: Address> Named<A> {
    #[inline(always)]
    pub(super) const fn of(decision: &CachedFlow<A>) -> Self {
        Self(decision.dst, decision.dst_port)
    }

    /// Notes it for the steps that follow, where nothing was decided.
    #[inline(always)]
    pub(super) fn keep(self, decision: &mut CachedFlow<A>) {
        (decision.dst, decision.dst_port) = (self.0, self.1);
    }

    /// The backend of a carrier that names an address alone.
    #[inline(always)]
    pub(super) const fn at(address: A) -> Self {
        Self(address, BePort(0))
    }

    /// Is it the backend at this address and port?
    #[inline(always)]
    pub(super) fn is_at(self, address: A, port: BePort) -> bool {
        self.0 == address && (self.1 == port || self.1 == BePort(0))
    }

    /// Does a decision lead to it, on this node?
    #[inline(always)]
    pub(super) fn is_meant_by(self, decision: &CachedFlow<A>) -> bool {
        decision.action == CtAction::FORWARD && self.is_at(decision.dst, decision.dst_port)
    }

    /// Does an entry lead to it, on this node?
    #[inline(always)]
    pub(super) fn is_of(self, tables: &impl Tables<A>, entry: CtRef<A>) -> bool {
        let CtEntry { action, dst, dst_port, backend, generation, .. } = entry.get();
        // The id of one that is gone may be another's by now.
        let owner = || tables.backend(backend).filter(|owner| owner.generation == generation);
        let is_here = || match owner() {
            Some(backend) => backend.flags.has(BackendFlags::LOCAL),
            None => action == CtAction::FORWARD,
        };
        matches!(action, CtAction::FORWARD | CtAction::FORWARD_SNAT)
            && self.is_at(dst, dst_port)
            && is_here()
    }

    /// The backend itself, if the Service port has it, on this node.
    #[inline(always)]
    pub(super) fn of_service(self, tables: &impl Targets<A>, service: u32) -> Option<Choice<A>> {
        let lowest = self.found_with(tables, BePort(0), service);
        if lowest.is_some() || self.1 == BePort(0) {
            return lowest;
        }
        self.found_with(tables, self.1, service)
    }

    #[inline(always)]
    fn found_with(self, tables: &impl Targets<A>, port: BePort, service: u32) -> Option<Choice<A>> {
        let id = tables.target(&Target::new(self.0, port, service))?;
        let backend = tables.backend(id)?;
        let is_meant = self.is_at(backend.address, backend.port) && backend.service == service;
        (is_meant && backend.flags.has(BackendFlags::LOCAL)).then_some(Choice { id, backend })
    }
}

/// Begins the flow of a packet that was carried here, to the backend that its carrier named, which is the
/// destination of `decision`.
///
/// # Errors
///
/// Why the packet ends here: it must not go on to the stack as it is.
#[inline(always)]
pub fn accept<A: Address>(
    headers: &Headers<A>,
    tables: &impl Targets<A>,
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let named = Named::of(decision);
    if first::is_martian(headers) {
        return Err(Counter::Martian);
    }
    let Frontend { service, flags, .. } =
        frontend(headers, tables).ok_or(Counter::CarrierRefused)?;
    if flags.has(FrontendFlags::CHECK_SOURCE) && !first::is_among(headers, tables, service) {
        return Err(Counter::SourceNotAllowed);
    }
    let choice = named.of_service(tables, service).ok_or(Counter::CarrierRefused)?;
    // The stack drops what comes in under an address of the node itself.
    let is_own = tables.source_at(tables.device()) == Some(headers.flow.src);
    let client = if is_own { Client::Carried } else { Client::Outside };
    if !is_own && !track::is_reply_flow_taken(headers, tables, &choice.backend) {
        return track::dnat(headers, tables, &choice, client, decision);
    }
    track::snat(headers, tables, &choice, client, decision)
}
/// The frontend that a client asked for at another node: one of this node's as well, or the node port
/// that all nodes have, by its guard.
#[inline(always)]
pub(super) fn frontend<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
) -> Option<Frontend> {
    if let Some(frontend) = first::frontend(headers, tables) {
        return Some(frontend);
    }
    let key = FrontendKey::new(A::zeroed(), headers.flow.dst_port, headers.flow.protocol);
    tables.frontend(&key)
}
