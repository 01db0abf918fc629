//! The first packet of a flow: choose a backend, remember the choice, translate.

use lb_common::{
    abi::{
        Address, AffinityKey, Backend, BackendFlags, CachedFlow, Counter, Frontend, FrontendFlags,
        FrontendKey, LOCAL_SOURCES, Source,
    },
    flow,
};

use super::{Found, Origin, carrier, track};
use crate::{affinity, parse::Headers, tables::Tables};

/// Who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Client {
    /// A process of this node whose packet another node carried back here.
    Carried,
    /// A process of this node that the socket path did not see.
    Host,
    /// A client outside this node.
    Outside,
    /// A pod of this node.
    Pod,
}

/// A backend with its id.
#[derive(Clone, Copy)]
pub(super) struct Choice<A> {
    pub(super) id: u32,
    pub(super) backend: Backend<A>,
}

/// The frontend that a packet is for; those for sockets of the host alone are no matter of packets.
#[inline(always)]
pub(super) fn frontend<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
) -> Option<Frontend> {
    let flow = &headers.flow;
    let key = FrontendKey::new(flow.dst, flow.dst_port, flow.protocol);
    tables.frontend(&key).filter(|frontend| !frontend.flags.has(FrontendFlags::HOST_ONLY))
}

/// Chooses for a flow that conntrack does not know.
///
/// # Errors
///
/// Why the packet ends here.
#[inline(always)]
pub(super) fn first<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    (frontend, origin): (&Frontend, Origin),
    decision: &mut CachedFlow<A>,
) -> Result<Found, Counter> {
    let client = client(tables, origin);
    let flags = frontend.flags;
    let_in(headers, tables, frontend, client)?;
    let is_outside = client == Client::Outside && !is_local(headers, tables, flags);
    let region = if is_outside { frontend.external } else { frontend.internal };
    if region.length == 0 {
        return without_backend(headers, tables, flags, (client, is_outside));
    }
    let choice = choose(headers, tables, frontend, is_outside)?;
    let is_carried = carrier::is_due(&choice.backend, (client, flags));
    let must_masquerade = !is_carried && must_masquerade(headers, tables, &choice, (client, flags));
    if tables.is_ahead() && !is_carried && !must_masquerade {
        // It passes the packet on, and the program behind begins the flow.
        return Ok(Found::Nothing);
    }
    if (is_carried || must_masquerade) && client != Client::Host && headers.ttl <= 1 {
        return Err(Counter::TtlExpired);
    }
    let found = if is_carried {
        track::dsr(headers, tables, &choice, decision)?
    } else if must_masquerade {
        track::snat(headers, tables, &choice, client, decision)?
    } else {
        track::dnat(headers, tables, &choice, client, decision)?
    };
    keep_affinity(headers, tables, frontend, &choice);
    Ok(found)
}

/// Asks whether the packet is one to begin a flow with.
#[inline(always)]
fn let_in<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    frontend: &Frontend,
    client: Client,
) -> Result<(), Counter> {
    let has_ranges = frontend.flags.has(FrontendFlags::CHECK_SOURCE);
    if client != Client::Host && is_martian(headers) {
        Err(Counter::Martian)
    } else if tables.migrates() && !headers.begins() {
        Err(Counter::Migrating)
    } else if has_ranges && !is_among(headers, tables, frontend.service) {
        Err(Counter::SourceNotAllowed)
    } else {
        Ok(())
    }
}

#[inline(always)]
fn client<A: Address>(tables: &impl Tables<A>, origin: Origin) -> Client {
    match origin {
        Origin::Forwarded | Origin::Host => Client::Host,
        Origin::Carried | Origin::Incoming if tables.is_uplink() => Client::Outside,
        Origin::Carried | Origin::Incoming => Client::Pod,
    }
}

/// Is the source one that a packet on a wire cannot have? Whoever is made to answer it, or the stack, would do
/// so to many, to nobody, or to the Service itself.
#[inline(always)]
pub(super) fn is_martian<A: Address>(headers: &Headers<A>) -> bool {
    let flow = &headers.flow;
    !flow.src.is_one_host() || flow.src == flow.dst
}

/// Is the client in a range of sources of this Service port?
#[inline(always)]
pub(super) fn is_among<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    service: u32,
) -> bool {
    tables.has_source(&Source { service, address: headers.flow.src })
}

/// Does the policy for clients on this node hold for one that comes in by an uplink (S6.3)?
#[inline(always)]
fn is_local<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    flags: FrontendFlags,
) -> bool {
    flags.has(FrontendFlags::LOCAL_BY_SOURCE) && is_among(headers, tables, LOCAL_SOURCES)
}

/// The answer of a Service without a usable backend: rule S5's table. None to this node's own address,
/// which came by a wire.
#[inline(always)]
fn without_backend<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    flags: FrontendFlags,
    (client, is_outside): (Client, bool),
) -> Result<Found, Counter> {
    let is_own = tables.source_at(tables.device()) == Some(headers.flow.src);
    if is_own && matches!(client, Client::Outside | Client::Pod) {
        return Err(Counter::Martian);
    }
    let drop = if is_outside { FrontendFlags::DROP_EXTERNAL } else { FrontendFlags::DROP_INTERNAL };
    if flags.has(drop) {
        return Err(Counter::NoLocalEndpoint);
    }
    Ok(Found::Answer(Counter::NoEndpoint))
}

/// The backend that the client was given before, where the Service asks for that (S10), else one by
/// the flow's hash.
#[inline(always)]
fn choose<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    frontend: &Frontend,
    is_outside: bool,
) -> Result<Choice<A>, Counter> {
    let (region, local) = if is_outside {
        (frontend.external, FrontendFlags::EXTERNAL_LOCAL)
    } else {
        (frontend.internal, FrontendFlags::INTERNAL_LOCAL)
    };
    if frontend.affinity_timeout != 0 {
        let (client, list) = (affinity_key(headers, frontend), affinity::list(frontend, local));
        if let Some((id, backend)) = affinity::recall(tables, frontend, &client, list) {
            return Ok(Choice { id, backend });
        }
    }
    let slot = flow::slot(flow::hash(&headers.flow), region.length);
    let id = tables.slot(region, slot).ok_or(Counter::DanglingSlot)?;
    let backend = tables.backend(id).ok_or(Counter::DanglingSlot)?;
    Ok(Choice { id, backend })
}

/// Remembers whom a client was given that begins a flow, where the Service asks for that.
#[inline(always)]
fn keep_affinity<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    frontend: &Frontend,
    choice: &Choice<A>,
) {
    if frontend.affinity_timeout != 0 && headers.begins() {
        let given = (choice.id, choice.backend.generation);
        affinity::remember(tables, &affinity_key(headers, frontend), given);
    }
}

#[inline(always)]
fn affinity_key<A: Address>(headers: &Headers<A>, frontend: &Frontend) -> AffinityKey {
    AffinityKey::of_address(frontend.service, &headers.flow.src)
}

/// Must the backend answer to this node instead of the client?
///
/// Where it would otherwise answer past us (another node), to itself (a pod that reaches itself,
/// S15), or where the client's port towards it is taken by a flow through another frontend; and
/// where all clients are to be masqueraded, but for processes of this node, which are it already.
#[inline(always)]
fn must_masquerade<A: Address>(
    headers: &Headers<A>,
    tables: &impl Tables<A>,
    choice: &Choice<A>,
    (client, flags): (Client, FrontendFlags),
) -> bool {
    let backend = &choice.backend;
    if client != Client::Host && flags.has(FrontendFlags::MASQUERADE) {
        return true;
    }
    if client == Client::Outside && !backend.flags.has(BackendFlags::LOCAL) {
        return true;
    }
    if client == Client::Pod && backend.address == headers.flow.src {
        return true;
    }
    !tables.is_ahead() && track::is_reply_flow_taken(headers, tables, backend)
}
