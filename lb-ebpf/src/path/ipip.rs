//! Carriers that have nothing but an IP header: IPIP, which others use as well, pods and networks between nodes
//! among them.
//!
//! So it is decided before anything is removed, by what is inside: a packet that leads from a client to a
//! backend of this node, at the address that the carrier goes to. All else stays as it is.

use lb_common::{
    abi::{Abi, Address, BePort, CachedFlow, Counter, CtKey, Ipv4},
    carrier::{Kind, within},
};

use super::{
    Origin,
    carrier::{Named, Targets, frontend, take_off},
    fragment::{self, Fragments},
    icmp::{Icmp, Quote},
};
use crate::{
    packet::{Bytes, Packet},
    parse::{ANY_FRAGMENT, Headers, L3, Next, NoFlow, WITHOUT_OPTIONS},
    tables::Tables,
};

/// May a packet be such a carrier? It has no options, and is whole.
#[inline(always)]
pub fn may_be<A: Address>(packet: &impl Bytes, origin: Origin) -> bool {
    origin == Origin::Incoming && is_ipip::<A>(packet) == Some(true)
}

#[inline(always)]
fn is_ipip<A: Address>(packet: &impl Bytes) -> Option<bool> {
    if A::HEADER != Ipv4::HEADER {
        return packet.read::<u8>(L3 + 6).map(|protocol| protocol == within::<A>());
    }
    let is_plain = packet.read::<u8>(L3)? == WITHOUT_OPTIONS;
    let is_whole = u16::from_be(packet.read(L3 + 6)?) & ANY_FRAGMENT == 0;
    let is_ours = packet.read::<u8>(L3 + 9)? == within::<A>();
    Some(is_ours && is_plain && is_whole)
}

/// A packet behind so many bytes of another one, as if it stood alone.
pub(super) struct Within<'a, P>(pub(super) &'a mut P, pub(super) usize);

impl<P: Bytes> Bytes for Within<'_, P> {
    #[inline(always)]
    fn read<T: Abi>(&self, offset: usize) -> Option<T> {
        self.0.read(self.1 + offset)
    }

    #[inline(always)]
    fn pull(&mut self, headers: u32) {
        #[allow(clippy::cast_possible_truncation, reason = "a few headers")]
        let before = self.1 as u32;
        self.0.pull(before + headers);
    }
}

/// Takes a packet out of its carrier, and notes the backend's address as the destination of `decision`, without
/// a port; false if it is no carrier of ours, and left as it is.
///
/// # Errors
///
/// As of [`take_off`].
#[inline(always)]
pub fn unpack<A: Icmp, T: Targets<A> + Fragments<A>>(
    packet: &mut impl Packet,
    tables: &T,
    decision: &mut CachedFlow<A>,
) -> Result<bool, Counter> {
    let is_taken = tables.carrier_port() != BePort(0) || Kind::Ipip == tables.carrier_kind();
    if !is_taken || !tables.is_uplink() {
        return Ok(false);
    }
    let ends = packet.read::<[A; 2]>(L3 + A::SOURCE_OFFSET);
    let Some([_, backend]) = ends else { return Ok(false) };
    if !is_for(packet, tables, backend, decision) {
        return Ok(false);
    }
    Named::at(backend).keep(decision);
    take_off::<A>(packet, Kind::Ipip)?;
    Ok(true)
}

/// Is what a packet carries for a backend of this node at this address?
#[inline(always)]
fn is_for<A: Icmp, T: Targets<A> + Fragments<A>>(
    packet: &mut impl Packet,
    tables: &T,
    backend: A,
    decision: &mut CachedFlow<A>,
) -> bool {
    let mut inner = Within(packet, A::HEADER);
    match A::parse(&mut inner, Judge { tables, backend, decision }) {
        Ok(is_for) => is_for,
        Err(NoFlow::Truncated) => false,
        Err(NoFlow::Other) => Quote::<A>::read(&inner).is_some_and(|quote| {
            let flow = &quote.answers;
            may_be_of_a_service(tables, flow) && is_known(tables, flow, Named::at(backend))
        }),
    }
}

/// Judges the headers of a packet within another one.
struct Judge<'a, A, T> {
    tables: &'a T,
    backend: A,
    decision: &'a mut CachedFlow<A>,
}

impl<A: Address, P: Bytes, T: Targets<A> + Fragments<A>> Next<A, P> for Judge<'_, A, T> {
    type Output = bool;

    #[inline(always)]
    fn run(self, packet: &mut P, headers: &Headers<A>) -> bool {
        let Self { tables, backend, decision } = self;
        if headers.is_later() {
            return fragment::leads_to(packet, headers, tables, backend);
        }
        let (flow, named) = (&headers.flow, Named::at(backend));
        if !may_be_of_a_service(tables, flow) {
            return false;
        }
        let is_cached = headers.flags.is_plain() && tables.recall(flow, decision);
        is_cached && named.is_meant_by(decision)
            || is_known(tables, flow, named)
            || frontend(headers, tables)
                .is_some_and(|frontend| named.of_service(tables, frontend.service).is_some())
    }
}

/// Can a flow be to a frontend, or to a node port of another node? Of most others that is not even asked.
#[inline(always)]
fn may_be_of_a_service<A: Address>(tables: &impl Tables<A>, flow: &CtKey<A>) -> bool {
    let guard = CtKey { dst: A::zeroed(), ..*flow };
    tables.may_be_to_frontend(flow) || tables.may_be_to_frontend(&guard)
}

/// Is it known of a flow that it leads to this backend?
#[inline(always)]
fn is_known<A: Address>(tables: &impl Tables<A>, flow: &CtKey<A>, named: Named<A>) -> bool {
    tables.conntrack(flow).is_some_and(|entry| named.is_of(tables, entry))
}
