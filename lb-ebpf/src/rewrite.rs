//! Gives a packet new ends, with incremental checksums (RFC 1624).

use lb_common::{
    abi::{Address, BePort, Counter, CtKey, L4Proto},
    checksum::Difference,
};

use crate::{
    packet::{L4Checksum, Packet},
    parse::{Headers, L3},
};

const IPV4_CHECKSUM: usize = L3 + 10;
const IPV4_TTL: usize = L3 + 8;
const IPV6_HOP_LIMIT: usize = L3 + 7;
const IPV4_HEADER: usize = 20;

/// Makes `packet` one of the flow `ends`; the protocol stays.
///
/// # Errors
///
/// [`Counter::RewriteFailed`] if the kernel refuses.
#[inline(always)]
pub fn rewrite<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    ends: &CtKey<A>,
) -> Result<(), Counter> {
    let old = &headers.flow;
    let addresses = Difference::new(old.src.sum() + old.dst.sum(), ends.src.sum() + ends.dst.sum());
    let ports = Difference::new(port_sum(old), port_sum(ends));
    packet.write::<[BePort; 2]>(headers.l4(), &[ends.src_port, ends.dst_port])?;
    if A::HEADER == IPV4_HEADER {
        change_ipv4_checksum(packet, addresses)?;
    }
    packet.write_addresses(L3 + A::SOURCE_OFFSET, [ends.src, ends.dst])?;
    let checksum = if old.protocol == L4Proto::TCP { 16 } else { 6 };
    packet.repair_l4_checksum(L4Checksum {
        offset: headers.l4() + checksum,
        protocol: old.protocol,
        addresses,
        ports,
    })
}

/// Takes one from the time to live, as a router does.
///
/// # Errors
///
/// [`Counter::TtlExpired`] if nothing would be left.
#[inline(always)]
pub fn decrement_ttl<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
) -> Result<(), Counter> {
    let ttl = headers.ttl;
    if ttl <= 1 {
        return Err(Counter::TtlExpired);
    }
    if A::HEADER != IPV4_HEADER {
        return packet.write(IPV6_HOP_LIMIT, &(ttl - 1));
    }
    packet.write(IPV4_TTL, &(ttl - 1))?;
    let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, 0]));
    change_ipv4_checksum(packet, Difference::new(word(ttl), word(ttl - 1)))
}

#[inline(always)]
fn port_sum<A>(flow: &CtKey<A>) -> u32 {
    u32::from(flow.src_port.0) + u32::from(flow.dst_port.0)
}

#[inline(always)]
fn change_ipv4_checksum(packet: &mut impl Packet, change: Difference) -> Result<(), Counter> {
    let checksum = packet.read(IPV4_CHECKSUM).ok_or(Counter::RewriteFailed)?;
    packet.write(IPV4_CHECKSUM, &change.apply(checksum))
}
