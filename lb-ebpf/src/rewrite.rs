//! Gives a packet new ends, with incremental checksums (RFC 1624; for SCTP see [`crc32c`]).

use lb_common::{
    abi::{Address, BePort, Counter, CtKey, L4Proto},
    checksum::Difference,
    crc32c,
};

use crate::{
    packet::{L4Checksum, Packet},
    parse::{Headers, L3},
};

const IPV4_CHECKSUM: usize = L3 + 10;
const IPV4_TTL: usize = L3 + 8;
const IPV6_HOP_LIMIT: usize = L3 + 7;
const IPV4_HEADER: usize = 20;
/// RFC 9260, 3.1.
const SCTP_CHECKSUM: usize = 8;

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
    if old.protocol == L4Proto::SCTP {
        // First, while little else is kept on the stack.
        mend_crc(packet, headers, ends)?;
    }
    let addresses = Difference::new(old.src.sum() + old.dst.sum(), ends.src.sum() + ends.dst.sum());
    let ports = Difference::new(port_sum(old), port_sum(ends));
    packet.write::<[BePort; 2]>(headers.l4(), &[ends.src_port, ends.dst_port])?;
    if A::HEADER == IPV4_HEADER {
        change_ipv4_checksum(packet, addresses)?;
    }
    packet.write_addresses(L3 + A::SOURCE_OFFSET, [ends.src, ends.dst])?;
    if old.protocol == L4Proto::SCTP {
        return Ok(());
    }
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

/// Length of the transport header and all that it carries, in bytes. From the IP header: a frame
/// may be padded.
#[inline(always)]
pub(crate) fn l4_length<A: Address>(
    packet: &impl Packet,
    headers: &Headers<A>,
) -> Result<u16, Counter> {
    let (offset, begin) =
        if A::HEADER == IPV4_HEADER { (L3 + 2, L3) } else { (L3 + 4, L3 + A::HEADER) };
    let length = packet.read::<u16>(offset).ok_or(Counter::RewriteFailed)?;
    #[allow(clippy::cast_possible_truncation, reason = "headers are short")]
    let header = headers.l4().wrapping_sub(begin) as u16;
    Ok(u16::from_be(length).wrapping_sub(header))
}

/// Mends the checksum of SCTP, which covers the packet from its ports on, and no addresses.
///
/// One of zero stays: the packet was made on this machine, and is summed where it leaves it.
#[inline(always)]
fn mend_crc<A: Address>(
    packet: &mut impl Packet,
    headers: &Headers<A>,
    ends: &CtKey<A>,
) -> Result<(), Counter> {
    let offset = headers.l4() + SCTP_CHECKSUM;
    let checksum = packet.read::<u32>(offset).ok_or(Counter::RewriteFailed)?;
    let change = ports(&headers.flow) ^ ports(ends);
    if checksum == 0 || change == 0 {
        return Ok(());
    }
    let length = l4_length(packet, headers)?;
    packet.write(offset, &(checksum ^ crc32c::change(change, length)))
}

/// Both ports, as they lie in memory.
#[inline(always)]
fn ports<A>(flow: &CtKey<A>) -> u32 {
    (u32::from(flow.src_port.get()) << 16 | u32::from(flow.dst_port.get())).to_be()
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
